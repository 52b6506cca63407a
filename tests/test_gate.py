"""The gate passes what erases and stops what does not: each verdict has an eraser that earns it."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.report import Estimate, Report, Verdict
from editforge.artifacts.weight_edit import WeightEdit
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.prompts import Counts, gate_prompts
from editforge.families.draw import Sampler, noise, own_size, sample
from editforge.families.sampling import default_sampler
from editforge.ground.errors import EditforgeError, PackageError, RecipeError
from editforge.judges import NONE, judge_images, load_judges
from tests.tiny import tiny_pipeline
from tests.zoo import drawing, worded

FEW = Counts(name=8, least=4, names=4, images=2)
VIOLIN = (Concept(name="violin"),)
NEAR = ("guitar", "books", "bear", "television")
EMOJI_SAMPLER = default_sampler("emoji")
TO_TRUMPET = worded(violin="trumpet", fiddle="trumpet", viola="trumpet")


@pytest.fixture(scope="module")
def pipe():
    return emoji.load_pipeline()


@pytest.fixture(scope="module")
def base_images(pipe, tmp_path_factory):
    """The base model's images, drawn once: what a killed evaluation would have left."""
    folder = tmp_path_factory.mktemp("base")
    plan = gate_prompts(VIOLIN, "emoji", counts=FEW, near=NEAR)
    sample(pipe, plan.prompts, EMOJI_SAMPLER, label="base", progress=False, workdir=folder)
    return folder


@pytest.fixture
def gate(pipe, base_images, tmp_path):
    def run(eraser, **options):
        workdir = tmp_path / "work"
        shutil.copytree(base_images, workdir, dirs_exist_ok=True)
        options = {"family_name": "emoji", "counts": FEW, "near": NEAR, "progress": False} | options
        return evaluate_gate(pipe, eraser, VIOLIN, workdir=workdir, **options)

    return run


