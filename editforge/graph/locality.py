"""locality.png: damage against text distance, against the text-only proxy, and by base presence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from editforge.artifacts.report import Estimate
from editforge.graph.canvas import HURT, INK, LINE, OTHER, new_figure
from editforge.graph.graph import Edge, Graph


def locality(graph: Graph) -> Any:
    """Three panels."""
    figure = new_figure(17.5, 5.4)
    panels = figure.subplots(1, 3)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0, color=LINE, linewidth=1, zorder=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    near, proxy, weak = panels
    found = graph.findings
    _pairs(graph, near, lambda edge: 1 - edge.similarity)
    _means(graph, near)
    near.set(xlabel="text distance of erased and measured (1 - similarity)", ylabel="damage")
    _title(near, "Is what is near in text hurt more?", found.locality.correlation, "similarity")
    near.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _pairs(graph, proxy, lambda edge: abs(edge.leak))
    proxy.set(xlabel="|leak|, from the texts alone", ylabel="damage")
    _title(proxy, "Does text alone foretell it?", found.proxy.correlation, "|leak|")
    _incoming(graph, weak)
    _title(weak, "Do the weakly drawn drop?", found.weak.correlation, "base presence")
    figure.set_layout_engine("tight")
    return figure


def _pairs(graph: Graph, axes: Any, place: Callable[[Edge], float]) -> None:
    """A dot a pair; dots of one height are shifted a little, or they would hide each other."""
    group = {node.name: node.group for node in graph.nodes}
    generator = np.random.Generator(np.random.PCG64(0))
    kinds: dict[str, list[tuple[float, float]]] = {"other groups": [], "one group": []}
    for edge in graph.edges:
        own = group[edge.erased]
        kind = "one group" if own and own == group[edge.measured] else "other groups"
        kinds[kind].append((place(edge), edge.damage + generator.uniform(-0.008, 0.008)))
    known = any(group.values())
    for (kind, points), color in zip(kinds.items(), ("#9aa0a6", OTHER), strict=True):
        if points:
            label = kind if known else "a pair"
            axes.scatter(
                *zip(*points, strict=True), s=16, alpha=0.5, color=color, lw=0, label=label
            )


def _means(graph: Graph, axes: Any) -> None:
    rows = [row for row in graph.findings.locality.bins if row.damage.value is not None]
    means = [row.damage.value or 0 for row in rows]
    axes.errorbar(
        [(row.nearest + row.farthest) / 2 for row in rows],
        means,
        yerr=[
            [max(0.0, y - (row.damage.lo or 0)) for y, row in zip(means, rows, strict=True)],
            [max(0.0, (row.damage.hi or 0) - y) for y, row in zip(means, rows, strict=True)],
        ],
        color=HURT,
        marker="o",
        markersize=5,
        linewidth=1.8,
        capsize=3,
        label="mean of a bin of pairs, 95 %",
    )


def _incoming(graph: Graph, axes: Any) -> None:
    """A dot a concept; dots of one presence stand side by side, and those that lose have names."""
    nodes = [node for node in graph.nodes if node.base.value and node.incoming.value is not None]
    weak = graph.findings.weak.concepts
    beside: dict[float, int] = {}
    taken: list[tuple[float, float]] = []
    step = max(0.01, max((node.incoming.hi or 0 for node in nodes), default=0) / 24)
    for node in sorted(nodes, key=lambda node: -(node.incoming.value or 0)):
        presence, y = node.base.value or 0, node.incoming.value or 0
        x = presence - 0.006 * beside.setdefault(presence, 0)
        beside[presence] += 1
        color = HURT if node.name in weak else OTHER
        axes.plot([x, x], [node.incoming.lo, node.incoming.hi], color=color, alpha=0.35, lw=1.2)
        axes.plot([x], [y], "o", color=color, markersize=5)
        free = all(abs(x - a) > 0.1 or abs(y - b) > step for a, b in taken)
        if free and (y >= 0.02 or node.unreliable or node.name in weak):
            taken.append((x, y))
            left = presence > 0.75
            axes.annotate(
                node.name,
                (x if left else presence, y),
                xytext=(-6 if left else 6, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8.5,
                color=INK,
            )
    axes.axvline(0.8, color=LINE, linewidth=1, linestyle="--", zorder=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("base presence (under 80 %: unreliable)")
    axes.set_ylabel("mean loss when another is erased, 95 %")


def _title(axes: Any, question: str, found: Estimate, what: str) -> None:
    said = f"rank correlation with {what} undefined"
    if found.value is not None:
        said = f"rank correlation with {what} {found.value:.2f} [{found.lo:.2f}, {found.hi:.2f}]"
    axes.set_title(f"{question}\n{said}", loc="left", fontsize=11, color=INK)
