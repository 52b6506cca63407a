"""What a person changed in a run's lists: said in the log, the provenance, the card and the command.

An edited list replaces the stage that wrote it: the recipe of the package reads it from a file, and
the package carries that file. So the command on the card gives the weights on the card.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from editforge.artifacts.targets import Targets
from editforge.ground.disk import OWN, parse_yaml
from editforge.recipe.line import LISTS, step
from editforge.recipe.recipe import Recipe

# Stage to what a person changed in its list, in words.
Hand = Mapping[str, list[str]]
GIVEN = "given with the recipe"
_SHOWN = 12  # changes of one list that are spelled out


def by_hand(
    recipe: Recipe, written: Mapping[str, str | None], now: Mapping[str, BaseModel]
) -> Hand:
    """Stage to what a person changed in its list, in words; {} if both are what the stages chose.

    Args:
        recipe: whose stages may read a list from a file.
        written: stage to what it wrote, if a person has changed that since.
        now: stage to its list as it is.
    """
    found = {}
    for stage, artifact in now.items():
        text = written.get(stage)
        said = changes(text, artifact) if text is not None else []
        if _reads_a_file(recipe, stage):
            said = [GIVEN, *said]
        if said or text is not None:
            found[stage] = said
    return found


def _reads_a_file(recipe: Recipe, stage: str) -> bool:
    return any(config.use == "file" for config in step(stage).uses(recipe))


def changes(written: str, now: BaseModel) -> list[str]:
    """`violin target: dagger -> guitar`, one line for each value or row that differs."""
    if not written:
        return ["what was written is not known"]
    before = parse_yaml(written, "the list as it was written", OWN)
    del before["schema"]
    after = now.model_dump(mode="json")
    found = list(_differences(before, after, ()))
    if not found and before != after:
        found = ["the order of rows"]
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], f"and {more} more"] if more > 0 else found


def _differences(before: Any, after: Any, place: tuple[str, ...]) -> Iterator[str]:
    before, after = _by_name(before), _by_name(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            # the two levels that every row lies in say nothing
            inner = place if key in ("concepts", "words") else (*place, str(key))
            yield from _differences(before.get(key), after.get(key), inner)
    elif before != after:
        yield f"{' '.join(place)}: {_shown(before)} -> {_shown(after)}"


def _by_name(value: Any) -> Any:
    """A list of rows as a table from name to row; anything else as it is."""
    if not (isinstance(value, list) and value and all(isinstance(row, dict) for row in value)):
        return {} if value == [] else value
    names = [row.get("concept", row.get("word")) for row in value]
    return value if None in names else dict(zip(names, value, strict=True))


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value:
        return str(value.get("role", value.get("target", "listed")))
    text = "nothing" if value in (None, "", {}) else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_own_reasons(targets: Targets, written: str | None) -> Targets:
    """An edited list without the reasons of choices that a person has replaced."""
    if written is None:
        return targets
    rows = parse_yaml(written, "the list as it was written", OWN)["concepts"] if written else []
    chosen = {row["concept"]: row["target"] for row in rows}
    stale = [row for row in targets.concepts if chosen.get(row.concept) != row.target]
    dead = {f"target of {row.concept}": row.target for row in stale}
    return Targets(
        concepts=tuple(
            row.model_copy(update={"reason": "yours", "candidates": ()}) if row in stale else row
            for row in targets.concepts
        ),
        preserve=tuple(
            row.model_copy(update={"reason": ""})
            if dead.get(row.reason, row.word) != row.word
            else row
            for row in targets.preserve
        ),
    )


def record(hand: Hand) -> list[dict[str, Any]]:
    """For provenance: which lists, and what differs from what was written."""
    return [{"list": LISTS[stage], "changes": said} for stage, said in hand.items()]


def carried(hand: Hand) -> list[str]:
    """Stages whose lists travel with a package: the edited ones, and targets, which follow both."""
    return [stage for stage in LISTS if stage in hand or (hand and stage == "target")]


def pinned(body: dict[str, Any], hand: Hand, places: Mapping[str, str] = LISTS) -> dict[str, Any]:
    """A recipe's data with the carried lists, read at `places`, instead of what wrote them."""
    stages: dict[str, Any] = {
        stage: {"use": "file", "path": places[stage]} for stage in carried(hand)
    }
    if "mine" in stages:
        stages["mine"] = [stages["mine"]]
    if "target" in stages:
        stages["preserve"] = "auto"  # the list says what is preserved
    return {**body, **stages}


def from_record(provenance: Mapping[str, Any]) -> Hand:
    """The edited lists that an edit's provenance names; the inverse of `record`."""
    said = {row["list"]: row["changes"] for row in provenance.get("edited_by_hand", [])}
    return {stage: said[name] for stage, name in LISTS.items() if name in said}


def starting_from(run: Path, recipe: Recipe, hand: Hand) -> tuple[str, Recipe]:
    """The command that repeats a run from its own lists, and the recipe which that command has."""
    places = {stage: str(run / stage / name) for stage, name in LISTS.items()}
    stages = pinned({}, hand, places)
    options = [f"--set={stage}={json.dumps(value)}" for stage, value in stages.items()]
    command = shlex.join(["editforge", "run", str(run / "recipe.yaml"), *options])
    return command, Recipe.model_validate(recipe.model_dump(mode="json") | stages)
