"""Every loss against the slow obvious version, sharded against whole, and the threshold against
bisection."""

import dataclasses
import math
import threading

import pytest
import torch
from torch.nn import functional

from losses import LOSSES, Exchange, Positives, soft_topk, soft_topk_threshold
from losses.soft_topk import add_slopes
from losses.stream import _Streamed

OPTIONS = {"soft-topk": [{}, {"k": 2.5, "alpha": 1.0}, {"k": "num_pos"}]}
CASES = [(name, options) for name in LOSSES for options in OPTIONS.get(name, [{}])]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(num_queries=6, num_labels=23, dim=5, dtype=torch.float64, density=0.2, seed=0, spread=1.0):
    """Tensors and positives with absent entries, weights, a row without positives, a positive last
    label."""
    rng = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_queries, dim, generator=rng, dtype=torch.float64) * spread
    labels, bias = torch.randn(num_labels, dim + 1, generator=rng, dtype=torch.float64).split(
        [dim, 1], 1
    )
    known = torch.rand(num_queries, num_labels, generator=rng) < density
    if num_queries > 1:
        known[1], known[0, -1] = False, True
    rows, cols = known.nonzero(as_tuple=True)
    weights = torch.rand(len(rows), generator=rng) + 0.1
    counted = torch.rand(len(rows), generator=rng) < 0.7
    positives = Positives.build(rows, cols, num_queries, weights, counted)
    tensors = {"queries": queries, "labels": labels.contiguous(), "bias": bias[:, 0].contiguous()}
    return {key: value.to(dtype).requires_grad_() for key, value in tensors.items()}, positives


def bisect(row, k, alpha):
    """t of one row, by halving in float64 until nothing moves."""
    low, high = -row.max() - 60 / alpha, -row.min() + 60 / alpha
    for _ in range(60):
        middle = (low + high) / 2
        x = alpha * (row + middle)
        small = torch.sigmoid(-x.abs())  # on a plateau the plain sum has too few digits
        residual = (x > 0).sum() - k + torch.where(x > 0, -small, small).sum()
        low, high = (low, middle) if residual > 0 else (middle, high)
    return (low + high) / 2


def naive_row(name, own, negatives, weights, k=5, alpha=2.0):
    """Loss of one row by loops over its positives; own, negatives: lists of scores."""
    everything = torch.stack(own + negatives) if own or negatives else None
    if name == "bce":
        terms = [w * functional.softplus(-s) for w, s in zip(weights, own, strict=True)]
        return sum(terms + [functional.softplus(s) for s in negatives])
    if not own:
        return 0.0
    total = 0.0
    for weight, score in zip(weights, own, strict=True):
        if name == "softmax":
            total = total + weight * (everything.logsumexp(0) - score)
        elif name == "decoupled-softmax":
            total = total + weight * (torch.stack([score, *negatives]).logsumexp(0) - score) / len(
                own
            )
        else:
            k_row = min(len(own) if k == "num_pos" else k, len(everything) - 0.5)
            t = bisect(everything.detach(), k_row, alpha)
            v = torch.sigmoid(alpha * (everything + t))
            slope = (v * (1 - v)).detach()
            t = (
                t - (slope * (everything - everything.detach())).sum() / slope.sum()
            )  # implicit function theorem
            total = total - weight * functional.logsigmoid(alpha * (score + t)) / len(own)
    return total


def naive(name, queries, labels, positives, bias=None, tau=1.0, **options):
    scores = queries @ labels.T / tau + (0 if bias is None else bias)
    known = {
        (int(i), int(j)): n
        for n, (i, j) in enumerate(zip(positives.rows, positives.cols, strict=True))
    }
    total = scores.sum() * 0
    for i in range(len(queries)):
        own, negatives, weights = [], [], []
        for j in range(len(labels)):
            n = known.get((i, j))
            if n is None:
                negatives.append(scores[i, j])
            elif positives.counted[n]:
                own.append(scores[i, j])
                weights.append(positives.weights[n].to(scores.dtype))
        total = total + naive_row(name, own, negatives, weights, **options)
    return total / len(queries) / (len(labels) if name == "bce" else 1)


def evaluate(loss, tensors, **options):
    """Value and gradients, of fresh leaves."""
    leaves = {key: value.detach().clone().requires_grad_() for key, value in tensors.items()}
    value = loss(**leaves, **options)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves.values())]


