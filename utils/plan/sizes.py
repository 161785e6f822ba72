"""Sizes of a data set and an encoder: said on the command line, or read from headers alone: no
weights, no text, no matrix."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch

from utils.config.config import Config
from utils.data.dataset import check_dataset_folder
from utils.errors import InputError
from utils.pretrained.location import resolve, word_embedding_names
from utils.pretrained.settings import (
    ENCODER_HALVES,
    empty_transformer,
    text_settings,
    transformer_settings,
)
from utils.pretrained.source import read_source, resolve_encoder
from utils.reading.matrices import matrix_header
from utils.reading.saved import open_tensors
from utils.text import check_text_file

MB, GB = 1 << 20, 1 << 30
LARGEST_SIZE = 1e15
POSITIVES = 5  # labels of a point, of a data set that is not here
# its width's names
FEED_FORWARD = ("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "ffn_dim")


@dataclass(frozen=True)
class Texts:
    count: int
    tokens: int  # of all texts together
    longest: int
    file_bytes: int  # of the token file

    def of(self, texts: int) -> int:
        return ceil(texts * self.tokens / max(self.count, 1))


@dataclass(frozen=True)
class DataShape:
    """What a plan knows of a data set: entries of both relevance matrices, texts by file."""

    points: int
    labels: int
    entries: tuple[int, int]
    texts: dict[str, Texts]  # trn_X, tst_X, Y


@dataclass(frozen=True)
class Assumed:
    """What the command line says in place of what is here; None: what is here.

    Attributes:
        points, labels: of the training split.
        tokens: of a text of the training split on average, special tokens included.
        gpu: GiB of a card.
    """

    points: int | None = None
    labels: int | None = None
    tokens: float | None = None
    gpu: float | None = None

    def __post_init__(self) -> None:
        data = {"points": self.points, "labels": self.labels, "tokens": self.tokens}
        missing = [f"--{name}" for name, value in data.items() if value is None]
        if missing and len(missing) < len(data):
            raise InputError(
                "--points, --labels and --tokens stand for a data set that is not here and go "
                f"together; missing: {', '.join(missing)}"
            )
        for name, value in {**data, "gpu": self.gpu}.items():
            if value is not None and not 0 < value < LARGEST_SIZE:
                raise InputError(f"--{name}: expected a number above 0, got {value:g}")

    def shape(self, config: Config) -> DataShape | None:
        """Return the data set that was said; None where none was.

        A text has at most `data.max_len` tokens, and some have as many. The test split has a fifth
        of the training points, a point POSITIVES labels, a label's text as many tokens as a point's
        (at most `data.label_max_len`).
        """
        if self.points is None or self.labels is None or self.tokens is None:
            return None
        test = max(self.points // 5, 1)
        data = config.data
        longest = {
            "trn_X": data.max_len,
            "tst_X": data.max_len,
            "Y": data.label_max_len or data.max_len,
        }
        counts = {"trn_X": self.points, "tst_X": test, "Y": self.labels}
        texts = {
            name: _even_texts(count, self.tokens, longest[name]) for name, count in counts.items()
        }
        entries = (self.points * POSITIVES, test * POSITIVES)
        return DataShape(self.points, self.labels, entries, texts)


def _even_texts(count: int, mean: float, longest: int) -> Texts:
    mean = min(mean, longest)
    return Texts(count, int(mean * count), longest, int((2 * mean + 8) * count))


def data_shape(config: Config) -> DataShape:
    """Read the shape of the data set that is here from headers and the first lines of texts.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    folder = config.dataset_folder
    check_dataset_folder(folder)
    data = config.data
    points, labels, entries = matrix_header(folder / "Y.trn.npz")
    test_points, _, test_entries = matrix_header(folder / "Y.tst.npz")
    cache = Path(data.token_cache) if data.token_cache else folder / "tokens"
    longest = {
        "trn_X": data.max_len,
        "tst_X": data.max_len,
        "Y": data.label_max_len or data.max_len,
    }
    texts: dict[str, Texts] = {}
    for name, count in {"trn_X": points, "tst_X": test_points, "Y": labels}.items():
        path = folder / "raw" / f"{name}.txt"
        if name == "Y" and not path.exists():  # labels need not have texts
            texts[name] = Texts(0, 0, 0, 0)
        else:
            texts[name] = text_sizes(path, count, longest[name], cache)
    return DataShape(points, labels, (entries, test_entries), texts)


