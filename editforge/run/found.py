"""What lies at a place: a run, an edit, a repository of ours, a stranger's artifact; and its claims.

A run is judged from its own edit, everything else as its user loads it. What was erased and kept,
with which seed and on which base stands in the edit or in `editforge.json`; of a stranger's artifact
only its user can say it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from editforge.artifacts.eraser import Acting, Eraser
from editforge.artifacts.lora.read import read_lora
from editforge.families.config import ModelConfig
from editforge.families.identity import Identity
from editforge.families.model import Model
from editforge.ground.errors import PackageError, RecipeError
from editforge.ground.files import read_header
from editforge.package.exports import exporter
from editforge.package.facts import Claims, base_config, read_claims, read_facts, repository
from editforge.package.shipped import Shipped
from editforge.recipe.layers import resolve
from editforge.run.load import kind_of, kinds, load_edit


@dataclass(frozen=True)
class Found:
    """What lies at a place: one edit or artifact, what it claims, and its base as far as it says.

    Args:
        form: of `Shipped`; None for an eraser of ours.
        place: its file or folder.
        edit: the eraser of a run.
        claims: what was erased and kept, on which base.
        base: where the base is; None if only `--model` can say.
        loading: how the base is loaded, wherever it lies: variant, dtype.
        family: the family's name, if it is known.
        strength: baked in.
    """

    form: str | None
    place: Path
    claims: Claims
    edit: Eraser | None = None
    base: ModelConfig | None = None
    loading: Mapping[str, str | None] = field(default_factory=dict)
    family: str | None = None
    strength: float = 1.0

    def eraser(self, model: Model, named: str) -> Acting:
        """For the gate. What does not belong to the base is refused here, before it is drawn.

        Raises:
            PackageError: another base (`named` is what it was called), or weights it cannot take.
        """
        told = Identity.recorded(self.claims.model_dump())
        gap = told.sha256 and told.apart(model.identity)
        if gap:
            raise PackageError(
                "this edit belongs to another base model",
                got=f"{named} ({model.base_sha256[:12]}), {gap}",
                allowed=f"{self.claims.base_model} ({told.sha256[:12]})",
                next="name it: --model",
            )
        if self.family not in (None, model.family.name):
            raise PackageError(
                "the package was made with another family",
                got=model.family.name,
                allowed=self.family,
                next="name its file: --family FILE.yaml",
            )
        if self.edit is not None:
            return self.edit
        assert self.form is not None
        exporter(self.form).check_shipped(model, self.place)
        return Shipped(self.form, self.place, model, self.strength)


def find(place: Path, typed: str, concepts: tuple[str, ...] = (), kind: str = "object") -> Found:
    """What lies there, and what it claims; of a stranger's artifact that is what the user says.

    Args:
        place: a file or folder.
        typed: as the user named it, for messages.
        concepts: what is erased, where the artifact does not say it.
        kind: of these.

    Raises:
        PackageError: nothing to judge, a damaged or hostile `editforge.json`, or nobody says what
            was erased.
        RecipeError: `concepts` for an artifact that says it itself, or no such concept.
    """
    own = place / "recipe.yaml"
    folder = None if own.is_file() else repository(place)
    if own.is_file() or _is_edit(place):
        edit = load_edit(place)
        claims = read_claims(edit.provenance, typed)
        base = base_config(claims.base_model, claims.base_revision)
        base = resolve(str(own)).model if own.is_file() else base
        found = Found(None, place, claims, edit, base)
    elif folder is not None:
        found = _repository(folder, place)
    else:
        found = Found(*_foreign(place), Claims())
    if not found.claims.erased:
        erased = _given(found, typed, concepts, kind).erased
        return replace(found, claims=found.claims.model_copy(update={"erased": erased}))
    if concepts:
        raise RecipeError(
            "this says itself what it erases",
            got=f"--concept {concepts[0]}",
            allowed=", ".join(concept.name for concept in found.claims.concepts),
            next=f"editforge evaluate {shlex.quote(typed)}",
        )
    return found


def _is_edit(place: Path) -> bool:
    files = (place / kind.file for kind in kinds()) if place.is_dir() else (place,)
    return any(
        file.is_file() and file.suffix == ".safetensors" and kind_of(file) is not None
        for file in files
    )


def _repository(folder: Path, place: Path) -> Found:
    facts = read_facts(folder)
    weights = folder / facts.artifact.weights[0]
    file = place if place.is_file() else weights
    whole = exporter(facts.export).is_folder
    if whole and file != weights:
        raise PackageError(
            "a folder is loaded whole, by its unsuffixed file",
            got=file.name,
            next=f"editforge evaluate {shlex.quote(str(folder))}",
        )
    claims = facts.claims.model_copy(update={"base_sha256": facts.base.sha256})
    return Found(
        facts.export,
        folder if whole else file,
        claims,
        base=base_config(facts.base.label, facts.base.revision),
        loading=facts.loading,
        family=facts.family.name,
        strength=facts.edit.strength,
    )


def _foreign(place: Path) -> tuple[str, Path]:
    """The form of an artifact without `editforge.json`, by what is there."""
    if (place / "model_index.json").is_file():
        return "pipeline", place
    if (place / "config.json").is_file():
        return "unet", place
    file = place
    if place.is_dir():
        found = sorted(place.glob("*.safetensors"))
        if len(found) != 1:
            raise PackageError(
                "nothing to judge here" if not found else "more than one weight file",
                got=", ".join(path.name for path in found[:4]) or str(place),
                allowed="a run, a package, a LoRA file, or a folder with one of them",
                next="editforge evaluate --help",
            )
        file = found[0]
    if file.suffix != ".safetensors":
        raise PackageError(
            "weights are read from safetensors alone",
            got=file.name,
            next="pickled files can run code: convert it to safetensors first",
        )
    _, table = read_header(file)
    original = any(name.startswith("model.diffusion_model.") for name in table)
    return "single-file" if original else "lora", file


def _given(found: Found, typed: str, concepts: tuple[str, ...], kind: str) -> Claims:
    """What the user says that an artifact erases.

    A LoRA header of ours names concepts too, without aliases, kind and seed: a gate that guessed
    these would ask other questions than the run's. They only make the hint.
    """
    if concepts:
        rows = [{"name": name, "kind": kind} for name in concepts]
        try:
            return read_claims({"erased": rows}, "--concept")
        except PackageError as error:
            raise RecipeError("no concept", got=error.got, allowed=error.allowed) from None
    told = read_lora(found.place).provenance if found.form == "lora" else {}
    known = read_claims(told, typed)
    base = found.base or base_config(known.base_model, known.base_revision)
    names = [concept.name for concept in known.concepts] or ["NAME"]
    words = [f"--concept={name}" for name in names]
    words += [] if found.base else [f"--model={base.id if base else 'BASE'}"]
    raise PackageError(
        "it does not say what it erases, and there is no editforge.json beside it",
        got=typed,
        allowed="--concept NAME, once for each, and its base: --model",
        next=shlex.join(["editforge", "evaluate", typed, *words]),
    )
