"""What can be done with a result long after its run: judge it again, package it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from editforge.artifacts.report import Report
from editforge.artifacts.targets import Targets
from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.ground.errors import EditforgeError, PackageError, RecipeError
from editforge.ground.places import hub_failure, is_hub_id
from editforge.judges import check_judge
from editforge.package.facts import repository
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.again import fresh_folder, next_command
from editforge.run.found import find
from editforge.run.hand import from_record, starting_from
from editforge.run.load import load_edit
from editforge.run.order import execute
from editforge.run.stages import gate
from editforge.run.workspace import RERUN

# what a public recipe has in place of a local file, folder or base
_AWAY = re.compile(r"\b(file|folder|local):[0-9a-f]{12}\b")


def evaluate_saved(
    place: str,
    *,
    concepts: Sequence[str] = (),
    kind: str = "object",
    model: str | None = None,
    variant: str | None = None,
    family: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    judge: str | None = "family",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the gate on a run, a package folder or a Hub repository, as its user would load it.

    A run is judged from its own edit. Everything else is loaded by stock diffusers calls; what was
    erased, kept, with which seed and on which base stands in its `editforge.json`, so a run and its
    packages are asked the same questions.

    Args:
        place: a folder, a weight file, or a Hub id.
        concepts: what a stranger's artifact erases; ours say it themselves.
        kind: of these concepts.
        model: the base; None takes what the run or the package names.
        variant: of the base's weight files; None: as recorded.
        family: name or YAML of the base's family; None: as recorded, or detected.
        dtype: of drawing; None: as recorded.
        device: where to draw; None: as recorded, or the best there is.
        seed: picks the scoring seeds; None: the recorded one.
        judge: as in a recipe; None: drift only.
        progress: bars on stderr.
        say: takes a line for the user.

    Raises:
        EditforgeError: nothing to judge there, a damaged file, or a base that is unknown or another.
    """
    found = find(local_folder(place), place, tuple(concepts), kind)
    check_judge(judge, [(one.name, one.kind) for one in found.claims.concepts])
    named = {"variant": variant, "family": family, "dtype": dtype, "device": device}
    given: dict[str, str | None] = {key: value for key, value in named.items() if value is not None}
    given["base"] = None  # the name of a local copy is for cards, and would ask the Hub
    if model is not None:
        given |= {"id": model, "revision": None}
    if found.base is None and model is None:
        raise PackageError(
            "the edit cannot name its base",
            got=found.claims.base_model or "no name",
            next=f"name it: editforge evaluate {shlex.quote(place)} --model FOLDER",
        )
    config = (found.base or ModelConfig()).model_copy(update={**found.loading, **given})
    names = ", ".join(concept.name for concept in found.claims.concepts)
    say(f"judging {names} on {config.id}, {found.form or 'the edit of the run'}")
    with open_model(config) as base:
        chosen = found.claims.seed if seed is None else seed
        return gate(
            base,
            Context(base, chosen, progress, None, say),
            found.eraser(base, config.id),
            found.claims.concepts,
            found.claims.targets,
            found.claims.preserve,
            judge,
        )


def remedy_of(place: str, report: Report) -> str | None:
    """The command that tries what a failed verdict proposes: its recipe, one knob turned, elsewhere.

    None without a recipe, or with one that needs a file which only its author has.
    """
    where = local_folder(place)
    folder = repository(where)
    own = where / "recipe.yaml"
    file = own if own.is_file() or folder is None else folder / "reproduce" / "recipe.yaml"
    if not file.is_file() or (file != own and _AWAY.search(file.read_text(encoding="utf-8"))):
        return None
    try:
        recipe = resolve(str(file))
    except EditforgeError:  # a stranger's: the verdict stands without it
        return None
    if file == own:
        chosen = where / "target"  # a guide may have none
        targets = Targets.load(chosen) if chosen.is_dir() else None
        output = fresh_folder(where)
        hand = from_record(load_edit(where).provenance)
        command, recipe = starting_from(where, recipe, hand)
    else:
        targets, output = None, fresh_folder(Path("runs") / "again")
        command = shlex.join(["editforge", "run", str(file)])
    return next_command(recipe, report.verdict.remedy, targets, command, str(output))


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
