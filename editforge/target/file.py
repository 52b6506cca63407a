"""Targets and the preserve list from a list that is already there: one that a person edited, say."""

from __future__ import annotations

from pydantic import Field

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import given_list
from editforge.artifacts.targets import SCHEMA, Targets
from editforge.ground.errors import RecipeError
from editforge.recipe.contract import Context, StageConfig, TargetInputs
from editforge.recipe.registry import register


class FileConfig(StageConfig):
    """Options of `target: file`."""

    path: str = Field("targets.yaml", description="A list as `target` writes it.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """The list must be there, and be one of these concepts."""
        self.read(concepts)

    def read(self, concepts: tuple[Concept, ...]) -> Targets:
        """The list, checked; see `given_list`."""
        return given_list(Targets, self.path, SCHEMA, [concept.name for concept in concepts])


@register("target", "file")
def file(inputs: TargetInputs, config: FileConfig, context: Context) -> Targets:
    """Take the list as it is; why each target was chosen is then "yours".

    Raises:
        RecipeError: no such file or list; a concept without a target, a target without a concept; a
            target the text encoder cannot read; a preserve list beside the one of the file.
    """
    if inputs.preserve is not None:
        raise RecipeError(
            "two preserve lists", got=", ".join(inputs.preserve), next=f"add them to {config.path}"
        )
    found = config.read(inputs.concepts)
    rows = [found.of(concept.name) for concept in inputs.concepts]
    for text in [row.target for row in rows if row.target] + found.preserved:
        context.model.encoder.check(text)
    yours = tuple(row.model_copy(update={"reason": "yours", "candidates": ()}) for row in rows)
    return found.model_copy(update={"concepts": yours})
