"""What a fusion asks of its members, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.fusion.memory import MEMORY
from models.scores import Scores
from utils.config.config import Config, ConfigError
from utils.data.dataset import Dataset
from utils.run.environment import check_same_data

if TYPE_CHECKING:
    from models.method import Method


def proposals(scores: Sequence[Scores], k: int) -> list[np.ndarray]:
    """Each member's k best labels [n, k]."""
    return [s.best(k)[1] for s in scores]


def check_name(name: str) -> None:
    """A member's name becomes a folder's."""
    if (
        not name.replace("-", "").replace("_", "").isalnum()
        or name == MEMORY
        or hasattr(torch.nn.ModuleDict, name)
    ):
        raise ConfigError(
            f"method.members: '{name}' cannot be a member's name: expected letters, digits, - and "
            f"_, not {MEMORY} and no attribute of torch.nn.ModuleDict"
        )


def check_member(name: str, folder: Path, data: Dataset) -> None:
    """ConfigError unless a run was trained on the same data and left the same points for
    validation."""
    try:
        check_same_data(folder, data)
    except ValueError as error:
        raise ConfigError(f"method.members: {name}: {error}") from error


def of_data(own: Config, config: Config) -> Config:
    """A member's config, where the data set lies now and as this run searches."""
    data = dataclasses.replace(
        own.data,
        root=config.data.root,
        feature_cache=config.data.feature_cache,
        token_cache=config.data.token_cache,
    )
    return dataclasses.replace(
        own,
        eval=dataclasses.replace(config.eval, without=None),
        data=data,
        run=dataclasses.replace(own.run, threads=config.run.threads),
    )


def equal_encoders(one: Method, two: Method) -> bool:
    """Do two members turn every text into the same embedding?"""
    ours, theirs = one.encoder.state_dict(), two.encoder.state_dict()
    return (
        type(one.encoder) is type(two.encoder)
        and one.config.encoder == two.config.encoder
        and one.config.data.max_len == two.config.data.max_len
        and ours.keys() == theirs.keys()
        and one.encoder.tokenizer.get_vocab() == two.encoder.tokenizer.get_vocab()
        and all(
            ours[key].shape == theirs[key].shape and torch.equal(ours[key], theirs[key])
            for key in ours
        )
    )
