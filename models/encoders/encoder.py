"""Text encoders: TextBatch of B texts -> embeddings [B, D].

`transformer`: any Hugging Face model (cls or mean pooling, first n layers).
`bag`: a weighted sum of learned token embeddings with a residual layer, the fast encoder of the
DeepXML family (Dahiya et al., WSDM 2021); its table is row-sparse, a step costs the rows it
touches. Both end in the same head: dropout, projection, L2 normalisation, each only where the
config asks for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.config.config import EncoderConfig
from utils.data.batches import TextBatch
from utils.errors import InputError
from utils.parameters import DeclaredParameter, Gradient, Kind, sparse_rows
from utils.pretrained.location import (
    from_pretrained,
    load_tokenizer,
    resolve,
    word_embedding_names,
)
from utils.pretrained.settings import (
    empty_transformer,
    longest_input,
    text_settings,
    transformer_class,
    transformer_settings,
    without_pooler,
)
from utils.pretrained.source import fill, read_source, resolve_encoder
from utils.reading.archives import available_for
from utils.reading.saved import open_tensors, read_facts, read_tensors
from utils.tokenization_utils import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Normalize(torch.autograd.Function):
    """x / |x| along the last dimension; a zero vector stays zero and gets no gradient.

    As torch's normalize, with one product and one sum in backward instead of a dozen passes over
    the batch.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.where(norm > 1e-12, 1 / norm, 0.0)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, unit)[..., None]
        return torch.addcmul(gradient, unit, along, value=-1).mul_(inverse)


