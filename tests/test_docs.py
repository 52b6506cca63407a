"""The documentation is true as far as it can be run: commands parse, recipes validate."""

import json
import re
import shlex

import pytest
import typer

from editforge.cli.main import app
from editforge.ground.disk import parse_yaml, read_yaml
from editforge.recipe.layers import resolve
from editforge.recipe.methods import methods
from editforge.recipe.recipe import Recipe
from tests.command import ROOT

PAGES = sorted(
    page
    for page in [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("model_cards/**/*.md"),
    ]
    if page.is_file()
)
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
KEYS = set(Recipe.model_fields)


def blocks(page, *languages):
    return [m[3] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m[2] in languages]


def commands(page):
    """`editforge ...` at the start of a line of a shell block, or alone between backticks."""
    found = []
    for block in blocks(page, "", "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("editforge "):
                found.append(line)
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found += re.findall(r"`(editforge [^`\n]+)`", prose)
    return found


def real(line):
    """A grammar (`[--json]`, `...`) or a template is described, not run; comments are not read."""
    return not re.search(r"\[--|\.\.\.|…|\{\{|[A-Z]\|", line)


LINES = [(page.name, line) for page in PAGES for line in commands(page) if real(line)]
RECIPES = [
    (page.name, block)
    for page in PAGES
    for block in blocks(page, "yaml", "yml")
    if KEYS & set(re.findall(r"^(\w+):", block, re.M)) and "concepts" in block
]


def parse(line):
    words = shlex.split(line, comments=True)
    for end in ("|", ">", "&&", ";", "2>"):
        if end in words:
            words = words[: words.index(end)]
    group = typer.main.get_command(app)
    name, *args = words[1:]
    assert name.startswith("--") or name in group.commands, f"there is no verb {name}"
    if not args:
        return  # a verb named in passing
    if name.startswith("--"):
        return  # --help, --version
    if "--help" not in args:
        with group.commands[name].make_context(name, args):
            pass


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: str(value)[:60])
def test_every_documented_command_parses(page, line):
    parse(line)


def test_the_parser_of_this_file_refuses_what_does_not_parse():
    for line in (
        "editforge erase violin --colour red",
        "editforge serch violin",
        "editforge run x.yaml",
    ):
        with pytest.raises(Exception, match=r"option|verb|argument|Missing"):
            parse(line)


def test_the_readme_names_the_first_command():
    assert "editforge erase violin" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "block"), RECIPES, ids=lambda value: str(value)[:40])
def test_every_documented_recipe_validates(page, block):
    body = parse_yaml(block, page)
    if isinstance(body, dict):
        body.pop("about", None)
        body.pop("presets", None)
        resolve(body)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_shipped_recipe_and_preset_validates(path):
    body = read_yaml(path)
    one = {"concepts": [{"name": "violin"}]}
    for preset in (None, *body.get("presets", {})):
        recipe = resolve(path.stem, one, preset=preset)
        assert recipe.method == path.stem
        again = resolve(parse_yaml(recipe.to_yaml(), "recipe"))
        assert again == recipe, "a resolved recipe loads to itself"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_shipped_recipe_says_when_to_use_it(path):
    about = methods()[path.stem]
    for key in ("idea", "when", "known_failure"):
        assert isinstance(about.get(key), str), key
        assert about[key]
    assert about.get("paper") is None or about["paper"].startswith("https://")
    assert about["presets"] == [name for name in about["presets"] if name != "editforge"]


def test_every_local_link_leads_somewhere():
    broken = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:|#", target) or "model_cards" in page.parts:
                continue
            if not (page.parent / target.partition("#")[0]).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_json_block_parses():
    for page in PAGES:
        for block in blocks(page, "json"):
            json.loads(block)


def test_every_python_block_compiles():
    for page in PAGES:
        for block in blocks(page, "python", "py"):
            compile(block, page.name, "exec")


def test_make_words_of_the_documentation_exist():
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for word in re.findall(r"`make ([a-z-]+)|^\s*make ([a-z-]+)", text, re.M):
            assert (word[0] or word[1]) in known, (page.name, word)
