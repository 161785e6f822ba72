"""Compiled kernels of balanced clustering: scores, centres and cuts of rows that are never copied.

Rows are given as values, indices, indptr and 1 / norm of each: dense (values [n, F], the others
empty) or CSR. `values.ndim` is known when a kernel is compiled: 2 for dense rows, 1 for CSR.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# The smallest gain in the mean similarity of a row to its centre that is worth another iteration.
TOLERANCE = 1e-4
# Norms of rows between these are safe in float32; shorter rows count as zeros.
LONGEST, SHORTEST = 1e18, 1e-30
VANISHED = 1e-6  # a sum of unit rows that is shorter has no direction: its centre is 0


@njit(nogil=True, cache=True)
def inverse_norms(values, indices, indptr, inverse):
    """Fill 1 / |row| (0 for rows of zeros); the first row that is too long or NaN, else -1."""
    for row in range(len(inverse)):
        squares = 0.0
        if values.ndim == 2:
            for j in range(values.shape[1]):
                squares += np.float64(values[row, j]) ** 2
        else:
            for at in range(indptr[row], indptr[row + 1]):
                squares += np.float64(values[at]) ** 2
        if not squares < LONGEST**2:
            return row
        inverse[row] = 1 / np.sqrt(squares) if squares > SHORTEST**2 else 0
    return -1


@njit(nogil=True, cache=True, fastmath=True)
def score(values, indices, indptr, inverse, members, direction, scores):
    """scores[i] = unit row of members[i] . direction."""
    for i in range(len(members)):
        row = members[i]
        score = np.float32(0)
        if values.ndim == 2:
            for j in range(values.shape[1]):
                score += values[row, j] * direction[j]
        else:
            for at in range(indptr[row], indptr[row + 1]):
                score += values[at] * direction[indices[at]]
        scores[i] = score * inverse[row]


@njit(nogil=True, cache=True)
def add(values, indices, indptr, inverse, row, sign, out):
    """out += sign * unit row."""
    scale = sign * np.float64(inverse[row])
    if values.ndim == 2:
        for j in range(values.shape[1]):
            out[j] += scale * values[row, j]
    else:
        for at in range(indptr[row], indptr[row + 1]):
            out[indices[at]] += scale * values[at]


@njit(nogil=True, cache=True)
def add_all(values, indices, indptr, inverse, members, signs, out):
    for i in range(len(members)):
        if signs[i] != 0:
            add(values, indices, indptr, inverse, members[i], signs[i], out)


@njit(nogil=True, cache=True)
def separate(columns, left, total, direction):
    """direction = unit(left) - unit(total - left) in these columns; |left| + |total - left|.

    That is the similarity of all rows to their centres, summed: the objective, which no iteration
    lowers.
    """
    one, two = 0.0, 0.0
    for j in columns:
        one += left[j] ** 2
        two += (total[j] - left[j]) ** 2
    one, two = np.sqrt(one), np.sqrt(two)
    scale_one = 1 / one if one > VANISHED else 0.0
    scale_two = 1 / two if two > VANISHED else 0.0
    for j in columns:
        direction[j] = scale_one * left[j] - scale_two * (total[j] - left[j])
    return one + two


@njit(nogil=True, cache=True)
def halve(scores, number, sides, moves):
    """Mark the `number` best scores in sides, the earlier of equal ones; moves = new - old side.

    Returns the number of rows that moved.
    """
    bar = np.partition(scores, len(scores) - number)[len(scores) - number]
    ties = number - np.sum(scores > bar)
    moved = 0
    for i in range(len(scores)):
        side = scores[i] > bar
        if scores[i] == bar and ties > 0:
            side = True
            ties -= 1
        moves[i] = np.int8(side) - np.int8(sides[i])
        moved += moves[i] != 0
        sides[i] = side
    return moved


@njit(nogil=True, cache=True)
def partition(members, sides):
    """Bring the members of the first side to the front, in order."""
    behind = members[~sides]
    place = 0
    for i in range(len(members)):
        if sides[i]:
            members[place] = members[i]
            place += 1
    members[place:] = behind


@njit(nogil=True, cache=True)
def _columns_of(values, indices, indptr, members, seen, columns):
    """Write the columns that the members have to the front of `columns`; return their number."""
    if values.ndim == 2:
        columns[:] = np.arange(len(columns))
        return len(columns)
    count = 0
    for row in members:
        for at in range(indptr[row], indptr[row + 1]):
            if not seen[indices[at]]:
                seen[indices[at]] = True
                columns[count] = indices[at]
                count += 1
    for j in columns[:count]:
        seen[j] = False
    return count


@njit(nogil=True, cache=True)
def cut_nodes(
    values,
    indices,
    indptr,
    inverse,
    order,
    nodes,
    iterations,
    direction,
    left,
    total,
    seen,
    columns,
):
    """Cut nodes [nodes, 5] (start, middle, stop, two first centres) one after the other.

    The scratch arrays [F] come and go as zeros; a node touches its own columns only.
    """
    for node in range(len(nodes)):
        start, middle, stop, first, second = nodes[node]
        members = order[start:stop]
        n = stop - start
        scores = np.empty(n, np.float32)
        sides = np.zeros(n, np.bool_)
        moves = np.ones(n, np.int8)
        own = columns[: _columns_of(values, indices, indptr, members, seen, columns)]
        add(values, indices, indptr, inverse, order[first], 1, direction)
        add(values, indices, indptr, inverse, order[second], -1, direction)
        add_all(values, indices, indptr, inverse, members, moves, total)
        best = -np.inf
        for _ in range(iterations):
            score(values, indices, indptr, inverse, members, direction, scores)
            if halve(scores, middle - start, sides, moves) == 0:
                break
            add_all(values, indices, indptr, inverse, members, moves, left)
            similarity = separate(own, left, total, direction)
            if similarity - best < TOLERANCE * n:
                break
            best = similarity
        partition(members, sides)
        for j in own:
            direction[j], left[j], total[j] = 0, 0, 0
