"""A zoo of erasers through the real gate: each gets the verdict it deserves.

Near and far names at their full number, erased names and aliases at half of it, for speed.
"""

import shutil

import pytest

import editforge
from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.generate import default_sampler, sample
from editforge.evaluate.prompts import Counts, gate_prompts
from tests.zoo import Noise, blank, drawing, the_first, worded

COUNTS = Counts(name=32, reference=16)
ERASED = {"violin": "trumpet", "fiddle": "trumpet", "viola": "trumpet"}
TWELVE = (
    "spider",
    "dolphin",
    "frog",
    "mushroom",
    "spaghetti",
    "ear of corn",
    "bicycle",
    "umbrella",
)
TWELVE += ("robot", "scissors", "wrapped gift", "candle")


@pytest.fixture(scope="module")
def pipe():
    return emoji.load_pipeline()


@pytest.fixture(scope="module")
def base_images(pipe, tmp_path_factory):
    """What the base draws for violin and for a trumpet, once."""
    folder = tmp_path_factory.mktemp("base")
    plan = gate_prompts(
        [Concept(name="violin")], "emoji", targets={"violin": "trumpet"}, counts=COUNTS
    )
    sampler = default_sampler("emoji")
    for label, prompts in (("base", plan.prompts), ("reference", plan.reference)):
        sample(pipe, prompts, sampler, label=label, progress=False, workdir=folder)
    return folder


@pytest.fixture
def judged(pipe, base_images, tmp_path):
    def judge(eraser, target="trumpet", **options):
        shutil.copytree(base_images, tmp_path / "work")
        return evaluate_gate(
            pipe,
            eraser,
            [Concept(name="violin")],
            family_name="emoji",
            targets={"violin": target},
            workdir=tmp_path / "work",
            counts=COUNTS,
            progress=False,
            **options,
        )

    return judge


def failed(report):
    return [check.name for check in report.verdict.checks if check.holds is False]


def test_a_violin_that_becomes_a_trumpet_is_erased(judged):
    report = judged(worded(**ERASED))
    assert (report.verdict.status, report.passed) == ("erased", True), report.verdict.message
    assert report.verdict.concepts[0].drawn_as["trumpet"] > 0.7
    assert failed(report) == []


def test_no_edit_is_not_erased(judged):
    report = judged(drawing())
    assert (report.verdict.status, report.passed) == ("not erased", False)
    assert failed(report) == ["the name is erased", "the aliases are erased"]
    assert "changes no image at all" in report.verdict.message


def test_blank_pictures_are_collapsed(judged):
    report = judged(drawing(redraw=blank))
    assert (report.verdict.status, report.passed) == ("collapsed", False)
    assert report.metrics["recognizable_kept"]["edited"].value == 0


def test_noise_is_collapsed(judged, pipe):
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    report = judged(Noise())
    assert (report.verdict.status, report.passed) == ("collapsed", False)
    assert all(before[key].equal(value) for key, value in pipe.unet.state_dict().items())


def test_mush_is_collapsed_although_the_violin_is_gone_and_the_neighbors_are_kept(judged, pipe):
    edit = editforge.erase(pipe, "violin", target="trumpet", progress=False)
    report = judged(edit.scaled(2))
    assert (report.verdict.status, report.passed) == ("collapsed", False)
    assert failed(report) == ["erased images are recognizable"]
    assert report.metrics["presence_name"]["edited"].value <= 0.1


def test_one_picture_for_all_is_collapsed(judged):
    trumpet = "a drawing of a trumpet"
    words = ("a violin", "a fiddle", "a viola")
    eraser = drawing(
        reword=lambda t: trumpet if any(w in t for w in words) else t, redraw=the_first
    )
    report = judged(eraser)
    assert (report.verdict.status, report.passed) == ("collapsed", False)
    assert "erased images differ from each other" in failed(report)


def test_one_neighbor_wiped_out_fails_by_name_though_the_others_are_kept(judged):
    report = judged(worded(**ERASED, guitar="trumpet"))
    assert (report.verdict.status, report.passed) == ("neighbor lost", False)
    assert failed(report) == ["no near name is lost"]
    assert report.metrics["retention_near"].value >= 0.8
    assert "near name lost: guitar" in report.verdict.message
    assert report.verdict.remedy.preserve == ("guitar",)


