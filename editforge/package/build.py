"""From an eraser and its evaluation to a package: one folder per repository, hashed and scanned.

`editforge.json` is the machine's view of a repository: provenance, verdict, the hash of every other
file. The card is rendered from it and from the results. Nothing here knows a method or a form, and
nothing here depends on the folder, the machine or the time: the same inputs give the same
`SHA256SUMS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from editforge.artifacts.eraser import Eraser
from editforge.artifacts.report import BENCHMARK_VERSION
from editforge.artifacts.report import SCHEMA as RESULTS_SCHEMA
from editforge.artifacts.sums import write_sums
from editforge.families.identity import Identity
from editforge.ground.disk import read_json
from editforge.ground.errors import PackageError
from editforge.package.card import check_results
from editforge.package.exports import check_accepted, check_exports, exporter
from editforge.package.repository import (
    RESULTS,
    base_facts,
    is_copy,
    listed_words,
    notices_of,
    public_words,
    release_name,
    surround,
)
from editforge.package.scrub import mark_paths, scan
from editforge.recipe.export import BaseModel

SCHEMA = "editforge.package/1"


@dataclass(frozen=True)
class Package:
    """What was written: the folder, one repository folder per export, and what to tell the user."""

    folder: Path
    repositories: Mapping[str, Path]
    name: str
    notes: tuple[str, ...] = ()


def build_package(
    model: BaseModel,
    eraser: Eraser,
    *,
    evaluation: Path | None,
    recipe_text: str,
    command: str,
    output: Path,
    exports: Sequence[str],
    dtype: str = "base",
    name: str | None = None,
    notices: Sequence[Path] = (),
    lists: Mapping[str, str] | None = None,
) -> Package:
    """Write `output/<export>/...` and `output/SHA256SUMS`; everything is checked before and after.

    Args:
        model: the base, read from its files.
        eraser: refused if it does not fit the base or an export does not take it.
        evaluation: folder with `editforge_results.json`, `grid.png`, `images/`; None: not judged.
        recipe_text: embedded verbatim, except for marked replacements of local paths.
        command: the one command that repeats the run.
        output: new or empty.
        exports: registered names; each becomes one repository folder.
        dtype: base, float32, float16 or bfloat16; of full checkpoints.
        name: release name; None makes `<family>-<concept>-erased`.
        notices: attribution files that travel with the weights.
        lists: file name to text of the lists that the recipe reads; they travel in `reproduce/`.

    Raises:
        PackageError: unknown export, an eraser that does not fit, a leak of local information.
    """
    _check_inputs(model, eraser, output, exports)
    provenance = dict(eraser.provenance)
    concepts = [str(row.get("name", "")) for row in provenance.get("erased", [])]
    title = name or release_name(model.family.name, concepts)
    known = {str(model.folder): model.label, str(model.folder.resolve()): model.label}
    recipe, marked = mark_paths(recipe_text, known)
    line, _ = mark_paths(command, known)
    results = _results(evaluation, provenance)
    notes = list(marked)
    carried = [*notices_of(model), *notices]
    repositories = {}
    for export in exports:
        folder = output / export
        written = exporter(export).write(model, eraser, folder, title, dtype)
        notes += [note for note in written.notes if note not in notes]
        facts = {
            "schema": SCHEMA,
            "name": title,
            "export": export,
            "family": {"name": model.family.name, "pipeline": model.pipeline_class},
            "provenance": provenance,
            "edit": eraser.described(),
            "artifact": written.facts,
            **({"notes": list(written.notes)} if written.notes else {}),
            "base": base_facts(model, carried),
            "gate": {key: results["verdict"].get(key) for key in ("status", "passed", "message")},
            "recipe": recipe,
            "command": line,
        }
        surround(folder, facts, results, evaluation, carried, lists or {})
        repositories[export] = folder
    public = [model.label, title, *public_words(provenance), *listed_words(lists or {})]
    scan(output, public=public, is_copy=partial(is_copy, model, {path.name for path in carried}))
    write_sums(output)
    return Package(output, repositories, title, tuple(notes))


def _check_inputs(model: BaseModel, eraser: Eraser, output: Path, exports: Sequence[str]) -> None:
    check_exports(model, exports)
    check_accepted(type(eraser), exports)
    if output.exists() and any(output.iterdir()):
        raise PackageError("the output folder is not empty", got=output.name)
    owner = Identity.recorded(eraser.provenance)
    gap = owner.apart(Identity(model.base_sha256, model.base_sketch))
    if gap is not None:
        raise PackageError(
            "this edit belongs to another base model",
            got=f"{model.label} ({model.base_sha256[:12]}), {gap}",
            allowed=f"{eraser.provenance.get('base_model')} ({owner.sha256[:12]})",
            next="package it with its own base",
        )
    for export in exports:
        exporter(export).check_eraser(model, eraser)


def _results(evaluation: Path | None, provenance: Mapping[str, Any]) -> dict[str, Any]:
    if evaluation is not None:
        results: dict[str, Any] = read_json(evaluation / RESULTS)
        check_results(results)
        return results
    verdict = {"status": "not judged", "passed": None, "message": "No evaluation was run."}
    return {
        "schema": RESULTS_SCHEMA,
        "benchmark_version": BENCHMARK_VERSION,
        "tier": "gate",
        "verdict": {**verdict, "remedy": None, "next": None, "checks": [], "concepts": []},
        "erased": list(provenance.get("erased", [])),
        "metrics": {},
        "names": [],
        "images": [],
    }