@dataclass(frozen=True)
class Encoder:
    dense: int  # parameters
    largest: int  # of them in the largest tensor
    width: int
    dim: int  # D
    table: int = 0  # rows of the row-sparse table
    layers: int = 0  # 0 = bag
    ffn: int = 0
    heads: int = 0
    dropout: float = 0.0


def text_sizes(path: Path, count: int, max_len: int, cache: Path) -> Texts:
    """From a token file of this text and length if there is one, else from the first lines at 4
    bytes a token."""
    check_text_file(path)
    size = path.stat().st_size
    for name in sorted(cache.glob(f"{path.name}-*.json")):
        try:
            info = {"max_len": None, "stat": [None], **json.loads(name.read_text())}
        except (OSError, ValueError):  # half written or foreign: the run will make it anew
            continue
        offsets = name.with_name(name.stem + ".offsets.npy")
        if info["max_len"] == max_len and info["stat"][0] == size and offsets.is_file():
            longest = int(np.diff(np.load(offsets, mmap_mode="r")).max(initial=1))
            itemsize = np.dtype(info["dtype"]).itemsize
            return Texts(
                count, info["tokens"], longest, info["tokens"] * itemsize + info["offsets_bytes"]
            )
    with open(path, "rb") as file:
        # line lengths, not the text
        ends = np.flatnonzero(np.frombuffer(file.read(16 * MB), np.uint8) == 10)
    tokens = (
        np.minimum(np.diff(ends, prepend=-1) / 4 + 2, max_len) if len(ends) else np.array([max_len])
    )
    mean = float(tokens.mean())
    return Texts(count, int(mean * count), ceil(tokens.max()), int((2 * mean + 8) * count))


def encoder_sizes(config: Config) -> Encoder:
    """Parameters and shapes; a transformer is built without storage, its weights are not read."""
    section = resolve_encoder(config.encoder)
    remote = {"trust_remote_code": section.trust_remote_code}
    projection = section.projection
    if section.name == "bag":
        rows, width = _table_shape(section.init, remote)
        tensors = [
            projection * width if projection else 0,
            width * width if section.residual else 0,
        ]
        return Encoder(
            sum(tensors) + (projection or 0), max(tensors), width, projection or width, rows
        )
    settings = transformer_settings(section, read_source(section.name).architecture)
    with torch.device("meta"):
        parameters = empty_transformer(settings, section.trust_remote_code).named_parameters()
    counts = [p.numel() for name, p in parameters if not name.startswith("pooler.")]
    width = settings.hidden_size
    rates = [
        getattr(settings, n, None)
        for n in ("attention_probs_dropout_prob", "attention_dropout", "dropout_rate")
    ]
    dropout = max((r for r in rates if r), default=0.0)
    ffn = next((v for n in FEED_FORWARD if (v := getattr(settings, n, None))), 4 * width)
    layers = settings.num_hidden_layers
    if settings.is_encoder_decoder and settings.model_type not in ENCODER_HALVES:
        layers += settings.decoder_layers
    # none where there is no attention: Mamba
    heads = getattr(settings, "num_attention_heads", 0)
    return Encoder(
        sum(counts) + (projection * (width + 1) if projection else 0),
        max(counts),
        width,
        projection or width,
        0,
        layers,
        ffn,
        heads,
        dropout,
    )


def _table_shape(source: str, remote: dict) -> tuple[int, int]:
    for path in (
        Path(resolve(source)) / "model.safetensors",
        Path(resolve(source)) / "head.safetensors",
    ):
        if not path.is_file():
            continue
        with open_tensors(path) as file:  # of a transformer, of StaticEmbedding, of a run's bag
            tensors = list(file.keys())
            names = word_embedding_names(tensors)
            names += [name for name in tensors if name in ("embedding.weight", "table")]
            if len(names) == 1:
                return tuple(file.get_slice(names[0]).get_shape())
    settings = text_settings(source, **remote)
    return settings.vocab_size, settings.hidden_size
