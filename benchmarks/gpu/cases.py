"""Small configs, one or more for every method, on the made data set `check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.place import Place, Values
from utils.config.config import Config

BAG = "bag"
TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Case:
    """A config.

    Attributes:
        sections: that differ from the usual ones.
        encoder: BAG or TRANSFORMER.
        stages: of the config.
        steps: first steps of the run whose losses must agree on other hardware; what comes later
            depends on choices, such as clusters, that the last bit of an embedding can turn.
        otherwise: what only `run` is told, of which `prepare` needs no part to compute the same.
    """

    sections: Values
    encoder: str = BAG
    stages: Sequence[Mapping[str, Any]] = ()
    steps: int = 12
    otherwise: Values = field(default_factory=dict)

    @property
    def methods(self) -> set[str]:
        """Names of the methods that are trained."""
        parts = [self.sections, *self.stages]
        return {part["method"]["name"] for part in parts if "name" in part.get("method", {})}


def _dual(**method: Any) -> Values:
    return {"method": {"name": "dexml", "tau": 0.05, **method}}


TRIPLET = {"name": "triplet", "sample": True, "margin": 0.1}
FIRST = {"name": "encoder", **_dual(), "train": {"epochs": 1}}
SEARCH = {"max_leaf": 5, "tau": 0.1, "init": "labels", "init_bias": -3}
TREE = {"name": "xr-linear", "max_leaf": 5, "splits": 4, "beam": 8}

CASES: dict[str, Case] = {
    "dexml, bag": Case(_dual()),
    "dexml, bag in micro-batches": Case(_dual(gc_batch_size=50)),
    "dexml, transformer": Case(_dual(gc_batch_size=50), TRANSFORMER),
    "dexml, padded": Case({**_dual(gc_batch_size=50), "encoder": {"packing": False}}, TRANSFORMER),
    "dexml, softmax": Case({**_dual(), "loss": {"name": "softmax"}}),
    "dexml, soft top-k": Case({**_dual(), "loss": {"name": "soft-topk"}}),
    "dexml, bce": Case({**_dual(tau=0.2), "loss": {"name": "bce"}}),
    "dexml, in-batch": Case(_dual(pool="in-batch"), TRANSFORMER),
    "dexml, mined negatives": Case(_dual(pool="hnm", num_negatives=3), steps=6),
    "ngame": Case({"method": {"name": "ngame", "curr_epochs": (1,)}, "loss": TRIPLET}, TRANSFORMER),
    "dexa": Case(
        {
            # clustered batches are NGAME's case: they would be others in another precision
            "method": {
                "name": "dexa",
                "num_vectors": 16,
                "num_head_vectors": 4,
                "batches": "random",
            },
            "loss": TRIPLET,
        },
        TRANSFORMER,
    ),
    "siamesexml": Case(
        {
            "method": {
                "name": "dexa",
                "num_vectors": "labels",
                "vector_init": "zeros",
                "pool": "all",
                "batches": "random",
                "tau": 0.05,
            }
        }
    ),
    "ova": Case({"method": {"name": "ova", "tau": 0.1}, "loss": {"name": "bce"}}),
    "surrogate": Case({"method": {"name": "surrogate", "num_clusters": 16, "tau": 0.1}}, steps=4),
    "xc": Case(
        {"method": {"name": "xc", "pool": "all", "tau": 0.05, "batches": "random", "dropout": 0.0}},
        stages=[FIRST, {"name": "classifiers"}],
        steps=30,  # the first 13 are the encoder's
    ),
    "fused": Case(
        {"method": {"name": "fused"}},
        stages=[
            FIRST,
            {"name": "classifiers", "method": {"name": "xc", "dropout": 0.0, "batches": "random"}},
            {"name": "fused", "train": {"epochs": 0}},
        ],
        steps=24,
    ),
    "elias-1": Case({"method": {"name": "elias-1", **SEARCH}}, TRANSFORMER, steps=4),
    "elias-2": Case(
        {"method": {"name": "elias-2", "graph": "cluster", **SEARCH}, "loss": {"name": "bce"}},
        TRANSFORMER,
        steps=4,
    ),
    "elias-ranker": Case(
        {"method": {"name": "elias-ranker", "candidates": 20}},
        stages=[
            {"name": "search", "method": {"name": "elias-1", **SEARCH}},
            {"name": "rank"},
        ],
        steps=4,
    ),
    "xr-linear": Case({"method": TREE}),
    "overlap": Case({"method": {**TREE, "name": "overlap"}}),
    "fusion": Case(
        {"method": {"name": "fusion", "memory": "dual"}},
        stages=[
            FIRST,
            {"name": "tree", "run": {"start_from": None}, "method": TREE},
            {
                "name": "fusion",
                "run": {"start_from": None},
                "method": {
                    "name": "fusion",
                    "members": {"dual": "stage:encoder", "tree": "stage:tree"},
                },
            },
        ],
    ),
    # the last: compiling takes long
    "dexml, compiled": Case(
        _dual(gc_batch_size=50), TRANSFORMER, otherwise={"train": {"compile": True}}
    ),
}


def case_config(place: Place, case: str, name: str, *more: Values) -> Config:
    """The config of a case, for a run of some name.

    float32 without TF32 and without dropout unless `more` says otherwise: another device then
    differs by rounding alone.
    """
    chosen = CASES[case]
    small = str(place.encoder("small"))
    encoder: dict[str, Any] = {"name": "bag", "init": small}
    if chosen.encoder == TRANSFORMER:
        encoder = {"name": small, "pooling": "mean"}
    usual: Values = {
        "data": {"name": "check", "max_len": 16, "val_fraction": 0.2},
        "encoder": {**encoder, "dropout": 0.0},
        "optim": {"lr": 2e-3},
        "train": {
            "epochs": 2,
            "batch_size": place.sizes.check_batch,
            "mixed_precision": "no",
            "tf32": False,
        },
    }
    return place.config(name, usual, chosen.sections, *more, stages=chosen.stages)
