"""Score anybody's score matrix: P, nDCG, PSP, PSnDCG, R and MRR, and how rare labels fare.

    python -m utils.metrics SCORES.npz Datasets/EURLex-4K
    python -m utils.metrics SCORES.npz Datasets/EURLex-4K --split trn --ks 1,3,5 --json

SCORES.npz is a scipy sparse matrix, points x labels, as scipy.sparse.save_npz writes it: every
stored entry is a prediction. DATASET is a folder with Y.trn.npz and Y.tst.npz; its filter pairs are
removed before ranking, as eval.py does (--no-filters keeps them). Label frequencies and
propensities are those of Y.trn.npz. Head, torso and tail are labels by training points, a third
of all training pairs each; P@k of a group is its share of P@k, recall@k that of its own true pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.commands import add_debug_option, command

if TYPE_CHECKING:
    import scipy.sparse as sp

LARGEST_A = 100  # as of data.propensity_a
LARGEST_B = 1000  # as of data.propensity_b


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        "python -m utils.metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scores", help="scipy sparse matrix of scores, .npz")
    parser.add_argument("dataset", help="folder of the data set")
    parser.add_argument("--split", choices=("trn", "tst"), default="tst", help="default tst")
    parser.add_argument(
        "--ks", default="1,3,5,10,100", help="k of the metrics; default %(default)s"
    )
    for constant in ("a", "b"):
        parser.add_argument(
            f"--{constant}",
            type=float,
            help=f"of the propensity; default that of data.propensity_{constant}",
        )
    parser.add_argument(
        "--no-filters", action="store_true", help="count pairs of filter_labels_*.txt as others"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    add_debug_option(parser)
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Metrics of the score matrix: {"metrics": {...}, "groups": {...}, "points": N, "labels": L}.

    Raises:
        InputError: a file is missing or damaged, or the shapes do not fit each other.
    """
    import numpy as np

    from utils import metrics
    from utils.config.config import DataConfig
    from utils.data.dataset import check_dataset_folder
    from utils.data.relevance import load_relevance
    from utils.errors import InputError
    from utils.reading.matrices import read_matrix
    from utils.reading.matrix_checks import SCORES
    from utils.report.measured import by_volume
    from utils.sparse import topk_rows

    folder = Path(options.dataset)
    check_dataset_folder(folder)
    relevance = {
        split: load_relevance(folder / f"Y.{split}.npz", None, folder) for split in ("trn", "tst")
    }
    truth = relevance[options.split]
    scores = read_matrix(Path(options.scores), SCORES, dtype=None)
    if scores.shape != truth.shape:
        raise InputError(
            f"{options.scores}: expected scores of shape {truth.shape}, as "
            f"{folder / f'Y.{options.split}.npz'} has it, got {scores.shape}"
        )
    if not options.no_filters:
        scores = _without_filters(folder, options.split, scores)
    ks = _ks(options.ks, truth.shape[1])
    counts = np.bincount(relevance["trn"].indices, minlength=truth.shape[1])
    points = relevance["trn"].shape[0]
    usual = DataConfig()
    a = usual.propensity_a if options.a is None else options.a
    b = usual.propensity_b if options.b is None else options.b
    if not (0 < a <= LARGEST_A and 0 < b <= LARGEST_B):
        raise InputError(
            f"--a and --b: expected numbers above 0, a up to {LARGEST_A} and b up to {LARGEST_B}, "
            f"got {a} and {b}"
        )
    propensity = metrics.inverse_propensity(counts, points, a, b) if points >= 3 else None
    ids, _ = topk_rows(scores, ks[-1])
    return {
        "metrics": metrics.evaluate(scores, truth, propensity, ks),
        "groups": by_volume(ids, truth, counts, ks),
        "points": truth.shape[0],
        "labels": truth.shape[1],
    }


def _ks(given: str, num_labels: int) -> list[int]:
    """The k of the metrics, those that are larger than the number of labels left out."""
    from utils.errors import InputError

    try:
        asked = sorted({int(part) for part in given.split(",")})
    except ValueError:
        asked = []
    if not asked or asked[0] < 1:
        raise InputError(f"--ks: expected whole numbers from 1 between commas, got {given!r}")
    ks = [k for k in asked if k <= num_labels]
    if not ks:
        raise InputError(f"--ks: {given}: there are only {num_labels} labels")
    return ks


def _without_filters(
    folder: Path,
    split: str,
    scores: sp.csr_matrix,
) -> sp.csr_matrix:
    """Scores without the pairs that the data set never counts."""
    from utils.data.filters import load_filters
    from utils.sparse import entry_rows, remove_pairs

    pairs = load_filters(folder, {split: scores.shape})[split]
    return remove_pairs(scores, entry_rows(pairs), pairs.indices)


def described(found: dict[str, Any]) -> str:
    """The metrics and the groups of labels as tables."""
    from utils import metrics

    groups = found["groups"]
    names = groups["names"]
    keys = [key for key in groups if "@" in key]
    rows = [["", *names]]
    rows.append(["training points", *map(_range, groups["fewest"], groups["most"])])
    rows.append(["true pairs", *map(str, groups["pairs"])])
    rows += [[key, *map(_percent, groups[key])] for key in keys]
    width = max(len(row[0]) for row in rows)
    lines = [
        row[0].ljust(width) + "".join(cell.rjust(12) for cell in row[1:]).rstrip() for row in rows
    ]
    head = f"N = {found['points']}, L = {found['labels']}, percent"
    return "\n".join([head, metrics.describe(found["metrics"]), "", *lines])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with command(options.debug):
        found = measured(options)
        print(json.dumps(found, indent=1) if options.json else described(found))


if __name__ == "__main__":
    main()
