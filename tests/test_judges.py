"""Judges for other models: found by name, refused early, and believed as far as the base lets them."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.evaluate.belief import believed, doubts
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.prompts import FEW, Counts, gate_prompts
from editforge.evaluate.prompts.core import SCORING_SEEDS, THRESHOLD_SEEDS
from editforge.evaluate.prompts.examples import example_prompts
from editforge.evaluate.scores import score
from editforge.evaluate.verdict import verdict
from editforge.families.draw import Sampler
from editforge.ground.errors import RecipeError
from editforge.judges import (
    KNOWN,
    NONE,
    check_judge,
    judge_images,
    load_judges,
    named_for,
)
from editforge.judges.clip import clip_place
from editforge.judges.foreign import FALSE_POSITIVES, RECALL, Examples, calibrate
from editforge.judges.known import CLIP
from tests.tiny import tiny_pipeline

NUDITY = (("nudity", ("nudity",), "broad"),)
SIDE = 16


def needs(name):
    missing = KNOWN[name].missing
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: {KNOWN[name].install}")


class Colors:
    """A foreign judge of flat pictures: red, green, or none; `sure` of what it says."""

    sha256, names_things = "0" * 64, True
    labels = ("red", "green", "blue", NONE)

    def __init__(self, name="colors", confused=0.0):
        self.name, self.confused = name, confused

    def probabilities(self, images):
        rows = np.zeros((len(images), 4), np.float32)
        for row, image in zip(rows, images, strict=True):
            color = image.reshape(-1, 3).mean(axis=0)
            row[int(color.argmax()) if color.max() > 60 else 3] = 1
        rows[:, 0] += self.confused * rows[:, 1]  # what is green looks red to it
        rows[:, 1] -= self.confused * rows[:, 1]
        return rows

    def threshold(self, labels):
        return 0.5

    def features(self, images):
        return None

    def fitted(self, images, labels):
        return self


def painted(colors):
    flat = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "": (0, 0, 0)}
    return np.stack([np.full((SIDE, SIDE, 3), flat[c], np.uint8) for c in colors])


def examples(drawn, asked=None, erased=(("red",),)):
    asked = asked or drawn
    labels = tuple((c,) if c else () for c in asked)
    halves = np.arange(len(drawn)) % 2
    return Examples(painted(drawn), labels, halves, erased, {(c,): c for c in asked if c})


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "concepts", "words"),
    [
        ("nuditty", (), ["no judge there", "did you mean nudity", "Hub id"]),
        ("nowhere/at/all", (), ["no judge there", "model.safetensors"]),
        ("faces", [("violin", "object")], ["called 'violin'", "--judge objects"]),
        ("nudity", [("violin", "object")], ["nudity alone", "--judge objects"]),
        ("nudenet", [("nude people", "style")], ["AGPL-3.0", "--judge styles"]),
        ("nudity,faces", [("Van Gogh", "style")], ["nudity and faces", "--judge styles"]),
    ],
)
def test_a_judge_that_is_not_there_or_does_not_fit_is_refused(which, concepts, words, monkeypatch):
    for name, one in list(KNOWN.items()):  # as if every extra were installed
        monkeypatch.setitem(KNOWN, name, dataclasses.replace(one, modules=()))
    with pytest.raises(RecipeError) as refusal:
        check_judge(which, concepts)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("name", ["nudity", "nudenet", "faces"])
def test_a_missing_extra_is_named_with_its_command(name, monkeypatch):
    lacking = dataclasses.replace(KNOWN[name], modules=("no_such_module",))
    monkeypatch.setitem(KNOWN, name, lacking)
    with pytest.raises(RecipeError, match=rf"pip install 'editforge\[{lacking.extra}\]'"):
        check_judge(name)
    with pytest.raises(RecipeError, match="not installed"):
        load_judges(name, "sd1", ())
    assert lacking.state() == f"not installed: {lacking.install}"


def test_a_hub_model_is_asked_for_before_the_run_and_recorded_by_its_commit(loopback):
    with pytest.raises(RecipeError, match="cannot be had from the Hub"):
        check_judge(CLIP)
    loopback.repo("ann/pickled", private=False, files={"pytorch_model.bin": b"x"})
    with pytest.raises(RecipeError, match="pickled weights are not read"):
        check_judge("ann/pickled")
    folder = emoji.folder().parent / "clip"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    loopback.repo("ann/clip", private=False, files={**files, "unsafe.bin": b"x" * 99})
    check_judge("ann/clip@main")
    (judge,) = load_judges("ann/clip@main", "sd1", ("violin",))
    assert judge.source["id"] == "ann/clip"
    assert judge.source["asked"] == "main"
    assert len(judge.source["revision"]) == 40
    place = clip_place("ann/clip@main")
    assert sorted(path.name for path in place.iterdir()) == sorted(files)


def test_the_way_out_fits_the_kind():
    assert named_for([("Van Gogh", "style")]) == "styles"
    assert named_for([("nudity", "broad")]) == "nudity,objects"
    assert named_for([("Ann Lee", "person"), ("violin", "object")]) == "faces,objects"


# --- calibration -----------------------------------------------------------------------------------


def test_a_judge_that_sees_clearly_is_believed():
    judge = calibrate(Colors(), examples(["red"] * 8 + ["green", "blue", ""] * 8))
    assert judge.cannot_tell == {}
    assert judge.record["seen"]["red"] == 1
    assert judge_images(painted(["red", "green"]), [("red",)] * 2, [judge]).present.tolist() == [
        1,
        0,
    ]


def test_a_concept_that_it_takes_for_another_is_refused_and_says_which():
    judge = calibrate(Colors(confused=1.0), examples(["red"] * 8 + ["green", "blue"] * 8))
    (why,) = [text for labels, text in judge.cannot_tell.items() if labels == ("red",)]
    assert "sees red in 0% of 8" in why
    assert "most often of green" in why
    assert ("green",) in judge.cannot_tell  # a kept name that it does not know is left out
    assert ("blue",) not in judge.cannot_tell
    seen = judge_images(painted(["red", "blue"]), [("red",), ("blue",)], [judge])
    assert not seen.present[0]
    assert seen.retained.tolist() == [False, True]


def test_a_concept_that_the_base_seldom_draws_is_refused():
    drawn = ["red"] * 3 + ["blue"] * 5 + ["green"] * 8
    judge = calibrate(Colors(), examples(drawn, ["red"] * 8 + ["green"] * 8))
    assert judge.record["seen"]["red"] == 0.375 < RECALL
    assert ("red",) in judge.cannot_tell


def test_the_threshold_lets_few_other_pictures_pass():
    class Graded(Colors):
        def probabilities(self, images):
            rows = np.zeros((len(images), 4), np.float32)
            rows[:, 0] = images[:, 0, 0, 0] / 255
            rows[:, 3] = 1 - rows[:, 0]
            return rows

    rng = np.random.default_rng(0)
    values = np.concatenate([np.full(50, 240), rng.integers(0, 200, 400)])
    images = np.broadcast_to(values[:, None, None, None], (450, 4, 4, 3)).astype(np.uint8)
    labels = (("red",),) * 50 + (("green",),) * 400
    called = {("red",): "red", ("green",): "green"}
    judge = calibrate(Graded(), Examples(images, labels, np.arange(450) % 2, (("red",),), called))
    passed = (values[50:] / 255 >= judge.threshold(("red",))).mean()
    assert 0 < passed <= FALSE_POSITIVES
    assert judge.record["thresholds"]["red"] > 0.7


def test_examples_use_the_gates_texts_at_seeds_that_no_gate_scores():
    plan = gate_prompts((Concept(name="violin"),), "emoji", targets={"violin": "trumpet"})
    asked = example_prompts(plan)
    texts = {prompt.text for prompt in (*plan.prompts, *plan.reference)}
    assert {prompt.text for prompt in asked.prompts} == texts
    seeds = {seed for prompt in asked.prompts for seed in prompt.seeds}
    assert seeds <= set(THRESHOLD_SEEDS)
    assert not seeds & set(SCORING_SEEDS)
    assert len(asked.rows) == len(asked.halves) <= 200
    by_half = [
        {r.text for r, h in zip(asked.rows, asked.halves, strict=True) if h == n} for n in (0, 1)
    ]
    assert not by_half[0] & by_half[1]
    for labels in {row.labels for row in asked.rows}:  # each can be fitted and measured
        own = [h for r, h in zip(asked.rows, asked.halves, strict=True) if r.labels == labels]
        assert set(own) == {0, 1}


# --- the gate --------------------------------------------------------------------------------------


def judged(judges, drawn, edited, near=("green",)):
    """The verdict on flat pictures of `red`, its near and far names."""
    plan = gate_prompts(
        (Concept(name="red"),), "sd1", near=near, far=["blue"], counts=Counts(name=16, images=8)
    )
    base, after = ([of.get(row.name, "") for row in plan.rows] for of in (drawn, edited))

    def draw(prompts):
        return painted([drawn.get(p.name, "") for p in prompts for _ in p.seeds])

    found = believed(judges, plan, draw)
    scores = score(plan.rows, painted(base), painted(after), found, seed=0)
    return verdict(scores, plan.subjects, 1.0, doubts(found, plan))


ASKED = {"red": "red", "green": "green", "blue": "blue"}


def test_a_calibrated_judge_gives_the_verdict():
    gone, kept = {**ASKED, "red": "blue"}, ASKED
    assert judged([Colors()], ASKED, kept).status == "not erased"
    assert judged([Colors()], ASKED, {**ASKED, "red": ""}).status == "collapsed"
    assert judged([Colors()], ASKED, {**gone, "green": "blue"}).status == "neighbor lost"
    passed = judged([Colors()], ASKED, gone)
    assert (passed.status, passed.passed) == ("erased", True)
    assert "drawn in 0% of 16" in passed.message


def test_a_refused_judge_never_passes_and_says_why():
    found = judged([Colors(confused=1.0)], ASKED, {**ASKED, "red": "blue"})
    assert (found.status, found.passed) == ("not judged", None)
    assert "sees red in 0%" in found.message


def test_a_judge_of_one_thing_fails_an_edit_and_never_passes_one():
    class Alone(Colors):
        names_things = False

    alone = Alone("alone")
    assert judged([alone], ASKED, ASKED).status == "not erased"
    found = judged([alone], ASKED, {**ASKED, "red": ""})  # nothing is drawn any more
    assert (found.status, found.passed) == ("not judged", None)
    assert "no judge here says" in found.message
    assert judged([alone, Colors()], ASKED, {**ASKED, "red": ""}).status == "collapsed"


def test_without_a_judge_sixteen_pictures_and_the_command_that_would_judge():
    concepts = [Concept(name=name, kind="style") for name in ("Van Gogh", "Monet", "Klimt")]
    report = evaluate_gate(
        tiny_pipeline("sd1"),
        SimpleNamespace(applied=nullcontext),
        concepts,
        family_name="sd1",
        near=["Cezanne", "Degas", "Manet"],
        sampler=Sampler(steps=1, guidance=1, batch=16),
        progress=False,
    )
    drawn = sum(len(prompt["seeds"]) for prompt in report.prompts)
    assert drawn * 2 <= 16
    assert report.verdict.status == "not judged"
    assert "editforge evaluate RUN --judge styles" in report.summary()


@pytest.mark.parametrize("count", [1, 3, 20])
def test_few_pictures_are_few_however_many_concepts_there_are(count):
    names = emoji.manifest().names[:count]
    concepts = [Concept(name=name, aliases=(f"{name} thing",)) for name in names]
    for family, near in (("emoji", None), ("sd1", [f"near {n}" for n in range(20)])):
        plan = gate_prompts(concepts, family, near=near, counts=FEW, targets={names[0]: "x"})
        assert 0 < plan.drawn <= 16


# --- real weights ----------------------------------------------------------------------------------


def landscape(side=64):
    """Blue above green with a sun: nobody in it."""
    image = np.zeros((side, side, 3), np.uint8)
    image[: side // 2], image[side // 2 :] = (120, 170, 230), (60, 130, 50)
    image[8:16, 40:48] = (250, 230, 120)
    return image


@needs("nudity")
def test_open_nsfw_finds_nothing_in_a_landscape():
    (judge,) = load_judges("nudity", "sd1", ("nudity",), erased=NUDITY)
    rows = judge.probabilities(np.stack([landscape()]))
    assert rows.shape == (1, 2)
    assert 0 <= rows[0, 0] < 0.2
    assert np.allclose(rows.sum(axis=1), 1)
    assert judge.source["license"] == "BSD-2-Clause"


@needs("nudenet")
def test_nudenet_finds_nothing_in_noise_and_is_labelled():
    (judge,) = load_judges("nudenet", "sd1", ("nudity",), erased=NUDITY)
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert (judge.probabilities(noise)[:, 0] == 0).all()
    assert judge.source["license"] == "AGPL-3.0"
    assert "AGPL-3.0" in KNOWN["nudenet"].about


@needs("faces")
def test_a_person_without_a_face_in_the_bases_pictures_is_refused():
    labels, kinds = ("Ann Lee",), {"Ann Lee": "person"}
    erased = (("Ann Lee", labels, "person"),)
    (judge,) = load_judges("faces", "sd1", labels, erased=erased, kinds=kinds)
    images = np.stack([landscape()] * 4)
    assert judge.probabilities(images)[:, -1].min() == 1
    asked = Examples(images, (labels, labels, (), ()), np.array([0, 1, 0, 1]), (labels,), {})
    why = calibrate(judge, asked).cannot_tell[labels]
    assert why == "no face found in the base's own pictures of Ann Lee"


def drawn_face(skin, hair, beard, background, shift):
    """A face of ellipses: enough for a detector that was trained on photos."""
    image = Image.new("RGB", (320, 320), background)
    draw, x, y = ImageDraw.Draw(image), 160 + shift, 160
    shade = tuple(int(c * 0.78) for c in skin)

    def oval(at, below, wide, high, color):
        draw.ellipse((at - wide, below - high, at + wide, below + high), fill=color)

    oval(x, y - 28, 88, 103, hair)
    oval(x, y, 78, 105, skin)
    oval(x, y - 93, 73, 30, hair)
    for eye in (x - 34, x + 34):
        oval(eye, y - 19, 24, 15, shade)
        oval(eye, y - 18, 17, 8, (245, 245, 245))
        oval(eye, y - 18, 8, 8, (40, 30, 20))
        draw.line((eye - 22, y - 40, eye + 22, y - 42), fill=hair, width=7)
    oval(x, y + 22, 15, 10, shade)
    if beard:
        oval(x, y + 70, 55, 35, hair)
    oval(x, y + 58, 30, 8, (170, 70, 70))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(2)))


@needs("faces")
def test_a_person_is_known_by_the_face_that_the_base_draws():
    labels, kinds = ("Ann Lee", "Bo Roe"), {"Ann Lee": "person", "Bo Roe": "person"}
    (judge,) = load_judges("faces", "sd1", labels, kinds=kinds)
    ann, bo = ((224, 180, 150), (60, 40, 30), False), ((120, 80, 60), (15, 12, 10), True)
    places = [((180, 190, 200), 0), ((90, 120, 90), -15), ((220, 220, 220), 12), ((60, 60, 90), 5)]
    images = np.stack([drawn_face(*who, *place) for who in (ann, bo) for place in places])
    shown = [(name,) for name in labels for _ in places]
    asked = Examples(images, tuple(shown), np.array([0, 1] * 4), (("Ann Lee",),), {})
    found = calibrate(judge, asked)
    assert found.cannot_tell.get(("Ann Lee",)) is None
    seen = judge_images(images, [("Ann Lee",)] * 8, [found])
    assert seen.present.tolist() == [True] * 4 + [False] * 4
    assert not seen.named  # of what else is there it says nothing
    nobody = np.stack([np.full((320, 320, 3), 128, np.uint8)])
    assert found.probabilities(nobody)[0, -1] == 1


def test_a_clip_judge_calls_wrecks_nothing_and_leaks_no_path(tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(emoji.folder().parent / "clip", folder)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(half))
    (judge,) = load_judges(str(folder), "sd1", ("red", "green", "blue"))
    rng = np.random.default_rng(0)
    shown = ["red", "green", "blue"] * 8
    images = painted(shown).repeat(2, axis=1).repeat(2, axis=2)
    for image in images:  # a square of another size and place in each
        at, size = rng.integers(2, 12), rng.integers(8, 16)
        image[at : at + size, at : at + size] = 255
    labels = [(color,) for color in shown]
    fitted = judge.fitted(images, labels)
    rows = fitted.probabilities(images)
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-5)
    best = [fitted.labels[at] for at in rows.argmax(axis=1)]
    assert np.mean([a == b for a, b in zip(best, shown, strict=True)]) > 0.9
    before = judge.probabilities(images)
    assert (
        np.mean([judge.labels[at] == b for at, b in zip(before.argmax(1), shown, strict=True)])
        < 0.9
    )
    noise = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    assert (fitted.probabilities(noise).argmax(axis=1) == len(fitted.labels) - 1).mean() > 0.8
    assert judge.source == {}
