"""graph.png: names as boxes, an arrow from the erased concept to what it hurts."""

from __future__ import annotations

from typing import Any

import numpy as np

from editforge.graph.canvas import HURT, INK, SOFT, new_figure
from editforge.graph.find import DROPS
from editforge.graph.graph import Graph
from editforge.graph.layout import placed, spread

_GROUPS = ("#aecbfa", "#fde293", "#a8dab5", "#f6aea9", "#d7aefb", "#a1e4f2", "#fdcfb2", "#e6c9a8")
_ARROWS = 150  # more hide the names
_UNKNOWN = "#e8eaed"


def network(graph: Graph) -> Any:
    """Names as boxes, near where the text or the damage is; an arrow from the erased to the hurt."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    n = len(graph.nodes)
    figure = new_figure(max(9.0, 2.3 * n**0.5), max(6.5, 1.75 * n**0.5))
    axes = figure.add_axes((0, 0, 1, 1))
    width, height = (float(side) * figure.dpi for side in figure.get_size_inches())
    axes.set(xlim=(0, width), ylim=(0, height))  # data are pixels: boxes can be kept apart
    axes.axis("off")
    colors = _colors(graph)
    texts = [
        axes.text(
            0,
            0,
            node.name,
            ha="center",
            va="center",
            fontsize=10,
            color=INK,
            zorder=3,
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": colors.get(node.group or "", _UNKNOWN),
                "edgecolor": SOFT,
                "linestyle": "--" if node.unreliable else "-",
            },
        )
        for node in graph.nodes
    ]
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([[box.width + 34, box.height + 34] for box in boxes])
    room = (90.0, 100.0, width - 90.0, height - 95.0)  # below it the legend, above it the title
    places = spread(placed(graph), sizes, room)
    for text, place in zip(texts, places, strict=True):
        text.set_position(tuple(place))
    figure.canvas.draw()  # gives every box its place, where arrows end
    at = {name: index for index, name in enumerate(graph.names)}
    shown = [edge for edge in graph.edges if edge.clear and edge.damage >= DROPS]
    shown.sort(key=lambda edge: (edge.damage, edge.erased, edge.measured))
    for edge in shown[-_ARROWS:]:
        start, end = at[edge.erased], at[edge.measured]
        axes.annotate(
            "",
            xy=tuple(places[end]),
            xytext=tuple(places[start]),
            zorder=2,
            arrowprops={
                "arrowstyle": f"-|>,head_width={0.15 + 0.35 * edge.damage},head_length=0.5",
                "linewidth": _stroke(edge.damage),
                "color": HURT,
                "alpha": 0.25 + 0.6 * edge.damage,
                "connectionstyle": "arc3,rad=0.14",
                "patchA": texts[start].get_bbox_patch(),
                "patchB": texts[end].get_bbox_patch(),
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )
    title = f"An arrow leads from the erased concept to what loses at least {DROPS:.0%}"
    axes.text(24, height - 24, title, va="top", fontsize=13, color=INK)
    if len(shown) > _ARROWS:
        more = f"The {_ARROWS} strongest of {len(shown)}."
        axes.text(24, height - 48, more, va="top", fontsize=11, color=SOFT)
    if not shown:
        axes.text(24, height - 48, "None does, clear of zero.", va="top", fontsize=11, color=SOFT)
    keys: list[Any] = [Patch(facecolor=c, edgecolor=SOFT, label=g) for g, c in colors.items()]
    keys += [
        Line2D(
            [], [], color=HURT, linewidth=_stroke(x), alpha=0.25 + 0.6 * x, label=f"{x:.0%} lost"
        )
        for x in (0.1, 0.5, 1.0)
    ]
    if any(node.unreliable for node in graph.nodes):
        keys.append(
            Patch(facecolor="white", edgecolor=SOFT, linestyle="--", label="base draws under 80 %")
        )
    axes.legend(
        handles=keys,
        loc="lower center",
        ncols=min(len(keys), max(4, int(width // 190))),
        frameon=False,
        fontsize=9,
    )
    return figure


def _colors(graph: Graph) -> dict[str, str]:
    groups = dict.fromkeys(node.group for node in graph.nodes if node.group)
    return {group: _GROUPS[index % len(_GROUPS)] for index, group in enumerate(groups)}


def _stroke(damage: float) -> float:
    return 0.5 + 6.0 * damage
