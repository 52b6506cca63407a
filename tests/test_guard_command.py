"""`editforge guard`: built, looked at, calibrated anew, baked; and the script that a user writes."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import editforge as package
from editforge import PrototypeGuard
from editforge.artifacts.weight_edit import WeightEdit
from editforge.emoji import load_pipeline
from editforge.families.draw import Sampler, sample
from editforge.ground.errors import RecipeError
from editforge.recipe.layers import resolve
from editforge.run.guarding import baked_recipe
from editforge.run.order import execute
from tests.command import ENVIRONMENT, editforge

FEW = ("--set", "mine.prototypes.num_pairs=12", "--set", "mine.prototypes.pictures=2")
FEW += ("--set", "mine.prototypes.steps=60")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One guard, with a typed target: what it becomes is not asked about here."""
    folder = tmp_path_factory.mktemp("guard")
    members = [f"--alias={name}" for name in ("wine glass", "beer mug", "cocktail glass")]
    done = editforge(
        "guard", "build", "alcohol", *members, "--target", "lemon", "--number", "3", *FEW,
        "--output", "bank", "--json", cwd=folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder, done


def test_build_says_what_it_found_and_judges_nothing(built):
    folder, done = built
    assert "prototypes" in done.err
    assert "harmless" in done.err
    assert done.json["verdict"] is None
    assert (folder / "bank" / "package" / "bank" / "bank.safetensors").is_file()
    assert (folder / "bank" / "mine" / "clusters-0.png").is_file()
    guard = PrototypeGuard.from_pretrained(folder / "bank")
    assert len(guard.tensors["selector"]) == 3
    assert guard == package.load_edit(folder / "bank")


def test_try_draws_both_sides_and_leaves_the_other_prompt_alone(built):
    folder, _ = built
    done = editforge(
        "guard", "try", "bank", "--prompt", "a wine glass", "--prompt", "a violin",
        "--pictures", "2", "--output", "look.png", "--json", cwd=folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    first, second = done.json["prompts"]
    assert first["triggered"] == ["alcohol"]
    assert not first["untouched"]
    assert second["triggered"] == []
    assert second["untouched"]
    assert Image.open(folder / "look.png").width > 500


def test_calibrate_moves_the_threshold_by_your_own_prompts(built):
    folder, _ = built
    lines = [f"a picture of {word}, number {at}" for word in ("cats", "dogs") for at in range(30)]
    (folder / "benign.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "guilty.txt").write_text("a beer mug on a table\nwine glass\n", encoding="utf-8")
    done = editforge(
        "guard", "calibrate", "bank", "--benign", "benign.txt", "--held-out", "guilty.txt",
        "--rate", "0.05", "--output", "again.safetensors", "--json", cwd=folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    concept = done.json["concepts"][0]
    assert concept["benign"] == 30
    assert concept["missed"] == 2
    before = PrototypeGuard.from_pretrained(folder / "bank")
    after = PrototypeGuard.from_pretrained(folder / "again.safetensors")
    assert after != before
    assert torch.equal(after.tensors["token"], before.tensors["token"])
    assert after.provenance["calibrated_again"]["prompts"] == 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("try", "nowhere", "--prompt", "x"), "no bank here"),
        (
            ("calibrate", "bank", "--benign", "none.txt", "--output", "x.safetensors"),
            "no such list",
        ),
        (("bake", "nowhere"), "no run"),
        (("build", "alcohol", "--pairs", "none.yaml"), "none.yaml"),
        (("build", "alcohol", "--clip", "nowhere"), "no CLIP model"),
        (("try", "bank", "--prompt", "x", "--strength", "-1"), "negative strength"),
    ],
)
def test_bad_input_is_told_and_exits_with_2(built, arguments, said):
    folder, _ = built
    done = editforge("guard", *arguments, cwd=folder)
    assert done.code == 2, done.err
    assert said in done.err


def test_too_few_harmless_prompts_are_refused(built):
    folder, _ = built
    (folder / "few.txt").write_text("a cat\na dog\n", encoding="utf-8")
    done = editforge(
        "guard", "calibrate", "bank", "--benign", "few.txt", "--output", "x.safetensors", cwd=folder
    )
    assert done.code == 2
    assert "too few harmless prompts" in done.err
    assert not (folder / "x.safetensors").exists()


def test_bake_makes_a_lora_that_stock_diffusers_loads(built):
    folder, _ = built
    train = ("align.steps=2", "align.batch=1", "align.erase_runs=2", "align.keep_runs=2",
             "align.sample_steps=4", "align.kept_times=2", "evaluate=null")  # fmt: skip
    sets = [part for text in train for part in ("--set", text)]
    done = editforge("guard", "bake", "bank", "--output", "baked", *sets, "--json", cwd=folder)
    assert done.code == 0, done.err
    edit = package.load_edit(folder / "baked")
    assert isinstance(edit, WeightEdit)
    # as the pipeline was trained with the guard's own mining, not anew
    own = yaml.safe_load((folder / "bank" / "recipe.yaml").read_text())
    assert yaml.safe_load((folder / "baked" / "recipe.yaml").read_text())["mine"] == own["mine"]
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    before = drawn(pipe)
    pipe.load_lora_weights(str(folder / "baked" / "package" / "lora"))
    assert not np.array_equal(drawn(pipe), before)
    pipe.unload_lora_weights()
    assert np.array_equal(drawn(pipe), before)


def drawn(pipe):
    class Row:
        id, text, seeds = "wine", "a wine glass", (1,)

    return sample(pipe, [Row()], Sampler(steps=2, guidance=4.0), progress=False)


def test_prototypes_add_columns_to_the_closed_form(built):
    folder, _ = built
    sets = ("align=null", "evaluate=null")
    options = [part for text in sets for part in ("--set", text)]
    done = editforge(
        "guard", "bake", "bank", "--no-lora", "--output", "closed", *options, cwd=folder
    )
    assert done.code == 0, done.err
    with_ = package.load_edit(folder / "closed")
    recipe = baked_recipe(
        folder / "bank", lora=False, sets=["evaluate=null", "edit.use=mean-shift"]
    )
    without = execute(recipe, folder / "plain").eraser
    assert with_.exact_rank > without.exact_rank
    assert with_.exact_rank <= without.exact_rank + 3


def test_baking_needs_prototypes(tmp_path):
    recipe = resolve(
        "prototype-baked",
        {"concepts": [{"name": "violin"}], "mine": [{"use": "vocabulary"}], "evaluate": None},
        ["target={use: fixed, text: trumpet}"],
    )
    with pytest.raises(RecipeError, match="no prototypes"):
        execute(recipe, tmp_path / "run")


def test_the_script_of_a_diffusers_user(built):
    """Imports diffusers and `editforge.PrototypeGuard` alone, in a Python of its own."""
    folder, _ = built
    from editforge.emoji import folder as pipeline

    script = f"""
        import torch
        from diffusers import StableDiffusionPipeline
        from editforge import PrototypeGuard

        pipe = StableDiffusionPipeline.from_pretrained({str(pipeline())!r}, dtype=torch.float32)
        pipe.text_encoder.float()
        guard = PrototypeGuard.from_pretrained("bank/package/bank")
        draw = lambda prompt: pipe(
            prompt, num_inference_steps=3, guidance_scale=4.0, height=64, width=64,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images
        stock = [draw("a wine glass"), draw("a violin")]
        guard.attach(pipe)
        guarded = [draw("a wine glass"), draw("a violin")]
        guard.detach(pipe)
        again = draw("a wine glass")
        print([bool((a == b).all()) for a, b in zip(stock, guarded)], bool((again == stock[0]).all()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[False, True] True"
    assert json.loads((folder / "bank" / "package" / "bank" / "editforge.json").read_text())