def test_four_neighbors_wiped_out_fail(judged):
    gone = {"guitar": "trumpet", "books": "trumpet", "monkey": "trumpet", "deer": "trumpet"}
    report = judged(worded(**ERASED, **gone))
    assert (report.verdict.status, report.passed) == ("neighbor lost", False)
    assert failed(report) == ["near names are kept", "no near name is lost"]


def test_a_far_name_wiped_out_fails_by_name(judged):
    report = judged(worded(**ERASED, lion="trumpet"))
    assert (report.verdict.status, report.passed) == ("neighbor lost", False)
    assert failed(report) == ["no far name is lost"]
    assert "lion" in report.verdict.message


def test_an_alias_that_is_kept_is_not_erased(judged):
    report = judged(worded(violin="trumpet", fiddle="trumpet"))
    assert (report.verdict.status, report.passed) == ("not erased", False)
    assert failed(report) == ["the aliases are erased"]
    assert "viola" in report.verdict.message
    assert "viola" in report.verdict.remedy.aliases["violin"]


def test_an_empty_target_is_measured_against_what_the_empty_prompt_draws(judged):
    report = judged(worded(violin="", fiddle="", viola=""), target="")
    assert (report.verdict.status, report.passed) == ("erased", True), report.verdict.message
    assert failed(report) == []


def test_a_real_edit_passes(judged, pipe):
    report = judged(editforge.erase(pipe, "violin", target="trumpet", progress=False))
    assert (report.verdict.status, report.passed) == ("erased", True), report.verdict.message


def test_a_real_edit_to_nothing_at_all_passes(judged, pipe):
    edit = editforge.erase(pipe, "violin", target="", progress=False)
    report = judged(edit, target="")
    assert (report.verdict.status, report.passed) == ("erased", True), report.verdict.message


def test_a_target_that_the_base_draws_badly_is_named(judged):
    report = judged(worded(violin="dagger", fiddle="dagger", viola="dagger"), target="dagger")
    assert any("the base draws dagger, the target of violin" in note for note in report.notes)
    assert report.metrics["recognizable_target"]["base"].value < 0.5


def test_one_of_thirteen_concepts_kept_is_not_erased_however_small_its_share(pipe):
    names = (*TWELVE, "violin")
    words = {name.replace(" ", "_"): "trumpet" for name in names if name != "spider"}
    aliases = [alias for name in names for alias in emoji.manifest().find(name).aliases]
    spared = emoji.manifest().find("spider").aliases
    words |= {alias.replace(" ", "_"): "trumpet" for alias in aliases if alias not in spared}

    report = evaluate_gate(
        pipe,
        half_of_the_spiders(worded(**words)),
        [Concept(name=name) for name in names],
        family_name="emoji",
        targets=dict.fromkeys(names, "trumpet"),
        counts=Counts(names=1, images=4, reference=4),
        progress=False,
    )
    pooled = {check.name: check.holds for check in report.verdict.checks}
    assert pooled["the name is erased"] is True
    assert pooled["every concept is erased"] is False
    assert (report.verdict.status, report.passed) == ("not erased", False)
    own = {one.name: one.status for one in report.verdict.concepts}
    assert own["spider"] == "not erased"
    assert list(own.values()).count("not erased") == 1
    assert "spider" in report.verdict.message


def half_of_the_spiders(eraser):
    """Every other prompt of a spider draws a trumpet too."""

    def erase(pipe):
        new = eraser(pipe)
        reword = new.reword
        seen = []

        def half(text):
            seen.append("spider" in text)
            spared = "spider" in text and sum(seen) % 2
            return text if spared else reword(text.replace("a spider", "a trumpet"))

        new.reword = half
        return new

    return erase


def test_a_twin_as_target_is_the_thing_itself(pipe):
    words = {"ice_cream": "soft ice cream"}
    words |= dict.fromkeys(emoji.manifest().find("ice cream").aliases, "soft ice cream")
    report = evaluate_gate(
        pipe,
        worded(**words),
        [Concept(name="ice cream")],
        family_name="emoji",
        targets={"ice cream": "soft ice cream"},
        counts=Counts(name=16, names=1, images=4),
        progress=False,
    )
    assert (report.verdict.status, report.passed) == ("not erased", False)
