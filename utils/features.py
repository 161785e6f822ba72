"""TF-IDF features of a data set: X.{trn,tst}.npz where it comes with them, built from the raw text where not.

    python -m utils.features Datasets/LF-DebianTitles-small

1- and 2-grams of words, counted on the training texts, rows L2-normalised; Xf.txt holds `term <TAB> idf`, a line a
column, so that new texts get the same features.
"""
from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils.console import show_anything
from utils.files import write_text, written_whole
from utils.text import count_lines, iter_lines
from utils.text_features import vectorizer

log = logging.getLogger(__name__)
MIN_DOCUMENTS, MAX_TERMS = 2, 500_000


def build_tfidf(folder: str | Path) -> None:
    """Write X.trn.npz, X.tst.npz and Xf.txt of a data set; texts are streamed, only the features are held.

    Raises:
        ValueError: a text file is missing or not UTF-8, or no training text has a word.
    """
    folder = Path(folder)
    texts = {split: folder / "raw" / f"{split}_X.txt" for split in ("trn", "tst")}
    words = min(MIN_DOCUMENTS, count_lines(texts["trn"]))      # a set of one text keeps its words
    tfidf = vectorizer(min_df=words, max_features=MAX_TERMS)
    log.info("building TF-IDF features of %s", folder)
    try:
        features = {"trn": tfidf.fit_transform(iter_lines(texts["trn"]))}
    except ValueError as error:
        if "vocabulary" not in str(error) and "no terms" not in str(error).lower():
            raise
        raise ValueError(f"{texts['trn']}: no word occurs in {words} texts, so there are no TF-IDF features") from None
    features["tst"] = tfidf.transform(iter_lines(texts["tst"]))
    for split, matrix in features.items():
        with written_whole(folder / f"X.{split}.npz") as partial:
            sp.save_npz(partial, matrix.tocsr())
    terms = zip(tfidf.get_feature_names_out(), tfidf.idf_, strict=True)
    write_text(folder / "Xf.txt", "".join(f"{term}\t{idf:.9g}\n" for term, idf in terms))


def load_features(folder: str | Path) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """(train [N, F], test [N, F]) float32 CSR, built first if the data set has none.

    Checked against the texts, or the relevance where a data set has features alone.
    """
    folder = Path(folder)
    if not all((folder / f"X.{split}.npz").is_file() for split in ("trn", "tst")):
        build_tfidf(folder)
    matrices = []
    for split in ("trn", "tst"):
        path, texts = folder / f"X.{split}.npz", folder / "raw" / f"{split}_X.txt"
        try:
            matrix = sp.load_npz(path).tocsr().astype(np.float32)
            matrix.check_format(full_check=True)      # kernels do not look where an index points
        except Exception as error:      # numpy, zipfile and scipy each have their own for a damaged file
            raise ValueError(f"{path}: not a scipy sparse matrix ({error})") from error
        if texts.exists():
            other, rows = f"raw/{split}_X.txt has {{:,}} lines", count_lines(texts)
        else:
            other, rows = f"Y.{split}.npz has {{:,}} rows", sp.load_npz(folder / f"Y.{split}.npz").shape[0]
        if matrix.shape[0] != rows:
            raise ValueError(f"{path} has {matrix.shape[0]:,} rows but {other.format(rows)}")
        if not np.isfinite(matrix.data).all():
            raise ValueError(f"{path}: a feature is NaN or infinite")
        matrices.append(matrix)
    if matrices[0].shape[1] != matrices[1].shape[1]:
        raise ValueError(f"{folder}: X.trn.npz has {matrices[0].shape[1]:,} columns, "
                         f"X.tst.npz {matrices[1].shape[1]:,}")
    return matrices[0], matrices[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="data set folder")
    show_anything()
    folder = parser.parse_args().folder
    try:
        trn, tst = load_features(folder)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{folder}: X.trn {trn.shape[0]:,} x {trn.shape[1]:,}, X.tst {tst.shape[0]:,} x {tst.shape[1]:,}")


if __name__ == "__main__":
    main()
