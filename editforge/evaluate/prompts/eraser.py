"""What an eraser may know, and nothing else.

RETAIN-60, aliases that were not given and the held-out templates stay here: an eraser that saw them
would be tuned on what it is scored with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from editforge import emoji


@dataclass(frozen=True, slots=True)
class EraserInputs:
    """The whole input of an eraser beside the pipeline: plain strings, no reference to more.

    Args:
        erased: names of the erased concepts.
        aliases: given aliases by concept, as (name, alias) pairs; usually empty.
        templates: the seen templates.
        vocabulary: the 180 names that are not in RETAIN-60.
    """

    erased: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]
    templates: tuple[str, ...]
    vocabulary: tuple[str, ...]


def eraser_inputs(concepts: Sequence[Any]) -> EraserInputs:
    """What the embedded model's erasers get for these concepts (objects with name and aliases)."""
    return EraserInputs(
        erased=tuple(concept.name for concept in concepts),
        aliases=tuple((c.name, alias) for c in concepts for alias in c.aliases),
        templates=emoji.manifest().templates["seen"],
        vocabulary=emoji.words(),
    )
