"""Section `method` of a fusion's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from utils.config.config import MethodConfig, option
from utils.config.sections import LARGEST, MANY_LABELS, SMALLEST


@dataclass(frozen=True)
class FusionOptions(MethodConfig):
    has_encoder: ClassVar[bool] = False
    members: Mapping[str, str] | None = option(
        None,
        "name: run folder, config file (trained when missing), or `stage:NAME`, an earlier stage "
        "of this config",
    )
    candidates: int = option(
        100, "labels that each member proposes for a query", ge=1, le=MANY_LABELS
    )
    fuser: Literal["auto", "boosted", "linear"] = option(
        "auto",
        "boosted trees or a logistic regression; auto = the better one by cross-fitting on "
        "validation points",
    )
    target: Literal["nDCG@5", "PSP@5"] = option(
        "nDCG@5",
        "what the fuser is chosen for, and the power of the inverse propensity that "
        "probabilities are multiplied with; PSP@5: for the tail",
    )
    trees: int = option(100, "boosted: number of trees", ge=1, le=10**4)
    leaves: int = option(8, "boosted: leaves of a tree", ge=2, le=10**5)
    min_leaf: int = option(50, "boosted: fewest candidates of a leaf", ge=1, le=10**9)
    memory: str | None = option(
        None,
        "member in whose embedding space the training queries are remembered; null = no memory",
    )
    memory_neighbours: int = option(
        50, "training queries that the memory looks at", ge=1, le=MANY_LABELS
    )
    memory_tau: float = option(
        0.05,
        "memory: temperature of a neighbour's weight exp((cos - 1) / tau)",
        ge=SMALLEST,
        le=LARGEST,
    )
