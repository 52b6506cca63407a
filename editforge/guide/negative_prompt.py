"""A negative prompt of the erased names: what a user has without any eraser.

methods.md 5.7. No state, no gate, no cost: it moves harmless prompts too.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from editforge.guards.text_guard import CHECKED, TextGuard, repeated
from editforge.guards.words import Quiet, Reading, Speaks, Texts
from editforge.guide.names import facts_of, text_of
from editforge.recipe.contract import Context, GuideInputs, StageConfig
from editforge.recipe.registry import register


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NegativePrompt(TextGuard):
    """Every picture is steered away from one text, whatever its prompt.

        g = eps(z, text) + alpha (eps(z, c) - eps(z, text))

    Guarantee: at strength 1 what the pipeline draws with `negative_prompt=text`, bit for bit (several
    at once may be read with other last bits); an empty text or strength 0 draws what it draws without.
    A user's own negative prompt is replaced, or the concept would come back with one. Other strengths
    blend: (1 - strength) of the states that stood there, and `strength` of the text's.

    Known failure: without classifier-free guidance there is nothing that it could replace.

    Args:
        text: longer: each of its words counts less.
    """

    file: ClassVar[str] = "negative_prompt.safetensors"
    header: ClassVar[str] = "editforge_negative_prompt"

    text: Annotated[str, Field(max_length=2000)]

    def rule(self, pipe: Any) -> NegativeRule:
        """The guard on one pipeline."""
        return NegativeRule(self, Speaks(pipe))


class NegativeRule:
    """A negative prompt on one pipeline."""

    def __init__(self, guard: NegativePrompt, speaks: Speaks) -> None:
        self._guard, self._speaks = guard, speaks

    def read(self, prompts: Texts) -> Reading:
        """The same for all prompts.

        An empty text is not read: SDXL has zeros in place of no negative prompt, and they would go.
        """
        text, strength = self._guard.text.strip(), self._guard.strength
        return Negative(self._speaks(text), strength) if text and strength else Quiet()


class Negative(Quiet):
    """One text in place of the empty one."""

    def __init__(self, text: Texts, strength: float) -> None:
        self._text, self._strength = text, strength

    def instead_of_empty(self, given: Texts) -> Texts:
        """(1 - strength) of what stood there, and `strength` of the text."""
        said = repeated(self._text, given)
        return said if self._strength == 1 else given.toward(said, self._strength)


class NegativePromptConfig(StageConfig):
    """Options of `guide: negative-prompt`. methods.md 5.7."""

    text: str | None = Field(
        None, max_length=2000, description="The negative prompt; null: the erased names."
    )


@register("guide", "negative-prompt", paper=None)
def negative_prompt(
    inputs: GuideInputs, config: NegativePromptConfig, context: Context
) -> NegativePrompt:
    """Name what must go where a pipeline takes what must not be drawn.

    Raises:
        RecipeError: the text encoder would cut the text off.
    """
    return NegativePrompt(text=text_of(inputs, config.text, context), provenance=facts_of(inputs))
