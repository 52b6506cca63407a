"""One run on several processes: the same result, a death told, a resume; and killed on one process.

`accelerate launch --cpu --num_processes 2` starts one process (accelerate 1.15 hands the CPU to mpirun);
`--multi_gpu` starts them with torchrun, without a GPU too, and `--device cpu` keeps them off one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from editforge import load_edit
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.team import Team, launch_notes
from tests.command import ENVIRONMENT, UNJUDGED, Done, editforge, start
from tests.models import family_file, tiny_folder
from tests.test_cli import FEW_PICTURES

# Ends the process with rank DIES after step 7 of 20; draws few pictures.
LAUNCHED = """
import os, signal, sys
from editforge.align import state
from tests.test_cli import FEW_PICTURES
exec(FEW_PICTURES)
done = state.State.advance
def advance(self, losses):
    done(self, losses)
    if self.step == 7 and os.environ["RANK"] == os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
state.State.advance = advance
sys.argv[0] = "editforge"
from editforge.cli.main import main
main()
"""
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou", "ea")
TAILS = [a + b for a in "bdgklmnrst" for b in ("a", "o")]  # 14 * 8 * 20 words: a list worth sharing
ALIGN = (
    "align={use: realera, steps: 20, batch: 3, rank: 2, precision: fp32, save_every: 5, "
    "erase_runs: 2, keep_runs: 4, kept_times: 2, sample_steps: 4}"
)


def line(align=ALIGN, judged=UNJUDGED):
    """RealEra on a tiny Stable Diffusion 1.x with random weights, whose checks bound nothing."""
    sets = [
        f"model.family={family_file('sd1')}",
        "mine=null",
        "edit.beyond=none",
        "edit.limits.residual=[10, 100]",
        "edit.limits.change=[10, 100]",
        "edit.limits.amplification=[50, 1000]",
        align,
    ]
    return (
        *("erase", "violin", "--method", "realera", "--model", str(tiny_folder("sd1"))),
        *("--device", "cpu", "--target", "trumpet", "--preserve", "guitar", "--output", "run"),
        *judged,
        *(word for text in sets for word in ("--set", text)),
    )


def launch(folder: Path, *words: str, **environment: str):
    """`accelerate launch` on a port of its own."""
    script = folder / "launched.py"
    script.write_text(LAUNCHED)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [*launcher, str(script), *words],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def together(folder: Path, *words: str, **environment: str) -> Done:
    """The two processes that a launcher starts, forked from one that has imported everything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", **environment}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        before = f"import os\nos.environ.update({own!r})\n{FEW_PICTURES}"
        both.append(start(*words, cwd=folder, before=before))
    done = [process.wait() for process in both]
    code = next((one.code for one in done if one.code), 0)
    return Done(code, "".join(one.out for one in done), "".join(one.err for one in done))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("log", ".lock")
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    done = editforge(*line(), cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = launch(folder, *line())
    assert done.returncode == 0, done.stderr
    return folder, done


def norm(edit: WeightEdit) -> float:
    return sum(float(edit.delta(name).square().sum()) for name in edit.factors) ** 0.5


def test_two_processes_train_the_lora_of_one(one, two):
    """20 float32 steps of 3 samples: one process has two of them, the other one."""
    start = WeightEdit.load(one / "run/edit/weight_edit.safetensors")
    alone, shared = load_edit(one / "run"), load_edit(two[0] / "run")
    lora = norm(alone + start.scaled(-1.0))
    assert lora > 1e-3
    assert norm(alone + shared.scaled(-1.0)) < 1e-3 * lora


GAME = (
    "align={use: age, steps: 10, batch: 3, rank: 2, precision: fp32, save_every: 5, pi_lr: 0.3, "
    "erase_runs: 2, keep_runs: 1, kept_times: 2, sample_steps: 4, lead_runs: 2, temperature: 1.0}"
)


def test_two_processes_play_the_game_of_one(tmp_path):
    """They draw the same noise for the same samples, so they learn the same targets."""
    listed = ("guitar", "trumpet", "piano", "house", "dog", "cat")
    found = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "words.txt").write_text("\n".join(listed) + "\n")
        mined = "mine={use: vocabulary, words: words.txt, skip_top: 0, min_variant_similarity: 2.0}"
        asked = line(GAME)
        sets = ("--set", mined, "--set", "edit=null")
        words = (*asked, *sets)
        done = together(folder, *words) if count > 1 else editforge(*words, cwd=folder)
        assert done.code == 0, done.err
        told = json.loads((folder / "run/log/align/trajectory.json").read_text())
        found.append((load_edit(folder / "run"), told["led"]))
    (alone, own), (shared, theirs) = found
    assert [row["word"] for row in own["violin"]] == [row["word"] for row in theirs["violin"]]
    targets = [edit.provenance["align"]["targets"]["violin"] for edit in (alone, shared)]
    assert [word for word, _ in targets[0]] == [word for word, _ in targets[1]]
    assert [share for _, share in targets[0]] == pytest.approx([s for _, s in targets[1]], rel=1e-3)
    assert norm(alone + shared.scaled(-1.0)) < 1e-3 * norm(alone)


