"""docs/architecture.md is the house as it stands."""

import re

import pytest

from editforge.families.schema import shipped_families
from editforge.recipe import registry
from editforge.recipe.line import LINE
from tests.command import ROOT
from tests.test_house import FLOORS, HOUSE, ROOMS

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def table(heading):
    """The rows of the first table below a heading, without its head."""
    below = PAGE.partition(f"\n## {heading}\n")[2]
    rows = re.search(r"(?:^\|.*\n)+", below, re.M)[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_every_folder_of_the_house_is_on_the_page_and_on_a_floor():
    folders = {path.name for path in HOUSE.iterdir() if path.is_dir() and path.name[0] not in "_."}
    for name in folders:
        assert f"{name}/" in PAGE, name
    assert folders <= set().union(*FLOORS)
    assert {row[0].strip("`/") for row in table("The rooms")} == folders & ROOMS


def test_the_files_beside_the_folders_are_few_and_named():
    files = {path.name for path in HOUSE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert files == {"registry.py", "stages.py"}
    assert all(f"`{name}`" in PAGE for name in files)


def test_every_path_on_the_page_is_there():
    paths = re.findall(r"`((?:[a-z_]+/)+[\w.]*\.\w+)`", PAGE)
    assert len(paths) > 25
    for path in (path for path in paths if "NAME" not in path):
        assert (ROOT / path).is_file() or (HOUSE / path).is_file(), path


def test_the_table_of_the_line_is_the_line():
    said = dict(zip((step.name for step in LINE), table("The line"), strict=True))
    for step in LINE:
        name, reads, makes, holds, edited, shared = said[step.name]
        assert name == step.name
        needs = ", ".join(step.needs).replace("eraser", "the eraser")
        assert reads == needs
        assert edited == ("yes" if step.list else "no")
        assert shared == ("yes" if step.shared else "no")
        assert not step.list or holds == f"`{step.list}`"
        assert step.artifact is None or makes == step.artifact_class().__name__
        kind = step.artifact_class()
        assert not (step.erases and kind) or holds == f"`{kind.file}`"


@pytest.mark.parametrize("row", table("Where to put hands"), ids=lambda row: row[0])
def test_where_the_page_sends_hands_others_have_been(row):
    """Each place with NAME in it holds what is registered there; a room that is to come holds none."""
    what, where, _ = row
    place, kind = re.search(r"`([\w.]+/[\w/.]*)`", where)[1], re.search(r'register\("(\w+)"', where)
    if kind:
        own = [name for name in registry.names(kind[1]) if "NAME" in place]
        folder = HOUSE / place.rpartition("/")[0]
        for name in own:
            assert (folder / f"{name.replace('-', '_')}.py").is_file(), name
        assert own or what == "guard"
    elif what == "family":
        assert shipped_families()
        assert all((HOUSE / place.replace("NAME", name)).is_file() for name in shipped_families())
    else:
        there = [root / place.replace("NAME", "default") for root in (ROOT, HOUSE)]
        assert any(path.exists() for path in there)
