"""Chosen: concepts, targets and neighbors together, and what follows for the names in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.system import System
from editforge.artifacts.targets import Targets
from editforge.families.schema import Family
from editforge.ground.errors import RecipeError
from editforge.ground.names import fold


@dataclass(frozen=True)
class Chosen:
    """What must go, what it becomes, and what lies near: what every eraser is made from."""

    concepts: tuple[Concept, ...]
    targets: Targets
    neighbors: Neighbors


def erased_names(concept: Concept, inputs: Chosen) -> list[str]:
    """The concept's name, its aliases, and the neighbors marked `erase`, each once."""
    marked = inputs.neighbors.of(concept.name).having("erase")
    first: dict[str, str] = {}
    for name in (*concept.names, *marked):
        first.setdefault(fold(name), name)
    return list(first.values())


def becomes(concept: Concept, inputs: Chosen) -> str:
    """The concept's target; an empty text is nothing.

    Raises:
        RecipeError: the target is a name, an alias or a marked neighbor of something erased.
    """
    target = inputs.targets.of(concept.name).target
    for other in inputs.concepts:
        names = {fold(name): name for name in erased_names(other, inputs)}
        if fold(target) in names:
            raise RecipeError(
                f"{concept.name!r} cannot become what is erased itself",
                got=f"{target!r}, a name of {other.name!r}",
                next="name another target: --target TEXT",
            )
    return target


def kin(inputs: Chosen) -> tuple[str, ...]:
    """Words that mean an erased concept, or part of it: erased or left alone, never held."""
    words: dict[str, None] = {}
    for concept in inputs.concepts:
        near = inputs.neighbors.of(concept.name).words
        words |= dict.fromkeys(row.word for row in near if row.reason or row.role == "erase")
    return tuple(words)


def templates_of(kinds: Sequence[str], family: Family) -> tuple[str, ...]:
    """Templates of all kinds, each once, whatever the order of the concepts."""
    found = [text for kind in sorted(set(kinds)) for text in family.templates.get(kind, ("{n}",))]
    return tuple(dict.fromkeys(found))


def preserved_names(inputs: Chosen) -> list[str]:
    """The preserve list without anything that is erased."""
    gone = {fold(name) for concept in inputs.concepts for name in erased_names(concept, inputs)}
    return [word for word in inputs.targets.preserved if fold(word) not in gone]


def system_of(
    inputs: Chosen,
    method: str,
    base_sha256: str,
    columns: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[str]],
) -> System:
    """What is solved: columns erased and their targets, (d, k) each, the owner of every one."""
    erased, target, owners = columns
    return System(
        erased=torch.cat(list(erased), dim=1),
        target=torch.cat(list(target), dim=1),
        erased_owner=tuple(owners),
        preserve=tuple(preserved_names(inputs)),
        rows=provenance_rows(inputs),
        base_sha256=base_sha256,
        method=method,
        kin=kin(inputs),
    )


def provenance_rows(inputs: Chosen) -> tuple[dict[str, object], ...]:
    """What each concept was, and became: for the card, and for whoever judges it again.

    `aliases` are the user's; words that mining found and that were erased too are `mined`. The gate
    draws what the eraser was not given, so the two must stay apart.
    """
    rows: list[dict[str, object]] = []
    for concept in inputs.concepts:
        mined = [word for word in erased_names(concept, inputs) if word not in concept.names]
        row: dict[str, object] = {
            "name": concept.name,
            "aliases": list(concept.aliases),
            "kind": concept.kind,
            "target": inputs.targets.of(concept.name).target,
        }
        rows.append(row | ({"mined": mined} if mined else {}))
    return tuple(rows)


def provenance(system: System, checks: Mapping[str, Any]) -> dict[str, Any]:
    """What a joint solve adds to an edit's provenance."""
    return {
        "erased": list(system.rows),
        "combined": "one concept" if len(system.rows) == 1 else "joint",
        "preserve": list(system.preserve),
        "checks": dict(checks),
    }
