"""Artifacts C, D and E: what other programs load is the base plus the edit, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.keys import LAYOUTS, original_parameters, unet_parameters
from editforge.families.original import unet_names
from editforge.ground.disk import sha256_file
from editforge.ground.errors import EditforgeError, PackageError
from editforge.ground.files import read_header
from editforge.package.denoiser import write_denoiser
from editforge.package.pipeline import write_pipeline
from editforge.package.single_file import write_single_file
from tests.tiny import draw, one_thread, random_edit, save_tiny, tiny_model, tiny_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {
        "sd1": save_tiny(root / "sd1", "sd1", safety=True, long_names=True),
        "sd2": save_tiny(root / "sd2", "sd2"),
        "sdxl": save_tiny(root / "sdxl", "sdxl"),
        "fp16": save_tiny(root / "fp16", "sd1", "fp16", torch.float16),
        "sharded": save_tiny(root / "sharded", "sd1", shard="200KB"),
    }


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_key_table_is_the_real_architecture(kind: str) -> None:
    real = set(tiny_pipeline(kind).unet.state_dict())
    assert unet_parameters(kind) == real


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_original_names_are_a_bijection(kind: str) -> None:
    names = unet_names(unet_parameters(kind))
    assert len(set(names.values())) == len(names) == len(original_parameters(kind))


def test_null_edit_is_bit_identical_and_an_edit_is_not(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    base = load_file(bases["sd1"] / UNET)
    edit = random_edit(model)
    (null,) = write_denoiser(model, edit.scaled(0.0), tmp_path / "null")
    (real,) = write_denoiser(model, edit, tmp_path / "real")
    null_tensors, real_tensors = load_file(null), load_file(real)
    assert all(torch.equal(base[name], null_tensors[name]) for name in base)
    moved = {name for name in base if not torch.equal(base[name], real_tensors[name])}
    assert moved == {f"{name.removeprefix('unet.')}.weight" for name in edit.factors}


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "fp16", "sharded"])
def test_key_set_shapes_and_dtypes_equal_the_base(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    family = kind if kind in ("sd2", "sdxl") else "sd1"
    variant = "fp16" if kind == "fp16" else None
    model = tiny_model(bases[kind], family, variant=variant)
    written = write_denoiser(model, random_edit(model), tmp_path)
    base = {}
    for path in (bases[kind] / "unet").glob("*.safetensors"):
        base |= {name: (i.dtype, i.shape) for name, i in read_header(path)[1].items()}
    for path in written:
        header, table = read_header(path)
        assert {name: (i.dtype, i.shape) for name, i in table.items()} == base
        assert header["format"] == "pt"
        assert not any("lora_" in name or "base_layer" in name for name in table)


def test_component_folder_loads_and_has_the_edited_weights(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sharded"], "sd1")
    edit = random_edit(model)
    write_denoiser(model, edit, tmp_path)
    loaded = AutoModel.from_pretrained(str(tmp_path)).state_dict()
    pipe = StableDiffusionPipeline.from_pretrained(bases["sharded"])
    edit.apply(pipe)
    assert all(torch.equal(value, loaded[name]) for name, value in pipe.unet.state_dict().items())


def test_pipeline_files_outside_the_denoiser_are_copies(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    (bases["sd1"] / "unet" / "flax_model.msgpack").write_bytes(b"other framework")
    (bases["sd1"] / "v1-5-pruned.ckpt").write_bytes(b"a pickle")
    write_pipeline(model, random_edit(model), tmp_path)
    ours = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    base = {str(p.relative_to(bases["sd1"])) for p in bases["sd1"].rglob("*") if p.is_file()} - {
        "unet/flax_model.msgpack",
        "v1-5-pruned.ckpt",
    }
    assert ours == base
    changed = {n for n in ours if sha256_file(tmp_path / n) != sha256_file(bases["sd1"] / n)}
    assert changed == {UNET}


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_safety_checker_stays_as_the_base_has_it(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases[kind], kind)
    write_pipeline(model, random_edit(model), tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    source = json.loads((bases[kind] / "model_index.json").read_text())
    for key in ("safety_checker", "feature_extractor", "requires_safety_checker"):
        assert index[key] == source[key]
    assert (loaded.safety_checker is not None) == (kind == "sd1")
    assert loaded.config.requires_safety_checker == (kind == "sd1")


def test_file_called_fp16_holds_float16_and_has_an_unsuffixed_sibling(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    plain, half = write_denoiser(model, random_edit(model), tmp_path / "c", dtype="float16")
    assert plain.name == "diffusion_pytorch_model.safetensors"
    assert half.name == "diffusion_pytorch_model.fp16.safetensors"
    assert {i.dtype for i in read_header(half)[1].values()} == {"F16"}
    assert {i.dtype for i in read_header(plain)[1].values()} == {"F32"}
    suffixed = tiny_model(bases["fp16"], "sd1", variant="fp16")
    write_pipeline(suffixed, random_edit(suffixed), tmp_path / "d")
    for variant in (None, "fp16"):
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "d", variant=variant)
        assert pipe.unet is not None


def test_lying_variant_of_the_base_is_not_repeated(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "sd1", "fp16", torch.float32)
    model = tiny_model(folder, "sd1", variant="fp16")
    (only,) = write_denoiser(model, random_edit(model), tmp_path / "c")
    assert only.name == "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_single_file_round_trip_is_bit_identical(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases[kind], kind)
    edit = random_edit(model)
    path = write_single_file(model, edit, tmp_path, "tiny-violin-erased")
    cls = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    loaded = cls.from_single_file(
        str(path), config=str(bases[kind]), local_files_only=True, safety_checker=None
    )
    base = cls.from_pretrained(bases[kind])
    edit.apply(base)
    parts = ["unet", "vae", "text_encoder"] + (["text_encoder_2"] if kind == "sdxl" else [])
    for part in parts:
        want, got = getattr(base, part).state_dict(), getattr(loaded, part).state_dict()
        assert set(want) == set(got)
        assert all(torch.equal(want[name], got[name]) for name in want), part


def test_single_file_says_its_dtype_in_its_name(bases: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    path = write_single_file(model, random_edit(model), tmp_path, "x", dtype="float16")
    header, table = read_header(path)
    assert path.name == "x-fp16.safetensors"
    assert {info.dtype for info in table.values()} == {"F16"}
    assert header["modelspec.architecture"] == "stable-diffusion-v1"
    assert "modelspec.trigger_phrase" not in header


def test_older_vae_spelling_gives_the_same_original_names(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    from editforge.families.original import vae_names

    new = sorted(load_file(bases["sd1"] / "vae/diffusion_pytorch_model.safetensors"))
    old = [
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn")
        for name in new
    ]
    assert old != new
    assert list(vae_names(old).values()) == list(vae_names(new).values())


def test_single_file_is_refused_where_it_does_not_exist(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sd2"], "sd2")
    with pytest.raises(PackageError, match="single-file"):
        write_single_file(model, random_edit(model), tmp_path, "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_denoiser, write_pipeline])
def test_unknown_module_is_refused_with_near_matches(
    write: object, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    edit = random_edit(model)
    name = sorted(edit.factors)[0]
    wrong = {name.replace("to_k", "to_key"): edit.factors[name]}
    with pytest.raises(PackageError, match="did you mean"):
        write(model, WeightEdit(wrong), tmp_path)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_nan_in_the_base_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "sd1")
    tensors = load_file(folder / UNET)
    tensors["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, folder / UNET, {"format": "pt"})
    model = tiny_model(folder, "sd1")
    with pytest.raises(PackageError, match="NaN"):
        write_denoiser(model, random_edit(model), tmp_path / "c")


def test_pickled_base_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "sd1")
    edit = random_edit(tiny_model(folder, "sd1"))
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(EditforgeError, match="pickled"):
        write_denoiser(tiny_model(folder, "sd1"), edit, tmp_path / "c")


def test_dense_deltas_reach_the_folder(bases: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    name = "conv_in.bias"
    edit = WeightEdit({}, {f"unet.{name}": torch.ones(8)})
    (path,) = write_denoiser(model, edit, tmp_path)
    base, written = load_file(bases["sd1"] / UNET), load_file(path)
    assert torch.equal(written[name], base[name] + 1)


@pytest.mark.parametrize("label", ["local:0123456789ab", "tiny-org/tiny-model"])
def test_local_path_in_a_copied_config_is_replaced(label: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "sd1")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(folder)}))
    model = tiny_model(folder, "sd1", label=label, local=True)
    write_pipeline(model, random_edit(model), tmp_path / "d")
    text = (tmp_path / "d" / "vae" / "config.json").read_text()
    assert json.loads(text)["_name_or_path"] == label


def test_text_encoder_edit_is_refused_before_anything_is_written(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    pair = LowRank(torch.ones(24, 1), torch.ones(1, 24))
    edit = WeightEdit({"text_encoder.encoder.layers.0.self_attn.q_proj": pair})
    with pytest.raises(PackageError, match="text_encoder"):
        write_pipeline(model, edit, tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_draws_what_the_applied_edit_draws(bases: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_model(bases["sd1"], "sd1")
    edit = random_edit(model, size=0.05)
    write_pipeline(model, edit, tmp_path)
    with one_thread():
        folder = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
        base = StableDiffusionPipeline.from_pretrained(bases["sd1"], safety_checker=None)
        untouched, written = draw(base), draw(folder)
        edit.apply(base)
        assert (written - draw(base)).abs().max() < 1e-5
        assert (written - untouched).abs().max() > 1e-2
