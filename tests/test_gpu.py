"""What a GPU does differently: half precision, offloading, compiled denoisers, the gate, one command.

`make test-gpu` runs these alone. Without CUDA they are skipped, and the last lines of a run say so. To
see that the bodies themselves are sound, another device can be named:

    EDITFORGE_GPU_TESTS_ON=cpu python -m pytest tests/test_gpu.py
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch

import editforge
from editforge.ground.errors import EditError
from tests.models import family_file
from tests.tiny import draw, tiny_pipeline

DEVICE = os.environ.get("EDITFORGE_GPU_TESTS_ON") or ("cuda" if torch.cuda.is_available() else "")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DEVICE, reason="no CUDA GPU here"),
]

KINDS = ("sd1", "sdxl")
SAME = 2e-2  # two ways to the same picture in float16, pixels in [0, 1]
PICTURES = "float32" if DEVICE == "cpu" else "float16"  # a CPU is far slower with halves
SHORT = ["edit.background_limit=40"]


def half(kind, device=None):
    return tiny_pipeline(kind).to(device or DEVICE, torch.float16)


def typed(pipe, kind):
    options = {"target": "trumpet", "preserve": ["guitar"], "progress": False}
    return editforge.erase(pipe, "violin", family=family_file(kind), **options)


def loud(pipe, kind):
    """An edit that a picture of random weights shows."""
    return typed(pipe, kind).scaled(20)


def bits(pipe):
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [weight.detach().cpu().clone() for part in parts for weight in part.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def gap(a, b):
    return float((a.float().cpu() - b.float().cpu()).abs().max())


def seen(pipe, edit, base):
    """What the pipeline draws under the edit, which is not what it drew before."""
    with edit.applied(pipe):
        image = draw(pipe)
    assert torch.isfinite(image).all()
    assert gap(image, base) > 2 * SAME
    return image


# --- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_a_half_pipeline_is_that_of_its_weights_elsewhere(kind):
    pipe = half(kind)
    before = bits(pipe)
    edit = typed(pipe, kind)
    assert equal(before, bits(pipe))
    assert all(pair.A.device.type == "cpu" for pair in edit.factors.values())
    slow = half(kind, "cpu").to(torch.float32)  # the same numbers, computed with in 32 bits
    assert edit.difference(typed(slow, kind)) < 2e-2
    assert edit.provenance["base_sha256"] == typed(slow, kind).provenance["base_sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_apply_acts_and_remove_is_exact(kind):
    pipe = half(kind)
    before, base, edit = bits(pipe), draw(pipe), loud(pipe, kind)
    seen(pipe, edit, base)
    assert equal(before, bits(pipe))
    assert {weight.device.type for weight in pipe.unet.parameters()} == {torch.device(DEVICE).type}
    assert torch.equal(draw(pipe), base)
    edit.apply(pipe)
    pipe.to("cpu")
    edit.remove(pipe)  # it follows the weights
    assert equal(before, bits(pipe))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_draws_the_same(kind, tmp_path):
    pipe = half(kind)
    base, edit = draw(pipe), loud(pipe, kind)
    image = seen(pipe, edit, base)
    edit.save_lora(tmp_path)
    pipe.load_lora_weights(tmp_path)
    assert gap(draw(pipe), image) < SAME
    pipe.unload_lora_weights()
    assert gap(draw(pipe), base) < SAME


# --- offloading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_model_offload_is_no_obstacle(kind):
    plain = half(kind)
    base, wanted = draw(plain), loud(plain, kind)
    image = seen(plain, wanted, base)
    pipe = half(kind, "cpu")
    pipe.enable_model_cpu_offload(device=DEVICE)
    edit = loud(pipe, kind)
    assert edit.difference(wanted) < 2e-2
    edit.apply(pipe)
    for _ in range(2):  # diffusers puts its hooks on again after each picture
        assert gap(draw(pipe), image) < SAME
    edit.remove(pipe)
    assert gap(draw(pipe), base) < SAME


@pytest.mark.parametrize("kind", KINDS)
def test_sequential_offload_is_refused_and_the_way_out_works(kind):
    pipe = half(kind, "cpu")
    before = bits(pipe)
    edit, plain = loud(pipe, kind), half(kind)
    image = seen(plain, edit, draw(plain))
    pipe.enable_sequential_cpu_offload(device=DEVICE)
    for call in (lambda: typed(pipe, kind), lambda: edit.apply(pipe)):
        with pytest.raises(EditError, match="offloaded") as caught:
            call()
        assert "pipe.remove_all_hooks()" in caught.value.next
    pipe.remove_all_hooks()
    edit.apply(pipe)
    pipe.enable_sequential_cpu_offload(device=DEVICE)
    if torch.device(DEVICE).type == "cpu":  # accelerate cannot run a text encoder so
        pipe.remove_all_hooks()
    assert gap(draw(pipe), image) < SAME
    pipe.remove_all_hooks()
    edit.remove(pipe)
    assert equal(before, bits(pipe))


# --- a compiled denoiser -------------------------------------------------------------------------


def test_a_compiled_denoiser_is_edited_and_its_lora_fits_a_stock_pipeline(tmp_path):
    plain = half("sd1")
    base, edit = draw(plain), loud(plain, "sd1")
    image = seen(plain, edit, base)
    pipe = half("sd1")
    pipe.unet = torch.compile(pipe.unet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = draw(pipe)
        assert gap(compiled, base) < SAME
        own = loud(pipe, "sd1")
        own.apply(pipe)
        assert gap(draw(pipe), image) < SAME
        own.remove(pipe)
        assert torch.equal(draw(pipe), compiled)
    assert not any("_orig_mod" in name for name in own.factors)
    own.save_lora(tmp_path)
    plain.load_lora_weights(tmp_path)
    assert gap(draw(plain), image) < SAME


# --- a guard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", [False, True])
def test_a_guard_steers_its_prompt_alone(offload, tmp_path):
    from editforge.guards.prototype import PrototypeGuard
    from tests.test_guards import CAT, VIOLIN, one, same
    from tests.test_guards import draw as latents

    pipe = half("sd1")
    stock = latents(pipe, [VIOLIN, CAT])
    one(pipe).save(tmp_path / "bank.safetensors")
    guard = PrototypeGuard.from_pretrained(tmp_path)  # as a user has it, in ordinary memory
    if offload:
        pipe.to("cpu")
        pipe.enable_model_cpu_offload(device=DEVICE)
    assert guard.triggered(pipe, [VIOLIN, CAT]) == [("erased",), ()]
    with guard.on(pipe):
        steered = latents(pipe, [VIOLIN, CAT])
    assert torch.isfinite(steered).all()
    assert same(steered[1], stock[1])
    assert not same(steered[0], stock[0])
    assert same(latents(pipe, [VIOLIN, CAT]), stock)


# --- the embedded model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    from editforge import emoji

    pipe = emoji.load_pipeline().to(DEVICE, getattr(torch, PICTURES))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def violin(embedded):
    return editforge.erase(embedded, "violin", options=SHORT, progress=False)


def test_pictures_are_the_same_again_and_near_those_of_the_cpu(embedded):
    from editforge import emoji
    from editforge.families.draw import Shown, sample
    from editforge.families.sampling import default_sampler

    asked = [Shown("violin", "an emoji of a violin", (0, 1, 2, 3))]
    sampler = default_sampler("emoji")
    first, again = (sample(embedded, asked, sampler, progress=False) for _ in range(2))
    assert (first == again).all()
    slow = sample(emoji.load_pipeline(), asked, sampler, dtype="float32", progress=False)
    assert abs(first.astype(float) - slow).mean() < 8  # of 255: the noise is the same


def test_the_gate_passes_a_good_eraser_and_stops_one_that_does_nothing(embedded, violin):
    from editforge.artifacts.concepts import Concept
    from editforge.evaluate.gate import evaluate_gate
    from editforge.evaluate.prompts import Counts

    before, became = bits(embedded), violin.provenance["erased"][0]["target"]

    def judged(eraser):
        return evaluate_gate(
            embedded,
            eraser,
            [Concept(name="violin")],
            family_name="emoji",
            near=("guitar", "books", "bear", "television"),
            targets={"violin": became},
            counts=Counts(name=16, least=8, names=4, images=4),
            progress=False,
        )

    assert judged(violin).verdict.status != "not erased"
    assert judged(violin.scaled(0)).verdict.status == "not erased"
    assert equal(before, bits(embedded))


def test_one_command_on_the_device(violin, tmp_path):
    from tests.command import fresh

    words = ["-m", "editforge", "erase", "violin", "--device", DEVICE, "--dtype", PICTURES]
    words += ["--judge", "none", "--export", "lora,unet", "--set", SHORT[0], "--output", "run"]
    done = fresh(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert (run / "package" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (run / "evaluate" / "grid.png").is_file()
    assert editforge.load_edit(run).difference(violin) < 2e-2
