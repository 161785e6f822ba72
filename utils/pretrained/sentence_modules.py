"""The layout of sentence-transformers, written and read without the package.

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

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from utils.errors import InputError
from utils.pretrained.location import added_tokens, file_of, load_tokenizer
from utils.reading.saved import load_tensors, read_json

log = logging.getLogger(__name__)
Weights = dict[str, Tensor]
IDENTITY = "torch.nn.modules.linear.Identity"
GELU = "torch.nn.modules.activation.GELU"
PROMPT = "default"  # name of the prompt that stands before every text
# as SentenceTransformer.encode_document looks for them
LABEL_PROMPTS = ("document", "passage", "corpus")
WHOLE = "config_sentence_transformers.json"
# What sentence_bert_config.json may say: what is read, or held by the transformer itself, or
# changes no embedding.
HONOURED = {
    "max_seq_length",
    "do_lower_case",
    "unpad_inputs",
    "modality_config",
    "module_output_name",
    "backend",
    "cache_dir",
    "transformer_task",
    "model_args",
    "tokenizer_args",
    "config_args",
    "model_kwargs",
    "processor_kwargs",
    "config_kwargs",
}
TASK = "feature-extraction"
ARGUMENTS = (
    "model_args",
    "tokenizer_args",
    "config_args",
    "model_kwargs",
    "processor_kwargs",
    "config_kwargs",
)
HARMLESS = {
    "add_pooling_layer",
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "use_safetensors",
    "device_map",
    "low_cpu_mem_usage",
    "model_max_length",
    "use_fast",
    "padding_side",
    "trust_remote_code",
}


@dataclass(frozen=True)
class SentenceModule:
    """One module: its kind, its config.json and its tensors.

    Kinds are Transformer, StaticEmbedding, Pooling, Dense and Normalize.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


# -------------------------------- writing


def dense(weight: Tensor, bias: Tensor | None = None, activation: str = IDENTITY) -> SentenceModule:
    """activation(x W^T + b), weight [out, in], bias [out] or None."""
    rows, columns = weight.shape
    config = {
        "in_features": columns,
        "out_features": rows,
        "bias": bias is not None,
        "activation_function": activation,
    }
    return SentenceModule(
        "Dense",
        config,
        {"linear.weight": weight, **({} if bias is None else {"linear.bias": bias})},
    )


def pooling(width: int, mode: str) -> SentenceModule:
    """`cls` or `mean` over token states of `width` dimensions."""
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
    """u + R gelu(u) as two Dense modules; R [D, D]."""
    one = torch.eye(len(weight))
    return [
        dense(torch.cat([one, -one]), activation=GELU),
        dense(torch.cat([weight + one, -one], 1)),
    ]


def write_sentence_modules(
    folder: Path, modules: Sequence[SentenceModule], prompt: str, label_prompt: str
) -> None:
    """modules.json and what it names, into a folder that holds the first module's files already.

    Args:
        prompt, label_prompt: put before every text of a point, of a label.
    """
    listed = []
    for number, module in enumerate(modules):
        path = f"{number}_{module.kind}" if number else ""
        listed.append(
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{module.kind}",
            }
        )
        to = folder / path
        to.mkdir(exist_ok=True)
        if number and module.kind != "Normalize":
            _write(to / "config.json", module.config)
        if module.weights:
            save_file(
                {n: t.detach().cpu().contiguous() for n, t in module.weights.items()},
                to / "model.safetensors",
            )
    _write(folder / "modules.json", listed)
    if modules[0].config:
        _write(folder / "sentence_bert_config.json", modules[0].config)
    prompts = {}
    if prompt or label_prompt:
        prompts = {"query": prompt, "document": label_prompt, PROMPT: prompt}
    _write(
        folder / WHOLE,
        {
            "prompts": prompts,
            "default_prompt_name": PROMPT if prompts else None,
            "similarity_fn_name": "cosine" if modules[-1].kind == "Normalize" else "dot",
        },
    )


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# -------------------------------- reading


@dataclass(frozen=True)
class Limit:
    """The longest text of an encoder: tokens, special ones included, and what says so."""

    tokens: int
    said_by: str


@dataclass(frozen=True)
class SentenceEncoder:
    """A folder of sentence-transformers as models/encoders/encoder.py builds it.

    Attributes: settings, keys of section `encoder`; bag, whether it is one; head, reads the tensors
    of a TextEncoder beside the transformer; limit, its longest text, None = any.
    """

    settings: dict[str, Any]
    bag: bool
    head: Callable[[], Weights]
    limit: Limit | None = None


