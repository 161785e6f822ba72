"""The loss that a config names, ready to be called: one of losses/, or `my_module:my_loss`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from losses import LOSSES, ROW_LOSSES
from utils.config.config import ConfigError, LossConfig
from utils.config.plugins import is_foreign, resolve

log = logging.getLogger(__name__)


def loss_function(config: LossConfig) -> Callable[..., Tensor]:
    """The configured loss with its options bound; `pool_loss` says how it is called.

    Raises:
        ConfigError: it is one of a module outside that was not allowed or has no such function.
    """
    if is_foreign(config.name):
        loss = resolve(config.name, "loss.name")
        if not callable(loss):
            raise ConfigError(f"loss.name: expected a function, {config.name} is {loss!r:.60}")
        _warn_of_unused(config)
        return loss
    return partial({**LOSSES, **ROW_LOSSES}[config.name], **_options(config))


def _warn_of_unused(config: LossConfig) -> None:
    """Name the options that were set and that a loss from outside is not told."""
    usual = LossConfig()
    for field in dataclasses.fields(config):
        if field.name in ("name", "sample", "weighted"):
            continue
        if getattr(config, field.name) != getattr(usual, field.name):
            log.warning("loss.%s has no effect: it is not handed to %s", field.name, config.name)


def _options(config: LossConfig) -> dict[str, Any]:
    """Options of section `loss` that the loss takes."""
    if config.name == "soft-topk":
        return {"k": config.k, "alpha": config.alpha}
    if config.name == "triplet":
        return {
            "margin": config.margin,
            "hardest_negatives": config.hardest_negatives,
            "hardest_positives": config.hardest_positives,
            "hardness_tau": config.hardness_tau,
        }
    return {}
