"""Pictures of a base that were drawn before: kept between runs, found again by all that decides them.

Every gate draws the same prompts with the same seeds from the same unedited base. A batch is kept
whole, since which pictures are drawn together can change the last bit; so a run with this cache ends
with the bytes of a run without it. Small lossless files in the user's cache folder, 1,000 MB at most,
the longest unused go first. `EDITFORGE_PICTURES=MB` sets another limit, 0 draws everything anew; the
folder may be deleted at any time, and what is damaged in it is drawn again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from editforge.families.vocabulary import cache_root
from editforge.ground.disk import sha256_text, write_atomic
from editforge.ground.errors import RecipeError

_LIMIT = "EDITFORGE_PICTURES"
_MEGABYTES = 1000
_LIBRARIES = ("torch", "diffusers", "transformers", "numpy")
_CHECKSUM = 32  # bytes of SHA-256 before the compressed pixels


def kept_bytes() -> int:
    """How much may be kept; 0: nothing is kept or read.

    Raises:
        RecipeError: the variable is no whole number of megabytes.
    """
    text = os.environ.get(_LIMIT, str(_MEGABYTES))
    if not text.isdecimal():
        raise RecipeError(f"{_LIMIT} is no number", got=text, allowed="megabytes; 0 keeps nothing")
    return int(text) * 10**6


def surroundings(pipe: Any) -> list[str]:
    """What decides pixels beside weights and request: scheduler, libraries, processor, precision."""
    device = pipe.unet.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        type(pipe).__name__,
        type(pipe.scheduler).__name__,
        str(sorted(pipe.scheduler.config.items())),
        *(f"{library} {version(library)}" for library in _LIBRARIES),
        *(str(getattr(part, "dtype", None)) for part in (pipe.unet, pipe.vae, pipe.text_encoder)),
        f"{device.type} {name} {capability} {torch.get_num_threads()}",
    ]


def recall_pictures(key: str, shape: Sequence[int]) -> NDArray[np.uint8] | None:
    """The pictures of that key, (n, height, width, 3) uint8; None: not kept, or damaged and gone."""
    path = _path(key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    count = int(np.prod(shape))
    with contextlib.suppress(zlib.error, OSError):
        if hashlib.sha256(data[_CHECKSUM:]).digest() == data[:_CHECKSUM]:
            pixels = zlib.decompressobj().decompress(data[_CHECKSUM:], count + 1)
            if len(pixels) == count:
                os.utime(path)  # the longest unused go first
                return np.frombuffer(pixels, dtype=np.uint8).reshape(shape).copy()
    path.unlink(missing_ok=True)
    return None


def keep_pictures(key: str, pictures: NDArray[np.uint8]) -> None:
    """Keep them, and drop what exceeds the limit. A disk that refuses costs time, never the run."""
    data = zlib.compress(np.ascontiguousarray(pictures).tobytes(), 1)
    if len(data) > kept_bytes():
        return
    with contextlib.suppress(OSError):
        write_atomic(
            _path(key), lambda file: file.write(hashlib.sha256(data).digest() + data) and None
        )
        _trim()


def _trim() -> None:
    found = sorted((path.stat().st_mtime, path) for path in _folder().glob("*.pixels"))
    total = sum(path.stat().st_size for _, path in found)
    limit = kept_bytes()
    for _, path in found:
        if total <= limit:
            return
        total -= path.stat().st_size
        path.unlink(missing_ok=True)


def _folder() -> Path:
    return cache_root() / "pictures"


def _path(key: str) -> Path:
    return _folder() / f"{sha256_text(key)}.pixels"