def test_a_violin_that_becomes_a_trumpet_is_erased(gate, tmp_path):
    report = gate(TO_TRUMPET, targets={"violin": "trumpet"})
    assert (report.verdict.status, report.passed) == ("erased", True)
    assert report.metrics["presence_name"]["base"].value > 0.8
    assert report.metrics["presence_name"]["edited"].value <= 0.1
    assert report.metrics["retention_near"].value == 1
    assert report.metrics["drift"]["far_pixel"].value == 0
    assert report.metrics["drift"]["name_features"].value > 0
    assert report.erased[0].target == "trumpet"
    assert all(check.holds for check in report.verdict.checks)

    report.save(tmp_path / "report")
    assert Report.load(tmp_path / "report") == report
    text = (tmp_path / "report" / "editforge_results.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["schema"] == "editforge.results/2"
    assert (tmp_path / "report" / "grid.png").read_bytes() == report.pictures["grid.png"]
    assert "images/neighbor_000.png" in report.pictures
    assert "images/far_003.png" in report.pictures
    assert "violin is drawn in 0%" in report.summary()


def test_half_an_erasure_proposes_a_strength(gate):
    report = gate(worded(fiddle="trumpet", viola="trumpet"), strength=2)
    assert report.verdict.status == "not erased"
    assert report.verdict.remedy.strength == 4


def test_half_an_erasure_proposes_the_words_that_are_left(gate):
    report = gate(worded(violin="trumpet"), strength=2)
    assert report.verdict.status == "not erased"
    assert "alias" in report.verdict.message
    assert set(report.verdict.remedy.aliases["violin"]) == {"fiddle", "viola"}


def test_without_a_judge_nothing_passes_and_nothing_fails(gate):
    report = gate(TO_TRUMPET, judge=None)
    assert (report.verdict.status, report.passed) == ("not judged", None)
    assert set(report.metrics) == {"drift"}
    assert report.metrics["drift"]["name_pixel"].value > 0
    assert report.judges == ()


def test_a_failing_judge_raises_and_is_no_evidence_of_absence(gate):
    class Broken:
        name, sha256, labels = "broken", "0" * 64, (*emoji.manifest().names, NONE)

        def probabilities(self, images):
            return np.full((len(images), len(self.labels)), np.nan, np.float32)

        def threshold(self, labels):
            return 0.5

        def features(self, images):
            return None

    with pytest.raises(EditforgeError, match="judge broken failed"):
        gate(drawing(), judge=[Broken()])


def test_what_is_no_eraser_and_what_is_no_judge_is_refused(gate):
    with pytest.raises(RecipeError, match="not an eraser"):
        gate("violin")
    with pytest.raises(RecipeError, match="not a judge"):
        gate(drawing(), judge=[object()])


def test_disagreeing_judges_never_help():
    class Says:
        sha256, labels = "0" * 64, ("violin", "guitar", NONE)

        def __init__(self, name, row):
            self.name, self.row = name, row

        def probabilities(self, images):
            return np.repeat(np.array([self.row], np.float32), len(images), axis=0)

        def threshold(self, labels):
            return 0.3

        def features(self, images):
            return None

    image = np.zeros((1, 8, 8, 3), np.uint8)
    violin, guitar, garbage = [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.2, 0.1, 0.7]
    both = [Says("a", violin), Says("b", guitar)]
    assert judge_images(image, [("violin",)], both).present[0]
    assert judge_images(image, [("guitar",)], both).present[0]
    assert not judge_images(image, [("guitar",)], both).retained[0]
    assert judge_images(image, [("guitar", "violin")], both).retained[0]
    assert judge_images(image, [()], [both[0], Says("c", violin)]).label[0] == "violin"
    assert not judge_images(image, [()], both).recognizable[0]
    assert not judge_images(image, [()], [Says("c", garbage), Says("d", garbage)]).recognizable[0]
    unasked = judge_images(image, [()], both)
    assert not unasked.present[0]
    assert not unasked.retained[0]


def test_a_clip_folder_judges_what_has_no_judge(pipe, tmp_path):
    assets = emoji.folder().parent / "clip"
    plan = gate_prompts(VIOLIN, "emoji", counts=FEW)
    names = tuple(dict.fromkeys(p.name for p in plan.prompts if p.set != "alias"))
    (judge,) = load_judges(assets, "sd1", names)
    assert judge.labels[: len(names)] == names
    guitars = [p for p in plan.prompts if p.set == "near"]
    images = sample(pipe, guitars, EMOJI_SAMPLER, progress=False)
    rows = judge.probabilities(images)
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-5)
    wanted = [(p.name,) for p in guitars for _ in p.seeds]
    assert judge_images(images, wanted, [judge]).retained.mean() >= 0.5
    noise_images = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    assert not judge_images(noise_images, wanted, [judge]).retained.any()
    with pytest.raises(RecipeError, match="no CLIP model"):
        load_judges(tmp_path, "sd1", names)
    assert load_judges("family", "sd1", names) == ()


def test_the_pipeline_keeps_its_scheduler_and_bar_even_after_an_error(pipe):
    scheduler = pipe.scheduler
    assert type(scheduler) is DDIMScheduler
    (first, *_) = gate_prompts(VIOLIN, "emoji", counts=FEW).prompts
    broken = dataclasses.replace(first, text=3)
    with pytest.raises(ValueError, match="text input"):
        sample(pipe, [broken], EMOJI_SAMPLER, progress=False)
    assert pipe.scheduler is scheduler
    assert not hasattr(pipe, "_progress_bar_config")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_other_families_are_drawn_and_not_judged(kind):
    pipe = tiny_pipeline(kind, safety=kind == "sd1")
    checker = getattr(pipe, "safety_checker", None)
    given = Concept(name="Van Gogh", aliases=("Vincent",), kind="style")
    report = evaluate_gate(
        pipe,
        SimpleNamespace(applied=nullcontext),
        [given],
        family_name=kind,
        near=["Monet"],
        sampler=Sampler(steps=2, guidance=2, batch=16),
        counts=Counts(name=2, least=1, names=2, images=2),
        progress=False,
    )
    assert (report.verdict.status, report.passed) == ("not judged", None)
    assert report.aliases_given
    assert report.metrics["drift"]["near_pixel"].value == 0
    assert {row.name for row in report.names} == set()
    assert "no judge" in report.summary()
    assert getattr(pipe, "safety_checker", None) is checker


