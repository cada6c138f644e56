"""Which sequences are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from visionrl_trainer.model.memory import MicroBatchSize
from visionrl_trainer.model.packing import shared_prefix
from visionrl_trainer.rollout.batch import Sample


def micro_batches(
    runs: Iterable[range], samples: Sequence[Sample], size: MicroBatchSize, image_token: int
) -> Iterator[list[int]]:
    """Indices of whole sequences in groups of this size; a sequence that is larger is a group of its own.

    Sequences of similar length are grouped, and each counts as long as the longest of its group: attention pads them.
    The prefix that a group shares counts once.
    """
    group: list[int] = []
    rows: list[tuple[int, ...]] = []
    """The group's first row, and its least and its greatest: what those share, all share."""
    count = 0
    for row, run in sorted(((_ids(run, samples), run) for run in runs), key=lambda pair: (len(pair[0]), pair[1].start)):
        prefix = shared_prefix([*rows, row], image_token)
        too_long = prefix + (count + 1) * (len(row) - prefix) > size.tokens
        too_many = size.samples is not None and len(group) + len(run) > size.samples
        if group and (too_long or too_many):
            yield group
            group, rows, count = [], [], 0
        group += run
        rows = [*rows[:1], row] if len(rows) < 2 else [rows[0], min(*rows, row), max(*rows, row)]
        count += 1
    if group:
        yield group


def _ids(run: range, samples: Sequence[Sample]) -> tuple[int, ...]:
    last = samples[run[-1]]
    return last.prompt_ids + last.completion_ids
