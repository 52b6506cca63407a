"""Which concepts an edit must not move: the user's list, or what lies nearest; and every target."""

from __future__ import annotations

from collections.abc import Sequence

from editforge.artifacts.targets import Preserved, Target
from editforge.ground.errors import RecipeError
from editforge.ground.names import fold
from editforge.recipe.contract import AUTO, TargetInputs


def preserve_list(inputs: TargetInputs, targets: Sequence[Target]) -> tuple[Preserved, ...]:
    """Targets first, then the user's list, then the mined neighbors with role `preserve`, each once.

    The mined ones are left out where the user gave a list without the word `auto`.

    Raises:
        RecipeError: the user preserves what is erased.
    """
    erased = {fold(name): name for concept in inputs.concepts for name in concept.names}
    rows = [
        Preserved(word=row.target, reason=f"target of {row.concept}")
        for row in targets
        if row.target
    ]
    if inputs.preserve is not None:
        both = [word for word in inputs.preserve if fold(word) in erased]
        if both:
            raise RecipeError("a concept is both erased and preserved", got=", ".join(both))
        own = [word for word in inputs.preserve if word != AUTO]
        rows += [Preserved(word=word, reason="your list") for word in own]
    if inputs.preserve is None or AUTO in inputs.preserve:
        for concept in inputs.concepts:
            near = inputs.neighbors.of(concept.name).having("preserve")
            rows += [Preserved(word=word, reason=f"near {concept.name}") for word in near]
    first: dict[str, Preserved] = {}
    for row in rows:
        if fold(row.word) not in erased:
            first.setdefault(fold(row.word), row)
    return tuple(first.values())
