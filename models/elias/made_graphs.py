"""Graphs made beforehand: what they were made of, and whether a run may take them.

    python elias_utils.py gen_cluster_A CONFIG    # <run>.cluster_A.npz, which `train.py` takes
    python elias_utils.py gen_approx_A CONFIG     # <run>/approx_A.npz, for runs that start from it

A file says what it was made of. A run whose data or settings are others refuses it, before anything
is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from models.elias.graph import Graph
from utils import distributed
from utils.config.config import Config
from utils.config.graph_places import approx_file, cluster_file
from utils.config.legacy_log import shown
from utils.data.dataset import Dataset, Split
from utils.errors import InputError
from utils.features.files import find_features
from utils.reading.input_files import present
from utils.run.folder import folder_of

Origin = dict[str, Any]  # what a graph was made of, by the words that a message says it with
END = 1 << 20  # bytes of either end of a weight file that are hashed: training changes all
TOKENS_AT_ONCE = 1 << 16
POINTS_LABELS = "labels of the points"
EMBEDDINGS_OF = "embeddings of"
WEIGHTS = "weights of the model (it was trained again, or run.start_from names another run)"


def point_features(data: Dataset) -> sp.csr_matrix:
    """TF-IDF features of the training points [n, F], which labels are clustered by.

    Those of test points may lack.
    """
    matrix = find_features(data.folder, data.config).training_matrix()
    return matrix[data.splits["trn"].rows]


# -------------------------------- what a graph is made of


def cluster_origin(
    config: Config,
    data: Dataset,
    model: Path | None = None,
) -> Origin:
    """Of balanced clusters of the labels.

    Args:
        model: folder of the run whose embeddings stand beside the TF-IDF features.
    """
    origin: Origin = {
        POINTS_LABELS: data.hash,
        "training points": _digest([data.splits["trn"].rows]),
        "TF-IDF features": _features_digest(data),
        "method.max_leaf": config.method.max_leaf,
        "method.cluster_seed": config.method.cluster_seed,
    }
    if model is not None:
        origin |= {EMBEDDINGS_OF: str(model), WEIGHTS: model_digest(model)}
    return origin


def approx_origin(
    data: Dataset,
    model: Path,
    kappa: int,
    beam: int,
) -> Origin:
    """Of the labels that the clusters of a run attract."""
    split = data.splits["trn"]
    return {
        POINTS_LABELS: data.hash,
        "training points": _digest([split.rows]),
        "texts": _tokens_digest(split),
        "method.kappa": kappa,
        "method.beam": beam,
        WEIGHTS: model_digest(model),
    }


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _features_digest(data: Dataset) -> str:
    features = point_features(data)
    return _digest([features.indptr, features.indices, features.data])


def _tokens_digest(split: Split) -> str:
    """Of the token ids of a split's texts, block by block: they are mapped from disk."""
    tokens = split.tokens
    assert tokens is not None, "a method with an encoder reads tokens"
    starts = range(0, len(split.rows), TOKENS_AT_ONCE)
    blocks = (tokens.take(split.rows[start : start + TOKENS_AT_ONCE]) for start in starts)
    return _digest(chain.from_iterable(blocks))


def model_digest(run_folder: Path) -> str:
    """Hash the weights of a run's model.

    Encoder and clusters, which every step of a training changes.
    """
    model = run_folder / "model"
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted([*model.glob("*.safetensors"), *model.glob("clusters.npy")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(END))
            file.seek(max(0, size - END))
            digest.update(file.read(END))
    return digest.hexdigest()


# -------------------------------- a run's own graph, if a step made it


@dataclass(frozen=True)
class MadeGraph:
    """A graph that lies where a step leaves it for a run.

    Attributes:
        difference: why the run does not take it, in words; None where it does.
    """

    path: Path
    difference: str | None


def graph_made_before(
    config: Config,
    data: Dataset,
    kappa: int,
    beam: int,
) -> MadeGraph | None:
    """The graph that a step left for this run; None if there is none. A collective.

    What a step made of another model's clusters, or for another kappa, the run itself makes anew,
    as it would have been; not so clusters of labels, which only the step may know how to make.

    Raises:
        InputError: clusters of other data or settings.
    """
    path, step = _place(config)
    if path is None or not present(path):
        return None
    difference = None
    if distributed.is_main():
        expected = _expected_origin(config, data, kappa, beam)
        difference = _difference(Graph.origin(path), expected)
    difference = distributed.broadcast(difference)
    if difference and step == "gen_cluster_A":
        raise InputError(
            f"{path}: this graph was made {difference}; make it again (python elias_utils.py "
            f"{step}), or remove the file: the run then makes its own"
        )
    return MadeGraph(path, difference)


def _place(config: Config) -> tuple[Path | None, str]:
    """(where a graph made before would lie, the step that makes it)."""
    name = config.method.graph
    if name == "cluster":
        return cluster_file(config.run_folder), "gen_cluster_A"
    if name == "approx":
        return approx_file(_start_folder(config)), "gen_approx_A"
    return None, ""


def _start_folder(config: Config) -> Path:
    """The folder of the run that this one starts from."""
    assert config.run.start_from is not None, "checked on paper"
    return folder_of(config.run.start_from)


def _expected_origin(
    config: Config,
    data: Dataset,
    kappa: int,
    beam: int,
) -> Origin:
    """What the graph of a run is made of, where the run makes it itself."""
    if config.method.graph == "approx":
        return approx_origin(data, _start_folder(config), kappa, beam)
    model = _start_folder(config) if config.run.start_from else None
    return cluster_origin(config, data, model)


def _difference(made: Origin, expected: Origin) -> str | None:
    """How a graph's origin differs from what a run needs, in words; None if it does not.

    Clusters of TF-IDF features alone serve any model, and a file that says nothing can only be
    trusted.
    """
    for key, value in expected.items():
        if key not in made or key == EMBEDDINGS_OF or made[key] == value:
            continue
        if key.startswith("method."):
            return f"with {key} {shown(made[key])[:50]}, this run has {value}"
        return f"of other {key}"
    return None


def told(path: Path) -> str:
    """What a graph file says that it was made of, for the log."""
    made = Graph.origin(path)
    if not made:
        return "which says nothing of what it was made of"
    if EMBEDDINGS_OF in made:
        return f"made of TF-IDF features and the embeddings of {made[EMBEDDINGS_OF]}"
    if "TF-IDF features" in made:
        return "made of TF-IDF features"
    return "made of what the clusters of the run attract"
