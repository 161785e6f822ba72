"""A trained encoder for other programs: in the layout of sentence-transformers, and as ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders.bag import BagEncoder
from models.encoders.text_encoder import TextEncoder
from models.encoders.transformer import TransformerEncoder
from utils.data.batches import TextBatch
from utils.errors import InputError
from utils.pretrained.location import added_tokens
from utils.pretrained.sentence_writing import (
    SentenceModule,
    dense,
    pooling,
    residual,
    write_sentence_modules,
)
from utils.pretrained.settings import without_pooler
from utils.tokenization_utils import Tokenizer, tokenize_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 16


def write_encoder(
    encoder: TextEncoder,
    folder: Path,
    max_len: int,
) -> None:
    """The encoder in the layout of sentence-transformers, cutting texts at `max_len` tokens.

    Raises:
        InputError: a setting that modules of sentence-transformers cannot express.
    """
    config = encoder.config
    tokenizer = encoder.tokenizer
    if config.trust_remote_code:
        raise InputError(
            "encoder.trust_remote_code is true: an encoder that runs its own code cannot be "
            "exported"
        )
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"encoder '{config.name}': its tokenizer is not a fast one, which an export needs"
        )
    if isinstance(encoder, BagEncoder):
        modules = _bag_modules(encoder)
        special = special_tokens(encoder)
    else:
        assert isinstance(encoder, TransformerEncoder), "the only other kind"
        modules = _transformer_modules(encoder, max_len)
        special = ""
        encoder.transformer.save_pretrained(folder)
    if encoder.projection is not None:
        modules.append(dense(encoder.projection.weight, encoder.projection.bias))
    if config.normalize:
        modules.append(SentenceModule("Normalize"))
    _with_padding(tokenizer)
    tokenizer.model_max_length = max_len
    tokenizer.backend_tokenizer.enable_truncation(max_len, direction=tokenizer.truncation_side)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    if isinstance(encoder, BagEncoder):  # read as it is: it must cut the text itself
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_sentence_modules(
        folder,
        modules,
        special + config.point_prompt,
        special + config.prompt_of_labels,
    )


def _with_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a token to pad with, and pad at the end, as `TextBatch.padded` does.

    What is padded is masked, so any token will do; a new one would be outside the model's table.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        )
    tokenizer.padding_side = "right"


def _transformer_modules(encoder: TransformerEncoder, max_len: int) -> list[SentenceModule]:
    mode = encoder.config.pooling
    assert mode is not None, "the settings of an encoder that was made are filled"
    settings: dict[str, Any] = {"max_seq_length": max_len, "do_lower_case": False}
    arguments = without_pooler(encoder.transformer.config)
    if arguments:
        settings["model_args"] = arguments
    width = encoder.transformer.config.hidden_size
    return [SentenceModule("Transformer", settings), pooling(width, mode)]


def _bag_modules(encoder: BagEncoder) -> list[SentenceModule]:
    if not encoder.config.normalize:
        raise InputError(
            "encoder.normalize is false: this bag is a sum of token vectors, but "
            "sentence-transformers' StaticEmbedding is their mean; only a normalised bag can be "
            "exported"
        )
    if encoder.residual is None and encoder.projection is not None:
        raise InputError(
            "encoder.residual is false and encoder.projection is set: this bag projects a sum of "
            "token vectors, but sentence-transformers' StaticEmbedding is their mean; train it "
            "with a residual layer, which normalises before it, or without a projection"
        )
    table = (encoder.table * encoder.token_weights).detach().cpu()
    modules = [SentenceModule("StaticEmbedding", weights={"embedding.weight": table})]
    if encoder.residual is not None:
        layers = residual(encoder.residual.weight.detach().cpu())
        modules += [SentenceModule("Normalize"), *layers]
    return modules


def special_tokens(encoder: TextEncoder) -> str:
    """The special tokens that the tokenizer adds to a text, as a text; "" if it adds none."""
    tokenizer = encoder.tokenizer
    added, text = added_tokens(tokenizer)
    if tokenizer(text, add_special_tokens=False)["input_ids"] != added:
        raise InputError(
            f"encoder.init '{encoder.config.init}': its tokenizer does not read its special "
            f"tokens {text} back as such, which the export of a bag needs"
        )
    return text


@torch.no_grad()
def embed(
    encoder: TextEncoder,
    texts: Sequence[str],
    max_len: int,
) -> Tensor:
    """Embeddings [n, D] as `score` makes them, on the CPU."""
    tokens = tokenize_texts(texts, encoder.point_tokenizer(max_len))
    blocks = [
        np.arange(i, min(i + TEXTS_AT_ONCE, len(texts)))
        for i in range(0, len(texts), TEXTS_AT_ONCE)
    ]
    return torch.cat([encoder(TextBatch.take(tokens, rows)).float() for rows in blocks])


# -------------------------------- ONNX


class _Padded(nn.Module):
    """The encoder as a function of padded token ids and their mask."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder.encode_padded(input_ids, attention_mask)


def write_onnx(encoder: TextEncoder, path: Path) -> None:
    """Write encoder.onnx: padded token ids and their mask -> embeddings.

        input_ids, attention_mask [texts, tokens] int64 -> sentence_embedding [texts, D] float32

    Raises:
        InputError: a package is not installed, or the exporter does not know an operator.
    """
    _import_onnx()
    if isinstance(encoder, TransformerEncoder):
        encoder.transformer.set_attn_implementation("eager")  # plain arithmetic, which onnx has
    ids = torch.full((2, 3), 1)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # operators of packages not installed
    with warnings.catch_warnings():  # of the exporter about itself
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Padded(encoder).eval(),
                (ids, mask),
                str(path),
                dynamo=True,
                external_data=False,
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise InputError(
                f"encoder '{encoder.config.name}' cannot be written as ONNX: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error


def run_onnx(
    path: Path,
    tokenizer: Tokenizer,
    texts: Sequence[str],
) -> np.ndarray:
    """Embeddings of texts by onnxruntime [n, D]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokens = tokenize_texts(texts, tokenizer)
    blocks = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = TextBatch.take(tokens, np.arange(start, min(start + TEXTS_AT_ONCE, len(texts))))
        ids, mask = batch.padded(tokenizer.hf.pad_token_id or 0)
        feed = {"input_ids": ids.long().numpy(), "attention_mask": mask.long().numpy()}
        blocks.append(session.run(["sentence_embedding"], feed)[0])
    return np.concatenate(blocks)


def _import_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--onnx needs the package {error.name}, which is not installed: `pip install onnx "
            "onnxruntime onnxscript`"
        ) from error
