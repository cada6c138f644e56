"""``--fresh``: deletes what an earlier run left in its folder, and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from visionrl_local.folder import LocalError, LocalFolder

# In the order of deletion. The job comes last: a deletion that was cut off leaves a folder that is still a run's.
MADE_BY_RUNS = (
    *("checkpoints", "adapters", "base", "probe", "warm-start", "films", "tensorboard", "logs", "secret"),
    *("trackio", "wandb", "mlflow.db"),
    *("traces.db", "traces.db-shm", "traces.db-wal", "traces.db-journal", "metrics.jsonl", "evaluations.jsonl"),
    *("summary.json", "facts.json", "report.html", "submitted.json"),
    *("status.json.damaged", "status.json", "config.json", "job"),
)
# They stay: a process that still holds a deleted lock would not keep the next one out.
LOCKS = (".lock", "trainer.lock")


def made_by_run(folder: LocalFolder) -> tuple[list[Path], list[Path]]:
    """What runs made in the folder, in the order of deletion, and what they did not.

    Raises :class:`LocalError` where the folder has such names without being a run folder.
    """
    entries = {entry.name: entry for entry in folder.root.iterdir() if entry.name not in LOCKS}
    made = [entries.pop(name) for name in MADE_BY_RUNS if name in entries]
    drafts = [entries.pop(name) for name in sorted(entries) if re.fullmatch(r"\.[\w.-]+\.\d+", name)]
    if made and not is_run_folder(folder):
        names = ", ".join(path.name for path in made)
        raise LocalError(f"{folder.root} has {names}, but no run made this folder; move it or choose another --runs")
    return [*drafts, *made], sorted(entries.values())


def is_run_folder(folder: LocalFolder) -> bool:
    files = (folder.job_file, folder.status_file, folder.trainers_job_file, folder.submitted_file)
    return any(file.exists() for file in files)


def start_over(folder: LocalFolder, show: Callable[[str], None], agrees: Callable[[], bool]) -> bool:
    """Delete what runs made in the folder, once the user has seen the list and agrees. Whether that was so."""
    made, kept = made_by_run(folder)
    if not made:
        return True
    show(f"--fresh deletes in {folder.root}:")
    for path in sorted(made):
        show(f"  {_described(path)}")
    if kept:
        show(f"it keeps what no run made: {', '.join(path.name for path in kept)}")
    if not agrees():
        return False
    for path in made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return True


def _described(path: Path) -> str:
    """ "checkpoints/  12 files, 34.5 MB"."""
    if path.is_symlink() or not path.is_dir():
        return f"{path.name}  {_size(path.lstat().st_size)}"
    files = [file.lstat().st_size for file in path.rglob("*") if not file.is_dir()]
    return f"{path.name}/  {len(files)} files, {_size(sum(files))}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
