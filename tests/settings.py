"""Every method, with its options, on the made data set: what the conformance test and the golden
files train."""

from collections.abc import Mapping
from typing import Any

FIRST = {
    "name": "encoder",
    "method": {"name": "dexml"},
    "loss": {"name": "decoupled-softmax"},
    "train": {"epochs": 10},
}
SETTINGS = {
    "dexml-all": {"method": {"name": "dexml"}},
    "dexml-all-cached": {"method": {"name": "dexml", "gc_batch_size": 5}},
    "dexml-hnm": {"method": {"name": "dexml", "pool": "hnm", "num_negatives": 3}},
    "dexml-in-batch": {"method": {"name": "dexml", "pool": "in-batch"}},
    "dexml-softmax": {"method": {"name": "dexml"}, "loss": {"name": "softmax"}},
    "dexml-soft-topk": {
        "method": {"name": "dexml", "tau": 0.2},
        "loss": {"name": "soft-topk", "k": "num_pos"},
    },
    "dexml-bce": {"method": {"name": "dexml", "tau": 0.2}, "loss": {"name": "bce"}},
    "dexml-sample": {"method": {"name": "dexml"}, "loss": {"sample": True, "weighted": True}},
    "ngame": {"method": {"name": "ngame"}, "loss": {"name": "triplet", "sample": True}},
    "dexa": {
        "method": {
            "name": "dexa",
            "num_vectors": 8,
            "num_head_vectors": 3,
            "curr_epochs": [2, 5, 8],
        },
        "loss": {"name": "triplet", "sample": True},
    },
    "dexa-residual": {
        "method": {
            "name": "dexa",
            "num_vectors": "labels",
            "vector_init": "zeros",
            "pool": "all",
            "batches": "random",
            "tau": 0.05,
        }
    },
    "surrogate": {"method": {"name": "surrogate", "num_clusters": 16, "tau": 0.05}},
    "xc": {
        "method": {"name": "xc", "pool": "all", "tau": 0.05, "batches": "random", "dropout": 0.1},
        "stages": [FIRST, {"name": "classifiers"}],
    },
    "xc-in-batch": {
        "method": {"name": "xc", "cluster_size": 4},
        "stages": [FIRST, {"name": "classifiers"}],
        "loss": {"name": "triplet", "hardest_positives": 3, "hardest_negatives": 5, "margin": 0.2},
    },
    "xc-trainable": {
        "method": {"name": "xc", "freeze": False, "tau": 0.05, "cluster_size": 4},
        "stages": [FIRST, {"name": "classifiers"}],
    },
    "deepxml": {
        "method": {"name": "xc", "tau": 0.05, "curr_epochs": [1, 2], "cluster_size": 2},
        "stages": [
            {
                "name": "surrogate",
                "method": {"name": "surrogate", "num_clusters": 16, "tau": 0.05},
                "train": {"epochs": 10},
            },
            {"name": "classifiers"},
        ],
    },
    "fused": {
        "method": {"name": "fused"},
        "stages": [
            FIRST,
            {"name": "classifiers", "method": {"name": "xc", "tau": 0.05, "cluster_size": 4}},
            {"name": "fused", "train": {"epochs": 0}},
        ],
    },
    "fusion": {
        "method": {"name": "fusion", "memory": "dual"},
        "stages": [
            FIRST,
            {
                "name": "tree",
                "run": {"start_from": None},
                "method": {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": 8},
            },
            {
                "name": "fusion",
                "run": {"start_from": None},
                "method": {
                    "name": "fusion",
                    "members": {"dual": "stage:encoder", "tree": "stage:tree"},
                },
            },
        ],
    },
    "fusion-elias": {
        "method": {"name": "fusion"},
        "stages": [
            {
                "name": "search",
                "method": {
                    "name": "elias-1",
                    "max_leaf": 5,
                    "tau": 0.1,
                    "init": "labels",
                    "init_bias": -3,
                },
            },
            {"name": "rank", "method": {"name": "elias-ranker", "candidates": 20}},
            {
                "name": "fusion",
                "run": {"start_from": None},
                "method": {
                    "name": "fusion",
                    "members": {"search": "stage:search", "rank": "stage:rank"},
                },
            },
        ],
    },
    "ova": {"method": {"name": "ova", "tau": 0.05}},
    "ova-bce": {"method": {"name": "ova", "tau": 0.05}, "loss": {"name": "bce"}},
    "xr-linear": {"method": {"name": "xr-linear", "max_leaf": 4, "splits": 2, "beam": 8}},
    "xr-linear-3": {
        "method": {
            "name": "xr-linear",
            "max_leaf": 4,
            "splits": 4,
            "beam": 8,
            "trees": 3,
            "negatives": "both",
            "combiner": "sigmoid",
        }
    },
    "overlap": {"method": {"name": "overlap", "max_leaf": 5, "splits": 4, "beam": 8}},
    "ova-topk-sample": {
        "method": {"name": "ova", "tau": 0.2},
        "loss": {"name": "soft-topk", "k": 2, "sample": True},
    },
    "elias-1": {"method": {"name": "elias-1", "max_leaf": 5, "tau": 0.1}, "loss": {"name": "bce"}},
    "elias-1-projected": {
        "method": {
            "name": "elias-1",
            "max_leaf": 5,
            "tau": 0.1,
            "wl_dim": 8,
            "init_bias": -2,
            "accumulation_steps": 2,
        }
    },
    "elias-2": {
        "method": {
            "name": "elias-2",
            "graph": "cluster",
            "max_leaf": 5,
            "tau": 0.1,
            "init": "labels",
            "init_bias": -2,
        }
    },
    "elias-2-swa": {
        "method": {
            "name": "elias-2",
            "graph": "cluster",
            "max_leaf": 5,
            "tau": 0.1,
            "swa": True,
            "swa_start": 12,
            "swa_step": 2,
        }
    },
    "elias-ranker": {
        "method": {"name": "elias-ranker", "candidates": 20},
        "stages": [
            {
                "name": "search",
                "method": {
                    "name": "elias-1",
                    "max_leaf": 5,
                    "tau": 0.1,
                    "init": "labels",
                    "init_bias": -3,
                },
            },
            {"name": "rank"},
        ],
    },
}
# On two processes dropout draws other numbers, and an average over the last epochs needs them.
CHANGES = {"xc": {"dropout": 0.0}, "elias-2-swa": {"swa_start": 1, "swa_step": 1}}
FITTED = ("fused", "fusion", "xr-linear", "overlap", "elias-ranker")  # without steps
# of each method the first setting, and of the learners among them
EACH = {SETTINGS[name]["method"]["name"]: name for name in reversed(SETTINGS)}
LEARNERS = [name for method, name in EACH.items() if method not in FITTED]


def settled(name: str, method: Mapping[str, Any]) -> dict[str, Any]:
    """A section `method:` of a setting, as two processes can train it alike."""
    return {**method, **CHANGES.get(name, {}), **CHANGES.get(method.get("name", ""), {})}


def sections_of(name: str) -> dict[str, Any]:
    """A setting with CHANGES, in its stages too."""
    sections = dict(SETTINGS[name])
    sections["method"] = settled(name, sections["method"])
    sections["stages"] = [
        {**stage, "method": settled("", stage["method"])} if "method" in stage else stage
        for stage in sections.get("stages", ())
    ]
    return sections


def brief(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with an epoch for each stage before the last."""
    *before, last = sections.get("stages", ()) or [None]
    if last is None:
        return dict(sections)
    epoch = {"train": {"epochs": 1}}
    return {**sections, "stages": [*({**stage, **epoch} for stage in before), last]}
