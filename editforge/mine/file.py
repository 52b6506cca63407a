"""Neighbors from a list that is already there: one that a person edited, say."""

from __future__ import annotations

from pydantic import Field

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import SCHEMA, Neighbors, given_list
from editforge.recipe.contract import Context, MineInputs, StageConfig
from editforge.recipe.registry import register


class FileConfig(StageConfig):
    """Options of `mine: file`."""

    path: str = Field("neighbors.yaml", description="A list as `mine` writes it.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """The list must be there, and be one of these concepts."""
        self.read(concepts)

    def read(self, concepts: tuple[Concept, ...]) -> Neighbors:
        """The list, checked; see `given_list`."""
        return given_list(Neighbors, self.path, SCHEMA, [concept.name for concept in concepts])


@register("mine", "file")
def file(inputs: MineInputs, config: FileConfig, context: Context) -> Neighbors:
    """Take the list as it is.

    Raises:
        RecipeError: no such file, no such list, or one of a concept that is not erased.
    """
    return config.read(inputs.concepts)
