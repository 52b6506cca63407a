"""The command that tries what a verdict proposes: the same run, one knob turned, in a new folder.

The gate knows what is wrong and not how the edit was made; a recipe knows its knobs. Here the two
meet: of the remedies that this recipe accepts the most specific one becomes a command to paste.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from editforge.artifacts.report import Remedy
from editforge.artifacts.targets import Targets
from editforge.ground.errors import EditforgeError
from editforge.recipe.layers import resolve
from editforge.recipe.recipe import Recipe

HOLD_HARDER = 10.0

# Options of `editforge erase`, and the same as `--set` texts.
_Knob = tuple[list[str], list[str]]


def next_command(
    recipe: Recipe, remedy: Remedy | None, targets: Targets | None, command: str, output: str
) -> str | None:
    """What to run next, or None where no knob of this recipe fits.

    Args:
        recipe: of the run that was judged.
        remedy: of its verdict.
        targets: of the run: the next candidate may be the better target. None: not known.
        command: that made the run, `editforge erase ...` or `editforge run RECIPE.yaml ...`.
        output: the folder of the new run.
    """
    if remedy is None:
        return None
    for options, sets in _knobs(recipe, remedy, targets):
        try:
            resolve(recipe.model_dump(mode="json"), None, sets)
        except EditforgeError:
            continue  # a plugin's stage has other options
        return _line(command, options, sets, output)
    return None


def fresh_folder(folder: Path) -> Path:
    """The first of `folder-2`, `folder-3`, ... that is not there."""
    number = 2
    while (found := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return found


def _knobs(recipe: Recipe, remedy: Remedy, targets: Targets | None) -> Iterator[_Knob]:
    if remedy.aliases:
        rows = [concept.model_dump(mode="json") for concept in recipe.concepts]
        for row in rows:
            row["aliases"] += [
                w for w in remedy.aliases.get(row["name"], ()) if w not in row["aliases"]
            ]
        text = f"concepts={json.dumps(rows, ensure_ascii=False)}"
        yield [f"--set={text}"], [text]
    if remedy.target and targets and len(recipe.concepts) == 1:
        now = targets.of(remedy.target).target
        other = next((c.word for c in targets.of(remedy.target).candidates if c.word != now), None)
        if other is not None:
            fixed = {"use": "fixed", "text": other}
            yield [f"--target={other}"], [f"target={json.dumps(fixed, ensure_ascii=False)}"]
    # a list of targets from a file names what is preserved
    if remedy.preserve and getattr(recipe.target, "use", "") != "file":
        own = ["auto"] if recipe.preserve == "auto" else list(recipe.preserve)
        words = list(dict.fromkeys([*own, *remedy.preserve]))
        options = [f"--preserve={word}" for word in words]
        text = f"preserve={json.dumps(words, ensure_ascii=False)}"
        weight = getattr(recipe.edit, "preserve_weight", None)
        harder = [f"edit.preserve_weight={weight * HOLD_HARDER:g}"] if weight else []
        yield [*options, *(f"--set={one}" for one in harder)], [text, *harder]
    if remedy.strength is not None:
        yield [f"--strength={remedy.strength:g}"], [f"strength={remedy.strength:g}"]


def _line(command: str, options: list[str], sets: list[str], output: str) -> str:
    """The command with its own values of these options left out; `--set` wins over all others."""
    words = shlex.split(command)
    end = words.index("--") if "--" in words else len(words)
    words, names = words[:end], words[end:]
    if "--output" in words:
        at = words.index("--output")
        words[at : at + 2] = []
    if words[:2] != ["editforge", "erase"] or any(word.startswith("--set=") for word in words):
        options = [f"--set={text}" for text in sets]
    replaced = tuple(option.partition("=")[0] + "=" for option in options if "--set=" not in option)
    kept = [word for word in words if not word.startswith(replaced)] if replaced else words
    return shlex.join([*kept, *options, f"--output={output}", *names])
