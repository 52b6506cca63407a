"""LoRA training: what it changes and what it leaves alone, its losses, its latents, its resume."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler

import editforge
from editforge.align import state, watch
from editforge.align.adapter import Adapter, linear_paths
from editforge.align.denoiser import Denoiser
from editforge.align.objective import EMPTY, ERASE, ERASED, KEEP, KEPT, toward
from editforge.align.options import LoraOptions
from editforge.align.pool import Sampler
from editforge.align.prompts import Prompts
from editforge.artifacts.concepts import Concept
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.neighbors import MinedShell, Neighborhood, Neighbors
from editforge.artifacts.targets import Preserved, Target, Targets
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditError, RecipeError
from editforge.ground.keyed import keyed
from editforge.recipe import registry
from editforge.recipe.contract import AlignInputs, Context
from tests.models import TINY, family_file, opened
from tests.tiny import tiny_pipeline

SMALL = {
    "steps": 4,
    "batch": 2,
    "rank": 2,
    "lr": 1e-2,
    "precision": "fp32",
    "erase_runs": 2,
    "keep_runs": 4,
    "kept_times": 2,
    "sample_steps": 4,
}
SHELL = MinedShell(
    radius=5.0,
    r_lo=1.6,
    r_hi=5.1,
    cos_lo=0.7,
    cos_hi=0.95,
    num_neighbors=2,
    num_beyond=4,
    beyond_shell_fraction=0.5,
    out_lo=1.5,
    out_hi=3.0,
)


def start_of(model, size=0.05):
    """A small edit of all maps, like a closed form's: one A for all."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(1, model.family.text_width, generator=generator)
    factors = {
        path: LowRank(size * torch.randn(model.weight(path).shape[0], 1, generator=generator), A)
        for path in model.paths
    }
    return WeightEdit(factors, exact_rank=1)


def inputs_of(model, start=None):
    targets = Targets(
        concepts=(Target(concept="violin", target="trumpet"),),
        preserve=(Preserved(word="guitar"), Preserved(word="piano")),
    )
    neighbors = Neighbors(concepts=(Neighborhood(concept="violin", shell=SHELL),))
    return AlignInputs((Concept(name="violin"),), targets, neighbors, start or start_of(model))


def trained(kind="sd1", method="realera", *, start=None, work=None, log=None, **options):
    made = registry.get("align", method)
    config = made.config(use=method, **{**SMALL, **options})
    context = Context(opened(kind), 0, work=work, log=log)
    return made.function(inputs_of(context.model, start), config, context)


def lora_of(edit, model):
    """What training added to the start, as a change of its own."""
    return edit + start_of(model).scaled(-1.0)


def apart(a, b, model):
    """|a - b| relative to what training did in a."""
    return a.difference(b) * norm(a) / norm(lora_of(a, model))


def norm(edit):
    return sum(float(edit.delta(name).square().sum()) for name in edit.factors) ** 0.5


def same(a, b):
    return all(
        torch.equal(getattr(a.factors[name], side), getattr(b.factors[name], side))
        for name in {*a.factors, *b.factors}
        for side in "AB"
    )


def prepared(kind="sd1", **options):
    """A denoiser with an adapter whose LoRA is not zero, and the texts of both branches."""
    model = opened(kind)
    config = LoraOptions(**{**SMALL, **options})
    denoiser = Denoiser(model.pipeline(), None, config.precision)
    paths = linear_paths(denoiser.module, config.modules)
    start = start_of(model)
    frozen = {path.removeprefix("unet."): pair for path, pair in start.factors.items()}
    adapter = Adapter(denoiser.module, paths, config.rank, frozen, seed=0)
    with torch.no_grad():
        for weight in adapter.B:
            weight.copy_(
                0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            )
    prompts = Prompts(inputs_of(model), config, denoiser, Context(model), 0.5)
    return denoiser, adapter, prompts, start


def one_row(denoiser, prompts):
    latents = torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(2))
    return latents, torch.tensor([500]), [prompts.erased[0].erased]


# --- what it changes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("method", ["realera", "esd", "leco"])
def test_every_family_and_prediction_type_trains_to_the_same_edit_twice(kind, method):
    """sd1 and sdxl predict noise, sd2 velocity."""
    model = opened(kind)
    first, again = trained(kind, method, steps=2), trained(kind, method, steps=2)
    assert same(first, again)
    assert set(first.factors) == set(model.paths)
    assert first.exact_rank == first.rank <= 1 + 2
    assert norm(lora_of(first, model)) > 1e-4


