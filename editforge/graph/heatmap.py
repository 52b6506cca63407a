"""heatmap.png: every pair in one table, groups together."""

from __future__ import annotations

from typing import Any

import numpy as np

from editforge.graph.canvas import INK, SOFT, new_figure
from editforge.graph.graph import Graph
from editforge.graph.layout import ordered

_NUMBERED = 32  # concepts up to which the cells have numbers
_LARGE = 48  # concepts from which the cells are small


def heatmap(graph: Graph) -> Any:
    """Erased by measured, groups together; the diagonal: how often an erased concept is still drawn."""
    order = ordered(graph)
    nodes = [graph.nodes[index] for index in order]
    n = len(order)
    damage = graph.matrix()[np.ix_(order, order)]
    small = n > _LARGE
    side = max(5.5, (0.16 if small else 0.36) * n + 2.6)
    letters = 5.5 if small else 9
    figure = new_figure(side + 1.0, side)
    axes = figure.add_subplot()
    most = max(0.3, float(np.nanmax(np.abs(damage)))) if np.isfinite(damage).any() else 1.0
    axes.set_facecolor("#f1f3f4")
    image = axes.imshow(damage, cmap="RdBu_r", vmin=-most, vmax=most)
    names = [f"{node.name}{' *' if node.unreliable else ''}" for node in nodes]
    axes.set_xticks(range(n), names, rotation=90, fontsize=letters, color=INK)
    axes.set_yticks(range(n), [node.name for node in nodes], fontsize=letters, color=INK)
    poor = any(node.unreliable for node in nodes)
    axes.set_xlabel("measured" + " (* the base draws it under 80 %)" * poor)
    axes.set_ylabel("erased")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    edges = [i for i in range(1, n) if nodes[i].group != nodes[i - 1].group]
    for at in edges:
        axes.axhline(at - 0.5, color=INK, linewidth=0.6)
        axes.axvline(at - 0.5, color=INK, linewidth=0.6)
    if n <= _NUMBERED:
        for (row, column), value in np.ndenumerate(damage):
            if np.isfinite(value) and round(100 * value):
                color = "white" if abs(value) > 0.6 * most else INK
                axes.text(
                    column,
                    row,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=color,
                )
    for index, node in enumerate(nodes):
        own = f"{100 * (node.erased.value or 0):.0f}"
        axes.text(
            index, index, own, ha="center", va="center", fontsize=7.5, color=SOFT, style="italic"
        )
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    title = "Damage in % of pictures, none where empty\n"
    axes.set_title(title + "gray: still drawn after its own erasure", fontsize=10, loc="left")
    figure.set_layout_engine("tight")
    return figure
