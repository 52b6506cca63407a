"""A run killed at any instant resumes to the same bytes; what changed is redone, and why is said.

The disk is watched with an audit hook: it sees every file opened for writing, every rename, folder
and removal, before it happens. A child process kills itself there, so each instant is exact.
"""

import json
import os
import shlex
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from editforge.artifacts.report import Remedy
from editforge.ground.disk import read_yaml
from editforge.ground.files import read_tensors
from editforge.recipe.layers import resolve
from editforge.run.hand import starting_from
from editforge.run.saved import remedy_of
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
WATCH = r"""
import os, re, signal, sys
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
        short = re.sub(r"\.[0-9a-f]{16}\.partial", ".partial", short)  # each write has its own
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
    assert len(drawn) >= 3
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


# The adaptive target and the list it comes from, nothing typed, nothing drawn.
CHOSEN = ("erase", "violin", *UNJUDGED, "--set", "target.judge=null", "--output", "run")
LORA = "package/lora/pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chosen")
    assert editforge(*CHOSEN, cwd=folder).code == 0
    return folder


@pytest.fixture
def own(chosen, tmp_path):
    shutil.copytree(chosen, tmp_path / "own")
    return tmp_path / "own"


def edited_by_hand(folder):
    return json.loads((folder / "run/package/lora/editforge.json").read_text())["provenance"].get(
        "edited_by_hand"
    )


def retarget(folder, word="guitar"):
    path = folder / "run/target/targets.yaml"
    old = read_yaml(path)["concepts"][0]["target"]
    text = path.read_text()
    path.write_text(text.replace(f"target: {old}", f"target: {word}", 1))
    return old, text


def neighbors_edit(folder):
    """The nearest preserved word goes with the concept instead, and a word is added."""
    path = folder / "run/mine/neighbors.yaml"
    text = path.read_text().replace("role: preserve", "role: erase", 1)
    row = "  - {word: saxophone, role: preserve, similarity: 0.5, displacement: 1}\n"
    path.write_text(text.replace("  words:\n", f"  words:\n{row}", 1))


def test_the_card_of_an_edited_target_says_so_and_its_log_claims_no_choice(own):
    old, _ = retarget(own)
    done = editforge(*CHOSEN, cwd=own)
    assert done.code == 0, done.err
    said = f"violin target: {old} -> guitar"
    assert f"by hand, target/targets.yaml: {said}" in done.err
    assert "'violin' becomes 'guitar': yours" in done.err
    assert "candidates;" not in done.err
    assert edited_by_hand(own) == [{"list": "targets.yaml", "changes": [said]}]
    lora = own / "run/package/lora"
    listed = read_yaml(lora / "reproduce/targets.yaml")
    assert listed["concepts"][0] == {
        "concept": "violin", "target": "guitar", "reason": "yours", "candidates": []
    }  # fmt: skip
    assert not (lora / "reproduce/neighbors.yaml").exists()
    told = json.loads((lora / "reproduce/reproduce.json").read_text())["edited_by_hand"]
    assert told == edited_by_hand(own)
    card = (lora / "README.md").read_text()
    assert "A person edited `targets.yaml`" in card
    assert f"violin target: {old} -\\> guitar" in card
    assert "editforge run recipe.yaml --output run" in card
    assert editforge("verify", "run", cwd=own).code == 0


@pytest.mark.parametrize("which", ["target", "mine", "both"])
def test_the_command_of_an_edited_run_gives_its_weights_in_a_folder_of_its_own(
    which, own, chosen, tmp_path
):
    if which != "mine":
        retarget(own)
    if which != "target":
        neighbors_edit(own)
    done = editforge(*CHOSEN, cwd=own)
    assert done.code == 0, done.err
    lists = {row["list"] for row in edited_by_hand(own)}
    wanted = {"target": {"targets.yaml"}, "mine": {"neighbors.yaml"}}
    assert lists == wanted.get(which, {"targets.yaml", "neighbors.yaml"})
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(own / "run/package/lora/reproduce", elsewhere)
    command = json.loads((own / "run/package/lora/editforge.json").read_text())["command"]
    again = editforge(*shlex.split(command)[1:], cwd=elsewhere)
    assert again.code == 0, again.err
    mine, theirs = (read_tensors(f / "run" / LORA) for f in (own, elsewhere))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    unedited = read_tensors(chosen / "run" / LORA)
    assert any(
        mine[n].shape != unedited[n].shape or not torch.equal(mine[n], unedited[n]) for n in mine
    )
    # and once more, from the package of the repetition
    third = tmp_path / "third"
    shutil.copytree(elsewhere / "run/package/lora/reproduce", third)
    for name in ("recipe.yaml", *sorted(lists)):
        assert (third / name).read_bytes() == (elsewhere / name).read_bytes()
    assert edited_by_hand(elsewhere)
    assert all(row["changes"] == ["given with the recipe"] for row in edited_by_hand(elsewhere))


def test_taking_an_edit_back_makes_the_run_what_it_was(own, chosen):
    _, text = retarget(own)
    assert editforge(*CHOSEN, cwd=own).code == 0
    assert result(own) != result(chosen)
    (own / "run/target/targets.yaml").write_text(text)
    done = editforge(*CHOSEN, cwd=own)
    assert "target: targets.yaml is again what was written" in done.err
    assert "by hand" not in done.err
    assert result(own) == result(chosen)
    # it follows its inputs again
    (own / "run/mine/neighbors.yaml").write_text(
        (own / "run/mine/neighbors.yaml").read_text().replace("role: preserve", "role: ignore", 1)
    )
    assert "target: redone" in editforge(*CHOSEN, cwd=own).err


def test_an_edit_of_an_edit_is_told_from_what_was_written(own):
    old, _ = retarget(own)
    assert editforge(*CHOSEN, cwd=own).code == 0
    retarget(own, "drum")
    assert editforge(*CHOSEN, cwd=own).code == 0
    said = f"violin target: {old} -> drum"
    assert edited_by_hand(own) == [{"list": "targets.yaml", "changes": [said]}]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("- {word: bear, reason: near violin}\n", "", "preserve bear: listed -> nothing"),
        ("preserve:\n", "preserve:\n- {word: drum}\n", "preserve drum: nothing -> listed"),
        ("# Edit and run again", "# I wrote here: edit and run again", None),
    ],
)
def test_every_change_of_the_targets_list_is_told(old, new, said, own):
    path = own / "run/target/targets.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert editforge(*CHOSEN, cwd=own).code == 0
    told = [said] if said else []
    assert edited_by_hand(own) == [{"list": "targets.yaml", "changes": told}]
    assert editforge("verify", "run", cwd=own).code == 0


def test_a_run_edited_by_an_earlier_version_says_that_it_was(own):
    retarget(own)
    assert editforge(*CHOSEN, cwd=own).code == 0
    path = own / "run/manifest.json"
    body = json.loads(path.read_text())
    del body["stages"]["target"]["written"]
    path.write_text(json.dumps(body))
    assert editforge(*CHOSEN, cwd=own).code == 0
    changes = ["what was written is not known"]
    assert edited_by_hand(own) == [{"list": "targets.yaml", "changes": changes}]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["target.use=file", "preserve=[drum]"], ["two preserve lists", "drum"]),
        (["target.use=file", "target.path=missing.yaml"], ["no such file", "missing.yaml"]),
        (["target.use=file", "target.path=other.yaml"], ["not erased", "'drum'"]),
        (["mine=[{use: file, path: other.yaml}]"], ["not a list of this version"]),
        (["mine=[{use: file, path: near.yaml}]"], ["not erased", "'drum'"]),
    ],
)
def test_a_list_that_does_not_fit_the_recipe_is_refused(sets, words, chosen, tmp_path):
    shutil.copy(chosen / "run/target/targets.yaml", tmp_path)
    for source, name in (
        ("target/targets.yaml", "other.yaml"),
        ("mine/neighbors.yaml", "near.yaml"),
    ):
        text = (chosen / "run" / source).read_text()
        (tmp_path / name).write_text(text.replace("concept: violin", "concept: drum"))
    done = editforge(*CHOSEN, *(f"--set={text}" for text in sets), cwd=tmp_path)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_the_hint_of_an_edited_run_starts_from_its_lists(own):
    """The gate fails on this one; what it proposes keeps what the person chose."""
    hand = {"target": ["violin target: dagger -> guitar"]}
    retarget(own)
    assert editforge(*CHOSEN, cwd=own).code == 0
    command, recipe = starting_from(own / "run", resolve(str(own / "run/recipe.yaml")), hand)
    assert recipe.target.use == "file"
    line = (*shlex.split(command)[1:], "--set=strength=1.2", "--output=next", "--json")
    done = editforge(*line, cwd=own)
    assert done.code == 0, done.err
    assert done.json["targets"] == {"violin": "guitar"}


def test_the_hint_for_an_edited_run_that_is_judged_again_starts_from_its_lists_too(own):
    retarget(own)
    assert editforge(*CHOSEN, cwd=own).code == 0
    failed = SimpleNamespace(verdict=SimpleNamespace(remedy=Remedy(strength=1.2)))
    hint = remedy_of(str(own / "run"), failed)
    done = editforge(*shlex.split(hint)[1:], "--json", cwd=own)
    assert done.code == 0, done.err
    assert done.json["targets"] == {"violin": "guitar"}


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
    slow = "from editforge.run.workspace import Workspace\nimport time\nold = Workspace.stage\n"
    slow += "def stage(self, step, *rest):\n    if step.name == 'edit':\n        time.sleep(3)\n"
    slow += "    return old(self, step, *rest)\nWorkspace.stage = stage\n"
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
