"""What `python -m utils.advise` prints: the data in lines, the presets in a table, who suits."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.advise.dataset_facts import FEW, DatasetFacts, Spread
from utils.advise.machine import Speed
from utils.config.automatic import FEWEST_FOR_FUSION
from utils.config.methods import method_lines

GB = 1 << 30
MANY_LABELS = 300_000  # from where a search over all of them is felt
MANY_UNKNOWN = 0.02
MANY_RARE = 0.4  # share of labels with few points, from where label texts decide


def facts_table(
    facts: DatasetFacts,
    cut: Mapping[int, float],
    unknown: float = 0.0,
) -> str:
    """The data, a line a fact.

    Args:
        cut: share of the texts that lose tokens, by the limit in tokens.
        unknown: share of the tokens that the presets' encoder has no word for.
    """
    points = f"{facts.training_points:,} training, {facts.test_points:,} test"
    if facts.unlabelled_points:
        points += f"; {facts.unlabelled_points:,} training points without a label are skipped"
    seen = (
        f"never seen {_percent(facts.never_seen)}, seen once {_percent(facts.seen_once)}, "
        f"at most {FEW} times {_percent(facts.seen_rarely)}"
    )
    rows = {
        "data set": facts.name,
        "points": points,
        "labels": f"{facts.labels:,}; {seen}",
        "labels of a point": _spread(facts.labels_of_a_point),
        "points of a label": f"{_spread(facts.points_of_a_label)}, of those seen",
        "words of a text": _texts(facts),
        "words of a label": _label_texts(facts),
    }
    if cut:
        shares = ", ".join(f"{limit}: {_percent(share)}" for limit, share in cut.items())
        rows["texts cut at tokens"] = shares
    if unknown > MANY_UNKNOWN:
        rows["unknown tokens"] = (
            f"{_percent(unknown)} of all: the presets' encoder is of English; name one of this "
            "language (--encoder.init), or take tree"
        )
    if facts.test_in_training is not None and facts.repeated_training is not None:
        rows["equal texts"] = (
            f"{_percent(facts.test_in_training)} of the test texts are training texts too; "
            f"{_percent(facts.repeated_training)} of the training texts stand there before"
        )
    rows["also there"] = _also(facts)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _spread(spread: Spread) -> str:
    return f"{spread.mean:.1f} on average, median {spread.median:g}, at most {spread.largest:,}"


def _texts(facts: DatasetFacts) -> str:
    if facts.words is None:
        return "no texts (raw/trn_X.txt): features alone, for linear trees"
    if facts.has_no_blanks:
        return f"{_spread(facts.words)}; most texts have no blanks between words"
    return _spread(facts.words)


def _label_texts(facts: DatasetFacts) -> str:
    if facts.has_label_texts and facts.label_words is not None:
        return _spread(facts.label_words)
    return f"labels have no texts that can be read: {facts.label_problem}"


def _also(facts: DatasetFacts) -> str:
    present = []
    if facts.features_given:
        present.append("features (X.trn.npz)")
    if facts.filters_given:
        present.append("filter pairs")
    return ", ".join(present) or "neither features nor filter pairs"


def duration(seconds: float | None) -> str:
    """A time as one says it: `40 s`, `6 min`, `2.5 h`."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def offers_table(
    offers: Sequence[Mapping[str, Any]],
    speed: Speed,
    memory: int,
) -> str:
    """The presets with what each takes here.

    Args:
        offers: `engine.advising.Offer`s as mappings.
        memory: bytes that the machine has.
    """
    threads = f"{speed.threads} thread{'s' if speed.threads > 1 else ''}"
    head = (
        f"On this machine ({threads}, {memory / GB:.0f} GB of memory), a training "
        "and its validations about:"
    )
    rows = [("preset", "time", "memory", "stages", "good at")]
    problems = []
    for offer in offers:
        if offer["problem"]:
            problems.append(f"{offer['preset']}: not for this data: {offer['problem']}")
            continue
        stages = ", ".join(dict.fromkeys(offer["stages"].values()))
        taken = f"{offer['bytes'] / GB:.1f} GB"
        row = (offer["preset"], duration(offer["seconds"]), taken, stages, offer["good_at"])
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([head, *lines, *problems])


def methods_lines(stages: Iterable[Mapping[str, str]]) -> str:
    """What the methods of some presets are, a line each, with the paper.

    Args:
        stages: of each preset, methods by the names of its stages.
    """
    return method_lines(dict.fromkeys(name for methods in stages for name in methods.values()))


def suiting(facts: DatasetFacts, root: str = "") -> str:
    """Which presets suit, in the order in which one would try them.

    Args:
        root: folder of the data set's folder, where that is not the usual one.
    """
    command = f"python train.py configs/presets/{{}}.yaml --data.name {shlex.quote(facts.name)}"
    if root:
        command += f" --data.root {shlex.quote(root)}"
    lines = [f"Begin with: {command.format('tree')}"]
    if facts.words is None:
        return lines[0]
    if facts.training_points - facts.unlabelled_points < FEWEST_FOR_FUSION:
        lines.append(
            f"There are fewer than {FEWEST_FOR_FUSION} labelled points: best is tree trained on "
            "all of them; a fusion would be fitted on too few."
        )
        return "\n".join(lines)
    lines.append(f"For the best scores: {command.format('best')}")
    rare = facts.never_seen + facts.seen_rarely
    if facts.has_label_texts and rare > MANY_RARE:
        lines.append(
            f"{_percent(rare)} of the labels have at most {FEW} training points: encoder finds "
            "them by their texts."
        )
    if not facts.has_label_texts:
        lines.append("Labels without texts are learned from their points alone.")
    if facts.labels > MANY_LABELS:
        lines.append("With so many labels index answers a text without a look at all of them.")
    return "\n".join(lines)
