"""Damaged copies of files: a seeded generator for every kind of file that comes from outside.

    for mutation in mutations("npz", seed=3, count=20):
        damaged: bytes = mutation.of(original_bytes)

Every mutation of a structured kind (npz, npy, safetensors, json) breaks the file or keeps its
meaning: whoever reads it must refuse it or give the same result. Mutations of texts (lines, csv,
libsvm, yaml) may also make another valid file (`Mutation.may_differ`).
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mutation:
    """One way to damage a file of a kind; the same seed gives the same bytes."""

    kind: str
    name: str
    seed: int
    change: Callable[[bytes, random.Random], bytes]
    may_differ: bool = False

    def of(self, original: bytes) -> bytes:
        """The damaged copy of a file's bytes."""
        return self.change(original, random.Random(self.seed))

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}-{self.seed}"


# -------------------------------- any bytes


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _nothing(data: bytes, rng: random.Random) -> bytes:
    return b""


def _noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(max(len(data), 1))


def _flip(data: bytes, rng: random.Random) -> bytes:
    """Some bits of the first 60 bytes, where headers lie: a changed value is another valid file."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(min(len(out), 60))
        out[place] ^= 1 << rng.randrange(8)
    return bytes(out)


def _other_kind(data: bytes, rng: random.Random) -> bytes:
    return (
        rng.choice(
            [
                b"PK\x03\x04",
                b"\x93NUMPY",
                b"{}",
                b"%PDF-1.4\n",
                b"\x1f\x8b\x08\x00",
                b"\x80\x04K\x01.",
                b"\xff\xfe{\x00",
            ]
        )
        + data[: rng.randrange(20)]
    )


# -------------------------------- npy


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file; object arrays are pickled."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _forged(array: np.ndarray, shape: object, dtype: str | None = None) -> bytes:
    """A .npy whose header tells of another shape or kind than its bytes have."""
    header = {"descr": dtype or array.dtype.str, "fortran_order": False, "shape": shape}
    text = repr(header).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


def _forge_shape(array: np.ndarray, rng: random.Random) -> bytes:
    size = rng.choice([1 << 40, 1 << 62, -1, array.size + 1, max(array.size - 1, 0)])
    return _forged(array, rng.choice([(size,), (size, size), (3, size), [size]]))


def _forge_header(array: np.ndarray, rng: random.Random) -> bytes:
    return rng.choice(
        [
            _forged(array, "shape"),
            _forged(array, (array.size,), "|V0"),
            _forged(array, (array.size,), "no such kind"),
            _forged(array, None),
            b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
            b"\x93NUMPY\x09\x00" + npy(array)[8:],
        ]
    )


def _strings(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return array.astype(np.float64).astype(rng.choice(["U8", "S8"]))


def _dates(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return array.astype(np.int64).astype(rng.choice(["datetime64[D]", "timedelta64[s]"]))


def _complex(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return array.astype(np.complex64) + 1j


def _objects(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return array.astype(object)


def _records(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return np.zeros(array.shape, [("a", "i4"), ("b", "f4")])


def _more_axes(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return rng.choice([array[None], array.reshape(-1, 1, 1), array[..., None]])


def _scalar(array: np.ndarray, rng: random.Random) -> np.ndarray:
    if not array.ndim:  # another number may be as good
        return array[None]
    return np.array(rng.choice([0, 7, -1]), array.dtype if array.dtype.kind in "if" else np.int64)


def _emptied(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return array[:0] if array.ndim else np.zeros(0, np.float32)


def _shorter(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return array[:-1] if array.ndim and len(array) else np.zeros((2, 2), np.float32)


def _longer(array: np.ndarray, rng: random.Random) -> np.ndarray:
    return np.concatenate([array, array[-1:]]) if array.ndim and len(array) else np.zeros(3)


ARRAY_CHANGES = (
    _strings,
    _dates,
    _complex,
    _objects,
    _records,
    _more_axes,
    _scalar,
    _emptied,
    _shorter,
    _longer,
)


def _change_array(array: np.ndarray, rng: random.Random) -> bytes:
    if array.dtype.kind not in "biuf":  # a name among the numbers, as that of a sparse format
        return npy(rng.choice([np.array(b"abc"), np.array(7), np.array([b"csc", b"csr"])]))
    if rng.random() < 0.25:
        return rng.choice([_forge_shape, _forge_header])(array, rng)
    return npy(rng.choice(ARRAY_CHANGES)(array, rng))


def _not_finite(array: np.ndarray, rng: random.Random) -> np.ndarray | None:
    if array.dtype.kind != "f" or not array.size:
        return None
    out = array.copy()
    out.flat[rng.randrange(out.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return out


def _npy_array(data: bytes, rng: random.Random) -> bytes:
    return _change_array(np.load(io.BytesIO(data)), rng)


def _npy_not_finite(data: bytes, rng: random.Random) -> bytes:
    array = _not_finite(np.load(io.BytesIO(data)), rng)
    return _cut(data, rng) if array is None else npy(array)


# -------------------------------- npz


def members_of(data: bytes) -> dict[str, bytes]:
    """The members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive of members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _npz_member(data: bytes, rng: random.Random) -> bytes:
    members = members_of(data)
    name = rng.choice(sorted(members))
    array = np.load(io.BytesIO(members[name]))
    members[name] = _change_array(array, rng)
    return zipped(members)


