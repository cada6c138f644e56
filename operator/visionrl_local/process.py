"""One process under its guard."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from visionrl_local import guard
from visionrl_local.container import Launch


class GuardedProcess:
    """The process of a component; nothing of it outlives :meth:`stop`, :meth:`wait` or the process that started it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, launch: Launch, log: Path) -> GuardedProcess:
        """Start the process; its output is appended to ``log``."""
        command = [sys.executable, "-I", "-S", guard.__file__, str(launch.grace), *launch.argv]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=launch.env,
                # The terminal's Ctrl-C is for this process, which then ends the components in order.
                start_new_session=True,
            )
        return cls(process)

    @property
    def pid(self) -> int:
        """Of the guard."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, 128 + n after signal n."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    async def stop(self) -> int:
        """SIGTERM, SIGKILL after the grace period; the exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to everything, now; :meth:`wait` still has to be awaited."""
        if self._process.returncode is None:
            self._process.terminate()
