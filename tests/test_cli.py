"""The command line: what it imports, what goes where, how it exits, its examples."""

import json
import shlex

import pytest
import typer

from editforge.cli.main import app
from editforge.cli.output import guarded
from tests.command import QUICK, UNJUDGED, editforge, fresh

VERBS = (
    "erase",
    "run",
    "graph",
    "evaluate",
    "package",
    "push",
    "verify",
    "inspect",
    "try",
    "doctor",
    "list",
)
HEAVY = ("torch", "diffusers", "transformers", "peft", "huggingface_hub", "numpy")
PROBE = """
import sys
sys.argv = ["editforge", *sys.argv[1:]]
from editforge.cli.main import main
try:
    main()
finally:
    print("HEAVY", *[name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, shared: tests read it."""
    folder = tmp_path_factory.mktemp("run")
    done = editforge(
        "erase", "violin", *QUICK, *UNJUDGED, "--output", "violin", "--json", cwd=folder
    )
    assert done.code == 0, done.err
    return folder / "violin", done


def clicks():
    return typer.main.get_command(app)


def parses(line):
    """Parse one command line as `editforge` would, without running it."""
    name, *args = shlex.split(line)[1:]
    command = clicks().commands[name]
    if hasattr(command, "commands"):  # editforge guard build
        name, *args = args
        command = command.commands[name]
    with command.make_context(name, list(args)) as context:
        return context.params


def examples():
    """Every example line of every verb's help."""
    found = []
    for name, command in clicks().commands.items():
        for one in getattr(command, "commands", {"": command}).values():
            lines = [line.strip() for line in (one.help or "").splitlines()]
            found += [(name, line) for line in lines if line.startswith("editforge ")]
    return found


# --- purity -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["--help", *(f"{verb} --help" for verb in VERBS), "list", "list stages", "list families"],
)
def test_help_and_list_import_nothing_heavy(line, tmp_path):
    done = fresh("-c", PROBE.format(heavy=HEAVY), *line.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].split() == ["HEAVY"]
    assert done.stdout.strip()


def test_the_probe_sees_torch_where_it_is_imported(tmp_path):
    done = fresh("-c", PROBE.format(heavy=HEAVY), "doctor", cwd=tmp_path)
    assert "torch" in done.stderr.splitlines()[-1].split()