def read_sentence_modules(name: str) -> SentenceEncoder:
    """What modules.json and the files that it names say.

    Raises:
        InputError: a module, or an option of one, has no counterpart in models/encoders/encoder.py.
    """
    where = f"encoder '{name}': modules.json"
    try:
        listed = [(m["type"].rpartition(".")[2], m["path"]) for m in _json(name, "modules.json")]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: damaged ({error!r})") from error
    listed = [(kind, path) for kind, path in listed if kind != "Dropout"]
    kinds = [kind for kind, _ in listed]
    layers = [_Dense(name, path) for kind, path in listed if kind == "Dense"]
    whole = _whole(name)
    if kinds[:2] == ["Transformer", "Pooling"] and kinds[2:] in (
        [],
        ["Dense"],
        ["Normalize"],
        ["Dense", "Normalize"],
    ):
        return _transformer(name, listed, layers, whole)
    bare = [kind for kind in kinds if kind != "Normalize"]
    gelu = bool(layers) and layers[0].config.get("activation_function") == GELU
    if (
        bare[:1] == ["StaticEmbedding"]
        and set(bare[1:]) <= {"Dense"}
        and len(layers) in ((0, 2, 3) if gelu else (0,))
        and (not gelu or kinds[1] == "Normalize")
    ):
        for layer, activation in zip(layers, (GELU, IDENTITY, IDENTITY), strict=False):
            layer.expect(activation)
        settings = {
            "normalize": kinds[-1] == "Normalize",
            **({"projection": layers[2].rows} if layers[2:] else {}),
        }
        prompts = _prompts(name, whole)
        special = bag_prompt(prompts.get("prompt", ""), load_tokenizer(name))
        settings |= {key: prompt.removeprefix(special) for key, prompt in prompts.items()}
        return SentenceEncoder(
            settings, True, lambda: _bag(name, listed[0][1], layers, bool(special))
        )
    raise InputError(
        f"{where}: modules {', '.join(kinds)} have no counterpart; expected Transformer, Pooling "
        "and then Dense or Normalize or both, or StaticEmbedding and Normalize, or what "
        "utils.export.export writes"
    )


def _transformer(
    name: str,
    listed: Sequence[tuple[str, str]],
    layers: Sequence[_Dense],
    whole: dict[str, Any],
) -> SentenceEncoder:
    for layer in layers:
        layer.expect(IDENTITY)
    path = listed[0][1]
    own_name = _inside(path, "sentence_bert_config.json")
    own = _mapping(name, own_name)
    _refuse(f"encoder '{name}': {own_name}", {k: v for k, v in own.items() if k not in HONOURED})
    if own.get("transformer_task", TASK) != TASK or "text" not in own.get(
        "modality_config", {"text": None}
    ):
        raise InputError(
            f"encoder '{name}': {own_name}: expected the task {TASK} of texts, got "
            f"{own.get('transformer_task')} of "
            f"{', '.join(own.get('modality_config') or ['nothing'])}"
        )
    for key in ARGUMENTS:
        inside = {k: v for k, v in (own.get(key) or {}).items() if k not in HARMLESS}
        _refuse(f"encoder '{name}': {own_name}: {key}", inside)
    if own.get("do_lower_case") and not _lowers(name):
        raise InputError(
            f"encoder '{name}': {own_name}: do_lower_case is true, but its tokenizer keeps "
            "capitals; not supported"
        )
    pooling_name = f"{listed[1][1]}/config.json"
    pool = _mapping(name, pooling_name)
    prompts = _prompts(name, whole)
    if any(prompts.values()) and pool.get("include_prompt") is False:
        raise InputError(
            f"encoder '{name}': {pooling_name}: include_prompt is false, which leaves the default "
            f"prompt {prompts['prompt']!r} out of the pooling; not supported"
        )
    settings = {
        **prompts,
        "pooling": _pooling(f"encoder '{name}': {pooling_name}", pool),
        "normalize": listed[-1][0] == "Normalize",
    }
    if layers:
        settings["projection"] = layers[0].rows
    return SentenceEncoder(
        settings, False, lambda: _projection(layers), _limit(name, path, own_name, own)
    )


def _limit(name: str, path: str, own_name: str, own: dict[str, Any]) -> Limit | None:
    """The length at which sentence-transformers cuts texts, beside the transformer's positions."""
    tokenizer_name = _inside(path, "tokenizer_config.json")
    for file, key, values in (
        (own_name, "max_seq_length", own),
        (tokenizer_name, "model_max_length", _mapping(name, tokenizer_name)),
    ):
        length = values.get(key)
        if length is not None:
            if isinstance(length, bool) or not isinstance(length, (int, float)) or length < 1:
                raise InputError(
                    f"encoder '{name}': {file}: {key} must be a number of tokens, got {length!r}"
                )
            return Limit(int(length), f"{key} in its {file}")
    return None


def _whole(name: str) -> dict[str, Any]:
    """config_sentence_transformers.json, without what has no counterpart."""
    whole = _mapping(name, WHOLE)
    _refuse(f"encoder '{name}': {WHOLE}", {k: v for k, v in whole.items() if k == "truncate_dim"})
    return whole


