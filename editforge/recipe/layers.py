"""From what the user typed to a recipe: defaults, a method, a preset and the user's keys.

Layers, later ones win: pipelines/default.yaml, the method's file, its preset, the user's recipe, the
command line. Mappings merge key by key; a stage with another `use` replaces the whole stage, because
the old one's options would mean nothing to it. Everything impossible is refused here, before any
weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from editforge.ground.disk import parse_yaml, read_yaml
from editforge.ground.errors import PresetUnavailable, RecipeError, did_you_mean
from editforge.ground.resources import resource_folder
from editforge.recipe.faults import readable
from editforge.recipe.recipe import Recipe

# Text, whatever it looks like: a commit may be 12e4567.
_TEXT = ("method", "preset", "model", "concepts", "preserve", "continue_from")
_NUMBER_AS_TEXT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def resolve(
    source: str | Mapping[str, Any] = "default",
    overrides: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    *,
    preset: str | None = None,
) -> Recipe:
    """Build a recipe from a method name, a recipe file or a mapping, plus overrides.

    Args:
        source: `uce`, `my.yaml`, or the parsed content of a recipe.
        overrides: keys that win over the recipe, as the command line gives them.
        sets: `stage.key=value` texts that win over everything.
        preset: overrides the recipe's preset.

    Raises:
        RecipeError: unknown method, preset or key with the nearest ones; an impossible combination;
            PresetUnavailable: the preset's constants were never published.
    """
    own = _read_source(source)
    name = own.get("method", "default")
    body = dict(_method(name))
    presets = body.pop("presets", {})
    about = body.pop("about", {})
    asked = preset or (overrides or {}).get("preset") or own.get("preset")
    chosen = asked or body.get("preset", "editforge")
    layers = [_defaults(), body]
    if chosen != "editforge":
        unpublished = about.get("unpublished", {})
        if isinstance(chosen, str) and chosen in unpublished:
            raise PresetUnavailable(
                f"the preset {chosen} of {name} cannot be: its constants are published nowhere",
                got="missing: " + ", ".join(unpublished[chosen]),
                allowed=", ".join(["editforge", *presets]),
                next=f"--method {name} without --preset; --set takes what you know",
            )
        if not isinstance(chosen, str) or chosen not in presets:
            raise RecipeError(
                f"method {name} has no preset {chosen!r}",
                allowed=did_you_mean(str(chosen), ["editforge", *presets]),
            )
        layers.append(presets[chosen])
    layers += [own, dict(overrides or {}), {"method": name, "preset": chosen}]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    for text in sets:
        merged = _set(merged, text)
    _refuse_numbers_as_text({k: v for k, v in merged.items() if k not in _TEXT}, "")
    return _validate(merged)


def _read_source(source: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    if not source.endswith((".yaml", ".yml")):
        _method(source)
        return {"method": source}
    body = read_yaml(Path(source))
    if not isinstance(body, dict):
        raise RecipeError(f"{source} is not a recipe", got=type(body).__name__, allowed="a mapping")
    body.pop("about", None)
    body.pop("presets", None)
    return body


def _method(name: object) -> dict[str, Any]:
    known = {path.stem: path for path in resource_folder("pipelines").glob("*.yaml")}
    if not isinstance(name, str) or name not in known:
        raise RecipeError(
            f"no method {name!r}",
            allowed=did_you_mean(str(name), known),
            next="editforge list methods; a recipe file ends in .yaml",
        )
    return read_yaml(known[name])


def _defaults() -> dict[str, Any]:
    body = read_yaml(resource_folder("pipelines") / "default.yaml")
    return {key: value for key, value in body.items() if key not in ("about", "presets")}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if not (isinstance(old, Mapping) and isinstance(value, Mapping)):
            result[key] = value
        elif value.get("use", old.get("use")) == old.get("use"):
            result[key] = _merge(old, value)
        else:
            result[key] = value
    return result


def _set(body: dict[str, Any], text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError("--set takes key=value", got=text, next="--set edit.ridge=1e-3")
    parsed = _numbers(parse_yaml(value, "--set"))
    path = key.split(".")
    if key in ("method", "preset"):  # it chose the layers below, which are merged by now
        raise RecipeError(f"--set comes too late for the {key}", got=text, next=f"--{key} {value}")
    node = body = dict(body)
    if len(path) > 2 and isinstance(body.get(path[0]), list):  # mine.perturbation.num_neighbors=8
        entries = [dict(entry) for entry in body[path[0]]]
        named = [entry for entry in entries if entry.get("use") == path[1]]
        if len(named) == 1:
            body[path[0]], node, path = entries, named[0], path[2:]
    for part in path[:-1]:
        below = node.get(part)
        if isinstance(below, list) and len(below) == 1:
            below = below[0]
        node[part] = dict(below) if isinstance(below, Mapping) else {}
        node = node[part]
    if path[-1] == "use" and node.get("use") != parsed:
        node.clear()  # another implementation: the old one's options mean nothing to it
    node[path[-1]] = parsed
    return body


def _numbers(value: Any) -> Any:
    """On a command line `1e-3` is a number, whatever YAML thinks of it."""
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    is_number = isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value)
    return float(value) if is_number else value


def _refuse_numbers_as_text(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_numbers_as_text(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse_numbers_as_text(inner, f"{place}.{index}")
    elif isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
        mantissa, _, exponent = value.lower().partition("e")
        fixed = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
        raise RecipeError(
            f"{place} is text to YAML, not a number", got=value, allowed=fixed, next="add the `.0`"
        )


def _validate(body: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(body)
    except ValidationError as error:
        raise readable(error, body) from None
