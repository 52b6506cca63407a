"""Prototype guards on real pipelines: stock bits where nothing triggers, else methods.md 4.4."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from editforge import emoji
from editforge.ground.errors import EditError, HubError, PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from editforge.guards.bank import Facts
from editforge.guards.core import encoders_of
from editforge.guards.gate import scores
from editforge.guards.prototype import PrototypeGuard
from editforge.guards.words import Speaks
from tests.tiny import KINDS, tiny_family, tiny_pipeline

torch.set_num_threads(1)

ALPHA, LOUD = 5.0, 20.0
VIOLIN, BOAT, CAT = "a photo of a violin", "a blue boat on the water", "a drawing of a cat"
WINE, LEMON = "a wine glass", "a drawing of a lemon"
TRIGGER = {"emoji": WINE}
HARMLESS = {"emoji": LEMON}
ALL = (*KINDS, "emoji")


def trigger(kind):
    return TRIGGER.get(kind, VIOLIN)


def harmless(kind):
    return HARMLESS.get(kind, CAT)


@torch.no_grad()
def bank(pipe, concepts, other, *, instead=None, strength=1.0, prototypes=1, **guidance):
    """Each concept acts on its prompt and not on `other`: halfway between the two scores.

    Args:
        concepts: name to the prompt that triggers it.
        other: prompts that trigger nothing.
        prototypes: of each concept; all but the first look another way.
    """
    speaks = Speaks(pipe)
    others = [speaks(text).states[0] for text in [*other, ""]]
    center = torch.cat([states[1:9] for states in others]).mean(dim=0).half()
    selectors, tokens, positions, owners, rows = [], [], [], [], []
    for index, (name, prompt) in enumerate(concepts.items()):
        own = speaks(prompt).states[0]
        far = torch.stack([(own - states).norm(dim=-1) for states in others]).amin(dim=0)
        for turn in range(prototypes):
            away = own[far.argsort(descending=True)[turn]] - center
            selectors.append(away / away.norm())
            # one token among 77 hardly moves a random UNet, so there it is a loud one
            loud = LOUD if own.shape[1] < 100 else 1
            tokens.append(loud * own[-1] * (1 + 0.1 * index) * (-1) ** turn)
            positions.append(len(own) - 1)
            owners.append(index)
        mine = torch.stack(selectors[-prototypes:]).half()
        hit = scores(own[None], center, mine).max()
        miss = scores(torch.stack(others), center, mine).max()
        assert hit > miss
        rows.append({"name": name, "threshold": float(hit + miss) / 2, "instead": instead})
    identity = encoders_of(pipe)
    facts = Facts(
        concepts=rows,
        guidance={"beta": 6.0, "mask": 0.0, **guidance},
        family="sd1",
        encoder_sha256=identity.sha256,
        encoder_sketch=dict(identity.sketch),
        alpha=ALPHA,
    )
    tensors = {
        "token": torch.stack(tokens),
        "position": torch.tensor(positions, dtype=torch.int32),
        "selector": torch.stack(selectors).half(),
        "center": center,
        "concept": torch.tensor(owners, dtype=torch.int32),
    }
    return PrototypeGuard(tensors=tensors, facts=facts, strength=strength)


def one(pipe, kind="sd1", **options):
    """A bank of one concept."""
    return bank(pipe, {"erased": trigger(kind)}, [harmless(kind)], **options)


def draw(pipe, prompts=None, *, steps=3, count=None, seeds=None, **options):
    """Latents, (n, 4, 8, 8): each picture has its own noise."""
    count = count or len(prompts)
    seeds = range(count) if seeds is None else seeds
    if not isinstance(pipe, StableDiffusionImg2ImgPipeline | StableDiffusionXLImg2ImgPipeline):
        options = {"height": 64, "width": 64, **options}
    given = {
        "num_inference_steps": steps,
        "guidance_scale": ALPHA,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        **options,
    }
    return pipe(prompt=prompts, **given).images


@contextmanager
def counted(pipe):
    """Rows that the denoiser is given in each call; enter it before a guard is attached."""
    rows, forward = [], pipe.unet.forward

    def count(sample, *args, **kwargs):
        rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = count
    try:
        yield rows
    finally:
        pipe.unet.forward = forward


@contextmanager
def scheduled(pipe, kind, **options):
    kept = pipe.scheduler
    pipe.scheduler = kind.from_config(kept.config, **options)
    try:
        yield pipe
    finally:
        pipe.scheduler = kept


def rows_of(pipe, guard, prompts, **options):
    with counted(pipe) as rows, guard.on(pipe):
        draw(pipe, prompts, **options)
    return rows


def same(a, b):
    return torch.equal(a, b)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipes():
    """One pipeline of each kind; every test leaves them as they were."""
    found = {kind: tiny_pipeline(kind) for kind in KINDS}
    found["emoji"] = quiet(emoji.load_pipeline())
    return found


@pytest.fixture(scope="module")
def sd1(pipes):
    return pipes["sd1"]


@pytest.fixture(scope="module")
def guard(sd1):
    return one(sd1)


@pytest.fixture(scope="module")
def picture():
    noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(5))
    return Image.fromarray((255 * noise).byte().numpy())


@pytest.fixture(scope="module")
def mask():
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 64, 32))
    return half


# 1. Bit for bit


@pytest.mark.parametrize("kind", ALL)
def test_an_untriggered_prompt_keeps_its_bits_alone_and_beside_a_triggered_one(pipes, kind):
    pipe, prompts = pipes[kind], [trigger(kind), harmless(kind)]
    guard = one(pipe, kind)
    stock, alone = draw(pipe, prompts), draw(pipe, prompts[1:], seeds=[1])
    with guard.on(pipe):
        steered = draw(pipe, prompts)
        assert same(draw(pipe, prompts[1:], seeds=[1]), alone)
    assert same(steered[1], stock[1])
    assert float((steered[0] - stock[0]).abs().max()) > 0.01
    assert same(draw(pipe, prompts), stock)
    assert guard.triggered(pipe, prompts) == [("erased",), ()]


def test_a_blend_changes_the_triggered_sample_alone(sd1):
    stock = draw(sd1, [VIOLIN, CAT])
    with one(sd1, instead="a trumpet", beta=0.0, blend=0.5).on(sd1):
        steered = draw(sd1, [VIOLIN, CAT])
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])


def test_a_full_blend_alone_draws_the_target(sd1):
    with one(sd1, instead="a trumpet", beta=0.0, blend=1.0).on(sd1):
        steered = draw(sd1, [VIOLIN, CAT])
    assert same(steered, draw(sd1, ["a trumpet", CAT]))


def test_strength_zero_draws_stock(sd1):
    stock = draw(sd1, [VIOLIN, CAT])
    for weak in (one(sd1, strength=0.0, blend=0.5, instead="a trumpet"), one(sd1).scaled(0)):
        with weak.on(sd1):
            assert same(draw(sd1, [VIOLIN, CAT]), stock)


def test_an_error_inside_takes_it_off(sd1, guard):
    stock = draw(sd1, [VIOLIN])
    with pytest.raises(RuntimeError, match="mine"), guard.on(sd1):
        raise RuntimeError("mine")
    assert same(draw(sd1, [VIOLIN]), stock)


def test_an_error_in_the_middle_of_a_picture_leaves_the_next_one_whole(sd1, guard):
    def stop(pipe, step, timestep, kwargs):
        raise RuntimeError("mine")

    with guard.on(sd1):
        whole = draw(sd1, [VIOLIN, CAT])
        with pytest.raises(RuntimeError, match="mine"):
            draw(sd1, [CAT, VIOLIN], callback_on_step_end=stop)
        assert same(draw(sd1, [VIOLIN, CAT]), whole)


def test_stock_bits_under_autocast(sd1, guard):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock = draw(sd1, [VIOLIN, CAT])
        with guard.on(sd1):
            steered = draw(sd1, [VIOLIN, CAT])
        assert same(draw(sd1, [VIOLIN, CAT]), stock)
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_several_pictures_of_a_prompt(pipes, kind):
    pipe = pipes[kind]
    more = {"count": 4, "num_images_per_prompt": 2}
    stock = draw(pipe, [VIOLIN, CAT], **more)
    with one(pipe).on(pipe):
        steered = draw(pipe, [VIOLIN, CAT], **more)
    assert len(stock) == 4
    assert same(steered[2:], stock[2:])
    assert [same(a, b) for a, b in zip(steered, stock, strict=True)][:2] == [False, False]


def test_embeddings_given_instead_of_prompts(sd1, guard):
    speaks = Speaks(sd1)
    given = {
        "prompt_embeds": torch.cat([speaks(VIOLIN).states, speaks(CAT).states]),
        "negative_prompt_embeds": speaks("").states.repeat(2, 1, 1),
        "count": 2,
    }
    stock = draw(sd1, **given)
    with guard.on(sd1):
        steered, by_text = draw(sd1, **given), draw(sd1, [VIOLIN, CAT])
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])
    assert torch.allclose(steered, by_text, atol=1e-3, rtol=1e-3)  # read one by one: other rounding


def test_embeddings_changed_in_place_are_read_again(sd1, guard):
    """Without guidance a pipeline hands the very tensor of its user to the denoiser."""
    speaks = Speaks(sd1)
    given = speaks(CAT).states.clone()
    with guard.on(sd1):
        draw(sd1, prompt_embeds=given, count=1, guidance_scale=1.0)
        given.copy_(speaks(VIOLIN).states)
        steered = draw(sd1, prompt_embeds=given, count=1, guidance_scale=1.0)
    assert not same(steered, draw(sd1, [VIOLIN], guidance_scale=1.0))


def test_a_prompt_that_cannot_be_read_is_refused(sd1, guard):
    states = torch.full((1, 77, 24), torch.nan)
    with guard.on(sd1), pytest.raises(EditError, match="cannot read this prompt"):
        draw(sd1, prompt_embeds=states, negative_prompt_embeds=states, count=1)


def test_arguments_by_position_reach_the_denoiser(sd1, guard):
    """Every argument of the denoiser's own signature, however it is handed over."""
    speaks, seeded = Speaks(sd1), torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=seeded)
    texts = torch.cat([speaks("").states, speaks(CAT).states])
    hidden = torch.ones(2, 77, dtype=torch.bool)
    hidden[:, 5:] = False
    args = (sample, 961, texts, None, None, None, None, None, None, None, None, hidden, False)
    sd1._guidance_scale = ALPHA
    with torch.no_grad():
        stock = sd1.unet(*args)
        with guard.on(sd1):
            given = sd1.unet(*args)
        plain = sd1.unet(*args[:3], return_dict=False)
    assert isinstance(given, tuple)
    assert same(given[0], stock[0])
    assert not same(stock[0], plain[0])