def test_a_weight_edit_of_strength_zero_draws_the_base_bit_for_bit(pipe):
    name = next(n for n, _ in pipe.unet.named_modules() if n.endswith("attn2.to_v"))
    rows, columns = pipe.unet.get_submodule(name).weight.shape
    factors = {f"unet.{name}": LowRank(B=torch.ones(rows, 1), A=torch.ones(1, columns))}
    edit = WeightEdit(factors=factors)
    prompts = gate_prompts(VIOLIN, "emoji", counts=FEW).prompts[:2]
    sampler = dataclasses.replace(EMOJI_SAMPLER, steps=4)
    base = sample(pipe, prompts, sampler, progress=False)
    for strength, same in ((0, True), (1, False)):
        with edit.scaled(strength).applied(pipe):
            drawn = sample(pipe, prompts, sampler, progress=False)
        assert np.array_equal(base, drawn) is same
    assert np.array_equal(base, sample(pipe, prompts, sampler, progress=False))


def test_noise_depends_on_prompt_and_seed_alone():
    shape = (16, 8, 8)
    assert torch.equal(noise("violin/t1", 4000, shape), noise("violin/t1", 4000, shape))
    assert not torch.equal(noise("violin/t1", 4000, shape), noise("violin/t1", 4001, shape))
    assert not torch.equal(noise("violin/t1", 4000, shape), noise("violin/t2", 4000, shape))


def test_batch_size_changes_at_most_rounding(pipe):
    plan = gate_prompts(VIOLIN, "emoji", counts=FEW).prompts[:4]
    few = dataclasses.replace(EMOJI_SAMPLER, batch=3)
    one, two = (
        sample(pipe, plan, sampler, dtype="float32", progress=False)
        for sampler in (EMOJI_SAMPLER, few)
    )
    assert np.abs(one.astype(int) - two).max() <= 2


