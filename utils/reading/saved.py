"""Parts of a saved model, read with what they must be: names, shapes and kinds of numbers.

    told = read_facts(folder / "method.json", num_labels=int, members=list[str])
    rows = read_tensors(folder / "classifier.safetensors", {"weight": (L, D), "bias": (L,)})
    keys = map_rows(folder / "keys.npy", (None, D))

A model may come from a stranger: what it holds is never believed before it has been looked at.
Every error is an `InputError` that begins with the file.
"""

from __future__ import annotations

import contextlib
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from utils.errors import InputError
from utils.reading.arrays import read_array
from utils.reading.input_files import check_file

Shape = tuple[int | None, ...]  # None = any size
LARGEST_JSON = 1 << 26  # bytes
LOOKED_AT = 1 << 26  # numbers of a mapped array whose values are looked at when it is opened
BLOCK = 1 << 22  # numbers looked at at once
DTYPES = {"F32": torch.float32, "I64": torch.int64}  # of tensors that a saved model may hold


# -------------------------------- JSON


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    check_file(path, "a JSON file")
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise InputError(f"{path}: expected at most {LARGEST_JSON:,} bytes of JSON, got {size:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path}: not JSON that can be read (lists or maps too deep)") from None
    except ValueError as error:  # of json, of int, and of the decoder
        raise InputError(f"{path}: not JSON ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_facts(path: Path, **kinds: Any) -> dict[str, Any]:
    """Return the map of a JSON file, which must have these keys.

    Args:
        kinds: what each value must be: int (0 or more), float, str, dict, or a list[...] of those.
    Raises:
        InputError: naming the file, the key, what was expected and what came.
    """
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise InputError(f"{path}: expected a JSON map, got {str(facts)[:60]!r}")
    for key, kind in kinds.items():
        if key not in facts:
            raise InputError(
                f"{path}: expected a key {key!r}, got only {', '.join(sorted(facts)) or 'none'}"
            )
        if not _is_a(facts[key], kind):
            wanted = str(kind) if typing.get_args(kind) else kind.__name__
            raise InputError(f"{path}: {key}: expected {wanted}, got {str(facts[key])[:60]!r}")
    return facts


def _is_a(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        part = typing.get_args(kind)[0]
        return isinstance(value, list) and all(_is_a(item, part) for item in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


# -------------------------------- tensors and arrays


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file for the block, which reads what it needs.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    check_file(path, "a safetensors file")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # safetensors has its own, and those of the Rust below it
        raise InputError(
            f"{path}: not a safetensors file ({' '.join(str(error).split())[:200]})"
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, whatever they are; InputError where it is none."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_tensors(
    path: Path,
    expected: Mapping[str, Shape],
    whole: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file: float32, finite, of the shapes that are expected.

    Args:
        expected: names and shapes; no other tensors may stand in the file.
        whole: names of those that hold whole numbers (int64) instead.
    Raises:
        InputError: naming the file, the tensor, what was expected and what came.
    """
    with open_tensors(path) as file:
        check_names(path, file.keys(), expected)
        for name in expected:
            part = file.get_slice(name)
            _check_shape(path, name, tuple(part.get_shape()), expected[name])
            wanted = torch.int64 if name in whole else torch.float32
            if DTYPES.get(part.get_dtype()) != wanted:
                raise InputError(f"{path}: {name}: expected {wanted}, got {part.get_dtype()}")
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        if name not in whole:
            check_finite(tensor.numpy(), f"{path}: {name}")
    return tensors


def check_names(
    path: Path,
    given: Any,
    expected: Any,
) -> None:
    """Raise InputError unless a file holds what is expected, and nothing else."""
    if missing := sorted(set(expected) - set(given)):
        raise InputError(
            f"{path}: expected {missing[0]!r}, got only "
            f"{', '.join(sorted(given))[:200] or 'nothing'}"
        )
    if extra := sorted(set(given) - set(expected)):
        raise InputError(
            f"{path}: {extra[0]!r} does not belong here, expected "
            f"{', '.join(sorted(expected))[:200]}"
        )


def map_rows(
    path: Path, shape: Shape, dtype: Any = np.float32, low: float | None = None
) -> np.ndarray:
    """Return the array of a .npy file, mapped copy-on-write from disk.

    Values are looked at in arrays of up to LOOKED_AT numbers. Of larger ones, which a search reads
    in parts, they are not: there `check_answers` refuses what comes of them.

    Args:
        low: -inf where that may stand in it too.
    Raises:
        InputError: naming the file, what was expected and what came.
    """
    array = read_array(path, mapped=True)
    _check_shape(path, "", array.shape, shape)
    if array.dtype != dtype:
        raise InputError(f"{path}: expected values of {np.dtype(dtype)}, got {array.dtype}")
    if array.size <= LOOKED_AT:
        check_finite(array if low is None else np.maximum(array, np.finfo(dtype).min), str(path))
    return array


def check_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[Shape, type]]
) -> None:
    """Raise InputError unless arrays are finite and of the expected names, shapes and kinds."""
    check_names(path, arrays, expected)
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        _check_shape(path, name, array.shape, shape)
        if array.dtype != dtype:
            raise InputError(
                f"{path}: {name}: expected values of {np.dtype(dtype)}, got {array.dtype}"
            )
        check_finite(array, f"{path}: {name}")


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise NotFiniteError for the first value that is NaN or infinite; whole numbers never are."""
    if values.dtype.kind != "f":
        return
    flat = values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        good = np.isfinite(flat[start : start + BLOCK])
        if not good.all():
            place = start + int(np.argmin(good))
            raise NotFiniteError(
                f"{where}: expected finite numbers, got {flat[place]} at place {place}"
            )


def check_answers(values: np.ndarray | Tensor, what: str) -> None:
    """Raise NotFiniteError where a value that a model computed is NaN or plus infinity.

    Minus infinity stands for `none`.
    """
    if 0 in values.shape:
        return
    if isinstance(values, Tensor):
        values = values.detach()
    largest = float(values.max())  # NaN, if there is one
    if not largest < np.inf:
        raise NotFiniteError(f"{what}: expected finite numbers, got {largest}")


class NotFiniteError(InputError):
    """What a saved model computes is NaN or infinite, though its files can be read."""


@contextlib.contextmanager
def answers_of(run: Path) -> Iterator[None]:
    """NotFiniteError of the block names the run whose model it is."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(
            f"{run / 'model'}: the model is damaged, or was when it was trained: {error}"
        ) from None


def check_ids(
    ids: Tensor | np.ndarray,
    count: int,
    where: str,
) -> None:
    """Raise InputError unless all ids lie in [0, count)."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise InputError(
            f"{where}: expected ids in [0, {count}), got {int(ids.min())} to {int(ids.max())}"
        )


def _check_shape(
    path: Path,
    name: str,
    shape: tuple[int, ...],
    expected: Shape,
) -> None:
    fits = len(shape) == len(expected) and all(
        e in (None, f) for f, e in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise InputError(
            f"{path}: {name + ': ' if name else ''}expected shape ({wanted}), got {shape}"
        )
