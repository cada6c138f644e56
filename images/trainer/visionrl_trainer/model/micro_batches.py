"""Which sequences are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from visionrl_trainer.model.memory import MemoryPlan
from visionrl_trainer.rollout.batch import Sample


def micro_batches(runs: Iterable[range], samples: Sequence[Sample], plan: MemoryPlan) -> Iterator[list[int]]:
    """Indices of whole sequences in groups within the plan; a sequence that is larger is a group of its own.

    Sequences of similar length are grouped, and each counts as long as the longest of its group: attention pads them.
    """
    group: list[int] = []
    count = 0
    for length, run in sorted(
        ((_length(run, samples), run) for run in runs), key=lambda pair: (pair[0], pair[1].start)
    ):
        too_long = (count + 1) * length > plan.tokens
        too_many = plan.samples is not None and len(group) + len(run) > plan.samples
        if group and (too_long or too_many):
            yield group
            group, count = [], 0
        group += run
        count += 1
    if group:
        yield group


def _length(run: range, samples: Sequence[Sample]) -> int:
    last = samples[run[-1]]
    return len(last.prompt_ids) + len(last.completion_ids)
