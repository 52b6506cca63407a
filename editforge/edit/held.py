"""What is held besides the named preserve concepts: a long word list, as one second moment.

Hundreds of words in several prompts enter a solve only through the (d, d) sum of x x^T. The sum over
the whole list depends on the model alone, so it is kept in the user's cache folder; what this edit
must not hold (erased names, and the named preserves, which are added with their own weight) is taken
off. With or without the cache the same numbers are added in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editforge.edit import vectors
from editforge.edit.vectors import Columns
from editforge.families.model import TextModel
from editforge.families.vocabulary import cache_folder, recall, thinned, unnamed, word_list
from editforge.ground.disk import sha256_file, sha256_json
from editforge.ground.files import write_safetensors
from editforge.ground.names import fold
from editforge.recipe.contract import Context

_PIECE = 16  # names encoded at a time
_CACHED_FROM = 16  # words; in any family a (d, d) matrix is read back faster than these are encoded
_MADE_BY = (Path(__file__), Path(vectors.__file__))  # other code may add other numbers


def background(
    columns: Columns,
    source: str | None,
    limit: int,
    taken: Sequence[str],
    context: Context,
    erased: Sequence[str] = (),
) -> Tensor:
    """Second moment (d, d) of the words of `source` that are not taken and name nothing erased.

    Args:
        columns: how a name is read.
        source: a word list, see `load_vocabulary`; None: nothing is held, a zero matrix.
        limit: a longer list is thinned evenly, so that frequent and rare words stay represented.
        taken: names that are erased, mean the same, or are preserved by name.
        context: model, cache and progress.
        erased: see `unnamed`.
    """
    width = context.model.family.text_width
    if source is None:
        return torch.zeros(width, width, dtype=torch.float64)
    out = {fold(word) for word in taken}
    words = thinned(word_list(context.model, source), limit)
    free = set(unnamed(context.model.family, words, erased))
    less = [word for word in words if fold(word) in out or word not in free]
    with context.bar(len(words) + len(less), "encoding the background") as bar:
        # What is taken off is read once: not again from a list that every run reads, nor again by
        # who preserves it by name. A list that the cache may hold is no source: it would decide.
        if len(words) < _CACHED_FROM:
            columns.keep(less)
        whole = _kept(columns, words, width, context, bar)
        columns.keep(less)
        return whole.sub_(moment(columns, less, width, bar))


def moment(columns: Columns, names: Sequence[str], width: int, bar: Any) -> Tensor:
    """Sum over names of the mean of x x^T over the name's columns: (d, d), float64.

    A name weighs the same however many templates and positions it has.
    """
    return moments(columns, names, width, bar)[1]


def moments(columns: Columns, names: Sequence[str], width: int, bar: Any) -> tuple[Tensor, Tensor]:
    """Mean column of each name (d, names), and the sum that `moment` gives: one pass over the texts."""
    means = torch.zeros(width, len(names), dtype=torch.float64)
    total = torch.zeros(width, width, dtype=torch.float64)
    for first in range(0, len(names), _PIECE):
        piece = names[first : first + _PIECE]
        columns.read_all(columns.unread(piece))
        for at, name in enumerate(piece, start=first):
            X = columns.of(name)
            means[:, at] = X.mean(dim=1)
            total.addmm_(X, X.T, alpha=1 / X.shape[1])
        columns.forget()
        bar.update(len(piece))
    return means, total


def _kept(columns: Columns, words: Sequence[str], width: int, context: Context, bar: Any) -> Tensor:
    if len(words) < _CACHED_FROM:
        return moment(columns, words, width, bar)
    code = [sha256_file(path) for path in _MADE_BY]
    key = sha256_json([context.model.encoder.digest, columns.rule, list(words), code])
    path = cache_folder() / f"moment-{key}.safetensors"
    if (known := recall(path, "moment")) is not None:
        return known
    found = moment(columns, words, width, bar)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, never the run
        write_safetensors(path, {"moment": found}, {})
    return found


def empty_prompt(model: TextModel) -> Tensor:
    """Begin of text and the mean over the other states of the empty prompt, as x x^T: (d, d), float64.

    The first is in every prompt, and all of them are in the unconditional branch of every picture.
    """
    states = model.encoder.encode([""])[0].double()
    first, others = states[:1], states[1:]
    return first.T @ first + others.T @ others / len(others)
