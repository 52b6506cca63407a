"""Stages: what ships, what a stranger's package adds, and what is refused at registration."""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditforgeError, RecipeError
from editforge.recipe import registry
from editforge.recipe.contract import Context, EditInputs, EditOutput, MineInputs, StageConfig
from editforge.recipe.registry import register
from tests.command import ENVIRONMENT, ROOT, fresh

PLUGIN = '''
"""Half of a nudge: shrink every key and value map's answer to the concept. Thirty lines."""

from pydantic import Field

from editforge.artifacts.weight_edit import LowRank, WeightEdit
from editforge.registry import register
from editforge.stages import Context, EditInputs, StageConfig


class ShrinkConfig(StageConfig):
    """Options of `edit: shrink`."""

    share: float = Field(0.5, gt=0, le=1, description="Of the concept's answer. Higher: less left.")


@register("edit", "shrink", paper=None)
def shrink(inputs: EditInputs, config: ShrinkConfig, context: Context) -> WeightEdit:
    """B A = -share W c c^T / |c|^2 for the concept's own direction c."""
    words = [concept.name for concept in inputs.concepts]
    states = context.model.encoder.encode_words(words).double()  # (n, d)
    factors = {}
    for path in context.model.paths:
        weight = context.model.weight(path).double()  # (out, d)
        inverse = states / states.square().sum(-1, keepdim=True)
        factors[path] = LowRank((-config.share * weight @ states.T).float(), inverse.float())
    return WeightEdit(factors, exact_rank=len(words))
'''


PLUGIN_RECIPE = """
concepts: [{name: violin}]
mine: null
target: {use: fixed, text: ""}
edit: {use: shrink, share: 0.25}
evaluate: null
"""


def install(site, name, points, modules):
    """A separate distribution as an installer leaves it: modules, metadata, entry points."""
    for path, text in modules.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{lines}")


def command(*args, cwd, site):
    paths = os.pathsep.join([str(site), str(ROOT)])  # this checkout, wherever another is installed
    return fresh("-m", "editforge.cli.main", *args, cwd=cwd, PYTHONPATH=paths)


# --- what ships ---------------------------------------------------------------------------------


def test_every_shipped_name_is_its_file_and_loads():
    for stage in registry.STAGES:
        for path in (ROOT / "editforge" / stage).glob("*.py"):
            tree = ast.parse(path.read_text())
            calls = [
                call
                for node in tree.body
                if isinstance(node, ast.FunctionDef)
                for call in node.decorator_list
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register"
            ]
            for call in calls:
                name = path.stem.replace("_", "-")
                assert [argument.value for argument in call.args] == [stage, name], path
                found = registry.get(stage, name)
                assert (found.stage, found.name) == (stage, name)
                assert found.paper is None or found.paper.startswith("https://")
                assert found.config().use in ("", name)


def test_every_shipped_stage_says_what_it_is_in_a_line():
    for stage in ("mine", "target", "edit"):
        assert registry.names(stage)
        for name, line in registry.names(stage).items():
            assert line.strip().endswith("."), (stage, name)


def test_every_shipped_option_is_described():
    for stage in registry.STAGES:
        for name in registry.names(stage):
            for key, field in registry.get(stage, name).config.model_fields.items():
                described = field.description or not isinstance(field.default, (int, float, str))
                assert key == "use" or described, (stage, name, key)


def test_an_unknown_name_lists_the_near_ones():
    with pytest.raises(RecipeError, match="did you mean ridge") as caught:
        registry.get("edit", "rigde")
    assert "mean-shift" in str(caught.value)


# --- registration -------------------------------------------------------------------------------


class Config(StageConfig):
    pass


def good(inputs: EditInputs, config: Config, context: Context) -> WeightEdit: ...
def also_good(inputs: EditInputs, config: Config, context: Context) -> EditOutput: ...
def wrong_inputs(inputs: MineInputs, config: Config, context: Context) -> WeightEdit: ...
def two(inputs: EditInputs, config: Config) -> WeightEdit: ...
def bare(inputs, config, context): ...
def no_config(inputs: EditInputs, config: dict, context: Context) -> WeightEdit: ...
def wrong_result(inputs: EditInputs, config: Config, context: Context) -> dict: ...


