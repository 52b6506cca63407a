"""What can be refused is refused before the first weight is read, by a run and by its dry run alike."""

from __future__ import annotations

import pytest
import torch

from editforge.families.config import ModelConfig
from editforge.families.open import chosen_device, open_model
from editforge.ground.errors import EditforgeError, FamilyError
from editforge.run.public import portable
from tests.command import QUICK, UNJUDGED, editforge
from tests.models import family_file, tiny_folder

UNREAD = """
from editforge.families.model import Model
def read(*_, **__):
    raise SystemError("a weight was read")
Model._load = Model.weight = Model.pipeline = read
Model.digest = Model.base_sha256 = property(read)
"""
REALERA = "--method realera --set align"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    done = editforge("erase", "violin", *QUICK, *UNJUDGED, "--output", "run", cwd=folder)
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--judge nofolder", ["no judge there", "nofolder", "model.safetensors"]),
        ("--judge half", ["no judge there", "half has no model.safetensors"]),
        ("--from missing", ["no earlier edit", "missing", "--from"]),
        ("--from words.txt", ["words.txt"]),
        ("--from {earlier}", ["another method", "ridge", "mean-shift"]),
        ("--from {earlier} --method uce --target guitar", ["erases this already", "violin"]),
        ("--device nonsense", ["no such device here", "nonsense", "cpu", "editforge doctor"]),
        ("--device cuda:7", ["no such device here", "cuda:7"]),
        ("--device cpu:x", ["no such device here"]),
        ("--dtype float8", ["unknown dtype", "float8"]),
        ("--export single-file", ["family emoji cannot export this", "single-file", "pipeline"]),
        ("--export lora,lora", ["cannot export this", "lora, lora"]),
        ("--set package.dtype=float8", ["package.dtype", "float8", "bfloat16"]),
        ("--set model.family=lost.yaml", ["no such file", "lost.yaml"]),
        ("--set model.family=emojy", ["no family", "did you mean emoji", "editforge list families"]),
        ("--set model.config=./nowhere", ["no configs", "./nowhere"]),
        ("--model ./nowhere", ["no such model", "./nowhere"]),
        ("--set mine.words=lost.txt", ["no such word list", "lost.txt"]),
        ("--set mine.words=empty.txt", ["word list is empty", "empty.txt"]),
        ("--set edit.background=lost.txt", ["no such word list", "lost.txt"]),
        ("--set edit.templates=[x]", ["a template lacks its place"]),
        ("--method uce --set edit.background=lost.txt", ["no such word list"]),
        ("--method uce --set edit.beyond=captions", ["no captions to hold"]),
        ("--method uce --set edit.beyond=all --set edit.captions=lost", ["no such caption file"]),
        ("--target violin", ["nothing would be erased"]),
        ("--set target={use: fixed, texts: {violn: cat}}", ["texts names no erased", "violin"]),
        ("--set target={use: file, path: lost.yaml}", ["no such file", "lost.yaml"]),
        ("--set mine={use: file, path: words.txt}", ["words.txt is not a list of this version"]),
        (f"--target {'word ' * 40}", ["cut off by the text encoder"]),
        (f"--preserve {'word ' * 30}end", ["cut off by the text encoder"]),
        (f"--method uce --set edit.templates=['{'of ' * 40}{{n}}']", ["cut off by the text encoder"]),
        (f"{REALERA}.modules=[attn2.to_kay]", ["no linear map ends in", "attn2.to_k"]),
    ],
)  # fmt: skip
def test_a_run_and_its_dry_run_refuse_alike_and_read_no_weight(line, words, earlier, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("# no word\n")
    (tmp_path / "words.txt").write_text("lion\n")
    before = sorted(tmp_path.rglob("*"))
    options = [
        part for part in split(line.format(earlier=earlier) if "{earlier}" in line else line)
    ]
    told = []
    for more in (["--dry-run"], ["--output", "run"]):
        done = editforge("erase", "violin", *options, *more, cwd=tmp_path, before=UNREAD)
        assert done.code == 2, (more, done.err)
        assert "Traceback" not in done.err
        assert sorted(tmp_path.rglob("*")) == before
        told.append(done.err)
    assert told[0] == told[1]
    for word in words:
        assert word in told[0]


def split(line):
    """`--key the whole value --key ...`: values may hold blanks."""
    for part in line.strip().split("--")[1:]:
        key, _, value = part.strip().partition(" ")
        yield from (f"--{key}", value)


def test_a_text_too_long_for_a_file_name_is_a_text():
    long = "a/" + "long " * 60
    assert portable({"text": long}) == {"text": long}


def test_the_positive_control_a_dry_run_reads_no_weight_and_a_run_does(tmp_path):
    planned = editforge("erase", "violin", "--dry-run", cwd=tmp_path, before=UNREAD)
    assert planned.code == 0, planned.err
    done = editforge("erase", "violin", *UNJUDGED, cwd=tmp_path, before=UNREAD)
    assert done.code == 70
    assert "a weight was read" in done.err


def test_a_device_is_one_of_this_computer(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    for name in ("cuda", "cuda:0", "mps:9", "gpu", "", "cuda:-1"):
        with pytest.raises(FamilyError, match="no such device here") as caught:
            chosen_device(name)
        assert caught.value.allowed.startswith("auto, cpu")
    with pytest.raises(FamilyError, match="no such device"), open_model(ModelConfig(device="gpu")):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [chosen_device(name) for name in ("auto", "cuda", "cuda:1")] == [
        "cuda",
        "cuda",
        "cuda:1",
    ]
    with pytest.raises(EditforgeError, match="cuda:2"):
        chosen_device("cuda:2")


def test_a_single_file_of_a_model_that_predicts_velocity_is_refused_at_once(tmp_path):
    line = ("--model", str(tiny_folder("sd2")), "--set", f"model.family={family_file('sd2')}")
    for export, code in (("pipeline", 0), ("single-file", 2)):
        planned = editforge("erase", "violin", *line, "--export", export, "--dry-run", cwd=tmp_path)
        assert planned.code == code, planned.err
