"""What pydantic says of a recipe, in our four parts: where, what we got, what is allowed, what next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from editforge.ground.errors import EditforgeError, RecipeError, did_you_mean
from editforge.recipe import registry
from editforge.recipe.recipe import NO_STAGE, Recipe


def readable(error: ValidationError, body: dict[str, Any]) -> EditforgeError:
    """The first fault in our four parts; a next step only where one helps."""
    faults = error.errors()
    fault = faults[0]
    inner = fault.get("ctx", {}).get("error")
    if isinstance(inner, EditforgeError):
        return inner
    place = _place(fault, body)
    for other in faults:  # of a union, the member that came closest
        deeper = _place(other, body)
        if len(deeper) > len(place) and deeper[: len(place)] == place:
            fault, place = other, deeper
    where = ".".join(map(str, place))
    if fault["type"] == "extra_forbidden":
        allowed = did_you_mean(str(place[-1]), _keys_at(body, place[:-1]))
        return RecipeError(f"unknown key {where}", allowed=allowed)
    if place == ("concepts",) and fault["type"] in ("missing", "too_short"):
        got = "concepts: []" if fault["type"] == "too_short" else None
        return RecipeError("no concept to erase", got=got, next="editforge erase violin")
    if fault["type"] == "missing":
        return RecipeError(f"{where} is missing", got=repr(fault["input"])[:120])
    got = repr(fault["input"])[:120] if place else None
    said = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        step = "editforge list stages" if said.startswith(NO_STAGE) else None
        return RecipeError(f"{where}: {said}" if place else said, got=got, next=step)
    same = [other for other in faults if _place(other, body) == place]  # one each of a union
    allowed = " or ".join(dict.fromkeys(_allowed(other, body, place) for other in same))
    # what stood there unquoted is gone by now: 007 is 7
    unquoted = fault["type"] == "string_type" and isinstance(fault["input"], (int, float, date))
    step = "put text in quotes: YAML takes 007, 24:00, yes for other things" if unquoted else None
    return RecipeError(f"{where} cannot be this", got=got, allowed=allowed, next=step)


def _place(fault: Any, body: dict[str, Any]) -> tuple[Any, ...]:
    """Where in the user's recipe a fault is; pydantic also names the members of a union."""
    node: Any = body
    found: list[Any] = []
    for part in fault["loc"]:
        mapped = isinstance(node, Mapping) and part in node
        if mapped or (isinstance(node, (list, tuple)) and isinstance(part, int)):
            node = node[part] if mapped or part < len(node) else None
            found.append(part)
    if fault["type"] in ("missing", "extra_forbidden") and found[-1:] != list(fault["loc"][-1:]):
        found.append(fault["loc"][-1])
    return tuple(found)


def _allowed(fault: Any, body: dict[str, Any], place: Sequence[Any]) -> str:
    """What a place takes, in the words of pydantic's message."""
    said = str(fault["msg"]).removeprefix("Input should be ")
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"a mapping of {', '.join(_keys_at(body, place))}"
    if fault["type"] == "tuple_type":
        return "a list"
    if fault["type"] == "too_short":
        return f"at least {fault['ctx']['min_length']}"
    return said.partition(", unable to parse")[0]


def _keys_at(body: Any, place: Sequence[Any]) -> list[str]:
    """The keys the schema knows at a place of the recipe."""
    cls: Any = Recipe
    for at, part in enumerate(place):
        if isinstance(part, int) or cls is None:
            continue
        if at == 0 and part in registry.STAGES:
            node = body[part]
            if isinstance(node, (list, tuple)):
                node = node[place[1] if len(place) > 1 else 0]
            cls = registry.get(part, node["use"]).config
        else:
            field = cls.model_fields.get(part)
            cls = field and _model_in(field.annotation)
    return list(cls.model_fields) if cls else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model class that an annotation names: of `tuple[Concept, ...]` it is Concept."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
