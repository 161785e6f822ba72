"""Weights of a folder of sentence-transformers as the tensors of a TextEncoder.

They are what stands beside the transformer; see `utils.pretrained.sentence_writing` for a bag.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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


def projection_weights(layers: Sequence[DenseLayer]) -> Weights:
    if not layers:
        return {}
    found = layers[-1].weights()
    return {
        "projection.weight": found["weight"],
        "projection.bias": found.get("bias", torch.zeros(len(found["weight"]))),
    }


def bag_weights(name: str, path: str, layers: Sequence[DenseLayer], special: bool) -> Weights:
    inside = inside_of(path, "model.safetensors")
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
    return {**head, **projection_weights(layers[2:])}
