"""From traces to supervised data: read, select, split, write."""

from __future__ import annotations

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from visionrl.data import trl
from visionrl.data.config import EPISODE_IDS, FilterConfig, FilterError
from visionrl.data.read import Session, TraceDatabase, TracedDecision
from visionrl.data.reference_traces import open_traces
from visionrl.data.select import content_key, decision_fault, episode_fault
from visionrl.data.split import World, validation_worlds
from visionrl.data.stats import Side, Stats, as_json, tally
from visionrl.data.write import Draft, ImageForm, line
from visionrl.job import FIRST_TRAINING_SEED


@dataclass(frozen=True)
class Example:
    """One decision that was kept."""

    database: TraceDatabase
    session: Session
    decision: TracedDecision

    @property
    def world(self) -> World:
        """Where the episode began: must not occur in both training and validation."""
        return self.session.env_name, self.session.seed

    @property
    def episode(self) -> tuple[str, str]:
        """Run ids are unique only within a file."""
        return str(self.database.path), self.session.session_id

    def image(self, sha256: str) -> bytes:
        png = self.database.image(sha256)
        if png is None:
            raise FilterError(f"{self.database.path}: image {sha256[:12]} disappeared while the file was read")
        return png


@dataclass
class Kept:
    """What the selection found."""

    examples: list[Example] = field(default_factory=list)
    episodes: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """By file and id: the reason for which the episode was dropped; None for those that were kept."""
    decisions_read: int = 0
    episodes_read: int = 0
    dropped_episodes: Counter[str] = field(default_factory=Counter)
    dropped_decisions: Counter[str] = field(default_factory=Counter)


def filter_traces(config: FilterConfig, on_episode: Callable[[int, int], None] = lambda done, total: None) -> Stats:
    """Make the data that the settings describe. The same traces and settings give the same bytes.

    ``on_episode`` is called with the number of episodes read and their total. Raises :class:`FilterError`; the output
    folder is unchanged then.
    """
    with contextlib.ExitStack() as stack:
        databases = [open_traces(path) for path in config.inputs]
        for database in databases:
            stack.callback(database.close)
        kept = select(databases, config, on_episode)
        if not kept.examples:
            raise FilterError(f"nothing is left, and nothing was written: {_reasons(kept)}")
        held_out = validation_worlds(_achievements(kept.examples), config.split)
        if config.sft.shuffle:
            random.Random(config.split.seed).shuffle(kept.examples)
        sides = _sides(kept.examples, held_out)
        stats = _stats(config, kept, *sides)
        with Draft(config.folder).written() as draft:
            _write(draft, config, kept, *sides, stats)
    return stats


def select(databases: Sequence[TraceDatabase], config: FilterConfig, on_episode: Callable[[int, int], None]) -> Kept:
    """The decisions that are kept, in the order of the traces."""
    kept, seen = Kept(), set[bytes]()
    listed = [(database, session) for database in databases for session in database.sessions()]
    for index, (database, session) in enumerate(listed):
        if len(kept.examples) == config.filter.limit:
            on_episode(len(listed), len(listed))
            break
        kept.episodes_read += 1
        decisions = database.decisions(session)
        fault = episode_fault(session, decisions, config.filter)
        kept.episodes.setdefault(str(database.path), {})[session.session_id] = fault
        if fault:
            kept.dropped_episodes[fault] += 1
        else:
            for decision in decisions:
                if len(kept.examples) != config.filter.limit:
                    _select_decision(Example(database, session, decision), config, kept, seen)
        on_episode(index + 1, len(listed))
    return kept


def _select_decision(example: Example, config: FilterConfig, kept: Kept, seen: set[bytes]) -> None:
    kept.decisions_read += 1
    decision = example.decision
    images = [example.database.image(name) for name in decision.images] if config.filter.include_images else []
    fault, key = decision_fault(decision, images, config.sft), content_key(decision)
    if not fault and config.sft.deduplicate and key in seen:
        fault = "duplicate"
    if fault:
        kept.dropped_decisions[fault] += 1
        return
    seen.add(key)
    kept.examples.append(example)


