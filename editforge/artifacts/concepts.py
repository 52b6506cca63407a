"""Concept: what must go. A name, its aliases, a kind; nothing about how."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Kind = Literal["object", "style", "person", "broad"]


def _tidy(text: str) -> str:
    if not text.strip() or not any(letter.isalnum() for letter in text):
        raise ValueError("a name needs at least one letter or digit")
    if text != " ".join(text.split()):
        raise ValueError("no leading, trailing, double or control white space in a name")
    if any(letter in "\u200b\ufeff" or unicodedata.category(letter) == "Cc" for letter in text):
        raise ValueError("no control or invisible character in a name")
    return text


Name = Annotated[str, Field(max_length=200), AfterValidator(_tidy)]


class Concept(BaseModel):
    """An erased concept. `aliases` are names of the same thing, erased with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="The words a prompt would use.")
    aliases: tuple[Name, ...] = Field((), description="Other names of the same thing, erased too.")
    kind: Kind = Field("object", description="Picks the templates: object, style, person, broad.")

    @property
    def names(self) -> tuple[str, ...]:
        """Name first, then the aliases."""
        return (self.name, *self.aliases)
