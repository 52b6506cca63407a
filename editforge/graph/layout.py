"""Where the names of a graph stand in its pictures: near by text or damage, and never on each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from editforge.graph.graph import Graph

Floats = NDArray[np.float64]
_ROUNDS = 600
_TOUCH = 1e-6


def placed(graph: Graph) -> Floats:
    """(n, 2) in [0, 1]: a spring layout whose springs are similarity and damage."""
    import networkx

    similarity, damage = graph.matrix("similarity"), graph.matrix("damage")
    net = networkx.Graph()
    net.add_nodes_from(range(len(graph.nodes)))
    for e in range(len(graph.nodes)):
        for v in range(e + 1, len(graph.nodes)):
            hurt = np.nanmax([damage[e, v], damage[v, e], 0.0])
            near = np.nanmax([similarity[e, v], 0.0])
            net.add_edge(e, v, weight=float(0.02 + near**2 + 2 * hurt))
    apart = 2.2 / len(graph.nodes) ** 0.5
    spots = networkx.spring_layout(net, k=apart, iterations=400, seed=0, method="force")
    points = np.array([spots[index] for index in range(len(graph.nodes))], dtype=np.float64)
    return evened(points)


def evened(points: Floats) -> Floats:
    """(n, 2) in [0, 1], half by place and half by rank: a crowd in the middle gets room."""
    low, high = points.min(axis=0), points.max(axis=0)
    linear = (points - low) / np.maximum(high - low, _TOUCH)
    ranks = points.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    return 0.5 * linear + 0.5 * ranks / max(1, len(points) - 1)


def spread(points: Floats, sizes: Floats, room: Sequence[float]) -> Floats:
    """Centers (n, 2) of boxes that do not overlap, as near to `points` as pushing leaves them.

    Args:
        points: (n, 2) in [0, 1].
        sizes: (n, 2), width and height of each box.
        room: left, bottom, right, top of what the centers may use.
    """
    low, high = np.array(room[:2]), np.array(room[2:])
    places = low + points * (high - low)
    needed = (sizes[:, None] + sizes) / 2
    for _ in range(_ROUNDS):
        overlap = needed - np.abs(places[:, None] - places)  # (n, n, 2)
        touching = np.argwhere(np.triu((overlap > _TOUCH).all(axis=2), 1))
        if not len(touching):
            break
        for i, j in touching:
            gap = places[j] - places[i]
            over = needed[i, j] - np.abs(gap)  # an earlier push of this round may have parted them
            if (over <= 0).any():
                continue
            axis = int((over / needed[i, j]).argmin())
            push = (over[axis] / 2 + _TOUCH) * (1 if gap[axis] >= 0 else -1)
            places[i, axis] -= push
            places[j, axis] += push
        places = np.clip(places, low, high)
    return places


def ordered(graph: Graph) -> list[int]:
    """Groups in order of first use; within a group each name is followed by the most alike one left."""
    similarity = graph.matrix("similarity")
    found: list[int] = []
    for group in dict.fromkeys(node.group for node in graph.nodes):
        left = [index for index, node in enumerate(graph.nodes) if node.group == group]
        while left:
            last = found[-1] if found else left[0]
            alike = [np.nan_to_num(similarity[last, index], nan=2.0) for index in left]
            found.append(left.pop(int(np.argmax(alike))))
    return found
