"""The experiments of the overlap-XMC paper (Liu et al., NeurIPS 2021, arXiv 2106.12751, section 5)
on a trained run.

    # an xr-linear or overlap run; about 8 trainings of its tree
    python -m benchmarks.overlap RUN
    python -m benchmarks.overlap RUN --copies 1 2 4 --split tst

One tree with the run's solver, sizes and beam, labels clustered by their points. Pairs of random
labels of one super-cluster, the parent of their clusters, are merged into labels of two meanings.
  1. Binned: with and without copies, on the original and on the merged labels. Copies should win
     back more on the merged ones (the paper's Figure 2).
  2. Disentanglement: each positive point of a merged label with two copies goes to the copy whose
     cluster scores higher. Variation of Information between this split and the two true labels,
         against the mean of 100 random
     splits: by a fair coin, and, a harder test, of the same sizes as the split itself, which no
     split can beat by being lopsided. Labels of 10 or fewer points are skipped, points with both
         labels do not count.
Writes RUN/experiments/overlap.{json,png}; the run's model is not touched.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from models.loading import load_ranker
from models.trees.options import XrLinearConfig, ranking
from models.trees.ranker import TreeRanker
from utils import distributed, metrics
from utils.config.config import Config
from utils.data.dataset import load_dataset
from utils.files import write_json, written_whole
from utils.linear.layer import Features
from utils.linear.partition_tree import COMBINERS, PartitionTree
from utils.linear.tree_training import Skeleton, fit_tree, grow, pifa, reassign
from utils.run.finding import find_run
from utils.runtime import Runtime
from utils.sparse import remove_pairs, topk_csr

KS = (1, 3, 5, 10, 100)
FEWEST_POINTS = 10  # labels of so many points or fewer are skipped
RANDOM_SPLITS = 100
SCORES_AT_ONCE = 1 << 24  # scores of all clusters held at a time


@dataclass(frozen=True)
class Points:
    """Features, relevance and filter pairs of a split, over the original or the merged labels."""

    features: Features
    relevance: sp.csr_matrix
    filters: sp.csr_matrix

    def merged(self, into: sp.csr_matrix) -> Points:
        relevance, filters = (
            sp.csr_matrix(((m @ into) > 0).astype(np.float32))
            for m in (self.relevance, self.filters)
        )
        return Points(self.features, relevance, (filters - filters.multiply(relevance)).tocsr())


def train(
    config: Config, points: Points, copies: int, threads: int
) -> tuple[PartitionTree, Skeleton]:
    """The run's tree on these points; with copies > 1 one round of reassignment."""
    method = config.method
    labels = np.unique(points.relevance.indices)
    skeleton = grow(
        pifa(points.relevance, points.features),
        labels,
        max_leaf=method.max_leaf,
        splits=method.splits,
        seed=config.run.seed,
        threads=threads,
    )
    settings = ranking(config, threads)
    tree = fit_tree(points.features, points.relevance, skeleton, settings, points.filters)
    if copies > 1:
        skeleton = reassign(
            tree, skeleton, points.features, points.relevance, copies=copies, ranking=settings
        )
        tree = fit_tree(points.features, points.relevance, skeleton, settings, points.filters)
    return tree, skeleton


def score(
    config: Config,
    tree: PartitionTree,
    points: Points,
    threads: int,
) -> dict[str, float]:
    """P@k and R@k in percent, and the average number of inner products."""
    ids, values, products = tree.search(
        points.features,
        min(max(KS), points.relevance.shape[1]),
        beam=config.method.beam,
        combiner=COMBINERS[config.method.combiner],
        mean=config.method.mean_of_copies,
        threads=threads,
    )
    scores = remove_pairs(
        topk_csr(values, ids, points.relevance.shape[1]), *points.filters.nonzero()
    )
    ks = tuple(k for k in KS if k <= points.relevance.shape[1])
    result = metrics.evaluate(scores, points.relevance, None, ks)
    return {
        **{name: round(result[name], 3) for name in result if name[0] in "PR"},
        "inner_products": round(products),
    }


def merge_pairs(
    skeleton: Skeleton,
    num_labels: int,
    seed: int,
) -> sp.csr_matrix:
    """Pair labels at random inside each super-cluster, two levels above the labels: binary [L,
    merged labels].

    A label without a partner, or without training points, stays alone.
    """
    rng = np.random.default_rng(seed)
    above = skeleton.child_ptrs[-2]
    group = np.repeat(np.arange(len(above) - 1), np.diff(above))[skeleton.node_clusters]
    column = np.full(num_labels, -1)
    count = 0
    for super_cluster in np.unique(group):
        labels = rng.permutation(skeleton.node_labels[group == super_cluster])
        column[labels] = count + np.arange(len(labels)) // 2
        count += (len(labels) + 1) // 2
    rest = column < 0
    column[rest] = count + np.arange(rest.sum())
    return sp.csr_matrix((np.ones(num_labels, np.float32), (np.arange(num_labels), column)))


