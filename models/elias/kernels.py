"""Loops over the edges of ELIAS's graph, compiled by numba for a CPU.

Letters as in search.py; all arrays are of numpy.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def hashed_selection(
    first, last, clusters, log_scores, labels, log_edges, rows, chosen, edges, paths
):
    """`select_labels` of queries [first, last) on a CPU.

    One pass over the edges with a hash table of labels.
    """
    slots = clusters.shape[1]
    width = labels.shape[1]
    size = chosen.shape[1]
    capacity = 16
    while capacity < 2 * slots * width:
        capacity *= 2
    mask = capacity - 1
    keys = np.full(capacity, -1, np.int32)
    best = np.empty(capacity, np.float32)
    where = np.empty(capacity, np.int32)
    used = np.empty(slots * width, np.int32)
    values = np.empty(slots * width, np.float32)
    for query in range(first, last):
        # every label once, with the best of its paths
        count = 0
        for slot in range(slots):
            cluster = clusters[query, slot]
            if cluster < 0:
                continue
            row = rows[query, slot]
            score = log_scores[query, slot]
            for place in range(width):
                label = labels[cluster, place]
                if label < 0:
                    break
                path = score + log_edges[row, place]
                at = (np.int64(label) * 2654435761 >> 7) & mask
                while keys[at] != -1 and keys[at] != label:
                    at = (at + 1) & mask
                if keys[at] == -1:
                    keys[at] = label
                    used[count] = at
                    count += 1
                elif path <= best[at]:
                    continue
                best[at] = path
                where[at] = slot * width + place

        # the path of the last label that is kept, and how many of equal paths are
        for i in range(count):
            values[i] = best[used[i]]
        threshold = -np.inf
        ties = count
        if count > size:
            threshold = np.partition(values[:count], count - size)[count - size]
            ties = size
            for i in range(count):
                ties -= values[i] > threshold

        # what is kept, in the order of ids: of equal paths the lower ids
        kept = 0
        for i in range(count):  # used[kept] is behind used[i]: what is kept moves to the front
            if values[i] >= threshold:
                used[kept], used[i] = used[i], used[kept]
                kept += 1
        ids = np.empty(kept, np.int32)
        for i in range(kept):
            ids[i] = keys[used[i]]
        out = 0
        for i in np.argsort(ids):
            at = used[i]
            if best[at] == threshold:
                ties -= 1
                if ties < 0:
                    continue
            chosen[query, out] = keys[at]
            edges[query, out] = where[at]
            paths[query, out] = best[at]
            out += 1

        # nothing behind the last; an empty table for the next query
        for i in range(out, size):
            chosen[query, i] = -1
            edges[query, i] = 0
            paths[query, i] = -np.inf
        for i in range(count):
            keys[used[i]] = -1


@njit(nogil=True, cache=True)
def given_paths(ids, log_scores, top, log_edges, starts, places):
    """log s_c s_cl of given labels [B, n]: the best over a query's top clusters.

    For a label that none of them reaches the best over all clusters; -inf for id -1 and a label
    without edges.

    Args:
        log_scores: of all clusters [B, C].
        top: the best of them [B, beam].
        log_edges: [C, W].
        starts: of each label's edges among the places [L + 1].
        places: in the flat log_edges, label by label.
    """
    paths = np.empty(ids.shape, np.float32)
    width = log_edges.shape[1]
    in_beam = np.zeros(len(log_edges), np.bool_)
    for query in range(len(ids)):
        in_beam[top[query]] = True
        for i in range(ids.shape[1]):
            inside = np.float32(-np.inf)
            anywhere = np.float32(-np.inf)
            label = ids[query, i]
            for at in range(starts[label], starts[label + 1]) if label >= 0 else range(0):
                cluster = places[at] // width
                path = log_scores[query, cluster] + log_edges[cluster, places[at] % width]
                anywhere = max(anywhere, path)
                if in_beam[cluster]:
                    inside = max(inside, path)
            paths[query, i] = anywhere if inside == -np.inf else inside
        in_beam[top[query]] = False
    return paths
