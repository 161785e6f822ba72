"""The made data set, encoder and config on which every method trains in a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

WORDS = tuple(
    "editor shell image network audio video game kernel python java compiler font mail browser "
    "database archive printer cluster sensor robot".split()
)
ALIASES = tuple(
    "vim bash photo socket sound movie chess linux snake coffee gcc glyph letter web table zip "
    "paper node probe arm".split()
)  # what a text says where it means the label: to be learned


def write_dataset(
    folder: Path,
    points: int = 60,
    test_points: int = 20,
    labels: int = 20,
    seed: int = 0,
    *,
    filters: bool = True,
) -> Path:
    """Write a data set whose texts name their labels by other words, so that a model can learn.

    Args:
        filters: every fifth point has a pair that is not counted.
    Returns:
        `folder`.
    """
    rng = np.random.default_rng(seed)
    (folder / "raw").mkdir(parents=True)
    aliases = _enough(ALIASES, labels)
    _write_lines(folder / "raw" / "Y.txt", _enough(WORDS, labels))
    for split, long, count in (("trn", "train", points), ("tst", "test", test_points)):
        chosen = [
            sorted(rng.choice(labels, min(labels, int(rng.integers(1, 4))), replace=False))
            for _ in range(count)
        ]
        texts = ["the " + " and ".join(aliases[i] for i in row) + " tool" for row in chosen]
        _write_lines(folder / "raw" / f"{split}_X.txt", texts)
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in chosen])])
        indices = np.concatenate(chosen)
        values = rng.uniform(0.5, 1.5, len(indices)).astype(np.float32)
        matrix = sp.csr_matrix((values, indices, indptr), shape=(count, labels))
        sp.save_npz(folder / f"Y.{split}.npz", matrix)
        if filters and labels > 3:
            pairs = [
                (row, next(i for i in range(labels) if i not in chosen[row]))
                for row in range(0, count, 5)
            ]
            lines = [f"{row} {label}" for row, label in pairs]
            _write_lines(folder / f"filter_labels_{long}.txt", lines)
    return folder


def _enough(words: Sequence[str], count: int) -> list[str]:
    """So many names, the words again with a number where there are more."""
    names = []
    for number in range(count):
        turn, place = divmod(number, len(words))
        names.append(f"{words[place]} {turn}" if turn else words[place])
    return names


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def write_encoder(folder: Path) -> str:
    """Write a made transformer of one layer and 16 dimensions, with the tokenizer of minilm."""
    from transformers import BertConfig, BertModel

    from utils.pretrained.location import load_tokenizer

    torch.manual_seed(0)
    settings = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(settings).save_pretrained(folder)
    load_tokenizer("minilm").save_pretrained(folder)
    return str(folder)


def tiny_sections(
    root: Path, encoder: str, folder: Path, sections: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Sections of a config on the data set `tiny` under `root`, with those of `sections` laid over.

    Args:
        encoder: folder of `write_encoder`.
        folder: of the run.
    """
    base: dict[str, dict[str, Any]] = {
        "data": {"root": str(root), "name": "tiny", "max_len": 16, "val_fraction": 0.2},
        "encoder": {"name": "bag", "init": encoder},
        "method": {"name": "dexml"},
        "optim": {"lr": 0.05},
        "train": {"epochs": 2, "batch_size": 16},
        "run": {"dir": str(folder), "tensorboard": False, "threads": 2, "keep_last": True},
    }
    return {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
