"""What text alone says of two concepts: how alike they are, and how much one's erasure moves the other.

    s(e, v)    = <c~, u~>_M / (|c~|_M |u~|_M)        similarity, x~ = x - mean of the word list
    leak(e, v) = c^T G_0^-1 u                        the proxy of the concept graph
    G_0        = lam I + c c^T + w (sum of preserved p p^T + mean mean^T)

c and u are the states of the erased and the measured name; lam, w and the preserved words are those of
`target: adaptive` for e alone. No picture is drawn for it. methods.md 3.8.

Known failure: G_0 is of the plain ridge edit. A recipe that solves something else, or trains, is
foreseen by it only as far as its damage follows the same directions: hence the measured correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from editforge.families.metric import text_metric
from editforge.families.vocabulary import load_vocabulary
from editforge.graph.request import Request
from editforge.mine.vocabulary import VocabularyConfig, vocabulary
from editforge.recipe.contract import Context, MineInputs
from editforge.target.adaptive import AdaptiveConfig

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """Each (erased, measured); `similarity` is symmetric with ones on its diagonal, the others are not.

    `unheld` is the leak with no preserved p in G_0, the mean alone.
    """

    similarity: Floats
    leak: Floats
    unheld: Floats


def read_text(request: Request, context: Context) -> Text:
    """Similarity and leak of all pairs."""
    recipe, model = request.recipe, context.model
    mined = next((c for c in recipe.mine or () if isinstance(c, VocabularyConfig)), None)
    mined = mined or VocabularyConfig(use="vocabulary")
    chosen = recipe.target if isinstance(recipe.target, AdaptiveConfig) else AdaptiveConfig()
    kinds = {concept.kind for concept in recipe.concepts}
    known = load_vocabulary(model, mined.words, context.bar, kinds=kinds)
    position = {word: index for index, word in enumerate(known.words)}
    mean = known.vectors.mean(dim=0).double()
    states = model.encoder.encode_words(list(request.names)).double()  # (n, d)
    inner = (states - mean) @ text_metric(model).double() @ (states - mean).T
    sizes = inner.diagonal().clamp(min=1e-30).sqrt()
    leaks: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for c, single in zip(states, request.singles, strict=True):
        near = vocabulary(MineInputs(single.concepts), mined, context).of(single.concepts[0].name)
        kept = [position[word] for word in near.having("preserve") if word in position]
        for rows, into in zip((kept, []), leaks, strict=True):
            P = torch.cat([known.vectors[rows].double(), mean[None]])  # (m, d)
            G = torch.outer(c, c) + chosen.preserve_weight * (P.T @ P)
            G.diagonal().add_(chosen.ridge * float(c @ c))
            into.append(states @ torch.linalg.solve(G, c))
    similarity = inner / sizes[:, None] / sizes
    return Text(similarity.numpy(), *(torch.stack(rows).numpy() for rows in leaks))