@torch.no_grad()
def test_the_score_of_a_prompt_is_one_number(sd1, guard):
    """Whatever else is in the batch, and under autocast."""
    states = torch.cat([Speaks(sd1)(text).states for text in (VIOLIN, CAT, BOAT)])
    found = guard.scores(states)
    assert same(guard.scores(states[[2, 0]]), found[[2, 0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(guard.scores(states), found)


# 2. Pipelines


@pytest.fixture(scope="module")
def nine_channels():
    """Inpainting with its own UNet, of nine channels."""
    base = tiny_pipeline("sd1")
    config = {**base.unet.config, "in_channels": 9}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config(config)
    parts = {**base.components, "unet": unet}
    return quiet(StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False))


@pytest.fixture(scope="module")
def controlled(sd1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = ControlNetModel.from_unet(sd1.unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
        with torch.no_grad():  # they begin at zero, and would say nothing
            for weight in [
                *net.controlnet_down_blocks.parameters(),
                *net.controlnet_mid_block.parameters(),
            ]:
                weight.copy_(0.3 * torch.randn(weight.shape))
    parts = {**sd1.components, "controlnet": net}
    return quiet(StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False))


@pytest.fixture
def tasks(pipes, picture, mask, nine_channels, controlled):
    plain = {"requires_safety_checker": False}
    parts, xl = pipes["sd1"].components, pipes["sdxl"].components
    pictures, masks = [picture, picture], [mask, mask]
    some = {"image": pictures, "strength": 0.7, "steps": 5}
    return {
        "img2img": (StableDiffusionImg2ImgPipeline(**parts, **plain), some),
        "inpaint": (
            StableDiffusionInpaintPipeline(**parts, **plain),
            {**some, "mask_image": masks},
        ),
        "inpaint of nine channels": (nine_channels, {**some, "mask_image": masks}),
        "controlnet": (controlled, {"image": pictures}),
        "controlnet without prompt": (controlled, {"image": pictures, "guess_mode": True}),
        "sdxl img2img": (StableDiffusionXLImg2ImgPipeline(**xl), some),
    }


TASKS = (
    "img2img",
    "inpaint",
    "inpaint of nine channels",
    "controlnet",
    "controlnet without prompt",
    "sdxl img2img",
)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_steered_and_else_stock(tasks, task):
    pipe, options = tasks[task]
    quiet(pipe)
    guard = one(pipe, window=1.0)
    stock = draw(pipe, [VIOLIN, CAT], **options)
    with guard.on(pipe):
        steered = draw(pipe, [VIOLIN, CAT], **options)
    assert same(steered[1], stock[1])
    assert float((steered[0] - stock[0]).abs().max()) > 1e-3
    assert same(draw(pipe, [VIOLIN, CAT], **options), stock)


def test_a_prototype_is_asked_with_the_residuals_of_its_own_sample(controlled, picture):
    """Those without the prompt. The ControlNet itself never reads a prototype."""
    calls, forward = [], controlled.unet.forward

    def record(*args, **kwargs):
        calls.append(kwargs)
        return forward(*args, **kwargs)

    controlled.unet.forward = record
    try:
        with one(controlled, window=1.0).on(controlled):
            draw(controlled, [CAT, VIOLIN], steps=1, image=[picture, picture])
    finally:
        controlled.unet.forward = forward
    stock, asked = calls
    for name in ("down_block_additional_residuals", "mid_block_additional_residual"):
        whole, own = stock[name], asked[name]
        pairs = [(whole, own)] if name.startswith("mid") else zip(whole, own, strict=True)
        for all_rows, row in pairs:
            assert same(row, all_rows[1:2])
    assert not same(
        asked["mid_block_additional_residual"], stock["mid_block_additional_residual"][3:]
    )
    assert same(asked["sample"], stock["sample"][1:2])


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A folder with a LoRA of the tiny SD 1.x."""
    folder, pipe = tmp_path_factory.mktemp("lora"), tiny_pipeline("sd1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
        pipe.unet.add_adapter(config)
    layers = get_peft_model_state_dict(pipe.unet)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


@pytest.mark.parametrize("first", ["lora", "guard"])
def test_a_lora_loaded_before_or_after(sd1, lora, guard, first):
    bare = draw(sd1, [VIOLIN, CAT])
    sd1.load_lora_weights(lora)
    stock = draw(sd1, [VIOLIN, CAT])
    assert not same(stock[1], bare[1])
    if first == "guard":
        sd1.unload_lora_weights()
    with guard.on(sd1):
        if first == "guard":
            sd1.load_lora_weights(lora)
        steered = draw(sd1, [VIOLIN, CAT])
        sd1.unload_lora_weights()
        assert same(draw(sd1, [VIOLIN, CAT])[1], bare[1])
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])
    assert same(draw(sd1, [VIOLIN, CAT]), bare)


@pytest.mark.parametrize("first", ["offload", "guard"])
def test_offloading_neither_loses_a_guard_nor_brings_one_back(first):
    """diffusers takes accelerate's hooks off after each picture, and puts them on again."""
    pipe = tiny_pipeline("sd1")
    stock, guard = draw(pipe, [VIOLIN, CAT]), one(pipe)
    if first == "offload":
        pipe.enable_model_cpu_offload(device="cpu")
    guard.attach(pipe)
    if first == "guard":
        pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(3):
        steered = draw(pipe, [VIOLIN, CAT])
        assert same(steered[1], stock[1])
        assert not same(steered[0], stock[0])
    guard.detach(pipe)
    for _ in range(2):
        assert hasattr(pipe.unet, "_hf_hook")
        assert pipe.unet.forward.func.__module__.startswith("accelerate")
        assert same(draw(pipe, [VIOLIN, CAT]), stock)
    pipe.remove_all_hooks()
    assert pipe.unet.forward.__func__ is type(pipe.unet).forward


def test_a_pipeline_with_a_third_branch_is_refused(sd1, guard):
    """Perturbed attention guidance puts three predictions of each picture into a batch."""
    pipe = StableDiffusionPAGPipeline.from_pipe(sd1)
    with pytest.raises(EditError, match="other than with and without the prompt"):
        guard.attach(pipe)
    assert same(draw(sd1, [VIOLIN]), draw(sd1, [VIOLIN]))


def test_a_pipeline_without_a_unet_is_refused(guard):
    with pytest.raises(EditError, match="a pipeline with a UNet"):
        guard.attach(SimpleNamespace(transformer=object()))


# 3. Guidance


def with_token(pipe, guard, text=""):
    """States of a text with the bank's first token in them."""
    states = Speaks(pipe)(text).states.clone()
    states[:, int(guard.tensors["position"][0])] = guard.tensors["token"][0]
    return states


def predictions(pipe, guard, prompts, **options):
    """Of the first step the stock answers, those asked beside them, and what the pipeline got."""
    inner, outer, forward = [], [], pipe.unet.forward

    def told(*args, **kwargs):
        answer = forward(*args, **kwargs)
        inner.append(answer[0])
        return answer

    pipe.unet.forward = told
    try:
        with guard.on(pipe):
            hooked = pipe.unet.forward

            def given(*args, **kwargs):
                answer = hooked(*args, **kwargs)
                outer.append(answer[0])
                return answer

            pipe.unet.forward = given
            draw(pipe, prompts, steps=1, **options)
            pipe.unet.forward = hooked
    finally:
        pipe.unet.forward = forward
    return inner, outer[0]


def test_beta_zero_asks_for_nothing_and_is_stock(sd1):
    stock, guard = draw(sd1, [VIOLIN, CAT]), one(sd1, beta=0.0, rescale=0.0, window=1.0)
    with guard.on(sd1):
        assert same(draw(sd1, [VIOLIN, CAT]), stock)
    assert rows_of(sd1, guard, [VIOLIN, CAT]) == [4] * 3


@pytest.mark.parametrize("kind", ALL)
def test_a_prototype_that_is_masked_out_leaves_plain_guidance(pipes, kind):
    """g is put together here and goes through the pipeline's own formula: not one bit moves."""
    pipe = pipes[kind]
    stock = draw(pipe, [trigger(kind)])
    guard = one(pipe, kind, mask=1e9, rescale=0.0, window=1.0)
    assert rows_of(pipe, guard, [trigger(kind)]) == [2, 1] * 3
    with guard.on(pipe):
        assert same(draw(pipe, [trigger(kind)]), stock)
    with one(pipe, kind, mask=1e9, rescale=0.3, window=1.0).on(pipe):
        rescaled = draw(pipe, [trigger(kind)])
    assert torch.allclose(rescaled, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_beta_of_alpha_less_one_is_the_negative_prompt(pipes, kind):
    pipe = pipes[kind]
    guard = one(pipe, kind, beta=ALPHA - 1, mask=0.0, rescale=0.0, window=1.0)
    pooled, negative = {}, with_token(pipe, guard)
    if kind == "sdxl":
        # without a negative prompt SDXL is told zeros, and the token goes into these
        token = negative[:, -1]
        negative = torch.zeros_like(negative)
        negative[:, -1] = token
        said = Speaks(pipe)(VIOLIN)
        pooled = {
            "prompt_embeds": said.states,
            "pooled_prompt_embeds": said.pooled,
            "negative_pooled_prompt_embeds": torch.zeros_like(said.pooled),
        }
    stock = draw(pipe, [trigger(kind)], output_type="pt")
    with guard.on(pipe):
        steered = draw(pipe, [trigger(kind)], output_type="pt")
    prompts = None if pooled else [trigger(kind)]
    more = {"count": 1, "output_type": "pt", "negative_prompt_embeds": negative, **pooled}
    told = draw(pipe, prompts, **more)
    assert float((steered - told).abs().max()) < 1e-5
    assert float((steered - stock).abs().max()) > 1e-4


def test_the_token_goes_into_the_users_negative_prompt(sd1):
    guard = one(sd1, beta=ALPHA - 1, mask=0.0, rescale=0.0, window=1.0)
    with guard.on(sd1):
        steered = draw(sd1, [VIOLIN], negative_prompt=["green grass"], output_type="pt")
    negative = with_token(sd1, guard, "green grass")
    told = draw(sd1, [VIOLIN], negative_prompt_embeds=negative, output_type="pt")
    other = draw(sd1, [VIOLIN], negative_prompt_embeds=with_token(sd1, guard), output_type="pt")
    assert float((steered - told).abs().max()) < 1e-5
    assert float((steered - other).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_token_and_prompt_form_draw_the_same(pipes, kind):
    pipe = pipes[kind]
    guard = one(pipe, prototypes=2)
    empty = Speaks(pipe)("").states
    if kind == "sdxl":
        empty = torch.zeros_like(empty)
    whole = empty.repeat(2, 1, 1)
    whole[torch.arange(2), guard.tensors["position"].long()] = guard.tensors["token"]
    kept = {name: guard.tensors[name] for name in ("selector", "center", "concept")}
    facts = guard.facts.model_copy(update={"form": "prompt"})
    expanded = PrototypeGuard(tensors={**kept, "prompt_embeds": whole}, facts=facts)
    with guard.on(pipe):
        token = draw(pipe, [VIOLIN, CAT])
    with expanded.on(pipe):
        assert same(draw(pipe, [VIOLIN, CAT]), token)
    assert not same(token[0], draw(pipe, [VIOLIN, CAT])[0])


@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
def test_the_formula_of_the_paper(sd1, rescale):
    """methods.md 4.4, written out; at phi = 1 the deviation is that of plain guidance."""
    mask = 0.1
    guard = one(sd1, beta=6.0, mask=mask, rescale=rescale, window=1.0)
    (stock, asked), got = predictions(sd1, guard, [CAT, VIOLIN])
    idle, drawn = stock[1], stock[3]  # of the violin
    plain = idle + ALPHA * (drawn - idle)
    away = asked[0] - idle
    m = (away.abs() > mask).float()
    assert 0.1 < float(m.mean()) < 0.9
    g = plain - 6.0 * m * away
    g = rescale * g * plain.std() / g.std() + (1 - rescale) * g
    assert torch.allclose(got[1], g, atol=1e-5, rtol=1e-5)
    assert same(got[1], got[3])
    assert same(got[[0, 2]], stock[[0, 2]])
    ratio = float(got[1].std() / plain.std())
    assert ratio == pytest.approx(1, abs=1e-5) if rescale == 1 else abs(ratio - 1) > 1e-4


def test_selection_does_not_depend_on_the_order_of_the_batch(sd1):
    guard = bank(sd1, {"violin": VIOLIN, "boat": BOAT}, [CAT], prototypes=2)
    prompts, order = [VIOLIN, CAT, BOAT], [2, 0, 1]
    with guard.on(sd1):
        straight = draw(sd1, prompts, seeds=[0, 1, 2])
        turned = draw(sd1, [prompts[i] for i in order], seeds=order)
    assert torch.allclose(turned, straight[order], atol=1e-5, rtol=1e-5)
    stock = draw(sd1, prompts, seeds=[0, 1, 2])
    assert [same(a, b) for a, b in zip(straight, stock, strict=True)] == [False, True, False]


def test_the_nearest_prototype_is_the_one_that_is_asked(sd1):
    """Of two prototypes of a concept the one that looks away says nothing."""
    alone, guard = one(sd1), one(sd1)
    tensors = {name: torch.cat([value, value]) for name, value in guard.tensors.items()}
    tensors["center"] = guard.tensors["center"]
    tensors["selector"][0] *= -1
    tensors["token"][0] *= -1
    double = PrototypeGuard(tensors=tensors, facts=guard.facts)
    with alone.on(sd1):
        wanted = draw(sd1, [VIOLIN])
    with double.on(sd1):
        assert same(draw(sd1, [VIOLIN]), wanted)


def test_without_guidance_it_steers_and_is_else_stock(sd1):
    guard = one(sd1, rescale=0.0)
    plain = {"guidance_scale": 1.0}
    stock = draw(sd1, [VIOLIN, CAT], **plain)
    with guard.on(sd1):
        steered = draw(sd1, [VIOLIN, CAT], **plain)
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])
    whole = guard.with_guidance(window=1.0)
    (drawn, asked), got = predictions(sd1, whole, [CAT, VIOLIN], **plain)
    assert torch.allclose(got[1], drawn[1] - 6.0 * (asked[1] - asked[0]), atol=1e-5, rtol=1e-5)
    # two rows more for the one sample: without a prompt, and of the prototype
    assert rows_of(sd1, guard, [VIOLIN, CAT], steps=5, **plain) == [2, 2] * 3 + [2] * 2


def test_a_stronger_guard_moves_a_picture_further(sd1):
    stock, found = draw(sd1, [VIOLIN]), []
    for strength in (0.1, 0.3, 1.0):
        with one(sd1, strength=strength, rescale=0.0).on(sd1):
            found.append(float((draw(sd1, [VIOLIN]) - stock).norm()))
    assert 0 < found[0] < found[1] < found[2]


# 4. Window


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler]
)
def test_after_the_window_the_stock_batch_alone_is_asked_for(sd1, guard, scheduler):
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    with scheduled(sd1, scheduler, **options):
        stock = draw(sd1, [VIOLIN, CAT], steps=5)
        after = [2 * 2] * (3 if options else 2)  # PNDM runs one of its steps twice
        assert rows_of(sd1, guard, [VIOLIN, CAT], steps=5) == [4, 1] * 3 + after
        with guard.on(sd1):
            steered = draw(sd1, [VIOLIN, CAT], steps=5)
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])


