"""What a transformer's own config says: its layers, and how long a text may be.

No weights are read.

    check_lengths(config)      # ConfigError where a text may be longer than the encoder takes
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from utils.config.config import Config, ConfigError, EncoderConfig
from utils.errors import InputError
from utils.pretrained.location import from_pretrained
from utils.pretrained.source import Limit, read_source, resolve_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Their position ids begin behind the id of the padding token: transformers'
# create_position_ids_from_input_ids.
BEHIND_PADDING = frozenset(
    (
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    )
)
MPNET_PADDING = 1  # its code does not read it from its config
# Known to encode texts without padding, `encoder.packing`; others may too.
CAN_PACK = frozenset(
    ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
)
# Of these the encoder alone is built, as sentence-transformers does: their decoder waits for texts
# of its own.
ENCODER_HALVES = {
    "longt5": "LongT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "t5": "T5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
    "umt5": "UMT5EncoderModel",
}
LAYER_COUNTS = ("num_hidden_layers", "n_layers", "num_layers")
LAYER_LISTS = (  # an entry for each layer
    "layer_types",
    "mlp_layer_types",
    "attention_layers",
    "attention_window",
)
DROPOUT_RATES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "dropout_rate",
    "hidden_dropout",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
)


def transformer_settings(section: EncoderConfig, source: str) -> PreTrainedConfig:
    """Return the config of the transformer that a section builds: its layers cut, its dropout set.

    Args:
        section: section `encoder`.
        source: name, folder or hub id of the transformer.
    Raises:
        InputError: it cannot be had, has not so many layers, or is of a type that cannot encode
            texts in batches.
    """
    settings = text_settings(source, section.trust_remote_code)
    _check_mask(settings, source)
    if section.layers is not None:
        _keep_layers(settings, section.layers)
    if section.dropout is not None:
        _set_dropout(settings, section.dropout)
    return settings


def _keep_layers(settings: PreTrainedConfig, layers: int) -> None:
    """Keep the first layers, of each half where there are two, and what is said of each."""
    present = [name for name in LAYER_COUNTS if isinstance(getattr(settings, name, None), int)]
    if not present:
        raise ConfigError(
            f"encoder.layers: a model of type {settings.model_type} does not say how many layers "
            "it has"
        )
    there = getattr(settings, present[0])
    if layers > there:
        raise ConfigError(f"encoder.layers is {layers} but the model has {there} layers")
    setattr(settings, present[0], layers)
    if isinstance(getattr(settings, "decoder_layers", None), int):  # BART: its states are these'
        settings.decoder_layers = min(layers, settings.decoder_layers)
    for name in LAYER_LISTS:
        if isinstance(vars(settings).get(name), list):  # Mamba's is worked out from their number
            setattr(settings, name, getattr(settings, name)[:layers])
    if hasattr(settings, "attention_types"):  # GPT-Neo makes attention_layers from it when read
        settings.attention_types = [[settings.attention_layers, 1]]


def _set_dropout(settings: PreTrainedConfig, rate: float) -> None:
    for name in DROPOUT_RATES:
        if isinstance(getattr(settings, name, None), float):
            setattr(settings, name, rate)


def text_settings(source: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a transformer of texts.

    Raises:
        InputError: it cannot be had, or is that of a model of several parts.
    """
    from transformers import AutoConfig

    settings = from_pretrained(AutoConfig, source, trust_remote_code=trust_remote_code)
    if settings.get_text_config() is not settings:
        raise InputError(
            f"encoder '{source}': a model of type {settings.model_type} holds a model of texts "
            "beside others; save the one of texts alone and name that"
        )
    return settings


def _check_mask(settings: PreTrainedConfig, source: str) -> None:
    """InputError for a model that would read its padding as part of a text."""
    from transformers import MODEL_MAPPING

    if type(settings) not in MODEL_MAPPING:  # code of its own
        return
    kind = MODEL_MAPPING[type(settings)]
    if isinstance(kind, tuple):
        return
    if "attention_mask" not in inspect.signature(kind.forward).parameters:
        raise InputError(
            f"encoder '{source}': a model of type {settings.model_type} takes no attention mask, "
            "so that a text's embedding would depend on the texts beside it; not supported"
        )


def transformer_class(settings: PreTrainedConfig) -> Any:
    """Return what builds the transformer: half of a type of ENCODER_HALVES, else AutoModel."""
    import transformers

    return getattr(transformers, ENCODER_HALVES.get(settings.model_type, "AutoModel"))


def empty_transformer(
    settings: PreTrainedConfig, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The transformer of a config, its weights as they are made."""
    if settings.model_type in ENCODER_HALVES:
        return transformer_class(settings)(settings)
    return transformer_class(settings).from_config(
        settings, trust_remote_code=trust_remote_code, **without_pooler(settings)
    )


def without_pooler(settings: PreTrainedConfig) -> dict[str, bool]:
    """Leave out BERT's pooler, which is not used: no process waits for its gradients."""
    if settings.model_type in ("bert", "roberta", "xlm-roberta"):
        return {"add_pooling_layer": False}
    return {}


def longest_input(settings: PreTrainedConfig) -> int | None:
    """Positions that a transformer has for a text; None = any number.

    Args:
        settings: the transformer's own config.
    """
    settings = settings.get_text_config()
    positions = getattr(settings, "max_encoder_position_embeddings", None)  # LED
    if positions is None:
        positions = getattr(settings, "max_position_embeddings", None)
    if positions is None or positions < 0:  # XLNet writes -1
        return None
    relative = getattr(settings, "relative_attention", False)
    if relative and not getattr(settings, "position_biased_input", True):
        return None  # DeBERTa without a table of positions: distances count, far ones alike
    if settings.model_type not in BEHIND_PADDING:
        return positions
    return positions - padding_position(settings) - 1


def padding_position(settings: PreTrainedConfig) -> int:
    """Position of padding in a transformer of a type of BEHIND_PADDING; a text begins behind it."""
    return MPNET_PADDING if settings.model_type == "mpnet" else settings.pad_token_id


def longest_text(section: EncoderConfig) -> Limit | None:
    """The longest text that the encoder of a section takes; None = any.

    Reads configs alone: the transformer's positions, and `max_seq_length` of a folder of
    sentence-transformers.

    Raises:
        InputError: the encoder cannot be had, or a part of it has no counterpart.
    """
    section = resolve_encoder(section)
    if section.name == "bag":  # a sum of token vectors, of any number
        return None
    source = read_source(section.name)
    settings = transformer_settings(section, source.architecture)
    limits = [] if source.limit is None else [source.limit]
    positions = longest_input(settings)
    if positions is not None:
        limits.append(Limit(positions, f"positions of its model, {settings.model_type}"))
    return min(limits, key=lambda limit: limit.tokens, default=None)


def check_lengths(config: Config) -> None:
    """Raise ConfigError if texts of points or labels may be longer than the encoder takes."""
    limit = longest_text(config.encoder)
    for key in ("max_len", "label_max_len"):
        length = getattr(config.data, key)
        if limit is not None and length is not None and length > limit.tokens:
            raise ConfigError(
                f"data.{key} is {length}, but encoder '{config.encoder.name}' takes texts of at "
                f"most {limit.tokens} tokens ({limit.said_by}); lower data.{key}"
            )
