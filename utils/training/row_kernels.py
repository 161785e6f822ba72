"""The compiled step of row-sparse AdamW: one pass over the rows that have a gradient."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def adamw_rows(rows, gradients, parameter, first, second, steps, rate, betas, eps, decay):
    """AdamW (Loshchilov & Hutter, 2019, algorithm 2) on some rows of a table, in place.

    Args:
        rows: [u] int64, distinct. gradients: [u, D].
        parameter, first, second: [L, D] weights and moments. steps: [L] updates of each row so far.
        rate, betas, eps, decay: learning rate, (beta1, beta2), epsilon, weight decay; float32.
    """
    one = np.float32(1)
    for i in range(len(rows)):
        row = rows[i]
        steps[row] += one
        lift1, lift2 = one / (one - betas[0] ** steps[row]), one / (one - betas[1] ** steps[row])
        gradient, weight, mean, square = gradients[i], parameter[row], first[row], second[row]
        for d in range(len(gradient)):
            mean[d] += (one - betas[0]) * (gradient[d] - mean[d])
            square[d] = betas[1] * square[d] + (one - betas[1]) * gradient[d] * gradient[d]
            weight[d] -= rate * (
                lift1 * mean[d] / (np.sqrt(lift2 * square[d]) + eps) + decay * weight[d]
            )
