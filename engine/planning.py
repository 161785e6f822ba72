"""A recipe on paper: what can be refused before the first step of its first stage is.

    # every stage as it will be trained, by name; ConfigError for what cannot be
    stages = plan_recipe(config, processes=4)

Nothing large is read or built: sizes of the data come from headers, an encoder is known by its
settings, an earlier stage by its config.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping

from models.encoders.building import tokenizer_source
from models.evaluation import check_ks, metric_ks
from utils.config.config import Config, ConfigError
from utils.config.methods import method_class
from utils.data.sizes import DataSizes, read_once
from utils.metrics import NAMES
from utils.pretrained.settings import check_lengths
from utils.pretrained.source import resolve_encoder
from utils.run.stages import Runs, of_stage, stage_configs

log = logging.getLogger(__name__)


def plan_recipe(
    config: Config,
    sizes: Callable[[Config], DataSizes] | None = None,
    runs: Runs | None = None,
    processes: int = 1,
) -> dict[str, Config]:
    """The stages of a config by name, checked; a config without stages is one of the name ''.

    Args:
        sizes: of the data set of a stage; None = read from its files.
        runs: what it may name beside its own stages; None = finished runs.
        processes: that will train it.
    Raises:
        ConfigError: a stage cannot be trained, or what it names does not exist or is of the wrong
        kind.
    """
    sizes = sizes or read_once()
    stages = {}
    for name, stage in stage_configs(config).items():
        with of_stage(name):
            stages[name] = with_resolved_encoder(stage)
    stages = with_own_rates(stages)
    runs = runs or Runs()
    for name, stage in stages.items():
        with of_stage(name):
            method_class(stage.method.name).check(stage, sizes(stage), runs)
            check_settings(stage, sizes(stage), processes)
        runs.add(stage)
    return stages


def check_settings(
    config: Config,
    data: DataSizes,
    processes: int,
) -> None:
    """ConfigError for settings that only the data or the number of processes can refute."""
    if config.train.batch_size < processes:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, smaller than the number of "
            f"processes, {processes}; each needs a query of every batch"
        )
    if isinstance(config.train.stop_epoch, str):
        raise ConfigError(
            f"train.stop_epoch is '{config.train.stop_epoch}', expected a whole number; "
            "`best:NAME` is for stages"
        )
    _check_bag(config)
    check_ks(config, data)
    computed = [f"{name}@{k}" for name in NAMES for k in metric_ks(config, data)]
    if config.train.track_metric not in (None, *computed):
        raise ConfigError(
            f"train.track_metric '{config.train.track_metric}' is not computed; computed: "
            f"{', '.join(computed)}"
        )


def _check_bag(config: Config) -> None:
    """ConfigError for a bag of tokens that is to be encoded as a transformer may be."""
    if not config.method.has_encoder or config.encoder.name != "bag":
        return
    for key, wanted in {
        "encoder.packing": config.encoder.packing,
        "train.compile": config.train.compile,
    }.items():
        if wanted is True:
            raise ConfigError(
                f"{key} is true, which is for transformers; encoder.name is bag, which has neither "
                "padding nor layers"
            )


def with_resolved_encoder(config: Config) -> Config:
    """The config with what its pretrained encoder says of itself.

    That of a method that reads no tokens stays as it is.

    Raises:
        ConfigError: the encoder does not take texts as long as they may be.
    """
    if not config.method.has_encoder and tokenizer_of(config) is None:
        return config
    config = dataclasses.replace(config, encoder=resolve_encoder(config.encoder))
    check_lengths(config)
    return config


def with_own_rates(stages: Mapping[str, Config]) -> dict[str, Config]:
    """The stages, each with those entries of `optim.group_lr` that are of its own parameter groups.

    A file's `optim` is that of all its stages: what is of another stage's groups has no meaning
    here, and no harm.

    Raises:
        ConfigError: an entry is of no stage's groups.
    """
    groups = {
        name: method_class(stage.method.name).group_names(stage) for name, stage in stages.items()
    }
    known = frozenset().union(*groups.values())
    found = {}
    for name, stage in stages.items():
        rates = stage.optim.group_lr or {}
        if unknown := sorted(set(rates) - known):
            raise ConfigError(
                f"optim.group_lr names {', '.join(unknown)}; this method's parameter groups are "
                f"{_listed(groups)}"
            )
        own = {group: rate for group, rate in rates.items() if group in groups[name]}
        found[name] = dataclasses.replace(
            stage, optim=dataclasses.replace(stage.optim, group_lr=own or None)
        )
    return found


def _listed(groups: Mapping[str, frozenset[str]]) -> str:
    """Group names, those of each stage by its name."""
    return "; ".join(
        f"{f'of stage {name} ' if name else ''}{', '.join(sorted(own)) or 'none'}"
        for name, own in groups.items()
    )


def tokenizer_of(config: Config) -> str | None:
    """The tokenizer of the texts that a stage trains on; None where it needs no tokens of them."""
    kind = method_class(config.method.name)
    return tokenizer_source(config.encoder) if kind.reads_tokens else None
