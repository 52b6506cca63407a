"""What a user of Stable Diffusion meets in the first hour: a test for each kind of fault found."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from editforge.artifacts.lora.read import read_lora
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.config import ModelConfig
from editforge.families.draw import Sampler, Shown, sample
from editforge.families.live import LiveModel
from editforge.families.model import Model, Origin
from editforge.families.sampling import default_sampler, own_sampler
from editforge.families.schema import Family, load_family
from editforge.ground.disk import dump_yaml
from editforge.ground.errors import FamilyError, PackageError, RecipeError
from editforge.ground.files import read_header, write_safetensors
from editforge.package.exports import exporter
from editforge.package.inspect import inspect_file
from editforge.recipe.layers import resolve
from editforge.run.check import check_model
from tests.command import editforge
from tests.kinds import DISTILLED, INPAINT, KINDS, PIX2PIX, build
from tests.models import LOOSE, family_file, opened, recipe, solved, tiny_folder
from tests.test_checkpoints import refiner_family
from tests.tiny import random_edit, tiny_family, tiny_model, tiny_pipeline

TRUMPET = {"target": {"use": "fixed", "text": "trumpet"}}


# --- how a checkpoint is drawn ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("unet", "scheduler", "expected"),
    [
        ({}, {"_class_name": "PNDMScheduler"}, (25, 7.5, None)),
        ({"time_cond_proj_dim": 256}, {"_class_name": "LCMScheduler"}, (4, 8.0, "LCMScheduler")),
        ({}, {"_class_name": "LCMScheduler"}, (4, 1.0, "LCMScheduler")),
        (
            {},
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            (4, 0.0, "EulerDiscreteScheduler"),
        ),
        (
            {},
            {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
            },
            (25, 7.5, None),
        ),
        ({}, {"_class_name": "EulerDiscreteScheduler"}, (25, 7.5, None)),
        (
            {},
            {"_class_name": "EDMDPMSolverMultistepScheduler"},
            (25, 3.0, "EDMDPMSolverMultistepScheduler"),
        ),
    ],
)
def test_a_checkpoint_is_drawn_as_its_kind_is(unet, scheduler, expected):
    found = own_sampler(load_family("sd1"), unet, scheduler)
    assert (found.steps, found.guidance, found.scheduler) == expected
    name = expected[2] or "DPMSolverMultistepScheduler"
    assert found.record()["name"] == name
    told = own_sampler(load_family("sd1"), unet, scheduler, steps=9, guidance=2.0)
    assert (told.steps, told.guidance, told.scheduler) == (9, 2.0, expected[2])


def test_the_sampler_of_a_family_file_and_of_the_user_have_an_effect(tmp_path):
    body = tiny_family("sd1").model_dump(mode="json")
    body["sampler"] |= {"steps": 7, "guidance": 1.5}
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(body))
    model = Model(tiny_folder("sd1"), Origin("tiny"), family=str(path))
    assert (model.sampler.steps, model.sampler.guidance) == (7, 1.5)
    model = Model(tiny_folder("sd1"), Origin("tiny"), family=str(path), steps=3, guidance=0.0)
    assert (model.sampler.steps, model.sampler.guidance) == (3, 0.0)


def test_a_scheduler_that_adds_noise_draws_the_same_twice_and_in_any_batch():
    pipe = tiny_pipeline("sd1")
    from diffusers import EulerAncestralDiscreteScheduler

    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    rows = [Shown("a", "a violin", (0, 1)), Shown("b", "a cat", (0,))]
    sampler = Sampler(2, 0.0, scheduler="EulerAncestralDiscreteScheduler")
    once = sample(pipe, rows, sampler, progress=False, dtype="float32")
    again = sample(pipe, rows, sampler, progress=False, dtype="float32")
    alone = sample(pipe, rows[1:], sampler, progress=False, dtype="float32")
    assert (once == again).all()
    assert (abs(once[2].astype(int) - alone[0].astype(int)) <= 1).all()


def test_a_recipe_without_the_new_options_reads_as_before():
    body = recipe("violin").model_dump(mode="json")
    assert not {"vae", "clip_skip", "steps", "guidance"} & set(body["model"])
    told = recipe("violin", None, "model.steps=8", "model.clip_skip=2").model_dump(mode="json")
    assert (told["model"]["steps"], told["model"]["clip_skip"]) == (8, 2)


# --- clip skip ---------------------------------------------------------------------------------


def test_clip_skip_reads_the_last_layer_but_one_and_leaves_the_encoder_whole():
    model = Model(tiny_folder("sd1"), Origin("tiny"), family=family_file("sd1"), clip_skip=2)
    states = model.encoder.encode(["a violin"])
    encoder = model.encoder.pipe.text_encoder
    ids = model.encoder.pipe.tokenizer(
        "a violin", padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        seen = encoder(ids, output_hidden_states=True)
        wanted = getattr(encoder, "text_model", encoder).final_layer_norm(seen.hidden_states[-2])
    torch.testing.assert_close(states, wanted)
    assert not torch.allclose(states, opened("sd1").encoder.encode(["a violin"]), atol=1e-3)
    drawn = model.pipeline()
    with torch.no_grad():
        torch.testing.assert_close(drawn.text_encoder(ids)[0], wanted)


def test_a_family_of_penultimate_states_is_another_edit(tmp_path):
    body = tiny_family("sd1").model_dump(mode="json")
    body["text"][0]["states"] = "penultimate"
    path = tmp_path / "skip.yaml"
    path.write_text(dump_yaml(body))
    skipping = Model(tiny_folder("sd1"), Origin("tiny"), family=str(path))
    made = recipe("violin", TRUMPET, *LOOSE, method="uce")
    mine, usual = (solved(one, made)[2].edit for one in (skipping, opened("sd1")))
    assert usual.difference(mine) > 0.01
    pipe = tiny_pipeline("sd1")
    live = [LiveModel(pipe, str(path)), LiveModel(pipe, family_file("sd1"), clip_skip=2)]
    for one in live:
        found = one.encoder.encode(["a cat"])
        torch.testing.assert_close(found, skipping.encoder.encode(["a cat"]))
    assert len(pipe.text_encoder.encoder.layers) == 2


@pytest.mark.parametrize("kind", ["sdxl"])
def test_clip_skip_is_refused_where_it_would_do_nothing(kind):
    with pytest.raises(FamilyError, match="has no clip skip"):
        load_family(kind).clip_skip(2)
    body = load_family(kind).model_dump(mode="json")
    body["text"][0]["states"] = "last"
    with pytest.raises(ValueError, match="gives other states"):
        Family.model_validate(body)
    model = Model(tiny_folder("sd1"), Origin("tiny"), family=family_file("sd1"), clip_skip=9)
    with pytest.raises(RecipeError, match="not that many layers"):
        model.encoder.encode(["a violin"])


# --- other pipelines in Python -----------------------------------------------------------------


def in_memory(changes, cls=None):
    import diffusers

    pipe = tiny_pipeline("sd1")
    if changes:
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, **changes)
    if cls is None:
        return pipe
    return getattr(diffusers, cls)(**pipe.components, requires_safety_checker=False)


@pytest.mark.parametrize(
    ("changes", "cls", "maps"),
    [
        (INPAINT, "StableDiffusionInpaintPipeline", 32),
        (PIX2PIX, "StableDiffusionInstructPix2PixPipeline", 32),
        (DISTILLED, None, 18),
        ({"time_cond_proj_dim": 8}, "LatentConsistencyModelPipeline", 32),
    ],
)
def test_python_takes_any_pipeline_of_a_familys_parts(changes, cls, maps):
    model = LiveModel(in_memory(changes, cls), family_file("sd1"))
    assert len(model.paths) == maps
    states = model.encoder.encode(["a violin"])
    torch.testing.assert_close(states, opened("sd1").encoder.encode(["a violin"]))
    edit = solved(model, recipe("violin", TRUMPET, *LOOSE, method="uce"))[2].edit
    assert set(edit.factors) == set(model.paths)
    before = model.weight(model.paths[0]).clone()
    pipe = model.pipeline()
    edit.apply(pipe)
    assert not torch.equal(model.weight(model.paths[0]), before)
    edit.remove(pipe)
    assert torch.equal(model.weight(model.paths[0]), before)


def test_a_denoiser_that_reads_a_picture_is_not_trained_and_is_told_so_at_once(tmp_path):
    folder, _ = build(tmp_path, KINDS["SD 1.x inpainting, folder"])
    model = Model(folder, Origin("tiny"), family=family_file("sd1"))
    made = resolve("realera", {"concepts": [{"name": "violin"}]}, LOOSE)
    with pytest.raises(RecipeError, match="reads noise alone"):
        check_model(made, model)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("SD 1.x inpainting, folder", lambda: family_file("sd1")),
        ("SDXL refiner, folder", refiner_family),
    ],
)
def test_what_paints_over_goes_through_the_command_with_its_pictures(name, family, tmp_path):
    folder, _ = build(tmp_path, KINDS[name])
    done = editforge(
        *("erase", "violin", "--method", "uce", "--target", "trumpet", "--preserve", "guitar"),
        *("--model", str(folder), "--set", f"model.family={family()}"),
        *("--set", "mine=null", "--set", "model.steps=1", "--output", "out", "--json"),
        *(word for line in LOOSE for word in ("--set", line)),
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "evaluate" / "grid.png").is_file()
    assert json.loads(done.out.splitlines()[-1])["next"].endswith("--judge objects")


# --- what comes out ------------------------------------------------------------------------------


def test_python_writes_half_precision_and_kohya(tmp_path):
    edit = random_edit(tiny_model(tiny_folder("sd1"), "sd1"))
    wide = {n: pair for n, pair in edit.factors.items() if pair.shape[1] == 24}
    assert wide, "the tiny model's text width"
    edit.save_lora(tmp_path, dtype=torch.float16, kohya="violin-erased")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["pytorch_lora_weights.safetensors", "violin-erased.safetensors"]
    for name in files:
        assert {i.dtype for n, i in read_header(tmp_path / name)[1].items() if i.shape} == {"F16"}
        assert edit.difference(read_lora(tmp_path / name)) < 2e-3
    pipe = StableDiffusionPipeline(**tiny_pipeline("sd1").components, requires_safety_checker=False)
    pipe.load_lora_weights(tmp_path)  # of two files diffusers takes its own
    assert len(pipe.get_list_adapters()["unet"]) == 1


def test_python_refuses_kohya_for_a_denoiser_that_no_app_knows(tmp_path):
    with pytest.raises(PackageError, match="no kohya format") as caught:
        WeightEdit({"unet.block.attn2.to_k": random_pair()}).save_lora(tmp_path, kohya="x")
    assert "leave out kohya" in caught.value.next
    assert list(tmp_path.iterdir()) == []


def random_pair():
    from editforge.artifacts.low_rank import LowRank

    return LowRank(torch.ones(8, 1), torch.ones(1, 24))


def test_package_dtype_is_the_loras_too(tmp_path):
    model = opened("sd1")
    edit = random_edit(tiny_model(tiny_folder("sd1"), "sd1"))
    sizes = {}
    for dtype in ("base", "float16"):
        written = exporter("lora").write(model, edit, tmp_path / dtype, "x-erased", dtype)
        sizes[dtype] = (tmp_path / dtype / "x-erased.safetensors").stat().st_size
    assert written.facts["dtype"] == "float16"
    assert 0 < written.facts["relative_error"] < 2e-3
    assert sizes["float16"] < 0.8 * sizes["base"]


def test_what_a_package_has_to_say_is_said_and_on_its_card(tmp_path):
    folder, _ = build(tmp_path, KINDS["distilled SD 1.x (small-sd, BK-SDM), folder"])
    done = editforge(
        *("erase", "violin", "--method", "uce", "--target", "trumpet", "--preserve", "guitar"),
        *("--model", str(folder), "--set", f"model.family={family_file('sd1')}"),
        *("--set", "mine=null", "--set", "evaluate=null", "--output", "out"),
        *(word for line in LOOSE for word in ("--set", line)),
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    note = "names the blocks of a distilled base"
    assert note in done.err
    assert note in (tmp_path / "out" / "package" / "lora" / "README.md").read_text()


def test_two_erasers_that_share_words_are_warned_of(caplog):
    def named(name):
        edit = random_edit(tiny_model(tiny_folder("sd1"), "sd1"))
        return replace(edit, provenance={"erased": [{"name": name, "target": "cat"}]})

    def said():
        return [row.getMessage() for row in caplog.records if row.name == "editforge"]

    with caplog.at_level(logging.WARNING, logger="editforge"):
        _ = named("dog") + named("cat food")
        assert said() == []
        _ = named("dog") + named("hot dog")
    assert "editforge.erase(pipe, ['dog', 'hot dog'])" in said()[0]


def test_a_lora_of_denoiser_and_text_encoder_is_read_key_by_key(tmp_path):
    model = tiny_model(tiny_folder("sd1"), "sd1")
    exporter("lora").write(model, random_edit(model), tmp_path, "mine", "base")
    from editforge.ground.files import read_tensors

    table = read_tensors(tmp_path / "mine.safetensors")
    for layer in range(12):
        for part in ("self_attn_q_proj", "self_attn_out_proj", "mlp_fc1"):
            stem = f"lora_te_text_model_encoder_layers_{layer}_{part}"
            table |= {f"{stem}.lora_down.weight": torch.zeros(2, 24)}
            table |= {f"{stem}.lora_up.weight": torch.zeros(24, 2), f"{stem}.alpha": torch.ones(())}
    table["lora_te_text_model_encoder_layers_0_nothing.alpha"] = torch.ones(())
    write_safetensors(tmp_path / "both.safetensors", table, {})
    found = inspect_file(tmp_path / "both.safetensors", "comfyui")
    assert found.family == "sd1"
    assert len(found.matched) == len(table) - 1
    assert found.unmatched == ["lora_te_text_model_encoder_layers_0_nothing.alpha"]
    assert "text encoder" in found.note


def test_the_embedded_model_is_drawn_as_before():
    assert opened("emoji").sampler == default_sampler("emoji")
    assert ModelConfig().model_dump() == {
        "id": "emoji",
        "revision": None,
        "variant": None,
        "dtype": None,
        "device": "auto",
        "family": None,
        "config": None,
        "base": None,
    }
