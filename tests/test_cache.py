"""Base pictures are drawn once between runs, and a run that finds them ends with the same bytes."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts, Prompt
from editforge.families import draw, pictures, sampling
from editforge.families.draw import Sampler, sample
from editforge.families.model import Model, Origin
from editforge.ground.errors import RecipeError
from editforge.recipe.layers import resolve
from editforge.run.order import execute
from tests.models import LOOSE, family_file, recipe
from tests.tiny import save_tiny, tiny_pipeline

ONE = Sampler(steps=1, batch=2)
PROMPTS = [
    Prompt(id="p", set="name", name="owl", concept="owl", text="an owl", template="t1",
           labels=("owl",), seeds=(0, 1, 2))
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache of pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EDITFORGE_PICTURES", raising=False)
    return tmp_path / "cache" / "editforge" / "pictures"


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """How many pictures each call of the pipeline drew."""
    counts: list[int] = []
    own = draw._draw
    monkeypatch.setattr(
        draw,
        "_draw",
        lambda pipe, batch, *rest: counts.append(len(batch)) or own(pipe, batch, *rest),
    )
    return counts


def shown(pipe, base: str | None = "the base", sampler: Sampler = ONE, **options):
    options = {"progress": False, "dtype": "float32", **options}
    return sample(pipe, PROMPTS, sampler, base=base, **options)


def test_a_base_draws_a_batch_once_and_gives_the_same_bytes(folder, drawn):
    pipe = tiny_pipeline("sd1")
    first = shown(pipe)
    assert drawn == [2, 1]
    assert np.array_equal(shown(tiny_pipeline("sd1")), first)
    assert drawn == [2, 1]
    assert len(list(folder.iterdir())) == 2
    assert np.array_equal(shown(pipe, base=None), first)  # what nobody named is never served
    assert drawn == [2, 1, 2, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"base": "another"},
        {"sampler": Sampler(steps=2, batch=2)},
        {"sampler": Sampler(steps=1, batch=2, guidance=3.0)},
        {"sampler": Sampler(steps=1, batch=3)},
        {"sampler": Sampler(steps=1, batch=2, size=32)},
        {"dtype": "bfloat16"},
        "scheduler",
        "threads",
    ],
    ids=str,
)
def test_whatever_decides_a_picture_is_in_its_key(change, drawn, monkeypatch):
    pipe = tiny_pipeline("sd1")
    shown(pipe)
    drawn.clear()
    if change == "scheduler":
        config = pipe.scheduler.config | {"beta_end": 0.02}
        pipe.scheduler = pipe.scheduler.from_config(config)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    shown(pipe, **(change if isinstance(change, dict) else {}))
    assert sum(drawn) == 3


@pytest.mark.parametrize("damage", [b"", b"no pictures", "cut", "flipped"], ids=str)
def test_what_is_damaged_is_drawn_again(damage, folder, drawn):
    pipe = tiny_pipeline("sd1")
    first = shown(pipe)
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[-9] ^= 1
        path.write_bytes(data[:-5] if damage == "cut" else damage if damage != "flipped" else data)
    drawn.clear()
    assert np.array_equal(shown(pipe), first)
    assert drawn == [2, 1]
    drawn.clear()
    assert np.array_equal(shown(pipe), first)
    assert drawn == []


def test_the_longest_unused_go_first_and_zero_keeps_nothing(folder, drawn, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
    monkeypatch.setenv("EDITFORGE_PICTURES", "2")  # two of them and no third
    for number, key in enumerate("abc"):
        pictures.keep_pictures(key, noise)
        path = pictures._path(key)
        os.utime(path, (number, number))
        if key == "b":
            assert np.array_equal(pictures.recall_pictures("a", noise.shape), noise)
    assert pictures.recall_pictures("b", noise.shape) is None
    assert pictures.recall_pictures("a", noise.shape) is not None
    assert pictures.recall_pictures("c", noise.shape) is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * 10**6
    monkeypatch.setenv("EDITFORGE_PICTURES", "0")
    pipe = tiny_pipeline("sd1")
    for _ in range(2):
        shown(pipe)
    assert drawn == [2, 1, 2, 1]
    monkeypatch.setenv("EDITFORGE_PICTURES", "many")
    with pytest.raises(RecipeError, match="EDITFORGE_PICTURES") as caught:
        shown(pipe)
    assert caught.value.got == "many"


def test_a_cache_that_cannot_be_written_costs_no_run(folder, drawn):
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    assert shown(tiny_pipeline("sd1")).shape == (3, 64, 64, 3)


def test_a_killed_run_resumes_from_its_own_folder_also_after_a_hit(tmp_path, drawn):
    pipe = tiny_pipeline("sd1")
    first = shown(pipe)
    shown(pipe, workdir=tmp_path / "work", weights="mine")
    drawn.clear()
    again = shown(pipe, base=None, workdir=tmp_path / "work", weights="mine")
    assert np.array_equal(again, first)
    assert drawn == []


def test_a_gate_keeps_what_the_base_drew_and_nothing_of_the_edited(folder, drawn):
    @contextmanager
    def tripled(pipe):
        with torch.no_grad():
            pipe.unet.conv_out.weight.mul_(3)
        yield pipe

    def judged():
        return gate.evaluate_gate(
            tiny_pipeline("sd1"), SimpleNamespace(applied=tripled), recipe("violin").concepts,
            family_name="sd1", judge=None, near=["guitar"], targets={"violin": "trumpet"},
            sampler=ONE, progress=False, base="the base",
            counts=Counts(name=2, least=2, names=1, images=1, reference=1),
        )  # fmt: skip

    first, count = judged(), sum(drawn)
    drawn.clear()
    second = judged()
    assert 0 < sum(drawn) < count
    assert second == first
    assert second.pictures == first.pictures


def test_a_second_run_draws_the_edited_model_alone_and_ends_with_the_same_bytes(
    tmp_path, drawn, monkeypatch
):
    counts = Counts(name=2, least=2, names=1, images=1, reference=1)
    monkeypatch.setattr(gate, "evaluate_gate", functools.partial(gate.evaluate_gate, counts=counts))
    monkeypatch.setattr(sampling, "default_sampler", lambda family: ONE)
    base = save_tiny(tmp_path / "base", "sd1")
    overrides = {
        "concepts": [{"name": "violin"}],
        "model": {"id": str(base), "family": family_file("sd1"), "device": "cpu"},
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar", "piano"],
        "evaluate": {"judge": None},
        "package": {"export": ["lora"]},
    }
    made, files = resolve("uce", overrides, ["mine=null", *LOOSE]), []
    for run in ("first", "second"):
        drawn.clear()
        execute(made, tmp_path / run)
        found = {p.relative_to(tmp_path / run): p for p in (tmp_path / run).rglob("*.*")}
        files.append(
            {n: p.read_bytes() for n, p in found.items() if p.is_file() and "log" not in n.parts}
        )
        if run == "first":
            everything = sum(drawn)
    assert 2 * sum(drawn) <= everything
    assert files[0] == files[1]
    named = {Model(base, Origin("x"), family=family_file("sd1"), dtype=dtype).drawn_by
             for dtype in (None, torch.float16)}  # fmt: skip
    assert len(named) == 2
