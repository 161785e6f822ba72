"""The steps of the threshold's search, each against loops over its formula."""

import math

import pytest
import torch

from losses import Exchange, threshold
from losses.threshold import (
    TINY,
    advance,
    between,
    group_maxima,
    limit,
    row_max,
    side_sums,
    solve,
    start,
    tile_sums,
)
from tests.pretend.device import pretended_gpu
from tests.pretend.waits import READ

INF = math.inf
FLOAT64 = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=FLOAT64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_sums(row, shift):
    """n, A, D, A', -D' of a row of logits, by a loop; x = 0 counts half on each side."""
    above = below = over = slope_below = slope_over = 0.0
    for logit in row:
        x = logit + shift
        small = sigmoid(-abs(x)) if x > -INF else 0.0
        slope = small * (1 - small)
        above += 0.5 if x == 0 else float(x > 0)
        below += small / 2 if x == 0 else small * (x < 0)
        over += small / 2 if x == 0 else small * (x > 0)
        slope_below += slope / 2 if x == 0 else slope * (x < 0)
        slope_over += slope / 2 if x == 0 else slope * (x > 0)
    return [above, below, over, slope_below, slope_over]


def slow_step(sums, k):
    """Newton's step on phi(u) = log(max(n - k, 0) + A) - log(max(k - n, 0) + D)."""
    above, below, over, slope_below, slope_over = sums
    up = max(above - k, 0) + below + TINY
    down = max(k - above, 0) + over + TINY
    phi = math.log(up) - math.log(down)
    return -phi / (slope_below / up + slope_over / down)


