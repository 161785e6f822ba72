"""A folder in the layout of sentence-transformers, read without the package.

It is modules.json and a folder a module; sentence_writing.py says which modules make a bag.
"""

from __future__ import annotations

from collections.abc import Callable
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
AFTER_POOLING: tuple[list[str], ...] = ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"])
ARGUMENTS = (  # keys that hold arguments of the transformer's parts
    "model_args",
    "tokenizer_args",
    "config_args",
    "model_kwargs",
    "processor_kwargs",
    "config_kwargs",
)
HARMLESS = {  # arguments that change no embedding
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
    """A folder of sentence-transformers as models/encoders/ builds it.

    Attributes:
        settings: keys of section `encoder`.
        bag: whether it is one.
        head: reads the tensors of a TextEncoder beside the transformer.
        limit: its longest text; None = any.
    """

    settings: dict[str, Any]
    bag: bool
    head: Callable[[], Weights]
    limit: Limit | None = None


@dataclass(frozen=True)
class _Modules:
    """What modules.json lists, but for Dropout, which acts in training alone."""

    name: str  # of the encoder
    kinds: list[str]
    paths: list[str]  # folder of each, inside the encoder's
    dense: list[DenseLayer]

    @classmethod
    def of(cls, name: str) -> _Modules:
        """Read modules.json and the configs of its Dense modules."""
        listed = json_of(name, "modules.json")
        try:
            modules = [(module["type"].rpartition(".")[2], module["path"]) for module in listed]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"encoder '{name}': modules.json: damaged ({error!r})") from error
        modules = [(kind, path) for kind, path in modules if kind != "Dropout"]
        kinds = [kind for kind, _ in modules]
        paths = [path for _, path in modules]
        dense = [DenseLayer(name, path) for kind, path in modules if kind == "Dense"]
        return cls(name, kinds, paths, dense)

    @property
    def normalizes(self) -> bool:
        """Whether embeddings come out as unit vectors."""
        return self.kinds[-1] == "Normalize"

    def is_transformer(self) -> bool:
        """Tell whether they are a transformer, its pooling and what TextEncoder has behind it."""
        return self.kinds[:2] == ["Transformer", "Pooling"] and self.kinds[2:] in AFTER_POOLING

    def is_bag(self) -> bool:
        """Tell whether they are a table of tokens and what a bag may have behind it."""
        others = [kind for kind in self.kinds if kind != "Normalize"]
        if others[:1] != ["StaticEmbedding"] or not set(others[1:]) <= {"Dense"}:
            return False
        if not self.dense:
            return True
        is_residual = self.dense[0].config.get("activation_function") == GELU
        return is_residual and len(self.dense) in (2, 3) and self.kinds[1] == "Normalize"


def read_sentence_modules(name: str) -> SentenceEncoder:
    """Read what modules.json and the files that it names say.

    Raises:
        InputError: a module, or an option of one, has no counterpart in models/encoders/.
    """
    modules = _Modules.of(name)
    whole = mapping_of(name, WHOLE)
    truncated = {key: value for key, value in whole.items() if key == "truncate_dim"}
    refuse(f"encoder '{name}': {WHOLE}", truncated)
    if modules.is_transformer():
        return _transformer(modules, whole)
    if modules.is_bag():
        return _bag(modules, whole)
    raise InputError(
        f"encoder '{name}': modules.json: modules {', '.join(modules.kinds)} have no counterpart; "
        "expected Transformer, Pooling and then Dense or Normalize or both, or StaticEmbedding and "
        "Normalize, or what utils.export writes"
    )


# -------------------------------- a bag


def _bag(modules: _Modules, whole: dict[str, Any]) -> SentenceEncoder:
    for layer, activation in zip(modules.dense, (GELU, IDENTITY, IDENTITY), strict=False):
        layer.expect(activation)
    settings: dict[str, Any] = {"normalize": modules.normalizes}
    if len(modules.dense) > 2:
        settings["projection"] = modules.dense[2].rows
    prompts = read_prompts(modules.name, whole)
    special = bag_prompt(prompts.get("prompt", ""), load_tokenizer(modules.name))
    for key, prompt in prompts.items():
        settings[key] = prompt.removeprefix(special)

    def head() -> Weights:
        return bag_weights(modules.name, modules.paths[0], modules.dense, bool(special))

    return SentenceEncoder(settings, True, head)


# -------------------------------- a transformer


def _transformer(modules: _Modules, whole: dict[str, Any]) -> SentenceEncoder:
    name = modules.name
    for layer in modules.dense:
        layer.expect(IDENTITY)
    file = inside_of(modules.paths[0], "sentence_bert_config.json")
    options = mapping_of(name, file)
    _check_options(name, file, options)
    pooling_file = f"{modules.paths[1]}/config.json"
    pooling = mapping_of(name, pooling_file)
    prompts = read_prompts(name, whole)
    if any(prompts.values()) and pooling.get("include_prompt") is False:
        raise InputError(
            f"encoder '{name}': {pooling_file}: include_prompt is false, which leaves the default "
            f"prompt {prompts['prompt']!r} out of the pooling; not supported"
        )
    settings: dict[str, Any] = {
        **prompts,
        "pooling": _pooling(f"encoder '{name}': {pooling_file}", pooling),
        "normalize": modules.normalizes,
    }
    if modules.dense:
        settings["projection"] = modules.dense[0].rows

    def head() -> Weights:
        return projection_weights(modules.dense)

    tokenizer_file = inside_of(modules.paths[0], "tokenizer_config.json")
    return SentenceEncoder(settings, False, head, _limit(name, file, options, tokenizer_file))


def _check_options(
    name: str,
    file: str,
    options: dict[str, Any],
) -> None:
    """Refuse options of sentence_bert_config.json that would change an embedding."""
    where = f"encoder '{name}': {file}"
    refuse(where, {key: value for key, value in options.items() if key not in HONOURED})
    task = options.get("transformer_task", TASK)
    if task != TASK or "text" not in options.get("modality_config", {"text": None}):
        raise InputError(
            f"{where}: expected the task {TASK} of texts, got "
            f"{options.get('transformer_task')} of "
            f"{', '.join(options.get('modality_config') or ['nothing'])}"
        )
    for key in ARGUMENTS:
        arguments = (options.get(key) or {}).items()
        refuse(f"{where}: {key}", {k: value for k, value in arguments if k not in HARMLESS})
    if options.get("do_lower_case") and not _lowers(name):
        raise InputError(
            f"{where}: do_lower_case is true, but its tokenizer keeps capitals; not supported"
        )


def _limit(
    name: str, options_file: str, options: dict[str, Any], tokenizer_file: str
) -> Limit | None:
    """The length at which sentence-transformers cuts texts, beside the transformer's positions."""
    for file, key, values in (
        (options_file, "max_seq_length", options),
        (tokenizer_file, "model_max_length", mapping_of(name, tokenizer_file)),
    ):
        length = values.get(key)
        if length is not None:
            if isinstance(length, bool) or not isinstance(length, (int, float)) or length < 1:
                raise InputError(
                    f"encoder '{name}': {file}: {key} must be a number of tokens, got {length!r}"
                )
            return Limit(int(length), f"{key} in its {file}")
    return None


def _lowers(name: str) -> bool:
    """Whether an encoder's tokenizer makes capitals small."""
    normalizer = load_tokenizer(name).backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _pooling(where: str, config: dict[str, Any]) -> str:
    """The one way of pooling that a config names, by its key or by older ones of true and false."""
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