@pytest.fixture
def clean():
    kept = dict(registry._loaded)
    yield
    registry._loaded.clear()
    registry._loaded.update(kept)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("function", [good, also_good])
def test_a_fitting_function_registers_and_stays_itself(function):
    assert register("edit", "brand-new")(function) is function
    assert registry.get("edit", "brand-new").config is Config


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("stage", "name", "paper", "function", "words"),
    [
        ("edti", "new", None, good, "did you mean edit"),
        ("edit", "New", None, good, "lower-case-words"),
        ("edit", "new_one", None, good, "lower-case-words"),
        ("edit", "", None, good, "lower-case-words"),
        ("edit", "-new", None, good, "lower-case-words"),
        ("edit", "new", "arXiv 2308.14761", good, "not a link"),
        ("edit", "new", None, wrong_inputs, "EditInputs"),
        ("edit", "new", None, two, "wrong arguments"),
        ("edit", "new", None, bare, "wrong arguments"),
        ("edit", "new", None, no_config, "no StageConfig"),
        ("edit", "new", None, wrong_result, "WeightEdit or EditOutput"),
    ],
)
def test_a_misfit_is_refused_with_its_reason(stage, name, paper, function, words):
    with pytest.raises(EditforgeError, match=words):
        register(stage, name, paper=paper)(function)
    assert (stage, name) not in registry._loaded


@pytest.mark.usefixtures("clean")
def test_a_taken_name_is_refused():
    registry.get("edit", "ridge")
    with pytest.raises(EditforgeError, match="registered twice"):
        register("edit", "ridge")(good)
    register("edit", "new")(good)
    with pytest.raises(EditforgeError, match="registered twice"):
        register("edit", "new")(also_good)
    register("edit", "new")(good)  # a module that is imported again


# --- a stranger's package -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install(folder, "shrinker", {"edit.shrink": "shrinker.method"},
            {"shrinker/__init__.py": "", "shrinker/method.py": PLUGIN})  # fmt: skip
    return folder


def test_the_plugin_is_short():
    assert len([line for line in PLUGIN.splitlines() if line.strip()]) <= 30


