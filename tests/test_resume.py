"""A run killed at any instant resumes to the same bytes; what changed is redone, and why is said.

The disk is watched with an audit hook: it sees every file opened for writing, every rename, folder
and removal, before it happens. A child process kills itself there, so each instant is exact.
"""

import json
import os
import shutil
import signal
import time

import pytest

from tests.command import QUICK, UNJUDGED, editforge, start
from tests.test_cli import FEW_PICTURES

WORDS = "horse\ndrum\nguitar\npiano\ntrumpet\nsaxophone\nhammer\nbanana\nsnake\nspoon\ntree\nboat\n"
LINE = (
    "erase",
    "violin",
    "--method",
    "uce",
    "--target",
    "trumpet",
    "--set",
    "mine.words=words.txt",
)
OPTIONS = (*LINE, "--set", "mine.skip_top=0", "--set", "edit.background=null", "--output", "run")
PLAIN, JUDGED = (*OPTIONS, *UNJUDGED), (*OPTIONS, "--judge", "none")
STAGES = ("mine", "target", "edit", "evaluate", "package")

# `die(step)` is asked before each step on the disk below the working folder.
WATCH = """
import os, signal, sys
from pathlib import Path
root = os.getcwd() + "/"
def steps(event, args):
    if event == "open":
        path, mode, flags = args
        if not flags & (os.O_WRONLY | os.O_RDWR):
            return
        names = [path]
    elif event in ("os.rename", "os.mkdir", "shutil.rmtree", "os.remove"):
        names = args[: 2 if event == "os.rename" else 1]
    else:
        return
    names = [os.fspath(name) for name in names if isinstance(name, (str, os.PathLike))]
    names = [os.path.abspath(name) for name in names]
    if names and all(name.startswith(root) for name in names):
        short = " ".join(name[len(root):] for name in names)
        if die(f"{event} {short}"):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(steps)
"""


def dies_before(step):
    return f"die = lambda step: step == {step!r}\n" + WATCH + FEW_PICTURES


def run(folder, *more, before=FEW_PICTURES, options=PLAIN):
    return editforge(*options, *more, cwd=folder, before=before)


def prepared(folder):
    folder.mkdir(exist_ok=True)
    (folder / "words.txt").write_text(WORDS)
    return folder


def result(folder):
    """The bytes that a run promises: everything but its log, its lock and its versions."""
    run = folder / "run"
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.parts[len(run.parts)] not in ("log", ".lock")
    }


RECORD = (
    "import sys\ndie = lambda step: print('STEP', step, file=sys.stderr)\n" + WATCH + FEW_PICTURES
)


