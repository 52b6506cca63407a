"""Artifacts A and B: every reader agrees on what a LoRA of ours does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from editforge.artifacts.lora.factors import lora_factors
from editforge.artifacts.lora.kohya import write_kohya
from editforge.artifacts.lora.read import read_lora
from editforge.artifacts.lora.write import write_factors, write_lora
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.disk import sha256_file
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header
from editforge.ground.linalg import solve
from editforge.package.repository import release_name
from tests.tiny import (
    TinyModel,
    denoiser_shapes,
    draw,
    random_edit,
    save_tiny,
    tiny_family,
    tiny_model,
    tiny_pipeline,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_model(save_tiny(tmp_path_factory.mktemp("lora") / "sd1", "sd1"), "sd1")


def _kohya(edit: WeightEdit, path: Path, kind: str = "sd1") -> Path:
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    return write_kohya(lora_factors(edit), edit, path, tiny_family(kind), prediction, {})


def _loaded(pipe: Any, path: Path) -> torch.Tensor:
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    image = draw(pipe)
    pipe.unload_lora_weights()
    return image


def _mixed(model: TinyModel) -> WeightEdit:
    """Ranks 1, 2 and 3 among the modules of one component."""
    edit = random_edit(model, rank=3, size=0.1)
    factors = {
        name: LowRank(pair.B[:, : 1 + i % 3], pair.A[: 1 + i % 3])
        for i, (name, pair) in enumerate(edit.factors.items())
    }
    return WeightEdit(factors, {}, 1.0, 3, edit.provenance)


@pytest.mark.parametrize("strength", [1.0, 2.5, -0.5])
def test_all_readers_apply_the_same_scale(
    strength: float, model: TinyModel, tmp_path: Path
) -> None:
    edit = random_edit(model, size=0.05, strength=strength)
    plain = write_lora(edit, tmp_path / "a")
    bare = tmp_path / "no-metadata" / "x.safetensors"
    bare.parent.mkdir()
    save_file(load_file(plain), bare)
    kohya = _kohya(edit, tmp_path / "b" / "x.safetensors")
    pipe = tiny_pipeline("sd1")
    untouched = draw(pipe)
    with edit.applied(pipe):
        dense = draw(pipe)
    assert (dense - untouched).abs().max() > 1e-3
    images = [_loaded(pipe, path) for path in (plain, bare, kohya)]
    for image in images:
        assert (image - images[0]).abs().max() < 1e-6
        assert (image - dense).abs().max() < 1e-4
    assert torch.equal(draw(pipe), untouched)


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_lora_equals_the_edit_in_other_families(kind: str, tmp_path: Path) -> None:
    model = tiny_model(save_tiny(tmp_path / "base", kind), kind)
    edit = random_edit(model, size=0.05)
    plain = write_lora(edit, tmp_path / "a")
    kohya = _kohya(edit, tmp_path / "b" / "x.safetensors", kind)
    pipe = tiny_pipeline(kind)
    with edit.applied(pipe):
        dense = draw(pipe)
    assert (draw(pipe) - dense).abs().max() > 1e-3
    assert (_loaded(pipe, plain) - dense).abs().max() < 1e-4
    assert (_loaded(pipe, kohya) - dense).abs().max() < 1e-4


def test_alpha_that_differs_from_rank_would_be_seen(model: TinyModel, tmp_path: Path) -> None:
    """The control of the test above: a wrong alpha in the kohya file moves the image."""
    edit = random_edit(model, size=0.05)
    kohya = _kohya(edit, tmp_path / "x.safetensors")
    tensors = load_file(kohya)
    wrong = {n: t * 2 if n.endswith(".alpha") else t for n, t in tensors.items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    pipe = tiny_pipeline("sd1")
    right = _loaded(pipe, kohya)
    assert (_loaded(pipe, tmp_path / "wrong.safetensors") - right).abs().max() > 1e-4


def test_mixed_ranks_are_padded_to_one_and_load_exactly(model: TinyModel, tmp_path: Path) -> None:
    edit = _mixed(model)
    plain = write_lora(edit, tmp_path / "a")
    kohya = _kohya(edit, tmp_path / "b" / "x.safetensors")
    for path in (plain, kohya):
        sides = [
            i.shape for n, i in read_header(path)[1].items() if "lora_A" in n or ".lora_down" in n
        ]
        assert {shape[0] for shape in sides} == {3}
    pipe = tiny_pipeline("sd1")
    with edit.applied(pipe):
        dense = draw(pipe)
    assert (draw(pipe) - dense).abs().max() > 1e-3
    assert (_loaded(pipe, plain) - dense).abs().max() < 1e-4
    assert (_loaded(pipe, kohya) - dense).abs().max() < 1e-4


def test_minus_one_and_plus_one_cancel(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model, size=0.05)
    path = write_lora(edit, tmp_path)
    pipe = tiny_pipeline("sd1")
    untouched = draw(pipe)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="plus")
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="minus")
    pipe.set_adapters(["plus", "minus"], [1.0, -1.0])
    cancelled = draw(pipe)
    pipe.set_adapters(["plus", "minus"], [1.0, 0.0])
    assert (draw(pipe) - untouched).abs().max() > 1e-3
    assert (cancelled - untouched).abs().max() < 1e-4


def test_lora_draws_what_the_float32_folder_draws(model: TinyModel, tmp_path: Path) -> None:
    from editforge.package.pipeline import write_pipeline

    edit = random_edit(model, size=0.05)
    path = write_lora(edit, tmp_path / "a")
    write_pipeline(model, edit, tmp_path / "d")
    image = _loaded(tiny_pipeline("sd1"), path)
    folder = StableDiffusionPipeline.from_pretrained(tmp_path / "d")
    assert (draw(folder) - image).abs().max() < 1e-3
    assert (draw(tiny_pipeline("sd1")) - image).abs().max() > 1e-3


def test_kohya_names_are_those_of_the_reference_exporter(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model)
    ours = load_file(_kohya(edit, tmp_path / "x.safetensors"))
    reference = convert_state_dict_to_kohya(load_file(write_lora(edit, tmp_path)))
    assert set(ours) == set(reference)
    assert all(torch.equal(ours[name], reference[name].to(ours[name].dtype)) for name in ours)


def test_headers_say_what_they_must(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model, strength=0.5)
    a, _ = read_header(write_lora(edit, tmp_path, metadata={"extra": "x"}))
    b, _ = read_header(_kohya(edit, tmp_path / "x.safetensors"))
    adapter = json.loads(a["lora_adapter_metadata"])
    assert adapter["unet.r"] == adapter["unet.lora_alpha"] == 2
    assert adapter["unet.target_modules"] == sorted(adapter["unet.target_modules"])
    assert (a["extra"], a["format"], b["ss_base_model_version"]) == ("x", "pt", "sd_v1")
    assert b["ss_network_dim"] == b["ss_network_alpha"] == "2"
    assert json.loads(a["editforge.concepts"]) == ["violin"]
    assert json.loads(a["editforge.targets"]) == ["trumpet"]
    assert a["editforge.strength"] == "0.5"


def test_equal_edits_give_equal_bytes(model: TinyModel, tmp_path: Path) -> None:
    first, second = random_edit(model), random_edit(model)
    backwards = WeightEdit(dict(reversed(second.factors.items())), {}, 1.0, 2, second.provenance)
    paths = [write_lora(e, tmp_path / n) for n, e in (("x", first), ("y", backwards))]
    assert sha256_file(paths[0]) == sha256_file(paths[1])
    other = write_lora(random_edit(model, seed=1), tmp_path / "z")
    assert sha256_file(other) != sha256_file(paths[0])


def test_text_encoder_and_dense_deltas_are_refused_before_writing(tmp_path: Path) -> None:
    pair = LowRank(torch.ones(4, 1), torch.ones(1, 4))
    text = WeightEdit({"text_encoder.encoder.layers.0.mlp.fc1": pair})
    dense = WeightEdit({"unet.x": pair}, {"unet.conv_in.bias": torch.ones(4)})
    for edit, name in ((text, "text_encoder"), (dense, "unet.conv_in.bias")):
        with pytest.raises(PackageError, match=name):
            write_lora(edit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sixteen_bits_are_balanced_and_their_error_is_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    # B far below float16's normal range: unbalanced, the cast would lose most of it.
    B = 1e-6 * torch.randn(32, 2, generator=generator)
    A = 1e4 * torch.randn(2, 16, generator=generator)
    edit = WeightEdit({"unet.x": LowRank(B, A)}, exact_rank=2)
    wanted = edit.delta("unet.x")
    unbalanced = B.half().double() @ A.half().double()
    factors = lora_factors(edit, torch.float16)
    stored = factors.tensor("x", "B").load().double() @ factors.tensor("x", "A").load().double()
    error = float((stored - wanted).norm() / wanted.norm())
    assert factors.error == pytest.approx(error, rel=1e-6)
    assert error < 1e-3 < float((unbalanced - wanted).norm() / wanted.norm())
    assert lora_factors(edit).error < 1e-7


@pytest.mark.parametrize("kohya", [False, True])
def test_written_lora_reads_back_as_the_same_edit(
    kohya: bool, model: TinyModel, tmp_path: Path
) -> None:
    edit = random_edit(model, strength=1.5)
    path = _kohya(edit, tmp_path / "x.safetensors") if kohya else write_lora(edit, tmp_path)
    back = read_lora(path)
    assert set(back.factors) == set(edit.factors)
    assert edit.difference(back) < 1e-6
    assert back.provenance["erased"][0]["target"] == "trumpet"


def test_foreign_alpha_is_honored(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model)
    path = _kohya(edit, tmp_path / "x.safetensors")
    half = {n: t / 2 if n.endswith(".alpha") else t for n, t in load_file(path).items()}
    save_file(half, tmp_path / "half.safetensors")
    none = {n: t for n, t in load_file(path).items() if not n.endswith(".alpha")}
    save_file(none, tmp_path / "none.safetensors")
    assert edit.scaled(0.5).difference(read_lora(tmp_path / "half.safetensors")) < 1e-6
    assert edit.difference(read_lora(tmp_path / "none.safetensors")) < 1e-6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1": (4, 1)}, "no known UNet"),
        ({"lora_unet_not_a_module": (4, 1)}, "no known UNet"),
    ],
)
def test_foreign_modules_are_refused(
    names: dict[str, tuple[int, int]], message: str, tmp_path: Path
) -> None:
    tensors = {}
    for stem, (out, rank) in names.items():
        tensors[f"{stem}.lora_up.weight"] = torch.ones(out, rank)
        tensors[f"{stem}.lora_down.weight"] = torch.ones(rank, 4)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(PackageError, match=message):
        read_lora(tmp_path / "x.safetensors")


def test_damaged_files_are_refused(model: TinyModel, tmp_path: Path) -> None:
    path = write_lora(random_edit(model), tmp_path)
    tensors = load_file(path)
    name = next(iter(tensors))
    for change, message in (
        ({name: tensors[name] * float("nan")}, "NaN"),
        ({"unet.hada_w1_a": torch.ones(2)}, "another kind"),
        ({name: torch.ones(5, 7)}, "do not fit"),
    ):
        save_file({**tensors, **change}, tmp_path / "bad.safetensors")
        with pytest.raises(PackageError, match=message):
            read_lora(tmp_path / "bad.safetensors")
    bare = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(PackageError, match="prefix"):
        read_lora(tmp_path / "bare.safetensors")
    (tmp_path / "x.bin").write_bytes(b"pickle")
    with pytest.raises(PackageError, match="safetensors alone"):
        read_lora(tmp_path / "x.bin")


def test_shared_matrix_is_not_copied_for_each_module(model: TinyModel) -> None:
    factors = lora_factors(random_edit(model))
    assert len({id(pair.A) for pair in factors.pairs.values()}) == 1


@pytest.mark.parametrize(
    ("concepts", "name"),
    [
        (["Violin"], "sd1-violin-erased"),
        (["Van Gogh", "Café"], "sd1-van-gogh-cafe-850f7dc4-erased"),
        (["a", "b", "c", "d"], "sd1-a-and-3-more-erased"),
        (["水"], "sd1-name-327b54d0-erased"),
    ],
)
def test_release_names_are_lower_case_digits_and_hyphens(concepts: list[str], name: str) -> None:
    assert release_name("sd1", concepts) == name


def test_write_factors_accepts_a_null_edit(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model).scaled(0.0)
    path = write_factors(lora_factors(edit, torch.float16), edit, tmp_path, {})
    assert all(not bool(t.any()) for n, t in load_file(path).items() if "lora_B" in n)


def test_closed_form_has_the_rank_of_the_theorem_and_fits_a_lora(
    model: TinyModel, tmp_path: Path
) -> None:
    """rank(W' - W) = min(n, rank(T - C)) in a generic case, and less where targets coincide."""
    generator = torch.Generator().manual_seed(0)
    width = model.family.text_width
    C = torch.randn(width, 3, generator=generator, dtype=torch.float64)
    T = torch.randn(width, 3, generator=generator, dtype=torch.float64)
    P = torch.randn(width, 10, generator=generator, dtype=torch.float64)
    ones = torch.ones(13, dtype=torch.float64)
    solved = solve(C, P, erase_weight=ones[:3], preserve_weight=ones[:10], ridge=1e-2)
    pipe = tiny_pipeline("sd1")
    weights = pipe.unet.state_dict()
    modules = [p for g in model.family.select(denoiser_shapes(model.folder)).values() for p in g]
    T[:, 2] = C[:, 2] + (T[:, 0] - C[:, 0])  # the third shift equals the first: rank 2, not 3
    A = solved.A.float()
    factors = {
        f"unet.{path}": LowRank((weights[f"{path}.weight"].double() @ (T - C)).float(), A)
        for path in modules
    }
    edit = WeightEdit(factors, {}, 1.0, 3)
    for name in factors:
        singular = torch.linalg.svdvals(edit.delta(name))
        assert int((singular > 1e-6 * singular[0]).sum()) == 2
    path = write_lora(edit, tmp_path)
    with edit.applied(pipe):
        dense = draw(pipe)
    assert (draw(pipe) - dense).abs().max() > 1e-3
    assert (_loaded(pipe, path) - dense).abs().max() < 1e-4
    reduced = edit.reduced()
    assert {pair.rank for pair in reduced.factors.values()} == {2}
    assert edit.difference(read_lora(write_lora(reduced, tmp_path / "reduced"))) < 1e-5
