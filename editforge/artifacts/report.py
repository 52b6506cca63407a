"""Report: what the evaluation found, as numbers with intervals, a verdict and pictures.

`editforge_results.json` holds everything; the pictures are files beside it, each with its digest.
Floats are rounded to six digits when a value is made, so a report equals itself after saving and
loading, and NaN or infinity cannot enter. No clock, path, user or host name is part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from editforge.ground.disk import read_json, write_atomic, write_json
from editforge.ground.errors import PackageError

SCHEMA: Literal["editforge.results/2"] = "editforge.results/2"
BENCHMARK_VERSION: Literal[2] = 2  # numbers of different versions are never compared
RESULTS = "editforge_results.json"

Status = Literal["erased", "not erased", "neighbor lost", "collapsed", "not judged"]
Number = Annotated[FiniteFloat, AfterValidator(lambda value: round(value, 6))]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A number with its 95 % interval, its `n` (images), and the unit that was resampled.

    An undefined one has no value and says why; it never stands for 0 or 1.
    """

    value: Number | None
    lo: Number | None
    hi: Number | None
    n: int = Field(ge=0)
    unit: str
    defined: bool = True
    reason: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Estimate:
        numbers = (self.value, self.lo, self.hi)
        if self.defined and None in numbers:
            raise ValueError("a defined estimate needs value, lo and hi")
        if not self.defined and (numbers != (None, None, None) or not self.reason):
            raise ValueError("an undefined estimate has no numbers and gives a reason")
        return self

    @classmethod
    def undefined(cls, reason: str, unit: str, n: int = 0) -> Estimate:
        """No number, and why."""
        return cls(value=None, lo=None, hi=None, n=n, unit=unit, defined=False, reason=reason)

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined ({self.reason})"
        return f"{self.value:.0%} [{self.lo:.0%}, {self.hi:.0%}], n = {self.n}"


class Remedy(_Frozen):
    """What may mend a failed check, by the recipe's own knobs; whoever knows the recipe picks.

    Args:
        aliases: erased concept to the words that still draw it.
        target: the erased concept that needs another target.
        preserve: names to hold.
        strength: to try instead.
        judge: whether a judge is missing.
    """

    aliases: dict[str, tuple[str, ...]] = {}
    target: str | None = None
    preserve: tuple[str, ...] = ()
    strength: Number | None = None
    judge: bool = False


class Check(_Frozen):
    """One question of the gate. `holds` is None where it could not be asked; `message` says why.

    `close` says that the 95 % interval reaches over the threshold: other seeds might tell otherwise.
    """

    name: str
    holds: bool | None
    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    threshold: Number | None = None
    close: bool = False
    message: str
    remedy: Remedy | None = None


class ConceptVerdict(_Frozen):
    """One erased concept's own verdict, and what its name is drawn as now, label to share."""

    name: str
    status: Status
    message: str
    drawn_as: dict[str, Number] = {}
    checks: tuple[Check, ...] = ()