def test_zero_steps_are_the_closed_form():
    start = start_of(opened("sd1"))
    assert trained(start=start, steps=0) is start


def test_the_loss_falls():
    found = trained(steps=30, batch=4).provenance["align"]
    assert found["loss_last"] < 0.7 * found["loss_first"]


def test_esd_without_a_push_changes_nothing_and_with_one_it_does():
    """From the base itself: its own prediction is the goal, up to the rounding of another batch."""
    nothing = WeightEdit({}, exact_rank=0)
    still, pushed = (
        trained(method="esd", start=nothing, eta=eta, steps=1).provenance["align"]["loss_first"]
        for eta in (0.0, 2.0)
    )
    assert still < 1e-10 < 1e-6 < pushed


def test_other_modules_are_trained_when_named():
    edit = trained(modules=["attn1.to_q", "attn2.to_out.0"], steps=1)
    added = {
        name.split(".attentions.")[1].split("transformer_blocks.0.")[1] for name in edit.factors
    }
    assert added == {"attn1.to_q", "attn2.to_out.0", "attn2.to_k", "attn2.to_v"}


def test_a_module_that_is_not_there_is_refused_with_the_near_ones():
    with pytest.raises(RecipeError, match=r"(?s)attn2\.to_key.*attn2\.to_k"):
        trained(modules=["attn2.to_key"])


def test_the_student_is_the_model_with_the_returned_edit_applied():
    denoiser, adapter, prompts, start = prepared()
    row = one_row(denoiser, prompts)
    with torch.no_grad(), denoiser.frozen(), adapter.student():
        student = denoiser(*row)
    lora = {f"unet.{path}": pair for path, pair in adapter.factors().items()}
    adapter.remove()
    whole = start + WeightEdit(lora, exact_rank=2)
    with torch.no_grad(), denoiser.frozen(), whole.applied(denoiser.pipe):
        edited = denoiser(*row)
    assert float((student - edited).abs().max()) < 1e-5


# --- what it leaves alone -----------------------------------------------------------------------


def test_the_teacher_is_the_base_bit_for_bit_and_the_student_is_not():
    denoiser, adapter, prompts, _ = prepared()
    row = one_row(denoiser, prompts)
    with torch.no_grad(), denoiser.frozen():
        teacher = denoiser(*row)
        with adapter.student():
            student = denoiser(*row)
        again = denoiser(*row)
        adapter.remove()
        base = denoiser(*row)
    assert torch.equal(teacher, base)
    assert torch.equal(again, base)
    assert float((student - base).abs().max()) > 1e-4


def test_a_pipeline_in_memory_is_put_back():
    pipe = tiny_pipeline("sd1")
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    flags = [weight.requires_grad for weight in pipe.unet.parameters()]
    kinds = {name: type(one) for name, one in pipe.unet.attn_processors.items()}
    mode = pipe.unet.training
    align = {**SMALL, "use": "realera", "checkpointing": True}
    edit = editforge.erase(
        pipe,
        "violin",
        method="realera",
        target="trumpet",
        preserve=["guitar"],
        family=family_file("sd1"),
        options=[
            "mine=null",
            "edit.beyond=none",
            "edit.limits.residual=[10, 100]",
            "edit.limits.change=[10, 100]",
            "edit.limits.amplification=[50, 1000]",
            f"align={align}".replace("True", "true").replace("'", ""),
        ],
        progress=False,
    )
    assert edit.provenance["align"]["steps"] == 4
    after = pipe.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert [weight.requires_grad for weight in pipe.unet.parameters()] == flags
    assert {name: type(one) for name, one in pipe.unet.attn_processors.items()} == kinds
    assert pipe.unet.training is mode
    assert not pipe.unet.is_gradient_checkpointing


def test_dense_edits_are_refused():
    model = opened("sd1")
    dense = replace(start_of(model), dense={"unet.conv_in.bias": torch.zeros(8)})
    with pytest.raises(EditError, match="dense"):
        trained(start=dense)


# --- the same result ----------------------------------------------------------------------------


def test_accumulation_equals_the_big_batch():
    model = opened("sd1")
    whole, pieces = trained(batch=4), trained(batch=4, accumulate=4)
    assert apart(whole, pieces, model) < 1e-3
    assert apart(whole, trained(batch=2), model) > 1e-2


def test_checkpointing_equals_keeping_activations():
    model = opened("sd1")
    assert apart(trained(), trained(checkpointing=True), model) < 1e-3


