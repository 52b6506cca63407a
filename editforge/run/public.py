"""What may be said of a run outside this computer: files by what they hold, never by where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editforge.artifacts.targets import Targets
from editforge.ground.disk import sha256_file, sha256_json
from editforge.ground.version import __version__
from editforge.recipe.contract import Context
from editforge.recipe.recipe import Recipe
from editforge.run.hand import Hand, pinned, record
from editforge.run.workspace import hashes


def provenance_of(
    recipe: Recipe, targets: Targets | None, context: Context, hand: Hand
) -> dict[str, Any]:
    """What every edit says about itself: method, base, concepts, lists edited by hand; no path."""
    model = context.model
    public = pinned(public_recipe(recipe, model.label), hand)
    rows = [
        {
            **concept.model_dump(mode="json"),
            "target": targets.of(concept.name).target if targets else None,
        }
        for concept in recipe.concepts
    ]
    return {
        "method": recipe.method,
        "preset": recipe.preset,
        "family": model.family.name,
        "base_model": model.label,
        "base_revision": model.revision,
        "base_sha256": model.base_sha256,
        "base_sketch": dict(model.base_sketch),
        "erased": rows,
        "combined": "one concept" if len(rows) == 1 else "joint",
        "preserve": targets.preserved if targets else [],
        "seed": recipe.seed,
        "recipe_sha256": sha256_json(public),
        "editforge_version": __version__,
        **({"edited_by_hand": record(hand)} if hand else {}),
    }


def public_recipe(recipe: Recipe, label: str) -> dict[str, Any]:
    """The recipe with local paths replaced by what they contain: fit for a card."""
    # the label says which base it is: its folder is not hashed for that
    unnamed = recipe.model.model_copy(update={"id": ""})
    body: dict[str, Any] = portable(recipe.model_copy(update={"model": unnamed}))
    body["model"]["id"] = "emoji" if recipe.model.id == "emoji" else label
    body["model"]["base"] = None  # the label says it
    return body


def portable(value: Any) -> Any:
    """JSON data in which every string that names a local file is `file:<sha256>`."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(inner) for inner in value]
    if isinstance(value, str) and (
        "/" in value or "\\" in value or value.endswith((".txt", ".yaml"))
    ):
        return content_of(value)
    return value


def content_of(path: str | None) -> str | None:
    """A local file or run by what it holds; any other text as it is."""
    if path is None:
        return None
    place = Path(path).expanduser()
    solve = place / "edit" / "solve.safetensors"
    try:
        if solve.is_file():
            place = solve
        if place.is_dir():
            return f"folder:{sha256_json(hashes(place))[:12]}"
        return f"file:{sha256_file(place)[:12]}" if place.is_file() else path
    except OSError:  # a text too long for a file name is none
        return path
