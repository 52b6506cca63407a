"""Neighbors: what lies near each erased concept, ranked, with reasons, for a person to read and edit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from editforge.artifacts.concepts import Name
from editforge.errors import RecipeError
from editforge.disk import dump_yaml, read_yaml, write_text

SCHEMA = "editforge.neighbors/1"
T = TypeVar("T", bound=BaseModel)
_HEADER = """\
# What lies near each erased concept. Edit `role` and run again: what follows is redone.
#   erase     goes with the concept: another name of it, or a part of what must go
#   preserve  must not move
#   ignore    neither
# `candidate: true` may become the target. similarity: 1 is the concept itself.
# displacement: how far the word is from the concept; 0 would erase nothing.
"""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Neighbor(_Data):
    """One named neighbor of one concept."""

    word: Name
    role: Literal["erase", "preserve", "ignore"]
    candidate: bool = False
    similarity: float
    displacement: float
    reason: str = ""


class Neighborhood(_Data):
    """All named neighbors of one concept, nearest first, and how many words were passed over."""

    concept: Name
    passed_over: dict[str, int] = {}
    words: tuple[Neighbor, ...] = ()

    def having(self, role: str) -> list[str]:
        """The words with one role, nearest first."""
        return [row.word for row in self.words if row.role == role]


class Neighbors(_Data):
    """The artifact of `mine`: one neighborhood per erased concept.

    `source` names the word list (family, tokenizer, or a file's hash), so that later stages read the
    same one.
    """

    source: str = "family"
    concepts: tuple[Neighborhood, ...] = ()

    def of(self, name: str) -> Neighborhood:
        """The neighborhood of one erased concept; an empty one if nothing was mined for it."""
        found = [entry for entry in self.concepts if entry.concept == name]
        return found[0] if found else Neighborhood(concept=name)

    def merged(self, other: Neighbors) -> Neighbors:
        """Both lists; of two rows for one word the first stays."""
        result = []
        for name in dict.fromkeys(entry.concept for entry in (*self.concepts, *other.concepts)):
            mine, theirs = self.of(name), other.of(name)
            known = {row.word for row in mine.words}
            words = (*mine.words, *(row for row in theirs.words if row.word not in known))
            counts = {**theirs.passed_over, **mine.passed_over}
            result.append(Neighborhood(concept=name, passed_over=counts, words=words))
        return Neighbors(source=self.source, concepts=tuple(result))

    def save(self, folder: Path) -> None:
        """Write `neighbors.yaml`."""
        body = {"schema": SCHEMA, **self.model_dump(mode="json")}
        write_text(folder / "neighbors.yaml", _HEADER + dump_yaml(body))

    @classmethod
    def load(cls, folder: Path) -> Neighbors:
        """Read `neighbors.yaml`, which a person may have edited.

        Raises:
            RecipeError: the key, the value and what is allowed.
        """
        return load_list(cls, folder / "neighbors.yaml", SCHEMA)


def load_list(cls: type[T], path: Path, schema: str) -> T:
    """Validate an edited YAML artifact; the first fault is reported with its place."""
    body = read_yaml(path)
    if not isinstance(body, dict) or body.pop("schema", None) != schema:
        raise RecipeError(f"{path.name} is not a list of this version", allowed=f"schema: {schema}")
    try:
        return cls.model_validate(body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise RecipeError(
            f"{path.name} was edited into something else",
            got=f"{where}: {str(fault.get('input'))[:80]!r}",
            allowed=fault["msg"],
            next="mend the line, or delete the file to have it written anew",
        ) from None
