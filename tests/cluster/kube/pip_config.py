"""The machine's pip configuration, made usable inside an image build.

What pip is told on this machine, by its files or by the environment (an index, a folder of wheels, a
certificate bundle), holds for builds too. It reaches them as mounts, so no trace of it stays in the images.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlparse

PATH_IN_BUILD = "/etc/pip.conf"


def settings() -> dict[str, str]:
    """pip's effective options, the environment's before the files'."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(listing, os.environ)


def parse(listing: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Options from `pip config list` ("global.cert='/ca.pem'", ":env:.find-links='/wheels'")."""
    from_files: dict[str, str] = {}
    from_environment: dict[str, str] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        target = from_environment if section == ":env:" else from_files
        target[option] = str(ast.literal_eval(value))
    merged = from_files | from_environment
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # pip heeds these too
        if environment.get(variable):
            merged.setdefault("cert", environment[variable])
    return merged


def render(options: Mapping[str, str]) -> str:
    """The options as a pip.conf."""
    lines = [f"{name} = {' '.join(value.split())}" for name, value in sorted(options.items())]
    return "\n".join(["[global]", *lines, ""])


def local_paths(options: Mapping[str, str]) -> list[Path]:
    """The files and folders of this machine that the options name."""
    paths = set()
    for word in " ".join(options.values()).split():
        if word.startswith("file://"):
            index = Path(unquote(urlparse(word).path))
            paths.add(index.parent if index.parent != Path("/") else index)  # pages link to files beside the index
        elif word.startswith("/"):
            paths.add(Path(word))
    return sorted(path for path in paths if path.exists())
