"""The layout of sentence-transformers: modules.json and a folder a module, written and read without the package.

A bag x = u + R gelu(u), u = s / |s|, s = sum_t w_t e_t over all tokens, special ones too, is made of stock modules:
  StaticEmbedding  table w_t e_t; takes means, and leaves special tokens out: they come back as the default prompt,
                   at the front, for a bag knows no order; tokenizer.json itself cuts at the same length
  Normalize        means become u
  Dense            [I; -I], GELU, no bias: gelu(u) and gelu(-u)
  Dense            [R + I, -I]: R gelu(u) + gelu(u) - gelu(-u), and gelu(u) - gelu(-u) = u
"""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.pretrained import file_of, load_tokenizer

Weights = dict[str, Tensor]
IDENTITY, GELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"
PROMPT = "special tokens"      # name of the prompt that gives a bag its special tokens


@dataclass(frozen=True)
class SentenceModule:
    """One module: kind (Transformer, StaticEmbedding, Pooling, Dense, Normalize), its config.json and its tensors."""
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


# ---------------------------------------------------------------- writing

def dense(weight: Tensor, bias: Tensor | None = None, activation: str = IDENTITY) -> SentenceModule:
    """activation(x W^T + b), weight [out, in], bias [out] or None."""
    rows, columns = weight.shape
    config = {"in_features": columns, "out_features": rows, "bias": bias is not None, "activation_function": activation}
    return SentenceModule("Dense", config, {"linear.weight": weight, **({} if bias is None else {"linear.bias": bias})})


def pooling(width: int, mode: str) -> SentenceModule:
    """`cls` or `mean` over token states of `width` dimensions."""
    return SentenceModule("Pooling", {"word_embedding_dimension": width, "pooling_mode_cls_token": mode == "cls",
                                      "pooling_mode_mean_tokens": mode == "mean", "pooling_mode_max_tokens": False,
                                      "pooling_mode_mean_sqrt_len_tokens": False})


def residual(weight: Tensor) -> list[SentenceModule]:
    """u + R gelu(u) as two Dense modules; R [D, D]."""
    one = torch.eye(len(weight))
    return [dense(torch.cat([one, -one]), activation=GELU), dense(torch.cat([weight + one, -one], 1))]


def write_sentence_modules(folder: Path, modules: Sequence[SentenceModule], prompt: str = "") -> None:
    """modules.json and what it names, into a folder that holds the first module's files already."""
    listed = []
    for number, module in enumerate(modules):
        path = f"{number}_{module.kind}" if number else ""
        listed.append({"idx": number, "name": str(number), "path": path,
                       "type": f"sentence_transformers.models.{module.kind}"})
        to = folder / path
        to.mkdir(exist_ok=True)
        if number and module.kind != "Normalize":
            _write(to / "config.json", module.config)
        if module.weights:
            save_file({n: t.detach().cpu().contiguous() for n, t in module.weights.items()}, to / "model.safetensors")
    _write(folder / "modules.json", listed)
    if modules[0].config:
        _write(folder / "sentence_bert_config.json", modules[0].config)
    prompts = {"query": prompt, "document": prompt, PROMPT: prompt} if prompt else {}
    _write(folder / "config_sentence_transformers.json",
           {"prompts": prompts, "default_prompt_name": PROMPT if prompt else None, "similarity_fn_name":
            "cosine" if modules[-1].kind == "Normalize" else "dot"})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- reading

