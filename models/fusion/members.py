"""What a fusion refuses of its members, and the config that each is loaded with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from models.contract import Ranker
from models.encoders.reader import Reader
from models.fusion.memory import MEMORY
from models.fusion.options import FusionOptions
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.data.held_out import held_out_points
from utils.data.sizes import DataSizes
from utils.errors import InputError
from utils.run.environment import check_same_data
from utils.run.stages import Runs


def check_name(name: str) -> None:
    """ConfigError for a member's name that cannot be a folder's."""
    if not name.replace("-", "").replace("_", "").isalnum() or name == MEMORY:
        raise ConfigError(
            f"method.members: '{name}' cannot be a member's name: expected letters, digits, - and "
            f"_, not {MEMORY}"
        )


def check_settings(config: Config) -> None:
    """ConfigError for settings that no data is needed to refute."""
    options = config.method
    if not options.members:
        raise ConfigError(
            "method.members is empty: name the runs that are to be fused, such as "
            "{encoder: stage:encoder, tree: Results/…/overlap}"
        )
    for name in options.members:
        check_name(name)
    if config.eval.index != "exact":
        raise ConfigError(
            f"eval.index is '{config.eval.index}': a fusion asks its members for exact scores; it "
            "needs eval.index: exact"
        )
    if options.memory is not None and options.memory not in options.members:
        raise ConfigError(
            f"method.memory is '{options.memory}', expected one of the members, "
            f"{', '.join(options.members)}"
        )


def check_members(
    config: Config,
    sizes: DataSizes,
    runs: Runs,
) -> None:
    """ConfigError for runs that cannot be fused, as far as their configs tell."""
    options = config.method
    members = {name: runs.config(source) for name, source in options.members.items()}
    for name, member in members.items():
        if isinstance(member.method, FusionOptions):
            raise ConfigError(
                f"method.members: {name} ({options.members[name]}) is a fusion itself; "
                "name its members instead"
            )
        check_validation(name, member, config, sizes)
    memory = options.memory
    if memory and not members[memory].method.has_encoder:
        raise ConfigError(
            f"method.memory is '{memory}', a {members[memory].method.name} run, which has no "
            "encoder; name a member that embeds texts"
        )


def check_validation(
    name: str,
    member: Config,
    config: Config,
    sizes: DataSizes,
) -> None:
    """ConfigError where a member leaves other points for validation than the fusion does."""
    theirs = member.data
    ours = config.data
    if theirs.name != ours.name:
        raise ConfigError(
            f"method.members: {name}: a run on {theirs.name}, this one is on {ours.name}"
        )
    points = sizes.training + sizes.validation
    kept = held_out_points(points, theirs)
    expected = held_out_points(points, ours)
    if kept != expected or (kept and theirs.val_group_size != ours.val_group_size):
        raise ConfigError(
            f"method.members: {name}: another validation split than data.val_fraction "
            f"{ours.val_fraction}, data.val_max_points {ours.val_max_points} and "
            f"data.val_group_size {ours.val_group_size} give, so that its points may have been "
            "trained on"
        )


def check_member(
    name: str,
    folder: Path,
    data: Dataset,
) -> None:
    """ConfigError unless a run was trained on the same data and left out the same points."""
    try:
        check_same_data(folder, data)
    except InputError as error:
        raise ConfigError(f"method.members: {name}: {error}") from error


def reader_of(rankers: Mapping[str, Ranker], memory: str) -> Reader:
    """The encoder of the member in whose embedding space queries are remembered."""
    reader = rankers[memory].reader if memory in rankers else None
    if reader is None:
        raise ConfigError(
            f"method.memory is '{memory}', expected one of the members that embed texts; members: "
            f"{', '.join(rankers)}"
        )
    return reader


def of_data(member: Config, config: Config) -> Config:
    """A member's config, where the data set lies now and as this run searches."""
    data = dataclasses.replace(
        member.data,
        root=config.data.root,
        feature_cache=config.data.feature_cache,
        token_cache=config.data.token_cache,
    )
    return dataclasses.replace(
        member,
        eval=dataclasses.replace(config.eval, without=None),
        data=data,
        run=dataclasses.replace(member.run, threads=config.run.threads),
    )
