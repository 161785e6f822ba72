"""A finished run as a folder that other programs read.

    python -m utils.export RUN DIR               # RUN: folder or its config.yaml; DIR: new or empty
    # and encoder.onnx (pip install onnx onnxruntime onnxscript)
    python -m utils.export RUN DIR --onnx
    python -m utils.export RUN DIR --data.root ../Datasets

DIR then holds
  the encoder            in the layout of sentence-transformers: SentenceTransformer(DIR)
  labels.safetensors     what labels are ranked by, score = E(text) . row + bias:
                         `embeddings` [L, D] of label encoders; `classifier.weight` [L, D],
                             `classifier.bias` [L] of
                         classifiers, divided by their temperature
  labels.txt             the labels' texts, one a line, in the order of these rows
  embeddings.faiss, classifier.faiss       the same as flat inner product indexes (pip install
      faiss-cpu); a bias is one
                         more dimension, in which a query is 1
  encoder.onnx           input_ids and attention_mask [texts, tokens] int64 -> sentence_embedding
      [texts, D] float32
  README.md              model card: data, metrics, config, licences, usage
What was written is read back and compared with the run's own embeddings before DIR appears. Linear
trees have no encoder and cannot be exported; of methods whose ranking is no inner product (elias)
only the encoder is.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.commands import add_debug_option, command
from utils.config.command_line import parse_words
from utils.config.config import Config
from utils.config.plugins import add_plugin_option
from utils.errors import InputError
from utils.files import folder_written_whole
from utils.run.environment import check_labels
from utils.run.finding import find_run
from utils.run.logs import start_logging

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

    Returns: the largest differences from the run's embeddings, by format.

    Raises:
        InputError: no finished run, a folder in use, a method without encoder, a setting that
            cannot be expressed, or what was written gives other embeddings.
    """
    import torch

    from models.encoders.portable import embed, run_onnx, write_encoder, write_onnx

    # here: utils/ serves models/, not the other way round
    from models.loading import load_method
    from utils import distributed
    from utils.data.dataset import check_dataset_folder
    from utils.data.label_texts import label_texts

    folder = Path(folder).resolve()  # `.` has no name that a neighbour could be made of
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; name a new folder")
    run_folder, config = find_run(run, overrides)
    if not (run_folder / "finished").is_file():
        raise InputError(f"{run_folder}: the run is not finished; go on with train.py --resume")
    check_dataset_folder(config.dataset_folder)
    check_labels(run_folder, config.dataset_folder)
    torch.set_num_threads(distributed.cpu_threads(config.run.threads))
    method = load_method(config, run_folder).eval()
    encoder = method.text_encoder
    max_len = config.data.max_len
    if encoder is None:
        raise InputError(
            f"{run_folder}: method {config.method.name} has no encoder to export; where a stage "
            "before trained one, name that run: RUN/stages/<name>"
        )
    texts = sample_texts(config)
    differences = {}
    # before anything touches the tokenizer's settings
    expected = embed(encoder, texts, max_len).numpy()
    with folder_written_whole(folder) as partial:
        write_encoder(encoder, partial, max_len)
        differences["sentence-transformers"] = _check(expected, read_back(partial, texts), texts)
        labels = label_texts(config.dataset_folder, method.num_labels)
        vectors = method.search_vectors()
        if vectors:
            write_labels(partial, labels, vectors)
        else:
            log.info(
                "method %s ranks labels by no inner product: only its encoder is exported",
                config.method.name,
            )
        if onnx:
            write_onnx(encoder, partial / "encoder.onnx")
            found = run_onnx(partial / "encoder.onnx", encoder.point_tokenizer(max_len), texts)
            differences["onnx"] = _check(expected, found, texts)
        from utils.export.model_card import model_card

        card = model_card(
            config, run_folder, encoder.dim, vectors, sorted(p.name for p in partial.iterdir())
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
    for name, value in differences.items():
        log.info(
            "%s: largest difference from the run's embeddings of %d texts %.1e",
            name,
            len(texts),
            value,
        )
    return differences


def sample_texts(config: Config) -> list[str]:
    """Texts of the test split, evenly spread, and EDGE_TEXTS."""
    from utils.text import TextLines

    lines = TextLines(config.dataset_folder / "raw" / "tst_X.txt")
    step = max(1, len(lines) // SAMPLE)
    return [*(lines[i] for i in range(0, len(lines), step)), *EDGE_TEXTS]


def read_back(folder: Path, texts: Sequence[str]) -> Any:
    """Embeddings of texts [n, D] by sentence-transformers; ValueError if it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "the export is checked by the package sentence-transformers, which is not installed: "
            "`pip install sentence-transformers`"
        ) from error
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(
        list(texts), batch_size=16, show_progress_bar=False
    )


def _check(expected: Any, found: Any, texts: Sequence[str]) -> float:
    """The largest difference of two arrays [n, D]; ValueError if it is more than TOLERANCE."""
    import numpy as np

    difference = np.abs(expected - found).max(1)
    worst = int(difference.argmax())
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference[worst] <= limit:
        raise InputError(
            f"what was written gives other embeddings: they differ by {difference[worst]:.1e} for "
            f"the text {texts[worst][:60]!r}, expected at most {limit:.1e}; nothing is exported"
        )
    return float(difference[worst])


def write_labels(folder: Path, labels: Sequence[str], vectors: dict[str, tuple[Any, Any]]) -> None:
    """Write labels.safetensors, labels.txt and an index for each kind of vectors.

    Args:
        vectors: name -> ([L, D], bias [L] or None).
    """
    import torch
    from safetensors.torch import save_file

    from utils.search import flat_index, import_faiss

    tensors = {}
    for name, (rows, bias) in vectors.items():
        key = name if bias is None else f"{name}.weight"
        tensors[key] = torch.as_tensor(rows).detach().float().cpu().contiguous()
        if bias is not None:
            tensors[f"{name}.bias"] = bias.detach().float().cpu().contiguous()
    save_file(tensors, folder / "labels.safetensors")
    with open(folder / "labels.txt", "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\n" for text in labels)
    try:
        import_faiss("an index")
    except ValueError as error:  # an optional package
        log.info("no index is written: %s", error)
        return
    for name, (rows, bias) in vectors.items():
        flat_index(rows, bias, folder / f"{name}.faiss")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder or its config.yaml")
    parser.add_argument("folder", help="where to write; new or empty")
    parser.add_argument("--onnx", action="store_true", help="write encoder.onnx too")
    add_plugin_option(parser)
    add_debug_option(parser)
    options, overrides = parse_words(parser, words)
    start_logging()
    with command(options.debug, "interrupted; nothing was written"):
        export(options.run, options.folder, options.onnx, overrides)
    print(f"exported: {options.folder}")
