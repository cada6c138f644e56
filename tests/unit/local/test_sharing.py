"""What two runs on one machine must not share: GPUs and ports."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import job
from visionrl.job import JobSpec
from visionrl_local import gpus
from visionrl_local.claims import claim, holder
from visionrl_local.folder import LocalError
from visionrl_local.gpus import claimed_gpus, visible_gpus
from visionrl_local.ports import reserved_ports

UUIDS = ("GPU-0a1b2c3d-0000-0000-0000-000000000000", "GPU-4e5f6071-0000-0000-0000-000000000000")


def two_gpus(**changes: Any) -> JobSpec:
    return job({"inference.gpu": {}, "trainer.gpu": {}, **changes}).spec


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lists two GPUs."""
    for address, uuid in zip(("0000:01:00.0", "0000:41:00.0"), UUIDS, strict=True):
        (tmp_path / address).mkdir()
        (tmp_path / address / "information").write_text(f"Model: \t H100\nGPU UUID: \t {uuid}\n")
    monkeypatch.setattr(gpus, "NVIDIA_GPUS", tmp_path)


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["1"]),
        (" 1 , 0 ", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("0,0", ["0"]),
        ("0,7,1", ["0"]),
        (UUIDS[1], [UUIDS[1]]),
        ("MIG-12345678-0000-0000-0000-000000000000", ["MIG-12345678-0000-0000-0000-000000000000"]),
    ],
)
def test_the_devices_are_those_that_cuda_would_see(
    driver: None, monkeypatch: pytest.MonkeyPatch, variable: str | None, found: list[str]
) -> None:
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == found


def test_every_gpu_is_assigned_once() -> None:
    spec = two_gpus(**{"inference.gpu": {"count": 2}, "inference.vllm": {"tensorParallelSize": 2}})
    with claimed_gpus(spec, ["t0", "t1", "t2", "t3"]) as assigned:
        assert assigned == {"inference": "t0,t1", "trainer": "t2"}
    with pytest.raises(LocalError, match=r"asks for 3 GPUs .* offers 2"), claimed_gpus(spec, ["t0", "t1"]):
        pass
    with claimed_gpus(job().spec, []) as assigned:
        assert assigned == {"inference": "", "trainer": ""}


def test_a_gpu_of_another_run_is_passed_over_by_any_of_its_names(driver: None) -> None:
    with claimed_gpus(job({"trainer.gpu": {}}).spec, ["0"]):
        with claimed_gpus(job({"trainer.gpu": {}}).spec, [UUIDS[0], "1"]) as other:
            assert other["trainer"] == "1"
        with (
            pytest.raises(LocalError, match=r"offers 1: GPU-0a1b is used by another visionrl run \(pid \d+\)"),
            claimed_gpus(two_gpus(), ["GPU-0a1b", "1"]),
        ):
            pass
    with claimed_gpus(two_gpus(), ["0", "1"]) as freed:
        assert freed == {"inference": "0", "trainer": "1"}


def test_a_claim_holds_between_processes_and_ends_with_its_process() -> None:
    program = "from visionrl_local.claims import claim; held = claim('test/x'); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert claim("test/x") is None
        assert holder("test/x") == f"pid {other.pid}"
        other.kill()
        other.wait()
        again = claim("test/x")
        assert again is not None
        again.close()


def test_a_reserved_port_goes_to_its_component_and_to_nobody_else() -> None:
    with reserved_ports(None) as ports:
        assert len(set(ports.values())) == 3
        with reserved_ports(None) as others:
            assert not set(ports.values()) & set(others.values())
        for _ in range(2):  # also after a restart
            with socket.create_server(("127.0.0.1", ports["trainer"])):
                pass


def test_a_chosen_port_is_refused_to_a_second_run_though_nobody_listens_yet() -> None:
    with reserved_ports(None) as free:
        base = max(free.values()) + 1
    with (
        reserved_ports(base),
        pytest.raises(LocalError, match=rf"port {base} for taskApp is in use by another visionrl run \(pid \d+\)"),
        reserved_ports(base),
    ):
        pass