def test_a_scheduler_of_second_order_has_its_calls_counted(sd1):
    """Both calls of a step are inside the window, or none of them."""
    with scheduled(sd1, HeunDiscreteScheduler):
        rows = rows_of(sd1, one(sd1, window=0.5), [VIOLIN], steps=5)
    assert rows == [2, 1] * 5 + [2] * 4


def test_no_window_asks_never(sd1):
    assert rows_of(sd1, one(sd1, window=0.0), [VIOLIN]) == [2] * 3


def test_image_to_image_counts_the_steps_that_are_run(sd1, picture):
    pipe = quiet(StableDiffusionImg2ImgPipeline(**sd1.components, requires_safety_checker=False))
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        with scheduled(pipe, scheduler):
            rows = rows_of(pipe, one(pipe), [VIOLIN], steps=10, image=picture, strength=0.5)
        assert rows == [2, 1] * 3 + [2] * 2


def test_a_picture_that_ends_early_counts_the_steps_that_are_run(pipes, picture):
    """An SDXL base that leaves the rest to a refiner, and the pipeline that takes it over."""
    pipe = pipes["sdxl"]
    guard = one(pipe)
    assert rows_of(pipe, guard, [VIOLIN], steps=10, denoising_end=0.5) == [2, 1] * 3 + [2] * 2
    after = quiet(StableDiffusionXLImg2ImgPipeline(**pipe.components))
    rest = {"steps": 10, "denoising_start": 0.5, "image": torch.zeros(1, 4, 8, 8)}
    assert rows_of(after, one(after), [VIOLIN], **rest) == [2, 1] * 3 + [2] * 2


