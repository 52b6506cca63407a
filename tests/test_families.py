"""Families against the published configurations, and every way not to be a model we know."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from huggingface_hub.utils import close_session
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from editforge import emoji
from editforge.artifacts.weight_edit import WeightEdit
from editforge.edit.vectors import Columns
from editforge.families.config import ModelConfig
from editforge.families.live import LiveModel
from editforge.families.model import Model, Origin, check_weights, detect
from editforge.families.open import open_model
from editforge.families.schema import load_family, shipped_families
from editforge.ground.disk import write_json
from editforge.ground.errors import EditforgeError, FamilyError, HubError, PackageError, RecipeError
from editforge.ground.files import read_tensors, write_safetensors
from editforge.package.header import modelspec_header
from editforge.package.single_file import write_single_file
from tests.command import QUICK, UNJUDGED, editforge
from tests.hub_server import TOKEN, serving
from tests.models import TINY, family_file, opened, recipe, solved, tiny_folder
from tests.tiny import TEXT_WIDTHS, TinyModel, save_tiny, tiny_model, tiny_pipeline

PUBLISHED = Path(__file__).parent / "published"
NAMES = tuple(path.stem for path in sorted(PUBLISHED.glob("*.json"), key=lambda path: path.stem))
UNET = "unet/diffusion_pytorch_model.safetensors"


@cache
def published(name: str) -> dict:
    return json.loads((PUBLISHED / f"{name}.json").read_text())


@cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Weight names and shapes of the published denoiser; on the meta device they take no memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(published(name)["unet"])
    return {key: tuple(weight.shape) for key, weight in unet.state_dict().items()}


def count(shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


# --- published models ---------------------------------------------------------------------------


def test_the_four_published_models_are_here():
    """The positive control: an empty folder would pass every test below."""
    assert NAMES == ("sd-1.4", "sd-2.1", "sd-2.1-base", "sdxl-base-1.0")
    assert set(shipped_families()) == {"emoji", "sd1", "sd2", "sdxl", "sdxl-refiner"}


@pytest.mark.parametrize("name", NAMES)
def test_the_transcribed_denoiser_has_the_published_number_of_parameters(name):
    assert count(shapes_of(name).values()) == published(name)["parameters"]["unet"]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_is_detected_from_its_own_configs(name):
    body = published(name)
    assert detect(body["model_index"], body["unet"]).name == body["family"]


@pytest.mark.parametrize(
    ("name", "modules", "width"),
    [
        ("sd-1.4", 32, 768),
        ("sd-2.1", 32, 1024),
        ("sd-2.1-base", 32, 1024),
        ("sdxl-base-1.0", 140, 2048),
    ],
)
def test_patterns_select_every_map_that_reads_text_and_nothing_else(name, modules, width):
    family, shapes = load_family(published(name)["family"]), shapes_of(name)
    found = family.select(shapes)
    chosen = {path for paths in found.values() for path in paths}
    assert family.text_width == family.match.text_width == width
    assert {group: len(paths) for group, paths in found.items()} == {
        "key": modules // 2,
        "value": modules // 2,
    }
    readers = {
        key.removesuffix(".weight")
        for key, shape in shapes.items()
        if len(shape) == 2 and shape[1] == width and ".attn" in key
    }  # found by width alone, not by the pattern; SDXL's time embedding has other names
    assert chosen == readers
    assert not any(f"{path}.bias" in shapes for path in chosen)


@pytest.mark.parametrize("name", NAMES)
def test_text_slices_have_the_published_encoders_widths(name):
    body, family = published(name), load_family(published(name)["family"])
    for part in family.text:
        raw = body[part.encoder]
        cls = (
            CLIPTextModelWithProjection
            if "WithProjection" in raw["architectures"][0]
            else CLIPTextModel
        )
        config = CLIPTextConfig(**{key: v for key, v in raw.items() if key != "model_type"})
        with torch.device("meta"):
            encoder = cls(config)
        assert (
            count(weight.shape for weight in encoder.parameters())
            == body["parameters"][part.encoder]
        )
        assert config.hidden_size == part.width
        assert body[part.tokenizer]["model_max_length"] == family.tokens
        assert part.encoder in body["model_index"]
        assert part.tokenizer in body["model_index"]
    encoders = [key for key in body["model_index"] if key.startswith("text_encoder")]
    assert [part.encoder for part in family.text] == encoders


@pytest.mark.parametrize("name", NAMES)
def test_published_prediction_types_are_known_and_have_their_kohya_name(name):
    body, family = published(name), load_family(published(name)["family"])
    prediction = body["scheduler"].get("prediction_type", "epsilon")
    expected = {
        "sd-1.4": "sd_v1",
        "sd-2.1": "sd_v2_v",
        "sd-2.1-base": "sd_v2",
        "sdxl-base-1.0": "sdxl_base_v1-0",
    }
    assert prediction in family.predictions
    assert family.kohya[prediction] == expected[name]


@pytest.mark.parametrize(
    ("name", "architecture", "resolution"),
    [
        ("sd-1.4", "stable-diffusion-v1", "512x512"),
        ("sd-2.1", "stable-diffusion-v2-768-v", "768x768"),
        ("sd-2.1-base", "stable-diffusion-v2-512", "512x512"),
        ("sdxl-base-1.0", "stable-diffusion-xl-v1-base", "1024x1024"),
    ],
)
def test_published_models_have_their_modelspec_name_and_size(
    name, architecture, resolution, tmp_path
):
    body = published(name)
    write_json(tmp_path / "unet" / "config.json", body["unet"])
    write_json(tmp_path / "vae" / "config.json", {"block_out_channels": [128, 256, 512, 512]})
    prediction = body["scheduler"].get("prediction_type", "epsilon")
    model = TinyModel(load_family(body["family"]), tmp_path, prediction_type=prediction)
    null = WeightEdit({}, exact_rank=0)
    header = modelspec_header(model, "x", null, lora=True, implementation="diffusers")
    assert header["modelspec.architecture"] == f"{architecture}/lora"
    assert header["modelspec.resolution"] == resolution
    other = replace(model, prediction_type="sample")
    assert modelspec_header(other, "x", null, lora=True, implementation="diffusers") == {}


def test_the_embedded_model_is_the_emoji_family():
    model, family = opened("emoji"), load_family("emoji")
    assert model.family.name == "emoji"
    assert {group: len(paths) for group, paths in model.modules.items()} == {"key": 7, "value": 7}
    assert model.shape(model.paths[0])[1] == model.encoder.width == family.text_width == 256
    assert model.encoder.window == family.tokens == 32
    assert model.label == "editforge/emoji-sd"
    assert family.words == "emoji"
    assert len(emoji.words()) == 180


# --- what is no known model ---------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_with_all_known_ones():
    with pytest.raises(FamilyError, match="unknown architecture") as caught:
        detect({"_class_name": "FluxPipeline"}, {"cross_attention_dim": 4096})
    assert "FluxPipeline, text width 4096" in str(caught.value)
    assert all(name in caught.value.allowed for name in shipped_families())
    assert "model.family=my.yaml" in caught.value.next


@pytest.mark.parametrize("width", [512, None])
def test_a_known_pipeline_of_another_width_is_unknown(width):
    with pytest.raises(FamilyError, match="unknown architecture"):
        detect({"_class_name": "StableDiffusionPipeline"}, {"cross_attention_dim": width})


def test_a_distilled_model_with_fewer_layers_is_refused_not_half_edited():
    shapes = shapes_of("sd-1.4")
    fewer = {key: shape for key, shape in shapes.items() if not key.startswith("mid_block")}
    with pytest.raises(FamilyError, match=r"15 modules of this model match .*family sd1 has 16"):
        load_family("sd1").select(fewer)


def test_a_misspelt_pattern_is_answered_with_the_nearest_names():
    family = load_family("sdxl")
    wrong = family.modules["key"].model_copy(update={"pattern": "*.attn2.to_key"})
    broken = family.model_copy(update={"modules": {"key": wrong}})
    with pytest.raises(FamilyError, match=r"^0 modules .*attn2.to_key") as caught:
        broken.select(shapes_of("sdxl-base-1.0"))
    assert "did you mean attn2.to_k" in str(caught.value)


def test_a_map_of_another_width_is_refused_by_name():
    shapes = {key: shape for key, shape in shapes_of("sd-2.1").items()}
    with pytest.raises(FamilyError, match="reads another width than family sd1") as caught:
        load_family("sd1").select(shapes)
    assert "(out, 768)" in str(caught.value)
    assert "1024" in str(caught.value)


def test_a_family_name_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(FamilyError, match="did you mean sdxl"):
        load_family("sdlx")


# --- a family of the user's own -----------------------------------------------------------------


@pytest.mark.parametrize("kind", TINY)
def test_a_family_written_by_the_user_opens_a_model_we_do_not_know(kind):
    with pytest.raises(FamilyError, match="unknown architecture"):
        Model(tiny_folder(kind), Origin("tiny"))
    model = opened(kind)
    assert len(model.paths) == (140 if kind == "sdxl" else 32)
    assert all(
        path.startswith("unet.") and model.shape(path)[1] == sum(TEXT_WIDTHS[kind])
        for path in model.paths
    )
    assert model.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"modules": {"key": {"pattern": "*.attn2.to_k"}}}, "modules.key.expect"),
        ({"colour": "red"}, "colour"),
        ({"exports": ["ckpt"]}, "exports"),
        ({"text": []}, "text"),
        ({"match": {"pipeline": "StableDiffusionPipeline", "text_width": 25}}, "24"),
    ],
)
def test_a_broken_family_file_is_refused_with_the_key(change, named, tmp_path):
    import yaml

    body = yaml.safe_load(Path(family_file("sd1")).read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**body, **change}))
    with pytest.raises(FamilyError, match=r"mine.yaml is not a family") as caught:
        load_family(str(path))
    assert named in str(caught.value)


def test_a_family_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        load_family(str(tmp_path / "absent.yaml"))


def test_a_prediction_type_outside_the_family_is_refused(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder("sd1"), folder)
    path = folder / "scheduler/scheduler_config.json"
    Model(folder, Origin("tiny"), family=family_file("sd1"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "flow"}))
    with pytest.raises(FamilyError, match="does not know this prediction type") as caught:
        Model(folder, Origin("tiny"), family=family_file("sd1"))
    assert caught.value.got == "flow"


# --- a model on disk and in memory are one --------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_pipeline_in_memory_gives_the_same_edit_as_its_folder(kind):
    made = recipe(
        "violin", {"target": {"use": "fixed", "text": "trumpet"}}, "edit.limits.change=[10, 99]"
    )
    live = LiveModel(tiny_pipeline(kind), family_file(kind))
    assert live.paths == opened(kind).paths
    on_disk, in_memory = solved(opened(kind), made)[2].edit, solved(live, made)[2].edit
    assert on_disk.difference(in_memory) < 1e-6


@pytest.fixture
def tiny_families(monkeypatch):
    """The shipped families, with the widths of the tiny models."""
    files = [family_file(kind) for kind in ("sd1", "sd2", "sdxl")]
    monkeypatch.setattr("editforge.families.live.shipped_families", lambda: files)


def in_class(name: str, kind: str, **more):
    import diffusers

    parts = tiny_pipeline(kind).components
    if "ControlNet" in name:
        more["controlnet"] = diffusers.ControlNetModel.from_unet(parts["unet"])
    if kind != "sdxl":
        more["requires_safety_checker"] = False
    return getattr(diffusers, name)(**parts, **more)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("StableDiffusionPipeline", "sd2"),
        ("StableDiffusionImg2ImgPipeline", "sd1"),
        ("StableDiffusionInpaintPipeline", "sd1"),
        ("StableDiffusionControlNetPipeline", "sd1"),
        ("StableDiffusionXLImg2ImgPipeline", "sdxl"),
    ],
)
def test_any_pipeline_of_the_same_parts_is_of_the_family(tiny_families, name, kind):
    live = LiveModel(in_class(name, kind))
    assert live.family.name == kind
    assert live.identity == opened(kind).identity  # so an edit of one is an edit of the other
    theirs = live.encoder.encode(["a violin"])
    assert torch.equal(theirs, LiveModel(tiny_pipeline(kind)).encoder.encode(["a violin"]))


def seven_channels(pipe):
    from diffusers import UNet2DConditionModel

    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=7)


def another_encoder(pipe):
    from transformers import BertConfig, BertModel

    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    pipe.text_encoder = BertModel(BertConfig(vocab_size=24, hidden_size=24, **small))


@pytest.mark.parametrize(
    ("change", "what", "got"),
    [
        (another_encoder, "another text side", "is a BertModel, not a CLIPTextModel"),
        (lambda pipe: setattr(pipe, "text_encoder", None), "another text side", "is not there"),
        (lambda pipe: setattr(pipe, "unet", None), "denoiser is no UNet", "pipe.unet"),
    ],
)
def test_what_truly_differs_is_refused_by_name(tiny_families, change, what, got):
    pipe = tiny_pipeline("sd1")
    change(pipe)
    with pytest.raises(FamilyError, match=what) as caught:
        LiveModel(pipe)
    assert got in caught.value.got
    assert "StableDiffusionPipeline" in caught.value.next


def test_an_upscaler_is_refused_by_its_channels(tiny_families):
    pipe = tiny_pipeline("sd1")
    seven_channels(pipe)
    with pytest.raises(FamilyError, match="3 channels beside the noise") as caught:
        LiveModel(pipe)
    assert "in_channels 7" in caught.value.got


def test_a_pipeline_with_adapters_is_refused():
    pipe = tiny_pipeline("sd1")
    LiveModel(pipe, family_file("sd1"))
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_k"]), adapter_name="style")
    with pytest.raises(FamilyError, match="LoRA adapters loaded") as caught:
        LiveModel(pipe, family_file("sd1"))
    assert caught.value.got == "style on its unet"


# --- files, whole and damaged ---------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder("sd1"), folder)
    return folder


def named(path, **options) -> ModelConfig:
    return ModelConfig(id=str(path), family=family_file("sd1"), device="cpu", **options)


def use(path, **options) -> None:
    """What a run does with a model before it computes: open, read maps, read text."""
    with open_model(named(path, **options)) as model:
        check_weights(model)
        model.encoder.encode(["violin"])


def test_a_whole_folder_is_accepted(base):
    use(base)


def test_a_single_file_opens_with_the_configs_of_a_folder(base, tmp_path):
    null = WeightEdit({}, exact_rank=0)
    file = write_single_file(tiny_model(base, "sd1"), null, tmp_path, "tiny")
    with open_model(named(file, config=str(base))) as model:
        assert model.label.startswith("local:")
        assert str(tmp_path) not in model.label
        assert all(
            torch.equal(model.weight(path), opened("sd1").weight(path)) for path in model.paths
        )
        states = model.encoder.encode(["a violin"])
        inside = model.folder
    torch.testing.assert_close(states, opened("sd1").encoder.encode(["a violin"]))
    assert not inside.exists()


# --- a local copy of a Hub model ----------------------------------------------------------------

BASE = "tiny-org/tiny-model"
CARD = """---
license: other
license_name: tiny-license
license_link: https://tiny.org/license
---
# Tiny
"""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server
    close_session()


@pytest.fixture(params=["folder", "file"])
def local(request, base, tmp_path):
    """A local model of either kind, and the options it is opened with."""
    if request.param == "folder":
        return base, {}
    null = WeightEdit({}, exact_rank=0)
    return write_single_file(tiny_model(base, "sd1"), null, tmp_path, "tiny"), {"config": str(base)}


def test_a_local_copy_has_the_name_and_the_license_of_the_hub_model(hub, local):
    hub.repo(BASE, private=False, files={"README.md": CARD.encode()})
    path, options = local
    told = []
    with (
        open_model(named(path, **options)) as plain,
        open_model(named(path, base=BASE, **options), told.append) as model,
    ):
        assert (model.label, model.revision) == (BASE, None)
        assert (model.license, model.license_name) == ("other", "tiny-license")
        assert model.license_link == "https://tiny.org/license"
        assert model.local
        assert plain.label.startswith("local:")
        assert plain.license is None
        assert model.base_sha256 == plain.base_sha256
    assert told == []
    assert hub.calls == ["info"]


@pytest.mark.parametrize("why", ["offline", "unknown to the Hub", "no network", "login page"])
def test_a_license_that_cannot_be_read_is_said_and_is_no_error(why, hub, local, monkeypatch):
    if why == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif why == "no network":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    elif why == "login page":
        hub.fail("info", 200, body=b"<html>of the hotel</html>")
    path, options = local
    told = []
    with open_model(named(path, base=BASE, **options), told.append) as model:
        assert model.label == BASE
        assert (model.license, model.license_name, model.license_link) == (None, None, None)
    assert told == [
        f"the license of {BASE} could not be read from the Hub: the card will name none"
    ]


@pytest.mark.parametrize(
    "base",
    ["", "tiny", "a/b/c", "./a", "/srv/models/sd", "~/sd", "a/b--c", "a/b.git", "a b/c",
     "a/b@main", "editforge/emoji-sd"],
)  # fmt: skip
def test_a_base_that_is_no_hub_id_is_refused(base):
    with pytest.raises(RecipeError, match="the base is no Hub id"):
        ModelConfig(id="models/sd", base=base)


def test_a_model_that_names_itself_takes_no_base():
    with pytest.raises(RecipeError, match="only a local model can be a copy"):
        ModelConfig(base=BASE)
    with pytest.raises(RecipeError, match="only a local model can be a copy"):
        use("someone/something", base=BASE)


def test_the_card_of_a_local_copy_names_its_base_and_no_path(base, tmp_path):
    done = editforge(
        "erase", "violin", *QUICK, *UNJUDGED, f"--model={base}", f"--base={BASE}",
        f"--set=model.family={family_file('sd1')}", "--set=edit.limits.change=[10, 100]",
        "--set=edit.limits.residual=[10, 100]", "--set=edit.limits.amplification=[50, 1000]",
        "--export=lora,pipeline", "--output=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.err.count(f"the license of {BASE} could not be read") == 1
    lora = tmp_path / "run" / "package" / "lora"
    header = yaml.safe_load((lora / "README.md").read_text().split("---\n")[1])
    assert header["base_model"] == BASE
    assert "license" not in header
    recipe = yaml.safe_load((lora / "reproduce" / "recipe.yaml").read_text())
    assert (recipe["model"]["id"], recipe["model"]["base"]) == (BASE, None)
    for path in (tmp_path / "run" / "package").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes()


def test_a_single_file_without_configs_says_how_to_name_them(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = write_single_file(
        tiny_model(base, "sd1"), WeightEdit({}, exact_rank=0), tmp_path, "tiny"
    )
    with pytest.raises(FamilyError, match="does not load") as caught, open_model(named(file)):
        pass
    assert "model.config=FOLDER" in caught.value.next


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickled_checkpoint_is_never_opened(suffix, tmp_path):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(FamilyError, match="pickled, and unpickling can run code"):
        use(file)


def test_a_folder_of_pickled_weights_is_refused_with_the_reason(base):
    (base / UNET).rename(base / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(FamilyError, match="no unet weights") as caught:
        use(base)
    assert "convert them to safetensors" in caught.value.next


def test_pickled_text_encoder_weights_are_refused(base):
    (base / "text_encoder/model.safetensors").rename(base / "text_encoder/pytorch_model.bin")
    with pytest.raises(FamilyError, match="no text_encoder weights") as caught:
        use(base)
    assert "convert them to safetensors" in caught.value.next
    assert "model.safetensors" in caught.value.allowed


@pytest.mark.parametrize("shard", [None, "50KB"])
def test_a_folder_with_fp16_files_alone_names_the_variant(shard, tmp_path):
    folder = save_tiny(tmp_path / "half", "sd1", "fp16", torch.float16, shard=shard)
    with pytest.raises(FamilyError, match="no unet weights") as caught:
        use(folder)
    assert caught.value.next.endswith("--variant fp16")
    use(folder, variant="fp16")
    with pytest.raises(FamilyError, match="no variant bf16 of the unet weights"):
        use(folder, variant="bf16")


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = save_tiny(tmp_path / "cut", "sd1", shard="50KB")
    use(folder)
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FamilyError, match="names files that are not there") as caught:
        use(folder)
    assert shard.name in str(caught.value)


@pytest.mark.parametrize("name", [UNET, "text_encoder/model.safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 2000, -1])
def test_a_truncated_file_is_refused(name, kept, base):
    (base / name).write_bytes((base / name).read_bytes()[:kept])
    with pytest.raises((FamilyError, PackageError)):
        use(base)


def test_a_map_that_holds_a_nan_is_refused_by_name(base):
    tensors = read_tensors(base / UNET)
    key = next(name for name in tensors if name.endswith("attn2.to_k.weight"))
    tensors[key][0, 0] = 0.0
    write_safetensors(base / UNET, tensors, {})
    use(base)
    data = (base / UNET).read_bytes()
    tensors[key][0, 0] = 12345.678
    write_safetensors(base / UNET, tensors, {})
    data = (base / UNET).read_bytes()
    planted = torch.tensor([12345.678]).numpy().tobytes()
    assert data.count(planted) == 1
    (base / UNET).write_bytes(data.replace(planted, torch.tensor([torch.nan]).numpy().tobytes()))
    with pytest.raises(PackageError, match=r"to_k.weight holds 1 values that are NaN"):
        use(base)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
)
def test_a_missing_config_is_named(name, base):
    (base / name).unlink()
    with pytest.raises(FamilyError, match=f"no {Path(name).name}"):
        use(base)


@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_a_config_that_is_no_mapping_is_refused(text, base):
    (base / "model_index.json").write_text(text)
    with pytest.raises((FamilyError, PackageError), match=r"model_index\.json"):
        use(base)


def test_what_is_no_model_is_answered_with_what_is_one(tmp_path):
    with pytest.raises(FamilyError, match="no such model") as caught:
        use(tmp_path / "absent")
    assert "a Hub id (owner/name)" in caught.value.allowed
    with pytest.raises(PackageError, match=r"no file absent\.safetensors"):
        use(tmp_path / "absent.safetensors")
    with pytest.raises(FamilyError, match="unknown dtype"):
        use(tiny_folder("sd1"), dtype="float8")


def test_a_hub_id_offline_says_what_to_check(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="the Hub did not give nobody-here/no-model") as caught:
        use("nobody-here/no-model")
    assert "network" in caught.value.next
    assert "hf auth login" in caught.value.next


def test_refusals_are_the_users_kind_of_error():
    assert all(issubclass(kind, EditforgeError) for kind in (FamilyError, PackageError, HubError))


def test_the_rule_of_a_map_is_its_name_and_its_width(base):
    """Columns of one model have the width of the maps that read them."""
    columns = Columns(opened("sdxl"), ("{n}",), "subject").of("violin")
    model = opened("sdxl")
    assert columns.shape == (model.weight(model.paths[0]).shape[1], 1)