def assert_same(got, expected, rtol):
    """Relative to the largest entry of each tensor."""
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.isfinite(a).all()
        assert (a - b).abs().max() <= rtol * b.abs().max().clamp_min(1e-3)


def assert_equals_naive(name, tensors, positives, rtol=1e-9, tau=0.7, chunk=None, **options):
    exact = {key: value.detach().double() for key, value in tensors.items()}
    expected = evaluate(
        lambda **kw: naive(name, positives=positives, tau=tau, **options, **kw), exact
    )
    got = evaluate(LOSSES[name], tensors, positives=positives, tau=tau, chunk=chunk, **options)
    assert_same([x.double() for x in got], expected, rtol)
    return got


@pytest.mark.parametrize("chunk", [None, 1, 5, 23, 100])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_value_and_gradients_equal_nested_loops(name, options, chunk):
    tensors, positives = make()
    assert (~positives.counted).any() and (positives.per_row == 0).any()
    assert_equals_naive(name, tensors, positives, chunk=chunk, **options)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_without_a_temperature_scores_are_inner_products(name, options):
    tensors, positives = make()
    got = LOSSES[name](**tensors, positives=positives, **options)
    torch.testing.assert_close(got, naive(name, **tensors, positives=positives, **options))


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_float32(name, options, chunk):
    tensors, positives = make(dtype=torch.float32)
    got = assert_equals_naive(name, tensors, positives, rtol=1e-5, chunk=chunk, **options)
    assert {x.dtype for x in got} == {torch.float32}


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_degenerate_pools(name, options, chunk):
    for shape in (
        {"num_labels": 1, "num_queries": 2},
        {"density": 2.0},
        {"density": -1.0},
        {"num_queries": 1},
        {"dim": 1},
    ):
        tensors, positives = make(**shape)
        assert_equals_naive(name, tensors, positives, chunk=chunk, **options)
    tensors, positives = make(density=2.0)  # everything known
    whole = dataclasses.replace(positives, counted=torch.ones_like(positives.counted))
    known = Positives.build(whole.rows, whole.cols, 6, whole.weights)
    assert_equals_naive(name, tensors, known, chunk=chunk, **options)
    none = torch.zeros_like(positives.counted)  # and everything absent
    absent = Positives.build(positives.rows, positives.cols, 6, positives.weights, none)
    assert_equals_naive(name, tensors, absent, chunk=chunk, **options)


def test_a_row_without_negatives_has_no_decoupled_loss():
    tensors, _ = make(num_queries=2, num_labels=3)
    positives = Positives.build(torch.zeros(3, dtype=torch.long), torch.arange(3), 2)
    value, *grads = evaluate(LOSSES["decoupled-softmax"], tensors, positives=positives)
    assert value == 0 and all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_stay_finite(name, options, chunk, dtype):
    tensors, positives = make(num_labels=30, dtype=dtype)
    queries = torch.zeros(6, 5, dtype=dtype)
    queries[:, 0], queries[3:, 0] = 1e4, -1e4
    labels = torch.zeros(30, 5, dtype=dtype)
    labels[:, 0] = torch.tensor([1.0, 1.0, -1.0]).repeat(10)  # many duplicates
    extreme = {"queries": queries, "labels": labels}
    value, *grads = evaluate(LOSSES[name], extreme, positives=positives, chunk=chunk, **options)
    assert torch.isfinite(value) and all(torch.isfinite(grad).all() for grad in grads)
    if name != "soft-topk":  # its threshold is not unique between two clouds of scores
        rtol = 1e-5 if dtype == torch.float32 else 1e-9
        assert_equals_naive(name, extreme, positives, rtol=rtol, tau=1.0, chunk=chunk)


@pytest.mark.parametrize("options", OPTIONS["soft-topk"] + [{"k": 40}])
def test_soft_topk_gradient_equals_finite_differences(options):
    tensors, positives = make()

    def loss(queries, labels, bias):
        inputs = {"queries": queries, "labels": labels, "bias": bias}
        return soft_topk(**inputs, positives=positives, tau=0.5, chunk=9, **options)

    assert torch.autograd.gradcheck(loss, tuple(tensors.values()), eps=1e-6, atol=1e-7)