def variation_of_information(one: np.ndarray, two: np.ndarray) -> float:
    """VI = H(one | two) + H(two | one) in nats of two splits [n] into ids 0 and 1 (Meila, 2007)."""
    joint = np.bincount(2 * one + two, minlength=4).reshape(2, 2) / len(one)

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    return 2 * entropy(joint.ravel()) - entropy(joint.sum(axis=0)) - entropy(joint.sum(axis=1))


def disentanglement(
    config: Config,
    original: Points,
    into: sp.csr_matrix,
    tree: PartitionTree,
    skeleton: Skeleton,
    threads: int,
) -> list[dict[str, float]]:
    """VI of the split that the copies of each merged label make, and the mean VI of random
    splits."""
    members = skeleton.membership(into.shape[1])
    columns = original.relevance.tocsc()
    pairs = into.tocsc()
    # of each label that is looked at: copies, its points, their true labels
    homes, points, truths = [], [], []
    merged = [
        label
        for label in range(into.shape[1])
        if np.diff(pairs.indptr)[label] == 2 and np.diff(members.indptr)[label] == 2
    ]
    kept = []
    for label in merged:
        one, two = (
            columns.indices[columns.indptr[o] : columns.indptr[o + 1]]
            for o in pairs[:, [label]].indices
        )
        either = np.setxor1d(one, two)
        if len(either) > FEWEST_POINTS:
            kept.append(label)
            homes.append(members[[label]].indices)
            points.append(either)
            truths.append(np.isin(either, two).astype(np.int64))
    splits = (
        np.split(
            second_home(config, original.features, tree, skeleton, homes, points, threads),
            np.cumsum([len(own) for own in points])[:-1],
        )
        if points
        else []
    )
    rng = np.random.default_rng(config.run.seed)
    rows = []
    for label, truth, split in zip(kept, truths, splits, strict=True):
        rivals = {
            "coin": rng.integers(0, 2, (RANDOM_SPLITS, len(split))),
            "sizes": [rng.permutation(split) for _ in range(RANDOM_SPLITS)],
        }
        vi = {
            name: np.mean([variation_of_information(truth, other) for other in draws])
            for name, draws in rivals.items()
        }
        rows.append(
            {
                "labels": pairs[:, [label]].indices.tolist(),
                "points": len(split),
                "copies": np.bincount(split).tolist(),
                "vi": variation_of_information(truth, split),
                **{f"random_vi_{n}": v for n, v in vi.items()},
            }
        )
    return rows


