"""Erased and target columns of every name, for the edits that map single states."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from editforge.artifacts.chosen import becomes, erased_names, system_of
from editforge.artifacts.system import System
from editforge.edit.vectors import Columns
from editforge.recipe.contract import Context, EditInputs


def paired_system(
    inputs: EditInputs, method: str, reader: Callable[[str], Columns], context: Context
) -> tuple[System, list[int]]:
    """Columns of every name, alias and neighbor marked `erase`; which of them are last tokens.

    Args:
        inputs: concepts with their targets.
        method: that solves it.
        reader: of a kind's templates.
        context: the model.
    """
    erased: list[Tensor] = []
    target: list[Tensor] = []
    owners: list[str] = []
    centers: list[int] = []
    columns = {kind: reader(kind) for kind in {str(concept.kind) for concept in inputs.concepts}}
    for concept in inputs.concepts:
        goal, names = becomes(concept, inputs), erased_names(concept, inputs)
        columns[concept.kind].read_all([*names, goal])
        for name in names:
            C, T = columns[concept.kind].pair(name, goal)
            erased.append(C)
            target.append(T)
            centers += [len(owners) + at for at in columns[concept.kind].subjects(name, goal)]
            owners += [concept.name] * C.shape[1]
    base = context.model.base_sha256
    return system_of(inputs, method, base, (erased, target, owners)), centers
