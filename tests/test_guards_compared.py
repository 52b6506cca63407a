"""The guards that the prototype guard is compared with: negative prompt, SLD, Semantic Surgery."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from editforge.artifacts.concepts import Concept
from editforge.artifacts.eraser import Eraser
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.artifacts.targets import Target, Targets
from editforge.ground.errors import EditError, PackageError, RecipeError
from editforge.ground.files import write_safetensors
from editforge.guards.words import Moment, Quiet, Speaks, Texts
from editforge.guide.negative_prompt import Negative, NegativePrompt
from editforge.guide.semantic_surgery import SemanticSurgery
from editforge.guide.sld import LEVELS, Level, Safe, SafeLatentDiffusion
from editforge.recipe import registry
from editforge.recipe.contract import Context, GuideInputs
from tests.models import opened

ALPHA, STEPS = 7.5, 3
AT_ONCE = Level(warmup=1)
GUARDS = (
    NegativePrompt(text="violin", provenance={"erased": [{"name": "violin"}]}),
    SafeLatentDiffusion(text="violin", level=AT_ONCE, strength=0.5),
    SemanticSurgery(names=("violin", "fiddle"), threshold=0.1),
)
KINDS = [type(guard).__name__ for guard in GUARDS]
each = pytest.mark.parametrize("guard", GUARDS, ids=KINDS)


@pytest.fixture(scope="module", params=["emoji", "sdxl"])
def any_pipe(request):
    return quiet(opened(request.param).pipeline())


@pytest.fixture(scope="module")
def pipe():
    return quiet(opened("emoji").pipeline())


@pytest.fixture(scope="module")
def speaks(pipe):
    return Speaks(pipe)


@pytest.fixture(autouse=True)
def _no_gradient():
    with torch.no_grad():
        yield


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(pipe, count):
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return torch.stack(made)


def draw(pipe, prompts=("a violin", "a dog"), guard=None, **options):
    """Final latents, each sample with noise of its own place."""
    options = {"num_inference_steps": STEPS, "guidance_scale": ALPHA, **options}
    options.setdefault("latents", noise(pipe, len(prompts)))
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    options |= {"height": size, "width": size, "output_type": "latent"}
    if guard is None:
        return pipe(prompt=list(prompts), **options).images
    with guard.on(pipe):
        return pipe(prompt=list(prompts), **options).images


def calls(pipe, guard, **options):
    """Batch sizes of every call of the denoiser."""
    seen = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        draw(pipe, guard=guard, **options)
    finally:
        hook.remove()
    return seen


# --- what all three share ---


@each
def test_strength_zero_and_a_guard_taken_off_are_stock_bit_for_bit(any_pipe, guard):
    before = draw(any_pipe)
    guard = replace(guard, threshold=0.0) if isinstance(guard, SemanticSurgery) else guard
    assert not torch.equal(draw(any_pipe, guard=guard), before)
    assert torch.equal(draw(any_pipe), before)
    assert torch.equal(draw(any_pipe, guard=guard.scaled(0)), before)
    assert "_diffusers_hook" not in vars(any_pipe.unet) or not any_pipe.unet._diffusers_hook.hooks


@each
def test_a_guard_is_read_back_as_what_it_was(guard, tmp_path):
    assert isinstance(guard, Eraser)
    guard.save(tmp_path / guard.file)
    read = type(guard).load(tmp_path / guard.file)
    assert read == guard
    assert read.provenance == guard.provenance
    read.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / guard.file).read_bytes()
    assert json.loads(json.dumps(guard.described()))["strength"] == guard.strength
    told = guard.explained({"method": "m", "erased": []}).provenance
    assert told == {"method": "m", "erased": [], **guard.provenance}


def header(guard):
    return {**guard.described(), "provenance": {}}


DAMAGED = [
    (0, {"text": 3}),
    (0, {"strength": -1.0}),
    (0, {"strength": float("nan")}),
    (0, {"strength": "1"}),
    (0, {"provenance": []}),
    (0, {"words": "violin"}),
    (1, {"level": None}),
    (1, {"level": {"scale": -5.0}}),
    (1, {"level": {"warmup": 1.5}}),
    (1, {"level": {"threshold": float("inf")}}),
    (1, {"level": {"momentum_beta": 1.0}}),
    (1, {"level": {"momentum": 0.1}}),
    (2, {"names": []}),
    (2, {"names": "violin"}),
    (2, {"names": [""]}),
    (2, {"threshold": -0.1}),
    (2, {"temperature": 0}),
]


@pytest.mark.parametrize(("which", "change"), DAMAGED, ids=[str(change) for _, change in DAMAGED])
def test_a_header_that_no_guard_writes_is_refused(which, change, tmp_path):
    guard, path = GUARDS[which], tmp_path / "guard.safetensors"
    for body, fine in ((header(guard), True), ({**header(guard), **change}, False)):
        write_safetensors(path, {"guard": torch.zeros(1)}, {guard.header: json.dumps(body)})
        if fine:
            assert type(guard).load(path) == replace(guard, provenance={})
        else:
            with pytest.raises(PackageError, match=next(iter(change))):
                type(guard).load(path)


@each
def test_a_file_of_another_kind_is_refused(guard, tmp_path):
    path = tmp_path / "guard.safetensors"
    for metadata in ({}, {guard.header: "no json"}, {guard.header: "[1]"}):
        write_safetensors(path, {"guard": torch.zeros(1)}, metadata)
        with pytest.raises(PackageError, match=type(guard).__name__):
            type(guard).load(path)
    guard.save(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(PackageError, match="cut short"):
        type(guard).load(path)


@each
def test_a_guard_that_would_draw_the_concept_cannot_be_made(guard):
    with pytest.raises(EditError, match="negative strength"):
        guard.scaled(-1)
    with pytest.raises(EditError, match="negative strength"):
        guard.scaled(float("nan"))
    with pytest.raises(ValidationError):
        replace(guard, strength=-1.0)


@each
def test_prompts_of_another_window_are_refused(pipe, guard):
    states, empty = Speaks(pipe)("a violin").states, Speaks(pipe)("").states
    longer = [torch.cat([part, part], dim=1) for part in (states, empty)]
    options = {"prompt_embeds": longer[0], "negative_prompt_embeds": longer[1]}
    with guard.on(pipe), pytest.raises(EditError, match="prompt_embeds"):
        pipe(**options, num_inference_steps=2, guidance_scale=ALPHA, output_type="latent")


# --- negative prompt ---


def test_it_is_the_pipelines_own_negative_prompt(any_pipe):
    own = draw(any_pipe, ["a dog"], negative_prompt=["violin"])
    assert torch.equal(draw(any_pipe, ["a dog"], GUARDS[0]), own)
    assert not torch.equal(own, draw(any_pipe, ["a dog"]))
    # the pipeline reads a text for each sample, and two texts at once may differ in the last bit
    two = draw(any_pipe, negative_prompt=["violin", "violin"])
    assert torch.allclose(draw(any_pipe, guard=GUARDS[0]), two, atol=1e-3)


def test_an_empty_negative_text_is_plain_guidance(any_pipe):
    for text in ("", " "):
        assert torch.equal(draw(any_pipe, guard=NegativePrompt(text=text)), draw(any_pipe))


def test_the_states_of_the_empty_text_are_those_of_plain_guidance(pipe, speaks):
    """What the guard does not rely on: SDXL has zeros there."""
    given = Texts(speaks("").states.expand(2, -1, -1))
    assert torch.equal(Negative(speaks(""), 1.0).instead_of_empty(given).states, given.states)


def test_a_users_negative_prompt_is_replaced(pipe):
    mine = draw(pipe, guard=GUARDS[0], negative_prompt=["a dog", "blurry"])
    assert torch.equal(mine, draw(pipe, guard=GUARDS[0]))


def test_a_negative_prompt_has_nothing_to_act_on_without_guidance(pipe):
    options = {"guidance_scale": 1.0}
    assert torch.equal(draw(pipe, guard=GUARDS[0], **options), draw(pipe, **options))


def test_a_negative_prompt_costs_nothing(pipe):
    assert calls(pipe, GUARDS[0]) == calls(pipe, None) == [4] * STEPS


def test_between_nothing_and_the_text_states_are_blended(any_pipe):
    speaks = Speaks(any_pipe)
    empty, violin = speaks(""), speaks("violin")
    half = Negative(violin, 0.5).instead_of_empty(empty)
    assert torch.allclose(half.states, (empty.states + violin.states) / 2, atol=1e-6)
    if empty.pooled is not None:
        assert torch.allclose(half.pooled, (empty.pooled + violin.pooled) / 2, atol=1e-6)
    whole = Negative(violin, 1.0).instead_of_empty(empty)
    assert torch.equal(whole.states, violin.states)


# --- Safe Latent Diffusion ---


def steered(level, e0, ec, eS, step=20):
    """g of constant predictions, as the hook makes it."""
    idle, drawn, told = (torch.full((1, 1, 2, 2), float(value)) for value in (e0, ec, eS))
    plain = idle + ALPHA * (drawn - idle)
    reading = Safe(Texts(torch.zeros(1, 4, 8)), level)
    added = reading.adds(Moment(step, 50, ALPHA), plain, idle, drawn, [told])
    g = plain + (added[0].value if added else 0)
    assert g.unique().numel() == 1
    return float(g.flatten()[0])


def by_hand(level, e0, ec, eS):
    mu = min(abs(ec - eS) * level.scale, 1.0) if ec - eS < level.threshold else 0.0
    return e0 + ALPHA * ((ec - e0) - mu * (eS - e0))


def test_each_branch_is_read_as_what_it_is():
    assert steered(LEVELS["medium"], 1, 2, 3) == 1 + ALPHA * ((2 - 1) - 1 * (3 - 1))
    found = {}
    for order in itertools.permutations((1, 2, 3)):
        found[order] = steered(LEVELS["medium"], *order)
        assert found[order] == pytest.approx(by_hand(LEVELS["medium"], *order))
    right = found.pop((1, 2, 3))
    assert min(abs(right - wrong) for wrong in found.values()) >= 2  # any swap is seen


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("gap", [-0.5, -0.002, -0.0001, 0.0, 0.005, 0.02, 0.5, 2.0])
def test_the_mask_is_signed_and_clamped(level, gap):
    wanted = by_hand(level, 0.3, 1 + gap, 1)
    assert steered(level, 0.3, 1 + gap, 1) == pytest.approx(wanted, abs=2e-3)


def test_the_papers_settings():
    table = {
        "weak": (15, 200, 0, 0, 0),
        "medium": (10, 1000, 0.01, 0.3, 0.4),
        "strong": (7, 2000, 0.025, 0.5, 0.7),
        "max": (0, 5000, 1.0, 0.5, 0.7),
    }
    assert {name: tuple(vars(level).values()) for name, level in LEVELS.items()} == table
    assert SafeLatentDiffusion(text="violin").level == LEVELS["medium"]


@pytest.mark.parametrize(("warmup", "rounding", "moved"), [(0, 1e-2, 1.0), (2, 1e-4, 0.02)])
def test_a_picture_is_that_of_a_loop_by_hand(pipe, speaks, warmup, rounding, moved):
    level = replace(LEVELS["max"], warmup=warmup)
    guard = SafeLatentDiffusion(text="violin", level=level)
    latents, texts = noise(pipe, 1), [speaks(text).states for text in ("", "a fiddle", "violin")]
    pipe.scheduler.set_timesteps(STEPS)
    latents, nu = latents * pipe.scheduler.init_noise_sigma, torch.zeros_like(latents)
    for i, t in enumerate(pipe.scheduler.timesteps):
        one = pipe.scheduler.scale_model_input(latents, t)
        # in batches of the hook's sizes: s_S makes the last bits count
        both = pipe.unet(one.repeat(2, 1, 1, 1), t, encoder_hidden_states=torch.cat(texts[:2]))
        e0, ec = both.sample.chunk(2)
        eS = pipe.unet(one, t, encoder_hidden_states=texts[2]).sample
        mu = ((ec - eS).abs() * level.scale).clamp(max=1) * (ec - eS < level.threshold)
        gamma = mu * (eS - e0) + level.momentum_scale * nu
        nu = level.momentum_beta * nu + (1 - level.momentum_beta) * gamma
        g = e0 + ALPHA * ((ec - e0) - gamma * (i >= warmup))
        latents = pipe.scheduler.step(g, t, latents).prev_sample
    drawn = draw(pipe, ["a fiddle"], guard)
    assert float((drawn - latents).abs().max()) < rounding
    assert float((drawn - draw(pipe, ["a fiddle"])).abs().max()) > moved


def test_momentum_moves_on_during_the_warm_up_and_is_new_for_each_picture(pipe):
    rule = SafeLatentDiffusion(text="violin", level=replace(LEVELS["max"], warmup=1)).rule(pipe)
    prompts = Texts(torch.zeros(1, 4, 8))
    generator = torch.Generator().manual_seed(0)
    e0, ec, eS = torch.randn(3, 1, 2, 4, 4, generator=generator)
    plain = e0 + ALPHA * (ec - e0)

    def value(reading, step):
        added = reading.adds(Moment(step, 50, ALPHA), plain, e0, ec, [eS])
        return added[0].value if added else None

    going, fresh = rule.read(prompts), rule.read(prompts)
    assert value(going, 0) is None
    first, second, alone = value(going, 1), value(going, 2), value(fresh, 1)
    gamma = alone / -ALPHA
    assert torch.allclose(first / -ALPHA, gamma + 0.5 * 0.3 * gamma, atol=1e-5)
    nu = 0.7 * 0.3 * gamma + 0.3 * (first / -ALPHA)
    assert torch.allclose(second / -ALPHA, gamma + 0.5 * nu, atol=1e-5)
    assert torch.equal(value(rule.read(prompts), 1), alone)


def test_two_pictures_in_a_row_are_the_same(pipe):
    guard = SafeLatentDiffusion(text="violin", level=LEVELS["max"])
    with guard.on(pipe):
        assert torch.equal(draw(pipe), draw(pipe))


def test_a_warm_up_that_never_ends_is_plain_guidance(pipe):
    guard = SafeLatentDiffusion(text="violin", level=Level(warmup=STEPS))
    assert torch.equal(draw(pipe, guard=guard), draw(pipe))
    assert calls(pipe, guard) == [4] * STEPS
    one_less = SafeLatentDiffusion(text="violin", level=Level(warmup=STEPS - 1))
    assert not torch.equal(draw(pipe, guard=one_less), draw(pipe))
    assert calls(pipe, one_less) == [4, 2] * STEPS  # nu moves on from the first step


def test_without_momentum_the_warm_up_asks_nothing(pipe):
    guard = SafeLatentDiffusion(text="violin", level=replace(LEVELS["weak"], warmup=2))
    assert calls(pipe, guard) == [4, 4, 4, 2]


def test_an_empty_safety_text_or_no_scale_is_plain_guidance(any_pipe):
    for text in ("", " "):
        guard = SafeLatentDiffusion(text=text, level=LEVELS["max"])
        assert torch.equal(draw(any_pipe, guard=guard), draw(any_pipe))
    none = SafeLatentDiffusion(text="violin", level=replace(LEVELS["max"], scale=0.0))
    assert torch.equal(draw(any_pipe, guard=none), draw(any_pipe))


def test_a_safety_prediction_equal_to_the_empty_one_adds_nothing():
    for level in LEVELS.values():
        assert steered(level, 1, 2, 1) == 1 + ALPHA


def test_a_sample_does_not_depend_on_its_batch(pipe):
    guard = SafeLatentDiffusion(text="violin", level=LEVELS["max"])
    latents, prompts = noise(pipe, 2), ("a fiddle", "a dog")
    # one step: s_S turns the last bits, which batches of other sizes differ in, into more
    both = draw(pipe, prompts, guard, latents=latents, num_inference_steps=1)
    for at, prompt in enumerate(prompts):
        alone = draw(pipe, [prompt], guard, latents=latents[at : at + 1], num_inference_steps=1)
        assert torch.allclose(alone[0], both[at], atol=2e-2)


def test_without_guidance_alpha_is_one(pipe):
    """The formula holds: g = ec - gamma."""
    guard = SafeLatentDiffusion(text="violin", level=LEVELS["max"])
    plain, safe = (draw(pipe, guard=g, guidance_scale=1.0) for g in (None, guard))
    assert torch.isfinite(safe).all()
    assert not torch.equal(plain, safe)


# --- Semantic Surgery ---

NOTHING = "the moon over a lake"


def test_what_has_nothing_keeps_its_bits_alone_and_beside_others(pipe):
    guard = SemanticSurgery(names=("violin",))
    alone = draw(pipe, [NOTHING, "a dog"])
    assert torch.equal(draw(pipe, [NOTHING, "a dog"], guard), alone)
    mixed = [NOTHING, "a violin", "a dog"]
    before, after = draw(pipe, mixed), draw(pipe, mixed, guard)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1], before[1], atol=0.1)


def test_nothing_found_gives_the_texts_that_were_given(pipe, speaks):
    rule, given = SemanticSurgery(names=("violin",)).rule(pipe), speaks(NOTHING)
    reading = rule.read(given)
    assert isinstance(reading, Quiet)
    assert reading.conditions(given) is given
    found = speaks("a violin")
    assert rule.read(found).conditions(found) is not found


def test_a_prompt_of_the_names_alone_becomes_the_empty_one(any_pipe):
    speaks, names = Speaks(any_pipe), ("violin", "trumpet")
    given = speaks("trumpet, violin")
    rule = SemanticSurgery(names=names, threshold=0.0, temperature=1e-4).rule(any_pipe)
    rule.presence = lambda prompts: torch.ones(len(prompts.states), 2)
    gone, empty = rule.read(given).conditions(given), speaks("")
    assert torch.allclose(gone.states, empty.states, atol=1e-5)
    assert not torch.allclose(given.states, empty.states, atol=0.1)
    if empty.pooled is not None:
        assert torch.allclose(gone.pooled, empty.pooled, atol=1e-5)


def test_on_the_embedded_model_the_names_are_found_in_it(pipe, speaks):
    given = speaks("trumpet, violin")
    rule = SemanticSurgery(names=("violin", "trumpet")).rule(pipe)
    assert float(rule.presence(given).min()) > 0.999
    gone = rule.read(given).conditions(given).states
    assert torch.allclose(gone, speaks("").states, atol=1e-3)


def test_a_prompt_does_not_depend_on_its_batch_nor_on_the_order_of_names(pipe, speaks):
    prompts = ["a violin", NOTHING, "a trumpet on a table", "a dog"]
    texts = [speaks(prompt).states for prompt in prompts]
    names = ("violin", "trumpet", "piano")
    orders = list(itertools.permutations(names))
    soft = [SemanticSurgery(names=order, temperature=0.5) for order in orders]  # rho far from 1
    rules = [guard.rule(pipe) for guard in soft]
    alone = [rules[0].read(Texts(own)).conditions(Texts(own)).states for own in texts]
    for rule, order in zip(rules, itertools.permutations(range(4)), strict=False):
        batch = Texts(torch.cat([texts[at] for at in order]))
        together = rule.read(batch).conditions(batch).states
        for row, at in enumerate(order):
            assert torch.equal(together[row], alone[at][0])
    assert not torch.equal(alone[0], texts[0])
    assert torch.equal(alone[1], texts[1])


def test_presence_is_the_mean_cosine_over_all_positions(pipe, speaks):
    guard = SemanticSurgery(names=("violin",), threshold=0.2, temperature=0.5)
    own, away = speaks("a guitar").states[0], speaks("violin").states[0] - speaks("").states[0]
    assert float(away[0].abs().max()) == 0  # begin of text: a cosine of 0, which counts
    cosines = [
        float(torch.dot(own[i], away[i]) / (own[i].norm() * away[i].norm()))
        for i in range(1, len(own))
    ]
    r = sum([0.0, *cosines]) / len(own)
    a = float(guard.rule(pipe).presence(speaks("a guitar"))[0, 0])
    assert a == pytest.approx(1 / (1 + 2.718281828 ** (-(r - 0.2) / 0.5)), abs=1e-5)


def test_half_the_strength_takes_half(pipe, speaks):
    guard, given = SemanticSurgery(names=("violin",)), speaks("a violin")
    whole, half = (
        g.rule(pipe).read(given).conditions(given).states for g in (guard, guard.scaled(0.5))
    )
    assert torch.allclose(half, (whole + given.states) / 2, atol=1e-5)


def test_surgery_costs_no_prediction(pipe):
    assert calls(pipe, GUARDS[2]) == [4] * STEPS


def test_a_prompt_that_cannot_be_read_is_not_let_through(pipe, speaks):
    broken = Texts(speaks("a dog").states.clone())
    broken.states[0, 3, 0] = float("nan")
    with pytest.raises(EditError, match="NaN"):
        SemanticSurgery(names=("violin",)).rule(pipe).read(broken)


# --- as stages ---

VIOLIN = Concept(name="violin", aliases=("fiddle",))
PIANO = Concept(name="piano")


def staged(name, *, targets=None, neighbors=None, **options):
    found = registry.get("guide", name)
    inputs = GuideInputs((VIOLIN, PIANO), targets or Targets(concepts=()), neighbors or Neighbors())
    config = found.config(use=name, **options)
    return found.function(inputs, config, Context(opened("emoji")))


def test_every_name_and_alias_is_erased():
    assert staged("negative-prompt").text == "violin, fiddle, piano"
    assert staged("negative-prompt", text="a bow").text == "a bow"
    assert staged("negative-prompt", text="").text == ""
    assert staged("sld") == replace(
        SafeLatentDiffusion(text="violin, fiddle, piano"), provenance=staged("sld").provenance
    )
    assert staged("sld", level="max", scale=7.0).level == replace(LEVELS["max"], scale=7.0)
    assert staged("semantic-surgery", threshold=0.2).names == ("violin", "fiddle", "piano")


@pytest.mark.parametrize("name", ["negative-prompt", "sld", "semantic-surgery"])
def test_provenance_tells_what_was_erased(name):
    rows = staged(name).provenance["erased"]
    assert [(row["name"], row["target"]) for row in rows] == [("violin", None), ("piano", None)]
    targets = Targets(
        concepts=(
            Target(concept="violin", target="trumpet"),
            Target(concept="piano", target="drum"),
        )
    )
    marked = Neighbor(word="viola", role="erase", similarity=0.9, displacement=0.1)
    near = Neighbors(concepts=(Neighborhood(concept="violin", words=(marked,)),))
    guard = staged(name, targets=targets, neighbors=near)
    rows = guard.provenance["erased"]
    assert [row["target"] for row in rows] == ["trumpet", "drum"]
    assert rows[0]["mined"] == ["viola"]
    assert "viola" in json.dumps(guard.described())  # what is said to be erased is


@pytest.mark.parametrize("name", ["negative-prompt", "sld"])
def test_a_text_that_would_be_cut_off_is_refused(name):
    with pytest.raises(RecipeError, match="cut off"):
        staged(name, text=" ".join(["violin"] * 50))