def test_bf16_is_near_fp32_and_keeps_factors_and_moments_in_float32():
    model = opened("sd1")
    assert apart(trained(lr=1e-3), trained(lr=1e-3, precision="bf16"), model) < 0.5
    denoiser, adapter, prompts, _ = prepared(precision="bf16")
    kept = state.State(dict(adapter.named_parameters()), LoraOptions(**SMALL), ["loss"])
    with denoiser.frozen(), adapter.student():
        denoiser(*one_row(denoiser, prompts)).square().mean().backward()
    kept.advance([1.0])
    tensors = [*adapter.parameters(), *(weight.grad for weight in adapter.parameters())]
    assert {tensor.dtype for tensor in tensors if tensor is not None} == {torch.float32}


class Stopped(Exception):
    pass


@cache
def undisturbed(ema):
    return trained(steps=6, ema=ema)


@pytest.mark.parametrize(("stop", "ema"), [*((stop, None) for stop in range(1, 7)), (3, 0.9)])
def test_a_stopped_training_resumes_to_the_same_bits(stop, ema, tmp_path, monkeypatch):
    options = {"steps": 6, "save_every": 2, "ema": ema}
    whole = undisturbed(ema)
    advance = state.State.advance

    def stops(self, losses):
        advance(self, losses)
        if self.step == stop:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "advance", stops)
        with pytest.raises(Stopped):
            trained(work=tmp_path, **options)
    steps = []
    monkeypatch.setattr(
        state.State,
        "advance",
        lambda self, losses: (advance(self, losses), steps.append(self.step)),
    )
    resumed = trained(work=tmp_path, **options)
    assert steps[0] == (stop - 1) // 2 * 2 + 1  # from the last checkpoint, not from the start
    assert same(resumed, whole)
    assert resumed.provenance == whole.provenance


