"""The guard: exit codes as a container has them, and nothing that outlives its leash."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from visionrl_local import guard


def guarded(*command: str, grace: float = 30) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(grace), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    assert guarded("sh", "-c", script).wait(60) == code


def test_a_command_that_does_not_exist_is_named() -> None:
    process = guarded("/no/such/command")
    assert process.stdout is not None
    output = process.stdout.read()
    assert process.wait(60) == 127
    assert "cannot run /no/such/command: No such file or directory" in output


def test_processes_that_outlive_the_command_are_killed() -> None:
    process = guarded("sh", "-c", "setsid sleep 600 & (setsid setsid sleep 600 &) ; exit 5")
    assert process.stdout is not None
    process.stdout.read()  # ends when the last descendant that holds it is gone
    assert process.wait(60) == 5


def test_closing_the_leash_ends_in_order() -> None:
    process = guarded("sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    output, _ = process.communicate(timeout=60)  # closes standard input
    assert output == "bye\n"
    assert process.returncode == 0


@pytest.mark.parametrize("at_once", [False, True], ids=["after the grace period", "at once on SIGTERM"])
def test_what_ignores_sigterm_is_killed(at_once: bool) -> None:
    process = guarded("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done", grace=600 if at_once else 0.2)
    assert process.stdout is not None
    process.stdout.readline()
    if at_once:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 137
