"""Assigns the GPUs of this machine to the components that ask for them."""

from __future__ import annotations

import os
from pathlib import Path

from visionrl.job import Component, JobSpec
from visionrl_local.folder import LocalError

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def visible_gpus() -> list[str]:
    """The devices that this process may use: those of ``CUDA_VISIBLE_DEVICES``, otherwise all that the driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip()]
    return [str(index) for index, _ in enumerate(NVIDIA_GPUS.iterdir())] if NVIDIA_GPUS.exists() else []


def assign_gpus(spec: JobSpec, available: list[str]) -> dict[Component, str]:
    """The devices of each component, none twice. Raises :class:`LocalError` where the machine has too few."""
    wanted: dict[Component, int] = {
        "inference": spec.inference.gpu.count if spec.inference.gpu else 0,
        "trainer": spec.trainer.gpu.count if spec.trainer.gpu else 0,
    }
    total = sum(wanted.values())
    if total > len(available):
        shares = ", ".join(f"spec.{component}.gpu {count}" for component, count in wanted.items() if count)
        raise LocalError(
            f"the job asks for {total} GPUs ({shares}), this machine offers {len(available)}; "
            "remove gpu to run a component on the CPU"
        )
    first = wanted["inference"]
    return {"inference": ",".join(available[:first]), "trainer": ",".join(available[first:total])}
