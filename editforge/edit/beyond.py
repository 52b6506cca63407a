"""What lies beyond an erased concept and must keep its place: samples, words, siblings, captions.

For a linear map, neighbors and samples pull against each other. Let a be the share of its way that e
goes, A e = a. A point b = e + eta_b contains e itself, and holding it asks A b = 0: points in all
directions can only be held together with e, at a = w / (w + their number). So by default what is held
of a sample is eta_b, the direction without e. `beyond_hold: point` holds the samples as they are, which
works while they are fewer than dimensions. (methods.md 2.4 looks at directions orthogonal to e alone,
where both are one.)

All of it enters a solve as one (d, d) second moment, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editforge.artifacts.system import System
from editforge.edit.held import moment
from editforge.edit.mined import Around, MinedOptions, caption_lines
from editforge.edit.vectors import Columns
from editforge.families.vocabulary import load_vocabulary, thinned
from editforge.ground.names import fold
from editforge.ground.shell import beyond_moment, beyond_of
from editforge.recipe.contract import Context, EditInputs


def beyond_samples(
    own: System, shells: Sequence[Around], options: MinedOptions, seed: int
) -> Tensor | None:
    """Second moment (d, d) of the samples of all shells, weighted; None without any.

        expected   count (E[r^2] / (d - 1) (I - e e^T / |e|^2)), plus count e e^T for `point`
        drawn      the sum over samples of the seed: the same on average, and noisy

    Samples follow `tangent_shell`, whatever the law of the neighbors.
    """
    if options.beyond not in ("perturbation", "all") or not options.sample_weight:
        return None
    total, found = torch.zeros(2 * own.erased.shape[:1], dtype=torch.float64), 0
    for one in shells:
        samples = round(one.mined.num_beyond * one.mined.beyond_shell_fraction)
        columns = sum(other.concept == one.concept for other in shells)
        # spread evenly over the concept's last tokens
        count = samples * (one.at + 1) // columns - samples * one.at // columns
        e = own.erased[:, one.column]
        point = options.beyond_hold == "point"
        if options.samples == "drawn":
            held = beyond_of(e, one.mined, count, seed, one.concept, one.at)
            held = held if point else held - e[:, None]
            total.addmm_(held, held.T)
        elif count:
            total += count * beyond_moment(e, one.mined)
            if point:  # displacements have no mean, so nothing mixes
                total.addr_(e, e, alpha=count)
        found += count
    return options.sample_weight * total if found else None


def beyond_words(
    columns: Columns, system: System, inputs: EditInputs, options: MinedOptions, context: Context
) -> Tensor | None:
    """Second moment of words outside the band, named siblings and captions; None without any."""
    taken = {fold(word) for word in (*system.names, *system.kin, *system.preserve)}
    names: dict[str, str] = {}
    if options.beyond in ("perturbation", "all"):
        for word in _outside(inputs, context):
            names.setdefault(fold(word), word)
    if options.beyond in ("siblings", "all"):
        for concept in inputs.concepts:
            for word in inputs.neighbors.of(concept.name).having("preserve"):
                names.setdefault(fold(word), word)
    words = [word for key, word in names.items() if key not in taken]
    captions = caption_lines(options.captions) if options.beyond in ("captions", "all") else []
    if not (words or captions) or not options.beyond_weight:
        return None
    with context.bar(len(words) + len(captions), "encoding what lies beyond") as bar:
        total = moment(columns, words, context.model.family.text_width, bar)
        for text in captions:
            context.model.encoder.check(text)
            end = len(context.model.encoder.tokens(text)) + 2
            X = context.model.encoder.encode([text], window=end)[0, 1:].T.double()
            total.addmm_(X, X.T, alpha=1 / X.shape[1])  # every position behind begin of text
            bar.update()
    return options.beyond_weight * total


def _outside(inputs: EditInputs, context: Context) -> list[str]:
    """Words outside every band, thinned to the number that the shells ask for."""
    shells = {c.name: inputs.neighbors.of(c.name).shell for c in inputs.concepts}
    mined = {name: shell for name, shell in shells.items() if shell is not None}
    if not mined:
        return []
    first = next(iter(mined.values()))
    known = load_vocabulary(context.model, first.source, context.bar)
    inside = torch.zeros(len(known.words), dtype=torch.bool)
    for e, shell in zip(
        context.model.encoder.encode_words(list(mined)), mined.values(), strict=True
    ):
        inside |= torch.cosine_similarity(known.vectors, e[None]) >= shell.cos_lo
    words = [word for word, near in zip(known.words, inside.tolist(), strict=True) if not near]
    limit = max(
        s.num_beyond - round(s.num_beyond * s.beyond_shell_fraction) for s in mined.values()
    )
    return thinned(words, limit)