def _npz_missing(data: bytes, rng: random.Random) -> bytes:
    members = members_of(data)
    del members[rng.choice(sorted(members))]
    return zipped(members)


def _npz_bytes(data: bytes, rng: random.Random) -> bytes:
    members = members_of(data)
    name = rng.choice(sorted(members))
    members[name] = rng.choice([_cut, _nothing, _noise])(members[name], rng)
    return zipped(members)


def _npz_not_finite(data: bytes, rng: random.Random) -> bytes:
    members = members_of(data)
    for name in rng.sample(sorted(members), len(members)):
        array = _not_finite(np.load(io.BytesIO(members[name])), rng)
        if array is not None:
            members[name] = npy(array)
            return zipped(members)
    return _cut(data, rng)


def _npz_indices(data: bytes, rng: random.Random) -> bytes:
    """Integers that point outside: of a sparse matrix, a tree, a list of ids."""
    members = members_of(data)
    arrays = {name: np.load(io.BytesIO(content)) for name, content in members.items()}
    pointing = sorted(
        name
        for name, array in arrays.items()
        if array.dtype.kind in "iu" and array.ndim and array.size
    )
    if not pointing:
        return _npz_missing(data, rng)
    name = rng.choice(pointing)
    array = arrays[name].astype(np.int64)
    array.flat[rng.randrange(array.size)] = rng.choice([-2, -(1 << 31), 1 << 30, (1 << 62) + 1])
    members[name] = npy(array)
    return zipped(members)


def _npz_bomb(data: bytes, rng: random.Random) -> bytes:
    """A member that says it has sixteen gigabytes."""
    members = members_of(data)
    name = rng.choice(sorted(members))
    array = np.load(io.BytesIO(members[name]))
    members[name] = _forged(array.ravel()[:1], (1 << 34,), "|i1")
    return zipped(members)


# -------------------------------- safetensors