def recorded(done):
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    return [line.removeprefix("STEP ") for line in lines if line.startswith("STEP ")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run without pictures, and its steps on the disk. Tests read it."""
    folder = prepared(tmp_path_factory.mktemp("undisturbed"))
    return folder, recorded(run(folder, "-q", before=RECORD))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The same with a few pictures, not judged."""
    folder = prepared(tmp_path_factory.mktemp("judged"))
    return folder, recorded(run(folder, "-q", before=RECORD, options=JUDGED))


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A finished run of one's own to spoil."""
    shutil.copytree(undisturbed[0], tmp_path / "copy")
    return tmp_path / "copy"


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("instant", ["writing", "renaming", "recording"])
def test_a_killed_run_resumes_to_the_same_bytes(stage, instant, tmp_path, request):
    """Half written; written but not in place; in place but not in the manifest."""
    place = f"run/.{stage}.partial/out"
    options = JUDGED if stage == "evaluate" else PLAIN
    whole, steps = request.getfixturevalue("judged" if stage == "evaluate" else "undisturbed")
    first = next(step for step in steps if step.startswith(f"open {place}"))
    moved = steps.index(f"os.rename {place} run/{stage}")
    step = {
        "writing": first,
        "renaming": steps[moved],
        "recording": steps[moved + 1],
    }[instant]
    folder = prepared(tmp_path / "run")
    # The manifest is written once per stage under one name: count to the right one.
    nth = steps[: moved + 1].count(step) if instant == "recording" else 0
    before = f"""
seen = []
def die(step):
    seen.append(step)
    return step == {step!r} and seen.count(step) > {nth}
"""
    killed = run(folder, before=before + WATCH + FEW_PICTURES, options=options)
    assert killed.code == -signal.SIGKILL
    assert (folder / "run" / stage).is_dir() is (instant == "recording")
    done = run(folder, options=options)
    assert done.code == 0, done.err
    assert result(folder) == result(whole)
    assert sorted(path.name for path in (folder / "run").glob(".*")) == [".lock"]


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(undisturbed, tmp_path):
    """Each start dies before a kind of step that no start before it survived to take."""
    folder = prepared(tmp_path / "run")
    before = """
from pathlib import Path
log = Path("../survived")
known = set(log.read_text().splitlines()) if log.exists() else set()
def die(step):
    event, path = step.split()[:2]
    kind = event + " " + "/".join(path.split("/")[:3])
    if "log" in kind or "words" in kind or kind in known:
        return False
    with open(log, "a") as file:
        file.write(kind + "\\n")
    return True
"""
    for _ in range(120):
        done = run(folder, before=before + WATCH + FEW_PICTURES)
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL, done.err
    assert len((tmp_path / "survived").read_text().splitlines()) > 20
    assert result(folder) == result(undisturbed[0])


def test_a_killed_evaluation_keeps_the_pictures_it_drew(judged, tmp_path):
    folder = prepared(tmp_path / "run")
    _, steps = judged
    drawn = [s for s in steps if s.startswith("open run/.evaluate.partial/work/")]
    assert len(drawn) > 3
    killed = run(folder, before=dies_before(drawn[-1]), options=JUDGED)
    assert killed.code == -signal.SIGKILL
    kept = list((folder / "run/.evaluate.partial/work").glob("*"))
    assert len(kept) == len(drawn) - 1
    steps = recorded(run(folder, before=RECORD, options=JUDGED))
    assert [s for s in steps if s.startswith("open run/.evaluate.partial/work/")] == drawn[-1:]
    assert result(folder) == result(judged[0])


def test_a_run_killed_from_outside_while_it_draws_resumes(judged, tmp_path):
    """No hook: a driver sends SIGKILL when the folder of the stage appears."""
    folder = prepared(tmp_path / "run")
    running = start(*JUDGED, cwd=folder, before=FEW_PICTURES)
    deadline = time.monotonic() + 60
    while not list((folder / "run").glob(".evaluate.partial/work/*")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert run(folder, options=JUDGED).code == 0
    assert result(folder) == result(judged[0])


def test_ctrl_c_exits_130_says_so_and_resumes(judged, tmp_path):
    folder = prepared(tmp_path / "run")
    running = start(*JUDGED, cwd=folder, before=FEW_PICTURES)
    deadline = time.monotonic() + 60
    while not list((folder / "run").glob(".evaluate.partial/work/*")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGINT)
    done = running.wait()
    assert done.code == 130
    assert done.err.strip().splitlines()[-1].endswith("the same command goes on from here")
    assert "Traceback" not in done.err
    assert run(folder, options=JUDGED).code == 0
    assert result(folder) == result(judged[0])


# --- the same again -----------------------------------------------------------------------------


def test_two_folders_hold_the_same_package(undisturbed, tmp_path):
    other = prepared(tmp_path / "elsewhere with a space")
    done = run(other)
    assert done.code == 0, done.err
    assert result(other) == result(undisturbed[0])
    assert (other / "run/package/SHA256SUMS").stat().st_size > 100


def test_another_seed_gives_another_package(undisturbed, tmp_path):
    """The positive control of equal bytes."""
    other = prepared(tmp_path / "other")
    assert run(other, "--strength", "0.5").code == 0
    name = "package/lora/pytorch_lora_weights.safetensors"
    assert result(other)[name] != result(undisturbed[0])[name]


@pytest.mark.slow
def test_the_real_gate_killed_half_way_ends_with_the_same_bytes(tmp_path):
    """The default recipe with all of its 384 pictures, twice: three minutes."""
    line = ("erase", "violin", "--output", "run")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert editforge(*line, cwd=whole).code == 0
    running = start(*line, cwd=broken)
    while len(list((broken / "run").glob(".evaluate.partial/work/*.safetensors"))) < 4:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert editforge(*line, cwd=broken).code == 0
    assert result(broken) == result(whole)


def test_a_finished_run_writes_nothing(copy):
    steps = recorded(run(copy, before=RECORD))
    wrote = {step for step in steps if step.startswith(("open", "os.rename", "os.remove"))}
    assert wrote == {"open run/.lock"}


# --- damaged and edited -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("edit/weight_edit.safetensors", "edit"),
        ("package/lora/README.md", "package"),
        ("package/SHA256SUMS", "package"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_redone_and_the_reason_said(name, stage, damage, copy, undisturbed):
    path = copy / "run" / name
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1])
    done = run(copy)
    assert done.code == 0, done.err
    file = name.partition("/")[2]
    assert f"{stage}: redone, {file} is not what was written" in done.err
    assert done.err.count(": redone") == 1
    assert result(copy) == result(undisturbed[0])


@pytest.mark.parametrize("name", ["grid.png", "editforge_results.json"])
def test_a_damaged_report_is_judged_again(name, judged, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(judged[0], folder)
    (folder / "run/evaluate" / name).write_bytes(b"{}")
    done = run(folder, options=JUDGED)
    assert f"evaluate: redone, {name} is not what was written" in done.err
    assert done.err.count(": redone") == 1
    assert result(folder) == result(judged[0])


def test_a_missing_folder_is_redone(copy, undisturbed):
    shutil.rmtree(copy / "run" / "edit")
    done = run(copy)
    assert "edit: redone, its folder is gone" in done.err
    assert result(copy) == result(undisturbed[0])


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema": "editforge.run/1", "stages": []}', "\x00\xff",
     '{"schema": "editforge.run/1", "stages": {"mine": 3}}',
     '{"schema": "editforge.run/1", "stages": {"mine": {"digest": "x"}}}'],
)  # fmt: skip
def test_a_damaged_manifest_is_said_and_every_stage_redone(text, copy, undisturbed):
    (copy / "run" / "manifest.json").write_bytes(text.encode("latin-1"))
    done = run(copy)
    assert done.code == 0, done.err
    assert "manifest.json is damaged: every stage is redone" in done.err
    assert result(copy) == result(undisturbed[0])