def logits_with_ties_and_absent(rows=7, columns=50, seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randint(-6, 7, (rows, columns), generator=rng).double() / 2
    logits[torch.rand(rows, columns, generator=rng) < 0.2] = -INF
    logits[1] = -INF
    return logits


@pytest.mark.parametrize("tile", [1, 60, 1 << 18])
def test_sums_of_tiles_are_those_of_loops(monkeypatch, tile):
    monkeypatch.setattr(threshold, "TILE", tile)
    logits = logits_with_ties_and_absent()
    shift = tensor([0.5, 0.0, -1.0, 2.25, 0.0, -0.5, 1.0])
    for active in (torch.arange(7), torch.tensor([0, 3, 4])):
        sums = tile_sums(logits, active, shift[active])
        slow = [slow_sums(logits[i].tolist(), shift[i].item()) for i in active]
        assert sums.dtype == FLOAT64
        torch.testing.assert_close(sums, tensor(slow).T, rtol=1e-12, atol=1e-14)


def test_long_rows_are_summed_in_parts():
    logits = torch.linspace(-3, 3, (1 << 14) + 5, dtype=FLOAT64)[None]
    sums = tile_sums(logits, torch.tensor([0]), tensor([0.25]))
    torch.testing.assert_close(sums[:, 0], tensor(slow_sums(logits[0].tolist(), 0.25)))


def test_sums_of_absent_entries_are_zero():
    x = torch.full((1, 3), -INF, dtype=FLOAT64)
    assert side_sums(x, torch.empty_like(x))[:, 0].tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("k", [2.0, 5.5, 20.0])
def test_a_step_is_newtons_on_the_difference_of_logarithms(k):
    rows = logits_with_ties_and_absent()[[0, 2, 3, 4]].tolist()
    at = [0.1, -0.2, 0.3, 0.75]
    sums = [slow_sums(row, shift) for row, shift in zip(rows, at, strict=True)]
    low = torch.full((4,), -INF, dtype=FLOAT64)
    step, done, new_low, new_high = advance(
        tensor(sums).T, tensor([k] * 4), tensor(at), low, torch.full_like(low, INF)
    )
    torch.testing.assert_close(step, tensor([slow_step(s, k) for s in sums]))
    assert not done.any()
    for i, row in enumerate(rows):
        total = sum(sigmoid(x + at[i]) if x > -INF else 0.0 for x in row)
        assert new_low[i] == (at[i] if total < k else -INF)
        assert new_high[i] == (at[i] if total > k else INF)


def test_a_plateau_that_underflowed_still_tells_where_to_go():
    """n = k: A and D alone decide, and either may have underflowed to 0."""
    low, high = tensor([-1e4, -1e4]), tensor([1e4, 1e4])
    sums = [[3.0, 1e-200, 0.0, 1e-200, 0.0], [3.0, 0.0, 1e-200, 0.0, 1e-200]]
    step, *_ = advance(tensor(sums).T, tensor([3.0, 3.0]), tensor([0.0, 0.0]), low, high)
    torch.testing.assert_close(step, tensor([slow_step(s, 3.0) for s in sums]))
    assert step[0] < 0 < step[1]


def test_a_step_out_of_the_bracket_goes_to_its_middle_or_doubles():
    # all four want to go up; Newton's step is about 1e3 for a slope so small
    sums = tensor([[0.0, 0.5, 0.0, 5e-4, 0.0]] * 4).T
    at = tensor([1.0, 1.0, -100.0, 1.0])
    low, high = tensor([-INF] * 4), tensor([5.0, INF, INF, 1e5])
    step, *_ = advance(sums, tensor([1.0] * 4), at, low, high)
    newton = slow_step(sums[:, 0].tolist(), 1.0)
    assert newton > 4
    # [1, 5] -> its middle
    torch.testing.assert_close(step, tensor([2.0, newton, newton, newton]))
    nothing = tensor([[0.0, 0.0, 0.0, 0.0, 0.0]] * 3).T  # no slope: the step is not a number
    step, *_ = advance(nothing, tensor([1.0] * 3), at[:3], low[:3], tensor([5.0, INF, INF]))
    assert step.tolist() == [2.0, 64.0, 100.0]


def test_a_step_is_the_last_where_its_square_is_below_rounding():
    eps = 2.0**-23
    bound = 4 * eps**0.5
    at = torch.tensor([0.0, 0.0, 1e3, 1e3])
    # n = k, A' = A and D' = D: the step is (log D - log A) / 2
    wanted = tensor([0.9 * bound, 1.1 * bound, bound + 3 * eps * 1e3, bound + 5 * eps * 1e3])
    below = torch.full((4,), 1e-3, dtype=FLOAT64)
    over = below * (2 * wanted).exp()
    sums = torch.stack([tensor([3.0] * 4), below, over, below, over])
    low = torch.full((4,), -INF, dtype=FLOAT64)
    step, done, *_ = advance(sums, tensor([3.0] * 4), at, low, torch.full_like(low, INF))
    torch.testing.assert_close(step, wanted)
    assert done.tolist() == [True, False, True, False]


def test_gaps_beyond_the_exponents_of_float32_are_found_by_halving():
    """A start by a sample may lie off the root, where every slope has underflowed."""
    rng = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(2000, generator=rng) for _ in range(4)]).float() * 300
    shift, _ = solve(scores, 100, torch.full((4,), 2000), Exchange())
    assert ((scores + shift[:, None]) > 0).sum(1).tolist() == [100] * 4


def test_at_the_root_nothing_moves():
    sums = tensor([[3.0, 0.25, 0.25, 0.1, 0.1]]).T
    bracket = tensor([-9.0]), tensor([7.0])
    step, done, low, high = advance(sums, tensor([3.0]), tensor([2.0]), *bracket)
    assert (step.item(), done.item(), low.item(), high.item()) == (0.0, True, -9.0, 7.0)


def test_k_is_limited_by_the_entries_that_are_there():
    present = torch.tensor([10, 5, 3, 1, 0])
    assert limit(5, present).tolist() == [5, 4.5, 2.5, 0.5, 1e-3]
    assert limit(torch.tensor([0.0, 1.5, 3.0, 9.0, 1.0]), present).tolist() == [
        1e-3,
        1.5,
        2.5,
        0.5,
        1e-3,
    ]


def slow_between(row, k):
    """Half way from the k-th to the next largest finite value, or the last there is."""
    finite = sorted((x for x in row if x > -INF), reverse=True)
    if not finite:
        return 0.0
    upper = min(max(math.ceil(k) - 1, 0), len(finite) - 1)
    lower = min(math.ceil(k), len(finite) - 1)
    return (finite[upper] + finite[lower]) / 2


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0, 2.0, 2.5, 30.0, 100.0])
def test_between_the_kth_and_the_next(k):
    values = logits_with_ties_and_absent(seed=1) ** 3
    got = between(values, torch.full((7,), k, dtype=FLOAT64))
    assert got.tolist() == [slow_between(row, k) for row in values.tolist()]
    assert between(values[:, :0], tensor([k] * 7)).tolist() == [0.0] * 7


