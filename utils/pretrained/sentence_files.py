"""Files of a folder in the layout of sentence-transformers, and the names that stand in them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from utils.errors import InputError
from utils.pretrained.location import file_of
from utils.reading.saved import read_json

Weights = dict[str, Tensor]
IDENTITY = "torch.nn.modules.linear.Identity"
GELU = "torch.nn.modules.activation.GELU"
PROMPT = "default"  # name of the prompt that stands before every text
WHOLE = "config_sentence_transformers.json"


def refuse(where: str, values: dict[str, Any]) -> None:
    """Raise InputError for the first of these options that is set."""
    for key, value in values.items():
        if value not in (None, False, "", {}, []):
            raise InputError(f"{where}: {key} is {str(value)[:80]}, which is not supported")


def inside_of(path: str, file: str) -> str:
    """Return where a module's file lies in an encoder's folder; the first module may be at ""."""
    return f"{path}/{file}" if path else file


def mapping_of(name: str, path: str) -> dict[str, Any]:
    """Return a JSON file of an encoder as a mapping; {} if it has none."""
    content = json_of(name, path)
    if content is not None and not isinstance(content, dict):
        raise InputError(
            f"encoder '{name}': {path}: expected a mapping, got {type(content).__name__}"
        )
    return content or {}


def json_of(name: str, path: str) -> Any:
    """Return what a JSON file of an encoder holds; None if it has none."""
    file = file_of(name, path)
    return None if file is None else read_json(file)
