"""A zoo of erasers through the real gate: each gets the verdict it deserves.

Here those that change prompts or pictures; `test_zoo_edits.py` has those that change weights.
"""

from tests.zoo import TheFirst, blank, drawing, failed, worded

ERASED = {"violin": "trumpet", "fiddle": "trumpet", "viola": "trumpet"}


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


def test_one_picture_for_all_is_collapsed(judged):
    trumpet = "a drawing of a trumpet"
    words = ("a violin", "a fiddle", "a viola")
    eraser = drawing(
        reword=lambda t: trumpet if any(w in t for w in words) else t, redraw=TheFirst()
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


def test_a_target_that_the_base_draws_badly_is_named(judged):
    report = judged(worded(violin="dagger", fiddle="dagger", viola="dagger"), target="dagger")
    assert any("the base draws dagger, the target of violin" in note for note in report.notes)
    assert report.metrics["recognizable_target"]["base"].value < 0.5