def test_a_damaged_checkpoint_starts_again(tmp_path):
    trained(work=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert same(trained(work=tmp_path), trained())


def test_ema_is_the_running_mean_of_the_factors():
    _, adapter, _, _ = prepared()
    kept = state.State(
        dict(adapter.named_parameters()), LoraOptions(**{**SMALL, "ema": 0.5}), ["loss"]
    )
    mean = adapter.B[0].detach().clone()
    for step in range(1, 5):
        for weight in adapter.parameters():
            weight.grad = torch.ones_like(weight)
        kept.advance([0.0])
        decay = min(0.5, step / (step + 9))
        mean = decay * mean + (1 - decay) * adapter.B[0].detach()
    found = adapter.factors(kept.values())[adapter.paths[0]].B
    assert torch.allclose(found, mean, atol=1e-6)
    assert not torch.allclose(found, adapter.B[0].detach(), atol=1e-4)


def test_a_loss_that_is_no_number_stops_with_a_knob():
    with pytest.raises(EditError, match=r"(?s)no number at step.*align\.lr"):
        trained(lr=1e30, steps=8)


# --- losses -------------------------------------------------------------------------------------


def parts_of(objective, erased, empty, student, kept=(0.0, 0.0)):
    teacher = {(ERASE, ERASED): erased, (ERASE, EMPTY): empty, (KEEP, KEPT): torch.tensor(kept[0])}
    return objective.parts(teacher, {(ERASE, ERASED): student, (KEEP, KEPT): torch.tensor(kept[1])})


def test_the_goal_is_met_at_zero_and_mu_weighs_what_is_kept():
    erased, empty = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    reads = ((ERASE, ERASED), (ERASE, EMPTY))
    objective = toward((ERASE, ERASED), lambda t: 2 * t[reads[1]] - t[reads[0]], reads, 3.0)
    met = parts_of(objective, erased, empty, 2 * empty - erased, (1.0, 3.0))
    assert {name: float(value) for name, value in met.items()} == {
        "loss": 12.0,
        "erase": 0.0,
        "keep": 4.0,
    }
    assert toward((ERASE, ERASED), lambda t: t[reads[0]], reads, 0.0).branches == (ERASE,)


def test_leco_without_keeping_is_esd_of_2023_and_so_is_esd_of_2025_at_eta_2():
    """empty - (erased - empty) = erased - 2 (erased - empty)."""
    nothing = WeightEdit({}, exact_rank=0)
    shared = {"start": nothing, "rank": 2, "latents": "pool"}
    leco = trained(method="leco", mu=0.0, eta=1.0, **shared)
    esd = trained(method="esd", eta=2.0, **shared)
    assert leco.difference(esd) < 1e-4


def test_current_latents_are_drawn_by_the_model_in_training():
    pool, current = trained(latents="pool"), trained(latents="current")
    assert pool.difference(current) > 1e-3


# --- texts and latents --------------------------------------------------------------------------


def test_neighbors_move_the_name_alone_by_the_mined_angle():
    _, _, prompts, _ = prepared()
    prompt = prompts.erased[0]
    rows = [prompts.neighbor(0, sample).states for sample in range(40)]
    moved = [row for row in rows if not torch.equal(row, prompt.erased.states)]
    assert 8 < len(moved) < 32  # half at the concept itself
    for row in moved:
        changed = (row != prompt.erased.states).any(dim=1).nonzero().flatten().tolist()
        assert changed == list(range(prompt.first, prompt.last + 1))
    assert torch.equal(prompts.neighbor(0, 7).states, rows[7])
    assert len({tuple(row.flatten().tolist()) for row in moved}) == len(moved)


def test_names_templates_and_points_beyond_are_all_there():
    _, _, prompts, _ = prepared(erase_runs=3, keep_runs=8)
    assert len({prompt.text for prompt in prompts.erased}) == 3
    assert all("violin" in prompt.text for prompt in prompts.erased)
    assert len(prompts.kept) == 8
    assert prompts.preserved == ["guitar", "piano"]


@pytest.mark.parametrize(
    ("kind", "zeros"), [("sd1", None), ("sd2", None), ("sdxl", True), ("sdxl", False)]
)
def test_runs_are_those_of_the_pipeline(kind, zeros):
    """The latent before the last step is what the stock pipeline has there, without negative prompt."""
    denoiser, adapter, prompts, _ = prepared(kind)
    adapter.remove()
    pipe, noise = denoiser.pipe, torch.randn(denoiser.shape, generator=keyed(0, "noise"))
    if zeros is not None:
        pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    sampler = Sampler(denoiser, steps=4, guidance=3.0, window=(0, 1), seed=0)
    found = sampler.runs([noise], [prompts.erased[0].erased], [[0, 3]])[0]
    assert torch.equal(found[0], noise)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def stock(**options):
        seen = []
        pipe(
            prompts.erased[0].text,
            latents=noise[None],
            num_inference_steps=4,
            guidance_scale=3.0,
            output_type="latent",
            callback_on_step_end=lambda _, step, time, kept: seen.append(kept["latents"]) or kept,
            **options,
        )
        return seen[2][0]

    assert torch.allclose(found[1], stock(), atol=1e-4)
    # what a negative prompt changes is zero but where the pipeline puts zeros in its place
    assert torch.allclose(found[1], stock(negative_prompt=""), atol=1e-4) is not bool(zeros)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_without_a_prompt_guidance_leads_away_from_what_it_does_in_the_pipeline(kind):
    denoiser, adapter, prompts, _ = prepared(kind)
    adapter.remove()
    output = denoiser.pipe.encode_prompt(
        prompt="a violin", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    assert torch.equal(prompts.empty.states, output[1][0])
    if kind == "sdxl":
        assert torch.equal(prompts.empty.pooled, output[3][0])
        assert not prompts.empty.states.any()
        assert prompts.erased[0].erased.states.any()
    else:
        assert torch.equal(prompts.empty.states, denoiser.encode([""])[0].states)


def test_a_window_that_holds_no_time_is_refused():
    with pytest.raises(RecipeError, match="time_range"):
        trained(time_range=(0.4, 0.45), sample_steps=2)


# --- what a person sees -------------------------------------------------------------------------


def test_grids_are_drawn_during_training_and_change_nothing(tmp_path):
    watched = trained(log=tmp_path, grid_every=2)
    assert [path.name for path in sorted((tmp_path / "align").iterdir())] == [
        "step-000002.png",
        "step-000004.png",
    ]
    assert same(watched, trained())


def test_tensorboard_gets_losses_and_grids(tmp_path):
    pytest.importorskip("tensorboard")
    trained(log=tmp_path, grid_every=4, tracker="tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "align" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "erase", "keep"}
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Tags()["images"] == ["grid"]


def test_a_missing_tensorboard_is_said_before_anything_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr("accelerate.utils.is_tensorboard_available", lambda: False)
    monkeypatch.setattr(watch, "sample", None)
    with pytest.raises(RecipeError, match=r"editforge\[tensorboard\]"):
        trained(log=tmp_path, tracker="tensorboard")
    assert not list(tmp_path.iterdir())
