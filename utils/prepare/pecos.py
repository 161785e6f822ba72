"""The folders of PECOS and X-Transformer: matrices of scipy, and texts a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.prepare.agreement import copy_texts, same_width
from utils.prepare.folder import Folder
from utils.prepare.writer import SPLITS, Writer

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def prepare_pecos(
    folder: str | Path,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Read a folder of PECOS or X-Transformer.

    It has Y.{trn,tst}.npz and features X.{trn,tst}.npz, texts, or both. Features lie here or in
    tfidf-attnxml/, as in the published eurlex-4k, wiki10-31k, amazoncat-13k, amazon-670k, wiki-500k
    and amazon-3m.

    Texts: X.{trn,tst}.txt, {train,test}_raw_texts.txt (X-Transformer, DEXML's EURLex-4K) or
    raw/{trn,tst}_X.txt; of labels, optionally: output-items.txt, label_map.txt (X-Transformer) or
    raw/Y.txt.
    """
    source = Folder(folder)
    with Writer(out, "pecos", [folder], overwrite) as writer:
        for split in SPLITS:
            path = source.find(f"Y.{split}.npz")
            matrix = _load_matrix(path, "relevance")
            read = matrix.nnz
            matrix.eliminate_zeros()
            writer.put(f"Y.{split}", matrix, read, path)
            features = source.find_optional(f"X.{split}.npz", f"tfidf-attnxml/X.{split}.npz")
            if features is not None:
                writer.put(f"X.{split}", _load_matrix(features, "features"), path=features)
        same_width(writer, folder)
        points = {
            split: (f"X.{split}.txt", f"{long}_raw_texts.txt", f"raw/{split}_X.txt")
            for split, long in SPLITS.items()
        }
        copy_texts(writer, source, points, ("output-items.txt", "label_map.txt", "raw/Y.txt"))
        writer.copy_filters(source)
        return writer.finish(source)


def _load_matrix(path: Path, what: str) -> csr_matrix:
    """Relevance or features: a CSR in float32 with at least one row."""
    from utils.reading.matrices import read_matrix
    from utils.reading.matrix_checks import FEATURES, RELEVANCE

    matrix = read_matrix(path, RELEVANCE if what == "relevance" else FEATURES)
    if not matrix.shape[0]:
        raise InputError(f"{path}: expected at least one row, got shape {matrix.shape}")
    return matrix
