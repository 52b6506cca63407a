"""What can be done with a result long after its run: judge it again, package it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from editforge.api import load_edit
from editforge.artifacts.concepts import Concept
from editforge.artifacts.report import Report
from editforge.disk import read_json
from editforge.errors import PackageError, RecipeError
from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.places import hub_failure, is_hub_id
from editforge.recipe import resolve
from editforge.run import execute, gate
from editforge.stages import Context
from editforge.workspace import RERUN


def evaluate_saved(
    place: str,
    *,
    model: str | None = None,
    judge: str | None = "family",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the gate on a run, a package folder or a Hub repository, as its user would load it.

    Args:
        place: folder or Hub id.
        model: the base; None takes what the run or the package names.
        judge: family, a CLIP folder, or None: drift only.
        progress: bars on stderr.
        say: takes a line for the user.

    Raises:
        EditforgeError: nothing to judge there, or its base is unknown.
    """
    folder = local_folder(place)
    recipe = folder / "recipe.yaml"
    edit = load_edit(folder)
    strength = 1.0
    config = ModelConfig(id=model) if model else None
    if recipe.is_file():
        known = resolve(str(recipe))
        config, strength = config or known.model, known.strength
    facts = dict(edit.provenance) or _facts(folder)
    if config is None:
        config = _base(facts)
    concepts, targets = _erased(facts, place)
    say(f"judging {', '.join(c.name for c in concepts)} on {config.id}")
    with open_model(config) as base:
        if facts.get("base_sha256") not in (None, base.base_sha256):
            raise PackageError(
                "this edit belongs to another base model",
                got=f"{config.id} ({base.base_sha256[:12]})",
                allowed=f"{facts.get('base_model')} ({str(facts['base_sha256'])[:12]})",
                next="name it: --model",
            )
        context = Context(base, int(facts.get("seed", 0)), progress, None, say)
        kept = list(facts.get("preserve", []))
        return gate(base, context, edit.scaled(strength), concepts, targets, kept, judge)


def repackage(
    folder: Path,
    exports: Sequence[str],
    dtype: str,
    *,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Change what a run exports and write its package again; finished stages stay.

    The run's recipe changes last: a refused or interrupted export leaves the run as it was.

    Raises:
        RecipeError: the folder is no run, or an unknown export.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            "this folder is no run", got=str(folder), next="editforge erase CONCEPT --output FOLDER"
        )
    recipe = resolve(str(path), {"package": {"export": list(exports), "dtype": dtype}})
    execute(recipe, folder, command=RERUN, progress=progress, say=say, replace=True)
    return folder / "package"


def local_folder(place: str) -> Path:
    """A folder as it is, a Hub repository downloaded: weights, JSON and YAML alone.

    Raises:
        PackageError: neither. HubError: the Hub did not give it.
    """
    if Path(place).expanduser().exists():
        return Path(place).expanduser()
    if not is_hub_id(place):
        raise PackageError("no such folder", got=place, allowed="a run, a package, or OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, ignore_patterns=["*.bin", "*.ckpt", "*.pt", "*.py"]))
    except (OSError, ValueError) as error:
        raise hub_failure(place, error) from None


def _facts(folder: Path) -> dict[str, Any]:
    """The provenance that a package's editforge.json holds."""
    places = (folder, folder / "lora", folder / "package" / "lora")
    found = [place / "editforge.json" for place in places if (place / "editforge.json").is_file()]
    if not found:
        raise PackageError(
            "this folder does not say what it erases", got=str(folder), allowed="editforge.json"
        )
    body = read_json(found[0])
    return dict(body.get("provenance", body))


def _base(facts: dict[str, Any]) -> ModelConfig:
    label = str(facts.get("base_model", ""))
    if label == "editforge/emoji-sd":
        return ModelConfig(id="emoji")
    if not label or label.startswith("local:"):
        raise PackageError("the package cannot name its base", got=label, next="name it: --model")
    return ModelConfig(id=label, revision=facts.get("base_revision"))


def _erased(facts: dict[str, Any], place: str) -> tuple[list[Concept], dict[str, str]]:
    rows = facts.get("erased", [])
    try:
        concepts = [
            Concept(
                name=r["name"], aliases=tuple(r.get("aliases", ())), kind=r.get("kind", "object")
            )
            for r in rows
        ]
        targets = {str(row["name"]): str(row.get("target", "")) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{place} lists its concepts wrongly", got=str(error)[:200]) from None
    if not concepts:
        raise PackageError(f"{place} names no erased concept")
    return concepts, targets
