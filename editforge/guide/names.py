"""The erased names as guards of texts take them, and what such a guard says of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from editforge.artifacts.chosen import erased_names, provenance_rows
from editforge.artifacts.targets import Target, Targets
from editforge.recipe.contract import Context, GuideInputs


def text_of(inputs: GuideInputs, text: str | None, context: Context) -> str:
    """The user's text, or all erased names; an empty one is allowed, a cut one is not.

    Raises:
        RecipeError: it has more tokens than the text encoder reads.
    """
    said = ", ".join(names_of(inputs)) if text is None else text.strip()
    if said:
        context.model.encoder.check(said)
    return said


def names_of(inputs: GuideInputs) -> tuple[str, ...]:
    """Names, aliases and words marked `erase` of all concepts, each once."""
    found = [name for concept in inputs.concepts for name in erased_names(concept, inputs)]
    return tuple(dict.fromkeys(found))


def facts_of(inputs: GuideInputs) -> dict[str, Any]:
    """What was erased; such a guard needs no target, and where the recipe has none it says so."""
    if inputs.targets.concepts:
        return {"erased": list(provenance_rows(inputs))}
    nothing = tuple(Target(concept=concept.name, target="") for concept in inputs.concepts)
    rows = provenance_rows(replace(inputs, targets=Targets(concepts=nothing)))
    return {"erased": [{**row, "target": None} for row in rows]}
