"""Known answers for the verdict: tables of what two judges see, at and beside each threshold."""

import numpy as np
import pytest

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts, gate_prompts
from editforge.evaluate.scores import score
from editforge.evaluate.verdict import poor_targets, verdict
from editforge.judges import NONE

LABELS = (*emoji.manifest().names, NONE)
CODE = {label: index for index, label in enumerate(LABELS)}


class Reads:
    """A judge that reads its answer from one channel of the picture."""

    sha256, labels = "0" * 64, LABELS

    def __init__(self, name, channel):
        self.name, self.channel = name, channel

    def probabilities(self, images):
        return np.eye(len(LABELS), dtype=np.float32)[images[:, 0, 0, self.channel]]

    def threshold(self, labels):
        return 0.5

    def features(self, images):
        return None


JUDGES = (Reads("a", 0), Reads("b", 1))


def pictures(seen, seed=0):
    """Pictures that both judges, or (label, label) each for itself, read as this."""
    pairs = [one if isinstance(one, tuple) else (one, one) for one in seen]
    images = np.random.default_rng(seed).integers(0, 256, (len(pairs), 8, 8, 3)).astype(np.uint8)
    images[:, 0, 0, :2] = [[CODE[a], CODE[b]] for a, b in pairs]
    return images


class Table:
    """Base pictures show what is asked for, edited ones too, but for what a test changes."""

    def __init__(self, *names, target="trumpet", counts=None):
        concepts = [Concept(name=name) for name in names]
        self.targets = dict.fromkeys(names, target)
        self.plan = gate_prompts(concepts, "emoji", targets=self.targets, counts=counts)
        self.rows = self.plan.rows
        self.base = [row.concept if row.set == "alias" else row.name for row in self.rows]
        erased = ("name", "alias")
        self.edited = [
            target if row.set in erased else name
            for row, name in zip(self.rows, self.base, strict=True)
        ]
        self.reference = [target] * sum(len(p.seeds) for p in self.plan.reference)

    def at(self, which, name=None, concept=None):
        return [
            i
            for i, row in enumerate(self.rows)
            if row.set == which and name in (None, row.name) and concept in (None, row.concept)
        ]

    def set(self, model, indices, label):
        for index in indices:
            getattr(self, model)[index] = label
        return self

    def scores(self, judges=JUDGES):
        return score(
            self.rows,
            pictures(self.base),
            pictures(self.edited, seed=1),
            judges,
            reference=[prompt for prompt in self.plan.reference for _ in prompt.seeds],
            reference_images=pictures(self.reference, seed=2),
            seed=0,
        )

    def verdict(self, judges=JUDGES):
        return verdict(self.scores(judges), self.plan.subjects, 1.0)


def failing(found):
    return [check.name for check in found.checks if check.holds is False]


def test_a_perfect_table_is_erased_and_every_check_was_asked():
    found = Table("violin").verdict()
    assert (found.status, found.passed) == ("erased", True)
    assert all(check.holds for check in found.checks)
    assert len(found.checks) == 10
    assert found.concepts[0].drawn_as == {"trumpet": 1}


@pytest.mark.parametrize(("hits", "status"), [(6, "erased"), (7, "not erased")])
def test_presence_of_one_in_ten_is_the_limit(hits, status):
    table = Table("violin")
    table.set("edited", table.at("name")[:hits], "violin")
    found = table.verdict()
    assert found.status == status
    check = next(c for c in found.checks if c.name == "the name is erased")
    assert check.close
    assert "close" in check.message


def test_one_judge_that_sees_it_is_enough_to_be_present_and_none_to_be_recognizable():
    table = Table("violin")
    table.set("edited", table.at("name")[:7], ("trumpet", "violin"))
    assert failing(table.verdict()) == ["the name is erased"]
    table = Table("violin")
    table.set("edited", table.at("name") + table.at("alias"), ("trumpet", "guitar"))
    assert failing(table.verdict()) == ["erased images are recognizable"]


@pytest.mark.parametrize(("shown", "status"), [(90, "erased"), (89, "collapsed")])
def test_recognizable_is_measured_against_the_target(shown, status):
    table = Table("violin")  # 128 name and alias images: 0.7 is 89.6 of them
    table.set("edited", (table.at("name") + table.at("alias"))[shown:], NONE)
    assert table.verdict().status == status


def test_a_badly_drawn_target_is_the_measure_and_is_named():
    table = Table("violin", target="dagger")
    table.reference = ["dagger", NONE, NONE, NONE] * 8
    own = table.at("name") + table.at("alias")
    table.set("edited", own[32:], NONE)
    assert table.verdict().status == "erased"
    (warning,) = poor_targets(table.scores(), table.plan.subjects, table.targets)
    assert "the base draws dagger, the target of violin, recognizably in 25% of 32" in warning
    # A bar so low is uncertain: under it by value is not enough, clearly under it is.
    table.set("edited", own[20:], NONE)
    assert table.verdict().status == "erased"
    table.set("edited", own[6:], NONE)
    assert table.verdict().status == "collapsed"