@pytest.mark.parametrize("columns", [0, 1, 127, 128, 129, 300, 512])
def test_maxima_of_groups(columns):
    logits = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns))
    width = columns // 128
    groups = [list(range(g * width, (g + 1) * width)) for g in range(128)]
    for i, column in enumerate(range(128 * width, columns)):
        groups[i].append(column)
    slow = [[max((row[c] for c in g), default=-INF) for g in groups] for row in logits.tolist()]
    assert group_maxima(logits).tolist() == slow
    assert row_max(logits).tolist() == [max(row, default=-INF) for row in logits.tolist()]


@pytest.mark.parametrize("columns", [300, 1024, 2000])
def test_the_start_is_between_maxima_or_by_a_sample(columns):
    """Many labels in the top: every (L / 512)-th logit is a sample, of which k L' / L are in it."""
    rng = torch.Generator().manual_seed(columns)
    logits = torch.randn(4, columns, generator=rng, dtype=FLOAT64)
    logits[2, ::3] = -INF
    logits[3] = -INF
    present = (logits > -INF).sum(1)
    k = limit(tensor([3.0, 64.0, 65.0, 1.0]), present)
    got = start(logits, k, present, Exchange())
    few = [-slow_between(row, k[i].item()) for i, row in enumerate(group_maxima(logits).tolist())]
    sample = logits[2, :: max(columns // 512, 1)].tolist()
    count = sum(x > -INF for x in sample)
    many = -slow_between(sample, 65.0 * count / present[2].item())
    torch.testing.assert_close(got, tensor([few[0], few[1], many, few[3]]))


class Lowest(Exchange):
    """Another process has the row's maximum: bounds must be of both."""

    def max(self, value):
        return value.clamp_min(50.0)


def test_the_lower_bound_is_of_the_largest_logit(monkeypatch):
    """M sigmoid(max + u) = k at u = log(k / (M - k)) - max; one less for rounding."""
    seen = {}

    def recorded(sums, k, at, low, high):
        seen.setdefault("low", low.clone())
        seen.setdefault("high", high.clone())
        return advance(sums, k, at, low, high)

    monkeypatch.setattr(threshold, "advance", recorded)
    logits = logits_with_ties_and_absent()[[0, 2]]
    present = (logits > -INF).sum(1)
    for exchange, largest in ((Exchange(), logits.amax(1).tolist()), (Lowest(), [50.0, 50.0])):
        seen.clear()
        solve(logits, 5, present, exchange)
        bound = [
            math.log(5 / (m - 5)) - top - 1
            for m, top in zip(present.tolist(), largest, strict=True)
        ]
        assert seen["low"].tolist() == pytest.approx(bound)
        assert seen["high"].tolist() == [INF, INF]


def test_passes_are_counted_over_all_rows():
    """A row that is at its root after the first pass is not visited again; absent rows never."""
    logits = torch.full((4, 10), -INF, dtype=FLOAT64)
    logits[0] = 0.0  # the start is 0: off the root
    logits[1, :2] = tensor([0.0, 0.0])  # sigmoid(0) + sigmoid(0) = 1: the start is the root
    shift, passes = solve(logits, tensor([5.0, 1.0, 1.0, 1.0]), tensor([10, 2, 0, 0]), Exchange())
    assert shift.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert passes == 2 / 4
    assert solve(logits[:0], 1, torch.zeros(0), Exchange())[1] == 0


def test_a_gpu_visits_all_rows_once_more_and_finds_the_same():
    """It is not waited for after the first pass; a row without labels is done at once."""
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    logits[2] = -INF
    logits[4, 3:] = -INF
    present = (logits > -INF).sum(1)
    expected, _ = solve(logits, 5, present, Exchange())
    with pretended_gpu() as waits:
        shift, passes = solve(logits.to("cuda"), 5, present.to("cuda"), Exchange())
        found = shift.to("cpu")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found[2] == 0
    assert 2 <= passes <= 6
    assert waits.count(READ) <= passes + 1  # a pass each but the first, and ours
