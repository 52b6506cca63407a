"""From pictures with and without a concept to its modes: differences, k-means, how many pay.

    mean    normalize(mean_j z(i, j) - mean_k z-(i, k))      one vector a pair
    cross   normalize(z(i, j) - z-(i, k)) for all j, k       images^2 vectors a pair

k-means runs on unit vectors and its centers are normalized: up to a vector's weight in its center that
is spherical k-means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

CHOICES = (1, 2, 4, 8, 16)
_GAIN = 0.01  # of coverage, below which twice as many prototypes do not pay
_SHOWN = 0.05  # of a concept's pictures


@dataclass(frozen=True)
class Modes:
    """`centers` (K, w) of length 1, the cluster of each vector (n,), coverage by number of centers."""

    centers: Tensor
    labels: Tensor
    coverage: dict[int, float]


def differences(with_: Tensor, without: Tensor, vectors: Literal["mean", "cross"]) -> Tensor:
    """Unit vectors (pairs, m, w) from features (pairs, images, w) of both; m is 1 or images^2."""
    if vectors == "mean":
        return normalize(
            with_.mean(dim=1, keepdim=True) - without.mean(dim=1, keepdim=True), dim=-1
        )
    cross = with_[:, :, None] - without[:, None]
    return normalize(cross.flatten(1, 2), dim=-1)


def coverage(vectors: Tensor, centers: Tensor) -> float:
    """Mean cosine of each vector (n, w) with the center nearest to it."""
    return float((vectors @ centers.T).amax(dim=1).mean())


def modes(with_: Tensor, without: Tensor, number: int | None, vectors: str, seed: int) -> Modes:
    """Cluster one concept.

    Args:
        with_: features (pairs, images, w) of pictures with the concept.
        without: of those without it.
        number: K; None: the smallest of 1, 2, 4, 8, 16 after which doubling adds less than 0.01 to
            the coverage of pairs that were held out.
        vectors: mean, cross; auto: mean up to four clusters, cross above.
        seed: of k-means.
    """
    found: dict[int, float] = {}
    if number is None:
        number, found = _chosen(with_, without, vectors, seed)
    own = differences(with_, without, _kind(vectors, number))
    flat = own.flatten(0, 1)
    centers, labels = _kmeans(flat, number, seed)
    found = found or {number: coverage(flat, centers)}
    return Modes(centers, labels.reshape(own.shape[:2]), found)


def _chosen(
    with_: Tensor, without: Tensor, vectors: str, seed: int
) -> tuple[int, dict[int, float]]:
    """K by pairs held out: every fourth."""
    held = torch.arange(len(with_)) % 4 == 3
    if not held.any():
        return 1, {}
    found: dict[int, float] = {}
    kind = _kind(vectors, 1)  # one kind for all: means are less spread than single differences
    train = differences(with_[~held], without[~held], kind).flatten(0, 1)
    test = differences(with_[held], without[held], kind).flatten(0, 1)
    for number in CHOICES:
        if number > len(train):
            break
        found[number] = coverage(test, _kmeans(train, number, seed)[0])
    numbers = list(found)
    pays = [n for n, twice in pairwise(numbers) if found[twice] - found[n] < _GAIN]
    return (pays[0] if pays else numbers[-1]), found


def _kind(vectors: str, number: int) -> Literal["mean", "cross"]:
    if vectors == "auto":
        return "mean" if number <= 4 else "cross"
    return "mean" if vectors == "mean" else "cross"


def _kmeans(vectors: Tensor, number: int, seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.cluster import KMeans

    fitted = KMeans(number, n_init=10, random_state=seed % 2**32).fit(vectors.double().numpy())
    centers = torch.from_numpy(fitted.cluster_centers_).float()
    return normalize(centers, dim=-1), torch.from_numpy(fitted.labels_).long()


def drawn_words(pictures: Tensor, others: Tensor, names: Tensor, words: Sequence[str]) -> list[str]:
    """What a model draws when it is asked for the concept: words that win its pictures, not others.

    Args:
        pictures: (n, w) features of pictures with the concept.
        others: (m, w) of those without.
        names: (V, w) features of `words`.
        words: of a list.

    Returns:
        The words that at least one picture in twenty is nearest to, and four times as many as without
        the concept: prompts with these are no harmless ones.
    """
    own = (pictures @ names.T).argmax(dim=1).bincount(minlength=len(words)) / len(pictures)
    else_ = (others @ names.T).argmax(dim=1).bincount(minlength=len(words)) / len(others)
    order = own.argsort(descending=True, stable=True).tolist()
    return [words[at] for at in order if own[at] >= _SHOWN and own[at] >= 4 * else_[at]]
