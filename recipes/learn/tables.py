"""The evidence as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recipes.learn.ablations import ITERATIONS, SEEDS, VARIANTS
from recipes.learn.evidence import TRAINED, Evidence, Player
from visionrl.seeds import seeds_text
from visionrl.status import Score
from visionrl_cli.evaluation.text import signed
from visionrl_trainer.rollout.evaluate import interval, paired_gain

NOTE = "<!-- Written by python -m recipes.learn --only report; edits are lost. -->"
CLEAR = (("random", "blind"), ("blind", "sft"), ("sft", "rl"))
"""Pairs of players of which the second is to be clear of the first."""
PAIRS = (("blind", "sft"), ("sft", "rl"), ("blind", "grey"), ("blind", "shuffled"), ("rl", "scripted"))
"""Pairs that are compared seed by seed, the first with the second."""


def page(evidence: Evidence) -> str:
    """All tables with their headings."""
    sections = {
        "Over trainings": trainings(evidence),
        "Players": [*players(evidence), "", *clearances(evidence)],
        "Paired gains": gains(evidence),
        "Training seeds": seeds(evidence),
        "Achievements": achievements(evidence),
        "Ablations": ablations(evidence),
        "Costs": costs(evidence),
    }
    text = "\n\n".join("\n".join([f"## {title}", "", *lines]) for title, lines in sections.items() if any(lines))
    return f"{NOTE}\n\n# Results\n\n{text}\n"


def trainings(evidence: Evidence) -> list[str]:
    """The main table: means over trainings, their interval over worlds, and each training beside it; nothing where one
    training was made."""
    pairs = list(evidence.seeds.values())
    if len(pairs) < 2:
        return []
    before, after = ([pair[which] for pair in pairs] for which in (0, 1))
    rows = [
        (label, plain(interval(over_trainings(found))), ", ".join(f"{each.score.mean:.2f}" for each in found))
        for label, found in ((TRAINED["sft"], before), (TRAINED["rl"], after))
    ]
    gain = paired_gain(over_trainings(before), over_trainings(after))
    each = [signed(late.gain_over(early)) for early, late in pairs]
    rows.append(("gain of RL, paired by training and world", signed(gain), ", ".join(each)))
    rows += [(found.label, plain(found.score), "") for name, found in evidence.players.items() if name not in TRAINED]
    seeds = ", ".join(map(str, evidence.seeds))
    return _table(
        ("policy", f"mean over {len(pairs)} trainings [95 % CI over worlds]", f"training seeds {seeds}"), rows
    )


def over_trainings(found: Sequence[Player]) -> list[float]:
    """Return of each world, mean over the trainings. Raises ``KeyError`` where one did not play a world."""
    return [sum(each.returns[world] for each in found) / len(found) for world in found[0].returns]


def players(evidence: Evidence) -> list[str]:
    if not evidence.players:
        return []
    seeds = seeds_text(tuple(next(iter(evidence.players.values())).returns))
    rows = [
        (each.label, plain(each.score), f"{each.crafter_score:.2f} %", f"{100 * each.invalid_rate:.1f} %")
        for each in evidence.players.values()
    ]
    head = (f"policy, seeds {seeds}", "unique achievements [95 % CI]", "Crafter score", "invalid answers")
    return _table(head, rows)


def clearances(evidence: Evidence) -> list[str]:
    """Whether each interval is above the one before it."""
    lines = []
    for lower, upper in CLEAR:
        if lower in evidence.players and upper in evidence.players:
            below, above = evidence.players[lower], evidence.players[upper]
            verdict = "clear of" if above.score.low > below.score.high else "not clear of"
            lines.append(f"- The interval of *{above.label}* is {verdict} that of *{below.label}*.")
    return lines


def gains(evidence: Evidence) -> list[str]:
    known = evidence.players
    rows = [
        (known[after].label, known[before].label, signed(known[after].gain_over(known[before])))
        for before, after in PAIRS
        if before in known and after in known
    ]
    return _table(("policy", "over", "gain, paired by seed [95 % CI]"), rows) if rows else []


def seeds(evidence: Evidence) -> list[str]:
    """One row a training seed; nothing where there is one only."""
    if len(evidence.seeds) < 2:
        return []
    rows = [
        (f"{seed}", plain(before.score), plain(after.score), signed(after.gain_over(before)))
        for seed, (before, after) in evidence.seeds.items()
    ]
    return _table(("training seed", TRAINED["sft"], TRAINED["rl"], "gain, paired by seed [95 % CI]"), rows)


def achievements(evidence: Evidence) -> list[str]:
    if "rl" not in evidence.players:
        return []
    shown = [evidence.players[name] for name in ("blind", "sft", "rl", "scripted") if name in evidence.players]
    names = sorted({name for each in shown for name in each.rates}, key=lambda name: _rank(evidence, name))
    rows = [(name, *(f"{100 * each.rates.get(name, 0):.0f} %" for each in shown)) for name in names]
    return _table(("share of the episodes that unlock", *(each.label for each in shown)), rows)


def ablations(evidence: Evidence) -> list[str]:
    found = evidence.ablations
    if "base" not in found:
        return []
    questions = {variant.name: variant.question for variant in VARIANTS}
    rows = []
    for name, each in found.items():
        over_base = signed(each.gain_over(found["base"])) if name != "base" else "–"
        reference: Player | None = found.get("reference") if name not in ("base", "reference") else None
        over_reference = signed(each.gain_over(reference)) if reference else "–"
        rows.append((each.label, questions.get(name, ""), plain(each.score), over_base, over_reference))
    head = (
        f"after {ITERATIONS} iterations, seeds {SEEDS}",
        "",
        "unique achievements [95 % CI]",
        "gain over SFT, paired",
        "gain over the reference, paired",
    )
    return _table(head, rows)


def costs(evidence: Evidence) -> list[str]:
    rows = [
        (each.step, f"{each.seconds / 60:.1f}", f"{each.cpu_seconds / 60:.1f}", f"{each.attempts}")
        for each in evidence.costs
    ]
    total = [sum(getattr(each, name) for each in evidence.costs) / 60 for name in ("seconds", "cpu_seconds")]
    rows.append(("**together**", f"**{total[0]:.1f}**", f"**{total[1]:.1f}**", ""))
    return _table(("step", "minutes", "processor minutes", "attempts"), rows)


def plain(score: Score) -> str:
    """ "6.81 [6.56, 7.06]"."""
    return f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"


def _rank(evidence: Evidence, name: str) -> tuple[float, str]:
    return -evidence.players["rl"].rates.get(name, 0), name


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
