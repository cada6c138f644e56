"""kubectl and helm against one cluster, as callables."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .host import run, wait_until


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
    def apply(self, *manifests: dict[str, Any], namespace: str | None = None) -> None:
        """Creates or updates the objects; namespace: of those that name none."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self("apply", *(["--namespace", namespace] if namespace else []), "-f", "-", stdin=json.dumps(items))

    def define(self, definition: dict[str, Any]) -> None:
        """Brings a custom resource: it is served, and described, when this returns.

        An API server publishes a schema seconds after it serves the resource. Until then kubectl, which checks keys by
        it where the API server is older than 1.25, checks nothing, and unknown keys are dropped without a word.
        """
        self.apply(definition)
        plural = f"{definition['spec']['names']['plural']}.{definition['spec']['group']}"
        self.wait_for(plural, "--all-namespaces")
        wait_until(lambda: self.succeeds("explain", f"{plural}.spec"), f"the schema of {plural}", timeout_s=60)

    def get(self, *arguments: str) -> dict[str, Any]:
        """One object or a list, as it is: get("pod", "web", "-n", "default")."""
        found: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def wait_for(self, *arguments: str, timeout_s: float = 60) -> None:
        """Waits until an object exists: wait_for("pod", "web", "-n", "default")."""
        wait_until(lambda: self.succeeds("get", *arguments), f"{' '.join(arguments)} to exist", timeout_s)

    def succeeds(self, *arguments: str) -> bool:
        done = subprocess.run(
            [self.program, *arguments], env=self.environment(), capture_output=True, stdin=subprocess.DEVNULL
        )
        return done.returncode == 0
