"""Memory that the C library holds on to after its owner has freed it."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system, where the C library can: glibc; elsewhere nothing happens.

    Reading many gigabytes tensor by tensor in several threads leaves its arenas full of holes: after the
    weights of SDXL, 1.1 GB that nobody owns and nothing later fits into. Half a second there.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