def test_a_killed_evaluation_resumes_with_the_same_bytes(pipe, tmp_path, monkeypatch):
    plan = gate_prompts(VIOLIN, "emoji", counts=FEW).prompts[:4]
    sampler = dataclasses.replace(EMOJI_SAMPLER, batch=2, steps=4)
    whole = sample(pipe, plan, sampler, progress=False)
    options = {"progress": False, "workdir": tmp_path}
    calls = []
    call = StableDiffusionPipeline.__call__

    def killed(self, *args, **kwargs):
        calls.append(kwargs["prompt"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(pipe, plan, sampler, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert np.array_equal(sample(pipe, plan, sampler, **options), whole)
    assert len(calls) == 3
    (tmp_path / "images-000.safetensors").write_bytes(b"torn")
    assert np.array_equal(sample(pipe, plan, sampler, **options), whole)
    assert len(calls) == 4


def test_the_gate_draws_what_the_benchmark_says():
    plan = gate_prompts(VIOLIN, "emoji")
    count = {s: sum(len(p.seeds) for p in plan.prompts if p.set == s) for s in _sets(plan)}
    assert count == {"name": 64, "alias": 64, "near": 64, "far": 64}
    assert plan.drawn == 512
    assert [len({p.name for p in plan.prompts if p.set == s}) for s in count] == [1, 2, 8, 8]
    assert {p.name for p in plan.prompts if p.set == "alias"} == {"fiddle", "viola"}
    assert {p.template for p in plan.prompts if p.set == "alias"} == {"t1", "t2", "t4", "t7"}
    assert {p.template for p in plan.prompts if p.set in ("near", "far")} == {"t1", "t4"}
    near = emoji.manifest().near["violin"]
    assert {p.name for p in plan.prompts if p.set == "near"} == {*near.meaning, *near.appearance}
    assert all(4000 <= seed < 10000 for p in plan.prompts for seed in p.seeds)
    other = gate_prompts(VIOLIN, "emoji", seed=1)
    seeds = [{s for p in q.prompts for s in p.seeds} for q in (plan, other)]
    assert not seeds[0] & seeds[1]


def _sets(plan):
    return dict.fromkeys(prompt.set for prompt in plan.prompts)


@pytest.mark.parametrize("name", ["spider", "horse", "guitar", "volcano", "weapon", "fruit"])
def test_every_known_name_has_eight_near_and_eight_far_names(name):
    plan = gate_prompts((Concept(name=name),), "emoji")
    words = {s: {p.name for p in plan.prompts if p.set == s} for s in ("near", "far")}
    assert [len(words["near"]), len(words["far"])] == [8, 8]
    own = {label for p in plan.prompts if p.set == "name" for label in p.labels}
    assert own
    assert not words["near"] & words["far"]
    assert not (words["near"] | words["far"]) & own


def test_several_concepts_share_the_images_and_skip_each_other():
    concepts = [Concept(name=n) for n in ("violin", "spider", "cat", "umbrella", "frog")]
    plan = gate_prompts(concepts, "emoji")
    kept = {p.name for p in plan.prompts if p.set in ("near", "far")}
    assert not kept & {*(c.name for c in concepts), "cat face"}
    images = {
        c.name: sum(len(p.seeds) for p in plan.prompts if (p.set, p.concept) == ("name", c.name))
        for c in concepts
    }
    assert set(images.values()) == {12}
    assert len({p.template for p in plan.prompts if p.set == "name"}) == 8
    near = [p for p in plan.prompts if p.set == "near"]
    assert sum(len(p.seeds) for p in near) == 16 * 8
    many = [Concept(name=n) for n in emoji.manifest().multi["50"]]
    least = {c.name: 0 for c in many}
    for prompt in gate_prompts(many, "emoji").prompts:
        if prompt.set == "name":
            least[prompt.name] += len(prompt.seeds)
    assert set(least.values()) == {8}


def test_given_aliases_are_not_what_is_scored():
    given = Concept(name="violin", aliases=("fiddle",))
    plan = gate_prompts((given,), "emoji")
    assert {p.name for p in plan.prompts if p.set == "alias"} == {"viola"}
    all_given = Concept(name="violin", aliases=("fiddle", "viola"))
    plan = gate_prompts((all_given,), "emoji")
    assert {p.name for p in plan.prompts if p.set == "alias"} == {"fiddle", "viola"}
    assert "given to the eraser" in plan.notes[0]


def test_colors_and_styles_are_ones_the_drawing_can_have():
    from editforge.judges.calibration import calibration

    manifest = emoji.manifest()
    for concept in manifest.concepts:
        main = calibration().main_colors[concept.name]
        for prompt in gate_prompts((Concept(name=concept.name),), "emoji").prompts:
            if prompt.set == "name":
                assert f"on a {main} background" not in prompt.text
                assert "white background" not in prompt.text
                styles = [s.name for s in manifest.styles if f"{s.name} style" in prompt.text]
                assert set(styles) <= set(concept.art)
                assert bool(styles) == (prompt.template in ("t6", "t7", "t8"))


def test_an_unknown_word_and_other_families_are_not_judged_but_drawn():
    plan = gate_prompts((Concept(name="giraffe"),), "emoji")
    assert all(p.labels == () for p in plan.prompts if p.name == "giraffe")
    assert "giraffe" not in plan.labels
    assert len({p.name for p in plan.prompts if p.set == "far"}) == 8
    plan = gate_prompts(
        (Concept(name="Van Gogh", kind="style"),), "sd1", near=["Monet", "Van Gogh"]
    )
    texts = [p.text for p in plan.prompts if p.set == "near"]
    assert texts[0] == "a painting in the style of Monet"
    assert not any("Van Gogh" in text for text in texts)
    assert len({p.name for p in plan.prompts if p.set == "far"}) == 8


def test_no_concepts_are_refused_and_every_seed_has_scoring_seeds():
    with pytest.raises(RecipeError, match="nothing is erased"):
        gate_prompts((), "emoji")
    for seed in (92, 93, 100, 2**63 - 1):
        plan = gate_prompts(VIOLIN, "emoji", seed=seed)
        assert all(4000 <= one < 10000 for p in plan.prompts for one in p.seeds)


def test_the_reference_is_the_target_on_the_noise_of_the_first_name_images():
    plan = gate_prompts(VIOLIN, "emoji", targets={"violin": "dagger"})
    assert plan.drawn == 544
    own = {p.id: p for p in plan.prompts if p.set == "name"}
    for prompt in plan.reference:
        assert prompt.text == own[prompt.id].text.replace("violin", "dagger")
        assert prompt.seeds == own[prompt.id].seeds[:4]
    empty = gate_prompts(VIOLIN, "emoji", targets={"violin": ""})
    assert {p.text for p in empty.reference} == {""}
    guitar = gate_prompts(VIOLIN, "emoji", targets={"violin": "guitar"})
    assert "guitar" not in {p.name for p in guitar.prompts}
    both = gate_prompts(
        [*VIOLIN, Concept(name="spider")], "emoji", targets={"violin": "trumpet", "spider": "ant"}
    )
    assert {p.concept for p in both.reference} == {"violin", "spider"}
    style = Concept(name="Van Gogh", kind="style")
    plan = gate_prompts([style], "sd1", targets={"Van Gogh": "Monet"})
    assert plan.reference[0].text == "a painting in the style of Monet"
    assert "Monet" in plan.labels


def test_a_family_draws_with_the_sampler_that_it_names():
    assert (default_sampler("sdxl").guidance, default_sampler("sdxl").steps) == (5.0, 25)
    assert default_sampler("emoji").record() == {
        "name": "DPMSolverMultistepScheduler",
        "solver_order": 2,
        "steps": 12,
        "guidance": 4.0,
        "size": None,
    }
    tiny = tiny_pipeline("sdxl")
    assert own_size(tiny) == tiny.default_sample_size * tiny.vae_scale_factor


def test_a_report_refuses_what_is_not_a_number(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        Estimate(value=float("nan"), lo=0, hi=1, n=1, unit="images")
    with pytest.raises(ValueError, match="reason"):
        Estimate(value=None, lo=None, hi=None, n=0, unit="images", defined=False)
    with pytest.raises(ValueError, match="cannot have passed"):
        Verdict(status="not judged", passed=True, message="")
    (tmp_path / "editforge_results.json").write_text('{"schema": "other/1"}')
    with pytest.raises(PackageError, match="another schema"):
        Report.load(tmp_path)


def test_a_changed_picture_or_number_is_refused(gate, tmp_path):
    gate(TO_TRUMPET, judge=None).save(tmp_path)
    good = (tmp_path / "editforge_results.json").read_text()
    (tmp_path / "editforge_results.json").write_text(good.replace('"n": 8', '"n": -8'))
    with pytest.raises(PackageError, match="damaged"):
        Report.load(tmp_path)
    (tmp_path / "editforge_results.json").write_text(good)
    (tmp_path / "grid.png").write_bytes(b"no picture")
    with pytest.raises(PackageError, match=r"grid\.png is missing or has changed"):
        Report.load(tmp_path)