def test_import_editforge_imports_nothing_heavy_and_changes_nothing(tmp_path):
    code = (
        "import os, sys, warnings; before = dict(os.environ), list(warnings.filters)\n"
        "import editforge\n"
        "assert before == (dict(os.environ), list(warnings.filters))\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = fresh("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


# --- streams and exit codes ---------------------------------------------------------------------


def test_json_is_the_only_line_on_stdout(run):
    _, done = run
    assert len(done.out.splitlines()) == 1
    body = json.loads(done.out)
    assert body["targets"] == {"violin": "trumpet"}
    assert body["verdict"] is None
    assert "next: editforge push" in done.err


@pytest.mark.parametrize(
    "args",
    [
        ("list", "methods"),
        ("list", "stages"),
        ("list", "families"),
        ("doctor",),
        ("verify", "{run}"),
        ("inspect", "{run}/package/lora/pytorch_lora_weights.safetensors"),
        ("push", "{run}", "someone/something", "--dry-run"),
        ("erase", "violin", "--dry-run"),
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_json_of_every_verb_parses(args, run, tmp_path):
    folder, _ = run
    done = editforge(*(arg.format(run=folder) for arg in args), "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert isinstance(done.json, dict)
    assert list(tmp_path.iterdir()) == []


def test_quiet_leaves_stderr_to_errors(tmp_path, run):
    folder, _ = run
    line = ("erase", "violin", *QUICK, *UNJUDGED, "--output", str(folder), "-q")
    done = editforge(*line, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert str(folder / "package") in done.out
    refused = editforge(*line, "--seed", "7", cwd=tmp_path)
    assert refused.code == 2
    assert "seed" in refused.err


def test_without_json_the_next_command_is_named_and_parses(run, tmp_path):
    folder, _ = run
    done = editforge("erase", "violin", *QUICK, *UNJUDGED, "--output", str(folder), cwd=tmp_path)
    hint = done.err.strip().splitlines()[-1]
    assert hint.startswith("next: editforge push")
    assert parses(hint.removeprefix("next: "))["folder"] == folder


def test_damage_is_exit_2_of_verify_and_named(run, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    (folder / "package" / "lora" / "README.md").write_text("other")
    done = editforge("verify", str(folder), cwd=tmp_path)
    assert done.code == 2
    assert "lora/README.md" in done.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("erase", ["no concept to erase"]),
        ("erase violin --no-such-option", ["No such option"]),
        ("erase violin --method uec", ["no method 'uec'", "did you mean uce", "list methods"]),
        ("erase violin --kind thing", ["kind", "'thing'", "object"]),
        ("erase violin --export lora,zip", ["package.export", "'zip'", "single-file"]),
        ("erase violin --set edit.rigde=1", ["edit.rigde", "did you mean ridge"]),
        ("erase violin --set nothing", ["key=value"]),
        ("erase violin --model nowhere", ["no such model", "nowhere", "emoji"]),
        ("erase violin --model /nowhere/at/all", ["no such model", "/nowhere/at/all"]),
        ("list tasks", ["no list of tasks", "methods"]),
        ("evaluate nowhere", ["no such folder", "nowhere"]),
        ("package nowhere", ["no run", "nowhere"]),
        ("verify nowhere", ["no such folder", "nowhere"]),
        ("inspect nowhere", ["no such file", "nowhere"]),
        ("nonsense", ["No such command"]),
    ],
)
def test_bad_arguments_exit_2_with_one_message(line, words, tmp_path):
    done = editforge(*line.split(), cwd=tmp_path)
    assert done.code == 2, (done.out, done.err)
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "kind", "what", "step"),
    [
        ("erase", "RecipeError", "no concept", "editforge erase violin"),
        ("erase violin --method uec", "RecipeError", "no method 'uec'", "editforge list methods"),
        ("erase violin --model ./no", "FamilyError", "no such model", ""),
        ("erase violin --no-such-option", "NoSuchOption", "--no-such-option", "editforge erase --help"),
        ("erase violin --seed x", "BadParameter", "--seed", "editforge erase --help"),
        ("verify", "MissingParameter", "DIR|REPO", "editforge verify --help"),
        ("nonsense", "UsageError", "No such command", "editforge --help"),
        ("inspect nowhere", "PackageError", "no such file", ""),
    ],
)  # fmt: skip
def test_json_of_a_refusal_is_one_object_with_the_four_parts(line, kind, what, step, tmp_path):
    done = editforge(*line.split(), "--json", cwd=tmp_path)
    assert done.code == 2
    assert len(done.out.splitlines()) == 1
    assert (set(done.json), done.json["exit"]) == ({"error", "exit"}, 2)
    error = done.json["error"]
    assert set(error) == {"type", "what", "got", "allowed", "next"}
    assert error["type"] == kind
    assert what in error["what"]
    assert step in (error["next"] or "")
    assert editforge(*line.split(), cwd=tmp_path).err == done.err  # a person reads the same


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        ("ZeroDivisionError('ours')", 70, "ZeroDivisionError"),
        ("KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("OSError(28, 'No space left on device')", 2, "OSError"),
        ("OSError(5, 'Input/output error')", 70, "OSError"),
    ],
)
def test_json_of_a_bug_an_interruption_and_a_full_disk_is_one_object(raised, code, kind, tmp_path):
    before = f"""
import editforge.run.order
def broken(*_, **__):
    raise {raised}
editforge.run.order.execute = broken
"""
    done = editforge("erase", "violin", "--json", cwd=tmp_path, before=before)
    assert done.code == code
    assert (done.json["exit"], done.json["error"]["type"]) == (code, kind)
    assert len(done.out.splitlines()) == 1
    plain = editforge("erase", "violin", cwd=tmp_path, before=before)
    assert (plain.code, plain.out) == (code, "")


def test_debug_shows_the_traceback_of_a_refusal(tmp_path):
    done = editforge("--debug", "erase", "violin", "--method", "uec", cwd=tmp_path)
    assert done.code == 2
    assert "Traceback" in done.err


def test_version_is_one_line(tmp_path):
    done = editforge("--version", cwd=tmp_path)
    assert (done.code, len(done.out.splitlines())) == (0, 1)


def test_a_question_that_nobody_answers_is_no_yes(run, tmp_path):
    done = editforge("push", str(run[0]), "someone/something", cwd=tmp_path)
    assert done.code == 2
    assert "nobody answered" in done.err
    assert "-y" in done.err
    assert "Traceback" not in done.err


# --- the gate's exit codes, on the real default -------------------------------------------------


# A fourth of the gate's pictures, drawn as the family draws them.
A_FOURTH = """
import functools
from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts
counts = Counts(name=16, least=8, names=8, images=2, reference=8)
gate.evaluate_gate = functools.partial(gate.evaluate_gate, counts=counts)
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(A_FOURTH, id="a fourth of the pictures"),
        pytest.param("", id="all pictures", marks=pytest.mark.slow),
    ],
)
def default_run(tmp_path_factory, request):
    """`editforge erase bicycle` as a user types it, with the real gate."""
    folder = tmp_path_factory.mktemp("default")
    return folder, editforge("erase", "bicycle", "--json", cwd=folder, before=request.param)


def test_erase_bicycle_erases_the_bicycle(default_run):
    _, done = default_run
    assert done.code == 0, done.err
    verdict = done.json["verdict"]
    assert (verdict["status"], verdict["passed"]) == ("erased", True)
    assert all(check["holds"] is not False for check in verdict["checks"])
    target = done.json["targets"]["bicycle"]
    assert f"'bicycle' becomes '{target}'" in done.err
    assert done.json["output"] == "runs/bicycle"


def test_the_run_folder_is_the_one_the_design_draws(default_run):
    folder = default_run[0] / "runs" / "bicycle"
    for name in (
        "recipe.yaml",
        "manifest.json",
        "mine/neighbors.yaml",
        "target/targets.yaml",
        "edit/weight_edit.safetensors",
        "evaluate/editforge_results.json",
        "evaluate/grid.png",
        "package/SHA256SUMS",
        "package/lora/README.md",
        "package/lora/pytorch_lora_weights.safetensors",
        "log/timings.json",
    ):
        assert (folder / name).is_file(), name
    assert not [path.name for path in folder.glob(".*") if path.name != ".lock"]


def test_a_finished_default_run_is_skipped_and_verifies(default_run):
    folder = default_run[0]
    stages = folder / "runs" / "bicycle"
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    again = editforge("erase", "bicycle", "--json", cwd=folder)
    assert (again.code, again.json) == (0, default_run[1].json)
    kept = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    assert kept == before
    assert editforge("verify", "runs/bicycle", cwd=folder).code == 0


def test_the_card_and_the_verdict_agree(default_run):
    package = default_run[0] / "runs" / "bicycle" / "package" / "lora"
    facts = json.loads((package / "editforge.json").read_text())
    assert facts["gate"]["status"] == "erased"
    assert facts["command"] == "editforge erase bicycle"


FEW_PICTURES = """
import functools
from editforge.evaluate import gate
from editforge.families import sampling
from editforge.evaluate.prompts import Counts
counts = Counts(name=8, least=4, names=4, images=2, reference=4)
sampler = sampling.Sampler(steps=3, guidance=4.0, batch=16)
sampling.default_sampler = lambda family: sampler
gate.evaluate_gate = functools.partial(gate.evaluate_gate, counts=counts)
"""


def test_a_failed_gate_exits_1_and_its_package_is_written_and_marked(tmp_path):
    line = ("erase", "violin", *QUICK, "--strength", "0.01", "--output", "weak", "--json")
    few = FEW_PICTURES.replace("steps=3", "steps=12")
    done = editforge(*line, cwd=tmp_path, before=few)
    assert done.code == 1, (done.out, done.err)
    verdict = done.json["verdict"]
    assert verdict["passed"] is False
    assert verdict["next"].startswith("editforge run recipe.yaml --set=strength=")
    assert f"next: {done.json['next']}" in done.err
    package = tmp_path / "weak" / "package"
    facts = json.loads((package / "lora" / "editforge.json").read_text())
    assert facts["gate"]["passed"] is False
    assert verdict["status"].split()[0] in (package / "lora" / "README.md").read_text().casefold()
    assert editforge("verify", "weak", cwd=tmp_path).code == 0
    pushed = editforge("push", "weak", "someone/weak", "--dry-run", cwd=tmp_path)
    assert pushed.code == 2
    assert "--allow-failed" in pushed.err


# --- the command on the card --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (("violin",), "editforge erase violin"),
        (("van gogh", "--kind", "style"), "editforge erase 'van gogh' --kind=style"),
        (("violin", "--judge", "none"), "editforge erase violin --judge=none"),
        (("violin", "--dtype", "float32"), "editforge erase violin --dtype=float32"),
        (("violin", "--set", "mine.words=words.txt"), "editforge run recipe.yaml --output run"),
        (("--concepts", "list.yaml"), "editforge run recipe.yaml --output run"),
        (("violin", "--method", "own.yaml"), "editforge run recipe.yaml --output run"),
        (("violin", "--model", "base"), "editforge run recipe.yaml --output run"),
        (("--", "-x"), "editforge erase -- -x"),
    ],
)
def test_the_recorded_command_says_everything_or_names_the_recipe(
    args, command, tmp_path, monkeypatch
):
    from editforge.cli import erase as module

    (tmp_path / "words.txt").write_text("horse\n")
    (tmp_path / "list.yaml").write_text("- {name: violin, aliases: [fiddle]}\n")
    (tmp_path / "own.yaml").write_text("seed: 3\n")
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    recorded = []
    monkeypatch.setattr(module, "_execute", lambda *rest: recorded.append(rest) or 0)
    assert app(["erase", *args], standalone_mode=False) == 0
    assert recorded[0][2] == command
    parses(command)


# --- examples -----------------------------------------------------------------------------------


def test_every_verb_has_an_example():
    named = {name for name, _ in examples()}
    assert named == set(clicks().commands)
    guards = {shlex.split(line)[2] for name, line in examples() if name == "guard"}
    assert guards == set(clicks().commands["guard"].commands)


@pytest.mark.parametrize(("verb", "line"), examples(), ids=lambda value: value)
def test_every_example_of_help_parses(verb, line):
    assert shlex.split(line)[1] == verb
    parses(line)


@pytest.mark.parametrize(
    "line",
    [
        line
        for verb, line in examples()
        if verb in ("list", "doctor", "verify") or "--dry-run" in line or verb == "inspect"
    ],
)
def test_cheap_examples_of_help_run(line, run, tmp_path):
    import shutil

    shutil.copytree(run[0], tmp_path / "runs" / "violin")
    lora = run[0] / "package" / "lora"
    shutil.copy(lora / "pytorch_lora_weights.safetensors", tmp_path / "eraser.safetensors")
    done = editforge(*shlex.split(line)[1:], cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.strip()


def test_a_bug_does_not_look_like_a_failed_gate(capsys):
    def broken() -> int:
        raise ZeroDivisionError("ours")

    assert guarded(broken) == 70
    assert "Traceback" in capsys.readouterr().err
