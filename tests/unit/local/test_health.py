"""Finding components that hang, without ending those that are busy."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from visionrl.vitals import LOOK_SECONDS, Vitals, _State, vitals
from visionrl_local.health import Pulse
from visionrl_local.processes import MARK, Supervisor, kill, left_behind, processes_with


def looks(
    silent: bool, cpu: Callable[[int], float] = lambda _: 0.0, stopped: bool = False, active: bool = False
) -> float:
    """Seconds until a component is found to hang; 600 where it is not."""
    pulse = Pulse()
    for number in range(1, 121):
        if pulse.look(Vitals(cpu(number), stopped, active), silent):
            return number * LOOK_SECONDS
    return 600.0


def test_what_hangs_is_found_within_a_minute() -> None:
    assert looks(silent=False, stopped=True) <= 20  # also while it starts, and where another process of it answers
    assert looks(silent=True) <= 30


@pytest.mark.parametrize(
    ("silent", "cpu", "active"),
    [
        (True, lambda n: n * LOOK_SECONDS * 0.9, False),  # an update that holds the interpreter
        (True, lambda n: 0.0, True),  # a checkpoint on a slow disk, or no core for it on a loaded machine
        (False, lambda n: 0.0, False),  # waits for others, and says so
        (True, lambda n: 100.0 if n % 2 else 0.0, False),  # its processes come and go
    ],
    ids=["busy", "waits for disk or core", "idle", "changing"],
)
def test_what_works_or_answers_does_not_hang(silent: bool, cpu: Callable[[int], float], active: bool) -> None:
    assert looks(silent, cpu, active=active) == 600


def test_idle_looks_are_counted_until_there_is_work() -> None:
    pulse = Pulse()
    for _ in range(3):
        pulse.look(Vitals(1.0, False, False), silent=False)
    assert pulse.idle == 2  # the first one saw the CPU time since the start
    pulse.look(Vitals(3.0, False, False), silent=False)
    assert pulse.idle == 0


# --- processes


def marked(supervisor: Supervisor, program: str = "input()") -> subprocess.Popen[bytes]:
    environment = {**os.environ, MARK: supervisor.mark("trainer")}
    return subprocess.Popen([sys.executable, "-c", f"print(1, flush=True); {program}"], env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def test_processes_of_former_executors_are_found_and_killed(tmp_path: Path) -> None:
    root = tmp_path / "a folder"
    former, mine, other = Supervisor(root), Supervisor(root), Supervisor(tmp_path / "other")
    with marked(former) as old, marked(mine) as own, marked(other) as foreign:
        for each in (old, own, foreign):
            assert each.stdout is not None
            each.stdout.readline()  # its environment can be read now
        assert left_behind(mine) == {old.pid: "trainer"}
        assert kill(left_behind(mine)) == []
        assert old.wait(60) == -signal.SIGKILL
        assert processes_with(mine.mark("trainer")) == [own.pid]
        assert foreign.poll() is None
        for each in (own, foreign):
            each.kill()


def test_a_process_without_the_mark_is_never_killed() -> None:
    """As after the id of a marked process went to another one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        assert kill([stranger.pid]) == []
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("name", ["", "visionrl.vitals.name_looking_thread()"], ids=["works", "looks"])
def test_a_thread_that_looks_does_not_count_as_work(name: str) -> None:
    code = f"import visionrl.vitals\n{name}\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            seen = [vitals([child.pid]).active for _ in range(20)]
        finally:
            child.kill()
    assert any(seen) == (not name)


def test_a_thread_that_happens_to_run_at_a_look_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that fires together with the looks, again and again: it would hide a deadlock for ever."""
    states = itertools.cycle(["R", "S"])
    monkeypatch.setattr("visionrl.vitals._threads", lambda _: [_State("python", next(states), 0, 0)])
    assert not vitals([os.getpid()]).active
    states = itertools.cycle(["R", "D"])
    assert vitals([os.getpid()]).active


def test_vitals_say_what_a_process_does(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    with marked(supervisor, "any(i < 0 for i in iter(int, 1))") as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        mark = supervisor.mark("trainer")
        while vitals(processes_with(mark)).cpu_seconds < 0.1:
            pass
        assert not vitals(processes_with(mark)).stopped
        busy.send_signal(signal.SIGSTOP)
        while not vitals(processes_with(mark)).stopped:
            pass
        assert kill(processes_with(mark)) == []  # also a stopped one
    assert vitals(processes_with(mark)) == Vitals(0.0, False, False)
