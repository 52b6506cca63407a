"""Randomness by key: the same numbers for the same seed and key, on any number of processes."""

from __future__ import annotations

import hashlib

import torch


def keyed(seed: int, *key: object) -> torch.Generator:
    """A CPU generator of its own for each key: names, positions and global sample indices, no rank."""
    digest = hashlib.sha256("|".join(map(str, (seed, *key))).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big", signed=True))