class TextEncoder(nn.Module):
    """Base: subclasses compute `pool(texts)` [B, width]; the head is shared.

    Attributes: dim (D), tokenizer (Hugging Face), config.
    """

    def __init__(self, config: EncoderConfig, tokenizer, width: int) -> None:
        super().__init__()
        self.config = fill(config)
        self.tokenizer = tokenizer
        self.dim = config.projection or width
        self.projection = nn.Linear(width, self.dim) if config.projection else None

    def point_tokenizer(self, max_len: int) -> Tokenizer:
        """Of points' texts, cut at so many tokens."""
        return Tokenizer(self.tokenizer, max_len, prompt=self.config.point_prompt)

    def label_tokenizer(self, max_len: int) -> Tokenizer:
        """Of labels' texts, cut at so many tokens."""
        return Tokenizer(self.tokenizer, max_len, prompt=self.config.prompt_of_labels)

    def pool(self, texts: TextBatch) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define pool()")

    def forward(self, texts: TextBatch) -> Tensor:
        """Texts -> embeddings [B, D], of unit length if `encoder.normalize`; an empty text gives a
        finite row."""
        return self._head(self.pool(texts))

    def encode_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, from padded token ids and their mask [B, T], without what only training
        needs."""
        return self._head(self.pool_padded(ids, mask))

    def pool_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define pool_padded()")

    def _head(self, pooled: Tensor) -> Tensor:
        if self.projection is not None:
            pooled = self.projection(pooled)  # [B, D]
        return _Normalize.apply(pooled.float()) if self.config.normalize else pooled

    def save(self, folder: Path) -> None:
        """Weights and tokenizer into `folder`, to be read by `load_encoder`."""
        self.tokenizer.save_pretrained(folder)
        head = {
            k: v.detach().contiguous()
            for k, v in self.state_dict().items()
            if not k.startswith("transformer.")
        }
        if head:
            save_file(head, folder / "head.safetensors")

    def load_head(self, folder: Path) -> None:
        """Take back what `save` wrote beside the transformer; strict."""
        own = {
            name: tuple(value.shape)
            for name, value in self.state_dict().items()
            if not name.startswith("transformer.")
        }
        if own:
            path = folder / "head.safetensors"
            self.take_head(read_tensors(path, own), path)

    def take_head(self, head: dict[str, Tensor], where: str | Path) -> list[str]:
        """Copy tensors of what is beside the transformer; returns the names that `head` leaves as
        they were.

        Raises:
            ValueError: a tensor that this encoder does not have, or of another shape.
        """
        try:
            missing, extra = self.load_state_dict(head, strict=False)
        except RuntimeError as error:
            raise InputError(f"{where}: {' '.join(str(error).split())}") from error
        if extra:
            raise InputError(f"{where}: unexpected {extra}")
        return [name for name in missing if not name.startswith("transformer.")]


class TransformerEncoder(TextEncoder):
    """A Hugging Face transformer with cls or mean pooling.

    Args:
        config: section `encoder`.
        source: name, folder or hub id to load the weights from.
        tokenizer: where its tokenizer is; None = there too.
        state: its weights [names of the model], where transformers cannot read them; `source` gives
        its config then.
        loading: passed on to AutoModel.from_pretrained.
    """

    def __init__(
        self,
        config: EncoderConfig,
        source: str,
        tokenizer: str | None = None,
        state: dict[str, Tensor] | None = None,
        **loading,
    ) -> None:
        settings = transformer_settings(config, source)
        if state is None:
            model, report = from_pretrained(
                transformer_class(settings),
                source,
                config=settings,
                output_loading_info=True,
                trust_remote_code=config.trust_remote_code,
                **loading,
                **without_pooler(settings),
            )
            missing = report["missing_keys"]
        else:
            model = empty_transformer(settings, config.trust_remote_code)
            missing = model.load_state_dict(state, strict=False).missing_keys
        # else they would be random
        if lacking := sorted(name for name in missing if "pooler." not in name):
            raise InputError(
                f"encoder '{source}': its weights lack {len(lacking)} of the model's tensors, "
                f"such as {lacking[0]}"
            )
        super().__init__(
            config,
            load_tokenizer(tokenizer or source, config.trust_remote_code),
            settings.hidden_size,
        )
        _check_vocabulary(self.tokenizer, settings.vocab_size, tokenizer or source, source)
        self.transformer = model.float()
        if config.gradient_checkpointing:
            if not self.transformer.supports_gradient_checkpointing:
                raise InputError(
                    f"encoder.gradient_checkpointing is true, but encoder '{config.name}', a "
                    f"model of type {settings.model_type}, cannot do it; set it to false"
                )
            self.transformer.gradient_checkpointing_enable()
        self._pad_id = self.tokenizer.pad_token_id or 0
        self._longest = longest_input(settings)

    def pool(self, texts: TextBatch) -> Tensor:
        # a batch smaller than the processes: attention cannot shape nothing
        if len(texts) == 0:
            one = torch.full((1, 1), self._pad_id, device=texts.ids.device)
            return self.pool_padded(one, torch.ones_like(one))[:0]
        ids, mask = texts.padded(self._pad_id)  # [B, T]
        if texts.longest == 0:
            ids, mask = F.pad(ids, (0, 1), value=self._pad_id), F.pad(mask, (0, 1), value=1)
        if self._longest is not None and ids.shape[1] > self._longest:
            raise InputError(
                f"a text has {ids.shape[1]} tokens but encoder '{self.config.name}' takes at most "
                f"{self._longest}; lower data.max_len"
            )
        return self.pool_padded(ids, mask)

    def pool_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        # [B, T, width]
        states = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.config.pooling == "cls":
            return states[:, 0]
        weights = mask.to(states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @torch.no_grad()
    def check(self) -> None:
        """Encode two texts that differ in their last token.

        Raises:
            InputError: the model cannot encode texts, or `cls` would give all texts one embedding.
        """
        kind = f"encoder '{self.config.name}': a model of type {self.transformer.config.model_type}"
        first, second, third, last = [i for i in range(5) if i != self._pad_id][:4]
        ids = torch.tensor([[first, second, third], [first, second, last]])
        training = self.transformer.training
        self.transformer.eval()
        try:
            states = self.transformer(
                input_ids=ids, attention_mask=torch.ones_like(ids)
            ).last_hidden_state
        # each architecture has its own for what it wants beside token ids
        except Exception as error:
            raise InputError(
                f"{kind} cannot encode texts: {' '.join(str(error).split())[:200]}"
            ) from error
        finally:
            self.transformer.train(training)
        if self.config.pooling == "cls" and torch.equal(states[0, 0], states[1, 0]):
            raise InputError(
                f"{kind} is causal: the state of its first token never sees the rest of a text, "
                "so that with encoder.pooling: cls all texts would have one embedding; it needs "
                "mean, or last, which is not supported yet"
            )

    def save(self, folder: Path) -> None:
        self.transformer.save_pretrained(folder)
        super().save(folder)


def _check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, rows: int, name: str, source: str
) -> None:
    """InputError for a tokenizer whose ids go beyond an encoder's table of `rows` token
    embeddings."""
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of '{name}' has {len(tokenizer)} tokens, encoder '{source}' has "
            f"embeddings for {rows}: it is not the one that the encoder was trained with, or "
            "tokens were added to it afterwards; encoder.tokenizer names another"
        )


class _WeightedBag(torch.autograd.Function):
    """sum_t w_t e_t per text, with gradients that hold only the rows of tokens that occur.

    For token v, G_v = sum of the output gradients over its occurrences; then d e_v = w_v G_v and d
    w_v = G_v . e_v. G is a bag over the transposed index, so forward and backward are each one
    fused kernel.
    """

    @staticmethod
    def forward(ctx, table: Tensor, weights: Tensor, index: BagIndex) -> Tensor:
        ctx.save_for_backward(table, weights)
        ctx.index = index
        return F.embedding_bag(
            index.ids,
            table,
            index.offsets,
            mode="sum",
            include_last_offset=True,
            per_sample_weights=weights[index.ids.long(), 0],
        )  # [B, D]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        table, weights = ctx.saved_tensors
        tokens, texts, offsets = ctx.index.transposed
        summed = F.embedding_bag(
            texts, gradient.contiguous(), offsets, mode="sum", include_last_offset=True
        )  # [U, D]
        rows = table[tokens]  # [U, D]
        to_weights = (summed * rows).sum(1, keepdim=True)  # [U, 1]
        summed *= weights[tokens]
        to_table = sparse_rows(tokens, summed, table.shape)
        return to_table, sparse_rows(tokens, to_weights, weights.shape), None


class BagIndex:
    """Token ids and offsets of some texts, and the same occurrences grouped by token (made on first
    backward)."""

    def __init__(self, texts: TextBatch) -> None:
        self.ids = texts.ids
        self.offsets = texts.offsets.to(texts.ids.dtype)
        self._lengths = texts.offsets.diff()
        self._transposed: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens [U] int64 that occur, text of each occurrence sorted by token, offsets [U +
        1])."""
        if self._transposed is None:
            order = torch.argsort(self.ids, stable=True)
            tokens, counts = torch.unique_consecutive(self.ids[order], return_counts=True)
            text_of = torch.repeat_interleave(
                torch.arange(len(self._lengths), device=self.ids.device),
                self._lengths,
                output_size=len(self.ids),
            )
            offsets = F.pad(counts.cumsum(0), (1, 0)).to(self.ids.dtype)
            self._transposed = tokens.long(), text_of[order].to(self.ids.dtype), offsets
        return self._transposed


