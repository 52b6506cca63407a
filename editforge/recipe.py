"""What the user asked for: one frozen model, from defaults, a method, a preset and the user's keys.

Layers, later ones win: pipelines/default.yaml, the method's file, its preset, the user's recipe, the
command line. Mappings merge key by key; a stage with another `use` replaces the whole stage, because
the old one's options would mean nothing to it. Everything impossible is refused here, before any
weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from editforge import registry
from editforge.artifacts.concepts import Concept, Name, fold
from editforge.disk import dump_yaml, parse_yaml, read_yaml
from editforge.errors import EditforgeError, PresetUnavailable, RecipeError, did_you_mean
from editforge.families.config import ModelConfig
from editforge.resources import resource_folder
from editforge.stages import StageConfig

# Text, whatever it looks like: a commit may be 12e4567.
_TEXT = ("method", "preset", "model", "concepts", "preserve", "continue_from")
_NO_STAGE = "a stage is a mapping"
_NUMBER_AS_TEXT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _stage(stage: str, *, needed: bool = False) -> BeforeValidator:
    """Validate `{use: NAME, ...}` with the config class that NAME registered."""

    def validate(value: Any) -> Any:
        if (value is None and not needed) or isinstance(value, StageConfig):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("use"), str):
            known = ", ".join(registry.names(stage))
            raise ValueError(f"{_NO_STAGE} with `use`, one of {known}")
        config: type[StageConfig] = registry.get(stage, value["use"]).config
        return config.model_validate(dict(value))

    return BeforeValidator(validate)


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


Mine = Annotated[SerializeAsAny[StageConfig], _stage("mine", needed=True)]


class EvaluateConfig(_Section):
    """How the result is judged."""

    tier: Literal["gate"] = Field("gate", description="What is measured; see docs/benchmark.md.")
    judge: str | None = Field(
        "family", description="family, a local CLIP folder, or null: drift only, nothing is judged."
    )


class PackageConfig(_Section):
    """What is written for others to load."""

    export: tuple[Literal["lora", "unet", "pipeline", "single-file"], ...] = Field(
        ("lora",), min_length=1, description="One repository folder each."
    )
    dtype: Literal["base", "float32", "float16", "bfloat16"] = Field(
        "base", description="Of full checkpoints; LoRA factors are float32."
    )


class Recipe(_Section):
    """A resolved recipe: every default written out. Saved as the run's recipe.yaml."""

    method: str = Field("default", description="A name in pipelines/, recorded for the card.")
    preset: str = Field("editforge", description="A named block of values in the method's file.")
    model: ModelConfig = ModelConfig()
    concepts: tuple[Concept, ...] = Field(min_length=1)
    preserve: Literal["auto"] | tuple[Name, ...] = Field(
        "auto", description="Must not move; `auto`, alone or in a list: what lies nearest."
    )
    seed: int = Field(0, ge=0, lt=2**63)
    strength: float = Field(1.0, description="1 is the method's own edit, 0 the base bit for bit.")
    continue_from: str | None = Field(
        None,
        description="A run or solve.safetensors of an earlier edit, solved jointly with this one.",
    )
    mine: Annotated[tuple[Mine, ...] | None, BeforeValidator(_listed)] = None
    target: Annotated[SerializeAsAny[StageConfig], _stage("target", needed=True)]
    edit: Annotated[SerializeAsAny[StageConfig] | None, _stage("edit")]
    align: Annotated[SerializeAsAny[StageConfig] | None, _stage("align")] = None
    evaluate: EvaluateConfig | None = EvaluateConfig()
    package: PackageConfig = PackageConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        seen: dict[str, str] = {}
        for concept in self.concepts:
            for name in concept.names:
                if fold(name) in seen:
                    raise ValueError(f"{name!r} is erased twice ({seen[fold(name)]!r})")
                seen[fold(name)] = concept.name
        if self.preserve != "auto":
            both = [word for word in self.preserve if fold(word) in seen]
            if both:
                raise ValueError(f"{both[0]!r} is both erased and preserved")
        if self.edit is None and self.align is None:
            raise ValueError("edit and align are both null: nothing would be erased")
        return self

    def to_yaml(self) -> str:
        """The recipe as text that loads to itself."""
        return dump_yaml(self.model_dump(mode="json"))


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
        raise _readable(error, body) from None


def _readable(error: ValidationError, body: dict[str, Any]) -> EditforgeError:
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
        step = "editforge list stages" if said.startswith(_NO_STAGE) else None
        return RecipeError(f"{where}: {said}" if place else said, got=got, next=step)
    same = [other for other in faults if _place(other, body) == place]  # one each of a union
    allowed = " or ".join(dict.fromkeys(_allowed(other, body, place) for other in same))
    return RecipeError(f"{where} cannot be this", got=got, allowed=allowed)


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
