"""Which encoder a config names: made for training, or loaded with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.config.config import EncoderConfig
from utils.pretrained.source import read_source, resolve_encoder
from utils.reading.archives import available_for
from utils.reading.saved import read_facts

if TYPE_CHECKING:
    pass
from models.encoders.bag import BagEncoder, inverse_document_frequency, token_embeddings
from models.encoders.text_encoder import TextEncoder, check_vocabulary
from models.encoders.transformer import TransformerEncoder


def tokenizer_source(config: EncoderConfig) -> str:
    """The name whose tokenizer the encoder uses."""
    return config.tokenizer or (config.init if config.name == "bag" else config.name)


def encoder_groups(config: EncoderConfig) -> frozenset[str]:
    """Names of the parameter groups that `decay_groups` makes of an encoder, by its config.

    Args:
        config: resolved.
    """
    if config.name != "bag":
        return frozenset({"encoder"})
    dense = config.residual or config.projection
    return frozenset({"table", "encoder"} if dense else {"table"})


def build_encoder(config: EncoderConfig, data) -> TextEncoder:
    """Make the encoder of section `encoder:`.

    Args:
        data: gives the token counts that `bag` starts from.
    """
    config = resolve_encoder(config)
    bag, name = config.name == "bag", config.init if config.name == "bag" else config.name
    source = read_source(name)
    tokenizer = tokenizer_source(config)
    if not bag:
        encoder: TextEncoder = TransformerEncoder(
            config, source.architecture, tokenizer, source.transformer and source.transformer()
        )
        encoder.check()
    elif source.bag:
        encoder = BagEncoder(config, tokenizer, table=source.head()["table"])
        check_vocabulary(encoder.tokenizer, len(encoder.table), tokenizer, name)
    else:
        table = token_embeddings(name, config.trust_remote_code)
        weights = None
        if config.token_weights == "idf":
            weights = inverse_document_frequency(*data.token_document_counts(len(table)))
        encoder = BagEncoder(config, tokenizer, weights, table)
        check_vocabulary(encoder.tokenizer, len(table), tokenizer, name)
        return encoder
    encoder.take_head(source.head(), f"encoder '{name}'")
    return encoder


def load_encoder(config: EncoderConfig, folder: Path) -> TextEncoder:
    """The encoder that `TextEncoder.save` wrote; needs nothing but the folder."""
    folder = Path(folder)
    if config.name == "bag":
        shape = read_facts(folder / "bag.json", tokens=int, width=int)
        available_for(4 * shape["tokens"] * shape["width"], str(folder / "bag.json"))
        encoder = BagEncoder(
            config, str(folder), table=torch.zeros(shape["tokens"], shape["width"])
        )
        check_vocabulary(
            encoder.tokenizer, len(encoder.table), str(folder), str(folder / "bag.json")
        )
    else:
        # never a pickle
        encoder = TransformerEncoder(config, str(folder), use_safetensors=True)
    encoder.load_head(folder)
    return encoder