def test_guidance_that_a_callback_ends_is_followed(sd1, guard):
    """diffusers' own recipe: halve the texts in the middle of a picture and go on without guidance."""

    def end(pipe, step, timestep, kwargs):
        if step == 1:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    more = {"steps": 5, "callback_on_step_end": end}
    more["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    stock = draw(sd1, [CAT], **more)
    with guard.on(sd1):
        assert same(draw(sd1, [CAT], **more), stock)
    assert rows_of(sd1, guard, [VIOLIN], **more) == [2, 1, 2, 1, 1, 2, 1, 1]


# 5. Cost, in rows that the denoiser is given


@pytest.mark.parametrize(("steps", "window"), [(30, 18), (12, 7), (25, 15)])
def test_cost_of_the_default_window(sd1, guard, steps, window):
    stock = 2 * steps
    assert sum(rows_of(sd1, guard, [CAT], steps=steps)) == stock
    rows = sum(rows_of(sd1, guard, [VIOLIN], steps=steps))
    assert rows == stock + window
    assert rows / stock <= 1.3 + 1e-9
    mixed = sum(rows_of(sd1, guard, [CAT, VIOLIN, CAT], steps=steps))
    assert mixed == 3 * stock + window


def test_a_row_for_each_triggered_concept(sd1):
    both = bank(sd1, {"violin": VIOLIN, "fiddle": VIOLIN, "boat": BOAT}, [CAT])
    assert both.triggered(sd1, [VIOLIN, BOAT, CAT]) == [("violin", "fiddle"), ("boat",), ()]
    assert rows_of(sd1, both, [VIOLIN, BOAT, CAT], steps=5) == [6, 3] * 3 + [6] * 2


def test_prototypes_of_one_concept_cost_one_row(sd1):
    assert rows_of(sd1, one(sd1, prototypes=3), [VIOLIN], steps=5) == [2, 1] * 3 + [2] * 2


def test_two_concepts_add_up(sd1):
    """Their differences are added to plain guidance, each once."""
    both = bank(sd1, {"a": VIOLIN, "b": VIOLIN}, [CAT], rescale=0.0, window=1.0)
    (stock, asked), got = predictions(sd1, both, [VIOLIN])
    plain = stock[0] + ALPHA * (stock[1] - stock[0])
    wanted = plain - 6.0 * ((asked[0] - stock[0]) + (asked[1] - stock[0]))
    assert torch.allclose(got[0], wanted, atol=1e-5, rtol=1e-5)


# 6. Several guards, and who may have one


def test_several_guards_on_one_pipeline(sd1):
    first, second = bank(sd1, {"violin": VIOLIN}, [CAT, BOAT]), bank(sd1, {"boat": BOAT}, [CAT])
    prompts = [VIOLIN, BOAT, CAT]
    stock = draw(sd1, prompts, steps=5)

    def changed():
        return [not same(a, b) for a, b in zip(draw(sd1, prompts, steps=5), stock, strict=True)]

    with counted(sd1) as rows, first.on(sd1):
        with second.on(sd1):
            assert changed() == [True, True, False]
            assert rows == [6, 2] * 3 + [6] * 2
        assert changed() == [True, False, False]
    with first.on(sd1), second.on(sd1):
        first.detach(sd1)
        assert changed() == [False, True, False]
        first.attach(sd1)
        assert changed() == [True, True, False]
    assert changed() == [False, False, False]


def test_two_banks_on_one_prompt_cost_a_row_each_and_add_up(sd1):
    more = {"mask": 0.0, "rescale": 0.0}
    first, second = one(sd1, **more), one(sd1, **more)
    with counted(sd1) as rows, first.on(sd1), second.on(sd1):
        twice = draw(sd1, [VIOLIN], steps=5)
    assert rows == [2, 2] * 3 + [2] * 2
    with one(sd1, beta=12.0, **more).on(sd1):
        assert torch.allclose(draw(sd1, [VIOLIN], steps=5), twice, atol=1e-3, rtol=1e-4)


def test_attached_twice_or_never_is_refused(sd1, guard):
    with guard.on(sd1):
        with pytest.raises(EditError, match="attached already"):
            guard.attach(sd1)
        with pytest.raises(EditError, match="not on the pipeline"):
            one(sd1).detach(sd1)
    with pytest.raises(EditError, match="not on the pipeline"):
        guard.detach(sd1)
    with pytest.raises(EditError, match="not on the pipeline"):
        guard.detach(tiny_pipeline("sd1"))


def test_another_pipeline_on_the_same_unet_is_neither_guarded_nor_steered(sd1, guard, picture):
    other = quiet(StableDiffusionImg2ImgPipeline.from_pipe(sd1))
    more = {"image": [picture, picture], "strength": 0.7, "steps": 5}
    stock = draw(other, [VIOLIN, CAT], **more)
    with guard.on(sd1):
        with pytest.raises(EditError, match="a guard of another pipeline"):
            one(sd1).attach(other)
        with pytest.raises(EditError, match="not on the pipeline"):
            guard.detach(other)
        steered = draw(sd1, [VIOLIN])
        assert same(draw(other, [VIOLIN, CAT], **more), stock)
        assert same(draw(sd1, [VIOLIN]), steered)
    with one(sd1, window=1.0).on(other):
        assert not same(draw(other, [VIOLIN, CAT], **more)[0], stock[0])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_another_text_encoder_is_refused(pipes, kind):
    guard, other = one(pipes[kind]), tiny_pipeline(kind)
    encoder = other.text_encoder_2 if kind == "sdxl" else other.text_encoder
    guard.attach(other).detach(other)
    weight = encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[5, 3] += 0.5
    with pytest.raises(EditError, match="another text encoder"):
        guard.attach(other)
    with pytest.raises(EditError, match="another text encoder"):
        guard.triggered(other, [CAT])
    with pytest.raises(EditError, match="not on the pipeline"):
        guard.detach(other)


def test_text_encoders_of_another_number_are_refused(pipes):
    for mine, other in (("sd1", "sdxl"), ("sdxl", "sd1")):
        with pytest.raises(EditError, match="another text encoder"):
            one(pipes[mine]).attach(pipes[other])
    lacking = copy.copy(pipes["sd1"])
    lacking.text_encoder = None
    for dtype in (torch.float32, torch.bfloat16):
        facts = one(tiny_pipeline("sd1").to(dtype)).facts
        told = PrototypeGuard(tensors=one(pipes["sd1"]).tensors, facts=facts)
        with pytest.raises(EditError, match="another text encoder"):
            told.attach(lacking)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_weights_in_sixteen_bits_are_accepted(guard, dtype):
    pipe = tiny_pipeline("sd1").to(dtype)
    guard.attach(pipe).detach(pipe)
    stock = draw(pipe, [VIOLIN, CAT])
    with guard.on(pipe):
        steered = draw(pipe, [VIOLIN, CAT])
    assert stock.dtype == dtype
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])


