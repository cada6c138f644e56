"""A pod as a process, without a run around it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.support import standin
from visionrl_local.container import Launch, Probe
from visionrl_local.pod import Exit, LocalPod
from visionrl_local.process import GuardedProcess
from visionrl_local.processes import MARK, Supervisor


async def test_a_port_that_a_dying_process_still_holds_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    ends: list[Exit] = []
    changed = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as former:
        started = launch(tmp_path, former.getsockname()[1])
        async with httpx.AsyncClient(trust_env=False) as client:
            pod = LocalPod(started, tmp_path / "log", "task app", True, client, changed.set, ends.append)
            await asyncio.sleep(0.5)  # it has met the port in use
            former.close()
            while not pod.state.ready:
                changed.clear()
                await changed.wait()
            await pod.stop()
    assert ends == []


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$", "kill -9 $PPID; sleep 600"], ids=["ends", "killed", "guard"])
def test_temporary_files_of_a_component_end_with_it(tmp_path: Path, end: str) -> None:
    script = f'mktemp -d "$TMPDIR/XXXX"; {end}'
    started = dataclasses.replace(launch(tmp_path, 1), argv=["sh", "-c", script])

    async def exit_code() -> int:
        process = await GuardedProcess.start(started, tmp_path / "log")
        return await process.wait()

    assert asyncio.run(exit_code()) in (3, 137)
    [made] = (tmp_path / "log").read_text().splitlines()
    assert not Path(made).parent.exists()


def launch(folder: Path, port: int) -> Launch:
    mark = Supervisor(folder).mark("taskApp")
    probe = Probe("/health", period=0.1, timeout=5, failures=600)
    environment = {
        "VISIONRL_HOST": "127.0.0.1",
        "VISIONRL_PORT": str(port),
        "VISIONRL_KEY_FILE": str(folder / "secret" / "api-key"),
        MARK: mark,
    }
    argv = [sys.executable, "-S", standin.__file__, "serve"]
    return Launch("taskApp", argv, os.environ | environment, mark, port, 30.0, probe, probe, probe)
