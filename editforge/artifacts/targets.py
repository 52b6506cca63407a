"""Targets: what each erased concept becomes, what must not move, and why; for a person to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from editforge.artifacts.concepts import Name
from editforge.artifacts.neighbors import load_list
from editforge.ground.disk import dump_yaml, write_text
from editforge.ground.errors import RecipeError
from editforge.ground.names import fold

SCHEMA = "editforge.targets/1"
_HEADER = """\
# What each erased concept becomes (`target`, "" is nothing at all), and what must not move (`preserve`).
# Edit and run again: what follows is redone. `candidates`: the one that was taken, then the nearest.
# similarity: of their states; meaning: to CLIP's text tower. Of the base's pictures of it: image, how
# alike they are to the concept's; itself, as_concept: shares taken for the word, and for the concept.
# score = displacement^2 * mean over nearby words of their predicted movement^2; leak: how much of the
# erased concept's movement the word would share.
"""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Candidate(_Data):
    """A word that could have been the target, what choosing it would cost, and what it looks like."""

    word: str
    score: float
    similarity: float
    displacement: float
    leak: float
    meaning: float | None = None
    image: float | None = None
    itself: float | None = None
    as_concept: float | None = None
    reason: str = ""

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What nobody looked for is left out."""
        return {key: value for key, value in write(self).items() if value is not None}


class Target(_Data):
    """What one erased concept is mapped to."""

    concept: Name
    target: str = Field(description="The words it becomes; empty: the null vector.")
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()


class Preserved(_Data):
    """One concept that must not move."""

    word: Name
    reason: str = ""


class Targets(_Data):
    """The artifact of `target`: one target per erased concept, one preserve list for all."""

    concepts: tuple[Target, ...]
    preserve: tuple[Preserved, ...] = ()

    @model_validator(mode="after")
    def _no_contradiction(self) -> Targets:
        erased = {fold(row.concept) for row in self.concepts}
        if len(erased) < len(self.concepts):
            names = [fold(row.concept) for row in self.concepts]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!r} has two targets")
        for row in self.concepts:
            if fold(row.target) == fold(row.concept):
                raise ValueError(f"{row.concept!r} equals its target: nothing would be erased")
            if fold(row.target) in erased:
                raise ValueError(f"the target {row.target!r} of {row.concept!r} is itself erased")
        for kept in self.preserve:
            if fold(kept.word) in erased:
                raise ValueError(f"{kept.word!r} is both erased and preserved")
        return self

    def of(self, name: str) -> Target:
        """The target of one erased concept.

        Raises:
            RecipeError: an edited list names no target for it.
        """
        for row in self.concepts:
            if row.concept == name:
                return row
        raise RecipeError(
            f"targets.yaml has no target for {name!r}",
            got=", ".join(row.concept for row in self.concepts) or "no concept",
            next="add its row, or delete the file to have it written anew",
        )

    @property
    def preserved(self) -> list[str]:
        """The preserved words in order."""
        return [row.word for row in self.preserve]

    def save(self, folder: Path) -> None:
        """Write `targets.yaml`."""
        write_text(folder / "targets.yaml", self.to_yaml())

    def to_yaml(self) -> str:
        """The list as text, with what a person may do to it."""
        return _HEADER + dump_yaml({"schema": SCHEMA, **self.model_dump(mode="json")})

    @classmethod
    def load(cls, folder: Path) -> Targets:
        """Read `targets.yaml`, which a person may have edited.

        Raises:
            RecipeError: the key, the value and what is allowed.
        """
        return load_list(cls, folder / "targets.yaml", SCHEMA)
