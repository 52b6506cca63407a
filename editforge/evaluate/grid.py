"""Before and after in one picture: the same noise, drawn by the base and by the edited model.

Two bands of two groups each, erased and aliases above, near and far names below. Images are taken
in order, the first of each prompt or name, never the best. The bytes depend on the pixels and the
version of Pillow alone: no time, no metadata.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_CELL = 128
_GAP = 8
_BETWEEN = 28
_MARGIN = 24
_SIDE = 76
_HEADING = 30
_CAPTION = 22
_INK, _SOFT, _PAPER = (32, 33, 36), (112, 117, 122), (255, 255, 255)


@dataclass(frozen=True)
class Group:
    """Columns under one heading: captions and, by column, the base and the edited image."""

    heading: str
    captions: tuple[str, ...]
    base: NDArray[np.uint8]
    edited: NDArray[np.uint8]


def grid_png(bands: Sequence[Sequence[Group]], title: str, footer: str = "") -> bytes:
    """Draw the bands below each other.

    Args:
        bands: each a row of groups; empty groups are left out.
        title: one line on top.
        footer: one line at the end, for attribution.
    """
    rows = [kept for band in bands if (kept := [group for group in band if len(group.captions)])]
    width = max(map(_width, rows)) + 2 * _MARGIN + _SIDE
    band_height = _HEADING + 2 * (_CELL + _GAP) + _CAPTION
    height = 2 * _MARGIN + 34 + len(rows) * (band_height + _GAP * 2) + (20 if footer else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 6), title, fill=_INK, font=ImageFont.load_default(20))
    top = _MARGIN + 34
    for row in rows:
        left = _MARGIN + _SIDE
        for offset, label in ((0, "base"), (_CELL + _GAP, "edited")):
            middle = top + _HEADING + offset + _CELL // 2
            font = ImageFont.load_default(16)
            draw.text((_MARGIN, middle), label, fill=_SOFT, font=font, anchor="lm")
        for group in row:
            _draw_group(sheet, draw, group, left, top)
            left += _width([group]) + _BETWEEN
        top += band_height + _GAP * 2
    if footer:
        draw.text((_MARGIN, height - 30), footer, fill=_SOFT, font=ImageFont.load_default(12))
    return _png(sheet)


def picture_png(pixels: NDArray[np.uint8], least: int = 256) -> bytes:
    """One image as PNG, enlarged by a whole factor if it is smaller than `least`."""
    factor = max(1, least // pixels.shape[0])
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    return _png(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _draw_group(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, group: Group, left: int, top: int
) -> None:
    draw.text((left, top), group.heading, fill=_INK, font=ImageFont.load_default(16))
    font = ImageFont.load_default(12)
    for column, caption in enumerate(group.captions):
        x = left + column * (_CELL + _GAP)
        for row, pixels in enumerate((group.base[column], group.edited[column])):
            y = top + _HEADING + row * (_CELL + _GAP)
            cell = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (x, y))
            draw.rectangle((x - 1, y - 1, x + _CELL, y + _CELL), outline=(225, 227, 230))
        y = top + _HEADING + 2 * (_CELL + _GAP)
        draw.text((x + _CELL // 2, y), _fitted(caption, font), fill=_SOFT, font=font, anchor="ma")


def _fitted(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(caption) <= _CELL:
        return caption
    while caption and font.getlength(caption + "…") > _CELL:
        caption = caption[:-1]
    return caption.rstrip() + "…"


def _width(row: Sequence[Group]) -> int:
    cells = sum(len(group.captions) * (_CELL + _GAP) - _GAP for group in row)
    return cells + _BETWEEN * (len(row) - 1)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # level 9 takes six times as long for files 4 % smaller
    image.save(buffer, format="PNG", optimize=False, compress_level=6)
    return buffer.getvalue()
