"""Neighbors from a list that is already there: one that a person edited, say."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import SCHEMA, Neighbors, load_list
from editforge.errors import RecipeError, did_you_mean
from editforge.registry import register
from editforge.stages import Context, MineInputs, StageConfig


class FileConfig(StageConfig):
    """Options of `mine: file`."""

    path: str = Field("neighbors.yaml", description="A list as `mine` writes it.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """The list must be there, and be one."""
        load_list(Neighbors, Path(self.path).expanduser(), SCHEMA)


@register("mine", "file")
def file(inputs: MineInputs, config: FileConfig, context: Context) -> Neighbors:
    """Take the list as it is.

    Raises:
        RecipeError: no such file, no such list, or one of a concept that is not erased.
    """
    found = load_list(Neighbors, Path(config.path).expanduser(), SCHEMA)
    names = [concept.name for concept in inputs.concepts]
    for row in found.concepts:
        if row.concept not in names:
            raise RecipeError(
                "the list names a concept that is not erased",
                got=f"{row.concept!r} in {config.path}",
                allowed=did_you_mean(row.concept, names),
                next="take its row out, or erase it too",
            )
    return found
