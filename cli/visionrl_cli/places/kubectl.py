"""kubectl as a program: reading objects, and files out of pods, with the user's own rights."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = "kubectl"
REQUEST_SECONDS = 60
TRANSFER_SECONDS = 3600
START_SECONDS = 300
MAX_OUTPUT_BYTES = 64 << 20

Body = dict[str, Any]


class KubectlError(Exception):
    """What kubectl said; the message is for the user."""


@dataclass(frozen=True)
class Kubectl:
    """One namespace of a cluster; None takes the kubeconfig's."""

    context: str | None = None
    namespace: str | None = None

    def objects(self, kind: str, selector: str) -> list[Body]:
        """Those that labels select."""
        return list(json.loads(self.run("get", kind, "--selector", selector, "--output", "json"))["items"])

    def find(self, kind: str, name: str) -> Body | None:
        found = self.run("get", kind, name, "--ignore-not-found", "--output", "json")
        return dict(json.loads(found)) if found.strip() else None

    def names(self, pod: str, container: str, folder: str) -> list[str]:
        """Entries of a folder in a pod."""
        return self.run("exec", pod, "--container", container, "--", "ls", "-1", folder).decode().split()

    def download(self, pod: str, container: str, path: str, target: Path, size: int | None = None) -> None:
        """A file of a pod; ``size`` bytes of it at most, where it is known how many there should be."""
        limit = "cat" if size is None else f"head -c {size + 1}"
        words = ("exec", pod, "--container", container, "--", *limit.split(), path)
        with target.open("wb") as stream:
            self._call(words, TRANSFER_SECONDS, stream)

    @contextmanager
    def pod(self, manifest: Body) -> Iterator[str]:
        """A pod that runs for as long as the block does; its name."""
        name = str(manifest["metadata"]["name"])
        self.run("create", "--filename", "-", stdin=json.dumps(manifest))
        try:
            try:
                self.run("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={START_SECONDS}s")
            except KubectlError:
                raise KubectlError(f"pod {name} does not start: {_why(self.find('pod', name))}") from None
            yield name
        finally:
            self.run("delete", "pod", name, "--wait=false", "--grace-period=1", "--ignore-not-found")

    def run(self, *words: str, stdin: str | None = None) -> bytes:
        """What it prints."""
        return self._call(words, START_SECONDS + REQUEST_SECONDS, subprocess.PIPE, stdin)

    def _call(self, words: Sequence[str], seconds: float, stdout: Any, stdin: str | None = None) -> bytes:
        program = shutil.which(PROGRAM)
        if program is None:
            raise KubectlError("kubectl is not installed; it is needed for a job in a cluster")
        where = [f"--context={self.context}"] if self.context else []
        where += [f"--namespace={self.namespace}"] if self.namespace else []
        given = None if stdin is None else stdin.encode()
        try:
            done = subprocess.run(
                [program, *where, *words], input=given, stdout=stdout, stderr=subprocess.PIPE, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {words[0]} {words[1]} took longer than {seconds:.0f} s") from None
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise KubectlError(f"kubectl {words[0]} {words[1]}: {lines[-1]}")
        output: bytes = done.stdout or b""
        if len(output) > MAX_OUTPUT_BYTES:
            raise KubectlError(f"kubectl {words[0]} {words[1]} printed more than {MAX_OUTPUT_BYTES} bytes")
        return output


def _why(pod: Body | None) -> str:
    """What keeps a pod from starting, as far as it says."""
    status = (pod or {}).get("status", {})
    for container in status.get("containerStatuses") or ():
        if waiting := container.get("state", {}).get("waiting"):
            return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    unmet = [each for each in status.get("conditions") or () if each.get("status") == "False" and each.get("message")]
    return str(unmet[0]["message"]) if unmet else "see kubectl get events"
