"""One small data set in every format that utils.prepare reads, for its tests."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from utils.prepare.command import Source, main

ROOT = Path(__file__).resolve().parents[2]
# [3, 4]; point 1 has no label
Y_TRN = np.array([[0, 1, 0, 0.5], [0, 0, 0, 0], [1, 0, 0, 0]], np.float32)
Y_TST = np.array([[0, 0, 1, 1], [0, 1, 0, 0]], np.float32)  # [2, 4]; label 2 is in test alone
TEXTS = {"trn": ["alpha", "", "b\u00e9ta"], "tst": ["gamma", "delta"]}
LABELS = ["zero", "one", "two", "three"]


def write(path: Path, lines: list[str], end: str = "\n", zipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def read(path: Path) -> list[str]:
    data = path.read_bytes().decode()
    assert data.endswith("\n")
    return data[:-1].split("\n")


def error_of(words: list[str]) -> str:
    """The one line that the command says of a user's mistake, with exit code 1."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = stop.value.code
    assert isinstance(said, str)  # which exits with 1
    assert said.startswith("error: ") and "\n" not in said
    return said


def check(out: Path, labels: list[str] | None = LABELS) -> None:
    """`out` holds the example above."""
    for split, expected in (("trn", Y_TRN), ("tst", Y_TST)):
        matrix = sparse.load_npz(out / f"Y.{split}.npz")
        assert matrix.format == "csr" and matrix.dtype == np.float32 and matrix.has_canonical_format
        np.testing.assert_array_equal(matrix.toarray(), expected)
        assert matrix.nnz == np.count_nonzero(expected)
        assert read(out / "raw" / f"{split}_X.txt") == TEXTS[split]
    if labels:
        assert read(out / "raw" / "Y.txt") == labels
    leftovers = [
        path.name for path in out.parent.iterdir() if re.search(r"\.(partial|old)-", path.name)
    ]
    assert not leftovers


def rows_of(matrix: np.ndarray) -> list[list[tuple[int, float]]]:
    return [[(int(j), float(row[j])) for j in np.flatnonzero(row)] for row in matrix]


def repository(folder: Path, zipped: bool = True, **changes: list[str]) -> Path:
    """The example as trn.json.gz, tst.json.gz and lbl.json.gz; `changes` replaces the lines of
    one."""
    files = {"lbl": [json.dumps({"uid": f"u{i}", "title": text}) for i, text in enumerate(LABELS)]}
    for split, matrix in (("trn", Y_TRN), ("tst", Y_TST)):
        files[split] = [
            json.dumps(
                {
                    "uid": "p",
                    "title": text,
                    "content": "",
                    "target_ind": [j for j, _ in row],
                    "target_rel": [v for _, v in row],
                }
            )
            for text, row in zip(TEXTS[split], rows_of(matrix), strict=True)
        ]
    for stem, lines in (files | changes).items():
        write(folder / f"{stem}.json{'.gz' if zipped else ''}", lines, zipped=zipped)
    return folder


def named(folder: Path, end: str = "\n", **changes: list[str]) -> Source:
    """The example as train.jsonl, test.jsonl and labels.tsv, which fixes the order of the
    labels."""
    files = {
        split: [
            json.dumps({"text": text, "labels": [[f"n{j}", v] for j, v in row]})
            for text, row in zip(TEXTS[split], rows_of(matrix), strict=True)
        ]
        for split, matrix in (("trn", Y_TRN), ("tst", Y_TST))
    }
    files["lbl"] = [f"n{i}\t{text}" for i, text in enumerate(LABELS)]
    files |= changes
    return Source(
        write(folder / "train.jsonl", files["trn"], end),
        write(folder / "test.jsonl", files["tst"], end),
        write(folder / "labels.tsv", files["lbl"], end),
    )


def sparse_text(folder: Path, features: bool = True) -> Path:
    """The example as trn_X_Y.txt and friends."""
    for split, matrix in (("trn", Y_TRN), ("tst", Y_TST)):
        rows = [" ".join(f"{j}:{v}" for j, v in row) for row in rows_of(matrix)]
        write(folder / f"{split}_X_Y.txt", [f"{len(rows)} 4", *rows])
        if features:
            write(folder / f"{split}_X_Xf.txt", [f"{len(rows)} 7", *["6:-0.5 0:1.25"] * len(rows)])
        write(folder / f"{split}_X.txt", TEXTS[split])
    write(folder / "lbl.txt", LABELS)
    return folder


def pecos(folder: Path, features: str = ".") -> Path:
    """The example as PECOS's files; the published sets have their features in tfidf-attnxml."""
    (folder / features).mkdir(parents=True)
    for split, matrix in (("trn", Y_TRN), ("tst", Y_TST)):
        sparse.save_npz(folder / f"Y.{split}.npz", sparse.csc_matrix(matrix.astype(np.float64)))
        sparse.save_npz(
            folder / features / f"X.{split}.npz", sparse.csr_matrix(np.eye(len(matrix), 5))
        )
        write(folder / f"X.{split}.txt", TEXTS[split])
    write(folder / "output-items.txt", LABELS)
    return folder
