"""The compiled step of row-sparse AdamW: one pass over the rows that have a gradient."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(
    nogil=True,
    cache=True,
    error_model="numpy",
    fastmath={"contract", "nsz"},
)
def adamw_rows(
    rows: np.ndarray,
    gradients: np.ndarray,
    parameter: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    steps: np.ndarray,
    rate: np.float32,
    betas: tuple[np.float32, np.float32],
    eps: np.float32,
    decay: np.float32,
) -> None:
    """AdamW (Loshchilov & Hutter, 2019, algorithm 2) on some rows of a table, in place.

    Args:
        rows: [u] int64, distinct.
        gradients: [u, D].
        parameter, first, second: [L, D] weights and moments.
        steps: [L] updates of each row so far.
        rate, betas, eps, decay: learning rate, (beta1, beta2), epsilon, weight decay; float32.
    """
    one = np.float32(1)
    for i in range(len(rows)):
        row = rows[i]
        steps[row] += one
        lift1 = one / (one - betas[0] ** steps[row])
        lift2 = one / (one - betas[1] ** steps[row])
        gradient = gradients[i]
        weight = parameter[row]
        mean = first[row]
        square = second[row]
        for d in range(len(gradient)):
            mean[d] += (one - betas[0]) * (gradient[d] - mean[d])
            square[d] = betas[1] * square[d] + (one - betas[1]) * gradient[d] * gradient[d]
            weight[d] -= rate * (
                lift1 * mean[d] / (np.sqrt(lift2 * square[d]) + eps) + decay * weight[d]
            )
