"""What an iteration's record tells of its batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from visionrl.adapters import Version
from visionrl_trainer.report.histogram import Histogram
from visionrl_trainer.rollout.batch import Sample, sequences
from visionrl_trainer.rollout.sampler import Batch

MAX_RUN_IDS = 1024
"""Of an iteration, as its record names them; fifty bytes each."""


def batch_record(batch: Batch, samples: Sequence[Sample], version: Version) -> dict[str, Any]:
    """Of a batch whose decisions are ``samples``, with their advantages; ``version`` learns from it."""
    episodes = batch.episodes
    returns = [episode.score for episode in episodes]
    events = Counter(event for episode in episodes for event in episode.events)
    return {
        "episodes": len(episodes),
        "run_ids": [episode.run_id for episode in episodes[:MAX_RUN_IDS]],
        "turns": len(samples),
        "rows": len(sequences(samples)),
        "reward": float(np.mean(returns)),
        "reward_std": float(np.std(returns)),
        "invalid_rate": sum(episode.invalid for episode in episodes) / len(samples),
        "aborted": batch.aborted,
        "rejected": batch.rejected,
        "rejected_rate": batch.rejected_rate,
        "zero_variance_groups": sum(not group.has_variance for group in batch.groups),
        "resampled_groups": batch.resampled,
        "staleness": version.number - Version.parse(batch.version).number,
        "events": {event: count / len(episodes) for event, count in events.most_common()},
        "advantages": Histogram.of([sample.advantage for sample in samples]).model_dump(),
    }
