"""One identity for a base: the same from disk and memory, another for another base, and checked."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from editforge import erase
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.identity import Identity, check_base
from editforge.families.live import LiveModel
from editforge.families.model import Model, Origin
from editforge.ground.errors import EditError, FamilyError, PackageError
from editforge.ground.files import read_tensors, write_safetensors
from tests.models import LOOSE, family_file, opened
from tests.tiny import save_tiny, tiny_pipeline

KINDS = ("sd1", "sdxl")


@cache
def identity(kind: str = "sd1") -> Identity:
    return opened(kind).identity


def of(pipe, kind: str = "sd1") -> Identity:
    return LiveModel(pipe, family_file(kind)).identity


@cache
def edit() -> WeightEdit:
    """Erased from the base in memory; its provenance says which base that is."""
    pipe = tiny_pipeline("sd1")
    return erase(pipe, "violin", target="cat", family=family_file("sd1"), options=LOOSE)


def saved(folder: Path, kind: str, variant: str | None = None, **how) -> Identity:
    path = save_tiny(folder / "base", kind, variant, **how)
    return Model(path, Origin("x"), family=family_file(kind), variant=variant).identity


def nudged(pipe, component: str, part: str, by: float = 0.02):
    """The pipeline with one kind of its weights moved by a share of their size."""
    generator = torch.Generator().manual_seed(9)
    found = 0
    for name, weight in getattr(pipe, component).named_parameters():
        if part in name and weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight.data += by * weight.data.square().mean().sqrt() * noise
            found += 1
    assert found
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_disk_and_memory_agree_in_32_and_16_bits(kind):
    pipe = tiny_pipeline(kind)
    assert of(pipe, kind) == identity(kind)
    assert of(pipe.to(dtype=torch.float16), kind).sha256 == identity(kind).sha256


@pytest.mark.parametrize(
    "how",
    [
        {"variant": "fp16", "dtype": torch.float16},
        {"shard": "50KB"},
        {"long_names": True},
    ],
    ids=["fp16", "shards", "long-names"],
)
def test_how_a_base_lies_on_the_disk_does_not_count(tmp_path, how):
    assert saved(tmp_path, "sd1", **how) == identity()


def test_what_a_loader_ignores_does_not_count(tmp_path):
    folder = save_tiny(tmp_path / "base", "sd1")
    file = folder / "text_encoder/model.safetensors"
    more = {
        "embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.class_embedding": torch.ones(4),
    }
    write_safetensors(file, read_tensors(file) | more, {})
    assert Model(folder, Origin("x"), family=family_file("sd1")).identity == identity()


@pytest.mark.parametrize(
    ("component", "part"), [("unet", "conv_in"), ("unet", "attn2.to_v"), ("text_encoder", "mlp")]
)
def test_another_value_anywhere_is_another_base(component, part):
    other = of(nudged(tiny_pipeline("sd1"), component, part))
    assert other.sha256 != identity().sha256
    assert other.apart(identity()) is not None


def test_one_changed_number_is_another_base():
    pipe = tiny_pipeline("sd1")
    pipe.text_encoder.get_parameter("final_layer_norm.weight").data[3] += 0.01
    other = of(pipe)
    assert other.sha256 != identity().sha256
    assert other.apart(identity()) is not None


def test_bfloat16_is_the_base_within_its_rounding_and_another_base_is_not():
    rounded = of(tiny_pipeline("sd1").to(dtype=torch.bfloat16))
    assert rounded.sha256 != identity().sha256  # the digest cannot know
    assert rounded.apart(identity()) is None
    for component, part in (("unet", "attn2.to_v"), ("text_encoder", "mlp"), ("unet", "conv")):
        other = nudged(tiny_pipeline("sd1"), component, part).to(dtype=torch.bfloat16)
        assert "of their size" in (of(other).apart(identity()) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_edit_meets_its_base_in_any_dtype_and_no_other(dtype):
    edit().apply(tiny_pipeline("sd1").to(dtype=dtype))
    for component, part in (("unet", "attn2.to_k"), ("unet", "conv"), ("text_encoder", "proj")):
        other = nudged(tiny_pipeline("sd1"), component, part).to(dtype=dtype)
        before = other.unet.state_dict()
        with pytest.raises(EditError, match="another base model") as caught:
            edit().apply(other)
        assert "of their size" in caught.value.got
        assert "editforge.erase" in caught.value.next
        assert all(torch.equal(before[n], w) for n, w in other.unet.state_dict().items())


def test_an_edit_meets_its_base_under_another_edit_and_under_adapters():
    pipe = tiny_pipeline("sd1")
    first = replace(edit().scaled(0.5), provenance={})
    first.apply(pipe)
    edit().apply(pipe)
    style = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    pipe.unet.add_adapter(style, adapter_name="style")
    style = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    inject_adapter_in_model(style, pipe.text_encoder, "style")
    check_base(edit().provenance, pipe)
    first.remove(pipe)
    edit().remove(pipe)


def test_an_edit_meets_its_base_compiled_and_without_a_text_encoder():
    pipe = tiny_pipeline("sd1")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.text_encoder = None  # the prompts are encoded already
    edit().apply(pipe)
    nudged(other := tiny_pipeline("sd1"), "unet", "attn2")
    other.text_encoder = None
    with pytest.raises(EditError, match="another base"):
        edit().apply(other)


def test_fused_adapters_are_another_base():
    pipe = tiny_pipeline("sd1")
    style = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(style, adapter_name="style")
    pipe.unet.fuse_lora()
    with pytest.raises(EditError, match="another base") as caught:
        check_base(edit().provenance, pipe)
    assert "unfuse_lora" in caught.value.next


def test_an_edit_that_names_no_base_and_one_of_an_earlier_version_still_apply():
    other = tiny_pipeline("sd1", seed=1)
    for provenance in ({}, {"base_sha256": "0" * 64}):
        with replace(edit(), provenance=provenance).applied(other):
            pass
        assert Identity.recorded(provenance).apart(identity()) is None


def test_edits_of_memory_and_disk_add_up_and_those_of_two_bases_do_not():
    there = {"base_sha256": identity().sha256, "base_sketch": dict(identity().sketch)}
    disk = replace(edit(), provenance={**there, "erased": [{"name": "dog"}]})
    assert Identity.recorded((edit() + disk).provenance) == identity()
    nameless = replace(edit(), provenance={})
    assert Identity.recorded((nameless + disk).provenance) == identity()
    other = of(tiny_pipeline("sd1", seed=1))
    there = {"base_sha256": other.sha256, "base_sketch": dict(other.sketch)}
    with pytest.raises(EditError, match="different base models"):
        _ = edit() + replace(edit(), provenance=there)


def test_a_base_lasts_through_a_file(tmp_path):
    edit().save(tmp_path / "e.safetensors")
    read = Identity.recorded(WeightEdit.load(tmp_path / "e.safetensors").provenance)
    assert read == identity()


@pytest.mark.parametrize(
    "sketch",
    [[1], {"unet": [1.0]}, {"unet": ["x"] * 9}, {"unet": [float("nan")] * 9}, {"rounding": 0.5}],
)
def test_a_sketch_that_no_run_writes_is_refused(sketch):
    with pytest.raises(PackageError, match="base_sketch"):
        Identity.recorded({"base_sha256": "x", "base_sketch": sketch})


@pytest.mark.parametrize(
    ("kind", "component"), [("sd1", "text_encoder"), ("sdxl", "text_encoder_2")]
)
def test_an_adapter_on_any_text_encoder_is_noticed_and_named(kind, component):
    pipe = tiny_pipeline(kind)
    style = LoraConfig(r=2, target_modules=["q_proj"])
    inject_adapter_in_model(style, getattr(pipe, component), "ink")
    with pytest.raises(FamilyError, match="adapters loaded") as caught:
        erase(pipe, "violin", family=family_file(kind))
    assert caught.value.got == f"ink on its {component}"
    assert "unload_lora_weights" in caught.value.next


def test_an_edit_on_the_pipeline_is_no_base():
    pipe = tiny_pipeline("sd1")
    with edit().applied(pipe), pytest.raises(FamilyError, match="an edit is applied") as caught:
        erase(pipe, "dog", family=family_file("sd1"))
    assert "edit.remove(pipe)" in caught.value.next
    LiveModel(pipe, family_file("sd1"))  # taken off again, it is the base


def test_another_encoder_is_not_served_the_first_ones_states(tmp_path, monkeypatch):
    from editforge.edit import held
    from editforge.edit.vectors import Columns
    from editforge.families import vocabulary
    from editforge.recipe.contract import Context

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vocabulary, "_CACHED_FROM", 2)
    monkeypatch.setattr(held, "_CACHED_FROM", 0)
    (tmp_path / "words.txt").write_text("violin\ncat\ndog\n")
    source = str(tmp_path / "words.txt")

    def read(pipe):
        model = LiveModel(pipe, family_file("sd1"))
        columns = Columns(model, ["{n}", "a photo of {n}"], "phrase")
        total = held.background(columns, source, 9, [], Context(model, 0))
        return vocabulary.load_vocabulary(model, source).vectors, total

    base = tiny_pipeline("sd1")
    other = copy.copy(base)
    other.text_encoder = tiny_pipeline("sd1", seed=1).text_encoder  # the UNet is the same
    first, again, second = read(base), read(base), read(other)
    for own, same, else_ in zip(first, again, second, strict=True):
        assert torch.equal(own, same)
        assert (own - else_).norm() > 0.1 * own.norm()
