"""The target the user typed: one text for all erased concepts, or one for each; "" is nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from editforge.artifacts.concepts import Concept
from editforge.artifacts.targets import Target, Targets
from editforge.ground.errors import RecipeError, did_you_mean
from editforge.ground.names import name_key
from editforge.recipe.contract import Context, StageConfig, TargetInputs
from editforge.recipe.registry import register
from editforge.target.preserve import preserve_list

if TYPE_CHECKING:
    from editforge.families.model import Described


class FixedConfig(StageConfig):
    """Options of `target: fixed`."""

    text: str = Field(
        "", description="The target of every concept not named in `texts`; blank: nothing."
    )
    texts: dict[str, str] = Field(default_factory=dict, description="Concept name to target.")
    preserve_target: bool = Field(True, description="Hold the target too, so that it stays itself.")

    def of(self, name: str) -> str:
        """The target of a concept; blanks tokenize to the empty prompt, so they are nothing."""
        text = self.texts.get(name, self.text)
        return text if text.strip() else ""

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A target for an erased concept alone, and none that is erased itself, in any spelling."""
        names = [concept.name for concept in concepts]
        unknown = sorted(set(self.texts) - set(names))
        if unknown:
            allowed = did_you_mean(unknown[0], names)
            raise RecipeError("texts names no erased concept", got=unknown[0], allowed=allowed)
        erased = {name_key(own): concept.name for concept in concepts for own in concept.names}
        for name in names:
            text = self.of(name)
            owner = erased.get(name_key(text)) if text else None
            if owner is not None:
                same = "equals its target: nothing would be erased"
                what = same if owner == name else "is erased too"
                raise RecipeError(
                    "this target cannot be",
                    got=f"{text!r} for {name!r}: {what}",
                    next="--target OTHER",
                )

    def check_model(self, model: Described) -> None:
        """Targets that the text encoder can read."""
        for text in (self.text, *self.texts.values()):
            if text.strip():
                model.reader.check(text)


@register("target", "fixed", paper="https://arxiv.org/abs/2308.14761")
def fixed(inputs: TargetInputs, config: FixedConfig, context: Context) -> Targets:
    """Take the target as given.

    Raises:
        RecipeError: a target the text encoder cannot read, equal to its concept, or erased itself.
    """
    config.check_early(inputs.concepts)
    rows = []
    for concept in inputs.concepts:
        text = config.of(concept.name)
        if text:
            context.model.encoder.check(text)
        rows.append(Target(concept=concept.name, target=text, reason="yours"))
    held = rows if config.preserve_target else []
    try:
        return Targets(concepts=tuple(rows), preserve=preserve_list(inputs, held))
    except ValueError as error:
        message = str(error).split("Value error, ")[-1].split(" [")[0]
        raise RecipeError("this target cannot be", got=message, next="--target OTHER") from None
