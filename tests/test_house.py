"""The way of imports: down the floors, never up, never from room to room, never round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "editforge"

# Top to bottom. A file may import its own folder and every floor below.
FLOORS = (
    {"", "__main__", "cli"},
    {"graph"},
    {"run"},
    {"mine", "target", "edit", "align", "guide", "evaluate", "package", "hub"},
    {"registry", "stages"},
    {"recipe"},
    {"artifacts"},
    {"judges"},
    {"guards"},
    {"families"},
    {"emoji"},
    {"ground"},
)
ROOMS = FLOORS[3]
# What a room may know of recipes: what it registers with, and what it is given.
CONTRACT = {"recipe.contract", "recipe.export", "recipe.registry"}

Edges = dict[str, set[str]]


def imports(house: Path) -> Edges:
    """Module to the modules of the house that it imports, wherever in the file; without the root."""
    files = {_name(house, path): path for path in house.rglob("*.py")}
    found: Edges = {}
    for name, path in files.items():
        found[name] = set()
        for module, symbol in _imported(ast.parse(path.read_text(encoding="utf-8")), house.name):
            inner = ".".join(part for part in (module, symbol) if part)
            found[name].add(inner if inner in files else module)
    return found


def _name(house: Path, path: Path) -> str:
    parts = path.relative_to(house).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imported(tree: ast.AST, root: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == root:
                    yield alias.name.partition(".")[2], ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if (node.module or "").partition(".")[0] == root:
                for alias in node.names:
                    yield str(node.module).partition(".")[2], alias.name


def room(module: str) -> str:
    return module.partition(".")[0]


def wrong_ways(edges: Edges) -> list[str]:
    """Imports that go up, to a sibling room, or further into the recipe than its contract."""
    rank = {name: at for at, names in enumerate(FLOORS) for name in names}
    wrong = [f"{module} lies on no floor" for module in edges if room(module) not in rank]
    for module, targets in edges.items():
        for target in sorted(targets):
            here, there = room(module), room(target)
            if here == there or {here, there} - set(rank):
                continue
            if rank[there] < rank[here]:
                wrong.append(f"{module} imports {target}, upwards")
            elif here in ROOMS and there in ROOMS:
                wrong.append(f"{module} imports {target}, a sibling room")
            elif here in ROOMS and there == "recipe" and target not in CONTRACT:
                wrong.append(f"{module} imports {target}, which is not the contract")
    return wrong


def circles(edges: Edges) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(edges.get(module, ())):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1 or module in edges.get(module, ()):
                found.append(sorted(group))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return found


def test_every_import_goes_down_and_to_no_sibling():
    assert wrong_ways(imports(HOUSE)) == []


def test_there_is_no_circle():
    edges = imports(HOUSE)
    assert len(edges) > 100  # the graph was drawn
    assert circles(edges) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ground/a.py": "from editforge.edit.b import x", "edit/b.py": ""}, "upwards"),
        ({"edit/a.py": "def f():\n    from editforge.mine import b", "mine/b.py": ""}, "sibling"),
        ({"edit/a.py": "import editforge.mine.b", "mine/b.py": ""}, "sibling"),
        (
            {"mine/a.py": "from editforge.recipe.layers import r", "recipe/layers.py": ""},
            "contract",
        ),
        ({"attic/a.py": ""}, "no floor"),
        ({"ground/a.py": "from editforge import erase", "__init__.py": ""}, "upwards"),
    ],
)
def test_a_wrong_way_is_seen_wherever_it_is_taken(tmp_path, files, said):
    assert any(said in line for line in wrong_ways(imports(house_of(tmp_path, files))))


@pytest.mark.parametrize(
    "files",
    [
        {
            "edit/a.py": "from editforge.edit import b",
            "edit/b.py": "from editforge.edit.a import x",
        },
        {
            "edit/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from editforge.edit.b import X",
            "edit/b.py": "from editforge.edit.c import y",
            "edit/c.py": "def late():\n    import editforge.edit.a",
        },
        {
            "ground/__init__.py": "from editforge.ground.a import x",
            "ground/a.py": "import editforge.ground",
        },
    ],
)
def test_a_circle_is_seen_also_one_of_late_and_of_typing_imports(tmp_path, files):
    edges = imports(house_of(tmp_path, files))
    assert len(circles(edges)) == 1
    assert len(circles(edges)[0]) == len([name for name in files if files[name]])


def test_ways_that_are_allowed_are_not_refused(tmp_path):
    files = {
        "cli/a.py": "from editforge.run import b",
        "run/b.py": "from editforge.edit.c import d",
        "edit/c.py": "from editforge.recipe.contract import Context\nfrom editforge.ground import e",
        "recipe/contract.py": "import os\nfrom editforge.families import m",
        "families/m.py": "from editforge.emoji import art",
        "emoji/art.py": "",
        "ground/e.py": "",
    }
    edges = imports(house_of(tmp_path, files))
    assert wrong_ways(edges) == []
    assert circles(edges) == []


def house_of(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "editforge" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "editforge"
