"""Which implementations a stage has, and which exporters there are, without importing them before use.

The file stem equals the registered name (underscore for hyphen), so names and first docstring lines
are read from the source; `list` imports no torch. Third parties add one entry point in the group
`editforge.stages`, named `<stage>.<name>`, that points at the module which registers it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from editforge.ground.disk import sha256_file, sha256_json
from editforge.ground.errors import EditforgeError, RecipeError, did_you_mean
from editforge.recipe.line import STAGES, step

GROUP = "editforge.stages"
EXPORT = "export"
KINDS = (*STAGES, EXPORT)
# What an eraser must have on its class, see `artifacts.eraser`.
_ERASER = ("file", "header", "applied", "scaled", "explained", "described", "save", "load")


@dataclass(frozen=True)
class Implementation:
    """One registered function with its config class and paper, or one exporter.

    Args:
        stage: or `export`.
        name: unique in its stage.
        paper: a link, or None.
        config: class of its options; an exporter's own class.
        function: called with (inputs, config, context); an exporter's own class.
        returns: class of the artifact, as annotated; an exporter's own class.
    """

    stage: str
    name: str
    paper: str | None
    config: Any
    function: Callable[..., Any]
    returns: type

    @property
    def code(self) -> str | None:
        """Digest of a stranger's source files: its results are redone when one changes.

        All files of the outermost package (or of the one module) that registers it, whatever they are
        imported for; what it imports from other packages is not seen. None for our own, whose
        results have a version in `recipe.line`.
        """
        top = self.function.__module__.partition(".")[0]
        return None if top == __name__.partition(".")[0] else _source_digest(self.function)


_loaded: dict[tuple[str, str], Implementation] = {}


def register(
    stage: str, name: str, *, paper: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register `(inputs, config, context) -> artifact` as `name` of `stage`, or an `Exporter`.

    Args:
        stage: mine, target, edit, align or guide; export for a class that is an `Exporter`.
        name: lower case words joined by hyphens, new in its stage.
        paper: link to the method's paper, None for an idea of our own.

    Raises:
        EditforgeError: a bad name, a taken name, or annotations that do not fit the stage.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        where = f"{function.__module__}.{function.__qualname__}"
        if stage not in KINDS:
            allowed = did_you_mean(stage, KINDS)
            raise EditforgeError(f"{where} names no stage", got=stage, allowed=allowed)
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise EditforgeError(f"{where} has a bad name", got=name, allowed="lower-case-words")
        if paper is not None and not paper.startswith("https://"):
            raise EditforgeError(
                f"{where}: paper is not a link", got=paper, allowed="https://... or None"
            )
        known = _loaded.get((stage, name))
        if known is not None and _place(known.function) != _place(function):
            raise EditforgeError(
                f"{stage} {name} is registered twice",
                got=f"{known.function.__module__} and {where}",
            )
        check = _exporter if stage == EXPORT else _stage_function
        config, returns = check(stage, name, function, where)
        _loaded[stage, name] = Implementation(stage, name, paper, config, function, returns)
        return function

    return decorate


def _stage_function(stage: str, name: str, function: Any, where: str) -> tuple[type, type]:
    """The classes of config and artifact that the annotations name."""
    from editforge.recipe.contract import EditOutput, StageConfig

    row = step(stage)
    inputs, artifact = row.inputs_class(), row.artifact_class()
    hints = list(typing.get_type_hints(function).items())
    kinds = [kind for key, kind in hints if key != "return"]
    if len(kinds) != 3 or kinds[0] is not inputs:
        raise EditforgeError(
            f"{where} takes the wrong arguments",
            got=", ".join(key for key, _ in hints),
            allowed=f"(inputs: {inputs.__name__}, config: YourConfig, context: Context)",
        )
    if not (isinstance(kinds[1], type) and issubclass(kinds[1], StageConfig)):
        raise EditforgeError(f"{where}: config is no StageConfig", got=kinds[1])
    returns: Any = dict(hints).get("return")
    if artifact is None:
        if not all(hasattr(returns, part) for part in _ERASER):
            allowed = f"an Eraser: a class with {', '.join(_ERASER)}"
            raise EditforgeError(f"{where} returns no eraser", got=returns, allowed=allowed)
    elif returns not in (artifact, *((EditOutput,) if stage == "edit" else ())):
        allowed = artifact.__name__ + (" or EditOutput" if stage == "edit" else "")
        raise EditforgeError(f"{where} returns the wrong artifact", allowed=allowed)
    return kinds[1], artifact or returns


def _exporter(stage: str, name: str, cls: Any, where: str) -> tuple[type, type]:
    from editforge.recipe.export import Exporter

    if not (isinstance(cls, type) and issubclass(cls, Exporter)):
        raise EditforgeError(
            f"{where} is no Exporter", allowed="a class of editforge.stages.Exporter"
        )
    lacking = [key for key in ("name", "accepts") if not hasattr(cls, key)]
    if lacking or cls.name != name or cls.__abstractmethods__:
        got = ", ".join([*lacking, *sorted(cls.__abstractmethods__)]) or f"name = {cls.name!r}"
        raise EditforgeError(f"{where} is no whole exporter", got=got, allowed=f"name = {name!r}")
    return cls, cls


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def _source_digest(function: Callable[..., Any]) -> str:
    parts = function.__module__.split(".")
    names = [".".join(parts[: at + 1]) for at in range(len(parts))]
    # A namespace package has no file of its own: others may have put their modules below it.
    files = [
        Path(file) for file in (getattr(sys.modules[n], "__file__", None) for n in names) if file
    ]
    if not files:  # typed into an interpreter
        return hashlib.sha256(function.__code__.co_code).hexdigest()
    root = files[0]
    if root.stem == "__init__":
        suffixes = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
        found = [path for path in root.parent.rglob("*") if path.name.endswith(suffixes)]
        rows = {path.relative_to(root.parent).as_posix(): sha256_file(path) for path in found}
    else:
        rows = {root.name: sha256_file(root)}
    return sha256_json(rows)


def get(stage: str, name: str) -> Implementation:
    """Import and return one implementation.

    Raises:
        RecipeError: no such name, with near matches; or a broken plugin, with its reason.
    """
    if (stage, name) not in _loaded:
        usable, broken = plugins()
        if name in _own(stage):
            place = _room(stage).replace("/", ".")
            importlib.import_module(f"editforge.{place}.{name.replace('-', '_')}")
        elif f"{stage}.{name}" in usable:
            _load_plugin(usable[f"{stage}.{name}"])
        elif f"{stage}.{name}" in broken:
            raise RecipeError(f"the plugin {stage}.{name} is broken", got=broken[f"{stage}.{name}"])
        else:
            raise RecipeError(
                f"{stage} has no {name!r}",
                allowed=did_you_mean(name, known(stage)),
                next="editforge list stages",
            )
    if (stage, name) not in _loaded:
        raise RecipeError(f"the module of {stage} {name} does not register it")
    return _loaded[stage, name]


def names(stage: str) -> dict[str, str]:
    """Name to one line of description, our own first; imports no implementation."""
    listed = _own(stage)
    for key, point in plugins()[0].items():
        owner, _, name = key.partition(".")
        if owner == stage:
            listed[name] = f"from {_source(point)}"
    return listed


def known(stage: str) -> list[str]:
    """Every name that `get` answers to: those of `names`, and what this process has registered."""
    return list(dict.fromkeys([*names(stage), *(name for kind, name in _loaded if kind == stage)]))


def guides() -> Iterator[Any]:
    """The kinds of erasers that implementations of `guide` make; a broken plugin has none."""
    for name in known("guide"):
        with contextlib.suppress(EditforgeError):
            yield get("guide", name).returns


def misfit(eraser: type, exports: Iterable[str]) -> tuple[str, str, str] | None:
    """The first export that cannot write erasers of a class, what it writes, and those that can."""
    from editforge.recipe.export import accepts

    for name in exports:
        form: Any = get(EXPORT, name).returns
        if not accepts(form, eraser):
            return name, form.accepts.__name__, ", ".join(_takers(eraser))
    return None


def _takers(eraser: type) -> list[str]:
    """The exports that can write erasers of a class; a broken plugin writes nothing."""
    from editforge.recipe.export import accepts

    found = []
    for name in known(EXPORT):
        with contextlib.suppress(EditforgeError):
            if accepts(get(EXPORT, name).returns, eraser):
                found.append(name)
    return found


def plugins() -> tuple[dict[str, EntryPoint], dict[str, str]]:
    """Usable entry points by `stage.name`, and why the others are skipped; imports none of them."""
    usable: dict[str, EntryPoint] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        fault = _fault(point)
        if fault is None and point.name in usable:
            fault = f"{_source(usable.pop(point.name))} brings the same name"
        if fault is None and point.name not in broken:
            usable[point.name] = point
        else:
            broken.setdefault(point.name, f"{point.value} of {_source(point)}: {fault}")
    return usable, broken


def _fault(point: EntryPoint) -> str | None:
    """What is wrong with a plugin, as far as it shows without running it."""
    stage, _, name = point.name.partition(".")
    if stage not in KINDS or not name:
        return f"its entry point is not called STAGE.NAME, STAGE one of {', '.join(KINDS)}"
    if name in _own(stage):
        return f"{stage} {name} is EditForge's own"
    top, *below = point.module.split(".")
    found = importlib.util.find_spec(top)  # finds the file, runs nothing
    if found is None:
        return f"there is no module {top}"
    if not below:
        files = [Path(found.origin)] if found.origin else []
    else:
        roots = [Path(root, *below[:-1]) for root in found.submodule_search_locations or ()]
        files = [path for root in roots for path in root.glob(f"{below[-1]}*")]
        if not files:
            return f"there is no module {point.module}"
    try:
        for path in files:
            if path.suffix == ".py":
                ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _source(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _own(stage: str) -> dict[str, str]:
    found = {}
    for path in sorted((Path(__file__).parents[1] / _room(stage)).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [
            call
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            for call in node.decorator_list
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register"
        ]
        if calls:
            line = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[path.stem.replace("_", "-")] = line
    return found


def _room(kind: str) -> str:
    """The folder of our own implementations."""
    return "package/exports" if kind == EXPORT else kind


def _load_plugin(point: EntryPoint) -> None:
    try:
        point.load()
    except Exception as error:  # a stranger's module may fail in any way; name it, do not hide it
        raise RecipeError(
            f"the plugin {point.name} is broken",
            got=f"{type(error).__name__}: {error}",
            next=f"update or remove {_source(point)}",
        ) from error