def second_home(
    config: Config,
    features: Features,
    tree: PartitionTree,
    skeleton: Skeleton,
    homes: list[np.ndarray],
    points: list[np.ndarray],
    threads: int,
) -> np.ndarray:
    """1 where a point's second cluster scores higher than its first, for all points of all labels
    one after the other.

    Args:
        homes: the two clusters of each label; points: its points.
    """
    flat = np.concatenate(points)
    first = np.repeat(np.stack(homes), [len(own) for own in points], axis=0)
    found = np.empty(len(flat), np.int64)
    order = np.argsort(flat, kind="stable")
    step = max(1, SCORES_AT_ONCE // skeleton.leaves)
    for start in range(0, len(features), step):
        block = order[slice(*np.searchsorted(flat[order], (start, start + step)))]
        clusters, scores = tree.clusters(
            features[start : start + step],
            beam=skeleton.leaves,
            level=len(skeleton.child_ptrs) - 2,
            combiner=COMBINERS[config.method.combiner],
            threads=threads,
        )
        # by cluster instead of by rank
        np.put_along_axis(scores, clusters, scores.copy(), axis=1)
        own = scores[flat[block] - start]
        one, two = (np.take_along_axis(own, first[block, i][:, None], 1)[:, 0] for i in (0, 1))
        found[block] = two > one
    return found


def run_experiments(
    run: str | Path,
    copies: list[int],
    split: str,
) -> dict:
    """Both experiments; writes the JSON and the plot."""
    folder, config = find_run(run)
    if not isinstance(config.method, XrLinearConfig):
        raise ValueError(
            f"{folder}: a {config.method.name} run; the experiments need xr-linear or overlap"
        )
    threads = distributed.cpu_threads(config.run.threads)
    data = load_dataset(config, None)
    ranker = load_ranker(config, folder, Runtime.start(config))
    assert isinstance(ranker, TreeRanker), "the options are those of trees"

    def points(name: str) -> Points:
        own = data.splits[name]
        return Points(ranker.features.of(own.texts), own.relevance, own.filters)

    if len(data.splits[split]) == 0:
        raise ValueError(
            f"{folder}: the run has no {split} points (data.val_fraction "
            f"{config.data.val_fraction}); measure on --split tst"
        )
    trn, other = points("trn"), points(split)
    base, skeleton = train(config, trn, 1, threads)
    if len(skeleton.child_ptrs) < 2:
        raise ValueError(
            f"{folder}: all labels lie in one cluster (method.max_leaf {config.method.max_leaf}); "
            "the experiments need a tree"
        )
    into = merge_pairs(skeleton, data.num_labels, config.run.seed)
    table = {}
    pairs = []
    sets = {"original": (trn, other), "merged": (trn.merged(into), other.merged(into))}
    for name, count in itertools.product(sets, sorted({1, *copies})):
        fit_on, test_on = sets[name]
        first = (name, count) == ("original", 1)
        tree, found = (base, skeleton) if first else train(config, fit_on, count, threads)
        table.setdefault(name, {})[count] = score(config, tree, test_on, threads)
        print(f"{name} labels, {count} copies: {table[name][count]}", flush=True)
        if name == "merged" and count == 2:
            pairs = disentanglement(config, trn, into, tree, found, threads)
    result = {
        "data": data.name,
        "data_hash": data.hash,
        "split": split,
        "seed": config.run.seed,
        "labels": {"original": data.num_labels, "merged": into.shape[1]},
        "binned": table,
        "disentanglement": summary(pairs),
    }
    out = folder / "experiments"
    out.mkdir(exist_ok=True)
    write_json(out / "overlap.json", {**result, "pairs": pairs})
    plot(out / "overlap.png", result, pairs)
    return result


def summary(pairs: list[dict]) -> dict[str, float]:
    """Mean VI, and the share of pairs in percent whose split beats the random ones."""
    result: dict[str, float] = {"pairs": len(pairs)}
    for rival in ("coin", "sizes") if pairs else ():
        won = [row["vi"] < row[f"random_vi_{rival}"] for row in pairs]
        result[f"better_than_{rival}"] = round(100 * float(np.mean(won)), 2)
        result[f"mean_vi_{rival}"] = round(
            float(np.mean([row[f"random_vi_{rival}"] for row in pairs])), 4
        )
    if pairs:
        result["mean_vi"] = round(float(np.mean([row["vi"] for row in pairs])), 4)
    return result


def plot(
    path: Path,
    result: dict,
    pairs: list[dict],
) -> None:
    """Gain of copies on original and merged labels; VI of the splits against random ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    gain, scatter = figure.subplots(1, 2)
    for name, rows in result["binned"].items():
        for metric, style in (("P@1", "o-"), ("R@10", "s--")):
            if metric in rows[1]:
                gain.plot(
                    list(rows),
                    [row[metric] - rows[1][metric] for row in rows.values()],
                    style,
                    label=f"{metric}, {name} labels",
                    color="C0" if name == "original" else "C3",
                )
    gain.set(
        xlabel="clusters a label may live in",
        ylabel=f"gain over one cluster ({result['split']})",
        xticks=list(result["binned"]["original"]),
        title=result["data"],
    )
    gain.legend(fontsize=8)
    for rival, color in (("coin", "C0"), ("sizes", "C1")) if pairs else ():
        share = f"{rival}: {result['disentanglement'][f'better_than_{rival}']} % below"
        scatter.scatter(
            [row[f"random_vi_{rival}"] for row in pairs],
            [row["vi"] for row in pairs],
            s=6,
            alpha=0.4,
            color=color,
            label=share,
        )
        scatter.legend(fontsize=8)
    scatter.plot([0, 1.4], [0, 1.4], color="grey", linewidth=1)
    scatter.set(
        xlabel="VI of random splits",
        ylabel="VI of the copies' split",
        title=f"{len(pairs)} merged labels",
    )
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of an xr-linear or overlap run")
    parser.add_argument(
        "--copies",
        type=int,
        nargs="+",
        default=[1, 2, 3, 4],
        help="clusters that a label may live in",
    )
    parser.add_argument(
        "--split", choices=("val", "tst"), default="val", help="where P@k and R@k are measured"
    )
    options = parser.parse_args()
    try:
        if min(options.copies) < 1 or 2 not in options.copies:
            raise ValueError(
                "--copies: expected 1 or more, 2 among them for the disentanglement, got "
                f"{options.copies}"
            )
        result = run_experiments(options.run, options.copies, options.split)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"disentanglement: {result['disentanglement']}")


if __name__ == "__main__":
    main()
