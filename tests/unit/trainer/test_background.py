"""Checkpoints are written beside the training: one at a time, and what fails is told."""

from __future__ import annotations

import asyncio
import threading

import pytest

from visionrl_trainer.state.background import BackgroundWriter


async def test_training_goes_on_while_a_write_lasts_and_the_next_waits_for_it() -> None:
    writer, released, written = BackgroundWriter(), threading.Event(), list[int]()

    def write(number: int) -> None:
        released.wait()
        written.append(number)

    writer.start(write, 1)
    waiting = asyncio.create_task(writer.finished())
    await asyncio.sleep(0)
    assert not waiting.done()
    released.set()
    await waiting
    writer.start(write, 2)
    await writer.close()
    assert written == [1, 2]


async def test_a_write_that_failed_is_told_once_and_where_it_is_waited_for() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    writer = BackgroundWriter()
    writer.start(full)
    with pytest.raises(OSError, match="No space left"):
        await writer.finished()
    await writer.finished()


async def test_a_write_that_failed_does_not_hide_why_a_run_ended(caplog: pytest.LogCaptureFixture) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    writer = BackgroundWriter()
    writer.start(full)
    await writer.close()
    assert "No space left on device" in caplog.text