def read_sentence_modules(name: str) -> tuple[dict[str, Any], bool, Callable[[], Weights]]:
    """(settings of section `encoder`, whether it is a bag, reader of a TextEncoder's tensors beside the transformer).

    Raises:
        ValueError: a module, or an option of one, has no counterpart in models/encoder.py.
    """
    where = f"encoder '{name}': modules.json"
    try:
        listed = [(m["type"].rpartition(".")[2], m["path"]) for m in _json(name, "modules.json")]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where}: damaged ({error})") from error
    listed = [(kind, path) for kind, path in listed if kind != "Dropout"]
    kinds = [kind for kind, _ in listed]
    layers = [_Dense(name, path) for kind, path in listed if kind == "Dense"]
    if kinds[:2] == ["Transformer", "Pooling"] and kinds[2:] in ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"]):
        for layer in layers:
            layer.expect(IDENTITY)
        if (_json(name, "sentence_bert_config.json") or {}).get("do_lower_case") and not _lowers(name):
            raise ValueError(f"encoder '{name}': sentence_bert_config.json: do_lower_case is true, but its tokenizer "
                             "keeps capitals; not supported")
        return {"pooling": _pooling(name, listed[1][1]), "normalize": kinds[-1] == "Normalize",
                **({"projection": layers[0].rows} if layers else {})}, False, lambda: _projection(layers)
    bare = [kind for kind in kinds if kind != "Normalize"]
    gelu = bool(layers) and layers[0].config.get("activation_function") == GELU
    if bare[:1] == ["StaticEmbedding"] and set(bare[1:]) <= {"Dense"} and len(layers) in ((0, 2, 3) if gelu else (0,)) \
            and (not gelu or kinds[1] == "Normalize"):
        for layer, activation in zip(layers, (GELU, IDENTITY, IDENTITY), strict=False):
            layer.expect(activation)
        settings = {"normalize": kinds[-1] == "Normalize", **({"projection": layers[2].rows} if layers[2:] else {})}
        return settings, True, lambda: _bag(name, listed[0][1], layers)
    raise ValueError(f"{where}: modules {', '.join(kinds)} have no counterpart; expected Transformer, Pooling and then "
                     "Dense or Normalize or both, or StaticEmbedding and Normalize, or what utils.export writes")


def _json(name: str, path: str) -> Any:
    found = file_of(name, path)
    return None if found is None else json.loads(found.read_text(encoding="utf-8"))


def _lowers(name: str) -> bool:
    normalizer = load_tokenizer(name).backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _pooling(name: str, path: str) -> str:
    config = _json(name, f"{path}/config.json") or {}
    older = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = config.get("pooling_mode") or older
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes not in (["cls"], ["mean"]):
        raise ValueError(f"encoder '{name}': {path}/config.json: pooling {', '.join(modes) or 'none'}, expected cls or "
                         "mean")
    return modes[0]


class _Dense:
    """A Dense module that is read where it is needed. Attributes: config; rows, its output dimensions."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path
        self.config = _json(name, f"{path}/config.json") or {}
        self.rows = self.config.get("out_features")

    def expect(self, activation: str) -> None:
        found = self.config.get("activation_function", "torch.nn.modules.activation.Tanh")
        if found != activation or self.config.get("use_residual") or \
                self.config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            raise ValueError(f"encoder '{self._name}': {self._path}/config.json: expected activation {activation} and "
                             f"no residual or other input, got {self.config}")

    def weights(self) -> Weights:
        path = file_of(self._name, f"{self._path}/model.safetensors")
        if path is None:
            raise ValueError(f"encoder '{self._name}': {self._path}/model.safetensors is missing")
        return {n.removeprefix("linear."): t.float() for n, t in load_file(path).items()}


def _projection(layers: Sequence[_Dense]) -> Weights:
    if not layers:
        return {}
    found = layers[-1].weights()
    return {"projection.weight": found["weight"],
            "projection.bias": found.get("bias", torch.zeros(len(found["weight"])))}


def _bag(name: str, path: str, layers: Sequence[_Dense]) -> Weights:
    inside = f"{path}/model.safetensors" if path else "model.safetensors"
    found = file_of(name, inside)
    table = load_file(found).get("embedding.weight") if found else None
    if table is None:
        raise ValueError(f"encoder '{name}': {inside} with embedding.weight is missing")
    config, tokenizer = _json(name, "config_sentence_transformers.json") or {}, load_tokenizer(name)
    weights, special = torch.ones(len(table), 1), tokenizer("")["input_ids"]
    prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name") or "", "")
    if not prompt or sorted(tokenizer(prompt, add_special_tokens=False)["input_ids"]) != sorted(special):
        weights[special] = 0.0      # StaticEmbedding leaves them out; our tokens have them
    head = {"table": table.float(), "token_weights": weights}
    if layers:
        first, second = layers[0].weights()["weight"], layers[1].weights()["weight"]
        one = torch.eye(table.shape[1])
        if not torch.equal(first, torch.cat([one, -one])) or not torch.equal(second[:, len(one):], -one) \
                or "bias" in layers[0].weights() or "bias" in layers[1].weights():
            raise ValueError(f"encoder '{name}': its Dense modules are not the residual layer that utils.export writes")
        head["residual.weight"] = second[:, :len(one)] - one
    return {**head, **_projection(layers[2:])}
