"""Clusters as a picture: a row each, its nearest and farthest drawings, and the words beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _MARGIN, _SIDE = 96, 6, 20, 190
_INK, _SOFT, _PAPER = (32, 33, 36), (112, 117, 122), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One cluster: its title, words with cosines, and pictures (n, height, width, 3) of both ends."""

    title: str
    words: Mapping[str, float]
    nearest: NDArray[np.uint8]
    farthest: NDArray[np.uint8]


def sheet_png(rows: Sequence[Row], title: str, footer: str = "") -> bytes:
    """Draw the rows below each other. The bytes depend on the pixels and Pillow's version alone."""
    near = max(len(row.nearest) for row in rows)
    far = max(len(row.farthest) for row in rows)
    width = 2 * _MARGIN + _SIDE + (near + far) * (_CELL + _GAP) + 24
    height = 2 * _MARGIN + 58 + len(rows) * (_CELL + _GAP) + (18 if footer else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 6), title, fill=_INK, font=ImageFont.load_default(18))
    left = _MARGIN + _SIDE
    behind = left + near * (_CELL + _GAP) + 24
    for x, text in ((left, "nearest to the center"), (behind, "farthest of the cluster")):
        draw.text((x, _MARGIN + 26), text, fill=_SOFT, font=ImageFont.load_default(13))
    for at, row in enumerate(rows):
        top = _MARGIN + 50 + at * (_CELL + _GAP)
        draw.text((_MARGIN, top + 4), row.title, fill=_INK, font=ImageFont.load_default(14))
        for line, (word, cosine) in enumerate(list(row.words.items())[:4]):
            text = f"{word[:22]} {cosine:.2f}"
            place = (_MARGIN, top + 24 + 16 * line)
            draw.text(place, text, fill=_SOFT, font=ImageFont.load_default(12))
        for x, pictures in ((left, row.nearest), (behind, row.farthest)):
            for column, pixels in enumerate(pictures):
                cell = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
                sheet.paste(cell, (x + column * (_CELL + _GAP), top))
    if footer:
        draw.text((_MARGIN, height - 26), footer, fill=_SOFT, font=ImageFont.load_default(12))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
