"""Which encoder a config names: made for training, or loaded with a model."""

from __future__ import annotations

from pathlib import Path

import torch

from models.encoders.bag import BagEncoder, inverse_document_frequency, token_embeddings
from models.encoders.text_encoder import TextEncoder, check_vocabulary
from models.encoders.transformer import TransformerEncoder
from utils.config.config import EncoderConfig
from utils.data.dataset import Dataset
from utils.pretrained.source import read_source, resolve_encoder
from utils.reading.archives import available_for
from utils.reading.saved import read_facts


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


def build_encoder(config: EncoderConfig, data: Dataset) -> TextEncoder:
    """Make the encoder of section `encoder:`.

    Args:
        data: gives the token counts that `bag` starts from.
    """
    config = resolve_encoder(config)
    if config.name == "bag":
        return _build_bag(config, data)
    source = read_source(config.name)
    weights = None if source.transformer is None else source.transformer()
    encoder = TransformerEncoder(config, source.architecture, tokenizer_source(config), weights)
    encoder.check()
    encoder.take_head(source.head(), f"encoder '{config.name}'")
    return encoder


def _build_bag(config: EncoderConfig, data: Dataset) -> BagEncoder:
    """A bag that starts from another one, or from the token embeddings of a transformer."""
    source = read_source(config.init)
    tokenizer = tokenizer_source(config)
    if source.bag:
        encoder = BagEncoder(config, tokenizer, table=source.head()["table"])
        check_vocabulary(encoder.tokenizer, len(encoder.table), tokenizer, config.init)
        encoder.take_head(source.head(), f"encoder '{config.init}'")
        return encoder
    table = token_embeddings(config.init, config.trust_remote_code)
    weights = None
    if config.token_weights == "idf":
        weights = inverse_document_frequency(*data.token_document_counts(len(table)))
    encoder = BagEncoder(config, tokenizer, weights, table)
    check_vocabulary(encoder.tokenizer, len(table), tokenizer, config.init)
    return encoder


def load_encoder(config: EncoderConfig, folder: Path) -> TextEncoder:
    """The encoder that `TextEncoder.save` wrote; needs nothing but the folder."""
    folder = Path(folder)
    encoder: TextEncoder
    if config.name == "bag":
        encoder = _empty_bag(config, folder)
    else:
        encoder = TransformerEncoder(config, str(folder), use_safetensors=True)  # never a pickle
    encoder.load_head(folder)
    return encoder


def _empty_bag(config: EncoderConfig, folder: Path) -> BagEncoder:
    """A bag of the sizes of a saved one."""
    path = folder / "bag.json"
    shape = read_facts(path, tokens=int, width=int)
    available_for(4 * shape["tokens"] * shape["width"], str(path))
    table = torch.zeros(shape["tokens"], shape["width"])
    encoder = BagEncoder(config, str(folder), table=table)
    check_vocabulary(encoder.tokenizer, len(encoder.table), str(folder), str(path))
    return encoder
