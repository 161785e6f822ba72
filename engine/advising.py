"""Which presets suit a data set, and what each of them will take on this machine.

for offer in offers(Path("Datasets/Mine"), facts, calibrate(2)):
    print(offer.preset, offer.seconds, offer.bytes)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.choosing import chosen
from engine.chosen_values import share_cut
from engine.memory_plan import plan
from engine.planning import plan_recipe, tokenizer_of
from utils.advise.costs import STARTING, Costs, WorkSizes, features_seconds
from utils.advise.dataset_facts import DatasetFacts
from utils.advise.machine import Speed
from utils.config.config import Config, load_config
from utils.config.presets import PRESETS, preset_path
from utils.data.facts import DataFacts
from utils.data.held_out import held_out_points
from utils.errors import InputError
from utils.plan.encoder_sizes import encoder_sizes
from utils.plan.parts import MB

PROGRAM = 450 * MB  # libraries, where a method has no plan of its own
TERM = 60  # bytes of a term of a text in the training of linear rankers, its copies among them
LIMITS = (32, 64, 128, 256, 512)  # tokens at which texts are often cut
TOKENIZER = "minilm"  # of the presets' encoder
ANY = "tree"  # preset, where only the data set counts


@dataclass(frozen=True)
class Offer:
    """What a preset will take on a data set.

    Attributes:
        preset: its name.
        good_at: what it is good at.
        stages: method of each stage by its name; '' of a config without stages.
        seconds: of training with one evaluation, None where it is not known.
        bytes: of memory at the peak of its largest stage.
        problem: why it cannot be trained here; empty where it can.
    """

    preset: str
    good_at: str
    stages: Mapping[str, str]
    seconds: float | None = None
    bytes: int | None = None
    problem: str = ""


def offers(
    folder: Path,
    facts: DatasetFacts,
    speed: Speed,
) -> Iterator[Offer]:
    """Look at each preset in turn.

    Args:
        folder: of the data set.
        facts: of the same.
        speed: of this machine.
    """
    for name, good_at in PRESETS.items():
        try:
            yield _offer(name, folder, facts, speed)
        except InputError as error:
            yield Offer(name, good_at, {}, problem=str(error))


def preset_config(name: str, folder: Path) -> Config:
    """The config of a preset for a data set, nothing left open; the log stays still."""
    with _silent("engine.choosing"):
        return chosen(_preset_as_given(name, folder))


def _preset_as_given(name: str, folder: Path) -> Config:
    data = {"root": str(folder.parent), "name": folder.name}
    return load_config(preset_path(name), {"data": data})


@contextmanager
def _silent(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _offer(
    name: str,
    folder: Path,
    facts: DatasetFacts,
    speed: Speed,
) -> Offer:
    config = preset_config(name, folder)
    stages = plan_recipe(config)
    seconds: float | None = STARTING * speed.loops
    peak = PROGRAM
    for stage in stages.values():
        sizes = work_sizes(stage, facts)
        taken = Costs(stage, sizes, speed).seconds()
        seconds = None if seconds is None or taken is None else seconds + taken
        peak = max(peak, stage_bytes(stage, sizes))
    if seconds is not None and not facts.features_given and _reads_features(stages):
        seconds += features_seconds(work_sizes(config, facts), speed)
    methods = {stage: planned.method.name for stage, planned in stages.items()}
    return Offer(name, PRESETS[name], methods, seconds, peak)


def _reads_features(stages: Mapping[str, Config]) -> bool:
    """Whether a stage reads TF-IDF."""
    return any("tfidf" in (getattr(s.method, "features", None) or ()) for s in stages.values())


def work_sizes(config: Config, facts: DatasetFacts) -> WorkSizes:
    """What the work of one stage goes by."""
    sizes = DataFacts.read(config)
    held_out = held_out_points(sizes.points, config.data)
    tokens = 0.0
    label_tokens = 0.0
    parameters = 0
    source = tokenizer_of(config)
    if source is not None:
        tokens = _mean(sizes.token_lengths("trn_X", source), config.data.max_len)
        longest = config.data.label_max_len or config.data.max_len
        if sizes.has_label_texts:
            label_tokens = _mean(sizes.token_lengths("Y", source), longest)
        if config.encoder.name != "bag":
            parameters = encoder_sizes(config).dense
    return WorkSizes(
        points=sizes.points - held_out,
        held_out=held_out,
        labels=sizes.labels,
        pairs=sizes.pairs,
        tokens=tokens,
        label_tokens=label_tokens,
        words=facts.words.mean if facts.words else 0.0,
        parameters=parameters,
        members=len(getattr(config.method, "members", None) or ()),
    )


def _mean(lengths: np.ndarray, limit: int) -> float:
    return float(np.minimum(lengths, limit).mean())


def stage_bytes(config: Config, sizes: WorkSizes) -> int:
    """Memory of one stage: its plan, or of a method without one what its features take."""
    found = plan(config)
    if found.memory:
        return found.total
    return PROGRAM + int((sizes.points + sizes.held_out) * sizes.words * TERM)


def shares_cut(folder: Path) -> dict[int, float]:
    """The share of the training texts that lose tokens at each of LIMITS; {} without texts."""
    sizes = DataFacts.read(_preset_as_given(ANY, folder))
    if not sizes.has_texts:
        return {}
    lengths = sizes.token_lengths("trn_X", TOKENIZER)
    return {limit: share_cut(lengths, limit) for limit in LIMITS}


def share_unknown(folder: Path) -> float:
    """The share of the texts' tokens that the presets' encoder has no word for."""
    return DataFacts.read(_preset_as_given(ANY, folder)).unknown_share(TOKENIZER)