def _prompts(name: str, whole: dict[str, Any]) -> dict[str, str]:
    """The prompts of points and labels, as `prompt` and `label_prompt`; {} without a default.

    sentence-transformers puts the default before every text unless told otherwise. Prompts of a
    folder that has no default are named in the log.
    """
    prompts = whole.get("prompts") or {}
    chosen = whole.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError(
            f"encoder '{name}': {WHOLE}: prompts must be a mapping of names to texts, got "
            f"{prompts!r}"
        )
    if chosen is None:
        if others := {key: text for key, text in prompts.items() if text}:
            _say_once(
                f"encoder '{name}' has prompts and no default among them, so none is used: "
                f"{', '.join(f'{k} {v!r}' for k, v in others.items())}; encoder.prompt and "
                "encoder.label_prompt set them"
            )
        return {}
    if chosen not in prompts:
        raise InputError(
            f"encoder '{name}': {WHOLE}: default_prompt_name is {chosen!r}, which is none of its "
            f"prompts: {', '.join(prompts) or 'it has none'}"
        )
    of_labels = next((prompts[key] for key in LABEL_PROMPTS if prompts.get(key)), prompts[chosen])
    if prompts[chosen] or of_labels:
        _say_once(
            f"encoder '{name}': before every point's text stands {prompts[chosen]!r}, before a "
            f"label's {of_labels!r}"
        )
    return {"prompt": prompts[chosen], "label_prompt": of_labels}


@functools.cache
def _say_once(message: str) -> None:
    """Log what is found again each time that an encoder's folder is looked at."""
    log.info(message)


def bag_prompt(prompt: str, tokenizer: Any) -> str:
    """Return the beginning of a bag's prompt that stands for special tokens, or nothing."""
    added, text = added_tokens(tokenizer)
    return text if added and prompt.startswith(text) else ""


def _refuse(where: str, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value not in (None, False, "", {}, []):
            raise InputError(f"{where}: {key} is {str(value)[:80]}, which is not supported")


def _inside(path: str, file: str) -> str:
    return f"{path}/{file}" if path else file


def _mapping(name: str, path: str) -> dict[str, Any]:
    """A JSON file of an encoder as a mapping; {} if it has none."""
    found = _json(name, path)
    if found is not None and not isinstance(found, dict):
        raise InputError(
            f"encoder '{name}': {path}: expected a mapping, got {type(found).__name__}"
        )
    return found or {}


def _json(name: str, path: str) -> Any:
    found = file_of(name, path)
    return None if found is None else read_json(found)


def _lowers(name: str) -> bool:
    normalizer = load_tokenizer(name).backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _pooling(where: str, config: dict[str, Any]) -> str:
    older = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on
    ]
    modes = config.get("pooling_mode") or older
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes not in (["cls"], ["mean"]):
        raise InputError(
            f"{where}: pooling {', '.join(map(str, modes)) or 'none'}, expected cls or mean"
        )
    return modes[0]


class _Dense:
    """A Dense module that is read where it is needed."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path
        self.config = _mapping(name, f"{path}/config.json")
        self.rows = self.config.get("out_features")

    def expect(self, activation: str) -> None:
        found = self.config.get("activation_function", "torch.nn.modules.activation.Tanh")
        if (
            found != activation
            or self.config.get("use_residual")
            or self.config.get("module_input_name", "sentence_embedding") != "sentence_embedding"
        ):
            raise InputError(
                f"encoder '{self._name}': {self._path}/config.json: expected activation "
                f"{activation} and no residual or other input, got {self.config}"
            )

    def weights(self) -> Weights:
        path = file_of(self._name, f"{self._path}/model.safetensors")
        if path is None:
            raise InputError(f"encoder '{self._name}': {self._path}/model.safetensors is missing")
        found = {n.removeprefix("linear."): t.float() for n, t in load_tensors(path).items()}
        if "weight" not in found:
            raise InputError(
                f"{path}: expected a tensor linear.weight, got {', '.join(found) or 'none'}"
            )
        return found


def _projection(layers: Sequence[_Dense]) -> Weights:
    if not layers:
        return {}
    found = layers[-1].weights()
    return {
        "projection.weight": found["weight"],
        "projection.bias": found.get("bias", torch.zeros(len(found["weight"]))),
    }


def _bag(name: str, path: str, layers: Sequence[_Dense], special: bool) -> Weights:
    inside = _inside(path, "model.safetensors")
    found = file_of(name, inside)
    table = load_tensors(found).get("embedding.weight") if found else None
    if table is None:
        raise InputError(f"encoder '{name}': {inside} with embedding.weight is missing")
    weights = torch.ones(len(table), 1)
    if not special:
        # StaticEmbedding leaves them out, our tokens not
        weights[load_tokenizer(name)("")["input_ids"]] = 0.0
    head = {"table": table.float(), "token_weights": weights}
    if layers:
        first = layers[0].weights()["weight"]
        second = layers[1].weights()["weight"]
        one = torch.eye(table.shape[1])
        if (
            not torch.equal(first, torch.cat([one, -one]))
            or not torch.equal(second[:, len(one) :], -one)
            or "bias" in layers[0].weights()
            or "bias" in layers[1].weights()
        ):
            raise InputError(
                f"encoder '{name}': its Dense modules are not the residual layer that "
                "utils.export writes"
            )
        head["residual.weight"] = second[:, : len(one)] - one
    return {**head, **_projection(layers[2:])}
