"""Pictures that show nothing, made of pictures that do: what a judge must call `none`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_TILES = 8


def wrecks(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each picture as noise, smeared, in shuffled tiles, or in its mean color, in turn.

    The same pictures give the same wrecks.
    """
    ways = (_noise, _smeared, _shuffled, _flat)
    random = np.random.default_rng(0)
    return np.stack([ways[at % len(ways)](image, random) for at, image in enumerate(images)])


def _noise(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    return random.integers(0, 256, image.shape, dtype=np.uint8)


def _smeared(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    blur = ImageFilter.GaussianBlur(len(image) / _TILES)
    return np.asarray(Image.fromarray(image).filter(blur))


def _shuffled(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    rows = np.array_split(image, _TILES, axis=0)
    tiles = [tile for row in rows for tile in np.array_split(row, _TILES, axis=1)]
    shape = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    mixed = [np.resize(tiles[at], (*shape, 3)) for at in random.permutation(len(tiles))]
    lines = [np.concatenate(mixed[at : at + _TILES], axis=1) for at in range(0, len(mixed), _TILES)]
    whole = np.concatenate(lines, axis=0)
    return np.asarray(whole[: image.shape[0], : image.shape[1]], dtype=np.uint8)


def _flat(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    color = image.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    return np.broadcast_to(color, image.shape).copy()
