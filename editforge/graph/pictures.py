"""The three pictures of a graph. matplotlib and networkx come with the extra `plots`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from editforge.graph.canvas import png
from editforge.graph.graph import Graph
from editforge.graph.heatmap import heatmap
from editforge.graph.locality import locality
from editforge.graph.network import network
from editforge.ground.disk import write_atomic

PICTURES = {"graph.png": network, "heatmap.png": heatmap, "locality.png": locality}


def draw_pictures(graph: Graph, folder: Path) -> str | None:
    """Write them; without the libraries none, and the answer says what to install."""
    try:
        import matplotlib  # noqa: F401
        import networkx  # noqa: F401
    except ImportError:
        return "no pictures, matplotlib and networkx are not here: pip install 'editforge[plots]'"
    for name, draw in PICTURES.items():
        write_atomic(folder / name, partial(_write, png(draw(graph))))
    return None


def _write(data: bytes, file: Any) -> None:
    file.write(data)
