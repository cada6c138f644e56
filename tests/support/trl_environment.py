"""A Python that has TRL, beside this environment: its packages come first, torch and transformers from here.

It is made once, in an ignored folder of this repository, from exact versions.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import torch

from visionrl.cpu_env import install

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".cache" / "trl"
PACKAGES = (
    "trl==1.16.0",
    "datasets==5.2.0",
    "pyarrow==26.0.1",
    "pandas==3.1.1",
    "dill==0.4.1",
    "multiprocess==0.70.19",
    "xxhash==4.1.0",
    "python-dateutil==2.9.0.post0",
    "six==1.17.0",
)
"""TRL and what it needs beyond this environment."""
NO_NETWORK = (
    "Failed to establish a new connection",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "timed out",
)


class NoNetwork(Exception):
    """No package index can be reached."""


def trl_python() -> Path:
    """The interpreter. Raises :class:`NoNetwork`."""
    python, complete = FOLDER / "bin" / "python", FOLDER / "complete"
    if complete.is_file() and complete.read_text().splitlines() == list(PACKAGES):
        return python
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER)
    (site_packages,) = FOLDER.glob("lib/python*/site-packages")
    here = Path(torch.__file__).parents[1]
    (site_packages / "a_base.pth").write_text(f"{here}\n{REPOSITORY}\n")
    install(site_packages)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode and any(words in done.stderr for words in NO_NETWORK):
        raise NoNetwork(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    complete.write_text("\n".join(PACKAGES) + "\n")
    return python