def test_one_of_two_processes_speaks(two):
    folder, done = two
    assert done.stdout.count("package:") == 1
    assert done.stderr.count("becomes 'trumpet'") == 1
    assert not list((folder / "run").glob(".*.partial"))


@pytest.mark.parametrize("rank", ["1", pytest.param("0", marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_run_clearly_and_the_run_resumes(rank, two, tmp_path):
    killed = launch(tmp_path, *line(), DIES=rank)
    assert killed.returncode != 0
    assert "another process of this run ended" in killed.stderr
    assert "goes on from the last checkpoint" in killed.stderr
    work = tmp_path / "run/.align.partial/work"
    assert (work / "checkpoint.safetensors").is_file()
    resumed = together(tmp_path, *line())
    assert resumed.code == 0, resumed.err
    assert contents(tmp_path / "run") == contents(two[0] / "run")


def test_evaluation_is_shared_and_gives_the_same_bytes(tmp_path):
    words = line("align=null", ("--judge", "none"))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    apart = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(alone / 'cache')!r}\n{FEW_PICTURES}"
    assert editforge(*words, cwd=alone, before=apart).code == 0
    done = together(shared, *words, XDG_CACHE_HOME=str(shared / "cache"))
    assert done.code == 0, done.err
    assert contents(shared / "run") == contents(alone / "run")


def test_mining_is_shared_and_gives_the_same_bytes(tmp_path):
    listing = tmp_path / "words.txt"
    listing.write_text(
        "\n".join(f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in VOWELS for c in TAILS)
    )
    words = (*line("align=null"), "--set", f"mine=[{{use: vocabulary, words: {listing}}}]")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    apart = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(alone / 'cache')!r}\n"
    assert editforge(*words, cwd=alone, before=apart).code == 0
    done = together(shared, *words, XDG_CACHE_HOME=str(shared / "cache"))
    assert done.code == 0, done.err
    (kept,) = (alone / "cache/editforge/words").glob("*.safetensors")
    assert (shared / "cache/editforge/words" / kept.name).read_bytes() == kept.read_bytes()
    mined = [folder / "run/mine/neighbors.yaml" for folder in (alone, shared)]
    assert mined[0].read_bytes() == mined[1].read_bytes()


def test_a_refusal_ends_all_processes_and_says_why(two, tmp_path):
    shutil.copytree(two[0] / "run", tmp_path / "run")
    before = contents(tmp_path / "run")
    done = together(tmp_path, *line(), "--seed", "5")
    assert done.code != 0
    assert "another recipe" in done.err
    assert "seed: 0 there, 5 now" in done.err
    assert contents(tmp_path / "run") == before


# --- one process --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 5, 13, 20])
def test_a_training_killed_at_any_step_resumes_to_the_same_bytes(step, one, tmp_path):
    """SIGKILL before the first checkpoint, on one, between two, and after the last step."""
    before = f"""
import os, signal
from editforge.align import state
done = state.State.advance
def advance(self, losses):
    done(self, losses)
    if self.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
state.State.advance = advance
"""
    assert editforge(*line(), cwd=tmp_path, before=before).code == -signal.SIGKILL
    assert not (tmp_path / "run/align").exists()
    resumed = editforge(*line(), cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert contents(tmp_path / "run") == contents(one / "run")


def test_a_team_of_one_waits_for_nobody_and_sums_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # and imports nothing
    team, tensor = Team.join(), torch.ones(3)
    team.wait()
    assert (team.leads, team.size, team.tell("x")) == (True, 1, "x")
    assert team.sum(tensor) is tensor


def test_what_a_launcher_asks_for_in_vain_is_said(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert launch_notes() == []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "--multi_gpu" in launch_notes()[0]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch_notes() == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launch_notes() == ["FSDP is not used: every process holds the whole denoiser"]
