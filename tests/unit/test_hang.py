"""A component that has work and does not compute ends itself; one that computes, waits or rests does not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from visionrl.component import EXIT_HUNG
from visionrl.hang import Hang
from visionrl.vitals import LOOK_SECONDS, Vitals


def found_after(waited_for: Callable[[int], bool], cpu: Callable[[int], float], active: bool = False) -> float:
    """Seconds; 600 where it is not found."""
    hang = Hang()
    for number in range(1, 121):
        if hang.look(Vitals(cpu(number), stopped=False, active=active), waited_for(number)):
            return number * LOOK_SECONDS
    return 600.0


def test_work_that_nobody_computes_is_found_within_a_minute() -> None:
    assert found_after(lambda _: True, lambda _: 0.0) <= 50


def test_time_without_work_does_not_count() -> None:
    assert found_after(lambda number: number > 12, lambda _: 0.0) >= 12 * LOOK_SECONDS + 40


@pytest.mark.parametrize(
    ("waited_for", "cpu", "active"),
    [
        (True, lambda n: n * LOOK_SECONDS * 0.9, False),  # a long update
        (True, lambda _: 0.0, True),  # a model on a slow disk
        (True, lambda n: 0.0 if n % 7 else 100.0 * n, False),  # slow, and goes on
        (False, lambda _: 0.0, False),  # waits for others
    ],
    ids=["computes", "reads", "computes now and then", "waits"],
)
def test_what_computes_or_waits_is_left_alone(waited_for: bool, cpu: Callable[[int], float], active: bool) -> None:
    assert found_after(lambda _: waited_for, cpu, active) == 600


def run(main: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """A program whose watch looks often; it ends by itself where it is not ended."""
    program = textwrap.dedent("""\
        import asyncio, subprocess, sys, threading, time
        import visionrl.hang, visionrl.vitals
        visionrl.hang.LOOK_SECONDS = visionrl.vitals.LOOK_SECONDS = 0.2
        visionrl.hang.HANG_SECONDS = 1.0
        lock = threading.Lock()
        lock.acquire()
    """)
    code = program + textwrap.dedent(main) + "\nasyncio.run(main())\n"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=300, check=False
    )


def test_a_deadlock_ends_the_process_and_its_stacks_say_where() -> None:
    ended = run("""
        def compute():
            lock.acquire()
        async def main():
            visionrl.hang.watch(asyncio.get_running_loop(), lambda: True)
            await asyncio.to_thread(compute)
    """)
    assert ended.returncode == EXIT_HUNG
    assert "in compute" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("hangs: ")


def test_a_loop_that_does_not_turn_ends_the_process() -> None:
    ended = run("""
        async def main():
            visionrl.hang.watch(asyncio.get_running_loop())
            lock.acquire()
    """)
    assert ended.returncode == EXIT_HUNG
    assert "in main" in ended.stderr


def test_a_loop_that_does_not_turn_ends_the_process_while_another_one_works() -> None:
    """One of several API servers, whose others keep the engine busy."""
    ended = run("""
        async def main():
            spins = "import os\\nparent = os.getppid()\\nwhile os.getppid() == parent: pass"
            subprocess.Popen([sys.executable, "-c", spins], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            visionrl.hang.watch(asyncio.get_running_loop())
            lock.acquire()
    """)
    assert ended.returncode == EXIT_HUNG
    assert "in main" in ended.stderr


def test_a_log_that_nobody_reads_does_not_keep_it_alive() -> None:
    """A full pipe, as of a node whose runtime has stopped to read: the component hangs in a line of its log."""
    read, write = os.pipe()
    try:
        ended = run(
            """
            visionrl.hang.LOG_SECONDS = 1.0
            async def main():
                visionrl.hang.watch(asyncio.get_running_loop())
                while True:
                    print("a line of the log", file=sys.stderr, flush=True)
            """,
            stderr=write,
        )
    finally:
        os.close(read)
        os.close(write)
    assert ended.returncode == EXIT_HUNG


def test_a_child_that_computes_is_the_components_work() -> None:
    ended = run("""
        async def main():
            spins = "import time; t = time.time()\\nwhile time.time() < t + 5: pass"
            child = subprocess.Popen([sys.executable, "-c", spins])
            visionrl.hang.watch(asyncio.get_running_loop(), lambda: child.poll() is None)
            while child.poll() is None:
                await asyncio.sleep(0.1)
            print("done")
    """)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
