"""Which names an edit erases and which it preserves, from concepts, neighbors and targets."""

from __future__ import annotations

from editforge.artifacts.concepts import Concept, fold
from editforge.stages import EditInputs


def erased_names(concept: Concept, inputs: EditInputs) -> list[str]:
    """The concept's name, its aliases, and the neighbors marked `erase`, each once."""
    marked = inputs.neighbors.of(concept.name).having("erase")
    first: dict[str, str] = {}
    for name in (*concept.names, *marked):
        first.setdefault(fold(name), name)
    return list(first.values())


def preserved_names(inputs: EditInputs) -> list[str]:
    """The preserve list without anything that is erased."""
    gone = {fold(name) for concept in inputs.concepts for name in erased_names(concept, inputs)}
    return [word for word in inputs.targets.preserved if fold(word) not in gone]


def provenance_rows(inputs: EditInputs) -> tuple[dict[str, object], ...]:
    """What each concept was, and became: for the card."""
    return tuple(
        {
            "name": concept.name,
            "aliases": erased_names(concept, inputs)[1:],
            "kind": concept.kind,
            "target": inputs.targets.of(concept.name).target,
        }
        for concept in inputs.concepts
    )
