"""What is held besides the named preserve concepts: a long word list, as one second moment.

Thousands of preserve columns enter a solve only through the (d, d) sum of x x^T, so they are encoded in
pieces and never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editforge.artifacts.concepts import fold
from editforge.edit.vectors import Columns
from editforge.families.vocabulary import word_list
from editforge.stages import Context, EditInputs

_PIECE = 64  # names encoded at a time


def background_words(
    inputs: EditInputs, source: str | None, limit: int, taken: Sequence[str], context: Context
) -> list[str]:
    """Words of `source` that are neither taken, erased, nor passed over as the same word.

    More than `limit` are thinned evenly, so that frequent and rare words stay represented.
    """
    if source is None:
        return []
    out = {fold(word) for word in taken}
    for concept in inputs.concepts:
        out |= {fold(name) for name in concept.names}
        near = inputs.neighbors.of(concept.name).words
        out |= {fold(row.word) for row in near if row.reason or row.role == "erase"}
    words = [word for word in word_list(context.model, source) if fold(word) not in out]
    if len(words) <= limit:
        return words
    return [words[index * len(words) // limit] for index in range(limit)]


def moment(columns: Columns, names: Sequence[str], width: int, bar: Any) -> Tensor:
    """Sum over names of the mean of x x^T over the name's columns: (d, d), float64.

    A name weighs the same however many templates and positions it has.
    """
    total = torch.zeros(width, width, dtype=torch.float64)
    for first in range(0, len(names), _PIECE):
        piece = names[first : first + _PIECE]
        columns.read_all(piece)
        for name in piece:
            X = columns.of(name)
            total.addmm_(X, X.T, alpha=1 / X.shape[1])
        columns.forget()
        bar.update(len(piece))
    return total