def test_an_edited_target_is_kept_and_the_edit_follows_it(copy, undisturbed):
    path = copy / "run/target/targets.yaml"
    text = path.read_text().replace("target: trumpet", "target: guitar")
    assert text != path.read_text()
    path.write_text(text)
    done = run(copy, "--json")
    assert done.code == 0, done.err
    assert "target: your targets.yaml is kept" in done.err
    assert done.json["targets"] == {"violin": "guitar"}
    assert path.read_text() == text
    now, then = result(copy), result(undisturbed[0])
    name = "package/lora/pytorch_lora_weights.safetensors"
    assert now[name] != then[name]
    facts = json.loads(now["package/lora/editforge.json"])
    assert facts["provenance"]["erased"][0]["target"] == "guitar"
    again = run(copy)
    assert "redone" not in again.err
    assert result(copy) == now


def test_edited_neighbors_are_kept_and_change_what_is_preserved(tmp_path):
    folder = prepared(tmp_path)
    line = (*PLAIN, "--set", "mine.num_preserve=2")
    assert editforge(*line, cwd=folder).code == 0
    path = folder / "run/mine/neighbors.yaml"
    before = (folder / "run/target/targets.yaml").read_text()
    assert "role: preserve" in path.read_text()
    path.write_text(path.read_text().replace("role: preserve", "role: ignore"))
    done = editforge(*line, cwd=folder)
    assert done.code == 0, done.err
    assert "mine: your neighbors.yaml is kept" in done.err
    assert "target: redone, something it depends on changed" in done.err
    after = (folder / "run/target/targets.yaml").read_text()
    assert ("near violin" in before, "near violin" in after) == (True, False)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("target: trumpet", "target: violin", ["nothing would be erased"]),
        ("target: trumpet", "targte: trumpet", ["targte", "mend the line"]),
        ("editforge.targets/1", "editforge.targets/9", ["not a list of this version"]),
        ("concepts:", "concepts: [", ["not readable YAML"]),
        ("concept: violin", "concept: drum", ["drum"]),
    ],
)
def test_a_list_edited_into_nonsense_is_refused_and_kept(old, new, words, copy):
    path = copy / "run/target/targets.yaml"
    text = path.read_text().replace(old, new, 1)
    path.write_text(text)
    kept = result(copy)
    done = run(copy)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert result(copy) == kept


# --- whose folder -------------------------------------------------------------------------------