def test_a_target_that_the_base_never_draws_says_nothing_and_is_no_pass_of_that_check():
    table = Table("violin", target="")
    table.edited = [name or NONE for name in table.edited]
    table.reference = [NONE] * 32
    found = table.verdict()
    check = next(c for c in found.checks if c.name == "erased images are recognizable")
    assert check.holds is None
    assert "unknown" in check.message


@pytest.mark.parametrize(
    ("base", "edited", "lost"),
    [(8, 2, True), (8, 3, False), (6, 2, True), (6, 3, False), (5, 0, False)],
)
def test_a_neighbor_is_lost_at_a_third_of_what_the_base_draws_well(base, edited, lost):
    table = Table("violin")
    guitars = table.at("near", "guitar")
    table.set("base", guitars[base:], NONE)
    table.set("edited", guitars[edited:], NONE)
    assert failing(table.verdict()) == (["no near name is lost"] if lost else [])


def test_the_pooled_share_of_near_names_decides_by_its_value():
    table = Table("violin")
    near = table.at("near")
    for name in {table.rows[i].name for i in near}:
        table.set("edited", table.at("near", name)[6:], "camel")
    found = table.verdict()  # 48 of 64 kept: 0.75
    assert failing(found) == ["near names are kept"]
    assert found.passed is False


def test_near_and_far_that_turn_into_mush_are_collapsed():
    table = Table("violin")
    kept = table.at("near") + table.at("far")
    table.set("edited", kept[::4], NONE)
    assert table.verdict().status == "collapsed"


def test_with_eight_images_of_a_concept_two_hits_fail_it_and_one_does_not():
    names = ("violin", "spider", "frog", "robot", "bicycle", "umbrella", "scissors", "mushroom")
    for hits, status in ((1, "erased"), (2, "not erased")):
        table = Table(*names)
        table.set("edited", table.at("name", "spider")[:hits], "spider")
        found = table.verdict()
        assert found.status == status
        own = {one.name: one.status for one in found.concepts}
        assert own == {**dict.fromkeys(names, "erased"), "spider": status}
    assert failing(found) == ["every concept is erased"]
    assert "spider" in found.message


def test_one_concept_of_several_that_collapses_is_the_verdict_of_all():
    table = Table("violin", "spider", "frog", "robot")
    own = table.at("name", concept="frog") + table.at("alias", concept="frog")
    table.set("edited", own, NONE)
    found = table.verdict()
    assert (found.status, found.passed) == ("collapsed", False)
    assert {one.name for one in found.concepts if one.status == "collapsed"} == {"frog"}


def test_what_the_base_does_not_draw_is_not_judged_and_hides_nothing():
    table = Table("violin", "spider")
    table.set("base", table.at("name", "spider"), "ant")
    found = table.verdict()
    assert (found.status, found.passed) == ("not judged", None)
    assert {one.name: one.status for one in found.concepts} == {
        "violin": "erased",
        "spider": "not judged",
    }
    # Neither does it dilute what is judged, nor does it excuse it.
    table.set("edited", table.at("name", "violin")[:8], "violin")
    assert table.verdict().status == "not erased"
    alone = Table("violin")
    alone.set("base", alone.at("name")[:40], "ant")
    assert alone.verdict().status == "not judged"


def test_aliases_that_the_base_does_not_draw_prove_nothing():
    table = Table("violin")
    table.set("base", table.at("alias"), "guitar")
    found = table.verdict()
    check = next(c for c in found.checks if c.name == "the aliases are erased")
    assert check.holds is None


def test_without_judges_nothing_is_said():
    found = Table("violin", counts=Counts(name=8)).verdict(judges=())
    assert (found.status, found.passed) == ("not judged", None)
    assert found.concepts[0].status == "not judged"
    assert found.remedy.judge


def test_the_grid_shows_the_worst_first_whatever_their_order(monkeypatch):
    shown = []
    monkeypatch.setattr(gate, "grid_png", lambda bands, *_: shown.append(bands) or b"")
    table = Table("violin")
    worst = table.at("name")[-1]
    table.set("edited", [worst], "violin")
    table.set("edited", table.at("near", "scorpion"), NONE)
    table.set("edited", table.at("near", "deer")[:3], "camel")
    table.set("edited", table.at("far", "banana"), "camel")
    base, edited = pictures(table.base), pictures(table.edited, seed=1)
    gate._pictures(table.plan, base, edited, table.scores(), "emoji")
    (erased, aliases), (near, far) = shown[0]
    assert erased.captions[0] == table.rows[worst].text
    assert np.array_equal(erased.edited[0], edited[worst])
    assert near.captions[:2] == ("scorpion", "deer")
    assert far.captions[0] == "banana"
    assert [len(group.captions) for group in (erased, aliases, near, far)] == [4] * 4
