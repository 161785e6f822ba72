"""The threshold of soft top-k: u_i with sum_l sigmoid(a_il + u_i) = k_i, in about three passes.

Near the root the sum is often a plateau (the k-th and the next logit far apart): its slope is tiny,
and a sum near k computed directly has lost the digits that decide. Each pass splits the row at x =
a + u = 0, n above:

    sum_l sigmoid(x_l) - k = n - k + A - D,
    A = sum_{x < 0} sigmoid(-|x|),   D = sum_{x > 0} sigmoid(-|x|),

and Newton's method runs on  phi(u) = log(max(n - k, 0) + A) - log(max(k - n, 0) + D),  with the
same root; it is almost linear both on a plateau and where many small terms add up to k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losses.pool import Exchange

GROUPS = 128  # groups of columns whose maxima give the starting point
TILE = 1 << 18  # elements of a tile: its temporaries stay in the cache of a CPU core
TILE_CUDA = 1 << 24
MAX_ITERATIONS = 100
TINY = 1e-300  # float64: keeps the logarithm of an underflowed sum finite


def soft_topk_threshold(
    scores: Tensor,  # [B, L], -inf where absent
    k: float | Tensor,  # number or [B]
    alpha: float = 2.0,
    exchange: Exchange = Exchange(),  # noqa: B008 (stateless)
) -> tuple[Tensor, float]:
    """t [B] with sum_l sigmoid(alpha (s_il + t_i)) = k_i, and the mean number of passes over a row.

    k is limited to M_i - 0.5, with M_i the present entries.
    """
    if scores.dim() != 2:
        raise ValueError(f"expected scores of shape [B, L], got {tuple(scores.shape)}")
    present = exchange.sum((scores > -torch.inf).sum(1))
    shift, passes = solve(scores * alpha, k, present, exchange)
    return shift / alpha, passes


def solve(
    logits: Tensor, k: float | Tensor, present: Tensor, exchange: Exchange
) -> tuple[Tensor, float]:
    """u [B] in the logits' dtype, and the mean passes over a row. logits [B, L]; present: [B].

    A host sync per pass but the first, to visit only the rows that have not converged.
    """
    largest = k if isinstance(k, (int, float)) else None
    k = limit(k, present)
    shift = start(logits, k, present, exchange, largest)
    active = torch.arange(len(logits), device=logits.device)
    if not logits.is_cuda:  # a GPU would be waited for
        active = active[present > 0]
    # The sum is at most M sigmoid(max + u): a lower bound of u; less 1, so that rounding cuts
    # nothing off.
    low = (k / (present - k)).log() - exchange.max(row_max(logits)).double() - 1
    high = torch.full_like(low, torch.inf)
    visited = 0
    for _ in range(MAX_ITERATIONS):
        if not len(active):
            break
        visited += len(active)
        at = shift[active].to(logits.dtype)
        sums = exchange.sum(tile_sums(logits, active, at))
        step, done, low[active], high[active] = advance(
            sums, k[active], at, low[active], high[active]
        )
        shift[active] = at.double() + step
        done |= present[active] == 0
        if visited > len(logits) or not logits.is_cuda:  # hardly a row is done after one pass
            active = active[~done]
    return torch.where(present > 0, shift, 0).to(logits.dtype), visited / max(1, len(logits))


def limit(k: float | Tensor, present: Tensor) -> Tensor:
    """k_i = min(k, M_i - 0.5), [B] float64.

    Sigmoids are below 1: no finite u makes their sum M_i or more.
    """
    if isinstance(k, Tensor):
        wanted = k.to(present.device, torch.float64).expand(present.shape)
    else:
        wanted = torch.full(present.shape, k, dtype=torch.float64, device=present.device)
    return torch.minimum(wanted, present.double() - 0.5).clamp_min(1e-3)


def row_max(logits: Tensor) -> Tensor:
    """The largest logit of each row [B], -inf in rows without any."""
    if not logits.shape[1]:
        return logits.new_full((len(logits),), -torch.inf)
    return logits.amax(1)


def start(
    logits: Tensor,
    k: Tensor,
    present: Tensor,
    exchange: Exchange,
    largest: float | None = None,
) -> Tensor:
    """A first u [B]: minus the logit between the k-th and next of the groups' maxima.

    Where k is large: of a sample of the columns. largest: the largest k, where the host knows it.
    """
    guess = -between(exchange.max(group_maxima(logits)), k)
    large = k > GROUPS / 2
    if largest is None or largest > GROUPS / 2:
        every = max(1, logits.shape[1] // (4 * GROUPS))
        sample = logits[:, ::every]  # of this process: [B, about 4 GROUPS]
        count = (sample > -torch.inf).sum(1)
        sampled = -between(sample, k * count / present.clamp_min(1)) * count
        guess = torch.where(large, exchange.sum(sampled) / exchange.sum(count).clamp_min(1), guess)
    return guess


def between(values: Tensor, k: Tensor) -> Tensor:
    """Half way from the k-th to the next largest finite value of each row, 0 if none.

    values [B, n] -> [B]
    """
    if not values.shape[1]:
        return torch.zeros_like(k)
    last = ((values > -torch.inf).sum(1) - 1).clamp_min(0)
    place = k.ceil().long()
    places = torch.stack([(place - 1).clamp_min(0), place], 1).minimum(last[:, None])  # [B, 2]
    both = values.sort(1, descending=True).values.gather(1, places)
    return both.double().mean(1).nan_to_num(neginf=0.0)


def group_maxima(logits: Tensor) -> Tensor:
    """Maxima of GROUPS groups of columns: the k largest mostly fall into k groups. -> [B, G]"""
    rows = len(logits)
    width = logits.shape[1] // GROUPS
    maxima = logits.new_full((rows, GROUPS), -torch.inf)
    rest = logits[:, width * GROUPS :]
    if width:
        torch.amax(logits[:, : width * GROUPS].unflatten(1, (GROUPS, width)), 2, out=maxima)
    torch.maximum(maxima[:, : rest.shape[1]], rest, out=maxima[:, : rest.shape[1]])
    return maxima


def tile_sums(
    logits: Tensor,
    active: Tensor,
    shift: Tensor,
) -> Tensor:
    """n, A, D and the slopes A', -D' of the active rows, tile by tile.

    active [R], shift [R] -> float64 [5, R]
    """
    tile = TILE_CUDA if logits.is_cuda else TILE
    columns = min(logits.shape[1], 1 << 14)  # also bounds the rounding of a float32 sum
    step = max(1, tile // max(1, columns))
    buffers = logits.new_empty(2, step * columns)  # reused for every tile
    sums = torch.zeros(5, len(active), dtype=torch.float64, device=logits.device)
    for first in range(0, len(active), step):
        rows = slice(first, first + step)
        for column in range(0, logits.shape[1], max(1, columns)):
            part = logits[:, column : column + columns]
            part = part[rows] if len(active) == len(logits) else part[active[rows]]
            x = buffers[0, : part.numel()].view(part.shape)
            q = buffers[1, : part.numel()].view(part.shape)
            torch.add(part, shift[rows, None], out=x)
            sums[:, rows] += side_sums(x, q)
    return sums


def side_sums(x: Tensor, q: Tensor) -> Tensor:
    """The five sums of a tile x [r, c], overwritten as is q of the same shape. -> float64 [5, r]

    q is 0 where x is -inf, a label that is absent.
    """
    torch.copysign(
        x, -1.0, out=q
    ).sigmoid_()  # sigmoid(-|x|): all digits on both sides; 0 if absent
    side = x.sign_()
    # x = 0 counts half, and its q cancels: sigmoid(0) = 1/2
    above = (side.sum(1).double() + x.shape[1]) / 2
    signed = side.mul_(q)
    both = q.sum(1).double()  # D + A
    difference = signed.sum(1).double()  # D - A
    # each side's slope is the sum of its q (1 - q)
    slope_difference = difference - signed.mul_(q).sum(1).double()
    slopes = both - q.mul_(q).sum(1).double()
    sums = [
        above,
        (both - difference) / 2,
        (both + difference) / 2,
        (slopes - slope_difference) / 2,
        (slopes + slope_difference) / 2,
    ]
    return torch.stack(sums).clamp_min_(0)


def advance(
    sums: Tensor, k: Tensor, at: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One safeguarded Newton step from the sums [5, R] at `at` [R], within low and high [R].

    -> (step, whether it is the last, the new low, the new high), all [R]
    """
    above, below, over, slope_below, slope_over = sums
    eps = torch.finfo(at.dtype).eps
    shift = at.double()
    residual = (above - k) + (below - over)
    low = torch.where(residual < 0, shift, low)
    high = torch.where(residual > 0, shift, high)
    up = (above - k).clamp_min(0) + below + TINY
    down = (k - above).clamp_min(0) + over + TINY
    step = (down.log() - up.log()) / (slope_below / up + slope_over / down)
    # also where slopes have underflowed: the step is infinite or not a number
    outside = ~((shift + step >= low) & (shift + step <= high) & step.isfinite())
    middle = torch.where(high < torch.inf, (low + high) / 2 - shift, shift.abs().clamp_min(64))
    step = torch.where(residual == 0, 0, torch.where(outside, middle, step))
    # the error left is of the order of the step squared
    done = step.abs() <= 4 * eps**0.5 + 4 * eps * shift.abs()
    return step, done, low, high
