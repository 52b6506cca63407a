"""The three lines of Python, on the embedded model where a picture means something."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import editforge
from editforge import emoji
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditError, FamilyError, PackageError, RecipeError
from tests.models import family_file, opened, recipe, solved, tiny_folder
from tests.tiny import one_thread, random_edit, tiny_model, tiny_pipeline

FAST = ["edit.background_limit=40"]


@pytest.fixture(scope="module")
def pipe():
    pipe = emoji.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def edit(pipe):
    return editforge.erase(pipe, ["violin"], options=FAST, progress=False)


def bits(pipe):
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    return [weight.detach().clone() for part in parts for weight in part.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pictures(pipe, prompt, count=4):
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    with one_thread(), torch.no_grad():
        return pipe(
            [prompt] * count,
            num_inference_steps=12,
            guidance_scale=4.0,
            height=64,
            width=64,
            generator=generators,
            output_type="pt",
        ).images


def labels(images):
    judge = emoji.load_judge("a")
    with one_thread(), torch.no_grad():
        logits = judge(pixel_values=images.float() * 2 - 1).logits
    return [judge.config.id2label[int(index)] for index in logits.argmax(dim=1)]


# --- the pipeline and the picture -----------------------------------------------------------------


def test_erase_leaves_the_pipeline_untouched(pipe):
    before, length = bits(pipe), pipe.tokenizer.model_max_length
    made = editforge.erase(pipe, "spider", options=FAST, progress=False)
    assert isinstance(made, editforge.WeightEdit)
    assert same(before, bits(pipe))
    assert pipe.tokenizer.model_max_length == length
    with made.applied(pipe):
        assert not same(before, bits(pipe))


def test_apply_takes_the_violin_out_of_its_picture_and_remove_brings_it_back(pipe, edit):
    prompt = "an emoji of a violin"
    before = pictures(pipe, prompt)
    assert labels(before).count("violin") >= 3  # the control: the base draws it
    edit.apply(pipe)
    after = pictures(pipe, prompt)
    edit.remove(pipe)
    assert "violin" not in labels(after)
    assert torch.equal(pictures(pipe, prompt), before)


def test_a_far_picture_stays_what_it_was(pipe, edit):
    before = (
        pictures(pipe, "a lighthouse")
        if "lighthouse" in emoji.words()
        else pictures(pipe, "a pizza")
    )
    with edit.applied(pipe):
        after = pictures(pipe, "a lighthouse" if "lighthouse" in emoji.words() else "a pizza")
    agree = np.mean([a == b for a, b in zip(labels(before), labels(after), strict=True)])
    assert agree >= 0.75


def test_the_edit_says_what_it_is(edit):
    told = edit.provenance
    assert (told["method"], told["preset"], told["family"]) == ("default", "editforge", "emoji")
    assert [row["name"] for row in told["erased"]] == ["violin"]
    assert told["erased"][0]["target"]
    assert told["combined"] == "one concept"
    assert told["base_model"] == "a pipeline in memory"
    assert edit.exact_rank == 4


def test_two_names_are_erased_jointly(pipe):
    joint = editforge.erase(
        pipe, ["violin", {"name": "spider", "kind": "object"}], options=FAST, progress=False
    )
    assert joint.provenance["combined"] == "joint"
    assert joint.exact_rank == 8


# --- what it says ---------------------------------------------------------------------------------


@contextmanager
def no_logging_set_up(level=logging.NOTSET):
    """As in a program that never heard of logging; pytest has handlers of its own."""
    logger, root = logging.getLogger("editforge"), logging.root
    kept, before = root.handlers, logger.level
    root.handlers = []
    logger.setLevel(level or before)
    try:
        yield
    finally:
        root.handlers = kept
        logger.setLevel(before)


WARNS = ["edit.limits.change=[1.0e-6, 99]"]


def test_the_chosen_target_and_every_warning_are_seen_by_default(tiny, capsys):
    with no_logging_set_up():
        erase_tiny(tiny, options=WARNS)
    told = capsys.readouterr().err.splitlines()
    assert "'violin' becomes 'trumpet': yours" in told
    assert "preserved: trumpet, guitar" in told
    assert [line for line in told if line.startswith("warning: change")]
    assert not [line for line in told if "targets.yaml" in line]  # there is no folder


@pytest.mark.parametrize(("level", "kept"), [("WARNING", ["warning: change"]), ("ERROR", [])])
def test_how_much_is_said_is_the_loggers_level(level, kept, tiny, capsys):
    with no_logging_set_up(level):
        erase_tiny(tiny, options=WARNS)
    told = capsys.readouterr().err.splitlines()
    assert [line[:15] for line in told if line.startswith("warning: change")] == kept
    assert not [line for line in told if not line.startswith(("warning:", "note:"))]
    assert bool(told) is bool(kept)


def test_a_program_with_logging_of_its_own_gets_records_and_stderr_is_its_own(tiny, caplog, capsys):
    erase_tiny(tiny, options=WARNS)
    levels = {record.message.partition(":")[0]: record.levelname for record in caplog.records}
    assert levels["'violin' becomes 'trumpet'"] == levels["preserved"] == "INFO"
    assert levels["warning"] == "WARNING"
    assert {record.name for record in caplog.records} == {"editforge"}
    assert not capsys.readouterr().err


def test_an_edit_shows_its_target_and_no_tensor(edit):
    target = edit.provenance["erased"][0]["target"]
    assert repr(edit.scaled(0.5)) == (
        f"WeightEdit('violin' -> {target!r}, rank 4, {len(edit.factors)} weights, strength 0.5)"
    )
    many = WeightEdit({}, provenance={"erased": [{"name": n, "target": ""} for n in "abcde"]})
    assert "'c' -> '', and 2 more, rank 0" in repr(many)
    assert repr(WeightEdit({}, provenance={"erased": 3})).startswith("WeightEdit(rank 0")


# --- options --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return tiny_pipeline("sd1")


def erase_tiny(tiny, concepts="violin", **options):
    family = {"family": family_file("sd1"), "progress": False}
    return editforge.erase(
        tiny, concepts, **{"target": "trumpet", "preserve": ["guitar"], **family, **options}
    )


def test_a_target_and_a_preserve_list_are_taken_as_given(tiny):
    edit = erase_tiny(tiny)
    assert edit.provenance["erased"][0]["target"] == "trumpet"
    assert edit.provenance["preserve"] == ["trumpet", "guitar"]
    nothing = erase_tiny(tiny, target="", preserve=[])
    assert nothing.provenance["erased"][0]["target"] == ""
    assert nothing.provenance["preserve"] == []


def test_strength_scales_the_edit_and_a_recipes_own_strength_is_kept(tiny, tmp_path):
    plain, strong = erase_tiny(tiny), erase_tiny(tiny, strength=1.5)
    assert (plain.strength, strong.strength) == (1, 1.5)
    assert plain.scaled(1.5).difference(strong) < 1e-12
    path = tmp_path / "mine.yaml"
    path.write_text("concepts: [{name: violin}]\nstrength: 0.25\nseed: 3\n")
    own = erase_tiny(tiny, method=str(path))
    assert (own.strength, own.provenance["seed"]) == (0.25, 3)
    assert erase_tiny(tiny, method=str(path), strength=2.0).strength == 2


def test_methods_and_options_reach_the_recipe(tiny):
    loose = ["edit.limits.residual=[10, 100]"]
    ridge = erase_tiny(tiny, method="uce", options=loose)
    assert (ridge.provenance["method"], ridge.exact_rank) == ("uce", 1)
    assert (
        erase_tiny(tiny, method="uce", options=[*loose, "edit.tokens=subject_eot"]).exact_rank == 2
    )


@pytest.mark.parametrize(
    ("concepts", "options", "error"),
    [
        ([], {}, RecipeError),
        ("", {}, RecipeError),
        (["violin", "violin"], {}, RecipeError),
        ([{"nmae": "violin"}], {}, RecipeError),
        ("violin", {"target": "violin"}, RecipeError),
        ("violin", {"preserve": ["violin"]}, RecipeError),
        ("violin", {"method": "uec"}, RecipeError),
        ("violin", {"options": ["edit.rigde=1"]}, RecipeError),
        ("violin", {"strength": float("nan")}, RecipeError),
        ("violin", {"family": None}, FamilyError),
        ("violin", {"family": "sd3"}, FamilyError),
        ("violin", {"family": "sd1"}, FamilyError),
    ],
)
def test_bad_arguments_are_refused_and_the_pipeline_is_untouched(tiny, concepts, options, error):
    before = bits(tiny)
    with pytest.raises(error):
        erase_tiny(tiny, concepts, **options)
    assert same(before, bits(tiny))


def test_a_pipeline_of_another_kind_is_refused_with_the_known_ones():
    with pytest.raises(FamilyError, match="unknown architecture"):
        editforge.erase(tiny_pipeline("sdxl"), "violin", progress=False)


# --- saved edits ----------------------------------------------------------------------------------


def test_an_edit_is_loaded_from_a_file_a_run_or_a_lora(tiny, tmp_path):
    edit = erase_tiny(tiny)
    edit.save(tmp_path / "x.safetensors")
    edit.save(tmp_path / "run/edit/weight_edit.safetensors")
    edit.save_lora(tmp_path / "lora")
    for place in ("x.safetensors", "run", "lora", "lora/pytorch_lora_weights.safetensors"):
        assert edit.difference(editforge.load_edit(tmp_path / place)) < 1e-5
    assert editforge.load_edit(str(tmp_path / "run")).provenance == edit.provenance


def test_the_aligned_edit_of_a_run_wins_over_the_one_it_started_from(tmp_path):
    model = tiny_model(tiny_folder("sd1"), "sd1")
    first, last = random_edit(model, seed=0), random_edit(model, seed=1)
    first.save(tmp_path / "edit/weight_edit.safetensors")
    last.save(tmp_path / "align/weight_edit.safetensors")
    assert last.difference(editforge.load_edit(tmp_path)) < 1e-12


def test_where_no_edit_is_the_answer_says_what_could_be_there(tmp_path):
    with pytest.raises(PackageError, match="no edit here"):
        editforge.load_edit(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(PackageError):
        editforge.load_edit(tmp_path / "x.safetensors")


def test_a_loaded_edit_applies_and_comes_off(tiny, tmp_path):
    erase_tiny(tiny).save(tmp_path / "x")
    before, back = bits(tiny), editforge.load_edit(tmp_path / "x")
    with back.applied(tiny):
        assert not same(before, bits(tiny))
    assert same(before, bits(tiny))
    with pytest.raises(EditError):
        back.remove(tiny)


def test_the_api_and_a_model_on_disk_agree(tiny):
    sets = ("edit.limits.change=[10, 99]",)
    overrides = {"target": {"use": "fixed", "text": "trumpet"}, "preserve": ["guitar"]}
    on_disk = solved(opened("sd1"), recipe("violin", overrides, *sets))[2].edit
    assert erase_tiny(tiny).difference(on_disk) < 1e-5


# --- imports --------------------------------------------------------------------------------------


def imported(code):
    heavy = "('torch', 'diffusers', 'transformers', 'numpy')"
    line = f"{code}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", line], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_editforge_imports_nothing_heavy_and_using_it_does():
    assert imported("import editforge; dir(editforge); editforge.__version__") == "[]"
    assert "torch" in imported("import editforge; editforge.WeightEdit")
    light = (
        "from editforge.recipe import registry, methods\nfrom editforge.ground import errors, disk"
    )
    light += "\nfrom editforge.families import schema, config"
    light += "\nschema.load_family('sdxl'); methods.methods(); registry.names('edit')"
    assert imported(light) == "[]"


def test_the_public_names_are_there_and_others_are_not():
    assert {"erase", "load_edit", "WeightEdit"} <= set(dir(editforge))
    with pytest.raises(AttributeError, match="no attribute 'eraze'"):
        _ = editforge.eraze
