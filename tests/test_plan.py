"""`--dry-run`: what it says is what the run does, and it reads and fetches no weight."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants

from editforge.align.options import LoraOptions
from editforge.artifacts.weight_edit import WeightEdit
from editforge.evaluate.gate import evaluate_gate
from editforge.families.config import ModelConfig
from editforge.families.draw import Sampler
from editforge.families.open import describe
from editforge.families.outline import Outline, reader, wanted
from editforge.families.schema import load_family
from editforge.ground.errors import FamilyError, HubError, PackageError
from editforge.ground.files import read_tensors
from editforge.recipe.contract import StageConfig
from editforge.run.plan import plan
from tests.models import KINDS, TINY, family_file, opened, recipe, solved, tiny_folder
from tests.test_families import NAMES, published
from tests.tiny import save_tiny

REPO = "ann/tiny-model"
FIDDLE = {"name": "violin", "aliases": ["fiddle"]}


def stage(made, name):
    return next(what for key, what, _ in made.stages if key == name)


def on_hub(hub, folder):
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    extra = {"model.ckpt": b"x" * 999, "onnx/model.onnx": b"x" * 999, "README.md": b"# hi"}
    hub.repo(REPO, private=False, files={**files, **extra})
    return files


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("concepts", ["violin", ["spider", "frog"]])
def test_the_pictures_counted_are_the_pictures_drawn(concepts, tmp_path):
    """On the embedded model, through the real gate, with the cheapest sampler there is."""
    made = recipe(concepts, {"target": {"use": "fixed", "text": "trumpet"}})
    planned = plan(made, tmp_path / "run")
    evaluate_gate(
        opened("emoji").pipeline(),
        WeightEdit({}, exact_rank=0),
        made.concepts,
        family_name="emoji",
        targets={concept.name: "trumpet" for concept in made.concepts},
        sampler=Sampler(steps=1, guidance=1.0, size=32, batch=64),
        progress=False,
        workdir=tmp_path,
    )
    drawn = sum(len(read_tensors(path)["images"]) for path in tmp_path.glob("*.safetensors"))
    assert drawn > 100
    assert stage(planned, "evaluate") == f"{drawn} pictures on cpu"


def test_nothing_is_drawn_where_nothing_is_judged(tmp_path):
    planned = plan(recipe("violin", {"evaluate": None}), tmp_path)
    assert "evaluate" not in [name for name, _, _ in planned.stages]


# --- rank ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "sets"),
    [
        ("default", []),
        ("uce", []),
        ("uce", ["edit.tokens=subject_eot"]),
        ("uce", ["edit.tokens=all"]),
        ("uce", ["edit.templates=['{n}','{a}']"]),
        ("uce", ["edit.max_rank=2", "edit.tokens=all"]),
    ],
)
def test_the_rank_promised_is_a_bound_and_close_to_it(kind, method, sets, tmp_path):
    loose = [f"edit.limits.{key}=[9e9,9e9]" for key in ("residual", "change", "amplification")]
    over = {"target": {"use": "fixed", "text": "trumpet"}, "preserve": ["guitar"], "mine": None}
    if kind != "emoji":
        over["model"] = {"id": str(tiny_folder(kind)), "family": family_file(kind)}
    made = recipe([FIDDLE, "piano"], over, *sets, *loose, "edit.background=null", method=method)
    promised = plan(made, tmp_path / "run").rank
    edit = solved(opened(kind), made)[2].edit
    rank = edit.rank if edit.exact_rank is None else edit.exact_rank
    assert rank <= promised <= max(3 * rank, rank + 4)


def test_one_name_has_rank_four_by_default_and_one_by_uce(tmp_path):
    assert plan(recipe("violin"), tmp_path).rank == 4
    assert plan(recipe("violin", method="uce"), tmp_path).rank == 1
    assert plan(recipe(FIDDLE), tmp_path).rank == 8
    assert plan(recipe("fire engine"), tmp_path).rank == 8  # its last word, perhaps


def test_mined_words_points_around_them_and_a_lora_count(tmp_path):
    assert (
        plan(recipe("violin", {"mine": [{"use": "associates", "limit": 5}]}), tmp_path).rank == 24
    )
    points = {"mine": [{"use": "perturbation", "num_neighbors": 7}]}
    assert plan(recipe("violin", points, method="uce"), tmp_path).rank == 1 + 7
    still = recipe("violin", points, "edit.neighbor_map=translate", method="uce")
    assert plan(still, tmp_path).rank == 1
    aligned = recipe("violin", {"align": {"use": "esd", "rank": 5}})
    made = plan(aligned, tmp_path)
    assert made.rank == 4 + LoraOptions(rank=5).rank
    json.dumps(made.to_json(), allow_nan=False)  # training has no estimate, and JSON no NaN


def test_an_edit_that_cannot_say_its_rank_is_not_guessed(tmp_path, monkeypatch):
    from editforge.edit.mean_shift import MeanShiftConfig

    monkeypatch.setattr(MeanShiftConfig, "rank_of", StageConfig.rank_of)
    made = plan(recipe("violin"), tmp_path)
    assert made.rank is None
    assert made.to_json()["rank"] is None
    assert "rank not known" in made.text()


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "teraflops"), [("sd-1.4", 0.80), ("sdxl-base-1.0", 6.76)])
def test_a_forward_costs_what_published_counts_say(name, teraflops, tmp_path):
    """SD 1.x at 512: 0.8 TFLOP a forward of the UNet, 2.5 of the decoder; SDXL at 1024: 6.8 and 10."""
    body, family = published(name), load_family(published(name)["family"])
    outline = outlined(body, family, tmp_path)
    one = outline.image_flops(1, 1.0, family.sampler.size)
    decoder = outline.image_flops(0, 1.0, family.sampler.size)
    assert (one - decoder) / 1e12 == pytest.approx(teraflops, rel=0.02)
    assert 1 < decoder / 1e12 < 12
    whole = outline.image_flops(25, 7.5, family.sampler.size)
    assert whole == pytest.approx(50 * (one - decoder) + decoder)  # with guidance two a step
    assert [*outline.shapes] == [*shapes(body)]
    assert len(outline.paths) == (140 if name.startswith("sdxl") else 32)


def outlined(body, family, folder):
    """A folder with the configs alone of a published model."""
    blocks = [128, 256, 512, 512]
    vae = {"block_out_channels": blocks, "layers_per_block": 2, "latent_channels": 4}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 4}
    vae |= {"up_block_types": ["UpDecoderBlock2D"] * 4}
    for part, config in (("unet", body["unet"]), ("vae", vae)):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    outline = Outline(folder, family, "cpu", {}, "published", {})
    outline.__dict__["reader"] = SimpleNamespace(window=family.tokens)
    return outline


def shapes(body):
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(body["unet"]).state_dict()


@pytest.mark.parametrize("kind", TINY)
def test_the_decoder_is_counted_as_it_is(kind):
    """Against the counter on the real weights."""
    from torch.utils.flop_counter import FlopCounterMode

    pipe = opened(kind).pipeline()
    with describe(ModelConfig(id=str(tiny_folder(kind)), family=family_file(kind))) as outline:
        counted = outline.image_flops(0, 1.0, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipe.vae.decode(torch.zeros(1, 4, 8, 8))
    # on a CPU the counter does not see fused attention, a hundredth of a decoder
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


# --- texts without weights ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_reads_as_the_encoder_does(kind):
    model = opened(kind)
    light, full = reader(model.folder, model.family), model.encoder
    assert light.window == full.window
    assert light.vocabulary() == full.vocabulary()
    for text in ("violin", "a photo of an ear of corn", "Van Gogh's"):
        assert light.tokens(text) == full.tokens(text)
    assert [w.shape for w in light.parameters()] == [w.shape for w in full.parameters()]
    assert all(weight.is_meta for weight in light.parameters())


# --- a Hub id -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_dry_run_of_a_hub_id_fetches_no_weight_and_says_what_a_run_would(
    kind, loopback, tmp_path
):
    files = on_hub(loopback, tiny_folder(kind))
    made = recipe("violin", {"model": {"id": REPO, "family": family_file(kind)}})
    planned = plan(made, tmp_path / "run")
    cached = {path.name for path in tmp_path.parent.rglob("*.safetensors")}
    assert not [name for name in cache_of(constants) if name.endswith((".safetensors", ".ckpt"))]
    weights = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert planned.bytes_fetched == weights
    assert f"of {REPO}" in stage(planned, "download")
    local = plan(
        recipe("violin", {"model": {"id": str(tiny_folder(kind)), "family": family_file(kind)}}),
        tmp_path / "run",
    )
    assert planned.rank == local.rank
    assert planned.bytes_written == local.bytes_written
    assert stage(planned, "evaluate") == stage(local, "evaluate")
    assert stage(planned, "mine") == stage(local, "mine")
    assert "download" not in [name for name, _, _ in local.stages]
    assert cached == {path.name for path in tmp_path.parent.rglob("*.safetensors")}


def cache_of(constants):
    from pathlib import Path

    return [path.name for path in Path(constants.HF_HUB_CACHE).rglob("*")]


def test_what_is_fetched_is_what_a_run_then_has(loopback, tmp_path):
    """After the download that the dry run announced nothing is left to fetch."""
    from editforge.families.open import open_model

    on_hub(loopback, tiny_folder("sd1"))
    config = ModelConfig(id=REPO, family=family_file("sd1"))
    with describe(config) as before:
        assert before.downloads
    with open_model(config) as model:
        assert all((model.folder / name).is_file() for name in before.sizes)
    with describe(config) as after:
        assert not after.downloads


def test_a_variant_is_counted_alone(loopback, tmp_path):
    folder = save_tiny(tmp_path / "half", "sd1", "fp16", torch.float16)
    on_hub(loopback, folder)
    half = ModelConfig(id=REPO, family=family_file("sd1"), variant="fp16")
    with describe(half) as outline:
        assert all(".fp16." in name for name in outline.sizes if name.endswith(".safetensors"))
    with (
        pytest.raises(FamilyError, match="no unet weights") as caught,
        describe(ModelConfig(id=REPO, family=family_file("sd1"))),
    ):
        pass
    assert caught.value.next.endswith("--variant fp16")


def test_pickled_weights_on_the_hub_are_refused_before_a_byte_of_them_comes(loopback, tmp_path):
    folder = save_tiny(tmp_path / "base", "sd1")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    on_hub(loopback, folder)
    with (
        pytest.raises(FamilyError, match="no unet weights") as caught,
        describe(ModelConfig(id=REPO, family=family_file("sd1"))),
    ):
        pass
    assert "pickled" in caught.value.next


def test_an_export_the_family_lacks_is_refused_before_the_download(loopback, tmp_path):
    on_hub(loopback, tiny_folder("sd2"))
    over = {
        "model": {"id": REPO, "family": family_file("sd2")},
        "package": {"export": ["single-file"]},
    }
    with pytest.raises(PackageError, match="single"):
        plan(recipe("violin", over), tmp_path)
    assert not [name for name in cache_of(constants) if name.endswith(".safetensors")]


def test_a_hub_that_refuses_is_an_answer(loopback, tmp_path):
    with pytest.raises(HubError, match="neither a local folder nor"):
        plan(recipe("violin", {"model": {"id": "ann/lost"}}), tmp_path)


@pytest.mark.parametrize("name", NAMES[:1])
def test_the_files_of_a_repository_that_a_run_wants(name):
    index = published(name)["model_index"]
    unet = "unet/diffusion_pytorch_model"
    files = ["model_index.json", "README.md", "v1-5-pruned.safetensors", "unet/config.json",
             f"{unet}.safetensors", f"{unet}.fp16.safetensors", f"{unet}.non_ema.safetensors",
             f"{unet}.bin", "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
             "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "onnx/config.json",
             "text_encoder/model.safetensors", "tokenizer/merges.txt"]  # fmt: skip
    shared = {"model_index.json", "unet/config.json", "text_encoder/model.safetensors",
              "tokenizer/merges.txt"}  # fmt: skip
    assert set(wanted(files, index, None)) == shared | {
        f"{unet}.safetensors", "vae/diffusion_pytorch_model-00001-of-00002.safetensors"}  # fmt: skip
    assert set(wanted(files, index, "fp16")) == shared | {
        f"{unet}.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    }