class Verdict(_Frozen):
    """The worst failing check is the result; `passed` is None where nothing was judged.

    `next` is the command that tries the remedy, in a new folder; None without one.
    """

    status: Status
    passed: bool | None
    message: str
    remedy: Remedy | None = None
    next: str | None = None
    checks: tuple[Check, ...] = ()
    concepts: tuple[ConceptVerdict, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Verdict:
        expected = {"erased": True, "not judged": None}.get(self.status, False)
        if self.passed is not expected:
            raise ValueError(f"a verdict {self.status!r} cannot have passed = {self.passed}")
        return self


class Erased(_Frozen):
    """An erased concept as the report names it."""

    name: str
    aliases: tuple[str, ...] = ()
    kind: str = "object"
    target: str | None = None


class NameRate(_Frozen):
    """One name in one set: share of its `n` images present (erased, alias) or kept (near, far)."""

    name: str
    set: Literal["name", "alias", "near", "far"]
    base: Number | None
    edited: Number | None
    n: int


class Picture(_Frozen):
    """A picture file of the report, for grids and widgets."""

    file: str = Field(pattern=r"^(grid|images/[a-z]+_\d{3})\.png$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    prompt: str | None = None
    name: str | None = None
    set: str | None = None


class Report(_Frozen):
    """The whole result of one evaluation. `pictures` holds the PNG bytes by file name."""

    model_config = ConfigDict(populate_by_name=True)

    results_schema: Literal["editforge.results/2"] = Field(SCHEMA, alias="schema")
    benchmark_version: Literal[2] = BENCHMARK_VERSION
    tier: Literal["gate"] = "gate"
    verdict: Verdict
    erased: tuple[Erased, ...] = Field(min_length=1)
    family: str
    metrics: dict[str, Estimate | dict[str, Estimate]]
    names: tuple[NameRate, ...]
    judges: tuple[dict[str, Any], ...]
    sampler: dict[str, Any]
    seeds: dict[str, Any]
    versions: dict[str, str]
    device: str
    dtype: str
    aliases_given: bool = False
    notes: tuple[str, ...] = ()
    images: tuple[Picture, ...] = ()
    prompts: tuple[dict[str, Any], ...] = ()
    pictures: Mapping[str, bytes] = Field(default_factory=dict, exclude=True, repr=False)

    @model_validator(mode="after")
    def _pictured(self) -> Report:
        for picture in self.images:
            found = hashlib.sha256(self.pictures.get(picture.file, b"")).hexdigest()
            if found != picture.sha256:
                raise ValueError(f"{picture.file} is missing or has changed")
        return self

    @property
    def passed(self) -> bool | None:
        """True: erased; False: a check failed; None: not judged."""
        return self.verdict.passed

    def summary(self) -> str:
        """A few lines of plain text: verdict, the numbers beside the base, what is noteworthy."""
        lines = [f"{self.verdict.status}: {self.verdict.message}"]
        for key, title in (("presence_name", "name"), ("presence_alias", "aliases")):
            rate = self.metrics.get(key)
            if isinstance(rate, dict):
                lines.append(f"  {title + ' drawn:':<15}{rate['edited']}; base {rate['base']}")
        for key, title in (("retention_near", "near"), ("retention_far", "far")):
            kept = self.metrics.get(key)
            if isinstance(kept, Estimate):
                lines.append(f"  {title + ' kept:':<15}{kept}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def followed_by(self, command: str | None) -> Report:
        """The same report whose verdict names the command to run next."""
        verdict = self.verdict.model_copy(update={"next": command})
        return self.model_copy(update={"verdict": verdict})

    def save(self, folder: Path | str) -> None:
        """Write `editforge_results.json`, `grid.png` and `images/*.png`, pictures first."""
        folder = Path(folder)
        for picture in self.images:
            write_atomic(folder / picture.file, partial(_write, self.pictures[picture.file]))
        write_json(folder / RESULTS, self.model_dump(mode="json", by_alias=True))

    @classmethod
    def load(cls, folder: Path | str) -> Report:
        """Read a report back.

        Raises:
            PackageError: another schema, a value that is no finite number, a picture that is
                missing or is not the one that was written.
        """
        folder = Path(folder)
        raw = read_json(folder / RESULTS)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise PackageError(
                f"{RESULTS} has another schema",
                got=str(raw.get("schema") if isinstance(raw, dict) else type(raw).__name__)[:80],
                allowed=SCHEMA,
                next="evaluate again: editforge evaluate DIR",
            )
        try:
            files = [str(entry["file"]) for entry in raw.get("images", ())]
            found = [folder / name for name in files if _PICTURE.fullmatch(name)]
            data = {p.relative_to(folder).as_posix(): p.read_bytes() for p in found if p.is_file()}
            return cls.model_validate({**raw, "pictures": data})
        except (ValidationError, KeyError, TypeError) as error:
            raise PackageError(
                f"{RESULTS} is damaged",
                got="; ".join(str(error).splitlines()[:3]),
                next="evaluate again: editforge evaluate DIR",
            ) from None


_PICTURE = re.compile(r"(grid|images/[a-z]+_\d{3})\.png")


def _write(data: bytes, file: Any) -> None:
    file.write(data)
