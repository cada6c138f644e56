"""kubectl and helm against one cluster, as callables."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .host import run


@dataclass(frozen=True)
class Client:
    """A command-line program with its kubeconfig.

    __call__ runs it to its end and returns its output; KubeError with its errors when it fails.
    """

    program: Path
    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        return run([self.program, *arguments], stdin=stdin, env=self.environment())

    def environment(self) -> dict[str, str]:
        # The cluster is on this machine: never through a proxy.
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "NO_PROXY": "*", "no_proxy": "*"}


class Kubectl(Client):
    def apply(self, *manifests: dict[str, Any]) -> None:
        """Creates or updates the objects."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self("apply", "-f", "-", stdin=json.dumps(items))

    def get(self, *arguments: str) -> dict[str, Any]:
        """One object or a list, as it is: get("pod", "web", "-n", "default")."""
        found: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def succeeds(self, *arguments: str) -> bool:
        done = subprocess.run(
            [self.program, *arguments], env=self.environment(), capture_output=True, stdin=subprocess.DEVNULL
        )
        return done.returncode == 0
