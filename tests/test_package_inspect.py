"""`inspect` predicts what a program reads: all of its own format, and what it would ignore."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from editforge import emoji
from editforge.artifacts.lora.factors import lora_factors
from editforge.artifacts.lora.kohya import write_kohya
from editforge.artifacts.lora.write import write_lora
from editforge.families.schema import load_family
from editforge.ground.errors import PackageError
from editforge.package.denoiser import write_denoiser
from editforge.package.inspect import inspect_file
from editforge.package.single_file import write_single_file
from tests.tiny import TinyModel, random_edit, save_tiny, tiny_model


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    kind = request.param
    return tiny_model(save_tiny(tmp_path_factory.mktemp("inspect") / kind, kind), kind)


def test_comfyui_matches_all_of_b_and_reports_what_it_ignores_in_a(
    model: TinyModel, tmp_path: Path
) -> None:
    edit = random_edit(model)
    kohya = write_kohya(
        lora_factors(edit), edit, tmp_path / "b.safetensors", model.family, "epsilon", {}
    )
    plain = write_lora(edit, tmp_path)
    b = inspect_file(kohya, "comfyui")
    assert b.is_complete
    assert (b.family, b.format, b.ranks, b.alpha) == (model.family.name, "kohya LoRA", [2], 2.0)
    a = inspect_file(plain, "comfyui")
    assert not a.matched
    assert len(a.unmatched) == 2 * len(edit.factors)
    assert inspect_file(plain, "diffusers").is_complete
    assert inspect_file(kohya, "diffusers").is_complete
    assert inspect_file(kohya, "a1111").is_complete
    assert "reads 0 of" in a.text()
    assert a.to_json()["is_complete"] is False


def test_comfyui_half_reads_a_diffusers_file_with_feed_forward_keys(tmp_path: Path) -> None:
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    names = [f"{block}.{m}.lora_{s}.weight" for m in ("attn2.to_k", "ff.net.2") for s in "AB"]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors", "comfyui")
    assert {name.split(".")[-3] for name in found.matched} == {"2"}
    assert len(found.matched) == len(found.unmatched) == 2


def test_file_without_prefix_attaches_nothing(model: TinyModel, tmp_path: Path) -> None:
    tensors = load_file(write_lora(random_edit(model), tmp_path))
    bare = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "bare.safetensors")
    found = inspect_file(tmp_path / "bare.safetensors")
    assert not found.matched
    assert "attaches nothing" in found.note


def test_partial_component_names_what_is_missing(model: TinyModel, tmp_path: Path) -> None:
    (path,) = write_denoiser(model, random_edit(model), tmp_path)
    assert inspect_file(tmp_path, "comfyui").is_complete
    assert inspect_file(path, "diffusers").is_complete
    only = {name: t for name, t in load_file(path).items() if "attn2.to_k" in name}
    save_file(only, tmp_path / "uce.safetensors")
    found = inspect_file(tmp_path / "uce.safetensors", "comfyui")
    assert "conv_in.weight" in found.missing


def test_single_file_and_weight_edit_are_recognized(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model)
    path = write_single_file(model, edit, tmp_path, "x")
    found = inspect_file(path, "a1111")
    assert (found.format, found.family) == ("single file", model.family.name)
    assert found.is_complete
    edit.save(tmp_path / "weight_edit.safetensors")
    working = inspect_file(tmp_path / "weight_edit.safetensors")
    assert working.format == "weight edit"
    assert not working.matched


def test_second_generation_is_told_by_its_text_width(tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, family in ((768, "sd1"), (1024, "sd2")):
        pair = {
            f"{name}.lora_A.weight": torch.ones(1, width),
            f"{name}.lora_B.weight": torch.ones(2, 1),
        }
        save_file(pair, tmp_path / "x.safetensors")
        assert inspect_file(tmp_path / "x.safetensors").family == family


def test_architecture_that_shares_most_names_is_not_taken_for_another(tmp_path: Path) -> None:
    model = TinyModel(load_family("emoji"), emoji.folder())
    edit = random_edit(model, size=0.01)
    path = write_lora(edit, tmp_path)
    found = inspect_file(path, "diffusers")
    assert found.family is None
    assert found.is_complete
    assert not inspect_file(path, "comfyui").matched


def test_unknown_architecture_is_judged_by_form_alone(tmp_path: Path) -> None:
    pair = {f"unet.other.block.to_k.lora_{side}.weight": torch.ones(1, 1) for side in "AB"}
    save_file(pair, tmp_path / "x.safetensors")
    assert inspect_file(tmp_path / "x.safetensors", "diffusers").is_complete
    assert not inspect_file(tmp_path / "x.safetensors", "comfyui").matched


def test_other_files_and_readers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"pickle")
    with pytest.raises(PackageError, match="safetensors"):
        inspect_file(tmp_path / "x.ckpt")
    with pytest.raises(PackageError, match="reader"):
        inspect_file(tmp_path / "x.safetensors", "webui")
    with pytest.raises(PackageError, match="no safetensors file"):
        inspect_file(tmp_path)
