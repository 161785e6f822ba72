"""A finished run as a folder that answers elsewhere: `python -m utils.export`.

Where it has an encoder, other programs read the folder too. What was written is read back and
compared with the run's own answers and embeddings before the folder appears.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from engine.exported_run import compare_answers, write_answering
from engine.predictor import Predictor
from models.contract import Ranker, Vectors
from models.encoders.portable import embed, run_onnx, write_encoder, write_onnx
from models.encoders.text_encoder import TextEncoder
from utils.config.config import Config
from utils.errors import InputError
from utils.export.model_card import Contents, model_card
from utils.export.portable_config import without_folders
from utils.files import (
    check_new_folder,
    folder_written_whole,
    share_disk,
    size_of,
    write_json,
)
from utils.reading.input_files import present
from utils.reading.saved import read_json
from utils.run.finding import find_run
from utils.run.folder import ESTIMATOR
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

    Args:
        run: its folder, or its config.yaml.
        folder: new or empty.
        onnx: write encoder.onnx too.
        overrides: of the config, as on the command line; the exported folder has them.
    Returns:
        the largest differences from the run's answers and embeddings, by who read the folder.
    Raises:
        InputError: no finished run, a folder in use, a run that cannot answer new texts, `onnx` of
            one without encoder, or what was written answers otherwise.
    """
    folder = Path(folder).resolve()  # `.` has no name that a neighbour could be made of
    check_new_folder(folder)
    predictor = _finished_run(run, overrides)
    ranker = predictor.ranker
    texts = sample_texts(predictor.config)
    with folder_written_whole(folder) as partial:
        write_answering(predictor.folder, predictor.config, partial)
        _hide_places(partial / ESTIMATOR)
        differences = {"XMCKit": compare_answers(predictor, partial, texts)}
        log.info("answers of %d texts differ by at most %.1e", len(texts), differences["XMCKit"])
        if ranker.reader is None and onnx:
            raise InputError(f"--onnx: method {predictor.config.method.name} has no encoder")
        if ranker.reader is not None:
            encoder = ranker.reader.encoder.cpu()
            differences |= _write_for_others(ranker, encoder, partial, texts, onnx)
            _link_weights(partial)
        card = model_card(predictor.config, predictor.folder, _contents(ranker, partial))
        (partial / "README.md").write_text(card, encoding="utf-8")
    megabytes = [size_of(part) / 1e6 for part in (folder, folder / "model")]
    log.info("%s: %.1f MB, of which model/ %.1f MB", folder, *megabytes)
    return differences


def _hide_places(path: Path) -> None:
    """Rewrite what `xmckit.XMC` keeps beside its run, if that is there, without absolute paths."""
    if path.is_file():
        write_json(path, without_folders(read_json(path)))


def _contents(ranker: Ranker, folder: Path) -> Contents:
    """What an exported folder holds for the card."""
    files = sorted(path.name for path in folder.iterdir())
    if ranker.reader is None or "modules.json" not in files:
        return Contents(ranker.num_labels, files)
    has_bias = {name: kind.bias is not None for name, kind in ranker.vectors().items()}
    return Contents(ranker.num_labels, files, ranker.reader.encoder.dim, has_bias)


def _finished_run(run: str | Path, overrides: Sequence[str]) -> Predictor:
    """A run that can be exported, opened."""
    folder, _ = find_run(run, overrides)
    if not (folder / "finished").is_file():
        raise InputError(f"{folder}: the run is not finished; go on with train.py --resume")
    return Predictor(run, overrides=overrides)


def _write_for_others(
    ranker: Ranker,
    encoder: TextEncoder,
    folder: Path,
    texts: Sequence[str],
    onnx: bool,
) -> dict[str, float]:
    """Write what other programs read of an encoder and of label vectors.

    Returns:
        the largest differences of embeddings, by who read them.
    """
    max_len = ranker.config.data.max_len
    differences = {}
    expected = embed(encoder, texts, max_len).numpy()  # before anything touches the tokenizer
    if _write_sentence_transformers(encoder, folder, max_len):
        name = "sentence-transformers"
        differences[name] = _check(expected, read_back(folder, texts), texts)
        _write_labels_of(ranker, folder)
    if onnx:
        write_onnx(encoder, folder / "encoder.onnx")
        found = run_onnx(folder / "encoder.onnx", encoder.point_tokenizer(max_len), texts)
        differences["onnx"] = _check(expected, found, texts)
    for name, value in differences.items():
        log.info(
            "%s: largest difference from the run's embeddings of %d texts %.1e",
            name,
            len(texts),
            value,
        )
    return differences


def _write_sentence_transformers(
    encoder: TextEncoder,
    folder: Path,
    max_len: int,
) -> bool:
    """Write the encoder in their layout; say why where it cannot be expressed or checked."""
    try:
        import_sentence_transformers()
        write_encoder(encoder, folder, max_len)
    except InputError as error:
        log.warning("sentence-transformers will not open this folder: %s", error)
        return False
    return True


def _link_weights(folder: Path) -> None:
    """Give weights that `model/` has too, byte for byte, one place on the disk."""
    for path in folder.glob("*.safetensors"):
        share_disk(path, [folder / "model" / path.name])


def _write_labels_of(ranker: Ranker, folder: Path) -> None:
    """Write what a ranker ranks labels by, if that is an inner product."""
    vectors = ranker.vectors()
    if vectors:
        write_labels(folder, vectors)
        return
    log.info(
        "method %s ranks labels by no inner product: other programs read its encoder alone",
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


def import_sentence_transformers() -> type:
    """Return their class of models; InputError where the package is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "their layout is checked by the package sentence-transformers, which is not installed: "
            "`pip install sentence-transformers`"
        ) from error
    return SentenceTransformer


def read_back(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts [n, D] by sentence-transformers."""
    model = import_sentence_transformers()(str(folder), device="cpu", local_files_only=True)
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


def write_labels(folder: Path, vectors: Mapping[str, Vectors]) -> None:
    """Write labels.safetensors and a flat index for each kind of vectors.

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
    try:
        import_faiss("an index")
    except InputError as error:  # an optional package
        log.info("no index is written: %s", error)
        return
    for name, kind in vectors.items():
        flat_index(rows[name], kind.bias, folder / f"{name}.faiss")
