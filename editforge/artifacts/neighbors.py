"""Neighbors: what lies near each erased concept, ranked, with reasons, for a person to read and edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from editforge.artifacts.concepts import Name
from editforge.artifacts.prototypes import Prototypes
from editforge.ground.disk import OWN, dump_yaml, read_yaml, write_text
from editforge.ground.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "editforge.neighbors/1"
T = TypeVar("T", bound=BaseModel)
_HEADER = """\
# What lies near each erased concept. Edit `role` and run again: what follows is redone.
#   erase     goes with the concept: another name of it, or a part of what must go
#   preserve  must not move
#   ignore    neither
# `candidate: true` may become the target; `doubtful: true` too, if pictures tell it from the concept.
# similarity: 1 is the concept itself.
# displacement: how far the word is from the concept; 0 would erase nothing.
# `shell`: where unnamed neighbors are drawn. They are not listed: the seed draws the same ones again.
# `nearest` names the words nearest to each, with cosines; `in_band` the words between the bounds.
"""


class Encoder(Protocol):
    """Whatever reads words: a family's text encoder."""

    def encode_words(self, words: Sequence[str]) -> Tensor:
        """State of the last token of each, (V, d)."""
        ...


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Neighbor(_Data):
    """One named neighbor of one concept."""

    word: Name
    role: Literal["erase", "preserve", "ignore"]
    candidate: bool = False
    doubtful: bool = False
    similarity: float
    displacement: float
    reason: str = ""

    @model_serializer(mode="wrap")
    def _short(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Few rows are doubtful, and a list has hundreds."""
        row: dict[str, Any] = write(self)
        return row if self.doubtful else {k: v for k, v in row.items() if k != "doubtful"}


class MinedShell(_Data):
    """Where one concept's unnamed neighbors lie, and how many are drawn; never the vectors.

    `ground.shell.neighbors_of` draws them again from the seed, the concept and this block. Only
    angles and the ratio distance / radius matter: the shell moves with the state it is put around.

    Args:
        law: of a neighbor's displacement, see `ground.shell`.
        along: the words or paraphrases that it is displaced along; none for `tangent_shell`.
        radius: length of the bare name's state; `distance` (None: what cos_lo implies) belongs to it.
        source: the word list that calibrated the bounds and that words beyond come from.
        num_beyond: samples held outside, of which `beyond_shell_fraction` are drawn with radii of
            out_lo to out_hi times r_hi, and the rest are words outside the band.
        accepted: of `drawn` neighbors those that met all bounds.
        in_band: words between the bounds, nearest first.
        nearest: per neighbor the nearest words with their cosines.
    """

    source: str = "family"
    law: Literal["tangent_shell", "words", "paraphrases"] = "tangent_shell"
    along: tuple[Name, ...] = ()
    radius: float
    r_lo: float
    r_hi: float
    cos_lo: float
    cos_hi: float
    distance: float | None = None
    num_neighbors: int = Field(ge=0)
    num_beyond: int = Field(ge=0)
    beyond_shell_fraction: float = Field(ge=0, le=1)
    out_lo: float
    out_hi: float
    accepted: int = 0
    drawn: int = 0
    in_band: tuple[str, ...] = ()
    nearest: tuple[dict[str, float], ...] = ()

    @model_validator(mode="after")
    def _a_law_has_states(self) -> MinedShell:
        if self.law != "tangent_shell" and not self.along:
            raise ValueError(f"law {self.law} needs `along`, a list of texts")
        return self

    def away(self, encoder: Encoder, name: str) -> Tensor:
        """What lies along, less the state of the bare name, (d, k) float64; k = 0 without any."""
        states = encoder.encode_words([name, *self.along]).double()
        return (states[1:] - states[0]).T


class Neighborhood(_Data):
    """All neighbors of one concept: named ones nearest first, and the shell of the unnamed ones."""

    concept: Name
    passed_over: dict[str, int] = {}
    shell: MinedShell | None = None
    words: tuple[Neighbor, ...] = ()

    @property
    def counts(self) -> str:
        """What was passed over, for an error: `3 same word, 2 alias`; empty if nothing was."""
        return ", ".join(f"{count} {why}" for why, count in self.passed_over.items())

    def having(self, role: str) -> list[str]:
        """The words with one role, nearest first."""
        return [row.word for row in self.words if row.role == role]


class Neighbors(_Data):
    """The artifact of `mine`: one neighborhood per erased concept.

    `source` names the word list (family, tokenizer, or a file's hash), so that later stages read the
    same one. `prototypes` are vectors and lie in files of their own.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    source: str = "family"
    concepts: tuple[Neighborhood, ...] = ()
    prototypes: Prototypes | None = Field(None, exclude=True)

    def of(self, name: str) -> Neighborhood:
        """The neighborhood of one erased concept; an empty one if nothing was mined for it."""
        found = [entry for entry in self.concepts if entry.concept == name]
        return found[0] if found else Neighborhood(concept=name)

    def merged(self, other: Neighbors) -> Neighbors:
        """Both lists, the first shell and prototypes; of two rows for one word the first stays.

        A first row that merely ignores a word takes the other's role, if that is `erase` or the row
        gives no reason.
        """
        result = []
        for name in dict.fromkeys(entry.concept for entry in (*self.concepts, *other.concepts)):
            mine, theirs = self.of(name), other.of(name)
            roles = {row.word: row.role for row in theirs.words}
            words = [
                row.model_copy(update={"role": roles.get(row.word, row.role)})
                if row.role == "ignore" and (not row.reason or roles.get(row.word) == "erase")
                else row
                for row in mine.words
            ]
            known = {row.word for row in mine.words}
            words += [row for row in theirs.words if row.word not in known]
            result.append(
                Neighborhood(
                    concept=name,
                    passed_over={**theirs.passed_over, **mine.passed_over},
                    shell=mine.shell or theirs.shell,
                    words=tuple(words),
                )
            )
        vectors = self.prototypes or other.prototypes
        return Neighbors(source=self.source, concepts=tuple(result), prototypes=vectors)

    def save(self, folder: Path) -> None:
        """Write `neighbors.yaml`, and the prototypes' files if there are any."""
        write_text(folder / "neighbors.yaml", self.to_yaml())
        if self.prototypes is not None:
            self.prototypes.save(folder)

    def to_yaml(self) -> str:
        """The list as text, with what a person may do to it."""
        return _HEADER + dump_yaml({"schema": SCHEMA, **self.model_dump(mode="json")})

    @classmethod
    def load(cls, folder: Path) -> Neighbors:
        """Read `neighbors.yaml`, which a person may have edited.

        Raises:
            RecipeError: the key, the value and what is allowed.
        """
        found = load_list(cls, folder / "neighbors.yaml", SCHEMA)
        return found.model_copy(update={"prototypes": Prototypes.load(folder)})


def given_list(cls: type[T], path: str, schema: str, erased: Sequence[str]) -> T:
    """A list that a recipe names instead of what a stage finds: of erased concepts alone.

    Raises:
        RecipeError: no such file, no such list, or one of a concept that is not erased.
    """
    found: Any = load_list(cls, Path(path).expanduser(), schema)
    for row in found.concepts:
        if row.concept not in erased:
            raise RecipeError(
                "the list names a concept that is not erased",
                got=f"{row.concept!r} in {path}",
                allowed=did_you_mean(row.concept, erased),
                next="take its row out, or erase it too",
            )
    checked: T = found
    return checked


def load_list(cls: type[T], path: Path, schema: str) -> T:
    """Validate an edited YAML artifact; the first fault is reported with its place."""
    body = read_yaml(path, OWN)
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
