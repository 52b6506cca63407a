"""What the denoiser reads while it is trained: prompts that go, what they become, what is kept.

A text belongs to the sampling run whose latents it goes with: run r of a concept has one prompt, the
same with the target, and neighbors of it, drawn anew for each sample. Everything is encoded once; all
draws are keyed by the recipe's seed, the concept and the run or the global sample index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editforge.align.denoiser import Denoiser, Encoded
from editforge.align.options import LoraOptions
from editforge.artifacts.chosen import becomes, erased_names, kin, preserved_names, templates_of
from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import MinedShell
from editforge.families.vocabulary import thinned, unnamed, word_list
from editforge.ground.keyed import keyed
from editforge.ground.names import filled, fold
from editforge.ground.shell import beyond_of, nearest_is_own, neighbors_of
from editforge.recipe.contract import AlignInputs, Context

_TRIES = 4  # neighbors drawn for one sample; the first that is no preserved concept's is taken


@dataclass(frozen=True)
class ErasedPrompt:
    """A prompt with an erased name, and the same prompt with its target.

    Args:
        concept: the erased concept.
        text: the prompt.
        erased: its states.
        target: the states of the prompt with the target; of no text where that is nothing.
        first: the name's first token in the prompt.
        last: its last.
        template: which of `Prompts.templates` it is made with.
    """

    concept: str
    text: str
    erased: Encoded
    target: Encoded
    first: int
    last: int
    template: int = 0


class Prompts:
    """All texts of one training, by run.

    Args:
        inputs: concepts, targets, neighbors.
        options: how many runs, and which share of those kept lies around the concept.
        denoiser: encodes whole prompts as the pipeline does.
        context: model and seed.
        concept_share: of samples at the concept itself; the rest are neighbors.
        templates: of the erased prompts; None: the family's for the kind.
    """

    def __init__(
        self,
        inputs: AlignInputs,
        options: LoraOptions,
        denoiser: Denoiser,
        context: Context,
        concept_share: float,
        templates: Sequence[str] | None = None,
    ) -> None:
        self._context, self._denoiser, self._share = context, denoiser, concept_share
        self._inputs, self._own_templates = inputs, templates
        encoder = context.model.encoder
        names = [concept.name for concept in inputs.concepts]
        self.preserved = preserved_names(inputs)
        states = encoder.encode_words(names).double()
        self._state = dict(zip(names, states, strict=True))  # (d,) each
        self._shell = {name: inputs.neighbors.of(name).shell for name in names}
        self._along = {
            name: shell.away(encoder, name)
            for name, shell in self._shell.items()
            if shell is not None
        }
        words = [word for word in self.preserved if encoder.tokens(word)]
        width = context.model.family.text_width
        self._held = (
            encoder.encode_words(words).double().T if words else torch.zeros(width, 0).double()
        )
        self.empty = denoiser.unconditional()
        self.erased = [
            prompt
            for concept in inputs.concepts
            for prompt in self._prompts_of(concept, options.erase_runs)
        ]
        self.kept = self._kept(options)

    def neighbor(self, run: int, sample: int) -> Encoded:
        """The prompt of an erase run, displaced to a fresh neighbor, or as it is.

        A neighbor more like a preserved concept than like its own is not taken.

        Args:
            run: index into `erased`.
            sample: global index.
        """
        prompt = self.erased[run]
        name, mined = prompt.concept, self._shell[prompt.concept]
        at_home = torch.rand((), generator=keyed(self._context.seed, "concept", sample)).item()
        if mined is None or at_home < self._share:
            return prompt.erased
        e = self._state[name]
        along, seed = self._along[name], self._context.seed
        near = neighbors_of(e, mined, along, _TRIES, seed, name, "align", sample)
        own = nearest_is_own(e, near, self._held).nonzero().flatten().tolist()
        return self._displaced(prompt, near[:, own[0]] - e) if own else prompt.erased

    def templates(self, concept: Concept) -> tuple[str, ...]:
        """Those of its erased prompts."""
        if self._own_templates is not None:
            return tuple(self._own_templates)
        return templates_of([concept.kind], self._context.model.family)

    def _displaced(self, prompt: ErasedPrompt, eta: Tensor) -> Encoded:
        """h_i + eta |h_i| / |e| at the name's tokens."""
        states = prompt.erased.states.clone()  # (q, d)
        span = slice(prompt.first, prompt.last + 1)
        sizes = states[span].norm(dim=1, keepdim=True) / self._state[prompt.concept].norm()
        states[span] += (sizes * eta).float()
        return replace(prompt.erased, states=states)

    def _prompts_of(self, concept: Concept, count: int) -> list[ErasedPrompt]:
        encoder = self._context.model.encoder
        target = becomes(concept, self._inputs)
        templates = self.templates(concept)
        pairs = [(text, name) for text in templates for name in erased_names(concept, self._inputs)]
        pairs = [pairs[run % len(pairs)] for run in range(count)]
        each = list(dict.fromkeys(pairs))
        own = [filled(text, name) for text, name in each]
        goals = [filled(text, target) for text, _ in each]
        for text in goals:
            if text:
                encoder.check(text)
        spans = [encoder.span(text, name) for text, (_, name) in zip(own, each, strict=True)]
        states = self._denoiser.encode([*own, *goals])
        made = {
            pair: ErasedPrompt(
                concept.name,
                own[at],
                states[at],
                states[len(each) + at],
                span.start,
                span.last,
                templates.index(pair[0]),
            )
            for at, (pair, span) in enumerate(zip(each, spans, strict=True))
        }
        return [made[pair] for pair in pairs]

    def _kept(self, options: LoraOptions) -> list[Encoded]:
        """Preserved names first, then other words, in all templates; then points beyond the shells."""
        mined = [(name, shell) for name, shell in self._shell.items() if shell is not None]
        around = round(options.keep_runs * options.beyond_fraction) if mined else 0
        words = thinned(self.preserved, options.keep_runs - around)
        words += thinned(self._others(), options.keep_runs - around - len(words))
        kinds = [concept.kind for concept in self._inputs.concepts]
        templates = templates_of(kinds, self._context.model.family)
        if not words:  # nothing to keep by name: the empty prompt stands for everything else
            words = [""] * (options.keep_runs - around)
        texts = [filled(templates[at % len(templates)], word) for at, word in enumerate(words)]
        found = self._denoiser.encode(texts) if texts else []
        return found + [
            self._beyond(*mined[at % len(mined)], at // len(mined)) for at in range(around)
        ]

    def _beyond(self, name: str, mined: MinedShell, at: int) -> Encoded:
        own = [prompt for prompt in self.erased if prompt.concept == name]
        e = self._state[name]
        point = beyond_of(e, mined, 1, self._context.seed, name, "align", at)[:, 0]
        return self._displaced(own[at % len(own)], point - e)

    def _others(self) -> list[str]:
        """Words of the mined list that are neither erased, nor kin, nor preserved, nor in a band."""
        inputs = self._inputs
        shells = [shell for shell in self._shell.values() if shell is not None]
        out = {fold(word) for word in (*self.preserved, *kin(inputs))}
        out |= {fold(name) for concept in inputs.concepts for name in erased_names(concept, inputs)}
        out |= {fold(word) for shell in shells for word in shell.in_band}
        model = self._context.model
        erased = [name for concept in inputs.concepts for name in concept.names]
        words = unnamed(model.family, word_list(model, inputs.neighbors.source), erased)
        return [word for word in words if fold(word) not in out]
