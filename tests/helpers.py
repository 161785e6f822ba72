"""What tests of several rooms share: opened runs and data sets, weights, trees of rankers."""

import contextlib
import json
import re
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.encoders import reader
from models.encoders.text_encoder import TextEncoder
from utils.data.dataset import load_dataset
from utils.linear.layer import Features, Solver
from utils.linear.partition_tree import COMBINERS
from utils.linear.tree_training import Ranking, fit_tree, grow, label_centroids


def load(config):
    from engine.planning import tokenizer_of
    from utils.pretrained.location import load_tokenizer

    source = tokenizer_of(config)
    return load_dataset(config, source and load_tokenizer(source))


def random_start(config, data, runtime):
    """A ranker with the encoder of a config and random label vectors, for what starts from one."""
    from models.classifiers.label_rows import LabelRows
    from models.classifiers.linear_ranker import LinearRanker
    from models.encoders.building import build_encoder
    from models.encoders.reader import Reader

    encoder = build_encoder(config.encoder, data)
    rows = LabelRows(torch.randn(data.num_labels, encoder.dim), torch.zeros(data.num_labels))
    return LinearRanker(config, Reader.frozen(encoder, config, runtime), rows)


def weights(folder):
    return {
        n: v
        for f in ("shared", "process-0")
        for n, v in load_file(folder / "last" / f"{f}.safetensors").items()
    }


def make_old(folder):
    """Take from a run's model what those of before there were format versions did not have."""
    model = folder / "model"
    path = model / "method.json"
    facts = json.loads(path.read_text())
    for key in ("format", "labels_hash"):
        del facts[key]
    path.unlink()
    path.write_text(json.dumps(facts))
    for name in ("labels.txt", "label_ids.txt"):
        (model / name).unlink(missing_ok=True)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def payload_of(path):
    """The data inside a written page."""
    found = re.findall(
        r'<script type="application/json" id="payload">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert len(found) == 1
    return json.loads(found[0])


def made(points=80, columns=30, dense=0, seed=0, density=0.2):
    rng = np.random.default_rng(seed)
    sparse = sp.random(points, columns, density, "csr", np.float32, rng)
    return Features.build(
        sparse, rng.normal(size=(points, dense)).astype(np.float32) / 3 if dense else None
    )


def planted(features, nodes, seed=0):
    """Positives [n, nodes] that a linear ranker can mostly tell."""
    rng = np.random.default_rng(seed)
    whole = np.hstack([features.sparse.toarray(), features.dense])
    margins = whole @ rng.normal(size=(whole.shape[1], nodes))
    return sp.csc_matrix((margins > np.quantile(margins, 0.8, axis=0)).astype(np.float32))


def weights_of(layer, shape):
    """Dense weights [F + D + 1, nodes] of a layer."""
    dense = np.zeros((sum(shape) + 1, layer.child_ptr[-1]), np.float32)
    for chunk in range(len(layer.child_ptr) - 1):
        for row in range(layer.chunk_ptr[chunk], layer.chunk_ptr[chunk + 1]):
            for at in range(layer.ptr[row], layer.ptr[row + 1]):
                dense[layer.features[row], layer.child_ptr[chunk] + layer.children[at]] = (
                    layer.values[at]
                )
    return dense


def ranking(negatives="positives", threads=1, **solver):
    return Ranking(Solver(**solver), negatives, 2, COMBINERS["l3-hinge"], threads)


def small_tree(dense=0, labels=23, max_leaf=3, splits=3, negatives="positives", copies=False):
    features = made(points=90, columns=40, dense=dense)
    relevance = planted(features, labels).tocsr()
    skeleton = grow(
        label_centroids(relevance, features.sparse),
        np.arange(labels),
        max_leaf=max_leaf,
        splits=splits,
        seed=0,
        threads=1,
    )
    if copies:
        rng = np.random.default_rng(0)
        members = skeleton.membership(labels).toarray()
        members[np.arange(labels), rng.integers(0, skeleton.leaves, labels)] = 1
        skeleton = skeleton.with_leaves(sp.csr_matrix(members))
    return (
        features,
        relevance,
        skeleton,
        fit_tree(features, relevance, skeleton, ranking(negatives)),
    )


@contextlib.contextmanager
def counted_encodings() -> Iterator[list[int]]:
    """Give a list that grows by the number of texts at each call of an encoder inside; what is kept
    of earlier calls is forgotten first."""
    calls: list[int] = []
    reader.forget()

    def count(module: nn.Module, _: object, embeddings: Tensor) -> None:
        if isinstance(module, TextEncoder):
            calls.append(len(embeddings))

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
