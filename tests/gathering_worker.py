"""Run under `accelerate launch`: compares what is gathered with the rows that all processes have.

accelerate launch … -m tests.gathering_worker
"""

import numpy as np
import torch

from utils import distributed

TOTALS = (0, 1, 2, 6, 7, 60)


def rows_of(total: int) -> torch.Tensor:
    """The same on every process [total, 2]."""
    return torch.arange(2.0 * total).view(total, 2)


def check_shares(total: int) -> None:
    """Rows that are shared out, as tensors with a gradient, and as arrays."""
    expected = rows_of(total)
    share = distributed.share(total)
    own = expected[share.start : share.stop].clone().requires_grad_()
    gathered = distributed.gather_rows(own, total)
    assert torch.equal(gathered, expected)
    (gathered * (expected + 1)).sum().backward()
    weight = distributed.world_size() * (expected + 1)[share.start : share.stop]
    assert own.grad is not None
    assert torch.equal(own.grad, weight)
    whole = expected.numpy().astype(np.int32)
    found = distributed.share_arrays(whole[share.start : share.stop], total)
    assert found.dtype == np.int32
    assert np.array_equal(found, whole)
    gathered = distributed.gather_on_main(own, total)
    assert (gathered is None) == (not distributed.is_main())
    assert gathered is None or torch.equal(gathered, expected)


def check_exchange(sizes: list[int]) -> None:
    """Every process has so many rows for each."""
    here = distributed.rank()
    rows = [100 * here + 10 * process + rows_of(size) for process, size in enumerate(sizes)]
    found = distributed.exchange_rows(torch.cat(rows), sizes)
    expected = [100 * process + 10 * here + rows_of(sizes[here]) for process in range(len(sizes))]
    assert torch.equal(found, torch.stack(expected))


def check_any_sizes(sizes: list[int]) -> None:
    """So many rows of each process."""
    parts = [10 * process + rows_of(size) for process, size in enumerate(sizes)]
    found = distributed.gather_parts(parts[distributed.rank()], sizes)
    assert all(torch.equal(*pair) for pair in zip(found, parts, strict=True))


def main() -> None:
    distributed.start("no")
    assert distributed.world_size() > 1
    usual = distributed.AT_ONCE_BYTES, distributed.PIECE_BYTES
    for distributed.AT_ONCE_BYTES, distributed.PIECE_BYTES in (usual, (0, 16)):
        for total in TOTALS:
            check_shares(total)
        for sizes in ([0, 0, 0], [3, 0, 1], [0, 5, 2], [4, 4, 4]):
            check_any_sizes(sizes[: distributed.world_size()])
            check_exchange(sizes[: distributed.world_size()])
    distributed.stop()


if __name__ == "__main__":
    main()