def _header(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _safetensors(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _st_header(data: bytes, rng: random.Random) -> bytes:
    header, body = _header(data)
    name = rng.choice(sorted(k for k in header if k != "__metadata__"))
    entry = header[name]
    change = rng.randrange(7)
    if change == 0:
        entry["dtype"] = rng.choice(["F64", "I32", "BOOL", "F16", "X9", 3])
    elif change == 1:
        entry["shape"] = rng.choice([[1 << 40], [-1], [], "x", [3, 3, 3], entry["shape"] + [1]])
    elif change == 2:
        entry["data_offsets"] = rng.choice([[0, 1 << 50], [5, 1], [-4, 4], "x", [0]])
    elif change == 3:
        header["other"] = header.pop(name)
    elif change == 4:
        del header[name]
    elif change == 5:
        header[name] = rng.choice([None, 3, [], "x"])
    else:
        return struct.pack("<Q", rng.choice([0, 1 << 60, len(data) * 2])) + data[8:]
    return _safetensors(header, body)


def _st_not_finite(data: bytes, rng: random.Random) -> bytes:
    header, body = _header(data)
    floats = sorted(
        k
        for k, v in header.items()
        if k != "__metadata__"
        and v["dtype"] == "F32"
        and v["data_offsets"][1] > v["data_offsets"][0]
    )
    if not floats:
        return _cut(data, rng)
    start, stop = header[rng.choice(floats)]["data_offsets"]
    place = start + 4 * rng.randrange((stop - start) // 4)
    value = struct.pack("<f", rng.choice([float("nan"), float("inf")]))
    return data[: len(data) - len(body)] + body[:place] + value + body[place + 4 :]


# -------------------------------- JSON

ODD_VALUES = (None, True, -1, 3.5, 10**30, "x", "", [], {}, [[]], {"a": {}}, [None], "\ud83d")


def _places(value: object, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield from _places(part, (*path, key))


def replaced(value: object, path: tuple, new: object) -> object:
    """A copy of nested lists and maps with another value at a path."""
    if not path:
        return new
    out = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
    out[path[0]] = replaced(out[path[0]], path[1:], new)  # type: ignore[index]
    return out


def _json_value(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    place = rng.choice(list(_places(value)))
    return json.dumps(replaced(value, place, rng.choice(ODD_VALUES))).encode()


def _json_missing(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    maps = [place for place in _places(value) if place and isinstance(place[-1], str)]
    if not maps:
        return b"null"
    place = rng.choice(maps)
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    del owner[place[-1]]
    return json.dumps(value).encode()


def _json_deep(data: bytes, rng: random.Random) -> bytes:
    return b"[" * rng.choice([2_000, 200_000])


def _json_text(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [
            data.replace(b":", b"=", 1),
            data + b"}",
            b"\xff" + data,
            data[:-3],
            data.decode().encode("utf-16"),
            b"NaN",
            b"1" * 5000,
        ]
    )


# -------------------------------- lines of text


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")


def _line_changed(change: Callable[[bytes, random.Random], bytes]) -> Callable:
    def apply(data: bytes, rng: random.Random) -> bytes:
        lines = _lines(data)
        place = rng.randrange(len(lines))
        lines[place] = change(lines[place], rng)
        return b"\n".join(lines)

    return apply


def _odd_bytes(line: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(line) + 1)
    odd = rng.choice(
        [
            b"\xff",
            b"\x00",
            b"\r",
            b'"',
            b"\xed\xa0\xbd",
            b"\xe2\x80\xa8",
            b"\t",
            b",",
            b":",
            b" ",
            b"9" * 400,
            b"-",
            b"nan",
            b"1e999",
            b"[",
            b"\\",
        ]
    )
    return line[:place] + odd + line[place:]


def _line_gone(line: bytes, rng: random.Random) -> bytes:
    return b""


def _long_line(line: bytes, rng: random.Random) -> bytes:
    return line * (200_000 // max(len(line), 1) + 1)


def _doubled(data: bytes, rng: random.Random) -> bytes:
    lines = _lines(data)
    place = rng.randrange(len(lines))
    return b"\n".join([*lines[:place], lines[place], *lines[place:]])


def _other_coding(data: bytes, rng: random.Random) -> bytes:
    return data.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))


def _other_ends(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n"]))


ANY = (_cut, _nothing, _noise, _flip, _other_kind)
TEXT = (
    _line_changed(_odd_bytes),
    _line_changed(_odd_bytes),
    _line_changed(_line_gone),
    _line_changed(_long_line),
    _doubled,
    _other_coding,
    _other_ends,
)
KINDS: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
    "npz": (
        *ANY,
        _npz_member,
        _npz_member,
        _npz_member,
        _npz_missing,
        _npz_bytes,
        _npz_not_finite,
        _npz_indices,
        _npz_indices,
        _npz_bomb,
    ),
    "npy": (*ANY, _npy_array, _npy_array, _npy_array, _npy_not_finite),
    "safetensors": (*ANY, _st_header, _st_header, _st_header, _st_not_finite),
    "json": (*ANY, _json_value, _json_value, _json_value, _json_missing, _json_deep, _json_text),
    "lines": (_nothing, _noise, _other_kind, *TEXT),
}
TEXTS = ("lines",)


def mutations(kind: str, seed: int, count: int) -> list[Mutation]:
    """`count` mutations of a kind, its ways in turn."""
    ways = KINDS[kind]
    return [
        Mutation(
            kind,
            f"{ways[i % len(ways)].__name__.strip('_')}",
            seed * 10_000 + i,
            ways[i % len(ways)],
            kind in TEXTS,
        )
        for i in range(count)
    ]