class BagEncoder(TextEncoder):
    """x = s + gelu(s / |s|) R, s = sum_t w_t e_t over the text's tokens: learned table e [V, D] and
    weights w [V].

    Args:
        config: section `encoder`.
        source: encoder whose tokenizer, and token embeddings if `table` is None, it starts from.
        weights: token weights at the start [V]; None = equal.
        table: token embeddings [V, D]; None = those of `source`.
    """

    def __init__(
        self,
        config: EncoderConfig,
        source: str,
        weights: np.ndarray | None = None,
        table: Tensor | None = None,
    ) -> None:
        table = token_embeddings(source, config.trust_remote_code) if table is None else table
        super().__init__(config, load_tokenizer(source, config.trust_remote_code), table.shape[1])
        kind = Kind(Gradient.ROWS)
        self.table = DeclaredParameter(table.float(), kind)  # [V, D]
        start = (
            torch.ones(len(table))
            if weights is None
            else torch.as_tensor(weights, dtype=torch.float32)
        )
        self.token_weights = DeclaredParameter(start[:, None].clone(), kind)  # [V, 1]
        self.dropout = nn.Dropout(config.dropout or 0.0)
        self.residual = (
            nn.Linear(table.shape[1], table.shape[1], bias=False) if config.residual else None
        )
        if self.residual is not None:
            # starts as the plain bag; gelu keeps its gradient alive
            nn.init.zeros_(self.residual.weight)

    def pool(self, texts: TextBatch) -> Tensor:
        if texts.bag_index is None:
            texts.bag_index = BagIndex(texts)  # fixed label batches keep theirs between steps
        with torch.autocast(self.table.device.type, enabled=False):
            # [B, D]
            summed = _WeightedBag.apply(self.table, self.token_weights, texts.bag_index)
        return self._finish(summed)

    def pool_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = self.token_weights[ids] * mask[..., None]  # [B, T, 1]
        return self._finish((self.table[ids] * weights).sum(1))

    def _finish(self, summed: Tensor) -> Tensor:
        if self.residual is not None:
            unit = _Normalize.apply(summed) if self.config.normalize else summed
            summed = unit + self.residual(F.gelu(unit))
        return self.dropout(summed)

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "bag.json").write_text(
            json.dumps({"tokens": len(self.table), "width": self.table.shape[1]}) + "\n"
        )