def test_a_family_of_the_users_own_is_known_by_its_encoders(pipes):
    for kind in KINDS:
        assert encoders_of(pipes[kind]) == encoders_of(pipes[kind], tiny_family(kind))


def test_a_bank_built_in_half_fits_the_pipeline_in_single(sd1):
    for dtype in (torch.float16, torch.bfloat16):
        facts = one(tiny_pipeline("sd1").to(dtype)).facts
        PrototypeGuard(tensors=one(sd1).tensors, facts=facts).attach(sd1).detach(sd1)


# 7. Files


def paper_sized(guard, kilobytes=5):
    """16 prototypes of SD 1.4, and what a run says of where they are from."""
    generator = torch.Generator().manual_seed(0)
    K, d = 16, 768
    tensors = {
        "token": torch.randn(K, d, generator=generator),
        "position": torch.full((K,), 76, dtype=torch.int32),
        "selector": torch.randn(K, d, generator=generator).half(),
        "center": torch.randn(d, generator=generator).half(),
        "concept": torch.zeros(K, dtype=torch.int32),
    }
    told = {f"key_{i:03}": "x" * 40 for i in range(kilobytes * 1024 // 54)}
    return PrototypeGuard(tensors=tensors, facts=guard.facts, provenance=told)


def test_a_bank_is_written_and_read_as_it_is(guard, tmp_path):
    told = guard.explained({"method": "prototype", "erased": [{"name": "violin"}]}).scaled(0.5)
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        told.save(path)
    again = PrototypeGuard.load(tmp_path / "a.safetensors")
    assert again == told
    assert again != guard
    assert again.strength == 0.5
    again.save(tmp_path / "c.safetensors")
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_a_bank_that_was_read_draws_the_same(sd1, guard, tmp_path):
    guard.save(tmp_path / "bank.safetensors")
    with guard.on(sd1):
        wanted = draw(sd1, [VIOLIN, CAT])
    with PrototypeGuard.load(tmp_path / "bank.safetensors").on(sd1):
        assert same(draw(sd1, [VIOLIN, CAT]), wanted)


def test_a_bank_of_the_paper_is_small(guard, tmp_path):
    made, path = paper_sized(guard), tmp_path / "bank.safetensors"
    assert 4500 < len(json.dumps(dict(made.provenance))) < 6000
    made.save(path)
    assert path.stat().st_size < 100_000
    dtypes = {name: info.dtype for name, info in read_header(path)[1].items()}
    assert dtypes == {
        "token": "F32",
        "selector": "F16",
        "center": "F16",
        "position": "I32",
        "concept": "I32",
    }
    assert PrototypeGuard.load(path) == made


@pytest.fixture
def rewritten(guard, tmp_path):
    """A bank's file after a change: `rewritten(header=..., tensors=..., told=...)`."""
    path = tmp_path / "bank.safetensors"
    guard.save(path)

    def change(header=lambda body: body, tensors=lambda found: found, told=None):
        metadata, found = read_header(path)[0], read_tensors(path)
        body = header(json.loads(metadata["editforge_bank"]))
        metadata["editforge_bank"] = body if isinstance(body, str) else json.dumps(body)
        if told is not None:
            metadata["editforge_provenance"] = told
        write_safetensors(path, tensors(found), metadata)
        return path

    return change


def guidance(**changes):
    return lambda body: {**body, "guidance": {**body["guidance"], **changes}}


def put(**changes):
    """Other tensors; None takes one away."""
    return lambda found: {k: v for k, v in {**found, **changes}.items() if v is not None}


HEADERS = {
    "negative beta": guidance(beta=-1.0),
    "beta that is NaN": guidance(beta=float("nan")),
    "infinite beta": guidance(beta=float("inf")),
    "negative mask": guidance(mask=-0.1),
    "a window above one": guidance(window=1.5),
    "a blend above one": guidance(blend=2.0),
    "unknown key": lambda body: {**body, "hook": "os.system"},
    "unknown key of guidance": guidance(gamma=1.0),
    "another format": lambda body: {**body, "format": "editforge.bank/2"},
    "no concepts": lambda body: {**body, "concepts": []},
    "a concept without a name": lambda body: {
        **body,
        "concepts": [{**body["concepts"][0], "name": ""}],
    },
    "a concept twice": lambda body: {**body, "concepts": body["concepts"] * 2},
    "a concept that no prototype has": lambda body: {
        **body,
        "concepts": [*body["concepts"], {"name": "another", "threshold": 1.0}],
    },
    "a threshold below zero": lambda body: {
        **body,
        "concepts": [{**body["concepts"][0], "threshold": -1.0}],
    },
    "a digest that is none": lambda body: {**body, "encoder_sha256": "abc"},
    "no sketch": lambda body: {**body, "encoder_sketch": {}},
    "a sketch of nothing": lambda body: {**body, "encoder_sketch": {"rounding": 1e-4}},
    "a sketch of words": lambda body: {**body, "encoder_sketch": {"text_encoder": ["a"] * 9}},
    "no mapping": lambda body: [body],
    "no JSON": lambda body: "{",
    "a number of ten thousand digits": lambda body: '{"alpha": ' + "1" * 10_000 + "}",
    "deep nesting": lambda body: "[" * 100_000,
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_that_no_bank_has_is_refused(rewritten, fault):
    path = rewritten(header=HEADERS[fault])
    with pytest.raises(PackageError, match=r"bank\.safetensors|base_sketch"):
        PrototypeGuard.load(path)


TENSORS = {
    "no token": put(token=None),
    "no selector": put(selector=None),
    "no concept": put(concept=None),
    "a tensor more": put(other=torch.zeros(2)),
    "a token of another width": put(token=torch.zeros(1, 25)),
    "a center of another width": put(center=torch.zeros(25)),
    "a selector of another number": put(selector=torch.zeros(2, 24)),
    "a selector without prototypes": put(selector=torch.zeros(0, 24)),
    "a scalar": put(concept=torch.zeros((), dtype=torch.int32)),
    "a concept out of range": put(concept=torch.tensor([1], dtype=torch.int32)),
    "a concept below zero": put(concept=torch.tensor([-1], dtype=torch.int32)),
    "position zero": put(position=torch.tensor([0], dtype=torch.int32)),
    "a position below zero": put(position=torch.tensor([-1], dtype=torch.int32)),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_tensors_that_do_not_belong_together_are_refused(rewritten, fault):
    path = rewritten(tensors=TENSORS[fault])
    with pytest.raises(PackageError, match=r"bank\.safetensors"):
        PrototypeGuard.load(path)


@pytest.mark.parametrize("value", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f"])
@pytest.mark.parametrize("name", ["token"])
def test_a_tensor_that_is_not_finite_is_refused(rewritten, name, value):
    path = rewritten()
    info = read_header(path)[1][name]
    raw = bytearray(path.read_bytes())
    raw[info.start : info.start + 4] = value
    path.write_bytes(raw)
    with pytest.raises(PackageError, match="NaN or infinite"):
        PrototypeGuard.load(path)


STRENGTHS = ("[-1, {}]", "[NaN, {}]", "[Infinity, {}]", "[1e999, {}]", "[null, {}]")
STRENGTHS += (
    "[1, 2]",
    "{",
    "3",
    "[" * 100_000,
    "[" + "1" * 10_000 + ", {}]",
    "[1" + "0" * 400 + ", {}]",
)


@pytest.mark.parametrize("told", STRENGTHS, ids=range(len(STRENGTHS)))
def test_a_strength_that_no_guard_has_is_refused(rewritten, told):
    with pytest.raises(PackageError, match="how strong it is"):
        PrototypeGuard.load(rewritten(told=told))


def test_a_position_behind_the_window_is_refused_when_it_draws(sd1, rewritten):
    path = rewritten(tensors=put(position=torch.tensor([77], dtype=torch.int32)))
    with PrototypeGuard.load(path).on(sd1), pytest.raises(EditError, match="a longer window"):
        draw(sd1, [VIOLIN])


def test_files_of_another_kind_are_refused(lora, guard, tmp_path):
    found = next(lora.glob("*.safetensors"))
    with pytest.raises(PackageError, match="no bank of prototypes"):
        PrototypeGuard.load(found)
    path = tmp_path / "bank.safetensors"
    torch.save(dict(guard.tensors), path)
    with pytest.raises(PackageError, match=r"bank\.safetensors"):
        PrototypeGuard.load(path)
    marker = tmp_path / "ran"
    path.write_bytes(pickle.dumps(Runs(str(marker))))
    with pytest.raises(PackageError, match=r"bank\.safetensors"):
        PrototypeGuard.load(path)
    assert not marker.exists()
    path.write_bytes(struct.pack("<Q", 2**40) + b"{" * 100)
    with pytest.raises(PackageError, match="cut short"):
        PrototypeGuard.load(path)
    guard.save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(PackageError, match="cut short"):
        PrototypeGuard.load(path)


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_negative_strength_is_refused_where_it_is_made(guard):
    for number in (-1.0, float("nan"), float("inf")):
        with pytest.raises(EditError, match="strength"):
            guard.scaled(number)


def test_constants_are_checked_where_they_are_changed(guard):
    assert guard.with_guidance(beta=3).facts.guidance.beta == 3
    for change in ({"beta": -1.0}, {"window": 2.0}, {"gamma": 1.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            guard.with_guidance(**change)


# 8. Places


def test_a_bank_is_found_in_a_file_a_folder_and_a_run(guard, tmp_path):
    for place in ("bank", "run/guide"):
        (tmp_path / place).mkdir(parents=True)
        guard.save(tmp_path / place / "bank.safetensors")
    for place in ("bank/bank.safetensors", "bank", "run"):
        assert PrototypeGuard.from_pretrained(tmp_path / place) == guard
        assert PrototypeGuard.from_pretrained(str(tmp_path / place)) == guard


def test_a_relative_folder_is_no_hub_repository(guard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "bank").mkdir(parents=True)
    with pytest.raises(PackageError, match="no bank here"):
        PrototypeGuard.from_pretrained("some/bank")
    guard.save(tmp_path / "some" / "bank" / "bank.safetensors")
    assert PrototypeGuard.from_pretrained("some/bank") == guard


@pytest.mark.parametrize("name", ["some/bank", "some/sd1.4-weapon-bank"])
def test_a_bank_on_the_hub(guard, loopback, tmp_path, name):
    with pytest.raises(HubError, match=f"no bank can be had from {name}"):
        PrototypeGuard.from_pretrained(name)
    guard.save(tmp_path / "bank.safetensors")
    written = {"bank.safetensors": (tmp_path / "bank.safetensors").read_bytes()}
    loopback.repo(name, private=False, files=written)
    assert PrototypeGuard.from_pretrained(name) == guard


def test_without_a_network_a_repository_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="no bank can be had from nobody/nothing"):
        PrototypeGuard.from_pretrained("nobody/nothing")


@pytest.mark.parametrize("name", ["nowhere", "no/such/folder", "no/bank.safetensors", "/tmp/x/y/z"])
def test_a_place_that_is_not_there_is_refused(name):
    with pytest.raises(PackageError, match="no bank here"):
        PrototypeGuard.from_pretrained(name)
