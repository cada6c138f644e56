"""Assigns the GPUs of this machine to the components that ask for them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from visionrl.job import Component, JobSpec
from visionrl_local.claims import claim, holder
from visionrl_local.folder import LocalError

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def visible_gpus() -> list[str]:
    """The devices that this process may use: those of ``CUDA_VISIBLE_DEVICES``, otherwise all that the driver lists.

    As in CUDA, the list ends before its first entry that is no device: "-1" and "NoDevFiles" hide all.
    """
    uuids = _uuids()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(index) for index in range(len(uuids))]
    devices: dict[str, None] = {}  # ordered, none twice
    for device in (entry.strip() for entry in chosen.split(",")):
        known = device.isdecimal() and (not uuids or int(device) < len(uuids))
        if not known and not re.match("(GPU|MIG)-", device):
            break
        devices[device] = None
    return list(devices)


@contextlib.contextmanager
def claimed_gpus(spec: JobSpec, available: list[str]) -> Iterator[dict[Component, str]]:
    """The devices of each component, none twice and none of another run, for as long as the block runs. Raises
    :class:`LocalError` where too few are left."""
    wanted: dict[Component, int] = {
        "inference": spec.inference.gpu.count if spec.inference.gpu else 0,
        "trainer": spec.trainer.gpu.count if spec.trainer.gpu else 0,
    }
    total = sum(wanted.values())
    with contextlib.ExitStack() as stack:
        mine: list[str] = []
        taken: list[str] = []
        for device in available:
            if len(mine) == total:
                break
            name = f"gpu/{_uuid(device)}"
            if (claimed := claim(name)) is None:
                taken.append(f"{device} is used by another visionrl run ({holder(name)})")
            else:
                stack.enter_context(claimed)
                mine.append(device)
        if len(mine) < total:
            shares = ", ".join(f"spec.{component}.gpu {count}" for component, count in wanted.items() if count)
            others = f": {', '.join(taken)}" if taken else ""
            raise LocalError(
                f"the job asks for {total} GPUs ({shares}), this machine offers {len(mine)}{others}; "
                "remove gpu to run a component on the CPU"
            )
        first = wanted["inference"]
        yield {"inference": ",".join(mine[:first]), "trainer": ",".join(mine[first:])}


def _uuids() -> list[str]:
    """UUIDs of this machine's GPUs in the order of their PCI addresses; empty strings where the driver hides them."""
    if not NVIDIA_GPUS.exists():
        return []
    texts = [(folder / "information").read_text(errors="replace") for folder in sorted(NVIDIA_GPUS.iterdir())]
    found = [re.search(r"GPU UUID:\s*(GPU-[0-9a-f-]+)", text) for text in texts]
    return [match[1] if match else "" for match in found]


def _uuid(device: str) -> str:
    """One name for one GPU, whether it is given by index, UUID or the beginning of its UUID."""
    uuids = _uuids()
    if device.isdecimal():
        return (int(device) < len(uuids) and uuids[int(device)]) or device
    return next((uuid for uuid in uuids if uuid.startswith(device)), device)
