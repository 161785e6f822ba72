"""Encoders of random weights and data sets of random words, as the project reads them from disk.

The tokenizer knows whole words: a text of n words has n + 2 tokens. Nothing here is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from benchmarks.gpu.sizes import EncoderSize, GraphSize, SetSize

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
LONGEST = 512  # tokens that an encoder takes


def vocabulary(size: int) -> list[str]:
    """So many words of three letters, the special ones before them.

    Those of a smaller vocabulary are the first of a larger one.
    """
    base = len(LETTERS)
    words = []
    for number in range(size - len(SPECIAL)):
        first, rest = divmod(number, base * base)
        second, third = divmod(rest, base)
        words.append(LETTERS[first % base] + LETTERS[second] + LETTERS[third])
    return [*SPECIAL, *words]


# -------------------------------- encoders


def write_encoder(folder: Path, size: EncoderSize) -> None:
    """Write tokenizer and settings of a BERT, and its weights where they are to be kept."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, vocabulary(size.words))
    settings = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": size.words,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": size.inner,
        "max_position_embeddings": LONGEST,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    if size.kept:
        draw_weights(folder)


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """Write a tokenizer of whole words, in files that transformers 4 and 5 read."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": LONGEST,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=1) + "\n")


def draw_weights(folder: Path) -> None:
    """Draw an encoder's weights and write them beside its settings, if they are not there."""
    import torch
    from transformers import BertConfig, BertModel

    if (folder / "model.safetensors").exists():
        return
    torch.manual_seed(0)
    settings = BertConfig.from_pretrained(folder)
    BertModel(settings, add_pooling_layer=False).save_pretrained(folder)


# -------------------------------- data sets


def write_set(folder: Path, size: SetSize, words: int) -> None:
    """Write a data set whose texts begin with words of their labels, so that it can be learned.

    Args:
        words: of the vocabulary that texts are drawn from, special ones included.
    """
    rng = np.random.default_rng(0)
    (folder / "raw").mkdir(parents=True)
    known = np.array(vocabulary(words)[len(SPECIAL) :])
    of_labels = rng.integers(len(known), size=(size.labels, size.label_words))
    full = np.full(size.labels, size.label_words)
    _write_texts(folder / "raw" / "Y.txt", known[of_labels], full)
    for split, count in (("trn", size.points), ("tst", size.test_points)):
        # a few labels have many points
        chosen = (size.labels * rng.random((count, size.positives)) ** 2).astype(np.int64)
        own = of_labels[chosen].reshape(count, -1)
        noise = rng.integers(len(known), size=(count, size.words))
        texts = np.concatenate([own, noise], axis=1)[:, : size.words]
        lengths = rng.integers(size.least_words, size.words + 1, size=count)
        _write_texts(folder / "raw" / f"{split}_X.txt", known[texts], lengths)
        sp.save_npz(folder / f"Y.{split}.npz", _relevance(chosen, size.labels))


def _write_texts(path: Path, words: np.ndarray, lengths: np.ndarray) -> None:
    """Write a line for each row of words [n, most], cut to its length."""
    with open(path, "w", encoding="utf-8") as file:
        for row, length in zip(words, lengths, strict=True):
            file.write(" ".join(row[:length]) + "\n")


def _relevance(chosen: np.ndarray, labels: int) -> sp.csr_matrix:
    """The labels [n, positives] of some points as a matrix [n, L] of ones."""
    count, positives = chosen.shape
    indptr = np.arange(0, chosen.size + 1, positives)
    ones = np.ones(chosen.size, np.float32)
    matrix = sp.csr_matrix((ones, chosen.ravel(), indptr), shape=(count, labels))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def write_graph(path: Path, size: GraphSize, labels: int) -> None:
    """Write a graph of ELIAS of random edges [C, L], if it is not there."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    chosen = rng.integers(labels, size=(size.clusters, size.edges))
    sp.save_npz(path, _relevance(chosen, labels), compressed=False)
