"""`editforge.json` read back: what a repository holds, what it erases, and on which base.

A stranger may have written it. Every value that is used is checked first: names are one printable
line, a weight file lies inside the folder, numbers are numbers. Nothing is mended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictInt,
    ValidationError,
)

from editforge.artifacts.concepts import Concept, Kind, Name
from editforge.artifacts.sums import FACTS
from editforge.families.config import EMBEDDED, ModelConfig
from editforge.ground.disk import parse_yaml, read_json
from editforge.ground.errors import PackageError, did_you_mean
from editforge.ground.places import is_repository
from editforge.recipe import registry

FIRST = "lora"  # of several exports of one package, the one that is looked for first


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a line break or another control character")
    return text


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if "\\" in name or path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
        raise ValueError("a weight file is a .safetensors file inside the folder")
    return name


def _registered(name: str) -> str:
    known = registry.known(registry.EXPORT)
    if name not in known:
        raise ValueError(did_you_mean(name, known))
    return name


Text = Annotated[str, Field(max_length=300), AfterValidator(_printable)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ErasedRow(_Read):
    """One erased concept: what the user named, and what it became."""

    name: Name
    aliases: tuple[Name, ...] = ()
    kind: Kind = "object"
    target: Text | None = None

    def concept(self) -> Concept:
        """The concept as a recipe has it."""
        return Concept(name=self.name, aliases=self.aliases, kind=self.kind)


class Claims(_Read):
    """What an edit says it does, from its provenance: the lists that a gate asks about."""

    erased: tuple[ErasedRow, ...] = ()
    preserve: tuple[Text, ...] = ()
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    base_model: Text = ""
    base_revision: Text | None = None
    base_sha256: Text | None = None
    base_sketch: dict[str, Any] = {}

    @property
    def concepts(self) -> list[Concept]:
        """Erased concepts; aliases are the user's alone."""
        return [row.concept() for row in self.erased]

    @property
    def targets(self) -> dict[str, str]:
        """Concept name to what it became, "" for nothing; none of a concept that does not say it."""
        return {row.name: row.target for row in self.erased if row.target is not None}


class _Base(_Read):
    label: Text
    revision: Text | None
    sha256: Sha256
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")] | None


class _Family(_Read):
    name: Text


class _Edit(_Read):
    strength: FiniteFloat


class _Artifact(_Read):
    weights: Annotated[tuple[Annotated[str, AfterValidator(_inside)], ...], Field(min_length=1)]


class _RecipeModel(_Read):
    dtype: Literal["float32", "float16", "bfloat16"] | None = None


class _Recipe(_Read):
    model: _RecipeModel = _RecipeModel()


class Facts(_Read):
    """The part of `editforge.json` that says how to load a repository, and what to ask of it."""

    schema_: Literal["editforge.package/1"] = Field(alias="schema")
    export: Annotated[str, AfterValidator(_registered)]
    provenance: dict[str, Any]
    family: _Family
    base: _Base
    edit: _Edit
    artifact: _Artifact
    recipe: Annotated[_Recipe, BeforeValidator(lambda text: parse_yaml(str(text), "the recipe"))]

    @property
    def claims(self) -> Claims:
        """What was erased and kept."""
        return read_claims(self.provenance, FACTS)

    @property
    def loading(self) -> dict[str, str | None]:
        """How the run loaded its base, wherever that lies: variant and dtype."""
        return {"variant": self.base.variant, "dtype": self.recipe.model.dtype}


def read_facts(folder: Path) -> Facts:
    """Read and check the `editforge.json` of one repository folder.

    Raises:
        PackageError: missing, damaged, of another schema, or naming a weight file that is not there.
        RecipeError: the recipe in it is no YAML.
    """
    body = read_json(folder / FACTS)
    try:
        facts = Facts.model_validate(body)
    except ValidationError as error:
        raise _damaged(FACTS, error) from None
    _ = facts.claims
    missing = [name for name in facts.artifact.weights if not (folder / name).is_file()]
    if missing:
        raise PackageError(
            f"{FACTS} names weights that are not there",
            got=", ".join(missing[:3]),
            next="download or package it again",
        )
    return facts


def read_claims(provenance: Mapping[str, Any], source: str) -> Claims:
    """Check what a provenance says.

    Raises:
        PackageError: a name, kind or number that no run writes.
    """
    try:
        return Claims.model_validate(dict(provenance))
    except ValidationError as error:
        raise _damaged(source, error) from None


def base_config(label: str, revision: str | None) -> ModelConfig | None:
    """The base that a label names: the embedded model or a Hub id; a local one has no address."""
    if label == EMBEDDED:
        return ModelConfig(id="emoji")
    return ModelConfig(id=label, revision=revision) if is_repository(label) else None


def repository(place: Path) -> Path | None:
    """The repository folder that a path means, or None.

    A repository means itself, a package its first export, LoRA before others, a folder that holds
    `package` likewise, and a weight file the repository that lists it.
    """
    for folder in repositories(place) if place.is_dir() else (place.parent, place.parent.parent):
        if (folder / FACTS).is_file() and (place.is_dir() or _lists(folder, place)):
            return folder
    return None


def provenance_beside(file: Path) -> dict[str, Any]:
    """The whole provenance of the repository that lists a weight file; {} for any other file."""
    folder = repository(file)
    return {} if folder is None else read_facts(folder).provenance


def repositories(folder: Path) -> Iterator[Path]:
    """Where a repository may lie: the folder itself, one of a package, one of a run's package."""
    exports = sorted(registry.known(registry.EXPORT), key=lambda name: name != FIRST)
    yield folder
    yield from (folder / export for export in exports)
    yield from (folder / "package" / export for export in exports)


def _lists(folder: Path, file: Path) -> bool:
    return file.relative_to(folder).as_posix() in read_facts(folder).artifact.weights


def _damaged(source: str, error: ValidationError) -> PackageError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return PackageError(
        f"{source} is not what a run writes: {where}",
        got=repr(first["input"])[:120],
        allowed=first["msg"],
        next="take another copy of it, or package the run again",
    )
