"""Options of section `eval` that a loaded model must be able to follow, and how well its
approximate index does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from models.method import Method
from utils.config.config import Config
from utils.errors import InputError
from utils.search import Comparison, ExactIndex, HnswIndex

log = logging.getLogger(__name__)
LEAST_RECALL = 0.95  # of the exact result; an index that finds less is warned of


def check_options(config: Config, method: Method) -> None:
    """Raise InputError for an approximate index, a precision or members to leave out that the
    method does not have."""
    settings = config.eval
    name = config.method.name
    if settings.without and name != "fusion":
        raise InputError(
            f"eval.without is {list(settings.without)}, but method {name} has no members to leave "
            "out; only a fusion has"
        )
    if settings.precision != "float32" and not name.startswith("elias"):
        raise InputError(
            f"eval.precision is '{settings.precision}', but method {name} has no graph index; it "
            "needs eval.precision: float32"
        )
    if settings.index != "exact" and not isinstance(vars(method).get("index"), HnswIndex):
        raise InputError(
            f"eval.index is '{settings.index}', but method {name} does not search all labels by "
            "inner product; it needs eval.index: exact"
        )


def compare_index(method: Method, score: Callable[[], Any]) -> dict[str, Any]:
    """Measure how much of the exact result the method's approximate index finds, log it, and warn
    where it is little.

    Args:
        score: scores some points by the method.
    Returns:
        what `Comparison.report` says, and the index's name.
    """
    index = method.index
    settings = method.config.eval
    method.index = Comparison(
        index, ExactIndex(index.labels, index.bias, block=settings.label_block)
    )
    try:
        score()
        found = {"name": settings.index, **method.index.report()}
    finally:
        method.index = index
    log.info(
        "approximate index: recall@1 %.4f, recall@%d %.4f of the exact result, %d points, build "
        "%.1f s, search %.3f ms/point vs exact %.3f ms/point",
        found["recall@1"],
        found["k"],
        found["recall@k"],
        found["points"],
        found["build_seconds"],
        found["search_ms"],
        found["exact_ms"],
    )
    if min(found["recall@1"], found["recall@k"]) < LEAST_RECALL:
        log.warning(
            "eval.index %s finds %.0f %% of the exact best %d labels of %d points; larger "
            "eval.%s_ef or eval.%s_m find more, eval.index: exact all",
            settings.index,
            100 * found["recall@k"],
            found["k"],
            found["points"],
            settings.index,
            settings.index,
        )
    return found
