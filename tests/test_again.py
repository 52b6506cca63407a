"""Every hint is a command that works: what a verdict proposes, and what each verb says next."""

import ast
import re
import shlex

import pytest
import typer.main

from editforge.artifacts.report import Remedy
from editforge.artifacts.targets import Candidate, Target, Targets
from editforge.cli.main import app
from editforge.recipe.layers import resolve
from editforge.run.again import fresh_folder, next_command
from tests.command import QUICK, ROOT, UNJUDGED, editforge

WORDS = ("trumpet", "guitar")
TARGETS = Targets(
    concepts=(
        Target(
            concept="violin",
            target="trumpet",
            candidates=tuple(
                Candidate(word=w, score=1, similarity=0.5, displacement=1, leak=0) for w in WORDS
            ),
        ),
    )
)
REMEDIES = {
    "alias": Remedy(aliases={"violin": ("fiddle", "viola")}),
    "target": Remedy(target="violin", strength=0.7),
    "preserve": Remedy(preserve=("books", "ear of corn"), strength=0.7),
    "strength": Remedy(strength=1.3),
}
CHANGED = {
    "alias": lambda r: r["concepts"][0]["aliases"] == ["fiddle", "viola"],
    "target": lambda r: r["target"]["text"] == "guitar",
    "preserve": lambda r: {"books", "ear of corn"} <= set(r["preserve"]),
    "strength": lambda r: r["strength"] == 1.3,
}


@pytest.mark.parametrize("kind", REMEDIES)
@pytest.mark.parametrize("form", ["options", "sets", "file"])
def test_what_a_verdict_proposes_runs_and_turns_that_one_knob(kind, form, tmp_path):
    # `--set` in a command wins over its options, so there the remedy has to be a `--set` too.
    first = ["violin", "--method=uce", "--judge=none", "--strength=1.1", "--target=trumpet"]
    first += [] if form == "options" else ["--set=mine=null", "--preserve=camel"]
    done = editforge("erase", *first, "--output=first", "--set=evaluate=null", cwd=tmp_path)
    assert done.code == 0, done.err
    command = shlex.join(["editforge", "erase", *first])
    if form == "file":
        command = "editforge run first/recipe.yaml"
    recipe = resolve(str(tmp_path / "first" / "recipe.yaml"))
    line = next_command(recipe, REMEDIES[kind], TARGETS, command, "second")
    done = editforge(*shlex.split(line)[1:], *UNJUDGED, cwd=tmp_path)
    assert done.code == 0, done.err
    again = resolve(str(tmp_path / "second" / "recipe.yaml")).model_dump(mode="json")
    assert CHANGED[kind](again)
    assert resolve(again) != recipe
    if kind != "strength":
        assert again["strength"] == 1.1
    if kind == "preserve":
        assert again["edit"]["preserve_weight"] == 10
        assert ("auto" in again["preserve"]) is (form == "options")
        assert ("camel" in again["preserve"]) is (form != "options")


def test_a_failed_run_ends_in_a_command_that_works_beside_it(tmp_path):
    few = "import functools; from editforge.evaluate import gate, prompts\n"
    few += "counts = prompts.Counts(name=8, least=4, names=2, images=2, reference=4)\n"
    few += "gate.evaluate_gate = functools.partial(gate.evaluate_gate, counts=counts)\n"
    args = ("erase", "violin", *QUICK, "--strength", "0.01")
    done = editforge(*args, cwd=tmp_path, before=few)
    assert done.code == 1, done.err
    hint = done.err.strip().splitlines()[-1]
    assert hint.startswith("next: editforge erase violin")
    assert hint.endswith("--output=runs/violin-2")
    done = editforge(*shlex.split(hint)[2:], cwd=tmp_path, before=few)
    assert done.code in (0, 1), done.err
    assert (tmp_path / "runs" / "violin-2" / "package" / "lora").is_dir()
    assert fresh_folder(tmp_path / "runs" / "violin").name == "violin-3"
    # The card's own form, beside the recipe that travels with it.
    results = (tmp_path / "runs/violin/package/lora/editforge_results.json").read_text()
    command = re.search(r'"next": "(editforge run recipe.yaml [^"]*)"', results)[1]
    there = tmp_path / "runs/violin/package/lora/reproduce"
    done = editforge(*shlex.split(command)[1:], "--dry-run", cwd=there)
    assert done.code == 0, done.err


def test_a_knob_that_the_recipe_does_not_have_is_not_proposed():
    recipe = resolve("uce", {"concepts": [{"name": "violin"}], "target": {"text": "trumpet"}})
    assert next_command(recipe, None, None, "editforge erase violin", "x") is None
    assert next_command(recipe, Remedy(judge=True), None, "editforge erase violin", "x") is None
    # The user's own target has no other candidates: the strength is what is left.
    line = next_command(recipe, REMEDIES["target"], None, "editforge erase violin", "x")
    assert line == "editforge erase violin --strength=0.7 --output=x"
    dashed = next_command(recipe, REMEDIES["strength"], None, "editforge erase -- -violin", "x")
    assert dashed == "editforge erase --strength=1.3 --output=x -- -violin"


def _texts():
    """Every string of the package that names one of our commands or options as what to do."""
    for path in sorted((ROOT / "editforge").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "next":
                for part in ast.walk(node.value):
                    if isinstance(part, ast.JoinedStr):
                        yield (
                            path.name,
                            "".join(
                                piece.value if isinstance(piece, ast.Constant) else "X"
                                for piece in part.values
                            ),
                        )
                    elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield path.name, part.value


def test_every_command_and_option_that_an_error_names_exists():
    commands = typer.main.get_command(app).commands
    options = {
        verb: {
            name
            for one in (
                command,
                *getattr(command, "commands", {}).values(),
            )  # editforge guard build
            for parameter in one.params
            for name in parameter.opts
        }
        for verb, command in commands.items()
    }
    everywhere = set.union(*options.values()) | {"--debug", "--help"}
    seen = 0
    for file, text in _texts():
        for verb, rest in re.findall(r"editforge ([a-z]+)((?: [^\s;,:]+)*)", text):
            assert verb in commands, f"{file}: {text}"
            for option in re.findall(r"(?<![\w-])--[a-z-]+", rest):
                assert option in {*options[verb], "--help"}, f"{file}: {text}"
            seen += 1
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            foreign = "accelerate" in text or "pip install" in text
            assert foreign or option in everywhere, f"{file}: {text}"
            seen += 1
    assert seen > 40
