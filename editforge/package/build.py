"""From an edit and its evaluation to a package: one folder per repository, hashed and scanned.

`editforge.json` is the machine's view of a repository: provenance, verdict, the hash of every other
file. The card is rendered from it and from the results. Nothing here knows a method, and nothing
here depends on the folder, the machine or the time: the same inputs give the same `SHA256SUMS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.disk import read_json, write_json, write_text
from editforge.errors import PackageError, did_you_mean
from editforge.package.base import BaseModel, Weights, check_fits
from editforge.package.card import check_results, render_card
from editforge.package.contents import write_artifact
from editforge.package.kohya import release_name
from editforge.package.scrub import mark_paths, scan
from editforge.package.verify import FACTS, hashes, write_sums

SCHEMA = "editforge.package/1"
RESULTS = "editforge_results.json"
PINNED = ("diffusers", "huggingface_hub", "peft", "safetensors", "torch", "transformers")
_NOTICES = ("LICENSE", "NOTICE", "ATTRIBUTION")
_OWN = ("README.md", "LICENSE-note", FACTS, RESULTS, "images/", "reproduce/", "notices/")


@dataclass(frozen=True)
class Package:
    """What was written: the folder, one repository folder per export, and what to tell the user."""

    folder: Path
    repositories: Mapping[str, Path]
    name: str
    notes: tuple[str, ...] = ()


def build_package(
    model: BaseModel,
    edit: WeightEdit,
    *,
    evaluation: Path | None,
    recipe_text: str,
    command: str,
    output: Path,
    exports: Sequence[str],
    dtype: str = "base",
    name: str | None = None,
    notices: Sequence[Path] = (),
) -> Package:
    """Write `output/<export>/...` and `output/SHA256SUMS`; everything is checked before and after.

    Args:
        model: the base, read from its files.
        edit: refused if it does not fit the base or an export cannot hold it.
        evaluation: folder with `editforge_results.json`, `grid.png`, `images/`; None: not judged.
        recipe_text: embedded verbatim, except for marked replacements of local paths.
        command: the one command that repeats the run.
        output: new or empty.
        exports: of lora, unet, pipeline, single-file; each becomes one repository folder.
        dtype: base, float32, float16 or bfloat16; of full checkpoints.
        name: release name; None makes `<family>-<concept>-erased`.
        notices: attribution files that travel with the weights.

    Raises:
        PackageError: unknown export, an edit that does not fit, a leak of local information.
    """
    _check_inputs(model, edit, output, exports)
    provenance = dict(edit.provenance)
    concepts = [str(row.get("name", "")) for row in provenance.get("erased", [])]
    title = name or release_name(model.family.name, concepts)
    known = {str(model.folder): model.label, str(model.folder.resolve()): model.label}
    recipe, marked = mark_paths(recipe_text, known)
    line, _ = mark_paths(command, known)
    results = _results(evaluation, provenance)
    notes = list(marked)
    repositories = {}
    for export in exports:
        folder = output / export
        artifact, said = write_artifact(model, edit, folder, export, title, dtype)
        notes += [note for note in said if note not in notes]
        facts = {
            "schema": SCHEMA,
            "name": title,
            "export": export,
            "family": {"name": model.family.name, "pipeline": model.family.match.pipeline},
            "provenance": provenance,
            "edit": {
                "strength": edit.strength,
                "exact_rank": edit.exact_rank,
                "rank": edit.rank,
                "modules": len(edit.factors) + len(edit.dense),
            },
            "artifact": artifact,
            "base": _base(model),
            "gate": {key: results["verdict"].get(key) for key in ("status", "passed", "message")},
            "recipe": recipe,
            "command": line,
        }
        _surround(folder, facts, results, evaluation, [*_notices(model.folder), *notices])
        repositories[export] = folder
    scan(output, public=[model.label, title, *concepts], is_copy=_is_copy)
    write_sums(output)
    return Package(output, repositories, title, tuple(notes))


def _check_inputs(model: BaseModel, edit: WeightEdit, output: Path, exports: Sequence[str]) -> None:
    offered = model.family.exports
    unknown = [export for export in exports if export not in offered]
    if unknown or not exports or len(set(exports)) != len(exports):
        raise PackageError(
            f"family {model.family.name} cannot export this",
            got=", ".join(exports) or "nothing",
            allowed=did_you_mean(unknown[0], offered) if unknown else ", ".join(offered),
        )
    if output.exists() and any(output.iterdir()):
        raise PackageError("the output folder is not empty", got=output.name)
    owner = edit.provenance.get("base_sha256")
    if owner and model.base_sha256 and owner != model.base_sha256:
        raise PackageError(
            "this edit belongs to another base model",
            got=f"{model.label} ({model.base_sha256[:12]})",
            allowed=f"{edit.provenance.get('base_model')} ({str(owner)[:12]})",
            next="package it with its own base",
        )
    check_fits(edit, Weights.open(model.folder / model.family.denoiser, model.variant))


def _results(evaluation: Path | None, provenance: Mapping[str, Any]) -> dict[str, Any]:
    if evaluation is not None:
        results: dict[str, Any] = read_json(evaluation / RESULTS)
        check_results(results)
        return results
    verdict = {"status": "not judged", "passed": None, "message": "No evaluation was run."}
    return {
        "schema": "editforge.results/1",
        "benchmark_version": 1,
        "tier": "gate",
        "verdict": {**verdict, "next": None, "checks": []},
        "erased": list(provenance.get("erased", [])),
        "metrics": {},
        "names": [],
        "images": [],
    }


def _base(model: BaseModel) -> dict[str, Any]:
    return {
        "label": model.label,
        "revision": model.revision,
        "sha256": model.base_sha256,
        "license": model.license,
        "license_link": model.license_link,
        "prediction_type": model.prediction_type,
        "variant": model.variant,
    }


def _surround(
    folder: Path,
    facts: dict[str, Any],
    results: Mapping[str, Any],
    evaluation: Path | None,
    notices: Sequence[Path],
) -> None:
    """Everything in a repository but its weights; the card and then the hashes come last."""
    if evaluation is not None:
        for source in sorted(evaluation.glob("images/*.png")):
            _copy(source, folder / "images" / source.name)
        if (evaluation / "grid.png").is_file():
            _copy(evaluation / "grid.png", folder / "images" / "before_after.png")
    for source in notices:
        _copy(source, folder / "notices" / source.name)
    write_text(folder / "LICENSE-note", _license_note(facts["base"], notices))
    write_json(folder / RESULTS, results)
    _reproduce(folder / "reproduce", facts, results)
    write_json(folder / FACTS, facts)
    write_text(folder / "README.md", render_card(folder))
    write_json(folder / FACTS, {**facts, "files": hashes(folder, (FACTS,))})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _notices(base: Path) -> list[Path]:
    """License and attribution files at the root of the base, which travel with its weights."""
    return sorted(
        path
        for path in base.iterdir()
        if path.is_file() and path.name.upper().startswith(_NOTICES) and path.stat().st_size < 2**20
    )


def _license_note(base: Mapping[str, Any], notices: Sequence[Path]) -> str:
    said = base["license"] or "none that we could read"
    lines = [f"These weights are derived from {base['label']}, whose declared license is: {said}."]
    if base["license_link"]:
        lines.append(f"License text: {base['license_link']}")
    if notices:
        lines.append("Notices of the base are in notices/.")
    lines.append(
        "The license was taken over from the base. Nothing was added to it or taken from it."
    )
    return "\n".join(lines) + "\n"


def _reproduce(folder: Path, facts: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    provenance = facts["provenance"]
    write_text(folder / "recipe.yaml", facts["recipe"].rstrip() + "\n")
    pins = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in PINNED]
    version = provenance.get("editforge_version")
    pins = [*([f"editforge=={version}"] if version else []), *pins]
    write_text(folder / "requirements.txt", "\n".join(sorted(pins)) + "\n")
    write_json(
        folder / "reproduce.json",
        {
            "base": facts["base"],
            "seed": provenance.get("seed"),
            "evaluation_seeds": results.get("seeds"),
            "device": results.get("device"),
            "dtype": results.get("dtype"),
            "judges": results.get("judges", []),
            "vocabulary": provenance.get("vocabulary"),
            "edited_by_hand": provenance.get("edited_by_hand", []),
            "recipe_sha256": provenance.get("recipe_sha256"),
        },
    )
    text = "Install `requirements.txt`, then run this in an empty folder:\n\n"
    write_text(folder / "README.md", f"# How to repeat this\n\n{text}    {facts['command']}\n")


def _is_copy(name: str) -> bool:
    """True for files of `pipeline/` and `unet/` that come from the base and not from us."""
    export, _, rest = name.partition("/")
    return export in ("pipeline", "unet") and not rest.startswith(_OWN)
