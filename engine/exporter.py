"""A finished run as a folder that other programs read: `python -m utils.export`.

What was written is read back and compared with the run's own embeddings before the folder appears.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.contract import Ranker, Vectors
from models.encoders.portable import embed, run_onnx, write_encoder, write_onnx
from models.encoders.reader import Reader
from models.loading import load_ranker
from utils.config.config import Config
from utils.data.dataset import check_dataset_folder
from utils.data.label_texts import label_texts
from utils.errors import InputError
from utils.export.model_card import model_card
from utils.files import folder_written_whole
from utils.reading.input_files import present
from utils.run.environment import check_labels
from utils.run.finding import find_run
from utils.runtime import Runtime
from utils.search import flat_index, import_faiss
from utils.text import TextLines

log = logging.getLogger("export")
TOLERANCE = 1e-5  # of embeddings of unit length; of longer ones in proportion
SAMPLE = 32  # test texts that are compared, and these:
EDGE_TEXTS = (
    "",
    " ",
    "naïve café — Москва 東京 🚀 ﬁ",
    "[SEP] a literal [CLS]",
    "CAPITALS\tand a tab",
    "a very long text of many words " * 400,
)


def export(
    run: str | Path, folder: str | Path, onnx: bool = False, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Write `folder` from a finished run.

    Returns:
        the largest differences from the run's embeddings, by who read the folder.
    Raises:
        InputError: no finished run, a folder in use, a method without encoder, a setting that
            cannot be expressed, or what was written gives other embeddings.
    """
    folder = Path(folder).resolve()  # `.` has no name that a neighbour could be made of
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; name a new folder")
    run_folder, ranker, reader = _finished_run(run, overrides)
    encoder = reader.encoder.cpu()
    max_len = ranker.config.data.max_len
    texts = sample_texts(ranker.config)
    differences = {}
    expected = embed(encoder, texts, max_len).numpy()  # before anything touches the tokenizer
    with folder_written_whole(folder) as partial:
        write_encoder(encoder, partial, max_len)
        differences["sentence-transformers"] = _check(expected, read_back(partial, texts), texts)
        _write_labels_of(ranker, partial)
        if onnx:
            write_onnx(encoder, partial / "encoder.onnx")
            found = run_onnx(partial / "encoder.onnx", encoder.point_tokenizer(max_len), texts)
            differences["onnx"] = _check(expected, found, texts)
        files = sorted(path.name for path in partial.iterdir())
        has_bias = {name: kind.bias is not None for name, kind in ranker.vectors().items()}
        card = model_card(ranker.config, run_folder, encoder.dim, has_bias, files)
        (partial / "README.md").write_text(card, encoding="utf-8")
    for name, value in differences.items():
        log.info(
            "%s: largest difference from the run's embeddings of %d texts %.1e",
            name,
            len(texts),
            value,
        )
    return differences


def _finished_run(run: str | Path, overrides: Sequence[str]) -> tuple[Path, Ranker, Reader]:
    """Folder, ranker and reader of a run that can be exported."""
    folder, config = find_run(run, overrides)
    if not (folder / "finished").is_file():
        raise InputError(f"{folder}: the run is not finished; go on with train.py --resume")
    check_dataset_folder(config.dataset_folder)
    check_labels(folder, config.dataset_folder)
    ranker = load_ranker(config, folder, Runtime.start(config))
    if ranker.reader is None:
        raise InputError(
            f"{folder}: method {config.method.name} has no encoder to export; where a stage "
            "before trained one, name that run: RUN/stages/<name>"
        )
    return folder, ranker, ranker.reader


def _write_labels_of(ranker: Ranker, folder: Path) -> None:
    """Write what a ranker ranks labels by, if that is an inner product."""
    vectors = ranker.vectors()
    if vectors:
        labels = label_texts(ranker.config.dataset_folder, ranker.num_labels)
        write_labels(folder, labels, vectors)
        return
    log.info(
        "method %s ranks labels by no inner product: only its encoder is exported",
        ranker.config.method.name,
    )


def sample_texts(config: Config) -> list[str]:
    """Texts of the test split, evenly spread, where there are some, and EDGE_TEXTS."""
    path = config.dataset_folder / "raw" / "tst_X.txt"
    if not present(path):
        return list(EDGE_TEXTS)
    lines = TextLines(path)
    step = max(1, len(lines) // SAMPLE)
    return [*(lines[row] for row in range(0, len(lines), step)), *EDGE_TEXTS]


def read_back(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts [n, D] by sentence-transformers.

    Raises:
        InputError: it is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "the export is checked by the package sentence-transformers, which is not installed: "
            "`pip install sentence-transformers`"
        ) from error
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(list(texts), batch_size=16, show_progress_bar=False)


def _check(
    expected: np.ndarray,
    found: Any,
    texts: Sequence[str],
) -> float:
    """The largest difference of two arrays [n, D]; InputError if it is more than TOLERANCE."""
    difference = np.abs(expected - found).max(1)
    worst = int(difference.argmax())
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference[worst] <= limit:
        raise InputError(
            f"what was written gives other embeddings: they differ by {difference[worst]:.1e} for "
            f"the text {texts[worst][:60]!r}, expected at most {limit:.1e}; nothing is exported"
        )
    return float(difference[worst])


def write_labels(
    folder: Path,
    labels: Sequence[str],
    vectors: Mapping[str, Vectors],
) -> None:
    """Write labels.safetensors, labels.txt and a flat index for each kind of vectors.

    A label's score is E(text) . row + bias: rows are divided by the temperature.
    """
    rows = {
        name: torch.as_tensor(kind.rows).detach().float().cpu() / kind.tau
        for name, kind in vectors.items()
    }
    tensors = {}
    for name, kind in vectors.items():
        key = name if kind.bias is None else f"{name}.weight"
        tensors[key] = rows[name].contiguous()
        if kind.bias is not None:
            tensors[f"{name}.bias"] = kind.bias.detach().float().cpu().contiguous()
    save_file(tensors, folder / "labels.safetensors")
    with open(folder / "labels.txt", "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\n" for text in labels)
    try:
        import_faiss("an index")
    except InputError as error:  # an optional package
        log.info("no index is written: %s", error)
        return
    for name, kind in vectors.items():
        flat_index(rows[name], kind.bias, folder / f"{name}.faiss")
