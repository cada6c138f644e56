"""What `make setup` needs of the machine: says all that is missing, before anything is downloaded.

Written in the syntax of old Pythons, so that they can say that they are too old.
"""

import ctypes
import platform
import sys
from collections.abc import Iterator
from importlib.util import find_spec


def missing() -> "Iterator[str]":
    """A line for each thing that this machine or this Python lacks."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        yield "Linux on x86-64: the locked packages have no wheels for other machines"
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        yield f"Python 3.11 to 3.14, and this is {platform.python_version()}: set PYTHON="
    if find_spec("ensurepip") is None:
        yield "Python's venv module: apt-get install python3-venv"
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        yield "libnuma, for vLLM on the CPU: apt-get install libnuma1"


if __name__ == "__main__":
    sys.exit("\n".join(f"VisionRL needs {line}" for line in missing()) or 0)
