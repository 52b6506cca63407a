"""Rows of a step: which noisy latents, at which times, with which texts, all keyed by the global sample.

Latents lie in pools, drawn once from the frozen model (`pool`), or are drawn anew by the model in
training (`current`). Those of a mixture's leading candidate are drawn when it first leads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from editforge.align.denoiser import Denoiser, Encoded
from editforge.align.mixture import Mixture
from editforge.align.objective import (
    EMPTY,
    ERASE,
    ERASED,
    KEEP,
    KEPT,
    LEADING,
    MIXED,
    NEIGHBOR,
    TARGET,
    Objective,
    Row,
)
from editforge.align.options import LoraOptions
from editforge.align.pool import Pool, Sampler, build_pool
from editforge.align.prompts import ErasedPrompt, Prompts
from editforge.ground.keyed import keyed
from editforge.recipe.contract import Context


class Student(Protocol):
    """The model in training."""

    def student(self) -> Any:
        """A context in which it acts."""
        ...


@dataclass(frozen=True)
class Rows:
    """One piece of a step: latents and times (n, ...) by branch, texts (n) by row."""

    latents: dict[str, Tensor]
    times: dict[str, Tensor]
    texts: dict[Row, list[Encoded]]


@dataclass
class Gatherer:
    """Picks samples and gathers their rows.

    Args:
        options: of the method.
        context: seed, processes, progress, folders.
        denoiser: frozen.
        student: for `current` latents.
        prompts: texts by run.
        mixture: of candidate targets, where the method has one.
        noise: of the mixture at a step, from 0 to 1.
        lead_runs: sampling runs of a candidate that comes to lead.
        told: a method's own conditions: from an erased prompt and the empty one to a text.
    """

    options: LoraOptions
    context: Context
    denoiser: Denoiser
    student: Student
    prompts: Prompts
    mixture: Mixture | None = None
    noise: Callable[[int], float] = lambda step: 1.0
    lead_runs: int = 8
    told: Mapping[str, Callable[[ErasedPrompt, Encoded], Encoded]] = field(default_factory=dict)
    _pools: dict[str, Pool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options, prompts = self.options, self.prompts
        self._sampler = Sampler(
            self.denoiser,
            steps=options.sample_steps,
            guidance=options.sample_guidance,
            window=options.time_range,
            seed=self.context.seed,
        )
        self._texts = {ERASE: [p.erased for p in prompts.erased], KEEP: prompts.kept}

    def draw(self, branches: Sequence[str]) -> None:
        """The pools of these branches: noisy latents of the frozen model."""
        if self.options.latents == "current":
            return
        wanted = [branch for branch in branches if branch in self._texts]
        total = sum(len(self._texts[branch]) for branch in wanted)
        with self.context.bar(total, "drawing latents") as bar:
            for branch in wanted:
                self._pools[branch] = self._pool(branch, self._texts[branch], bar)

    def lead(self) -> None:
        """The pools of the candidates that lead now; every process comes here at every step."""
        if self.mixture is None or self.options.latents == "current":
            return
        for concept, own in self.mixture.candidates.items():
            label, word = self._leader(concept)
            if label in self._pools:
                continue
            runs = [own.encoded(word, at % len(own.states)) for at in range(self.lead_runs)]
            with self.context.bar(len(runs), f"drawing {own.words[word]}") as bar:
                self._pools[label] = self._pool(label, runs, bar)

    def rows(self, samples: Sequence[int], objective: Objective) -> Rows:
        """Latents, times and texts of some samples, by their global indices."""
        latents: dict[str, Tensor] = {}
        times: dict[str, Tensor] = {}
        runs: dict[str, list[int]] = {}
        for branch in objective.branches:
            make = self._fresh if self.options.latents == "current" else self._pooled
            if branch == LEADING:
                runs[branch] = runs[ERASE]  # what the same samples erase
                lead = self._fresh_lead if self.options.latents == "current" else self._lead
                latents[branch], times[branch] = lead(samples, runs[branch])
            else:
                latents[branch], times[branch], runs[branch] = make(branch, samples)
        wanted = dict.fromkeys((*objective.teacher, *objective.student))
        mixed: dict[int, Encoded] = {}
        if any(condition == MIXED for _, condition in wanted):
            mixed = {s: self._mixed(run, s) for run, s in zip(runs[ERASE], samples, strict=True)}
        texts = {
            (branch, condition): [
                mixed[sample] if condition == MIXED else self._text(condition, run, sample)
                for run, sample in zip(runs[branch], samples, strict=True)
            ]
            for branch, condition in wanted
        }
        return Rows(latents, times, texts)

    def _pool(self, label: str, texts: Sequence[Encoded], bar: Any) -> Pool:
        return build_pool(
            self._sampler,
            texts,
            self.options.kept_times,
            label=label,
            work=self.context.work,
            team=self.context.team,
            bar=bar,
        )

    def _text(self, condition: str, run: int, sample: int) -> Encoded:
        if condition == NEIGHBOR:
            return self.prompts.neighbor(run, sample)
        if condition == KEPT:
            return self.prompts.kept[run]
        if condition == EMPTY:
            return self.prompts.empty
        prompt = self.prompts.erased[run]
        if condition in self.told:
            return self.told[condition](prompt, self.prompts.empty)
        return {ERASED: prompt.erased, TARGET: prompt.target}[condition]

    def _mixed(self, run: int, sample: int) -> Encoded:
        assert self.mixture is not None
        prompt, step = self.prompts.erased[run], sample // self.options.batch
        return self.mixture.mixed(prompt.concept, prompt.template, sample, self.noise(step))

    def _pooled(self, branch: str, samples: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        pool = self._pools[branch]
        at = [self._pick(len(pool), branch, sample) for sample in samples]
        return pool.latents[at], pool.times[at], pool.runs[at].tolist()

    def _lead(self, samples: Sequence[int], runs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Entries of the pools of the candidates that lead for the concepts of these runs."""
        found = []
        for run, sample in zip(runs, samples, strict=True):
            pool = self._pools[self._leader(self.prompts.erased[run].concept)[0]]
            at = self._pick(len(pool), LEADING, sample)
            found.append((pool.latents[at], pool.times[at]))
        return torch.stack([z for z, _ in found]), torch.stack([t for _, t in found])

    def _leader(self, concept: str) -> tuple[str, int]:
        """The label of the pool of the candidate that leads for a concept, and which that is."""
        assert self.mixture is not None
        word = self.mixture.leader(concept)
        return f"{LEADING}-{list(self.mixture.candidates).index(concept)}-{word}", word

    def _fresh(self, branch: str, samples: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Runs of the model in training, each from noise of its own to one time."""
        texts = self._texts[branch]
        runs = [self._pick(len(texts), branch, sample) for sample in samples]
        return *self._run(branch, samples, [texts[run] for run in runs]), runs

    def _fresh_lead(self, samples: Sequence[int], runs: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same with the mixture as text, from the noise and to the time of the erased run."""
        with torch.no_grad():
            texts = [self._mixed(run, sample) for run, sample in zip(runs, samples, strict=True)]
        return self._run(ERASE, samples, texts)

    def _run(
        self, key: str, samples: Sequence[int], texts: Sequence[Encoded]
    ) -> tuple[Tensor, Tensor]:
        noise = [self._sampler.noise(key, "sample", sample) for sample in samples]
        kept = [self._sampler.kept(1, key, "sample", sample) for sample in samples]
        with self.student.student():
            found = self._sampler.runs(noise, texts, kept)
        times = self._sampler.times[[row[0] for row in kept]]
        return torch.stack([row[0] for row in found]), times

    def _pick(self, count: int, branch: str, sample: int) -> int:
        generator = keyed(self.context.seed, "sample", branch, sample)
        return int(torch.randint(count, (), generator=generator))
