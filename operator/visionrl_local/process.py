"""One process under its guard."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from visionrl_local import guard, processes
from visionrl_local.container import Launch

GUARD_SECONDS = 10.0
"""How long a guard may take beyond the grace period; one that is stopped (SIGSTOP) takes for ever."""


class GuardedProcess:
    """The process of a component; no process of it outlives :meth:`stop`, :meth:`wait` or the process that started it.

    A guard that is killed cannot keep its part of this promise: then the rest is found by its mark, here or, where this
    process was killed too, by the next one that works in the run folder.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, launch: Launch, scratch: tempfile.TemporaryDirectory[str]
    ) -> None:
        self._process, self._launch, self._scratch = process, launch, scratch

    @classmethod
    async def start(cls, launch: Launch, log: Path) -> GuardedProcess:
        """Start the process; its output is appended to ``log``. It has a folder of its own for temporary files, as a
        container has: vLLM leaves sockets there when it is killed. Raises ``OSError``."""
        scratch = tempfile.TemporaryDirectory(prefix="visionrl-", ignore_cleanup_errors=True)
        command = [sys.executable, "-I", "-S", guard.__file__, str(launch.grace), *launch.argv]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**launch.env, "TMPDIR": scratch.name},
                # The terminal's Ctrl-C is for this process, which then ends the components in order.
                start_new_session=True,
            )
        return cls(process, launch, scratch)

    async def wait(self) -> int:
        """The exit code, 128 + n after signal n."""
        code = await self._process.wait()
        if code < 0:
            await self._kill_the_rest()
        await asyncio.to_thread(self._scratch.cleanup)
        return code if code >= 0 else 128 - code

    async def stop(self) -> int:
        """SIGTERM, SIGKILL after the grace period; the exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        ended = asyncio.create_task(self.wait())
        await asyncio.wait({ended}, timeout=self._launch.grace + GUARD_SECONDS)
        if not ended.done():
            self.kill()
        return await ended

    def kill(self) -> None:
        """SIGKILL to every process of the component, now; :meth:`wait` still has to be awaited."""
        if self._process.returncode is None:
            self._process.kill()  # the command dies with its guard, and :meth:`wait` kills the rest

    async def _kill_the_rest(self) -> None:
        found = await asyncio.to_thread(processes.processes_with, self._launch.mark)
        while found and not await asyncio.to_thread(processes.kill, found):
            found = await asyncio.to_thread(processes.processes_with, self._launch.mark)
