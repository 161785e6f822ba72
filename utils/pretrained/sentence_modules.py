"""A folder in the layout of sentence-transformers, read without the package.

It is modules.json and a folder a module; sentence_writing.py says which modules make a bag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.errors import InputError
from utils.pretrained.location import load_tokenizer
from utils.pretrained.sentence_files import (
    GELU,
    IDENTITY,
    WHOLE,
    Weights,
    inside_of,
    json_of,
    mapping_of,
    refuse,
)
from utils.pretrained.sentence_prompts import bag_prompt, read_prompts
from utils.pretrained.sentence_weights import DenseLayer, bag_weights, projection_weights

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
        listed = [(m["type"].rpartition(".")[2], m["path"]) for m in json_of(name, "modules.json")]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: damaged ({error!r})") from error
    listed = [(kind, path) for kind, path in listed if kind != "Dropout"]
    kinds = [kind for kind, _ in listed]
    layers = [DenseLayer(name, path) for kind, path in listed if kind == "Dense"]
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
        prompts = read_prompts(name, whole)
        special = bag_prompt(prompts.get("prompt", ""), load_tokenizer(name))
        settings |= {key: prompt.removeprefix(special) for key, prompt in prompts.items()}
        return SentenceEncoder(
            settings, True, lambda: bag_weights(name, listed[0][1], layers, bool(special))
        )
    raise InputError(
        f"{where}: modules {', '.join(kinds)} have no counterpart; expected Transformer, Pooling "
        "and then Dense or Normalize or both, or StaticEmbedding and Normalize, or what "
        "utils.export.export writes"
    )


def _transformer(
    name: str,
    listed: Sequence[tuple[str, str]],
    layers: Sequence[DenseLayer],
    whole: dict[str, Any],
) -> SentenceEncoder:
    for layer in layers:
        layer.expect(IDENTITY)
    path = listed[0][1]
    own_name = inside_of(path, "sentence_bert_config.json")
    own = mapping_of(name, own_name)
    refuse(f"encoder '{name}': {own_name}", {k: v for k, v in own.items() if k not in HONOURED})
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
        refuse(f"encoder '{name}': {own_name}: {key}", inside)
    if own.get("do_lower_case") and not _lowers(name):
        raise InputError(
            f"encoder '{name}': {own_name}: do_lower_case is true, but its tokenizer keeps "
            "capitals; not supported"
        )
    pooling_name = f"{listed[1][1]}/config.json"
    pool = mapping_of(name, pooling_name)
    prompts = read_prompts(name, whole)
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
        settings, False, lambda: projection_weights(layers), _limit(name, path, own_name, own)
    )


def _limit(name: str, path: str, own_name: str, own: dict[str, Any]) -> Limit | None:
    """The length at which sentence-transformers cuts texts, beside the transformer's positions."""
    tokenizer_name = inside_of(path, "tokenizer_config.json")
    for file, key, values in (
        (own_name, "max_seq_length", own),
        (tokenizer_name, "model_max_length", mapping_of(name, tokenizer_name)),
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
    whole = mapping_of(name, WHOLE)
    refuse(f"encoder '{name}': {WHOLE}", {k: v for k, v in whole.items() if k == "truncate_dim"})
    return whole


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
