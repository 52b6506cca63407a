"""A WeightEdit is applied and taken off bit for bit, adds, scales, and comes back from its file."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from diffusers.hooks import apply_group_offloading
from hypothesis import given, settings
from hypothesis import strategies as st

import editforge
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.live import LiveModel
from editforge.ground.errors import EditError, EditforgeError, PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from tests.models import family_file, tiny_folder
from tests.tiny import KINDS, draw, one_thread, random_edit, tiny_model, tiny_pipeline

BIAS = "unet.conv_out.bias"


@pytest.fixture
def pipe():
    return tiny_pipeline("sd1")


def edit_of(seed=0, kind="sd1", **options):
    return random_edit(tiny_model(tiny_folder(kind), kind), seed=seed, **options)


def bits(pipe):
    return {name: weight.detach().clone() for name, weight in pipe.unet.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# --- apply and remove ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_removing_an_edit_restores_every_bit(kind):
    pipe, edit = tiny_pipeline(kind), edit_of(kind=kind)
    before = bits(pipe)
    edit.apply(pipe)
    after = bits(pipe)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name.removeprefix('unet.')}.weight" for name in edit.factors}
    for name in edit.factors:
        weight = before[f"{name.removeprefix('unet.')}.weight"]
        assert torch.equal(after[f"{name.removeprefix('unet.')}.weight"], edit.edited(name, weight))
    edit.remove(pipe)
    assert same(before, bits(pipe))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_undo_is_exact_in_sixteen_bits_where_subtracting_is_not(pipe, dtype):
    pipe.unet.to(dtype)
    before, edit = bits(pipe), edit_of()
    edit.apply(pipe)
    edit.scaled(-1).apply(pipe)
    edits_cancel = bits(pipe)
    assert same(before, edits_cancel)  # both lie on the kept originals: nothing is rounded twice
    name = next(iter(edit.factors))
    weight = before[f"{name.removeprefix('unet.')}.weight"]
    twice = edit.scaled(-1).edited(name, edit.edited(name, weight))
    assert not torch.equal(twice, weight)  # the control: a change of weights in place would round


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_edits_come_off_in_any_order(pipe, order):
    before, edits = bits(pipe), [edit_of(seed) for seed in range(3)]
    for edit in edits:
        edit.apply(pipe)
    for position, index in enumerate(order):
        edits[index].remove(pipe)
        left = [edits[i] for i in order[position + 1 :]]
        for name in edits[0].factors:
            key = f"{name.removeprefix('unet.')}.weight"
            want = before[key].double() + sum((edit.delta(name) for edit in left), torch.zeros(()))
            torch.testing.assert_close(
                dict(pipe.unet.named_parameters())[key].double(), want, rtol=1e-6, atol=1e-6
            )
    assert same(before, bits(pipe))


def test_one_edit_applied_twice_counts_twice_and_comes_off_once_at_a_time(pipe):
    before, edit = bits(pipe), edit_of()
    edit.apply(pipe)
    once = bits(pipe)
    edit.apply(pipe)
    assert not same(once, bits(pipe))
    edit.remove(pipe)
    assert same(once, bits(pipe))
    edit.remove(pipe)
    assert same(before, bits(pipe))


def test_a_null_edit_is_the_base_bit_for_bit(pipe):
    before, edit = bits(pipe), edit_of()
    empty = replace(
        edit, factors={n: replace(p, B=torch.zeros_like(p.B)) for n, p in edit.factors.items()}
    )
    for null in (edit.scaled(0), empty, WeightEdit({})):
        with null.applied(pipe):
            assert same(before, bits(pipe))
    with edit.scaled(1e-3).applied(pipe):
        assert not same(before, bits(pipe))


def test_a_null_edit_keeps_even_the_sign_of_zero(pipe):
    parameter = dict(pipe.unet.named_parameters())["conv_out.bias"]
    with torch.no_grad():
        parameter.zero_().neg_()
    edit = WeightEdit({}, dense={BIAS: torch.ones(4)}).scaled(0)
    with edit.applied(pipe):
        assert bool(torch.signbit(parameter).all())


def test_strength_minus_one_then_plus_one_cancels(pipe):
    before, edit = bits(pipe), edit_of()
    edit.scaled(-1).apply(pipe)
    assert not same(before, bits(pipe))
    edit.apply(pipe)
    assert same(before, bits(pipe))


def test_taking_off_what_is_not_on_is_refused(pipe):
    edit = edit_of()
    with pytest.raises(EditError, match="not applied to this pipeline"):
        edit.remove(pipe)
    edit.apply(pipe)
    with pytest.raises(EditError, match="not applied"):
        edit.scaled(1).remove(pipe)  # equal is not the same
    edit.remove(pipe)
    with pytest.raises(EditError, match="not applied"):
        edit.remove(pipe)


def test_an_error_inside_applied_still_restores(pipe):
    before = bits(pipe)
    with pytest.raises(RuntimeError, match="drawing failed"), edit_of().applied(pipe):
        raise RuntimeError("drawing failed")
    assert same(before, bits(pipe))


@pytest.mark.parametrize("wrong", ["shape", "name", "dense", "no denoiser"])
def test_an_edit_that_does_not_fit_is_refused_and_changes_nothing(pipe, wrong):
    before, edit = bits(pipe), edit_of()
    last = sorted(edit.factors)[-1]
    if wrong == "shape":
        pair = edit.factors[last]
        edit = replace(edit, factors={**edit.factors, last: LowRank(pair.B[:-1], pair.A)})
        message = "does not fit"
    elif wrong == "name":
        edit = replace(edit, factors={**edit.factors, "unet.mid_block.nothing": edit.factors[last]})
        message = "has no parameter unet.mid_block.nothing"
    elif wrong == "dense":
        edit = replace(edit, dense={BIAS: torch.ones(5)})
        message = "does not fit"
    else:
        with pytest.raises(EditError, match="no denoiser"):
            WeightEdit({}).apply(object())
        return
    with pytest.raises(EditError, match=message):
        edit.apply(pipe)
    assert same(before, bits(pipe))
    with pytest.raises(EditError, match="not applied"):
        edit.remove(pipe)


def test_a_dense_delta_is_added_and_taken_off(pipe):
    before = bits(pipe)
    edit = WeightEdit({}, dense={BIAS: torch.arange(4.0)}, strength=0.5)
    with edit.applied(pipe):
        torch.testing.assert_close(
            bits(pipe)["conv_out.bias"], before["conv_out.bias"] + torch.arange(4.0) / 2
        )
    assert same(before, bits(pipe))


def test_two_pipelines_that_share_a_denoiser_share_its_edits(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    before = bits(pipe)
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    a, b = edit_of(0), edit_of(1)
    a.apply(pipe)
    b.apply(other)
    a.remove(other)
    b.remove(pipe)
    assert same(before, bits(pipe))


def test_an_edit_survives_a_cast_of_the_pipeline_and_comes_off(pipe):
    edit = edit_of()
    before = bits(pipe)
    edit.apply(pipe)
    pipe.unet.to(torch.float16)
    edit.remove(pipe)
    assert all(
        torch.equal(weight, before[name].half())
        for name, weight in bits(pipe).items()
        if "attn2.to_k" in name
    )


def test_an_edit_changes_the_picture_and_its_removal_restores_it(pipe):
    before, edit = draw(pipe), edit_of()
    with edit.applied(pipe):
        assert not torch.allclose(draw(pipe), before, atol=1e-2)
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_lora_draws_what_the_dense_edit_draws(kind, tmp_path):
    pipe, edit = tiny_pipeline(kind), edit_of(kind=kind, strength=0.7)
    base = draw(pipe)
    with edit.applied(pipe):
        dense = draw(pipe)
    edit.save_lora(tmp_path)
    pipe.load_lora_weights(tmp_path)
    with one_thread():
        torch.testing.assert_close(draw(pipe), dense, rtol=0, atol=1e-3)
    assert (base - dense).abs().max() > 1e-2
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), base, rtol=0, atol=1e-5)


# --- pipelines whose weights are not what they show ----------------------------------------------


def on_meta(pipe):
    pipe.enable_sequential_cpu_offload(device="cpu")


def denoiser_on_meta(pipe):
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))


def on_the_disk(pipe):
    disk_offload(pipe.unet, tempfile.mkdtemp(), execution_device=torch.device("cpu"))


def dispatched(pipe):
    """Most of the denoiser on its device, the part with the edited maps on the disk."""
    places = {name: "cpu" for name, _ in pipe.unet.named_children()}
    places |= {"down_blocks": "disk", "up_blocks": "disk", "mid_block": "disk"}
    folder = tempfile.mkdtemp()
    pipe.unet = dispatch_model(
        pipe.unet, places, main_device="cpu", offload_dir=folder, force_hooks=True
    )


def in_groups(kind):
    def offload(pipe):
        cpu = torch.device("cpu")
        options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        pipe.unet.enable_group_offload(
            onload_device=cpu, offload_device=cpu, offload_type=kind, **options
        )

    return offload


def in_groups_on_the_disk(pipe):
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(
        onload_device=cpu,
        offload_device=cpu,
        offload_type="leaf_level",
        offload_to_disk_path=tempfile.mkdtemp(),
    )


def in_eight_bits(pipe):
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def in_integers(pipe):
    """As bitsandbytes keeps them: codes of the same shape, not floating."""
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2.to_k"):
            codes = (module.weight * 100).round().to(torch.int8)
            module.weight = torch.nn.Parameter(codes, requires_grad=False)


class Codes(torch.Tensor):
    """As torchao keeps them: a subclass that shows the dtype it computes in."""


def in_a_subclass(pipe):
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2.to_k"):
            codes = module.weight.detach().as_subclass(Codes)
            module.weight = torch.nn.Parameter(codes, requires_grad=False)


def fused(pipe):
    pipe.fuse_qkv_projections()


ELSEWHERE = [
    (on_meta, "offloaded", "pipe.remove_all_hooks()"),
    (denoiser_on_meta, "offloaded", "pipe.remove_all_hooks()"),
    (on_the_disk, "offloaded", "pipe.remove_all_hooks()"),
    (dispatched, "offloaded", "pipe.remove_all_hooks()"),
    (in_groups("leaf_level"), "offloaded in groups", "before enable_group_offload()"),
    (in_groups("block_level"), "offloaded in groups", "before enable_group_offload()"),
    (in_groups_on_the_disk, "offloaded in groups", "before enable_group_offload()"),
    (in_eight_bits, "quantized", "without quantization"),
    (in_integers, "quantized", "without quantization"),
    (in_a_subclass, "quantized", "without quantization"),
    (fused, "fused", "pipe.unfuse_qkv_projections()"),
]
elsewhere = pytest.mark.parametrize(("put", "what", "next_step"), ELSEWHERE)


@elsewhere
def test_weights_that_are_not_what_counts_are_refused_with_the_way_out(pipe, put, what, next_step):
    put(pipe)
    before = dict(pipe.unet.named_parameters())
    with pytest.raises(EditError) as caught:
        edit_of().apply(pipe)
    assert what in str(caught.value)
    assert next_step in caught.value.next
    assert all(weight is before[name] for name, weight in pipe.unet.named_parameters())


@elsewhere
def test_erase_reads_no_weights_that_are_not_what_counts(pipe, put, what, next_step):
    put(pipe)
    with pytest.raises(EditError, match=what):
        LiveModel(pipe, family_file("sd1"))


def all_but_the_denoiser_on_meta(pipe):
    pipe._exclude_from_cpu_offload = ["unet"]
    pipe.enable_sequential_cpu_offload(device="cpu")


def text_encoder_on_meta(pipe):
    cpu_offload(pipe.text_encoder, execution_device=torch.device("cpu"))


def text_encoder_on_the_disk(pipe):
    disk_offload(pipe.text_encoder, tempfile.mkdtemp(), execution_device=torch.device("cpu"))


def text_encoder_in_groups(pipe, **options):
    cpu = torch.device("cpu")
    options = {"onload_device": cpu, "offload_device": cpu, "offload_type": "leaf_level", **options}
    apply_group_offloading(pipe.text_encoder, **options)


def text_encoder_in_groups_on_the_disk(pipe):
    text_encoder_in_groups(pipe, offload_to_disk_path=tempfile.mkdtemp())


def typed(pipe):
    options = {"target": "trumpet", "preserve": ["guitar"], "progress": False}
    return editforge.erase(pipe, "violin", family=family_file("sd1"), **options)


@pytest.mark.parametrize(
    ("put", "next_step"),
    [
        (all_but_the_denoiser_on_meta, "pipe.remove_all_hooks()"),
        (text_encoder_on_meta, "pipe.remove_all_hooks()"),
        (text_encoder_on_the_disk, "pipe.remove_all_hooks()"),
        (text_encoder_in_groups_on_the_disk, "before enable_group_offload()"),
    ],
)
def test_a_text_encoder_whose_weights_are_elsewhere_is_refused_with_the_way_out(
    pipe, put, next_step
):
    wanted = typed(pipe)
    put(pipe)
    with pytest.raises(EditError, match="offloaded") as caught:
        typed(pipe)
    assert "text_encoder" in caught.value.got
    assert next_step in caught.value.next
    if "remove_all_hooks" in next_step:
        pipe.remove_all_hooks()
        assert typed(pipe).difference(wanted) < 1e-6


@pytest.mark.parametrize("put", [text_encoder_in_groups, lambda pipe: model_offload(pipe)])
def test_a_text_encoder_that_waits_in_memory_is_read(pipe, put):
    wanted = typed(pipe)
    put(pipe)
    assert typed(pipe).difference(wanted) < 1e-6


@elsewhere
def test_an_edit_is_not_taken_off_where_that_would_change_nothing(pipe, put, what, next_step):
    edit = edit_of()
    edit.apply(pipe)
    put(pipe)
    with pytest.raises(EditError, match=what):
        edit.remove(pipe)


@pytest.mark.parametrize("put", [on_meta, denoiser_on_meta, on_the_disk, dispatched])
def test_the_way_out_of_offloading_works_and_back(pipe, put):
    edit, base = edit_of(), draw(pipe)
    with edit.applied(pipe):
        wanted = draw(pipe)
    put(pipe)
    pipe.remove_all_hooks()
    edit.apply(pipe)
    put(pipe)
    if (
        put is on_meta
    ):  # a text encoder whose execution device is the CPU cannot run so (accelerate 1.15)
        pipe.remove_all_hooks()
    assert torch.equal(draw(pipe), wanted)
    pipe.remove_all_hooks()
    edit.remove(pipe)
    assert torch.equal(draw(pipe), base)


def test_the_way_out_of_fused_projections_works_and_back(pipe):
    edit, base = edit_of(), draw(pipe)
    with edit.applied(pipe):
        wanted = draw(pipe)
    pipe.fuse_qkv_projections()
    pipe.unfuse_qkv_projections()
    edit.apply(pipe)
    pipe.fuse_qkv_projections()
    torch.testing.assert_close(draw(pipe), wanted, rtol=0, atol=1e-4)
    pipe.unfuse_qkv_projections()
    edit.remove(pipe)
    assert torch.equal(draw(pipe), base)


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def in_sixteen_bits(pipe):
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)


def compiled(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_in_place(pipe):
    pipe.unet.compile(backend="eager")


@pytest.mark.parametrize("put", [model_offload, in_sixteen_bits, compiled, compiled_in_place])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_edit_acts_on_a_pipeline_that_keeps_its_weights(put, when, pipe):
    """Offloaded as a whole, stored in half, compiled: the edit is on before or after, and comes off."""
    edit = edit_of()
    plain = tiny_pipeline("sd1")
    put(plain)
    base = draw(plain)
    if when == "before":
        edit.apply(pipe)
    put(pipe)
    if when == "after":
        edit.apply(pipe)
    assert not torch.allclose(draw(pipe), base, atol=1e-2)
    edit.remove(pipe)
    assert torch.equal(draw(pipe), base)


def test_erase_reads_a_compiled_pipeline(pipe):
    plain = LiveModel(pipe, family_file("sd1"))
    compiled(pipe)
    seen = LiveModel(pipe, family_file("sd1"))
    assert (seen.paths, seen.digest) == (plain.paths, plain.digest)


def test_an_edit_below_a_lora_comes_off(pipe, tmp_path):
    """The adapter renames the modules; the weights below it are the same ones."""
    edit, before = edit_of(), bits(pipe)
    edit.apply(pipe)
    edit_of(seed=1).save_lora(tmp_path)
    pipe.load_lora_weights(tmp_path)
    edit.remove(pipe)
    pipe.unload_lora_weights()
    assert same(before, bits(pipe))


# --- arithmetic ---------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4))


def small(seed, layout, strength=1.0):
    generator = torch.Generator().manual_seed(seed)
    factors = {
        f"unet.m{i}": LowRank(
            torch.randn(out, rank, generator=generator),
            torch.randn(rank, width, generator=generator),
        )
        for i, (out, width, rank) in enumerate(layout)
    }
    return WeightEdit(factors, {"unet.bias": torch.randn(3, generator=generator)}, strength, 1)


@settings(deadline=None, max_examples=40)
@given(
    layout=st.lists(shapes, min_size=1, max_size=3),
    strengths=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    seed=st.integers(0, 99),
)
def test_a_sum_holds_both_changes_and_commutes(layout, strengths, seed):
    a, b = small(seed, layout, strengths[0]), small(seed + 1, layout, strengths[1])
    both, swapped = a + b, b + a
    for name in (*a.factors, *a.dense):
        want = a.delta(name) + b.delta(name)
        torch.testing.assert_close(both.delta(name), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(swapped.delta(name), want, rtol=1e-5, atol=1e-5)
    assert all(both.factors[name].rank <= min(pair.shape) for name, pair in both.factors.items())


@settings(deadline=None, max_examples=30)
@given(
    layout=st.lists(shapes, min_size=1, max_size=3), scale=st.floats(-3, 3), seed=st.integers(0, 99)
)
def test_scaling_scales_the_change_and_nothing_else(layout, scale, seed):
    edit = small(seed, layout)
    scaled = edit.scaled(scale)
    for name in (*edit.factors, *edit.dense):
        torch.testing.assert_close(
            scaled.delta(name), scale * edit.delta(name), rtol=1e-12, atol=1e-12
        )
    assert scaled.factors is edit.factors
    assert edit.difference(scaled) == pytest.approx(abs(1 - scale), rel=1e-9, abs=1e-12)
    assert edit.difference(edit) < 1e-12


def test_difference_is_zero_for_one_change_in_two_forms_and_not_for_another():
    a = small(0, [(5, 4, 2)])
    mixed = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    pair = a.factors["unet.m0"]
    b = replace(a, factors={"unet.m0": LowRank(pair.B @ mixed, torch.linalg.solve(mixed, pair.A))})
    assert a.difference(b) < 1e-6
    assert a.difference(small(1, [(5, 4, 2)])) > 0.5
    assert WeightEdit({}).difference(WeightEdit({})) == 0
    assert WeightEdit({}).difference(a) == math.inf


def test_reducing_drops_idle_columns_and_keeps_the_change():
    a = small(0, [(6, 5, 2)])
    pair = a.factors["unet.m0"]
    wide = LowRank(torch.cat([pair.B, pair.B], 1), torch.cat([pair.A, torch.zeros_like(pair.A)]))
    padded = replace(a, factors={"unet.m0": wide})
    assert padded.rank == 4
    assert padded.reduced().rank == 2
    assert a.difference(padded.reduced()) < 1e-6


def test_a_sum_says_what_it_holds_and_refuses_another_base():
    a = replace(
        small(0, [(5, 4, 1)]), provenance={"base_sha256": "a", "erased": [{"name": "violin"}]}
    )
    b = replace(small(1, [(5, 4, 1)]), provenance={"base_sha256": "a", "erased": [{"name": "dog"}]})
    c = replace(small(2, [(5, 4, 1)]), provenance={"base_sha256": "a", "erased": [{"name": "cat"}]})
    three = a + b + c
    assert three.provenance["combined"] == "sum of 3 edits"
    assert [row["name"] for row in three.provenance["erased"]] == ["violin", "dog", "cat"]
    assert three.exact_rank == three.rank == 3
    assert (a + replace(b, exact_rank=None)).exact_rank is None
    with pytest.raises(EditError, match="different base models"):
        _ = a + replace(b, provenance={"base_sha256": "b"})
    with pytest.raises(EditError, match="different base models"):
        _ = a + small(1, [(5, 3, 1)])
    with pytest.raises(TypeError):
        _ = a + 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_never_enter(value):
    with pytest.raises(EditError, match="strength is not a number"):
        WeightEdit({}, strength=value)
    with pytest.raises(PackageError, match="NaN or infinite"):
        WeightEdit({"unet.m": LowRank(torch.full((2, 1), value), torch.ones(1, 2))})
    with pytest.raises(PackageError, match="NaN or infinite"):
        WeightEdit({}, {"unet.b": torch.tensor([value])})


def test_factors_that_do_not_fit_are_refused():
    LowRank(torch.ones(3, 2), torch.ones(2, 4))
    for B, A in ((torch.ones(3, 2), torch.ones(3, 4)), (torch.ones(3), torch.ones(1, 4))):
        with pytest.raises(EditError, match="factors do not fit"):
            LowRank(B, A)


# --- files --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(layout=st.lists(shapes, max_size=3), strength=st.floats(-5, 5), seed=st.integers(0, 99))
def test_an_edit_loads_as_it_was_saved(layout, strength, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("edit") / "x.safetensors"
    edit = replace(
        small(seed, layout, strength), provenance={"method": "uce", "erased": [{"name": "vïolin"}]}
    )
    edit.save(path)
    back = WeightEdit.load(path)
    assert back.strength == edit.strength
    assert back.exact_rank == edit.exact_rank
    assert back.provenance == edit.provenance
    assert set(back.factors) == set(edit.factors)
    for name, pair in edit.factors.items():
        assert torch.equal(back.factors[name].B, pair.B)
        assert torch.equal(back.factors[name].A, pair.A)
    assert torch.equal(back.dense["unet.bias"], edit.dense["unet.bias"])
    again = path.with_name("again.safetensors")
    back.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_shared_factor_is_stored_once(tmp_path):
    edit = edit_of()
    edit.save(tmp_path / "x")
    _, table = read_header(tmp_path / "x")
    assert sum(name.startswith("A.") for name in table) == 1
    assert len({id(pair.A) for pair in WeightEdit.load(tmp_path / "x").factors.values()}) == 1
    loose = replace(edit, factors={n: LowRank(p.B, p.A.clone()) for n, p in edit.factors.items()})
    loose.save(tmp_path / "y")
    assert sum(name.startswith("A.") for name in read_header(tmp_path / "y")[1]) == len(
        edit.factors
    )


@pytest.mark.parametrize(
    "body",
    [
        None,
        "not json",
        "[]",
        "{}",
        json.dumps({"schema": "editforge.weight_edit/9"}),
        json.dumps(
            {
                "schema": "editforge.weight_edit/1",
                "shared": {"unet.m0": "A.9"},
                "strength": 1,
                "exact_rank": 1,
                "provenance": {},
            }
        ),
        json.dumps(
            {
                "schema": "editforge.weight_edit/1",
                "shared": [],
                "strength": 1,
                "exact_rank": 1,
                "provenance": {},
            }
        ),
        json.dumps(
            {
                "schema": "editforge.weight_edit/1",
                "shared": {},
                "strength": "much",
                "exact_rank": 1,
                "provenance": {},
            }
        ),
        json.dumps(
            {
                "schema": "editforge.weight_edit/1",
                "shared": {},
                "strength": 1,
                "exact_rank": "x",
                "provenance": {},
            }
        ),
        json.dumps(
            {
                "schema": "editforge.weight_edit/1",
                "shared": {},
                "strength": 1,
                "exact_rank": 1,
                "provenance": [],
            }
        ),
    ],
)
def test_a_file_that_is_no_weight_edit_is_refused(body, tmp_path):
    path = tmp_path / "x.safetensors"
    small(0, [(3, 2, 1)]).save(path)
    WeightEdit.load(path)
    tensors = read_tensors(path)
    write_safetensors(path, tensors, {} if body is None else {"editforge.weight_edit": body})
    with pytest.raises(EditforgeError):
        WeightEdit.load(path)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_edit_is_refused(kept, tmp_path):
    path = tmp_path / "x.safetensors"
    small(0, [(3, 2, 1)]).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PackageError):
        WeightEdit.load(path)
