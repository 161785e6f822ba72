"""Rows of a large matrix in float32, bfloat16 or int8, in memory or mapped from disk.

    store = RowStore.of(weights, "int8")          # one scale a row
    store.save(folder, "labels")
    store = RowStore.load(folder, "labels", "int8")
    store.dots(queries, ids, over_threads)        # [B, K]

Of a mapped store only the pages that hold those rows are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from utils.files import written_whole
from utils.reading.input_files import present
from utils.reading.saved import check_finite, map_rows

PRECISIONS = ("float32", "bfloat16", "int8")
KINDS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}
BLOCK_FLOATS = 1 << 22  # converted or multiplied at once

Work = Callable[[int, int], None]  # of queries [first, last)
OverThreads = Callable[[Work, int], None]  # shares so many queries out


@dataclass(frozen=True)
class RowStore:
    """rows [n, D]: float32, uint16 (the upper half of a float32) or int8.

    scales [n] float32, of int8 alone: row = rows * scale.
    """

    rows: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        precision: str,
        out: np.ndarray | None = None,
    ) -> RowStore:
        """Rows [n, D] float32 in another precision, block by block.

        Args:
            out: where to put them, a mapped file for instance.
        """
        if precision not in KINDS:
            raise ValueError(f"unknown precision '{precision}'; known: {', '.join(PRECISIONS)}")
        if precision == "float32":
            return cls(values, np.ones(0, np.float32))
        rows = np.empty(values.shape, KINDS[precision]) if out is None else out
        scales = np.ones(len(values) if precision == "int8" else 0, np.float32)
        for part in _blocks(values):
            block = np.asarray(values[part], np.float32)
            check_finite(block, f"rows to hold in {precision}")
            if precision == "int8":
                scales[part] = np.maximum(np.abs(block).max(1, initial=0), 1e-30) / 127
                rows[part] = np.rint(block / scales[part, None]).astype(np.int8)
            else:
                bits = block.view(np.uint32)
                # Rounded to the nearest even.
                rows[part] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return cls(rows, scales)

    @property
    def precision(self) -> str:
        return next(name for name, kind in KINDS.items() if kind == self.rows.dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def floats(self, part: slice | np.ndarray) -> np.ndarray:
        """Some rows as float32 [m, D]."""
        block = self.rows[part]
        if block.dtype == np.uint16:
            return (block.astype(np.uint32) << 16).view(np.float32)
        return block * self.scales[part, None] if block.dtype == np.int8 else block

    def products(self, queries: np.ndarray) -> np.ndarray:
        """Inner products of queries [B, D] with all rows: [B, n]."""
        products = np.empty((len(queries), len(self)), np.float32)
        # Nothing is gained by float32 copies.
        if len(queries) == 1 and self.rows.dtype != np.float32:
            _dots(0, 1, self.rows, self.scales, queries, np.arange(len(self))[None], products)
            return products
        out = torch.from_numpy(products)
        left = torch.from_numpy(queries)
        for part in _blocks(self.rows):
            rows = torch.from_numpy(self.floats(part))
            torch.matmul(left, rows.T, out=out[:, part])
        return products

    def dots(
        self,
        queries: np.ndarray,
        ids: np.ndarray,
        over: OverThreads,
    ) -> np.ndarray:
        """Inner products of queries [B, D] with the rows at ids [B, K]; 0 where an id is negative.

        Args:
            over: calls work(first, last) for shares of the queries.
        """
        products = np.empty(ids.shape, np.float32)

        def work(first: int, last: int) -> None:
            _dots(first, last, self.rows, self.scales, queries, ids, products)

        over(work, len(queries))
        return products

    def save(self, folder: Path, name: str) -> None:
        """Write .npy files whose names begin with `name`."""
        paths = self._files(folder, name, self.precision)
        for path, array in zip(paths, (self.rows, self.scales), strict=False):
            with written_whole(path) as partial, open(partial, "wb") as file:
                np.save(file, array)

    @classmethod
    def convert(
        cls,
        folder: Path,
        name: str,
        precision: str,
    ) -> None:
        """Write the saved float32 rows in another precision beside them.

        Block by block: they may not fit in memory.
        """
        source = cls.load(folder, name, "float32").rows
        path, *of_scales = cls._files(folder, name, precision)
        with written_whole(path) as partial:
            rows = np.lib.format.open_memmap(partial, "w+", KINDS[precision], source.shape)
            scales = cls.of(source, precision, rows).scales
            rows.flush()
        for scales_path in of_scales:
            with written_whole(scales_path) as partial, open(partial, "wb") as file:
                np.save(file, scales)

    @staticmethod
    def _files(
        folder: Path,
        name: str,
        precision: str,
    ) -> list[Path]:
        """The files of rows in some precision: their own, then that of int8's scales."""
        base = name if precision == "float32" else f"{name}.{precision}"
        files = [Path(folder) / f"{base}.npy"]
        if precision == "int8":
            files.append(Path(folder) / f"{base}.scale.npy")
        return files

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        precision: str,
        count: int | None = None,
    ) -> RowStore:
        """Map what `save` wrote.

        Where there is only float32, the other precision is made of it in memory.

        Args:
            count: rows that there must be; None = any number.
        Raises:
            InputError: naming the file which does not fit.
        """
        paths = cls._files(folder, name, precision)
        if precision != "float32" and not all(present(path) for path in paths):
            return cls.of(cls.load(folder, name, "float32", count).rows, precision)
        rows = map_rows(paths[0], (count, None), KINDS[precision])
        if precision != "int8":
            return cls(rows, np.ones(0, np.float32))
        return cls(rows, np.asarray(map_rows(paths[1], (len(rows),))))


def _blocks(values: np.ndarray) -> list[slice]:
    size = max(1, BLOCK_FLOATS // max(values.shape[1], 1))
    return [slice(start, start + size) for start in range(0, len(values), size)]


@intrinsic
def _as_float(typing_context: Any, value: Any) -> tuple[Any, Callable]:
    """A stored value as float32; for uint16, the upper half of its bits.

    A cast that leaves the loop around it vectorised.
    """

    def generate(
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
    ) -> Any:
        if value != types.uint16:
            return context.cast(builder, arguments[0], value, types.float32)
        bits = builder.shl(
            builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16)
        )
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(value), generate


@njit(nogil=True, cache=True, fastmath=True)
def _dots(  # noqa: PLR0917 (a kernel)
    first: int,
    last: int,
    rows: np.ndarray,
    scales: np.ndarray,
    queries: np.ndarray,
    ids: np.ndarray,
    products: np.ndarray,
) -> None:
    """Inner products of queries [first, last) with the rows at their ids.

    Compiled for each kind of rows.
    """
    for q in range(first, last):
        for i in range(ids.shape[1]):
            total = np.float32(0)
            if ids[q, i] >= 0:
                for d in range(rows.shape[1]):
                    total += queries[q, d] * _as_float(rows[ids[q, i], d])
                if len(scales):
                    total *= scales[ids[q, i]]
            products[q, i] = total