def test_soft_topk_takes_a_k_for_each_row():
    tensors, positives = make()
    k = torch.tensor([1.0, 2.0, 3.5, 4.0, 5.0, 22.0])
    got = soft_topk(**tensors, positives=positives, k=k)
    rows = []
    for i in range(6):
        own = positives.rows == i
        alone = Positives.build(
            positives.rows[own] - i,
            positives.cols[own],
            1,
            positives.weights[own],
            positives.counted[own],
        )
        row = {**tensors, "queries": tensors["queries"][i : i + 1]}
        rows.append(naive("soft-topk", **row, positives=alone, k=float(k[i])))
    torch.testing.assert_close(got, sum(rows) / 6)
    assert soft_topk(**tensors, positives=positives, k=torch.tensor(3.0)) == soft_topk(
        **tensors, positives=positives, k=3
    )
    for wrong in (k[:5], k[:, None]):
        with pytest.raises(ValueError, match=r"expected k of shape \[6\], got"):
            soft_topk(**tensors, positives=positives, k=wrong)


@pytest.mark.parametrize("logit", [40.0, -40.0, 3.0, -3.0, 0.0])
def test_slopes_keep_their_digits_at_both_ends(logit):
    """p (1 - p) = 1 / (2 + e^x + e^-x); in float32 1 - p itself would be 0."""
    total = torch.zeros(1)
    add_slopes(torch.tensor([[logit - 1.0, -torch.inf]]), torch.tensor([1.0]), total)
    slow = 1 / (2 + math.exp(logit) + math.exp(-logit))
    assert total.item() == pytest.approx(slow, rel=1e-5, abs=0)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_only_the_gradients_asked_for(name, options):
    tensors, positives = make()
    _, *full = evaluate(LOSSES[name], tensors, positives=positives, **options)
    for chosen, expected in zip(tensors, full, strict=True):
        some = {key: value.detach().requires_grad_(key == chosen) for key, value in tensors.items()}
        loss = LOSSES[name](**some, positives=positives, chunk=6, **options)
        (3 * loss).backward(retain_graph=True)
        once = some[chosen].grad.clone()
        loss.backward()  # a second time: nothing that backward needs may have been destroyed
        assert_same([once, some[chosen].grad], [3 * expected, 4 * expected], 1e-9)
        assert all(some[key].grad is None for key in tensors if key != chosen)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_bfloat16_inputs_under_autocast(name, options):
    tensors, positives = make(dtype=torch.bfloat16)
    expected = evaluate(
        LOSSES[name], {k: v.float() for k, v in tensors.items()}, positives=positives, **options
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = evaluate(LOSSES[name], tensors, positives=positives, chunk=4, **options)
    assert got[0].dtype == torch.float32 and {x.dtype for x in got[1:]} == {torch.bfloat16}
    assert_same(
        got[:1], expected[:1], 1e-5
    )  # the arithmetic is float32; only the gradients' last step rounds
    assert_same([x.float() for x in got[1:]], expected[1:], 5e-3)


class Threads(Exchange):
    """All-reduce between threads, one of them per shard."""

    def __init__(self, size):
        self.size = size
        self.slots = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def reduce(self, value, combine):
        self.slots[int(threading.current_thread().name)] = value
        self.barrier.wait()
        assert value.numel() <= 200 * 6  # per-row statistics only
        result = combine(torch.stack(list(self.slots)))
        self.barrier.wait()
        return result

    def sum(self, value):
        return self.reduce(value, lambda x: x.sum(0))

    def max(self, value):
        return self.reduce(value, lambda x: x.amax(0))


def columns_of(positives, part):
    """The positives of some labels, |P_i| that of the whole pool."""
    here = (positives.cols >= part.start) & (positives.cols < part.stop)
    return Positives(
        positives.rows[here],
        positives.cols[here] - part.start,
        positives.weights[here],
        positives.counted[here],
        positives.per_row,
    )


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("edges", [[0, 8, 16, 23], [0, 0, 22, 23]])
def test_three_shards_equal_the_whole(name, options, edges):
    tensors, positives = make()
    whole = evaluate(LOSSES[name], tensors, positives=positives, tau=0.3, **options)
    exchange = Threads(3)
    results = {}

    def work(rank):
        part = slice(*edges[rank : rank + 2])
        shard = {
            "queries": tensors["queries"],
            "labels": tensors["labels"][part],
            "bias": tensors["bias"][part],
        }
        own = columns_of(positives, part)
        results[rank] = evaluate(
            LOSSES[name], shard, positives=own, tau=0.3, exchange=exchange, chunk=5, **options
        )

    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values, queries, labels, bias = zip(*(results[rank] for rank in range(3)), strict=True)
    for value in values:
        assert_same([value], whole[:1], 1e-9)
    assert_same([sum(queries), torch.cat(labels), torch.cat(bias)], whole[1:], 1e-9)


def score_rows(kind, num_labels, rows=16):
    rng = torch.Generator().manual_seed(num_labels)
    normal = torch.randn(rows, num_labels, generator=rng)
    cosines = (
        functional.normalize(torch.randn(rows, 16, generator=rng))
        @ functional.normalize(torch.randn(num_labels, 16, generator=rng)).T
    )
    return {
        "cosine": 20 * cosines,
        "wide": 30 * normal,
        "uniform": 200 * torch.rand(rows, num_labels, generator=rng) - 100,
        "equal": torch.full((rows, num_labels), 7.0),
        "two clouds": normal + 40 * (torch.rand(rows, num_labels, generator=rng) < 4 / num_labels),
    }[kind]


# no small pool of wide scores: a gap beyond float32's exponents around the k-th has no threshold to
# find
POOLS = [
    (kind, n)
    for kind in ("cosine", "wide", "uniform", "equal", "two clouds")
    for n in (60, 1000, 6491)
]


@pytest.mark.parametrize(("kind", "num_labels"), [*POOLS, ("cosine", 9), ("equal", 9)])
def test_threshold_equals_bisection_in_few_passes(kind, num_labels):
    scores = score_rows(kind, num_labels)
    for k in (1, 5, 4.5, 300 if num_labels > 300 else 8):
        threshold, passes = soft_topk_threshold(scores, k)
        expected = torch.stack([bisect(row.double(), k, 2.0) for row in scores[:4]])
        assert (threshold[:4] - expected).abs().max() <= 1e-5
        assert 1 <= passes <= 7
        exact, _ = soft_topk_threshold(scores[:4].double(), k)
        assert (exact - expected).abs().max() <= 1e-11


def test_threshold_with_absent_entries_and_k_per_row():
    scores = (
        torch.randn(5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    )
    scores[1, 3:] = scores[2, 1:] = scores[3] = -torch.inf
    k = torch.tensor([7.0, 3.0, 5.0, 5.0, 0.25], dtype=torch.float64)
    threshold, _ = soft_topk_threshold(scores, k, alpha=1.0)
    reached = torch.sigmoid(scores + threshold[:, None]).sum(1)
    # k_i = min(k_i, M_i - 0.5)
    expected = torch.tensor([7.0, 2.5, 0.5, 0.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(reached, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_large_pool_streams_without_a_full_matrix(name, monkeypatch):
    """With the budget cut down, auto-chunking must give several chunks and the same result."""
    tensors, positives = make(num_labels=400, density=0.05)
    whole = evaluate(LOSSES[name], tensors, positives=positives)
    monkeypatch.setattr("losses.stream.WHOLE_BYTES", 1 << 10)
    monkeypatch.setattr("losses.stream.CHUNK_BYTES", {"cpu": 1 << 12})
    pools = []
    apply = _Streamed.apply
    monkeypatch.setattr(
        _Streamed, "apply", lambda *inputs: (pools.append(inputs[-1]), apply(*inputs))[1]
    )
    assert_same(evaluate(LOSSES[name], tensors, positives=positives), whole, 1e-9)
    assert len(pools[0].chunks) == 5 and pools[0].width == 85


def test_wrong_shapes_are_named():
    tensors, positives = make()
    loss, queries, labels = LOSSES["softmax"], tensors["queries"], tensors["labels"]
    with pytest.raises(ValueError, match=r"one D, got \(6, 5\) and \(23, 4\)"):
        loss(queries=queries, labels=labels[:, :4], positives=positives)
    with pytest.raises(ValueError, match=r"bias of shape \[23\].*got \(22,\)"):
        loss(queries=queries, labels=labels, positives=positives, bias=tensors["bias"][:22])
    with pytest.raises(ValueError, match=r"per_row of shape \[4\], got \(6,\)"):
        loss(queries=queries[:4], labels=labels, positives=positives)
    with pytest.raises(ValueError, match="tau > 0"):
        loss(queries=queries, labels=labels, positives=positives, tau=0.0)
    with pytest.raises(ValueError, match="num_pos"):
        soft_topk(queries=queries, labels=labels, positives=positives, k="five")
    with pytest.raises(ValueError, match=r"shape \[P\], got weights \(2,\)"):
        Positives.build(positives.rows, positives.cols, 6)  # sound
        dataclasses.replace(positives, weights=torch.ones(2))
    with pytest.raises(ValueError, match="torch.bool"):
        dataclasses.replace(positives, counted=positives.weights)