def test_a_plugin_is_listed_with_its_package(site, tmp_path):
    done = command("list", "stages", "--json", cwd=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["edit shrink"]["idea"] == "from shrinker"


def test_a_plugin_runs_from_a_recipe_to_a_package(site, tmp_path):
    (tmp_path / "mine.yaml").write_text(PLUGIN_RECIPE)
    done = command("run", "mine.yaml", "--output", "run", "--json", cwd=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rank"] == 1
    edit = WeightEdit.load(tmp_path / "run/edit/weight_edit.safetensors")
    assert len(edit.factors) == 14
    assert edit.exact_rank == 1
    assert max(float(factor.B.abs().max()) for factor in edit.factors.values()) > 0
    assert (tmp_path / "run/package/lora/pytorch_lora_weights.safetensors").is_file()
    wrong = command("erase", "violin", "--set", "edit={use: shrink, shaer: 1}", "--output", "x",
                    cwd=tmp_path, site=site)  # fmt: skip
    assert wrong.returncode == 2
    assert "did you mean share" in wrong.stderr


def test_a_changed_plugin_is_redone_and_an_unchanged_one_is_not(tmp_path):
    """Changed in a module that it imports, then in its own."""
    site, body = tmp_path / "site", PLUGIN.replace("-config.share", "-SIGN * config.share")
    modules = {
        "shrinker/__init__.py": "",
        "shrinker/helper.py": "SIGN = 1\n",
        "shrinker/method.py": body.replace(
            "from pydantic", "from shrinker.helper import SIGN\nfrom pydantic", 1
        ),
    }
    install(site, "shrinker", {"edit.shrink": "shrinker.method"}, modules)
    (tmp_path / "mine.yaml").write_text(PLUGIN_RECIPE)

    def run():
        done = command("run", "mine.yaml", "--output", "run", cwd=tmp_path, site=site)
        assert done.returncode == 0, done.stderr
        edit = WeightEdit.load(tmp_path / "run/edit/weight_edit.safetensors")
        return done.stderr, next(iter(edit.factors.values())).B

    first = run()[1]
    said, again = run()
    assert "redone" not in said
    assert torch.equal(first, again)
    for changed, times in (("shrinker/helper.py", 2), ("shrinker/method.py", 4)):
        path = site / changed
        text = path.read_text()
        doubled = text.replace("SIGN = 1", "SIGN = 2").replace("(-SIGN", "(-2 * SIGN")
        assert doubled != text
        path.write_text(doubled)
        said, changed_edit = run()
        assert "edit: redone" in said
        assert "target: redone" not in said
        assert torch.allclose(changed_edit, times * first)


def test_our_own_implementations_have_a_version_and_no_digest():
    assert registry.get("edit", "ridge").code is None


@pytest.mark.parametrize(
    ("points", "modules", "words"),
    [
        ({"edit.lost": "nowhere.at.all"}, {}, "there is no module nowhere"),
        ({"edit.lost": "some.lost"}, {"some/__init__.py": ""}, "there is no module some.lost"),
        ({"edit.torn": "torn"}, {"torn.py": "def broken(:\n"}, "SyntaxError"),
        ({"edti.x": "fine"}, {"fine.py": ""}, "STAGE.NAME"),
        ({"edit.ridge": "fine"}, {"fine.py": ""}, "EditForge's own"),
    ],
)
def test_a_broken_plugin_is_named_and_skipped_in_list(points, modules, words, tmp_path):
    install(tmp_path / "site", "broken-one", points, modules)
    done = command("list", "stages", "--json", cwd=tmp_path, site=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    assert "broken-one" in done.stderr
    listed = json.loads(done.stdout)["stages"]
    assert "edit ridge" in listed
    assert not any("broken-one" in row["idea"] for row in listed.values())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("raise RuntimeError('no such device')\n", ["broken", "no such device", "broken-one"]),
        ("import a_package_that_is_not_there\n", ["broken", "a_package_that_is_not_there"]),
        ("x = 1\n", ["does not register it"]),
        ("def broken(:\n", ["broken", "SyntaxError"]),
        (PLUGIN.replace('"shrink", paper', '"Shrink", paper'), ["broken", "bad name"]),
    ],
)
def test_a_broken_plugin_raises_when_it_is_used(module, words, tmp_path):
    install(tmp_path / "site", "broken-one", {"edit.shrink": "bad"}, {"bad.py": module})
    line = ("erase", "violin", "--set", "edit.use=shrink", "--output", "run")
    done = command(*line, cwd=tmp_path, site=tmp_path / "site")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_plugins_of_one_name_are_both_refused(tmp_path):
    site = tmp_path / "site"
    install(site, "first", {"edit.shrink": "one"}, {"one.py": PLUGIN})
    install(site, "second", {"edit.shrink": "two"}, {"two.py": PLUGIN})
    done = command("list", "stages", cwd=tmp_path, site=site)
    assert "brings the same name" in done.stderr
    assert "edit shrink" not in done.stdout


def test_listing_does_not_import_a_plugin(tmp_path):
    module = "open('imported', 'w')\n" + PLUGIN
    install(tmp_path / "site", "eager", {"edit.shrink": "eager"}, {"eager.py": module})
    done = command("list", "stages", cwd=tmp_path, site=tmp_path / "site")
    assert "edit shrink" in done.stdout
    assert not (tmp_path / "imported").exists()


def test_an_installer_makes_the_same_plugin(tmp_path):
    """The same thirty lines through pip, as a user would install them."""
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "shrinker.py").write_text(PLUGIN)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "shrinker"\nversion = "1.0"\n'
        '[project.entry-points."editforge.stages"]\n"edit.shrink" = "shrinker"\n'
        '[tool.hatch.build.targets.wheel]\nonly-include = ["shrinker.py"]\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    made = subprocess.run(
        [*pip, "--no-index", "--target", str(site), str(source)],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode and "hatchling" in made.stderr and not _has("hatchling"):
        pytest.skip("hatchling is not installed")
    assert made.returncode == 0, made.stderr
    done = command("list", "stages", cwd=tmp_path, site=site)
    assert "from shrinker" in done.stdout


def _has(name):
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False
