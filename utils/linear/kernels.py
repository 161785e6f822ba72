"""Compiled kernels of linear rankers: fit the children of a cluster, score (query, cluster) pairs.

Weights live in chunks, one per cluster (parent), as in MSCM (Etter et al., WWW 2022): a chunk
lists, sorted, the features that any child of the cluster uses, and for each the entries (child,
weight). A query's features are looked up once per chunk instead of once per child. Features are a
sparse and a dense part side by side: ids 0..F-1 are the sparse columns, F..F+D-1 the dense ones,
F+D the bias.

Everything here releases the GIL and allocates its own output, so that threads of a pool can run it
side by side.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 16  # children fitted together: 16 float32 are one cache line
OPTIONS = {"nogil": True, "cache": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}


@intrinsic
def _add_scaled(typing_context, target, at, source, row, scale):
    """target[at:at + LANES] += scale * source[row:row + LANES], float32, unchecked.

    One vector instruction each. Written out because LLVM, left alone, vectorises the loop around it
    with gathers, four times as slow.
    """
    signature = types.void(target, types.intp, source, types.intp, types.float32)

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), LANES)
        lane = ir.IntType(32)
        empty = ir.Constant(vector, ir.Undefined)

        def pointer(kind, array, offset):
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())

        to, other = (pointer(signature.args[i], arguments[i], arguments[i + 1]) for i in (0, 2))
        factor = builder.insert_element(empty, arguments[4], ir.Constant(lane, 0))
        factor = builder.shuffle_vector(
            factor, empty, ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        )
        product = builder.fmul(builder.load(other, align=4), factor, flags=["contract"])
        builder.store(
            builder.fadd(builder.load(to, align=4), product, flags=["contract"]), to, align=4
        )
        return context.get_dummy_value()

    return signature, generate


@njit(**OPTIONS)
def _local_rows(indptr, indices, data, points, where, lptr, lidx, lval, feats):
    """Write rows `points` with their columns renumbered in the order of appearance.

    Returns how many columns there are.
    """
    count = 0
    at = 0
    for i in range(len(points)):
        lptr[i] = at
        for j in range(indptr[points[i]], indptr[points[i] + 1]):
            f = indices[j]
            if where[f] < 0:
                where[f] = count
                feats[count] = f
                count += 1
            lidx[at] = where[f]
            lval[at] = data[j]
            at += 1
    lptr[len(points)] = at
    for i in range(count):
        where[feats[i]] = -1
    return count


@njit(**OPTIONS)
def _shuffle(order, state):
    """Fisher-Yates with a 64-bit linear congruential generator; returns its new state."""
    for i in range(len(order) - 1, 0, -1):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        j = np.int64((state >> np.uint64(33)) % np.uint64(i + 1))
        order[i], order[j] = order[j], order[i]
    return state


@njit(**OPTIONS)
def _solve(
    lptr,
    lidx,
    lval,
    dense,
    points,
    width,
    bias,
    sign,
    active,
    cost,
    eps,
    passes,
    seed,
    weight,
    alpha,
):
    """Dual coordinate descent for up to LANES problems over the same points, in lockstep.

    Hsieh et al., ICML 2008. Problem l: min_w 1/2 |w|^2 + C sum_i max(0, 1 - sign_il w.x_i)^2.
    Neighbouring problems share every feature look-up, and a row of `weight` holds a feature's
    weights of all of them, so the inner loops are vector instructions. A problem has converged when
    its projected gradients of a whole pass lie within `eps`; then it rests.

    weight [(width + D + 1) * LANES], alpha [n * LANES]: zero at entry; sign [n * LANES], 0 where a
    point is absent.
    """
    n = len(points)
    dims = dense.shape[1]
    order = np.arange(n)
    state = np.uint64(seed) + np.uint64(88172645463325252)
    z, step = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    high, low = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    norms = np.empty(n, np.float32)
    for i in range(n):
        total = np.float32(bias * bias)
        for j in range(lptr[i], lptr[i + 1]):
            total += lval[j] * lval[j]
        for j in range(dims):
            total += dense[points[i], j] * dense[points[i], j]
        norms[i] = total
    half = np.float32(0.5 / cost)
    last = (width + dims) * LANES
    for _ in range(passes):
        state = _shuffle(order, state)
        for lane in range(LANES):
            high[lane], low[lane] = -np.inf, np.inf
        for at in range(n):
            i = order[at]
            for lane in range(LANES):
                z[lane] = bias * weight[last + lane]
            for j in range(lptr[i], lptr[i + 1]):
                _add_scaled(z, 0, weight, lidx[j] * LANES, lval[j])
            for j in range(dims):
                _add_scaled(z, 0, weight, (width + j) * LANES, dense[points[i], j])
            moved = np.float32(0)
            norm = norms[i]
            for lane in range(LANES):
                s, a = sign[i * LANES + lane], alpha[i * LANES + lane]
                gradient = (s * z[lane] - np.float32(1) + a * half) * s * s
                projected = gradient if a > 0 else min(gradient, np.float32(0))
                high[lane] = max(high[lane], projected)
                low[lane] = min(low[lane], projected)
                new = max(a - gradient / (norm + half), np.float32(0))
                delta = (new - a) * active[lane]
                alpha[i * LANES + lane] = a + delta
                step[lane] = delta * s
                moved += abs(delta)
            if moved == 0:
                continue
            for j in range(lptr[i], lptr[i + 1]):
                _add_scaled(weight, lidx[j] * LANES, step, 0, lval[j])
            for j in range(dims):
                _add_scaled(weight, (width + j) * LANES, step, 0, dense[points[i], j])
            _add_scaled(weight, last, step, 0, bias)
        running = np.float32(0)
        for lane in range(LANES):
            if high[lane] - low[lane] <= eps:
                active[lane] = 0
            running += active[lane]
        if running == 0:
            return


@njit(**OPTIONS)
def _grow(array, size):
    larger = np.empty(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger


@njit(**OPTIONS)
def fit_chunk(
    indptr,
    indices,
    data,
    num_features,
    dense,
    points,
    marked_ptr,
    marked,
    marks,
    cost,
    bias,
    eps,
    passes,
    threshold,
    seed,
    where,
):
    """Fit the children of one cluster on the points that reach it.

    Args:
        indptr, indices, data: sparse features of all points, CSR float32 with F = num_features
        columns.
        dense: dense features [N, D] float32; D may be 0.
        points: rows that reach the cluster [n], ascending.
        marked_ptr, marked, marks: rows that are no negatives of each child [children + 1],
            [entries], positive where the mark is > 0, else absent; those that are not among
            `points` do not count.
        cost: C. bias: value of the constant feature.
        eps, passes: when to stop; `_solve`.
        threshold: weights of a smaller magnitude are dropped, the bias excepted.
        where: scratch [F] int32 of -1; left so.
    Returns:
        (features [R] int32 ascending, ptr [R + 1] int64, children [entries] int32,
        values [entries] float32)
    """
    n = len(points)
    dims = dense.shape[1]
    children = len(marked_ptr) - 1
    entries = 0
    for p in points:
        entries += indptr[p + 1] - indptr[p]
    lptr, lidx, lval = (
        np.empty(n + 1, np.int64),
        np.empty(entries, np.int32),
        np.empty(entries, np.float32),
    )
    feats = np.empty(min(entries, num_features), np.int32)
    width = _local_rows(indptr, indices, data, points, where, lptr, lidx, lval, feats)
    size = (width + dims + 1) * LANES
    weight = np.empty(size + LANES, np.float32)
    skipped = (64 - weight.ctypes.data % 64) % 64 // 4  # a feature's weights lie in one cache line
    weight = weight[skipped : skipped + size]
    sign, alpha = np.empty(n * LANES, np.float32), np.empty(n * LANES, np.float32)
    active = np.empty(LANES, np.float32)
    rows_at, child_at = np.empty(1024, np.int32), np.empty(1024, np.int32)
    value_at = np.empty(1024, np.float32)
    kept = 0
    for first in range(0, children, LANES):
        lanes = min(LANES, children - first)
        weight[:], alpha[:], sign[:], active[:] = 0, 0, -1, 0
        active[:lanes] = 1
        for lane in range(lanes):
            for j in range(marked_ptr[first + lane], marked_ptr[first + lane + 1]):
                at = np.searchsorted(points, marked[j])
                if at < n and points[at] == marked[j]:
                    sign[at * LANES + lane] = 1 if marks[j] > 0 else 0
        _solve(
            lptr,
            lidx,
            lval,
            dense,
            points,
            width,
            np.float32(bias),
            sign,
            active,
            cost,
            eps,
            passes,
            seed + first,
            weight,
            alpha,
        )
        for row in range(width + dims + 1):
            limit = threshold if row < width + dims else np.float32(0)
            for lane in range(lanes):
                v = weight[row * LANES + lane]
                if v != 0 and abs(v) >= limit:
                    if kept == len(rows_at):
                        rows_at, child_at = _grow(rows_at, 2 * kept), _grow(child_at, 2 * kept)
                        value_at = _grow(value_at, 2 * kept)
                    rows_at[kept], child_at[kept], value_at[kept] = row, first + lane, v
                    kept += 1
    return _by_feature(
        rows_at[:kept], child_at[:kept], value_at[:kept], feats[:width], num_features, dims
    )


@njit(**OPTIONS)
def _by_feature(rows, children, values, feats, num_features, dims):
    """Sort entries (local feature, child, value) by feature id, then child.

    Returns (features, ptr, children, values) as `fit_chunk`.
    """
    width = len(feats)
    counts = np.zeros(width + dims + 1, np.int64)
    for row in rows:
        counts[row] += 1
    ids = np.empty(width + dims + 1, np.int32)
    used = 0
    order = np.argsort(feats)
    for at in range(width + dims + 1):
        row = order[at] if at < width else at
        if counts[row]:
            ids[used] = row
            used += 1
    features = np.empty(used, np.int32)
    ptr = np.zeros(used + 1, np.int64)
    start = np.zeros(width + dims + 1, np.int64)
    for at in range(used):
        row = ids[at]
        features[at] = feats[row] if row < width else num_features + row - width
        start[row] = ptr[at]
        ptr[at + 1] = ptr[at] + counts[row]
    out_children, out_values = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    for j in range(len(rows)):  # groups of children come in ascending order: the sort is stable
        to = start[rows[j]]
        out_children[to], out_values[to] = children[j], values[j]
        start[rows[j]] = to + 1
    return features, ptr, out_children, out_values


@njit(**OPTIONS)
def _add_row(ptr, children, values, row, v, out, base):
    start = np.uint64(base)  # unsigned: no check for indices that count from the end
    for j in range(np.uint64(ptr[row]), np.uint64(ptr[row + 1])):
        out[start + np.uint64(children[j])] += v * values[j]


@njit(**OPTIONS)
def score_pairs(
    indptr,
    indices,
    data,
    dense,
    bias,
    queries,
    chunks,
    offsets,
    chunk_ptr,
    features,
    ptr,
    children,
    values,
    num_features,
    where,
    out,
):
    """Inner products of queries with the children of clusters.

    Args:
        indptr, indices, data, dense: features of the queries, as in `fit_chunk`.
        queries, chunks, offsets: pair p asks for query queries[p], cluster chunks[p]; its
            children's scores go to out[offsets[p]:]. Sorted by chunk, so that a chunk's features
            are spread out once for all its queries.
        chunk_ptr: rows of cluster c are chunk_ptr[c]:chunk_ptr[c + 1] of `features` and `ptr`.
        where: scratch [F] int32 of -1; left so.
        out: zeros.
    """
    dims = dense.shape[1]
    first = 0
    while first < len(queries):
        chunk = chunks[first]
        stop = first
        lookups = 0
        while stop < len(queries) and chunks[stop] == chunk:
            lookups += indptr[queries[stop] + 1] - indptr[queries[stop]]
            stop += 1
        begin, end = chunk_ptr[chunk], chunk_ptr[chunk + 1]
        sparse_end = end
        while sparse_end > begin and features[sparse_end - 1] >= num_features:
            sparse_end -= 1
        spread = 8 * lookups > sparse_end - begin
        if spread:
            for row in range(begin, sparse_end):
                where[features[row]] = row - begin
        for p in range(first, stop):
            q, base = queries[p], offsets[p]
            for j in range(indptr[q], indptr[q + 1]):
                f = indices[j]
                if spread:
                    row = np.int64(where[f])
                else:
                    row = np.searchsorted(features[begin:sparse_end], f)
                    if begin + row == sparse_end or features[begin + row] != f:
                        row = -1
                if row >= 0:
                    _add_row(ptr, children, values, begin + row, data[j], out, base)
            for row in range(sparse_end, end):
                f = features[row] - num_features
                _add_row(ptr, children, values, row, dense[q, f] if f < dims else bias, out, base)
        if spread:
            for row in range(begin, sparse_end):
                where[features[row]] = -1
        first = stop


@njit(**OPTIONS)
def spread_beam(child_ptr, parents, scores, offsets, out_children, out_scores):
    """Write the children of each pair's cluster, and its score for each, from offsets[p] on."""
    for p in range(len(parents)):
        child = child_ptr[parents[p]]
        for at in range(offsets[p], offsets[p + 1]):
            out_children[at], out_scores[at] = child, scores[p]
            child += 1


@njit(**OPTIONS)
def merge_copies(ptr, ids, values, mean, out_ptr):
    """Merge the candidates of one id within each row, in place: their mean, or their maximum.

    Rows are packed to the front of `ids` and `values`; their new limits go to out_ptr [n + 1].
    """
    to = 0
    start = ptr[0]
    for i in range(len(ptr) - 1):
        stop = ptr[i + 1]
        out_ptr[i] = to
        order = np.argsort(ids[start:stop], kind="mergesort")
        row_ids, row_values = ids[start:stop][order], values[start:stop][order]
        at = 0
        while at < len(row_ids):
            last = at + 1
            total, best = row_values[at], row_values[at]
            while last < len(row_ids) and row_ids[last] == row_ids[at]:
                total += row_values[last]
                best = max(best, row_values[last])
                last += 1
            ids[to] = row_ids[at]
            values[to] = total / np.float32(last - at) if mean else best
            to += 1
            at = last
        start = stop
    out_ptr[len(ptr) - 1] = to