def test_another_recipe_is_refused_and_the_differing_keys_named(copy):
    kept = result(copy)
    done = run(copy, "--seed", "3", "--set", "edit.ridge=1e-3")
    assert done.code == 2
    assert "another recipe" in done.err
    assert "seed: 0 there, 3 now" in done.err
    assert "edit.ridge" in done.err
    assert "strength" not in done.err
    assert result(copy) == kept


def test_the_run_of_its_own_recipe_file_resumes(copy):
    """`editforge run runs/x/recipe.yaml --output runs/x` is the promise of the help text."""
    kept = result(copy)
    done = editforge("run", "run/recipe.yaml", "--output", "run", cwd=copy, before=FEW_PICTURES)
    assert done.code == 0, done.err
    name = "package/lora/pytorch_lora_weights.safetensors"
    assert result(copy)[name] == kept[name]
    assert "edit: redone" not in done.err


def test_a_folder_that_is_no_run_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    done = editforge("erase", "violin", *QUICK, "--output", "thesis", cwd=tmp_path)
    assert done.code == 2
    assert "chapter.tex" in done.err
    assert "--output" in done.err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_file_as_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = editforge("erase", "violin", *QUICK, "--output", "file", cwd=tmp_path)
    assert (done.code, (tmp_path / "file").read_text()) == (2, "mine")
    assert "the output is a file" in done.err


def test_a_refused_first_run_leaves_nothing_and_the_mended_command_runs(tmp_path):
    wrong = editforge("erase", "violin", *QUICK, *UNJUDGED, "--model", "typo", cwd=tmp_path)
    assert wrong.code == 2
    assert list(tmp_path.iterdir()) == []
    assert editforge("erase", "violin", *QUICK, *UNJUDGED, cwd=tmp_path).code == 0


def test_two_processes_in_one_run_are_refused(tmp_path):
    folder = prepared(tmp_path)
    slow = "from editforge.workspace import Workspace\nimport time\nold = Workspace.stage\n"
    slow += "def stage(self, name, *rest):\n    if name == 'edit':\n        time.sleep(3)\n"
    slow += "    return old(self, name, *rest)\nWorkspace.stage = stage\n"
    line = ("erase", "violin", *QUICK, *UNJUDGED, "--output", "run")
    first = start(*line, cwd=folder, before=slow)
    while not (folder / "run" / "target").is_dir():
        time.sleep(0.01)
    second = editforge(*line, cwd=folder)
    assert second.code == 2
    assert "another process works in this run" in second.err
    third = editforge("package", "run", "--export", "unet", cwd=folder)
    assert third.code == 2
    assert "another process" in third.err
    assert first.wait().code == 0
    assert (folder / "run/package/lora").is_dir()


# --- package again ------------------------------------------------------------------------------


def test_package_exports_more_without_solving_again(copy):
    old = result(copy)
    done = editforge("package", "run", "--export", "lora,unet", "--json", cwd=copy)
    assert done.code == 0, done.err
    assert "package: redone" in done.err
    assert "edit: redone" not in done.err
    new = result(copy)
    for name in old:
        if name.startswith(("mine/", "target/", "edit/", "evaluate/")):
            assert new[name] == old[name]
    lora = "package/lora/pytorch_lora_weights.safetensors"
    assert new[lora] == old[lora]
    assert any(name.startswith("package/unet/") for name in new)
    facts = json.loads(new["package/unet/editforge.json"])
    assert facts["command"] == "editforge run recipe.yaml --output run"
    assert editforge("verify", "run", cwd=copy).code == 0


@pytest.mark.parametrize("export", ["lora,single-file", "zip", "", "lora,lora"])
def test_a_refused_export_leaves_the_run_as_it_was(export, copy):
    old = result(copy)
    done = editforge("package", "run", "--export", export, cwd=copy)
    assert done.code == 2, (done.out, done.err)
    assert "Traceback" not in done.err
    new = {name: data for name, data in result(copy).items() if ".partial" not in name}
    assert new == old
    assert run(copy).code == 0


def test_an_export_killed_half_way_leaves_a_run_that_resumes(copy, undisturbed):
    step = "os.rename run/package run/.package.old"
    killed = editforge("package", "run", "--export", "unet", cwd=copy, before=dies_before(step))
    assert killed.code == -signal.SIGKILL
    assert (copy / "run" / "recipe.yaml").read_bytes() == result(undisturbed[0])["recipe.yaml"]
    assert run(copy).code == 0
    assert result(copy) == result(undisturbed[0])
