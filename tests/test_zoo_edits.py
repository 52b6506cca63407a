"""The zoo's erasers that change weights, and those of several concepts; see `test_zoo.py`."""

from contextlib import contextmanager
from types import SimpleNamespace

import editforge
from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.prompts import Counts
from tests.zoo import SAMPLER, Noise, failed, worded

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


def test_noise_is_collapsed(judged, zoo_pipe):
    before = {key: value.clone() for key, value in zoo_pipe.unet.state_dict().items()}
    report = judged(Noise())
    assert (report.verdict.status, report.passed) == ("collapsed", False)
    assert all(before[key].equal(value) for key, value in zoo_pipe.unet.state_dict().items())


def test_mush_is_collapsed_although_the_violin_is_gone_and_the_neighbors_are_kept(judged, zoo_pipe):
    edit = editforge.erase(zoo_pipe, "violin", target="trumpet", progress=False)
    report = judged(edit.scaled(2))
    assert (report.verdict.status, report.passed) == ("collapsed", False)
    assert failed(report) == ["erased images are recognizable"]
    assert report.metrics["presence_name"]["edited"].value <= 0.1


def test_a_real_edit_passes(judged, zoo_pipe):
    report = judged(editforge.erase(zoo_pipe, "violin", target="trumpet", progress=False))
    assert (report.verdict.status, report.passed) == ("erased", True), report.verdict.message


def test_a_real_edit_to_nothing_at_all_passes(judged, zoo_pipe):
    edit = editforge.erase(zoo_pipe, "violin", target="", progress=False)
    report = judged(edit, target="")
    assert (report.verdict.status, report.passed) == ("erased", True), report.verdict.message


def test_one_of_thirteen_concepts_kept_is_not_erased_however_small_its_share(zoo_pipe):
    names = (*TWELVE, "violin")
    words = {name.replace(" ", "_"): "trumpet" for name in names if name != "spider"}
    aliases = [alias for name in names for alias in emoji.manifest().find(name).aliases]
    spared = emoji.manifest().find("spider").aliases
    words |= {alias.replace(" ", "_"): "trumpet" for alias in aliases if alias not in spared}

    report = evaluate_gate(
        zoo_pipe,
        half_of_the_spiders(worded(**words)),
        [Concept(name=name) for name in names],
        family_name="emoji",
        targets=dict.fromkeys(names, "trumpet"),
        counts=Counts(names=1, images=4, reference=1),
        sampler=SAMPLER,
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

    @contextmanager
    def applied(pipe):
        with eraser.applied(pipe) as new:
            reword = new.reword
            seen = []

            def half(text):
                seen.append("spider" in text)
                spared = "spider" in text and sum(seen) % 2
                return text if spared else reword(text.replace("a spider", "a trumpet"))

            new.reword = half
            yield new

    return SimpleNamespace(applied=applied)


def test_a_twin_as_target_is_the_thing_itself(zoo_pipe):
    words = {"ice_cream": "soft ice cream"}
    words |= dict.fromkeys(emoji.manifest().find("ice cream").aliases, "soft ice cream")
    report = evaluate_gate(
        zoo_pipe,
        worded(**words),
        [Concept(name="ice cream")],
        family_name="emoji",
        targets={"ice cream": "soft ice cream"},
        counts=Counts(name=16, names=1, images=4),
        sampler=SAMPLER,
        progress=False,
    )
    assert (report.verdict.status, report.passed) == ("not erased", False)
