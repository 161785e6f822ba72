"""Weights of a folder of sentence-transformers as the tensors of a TextEncoder.

They are what stands beside the transformer; see `utils.pretrained.sentence_writing` for a bag.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.errors import InputError
from utils.pretrained.location import file_of, load_tokenizer
from utils.pretrained.sentence_files import Weights, inside_of, mapping_of
from utils.reading.saved import load_tensors


class DenseLayer:
    """A Dense module that is read where it is needed."""

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = path
        self.config = mapping_of(name, f"{path}/config.json")
        self.rows = self.config.get("out_features")

    def expect(self, activation: str) -> None:
        """Refuse another activation, a residual or another input than the embedding."""
        given = self.config.get("activation_function", "torch.nn.modules.activation.Tanh")
        if (
            given != activation
            or self.config.get("use_residual")
            or self.config.get("module_input_name", "sentence_embedding") != "sentence_embedding"
        ):
            raise InputError(
                f"encoder '{self._name}': {self._path}/config.json: expected activation "
                f"{activation} and no residual or other input, got {self.config}"
            )

    def weights(self) -> Weights:
        """Read `weight` [out, in] and, if it has one, `bias` [out]."""
        path = file_of(self._name, f"{self._path}/model.safetensors")
        if path is None:
            raise InputError(f"encoder '{self._name}': {self._path}/model.safetensors is missing")
        tensors = load_tensors(path)
        weights = {name.removeprefix("linear."): t.float() for name, t in tensors.items()}
        if "weight" not in weights:
            raise InputError(
                f"{path}: expected a tensor linear.weight, got {', '.join(weights) or 'none'}"
            )
        return weights


def projection_weights(layers: Sequence[DenseLayer]) -> Weights:
    """Return the last layer as a TextEncoder's projection; {} if there is none."""
    if not layers:
        return {}
    layer = layers[-1].weights()
    return {
        "projection.weight": layer["weight"],
        "projection.bias": layer.get("bias", torch.zeros(len(layer["weight"]))),
    }


def bag_weights(
    name: str,
    path: str,
    layers: Sequence[DenseLayer],
    special: bool,
) -> Weights:
    """Return the tensors of a bag.

    Args:
        path: folder of the module StaticEmbedding, inside the encoder's.
        special: whether special tokens count; StaticEmbedding leaves them out, our tokens do not.
    """
    inside = inside_of(path, "model.safetensors")
    file = file_of(name, inside)
    table = load_tensors(file).get("embedding.weight") if file else None
    if table is None:
        raise InputError(f"encoder '{name}': {inside} with embedding.weight is missing")
    token_weights = torch.ones(len(table), 1)
    if not special:
        token_weights[load_tokenizer(name)("")["input_ids"]] = 0.0
    head = {"table": table.float(), "token_weights": token_weights}
    if layers:
        head["residual.weight"] = _residual(name, layers, table.shape[1])
    return {**head, **projection_weights(layers[2:])}


def _residual(
    name: str,
    layers: Sequence[DenseLayer],
    dim: int,
) -> Tensor:
    """R [D, D] of the two Dense modules [I; -I] and [R + I, -I]."""
    first = layers[0].weights()
    second = layers[1].weights()
    both = second["weight"]
    one = torch.eye(dim)
    if (
        not torch.equal(first["weight"], torch.cat([one, -one]))
        or not torch.equal(both[:, dim:], -one)
        or "bias" in first
        or "bias" in second
    ):
        raise InputError(
            f"encoder '{name}': its Dense modules are not the residual layer that utils.export "
            "writes"
        )
    return both[:, :dim] - one
