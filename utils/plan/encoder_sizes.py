"""Sizes of an encoder, from its settings and from headers of files: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.config.config import Config, EncoderConfig
from utils.pretrained.location import resolve, word_embedding_names
from utils.pretrained.settings import (
    CAN_PACK,
    ENCODER_HALVES,
    empty_transformer,
    text_settings,
    transformer_settings,
)
from utils.pretrained.source import read_source, resolve_encoder
from utils.reading.saved import open_tensors

# names that architectures give to the width of the feed-forward part, and to rates of dropout
FEED_FORWARD = ("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "ffn_dim")
DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "dropout_rate")


@dataclass(frozen=True)
class EncoderSizes:
    """Parameters and shapes.

    Attributes:
        dense: parameters outside of the row-sparse table.
        largest: of them, in the largest tensor.
        width: of a token's vector. dim: D, of a text's embedding.
        table: rows of the row-sparse table. layers: 0 = a bag of tokens.
        ffn: width of the feed-forward part. heads: of attention; 0 without.
        can_pack: encodes texts without padding where it is asked to.
    """

    dense: int
    largest: int
    width: int
    dim: int
    table: int = 0
    layers: int = 0
    ffn: int = 0
    heads: int = 0
    dropout: float = 0.0
    can_pack: bool = False


def encoder_sizes(config: Config) -> EncoderSizes:
    """Work out the sizes of section `encoder:`."""
    section = resolve_encoder(config.encoder)
    return _bag_sizes(section) if section.name == "bag" else _transformer_sizes(section)


def _bag_sizes(section: EncoderConfig) -> EncoderSizes:
    rows, width = table_shape(section.init, section.trust_remote_code)
    projection = section.projection or 0
    tensors = [projection * width, width * width if section.residual else 0]
    return EncoderSizes(
        dense=sum(tensors) + projection,
        largest=max(tensors),
        width=width,
        dim=projection or width,
        table=rows,
    )


def _transformer_sizes(section: EncoderConfig) -> EncoderSizes:
    """A transformer is built without storage."""
    settings: Any = transformer_settings(section, read_source(section.name).architecture)
    with torch.device("meta"):
        parameters = empty_transformer(settings, section.trust_remote_code).named_parameters()
    counts = [p.numel() for name, p in parameters if not name.startswith("pooler.")]
    width = settings.hidden_size
    feed_forward = [getattr(settings, name, None) for name in FEED_FORWARD]
    dropout = [getattr(settings, name, None) for name in DROPOUT]
    layers = settings.num_hidden_layers
    if settings.is_encoder_decoder and settings.model_type not in ENCODER_HALVES:
        layers += settings.decoder_layers
    projection = section.projection or 0
    return EncoderSizes(
        dense=sum(counts) + (projection * (width + 1)),
        largest=max(counts),
        width=width,
        dim=projection or width,
        layers=layers,
        ffn=next((found for found in feed_forward if found), 4 * width),
        heads=getattr(settings, "num_attention_heads", 0),  # Mamba has none
        dropout=max((rate for rate in dropout if rate), default=0.0),
        can_pack=settings.model_type in CAN_PACK,
    )


def table_shape(source: str, trust_remote_code: bool) -> tuple[int, int]:
    """Rows and width of the table of word embeddings that a bag of tokens starts from."""
    folder = Path(resolve(source))
    for path in (folder / "model.safetensors", folder / "head.safetensors"):
        if not path.is_file():
            continue
        with open_tensors(path) as file:  # of a transformer, of StaticEmbedding, of a run's bag
            tensors = list(file.keys())
            names = word_embedding_names(tensors)
            names += [name for name in tensors if name in ("embedding.weight", "table")]
            if len(names) == 1:
                rows, width = file.get_slice(names[0]).get_shape()
                return rows, width
    settings = text_settings(source, trust_remote_code=trust_remote_code)
    return settings.vocab_size, settings.hidden_size