def _achievements(examples: Sequence[Example]) -> dict[World, float]:
    """Mean achievements of each world's episodes."""
    found: defaultdict[World, dict[tuple[str, str], int]] = defaultdict(dict)
    for example in examples:
        found[example.world][example.episode] = example.session.achievements
    return {world: sum(counts.values()) / len(counts) for world, counts in found.items()}


def _sides(examples: Sequence[Example], held_out: frozenset[World]) -> tuple[list[Example], list[Example]]:
    train = [example for example in examples if example.world not in held_out]
    return train, [example for example in examples if example.world in held_out]


def _write(
    draft: Draft, config: FilterConfig, kept: Kept, train: list[Example], val: list[Example], stats: Stats
) -> None:
    form: ImageForm = config.output.images if config.filter.include_images else "none"

    told = config.filter.include_metadata

    def lines(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        for each in examples:
            yield line(each.session, each.decision, each.image, form, told)

    def rows(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        for each in examples:
            yield trl.row(each.session, each.decision, each.image, told)

    # Validation is written even where it is empty: one of an earlier split would hold seeds that are for training now.
    for name, side in ((config.train_file, train), (config.val_file, val)):
        if config.filter.export_format == "trl":
            trl.write(draft.path(name), rows(side), told)
        else:
            draft.lines(name, lines(side))
    if form == "files":
        written = set()
        for example in kept.examples:
            for name in example.decision.images:
                if name not in written:
                    written.add(name)
                    draft.image(name, example.image(name))
    if config.output.save_stats:
        draft.document(config.output.stats_file, as_json(stats))
    if config.output.save_filtered_episode_ids:
        draft.document(EPISODE_IDS, {file: _ids(faults) for file, faults in kept.episodes.items()})


def _ids(faults: dict[str, str | None]) -> dict[str, Any]:
    dropped = {name: fault for name, fault in faults.items() if fault}
    return {"kept": [name for name in faults if name not in dropped], "dropped": dropped}


def _stats(config: FilterConfig, kept: Kept, train: list[Example], val: list[Example]) -> Stats:
    warnings = []
    if any(example.session.seed < FIRST_TRAINING_SEED for example in kept.examples):
        warnings.append(
            f"there are seeds below {FIRST_TRAINING_SEED}, which evaluations use: a model trained on this data must be "
            "evaluated on other seeds"
        )
    if config.split.val > 0 and not val:
        warnings.append("validation is empty: all episodes are on one environment seed, which cannot be split")
    if len({str(example.session.tools) for example in kept.examples}) > 1:
        warnings.append(
            "the episodes offer different tools; supervised training needs one set of tools: filter them separately"
        )
    return Stats(
        inputs=[str(path) for path in config.inputs],
        episodes=tally(kept.episodes_read, kept.dropped_episodes),
        decisions=tally(kept.decisions_read, kept.dropped_decisions),
        train=_side(train),
        val=_side(val),
        images=len({name for example in kept.examples for name in example.decision.images}),
        lines_by_policy=dict(sorted(Counter(example.session.policy_name for example in kept.examples).items())),
        estimated_lengths=sum(example.decision.tokens is None for example in kept.examples),
        warnings=warnings,
    )


def _side(examples: list[Example]) -> Side:
    episodes = {each.episode: each.session.achievements for each in examples}
    return Side(
        lines=len(examples),
        episodes=len(episodes),
        seeds=len({example.world for example in examples}),
        mean_achievements=sum(episodes.values()) / len(episodes) if episodes else None,
    )


def _reasons(kept: Kept) -> str:
    if not kept.episodes_read:
        return "there are no episodes in the traces"
    counted = [f"{count} episodes ({reason})" for reason, count in kept.dropped_episodes.most_common()]
    counted += [f"{count} decisions ({reason})" for reason, count in kept.dropped_decisions.most_common()]
    return f"dropped {', '.join(counted)}"
