"""The layout of sentence-transformers, written without the package.

It is modules.json and a folder a module.

A bag x = u + R gelu(u), u = s / |s|, s = sum_t w_t e_t over all tokens, special ones too, is made
of stock modules:
  StaticEmbedding  table w_t e_t; takes means, and leaves special tokens out: they come back as the
                   default prompt, at the front, for a bag knows no order; tokenizer.json itself
                   cuts at the same length
  Normalize        means become u
  Dense            [I; -I], GELU, no bias: gelu(u) and gelu(-u)
  Dense            [R + I, -I]: R gelu(u) + gelu(u) - gelu(-u), and gelu(u) - gelu(-u) = u
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from utils.pretrained.sentence_files import GELU, IDENTITY, PROMPT, WHOLE, Weights


@dataclass(frozen=True)
class SentenceModule:
    """One module: its kind, its config.json and its tensors.

    Kinds are Transformer, StaticEmbedding, Pooling, Dense and Normalize.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


def dense(
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = IDENTITY,
) -> SentenceModule:
    """Make activation(x W^T + b), weight [out, in], bias [out] or None."""
    rows, columns = weight.shape
    config = {
        "in_features": columns,
        "out_features": rows,
        "bias": bias is not None,
        "activation_function": activation,
    }
    weights = {"linear.weight": weight}
    if bias is not None:
        weights["linear.bias"] = bias
    return SentenceModule("Dense", config, weights)


def pooling(width: int, mode: str) -> SentenceModule:
    """Pool by `cls` or `mean` over token states of `width` dimensions."""
    return SentenceModule(
        "Pooling",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": mode == "cls",
            "pooling_mode_mean_tokens": mode == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )


def residual(weight: Tensor) -> list[SentenceModule]:
    """Make u + R gelu(u) as two Dense modules; R [D, D]."""
    one = torch.eye(len(weight))
    return [
        dense(torch.cat([one, -one]), activation=GELU),
        dense(torch.cat([weight + one, -one], 1)),
    ]


def write_sentence_modules(
    folder: Path, modules: Sequence[SentenceModule], prompt: str, label_prompt: str
) -> None:
    """Write modules.json and what it names.

    Args:
        folder: holds the first module's files already.
        prompt: put before every text of a point.
        label_prompt: put before every text of a label.
    """
    listed = [_write_module(folder, number, module) for number, module in enumerate(modules)]
    _write(folder / "modules.json", listed)
    if modules[0].config:
        _write(folder / "sentence_bert_config.json", modules[0].config)
    prompts = {}
    if prompt or label_prompt:
        prompts = {"query": prompt, "document": label_prompt, PROMPT: prompt}
    whole = {
        "prompts": prompts,
        "default_prompt_name": PROMPT if prompts else None,
        "similarity_fn_name": "cosine" if modules[-1].kind == "Normalize" else "dot",
    }
    _write(folder / WHOLE, whole)


def _write_module(
    folder: Path,
    number: int,
    module: SentenceModule,
) -> dict[str, Any]:
    """Write the files of one module, and return what modules.json says of it."""
    path = f"{number}_{module.kind}" if number else ""
    own_folder = folder / path
    own_folder.mkdir(exist_ok=True)
    if number and module.kind != "Normalize":
        _write(own_folder / "config.json", module.config)
    if module.weights:
        tensors = {name: t.detach().cpu().contiguous() for name, t in module.weights.items()}
        save_file(tensors, own_folder / "model.safetensors")
    return {
        "idx": number,
        "name": str(number),
        "path": path,
        "type": f"sentence_transformers.models.{module.kind}",
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
