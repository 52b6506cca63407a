"""The target the user typed: one text for all erased concepts, or one for each; "" is nothing."""

from __future__ import annotations

from pydantic import Field

from editforge.artifacts.concepts import fold
from editforge.artifacts.targets import Target, Targets
from editforge.errors import RecipeError, did_you_mean
from editforge.registry import register
from editforge.stages import Context, StageConfig, TargetInputs
from editforge.target.preserve import preserve_list


class FixedConfig(StageConfig):
    """Options of `target: fixed`."""

    text: str = Field(
        "", description="The target of every concept not named in `texts`; blank: nothing."
    )
    texts: dict[str, str] = Field(default_factory=dict, description="Concept name to target.")
    preserve_target: bool = Field(True, description="Hold the target too, so that it stays itself.")


@register("target", "fixed", paper="https://arxiv.org/abs/2308.14761")
def fixed(inputs: TargetInputs, config: FixedConfig, context: Context) -> Targets:
    """Take the target as given.

    Raises:
        RecipeError: a target the text encoder cannot read, equal to its concept, or erased itself.
    """
    names = [concept.name for concept in inputs.concepts]
    unknown = sorted(set(config.texts) - set(names))
    if unknown:
        allowed = did_you_mean(unknown[0], names)
        raise RecipeError("texts names no erased concept", got=unknown[0], allowed=allowed)
    erased = {fold(own): concept.name for concept in inputs.concepts for own in concept.names}
    rows = []
    for name in names:
        text = config.texts.get(name, config.text)
        text = text if text.strip() else ""  # blanks tokenize to the empty prompt
        owner = erased.get(fold(text)) if text else None
        if text:
            context.model.encoder.check(text)
        if owner is not None:
            what = (
                "equals its target: nothing would be erased" if owner == name else "is erased too"
            )
            raise RecipeError(
                "this target cannot be", got=f"{text!r} for {name!r}: {what}", next="--target OTHER"
            )
        rows.append(Target(concept=name, target=text, reason="yours"))
    held = rows if config.preserve_target else []
    try:
        return Targets(concepts=tuple(rows), preserve=preserve_list(inputs, held))
    except ValueError as error:
        message = str(error).split("Value error, ")[-1].split(" [")[0]
        raise RecipeError("this target cannot be", got=message, next="--target OTHER") from None