def token_embeddings(source: str, trust_remote_code: bool = False) -> Tensor:
    """Token embeddings [V, width] of a pretrained encoder; read straight from its weights where
    that is possible."""
    weights = Path(resolve(source)) / "model.safetensors"
    if weights.is_file():
        with open_tensors(weights) as file:
            names = word_embedding_names(file.keys())
            if len(names) == 1:
                return file.get_tensor(names[0])
    from transformers import AutoModel

    settings = text_settings(source, trust_remote_code)
    model = from_pretrained(AutoModel, source, config=settings, trust_remote_code=trust_remote_code)
    return model.get_input_embeddings().weight.detach()


def tokenizer_source(config: EncoderConfig) -> str:
    """The name whose tokenizer the encoder uses."""
    return config.tokenizer or (config.init if config.name == "bag" else config.name)


def encoder_groups(config: EncoderConfig) -> frozenset[str]:
    """Names of the parameter groups that `decay_groups` makes of an encoder; the config is
    resolved."""
    if config.name != "bag":
        return frozenset({"encoder"})
    dense = config.residual or config.projection
    return frozenset({"table", "encoder"} if dense else {"table"})


def inverse_document_frequency(counts: np.ndarray, texts: int) -> np.ndarray:
    """log((1 + n) / (1 + n_t)) for each token [V]: 0 for a token of every text, special tokens
    among them."""
    return np.log((1.0 + texts) / (1.0 + counts)).astype(np.float32)


def build_encoder(config: EncoderConfig, data) -> TextEncoder:
    """The encoder of section `encoder:`; `data` (a Dataset) gives the token counts that `bag`
    starts from."""
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
        _check_vocabulary(encoder.tokenizer, len(encoder.table), tokenizer, name)
    else:
        table = token_embeddings(name, config.trust_remote_code)
        weights = None
        if config.token_weights == "idf":
            weights = inverse_document_frequency(*data.token_document_counts(len(table)))
        encoder = BagEncoder(config, tokenizer, weights, table)
        _check_vocabulary(encoder.tokenizer, len(table), tokenizer, name)
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
        _check_vocabulary(
            encoder.tokenizer, len(encoder.table), str(folder), str(folder / "bag.json")
        )
    else:
        # never a pickle
        encoder = TransformerEncoder(config, str(folder), use_safetensors=True)
    encoder.load_head(folder)
    return encoder
