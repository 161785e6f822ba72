"""What a pretrained encoder says of itself beside its transformer.

That is pooling, projection, normalisation and a bag's table.

    section = resolve_encoder(config.encoder)    # its nulls filled by what the model says
    read_source("Exported/dexml").head()         # tensors of a TextEncoder, beside the transformer

Four layouts, in a folder or, the last two, on the Hugging Face hub:
  run       RUN/model of a run of ours; its settings are those of RUN/config.yaml
  released  a checkpoint of the released DEXML code (github.com/nilesh2797/DEXML): model.pt, a state
            dict whose names begin with `tf.` and `bottleneck.`, beside its flat config.yaml; or
            such names in model.safetensors
  modules   sentence-transformers: modules.json (sentence_modules.py reads it)
  plain     a transformer and nothing else, as the published DEXML encoders are
Weights are read without running code: safetensors, or torch.load(weights_only=True).
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.config.config import ConfigError, EncoderConfig, read_yaml
from utils.errors import InputError
from utils.pretrained.location import file_of, resolve
from utils.pretrained.sentence_modules import Limit, read_sentence_modules
from utils.reading.saved import load_tensors, open_tensors

log = logging.getLogger(__name__)
UNSAID: dict[str, Any] = {  # where neither config nor model says
    "pooling": "mean",
    "projection": None,
    "normalize": True,
}
SAID_BY_RUNS = (*UNSAID, "prompt", "label_prompt")
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A pretrained encoder beside its transformer.

    Attributes:
        architecture: where its config lies.
        settings: keys of section `encoder` that it fixes.
        bag: whether it is one.
        mean: whether it is a bag of means.
        head: reads the tensors of a TextEncoder beside the transformer.
        transformer: reads the transformer's own where transformers cannot.
        limit: the longest text that it was made for.
    """

    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    bag: bool = False
    mean: bool = False
    head: Callable[[], Weights] = dict
    transformer: Callable[[], Weights] | None = None
    limit: Limit | None = None


def read_source(name: str) -> Source:
    """Find the layout of an encoder and what it says; reads no weights yet.

    Raises:
        InputError: a part of it has no counterpart here, or a file is missing or damaged.
    """
    folder = Path(resolve(name))
    if (folder / "method.json").is_file():
        return _run(folder)
    if (folder / "model.pt").is_file() or _prefixed(folder / "model.safetensors"):
        return _released(folder)
    if file_of(name, "modules.json") is not None:
        encoder = read_sentence_modules(name)
        return Source(
            resolve(name),
            encoder.settings,
            bag=encoder.bag,
            mean=encoder.bag,
            head=encoder.head,
            limit=encoder.limit,
        )
    return Source(resolve(name))


def resolve_encoder(section: EncoderConfig) -> EncoderConfig:
    """Fill the nulls of a section by what the model says, else by UNSAID.

    A folder of a bag becomes `bag`.

    Raises:
        ConfigError: what the section asks for does not go with the model.
    """
    source = read_source(section.init if section.name == "bag" else section.name)
    says = source.settings
    if source.bag and section.name != "bag":
        section = dataclasses.replace(section, name="bag", init=section.name)
    elif section.name == "bag" and not source.bag:
        says = {}  # a new bag takes a transformer's token embeddings, nothing else
    if says.get("projection") and section.projection not in (None, says["projection"]):
        raise ConfigError(
            f"encoder.projection is {section.projection}, but {source.architecture} has a "
            f"projection to {says['projection']} dimensions; leave it null"
        )
    for key, value in says.items():
        if key in SAID_BY_RUNS and getattr(section, key) not in (None, value):
            log.info(
                "encoder.%s is %r, although %s was made with %r",
                key,
                getattr(section, key),
                source.architecture,
                value,
            )
    section = fill(section, {**UNSAID, **says})
    if source.mean and not section.normalize:
        raise ConfigError(
            f"{source.architecture} takes the mean of its token vectors, encoder `bag` their sum, "
            "which have the direction alone in common: it needs encoder.normalize: true"
        )
    return section


def fill(section: EncoderConfig, values: Mapping[str, Any] = UNSAID) -> EncoderConfig:
    """Return the section with `values` where it says null."""
    unsaid = {key: value for key, value in values.items() if getattr(section, key) is None}
    return dataclasses.replace(section, **unsaid)


def _run(folder: Path) -> Source:
    config = folder.parent / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{folder}: the model of a run, but {config} is missing, which says how its encoder "
            "pools and normalises; name the folder in its run, or export the run: python -m "
            "utils.export RUN DIR"
        )
    section = read_yaml(config).get("encoder") or {}
    head = folder / "head.safetensors"
    return Source(
        str(folder),
        {key: section[key] for key in SAID_BY_RUNS if section.get(key) is not None},
        bag=(folder / "bag.json").is_file(),
        head=lambda: load_tensors(head) if head.is_file() else {},
    )


def _prefixed(path: Path) -> bool:
    if not path.is_file():
        return False
    with open_tensors(path) as file:
        return any(name.startswith("tf.") for name in file.keys())  # noqa: SIM118


def _released(folder: Path) -> Source:
    """A checkpoint of the released code, and what its flat config says, if it has one."""
    path = folder / "config.yaml"
    flat = read_yaml(path) if path.is_file() else {}
    has_architecture = (folder / "config.json").is_file()
    if not has_architecture and not flat.get("tf"):
        raise InputError(
            f"{folder}: a checkpoint of the released code without its architecture: expected "
            "config.json, or config.yaml with the key tf"
        )
    architecture = str(folder) if has_architecture else str(flat["tf"])

    def part(prefix: str, new_prefix: str) -> Weights:
        return {
            new_prefix + name.removeprefix(prefix): tensor.float()
            for name, tensor in _state(folder).items()
            if name.startswith(prefix)
        }

    return Source(
        architecture,
        _released_settings(folder, flat),
        head=lambda: part("bottleneck.", "projection."),
        transformer=lambda: part("tf.", ""),
    )


def _released_settings(folder: Path, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of section `encoder` that a released checkpoint fixes."""
    if not flat:
        bias = _state(folder).get("bottleneck.bias")
        return {"projection": None if bias is None else len(bias)}
    settings: dict[str, Any] = {"projection": flat.get("bottleneck_dim") or None}
    path = folder / "config.yaml"
    if "tf_pooler" in flat:
        if flat["tf_pooler"] not in ("cls", "mean"):
            raise InputError(f"{path}: tf_pooler is {flat['tf_pooler']}, expected cls or mean")
        settings["pooling"] = flat["tf_pooler"]
    if "norm_embs" in flat:
        settings["normalize"] = bool(flat["norm_embs"])
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        settings["tokenizer"] = str(flat.get("tf_token_type") or flat["tf"])
    return settings


def _state(folder: Path) -> Weights:
    """The state dict of a released checkpoint, without a process wrapper's prefix of its names."""
    if (folder / "model.pt").is_file():
        try:
            state = torch.load(
                folder / "model.pt", map_location="cpu", weights_only=True, mmap=True
            )
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{folder / 'model.pt'}: not a state dict of tensors "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    else:
        state = load_tensors(folder / "model.safetensors")
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise InputError(f"{folder / 'model.pt'}: expected a state dict of tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    # The last two are classifier rows of dist-clf-net, which are not read.
    known = ("tf.", "bottleneck.", "all_w.", "local_w.")
    strange = [name for name in state if not name.startswith(known)]
    if strange or not any(name.startswith("tf.") for name in state):
        raise InputError(
            f"{folder}: expected names that begin with {', '.join(known)}, got "
            f"{(strange or [*state])[:3]}"
        )
    return state
