"""A figure without pyplot, which touches no window, backend or style of the caller's; and its bytes."""

from __future__ import annotations

import io
from typing import Any

INK, SOFT, HURT, OTHER, LINE = "#202124", "#70757a", "#c5221f", "#1a73e8", "#dadce0"


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, that draws into memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure's PNG without date or program: equal figures, equal bytes on the same matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
