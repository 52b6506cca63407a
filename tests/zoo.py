"""Erasers made of the embedded model itself: behind a change of prompts, of images, or of weights.

What a batch of prompts draws is remembered by prompts and noise, so that a test which rewords eight
prompts does not draw the other hundred again; and what the base draws is kept between test processes.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from editforge.artifacts.concepts import Concept
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.prompts import Counts, gate_prompts
from editforge.families.draw import Sampler, sample

_drawn: dict = {}


class Drawing(StableDiffusionPipeline):
    """The embedded model behind a change of prompts or of finished images."""

    def __call__(self, prompt, **options):
        prompts = [self.reword(text) for text in prompt]
        key = (tuple(prompts), options["latents"].numpy().tobytes())
        if key not in _drawn:
            _drawn[key] = super().__call__(prompt=prompts, **options).images
        return SimpleNamespace(images=self.redraw(_drawn[key]))


def drawing(*, reword=lambda text: text, redraw=lambda images: images):
    """An eraser that changes what is asked for, or what has been drawn."""

    @contextmanager
    def applied(pipe):
        new = Drawing(**pipe.components, requires_safety_checker=False)
        new.reword, new.redraw = reword, redraw
        yield new

    return SimpleNamespace(applied=applied)


def worded(**words):
    """An eraser that draws another word: `worded(violin="trumpet")`; "" empties the prompt."""

    def reword(text):
        for word, other in words.items():
            named = word.replace("_", " ")
            article = "an" if named[0] in "aeiou" else "a"
            if f"{article} {named}" in text:
                target = f"{'an' if other[:1] in 'aeiou' else 'a'} {other}"
                return text.replace(f"{article} {named}", target) if other else ""
        return text

    return drawing(reword=reword)


class Noise:
    """Random weights while applied, the old ones afterwards."""

    @contextmanager
    def applied(self, pipe):
        kept = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in pipe.unet.parameters():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        try:
            yield pipe
        finally:
            pipe.unet.load_state_dict(kept)


def blank(images):
    return np.ones_like(images)


class TheFirst:
    """The first picture that is drawn, for all that follow."""

    def __init__(self):
        self._image = None

    def __call__(self, images):
        self._image = images[:1] if self._image is None else self._image
        return np.repeat(self._image, len(images), axis=0)


COUNTS = Counts(name=32, reference=16)  # near and far at their full number, the erased at half
# Two thirds of the family's steps, at which the judges still know the neighbors. Small batches, so
# that a changed prompt draws few others again.
SAMPLER = Sampler(steps=8, guidance=4.0, batch=16)
# Without trumpet and dagger: whatever the target, the same near and far names are drawn.
NEAR = ("guitar", "books", "television", "monkey", "deer", "bear", "scorpion")
VIOLIN = Concept(name="violin")


def draw_base(pipe, folder):
    """What the base draws for violin and for a trumpet, once for many erasers."""
    plan = gate_prompts([VIOLIN], "emoji", near=NEAR, targets={"violin": "trumpet"}, counts=COUNTS)
    with drawing().applied(pipe) as same:  # and remembers it
        for label, prompts in (("base", plan.prompts), ("reference", plan.reference)):
            sample(same, prompts, SAMPLER, label=label, progress=False, workdir=folder)


def judge(pipe, eraser, folder, target="trumpet"):
    """The real gate on an eraser of violins; `folder` may hold what the base draws."""
    return evaluate_gate(
        pipe,
        eraser,
        [VIOLIN],
        family_name="emoji",
        near=NEAR,
        targets={"violin": target},
        workdir=folder,
        counts=COUNTS,
        sampler=SAMPLER,
        progress=False,
    )


def failed(report):
    """The names of the checks that fail."""
    return [check.name for check in report.verdict.checks if check.holds is False]
