"""Options that all methods of linear rankers share: what they read, and how their solver stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from utils.config.config import Config, MethodConfig, option
from utils.config.sections import LARGEST
from utils.linear.layer import Solver


@dataclass(frozen=True)
class LinearConfig(MethodConfig):
    has_encoder: ClassVar[bool] = False
    features: tuple[str, ...] = option(
        ("tfidf",),
        "what is read: tfidf, run folders (their embeddings), start = the "
        "model of run.start_from or of the stage before, and .npy files: "
        "X.{trn,tst}.npy, X.npy for short, or one of the two",
    )
    cost: float = option(Solver.cost, "C of the squared hinge", ge=1e-9, le=1e9)
    bias: float = option(Solver.bias, "value of the constant feature", ge=0, le=LARGEST)
    eps: float = option(
        Solver.eps, "solver: tolerance of the projected gradients", ge=1e-12, le=1e3
    )
    passes: int = option(
        Solver.passes, "solver: passes over the points of a ranker, at most", ge=1, le=10**6
    )
    threshold: float = option(
        Solver.threshold, "weights of a smaller magnitude are dropped", ge=0, le=LARGEST
    )


def solver(config: Config) -> Solver:
    """The solver of a config whose section `method` is a LinearConfig."""
    s = config.method
    return Solver(s.cost, s.bias, s.eps, s.passes, s.threshold, config.run.seed)
