"""The one training loop: a LoRA on a frozen denoiser, whatever the objective, however many processes.

A step works on `batch` samples with the global indices step * batch + i. Everything random about a
sample is keyed by its index, and processes share the indices of a step among them: their number
changes the order of a sum and nothing else. The same holds for a resumed run.

Gradients are not left to DistributedDataParallel: they are a few megabytes, go into one sum together
with the losses, and a process without a row of the batch adds zeros. The denoiser stays the caller's
own module, in no wrapper. accelerate launches the processes, sums, and tracks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from editforge.align.adapter import Adapter, linear_paths
from editforge.align.denoiser import Denoiser, Encoded
from editforge.align.objective import (
    EMPTY,
    ERASE,
    ERASED,
    KEEP,
    KEPT,
    NEIGHBOR,
    TARGET,
    Objective,
    Row,
)
from editforge.align.options import LoraOptions
from editforge.align.pool import Pool, Sampler, build_pool
from editforge.align.prompts import Prompts
from editforge.align.state import State
from editforge.align.watch import Watch
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditError
from editforge.ground.keyed import keyed
from editforge.recipe.contract import AlignInputs, Context


def train(
    inputs: AlignInputs,
    options: LoraOptions,
    objective: Objective,
    context: Context,
    *,
    concept_share: float = 1.0,
) -> WeightEdit:
    """Train one LoRA for all concepts on top of an edit; the result holds both.

    Guarantee: zero steps give the edit itself; the model is left as it was; on one process a run
    killed anywhere ends with the same bits.

    Args:
        inputs: the edit so far and what it was made from.
        options: of the method.
        objective: what is aligned with what.
        context: model, seed, processes, and the folder of the checkpoints.
        concept_share: share of samples at the concept itself; the others are at fresh neighbors.

    Raises:
        RecipeError: modules that are not there, a precision the model has not; EditError: the loss
            is no number; ProcessLost: another process ended.
    """
    if inputs.edit.dense:
        raise EditError(
            "a LoRA cannot lie on an edit with dense deltas", got=min(inputs.edit.dense)
        )
    with training(inputs, options, objective, context, concept_share) as loop:
        if options.steps == 0:
            return inputs.edit
        loop.run()
        return _joined(inputs.edit, loop.result(), context.model.family.denoiser, loop.summary())


@contextmanager
def training(
    inputs: AlignInputs,
    options: LoraOptions,
    objective: Objective,
    context: Context,
    concept_share: float,
) -> Iterator[Loop]:
    """A loop on the model's own pipeline, which is put back as it was."""
    pipe = context.model.pipeline()
    denoiser = Denoiser(pipe, options.size, options.precision)
    component = f"{context.model.family.denoiser}."
    frozen = {
        path.removeprefix(component): LowRank(inputs.edit.strength * pair.B, pair.A)
        for path, pair in inputs.edit.factors.items()
    }
    paths = linear_paths(denoiser.module, options.modules)
    adapter = Adapter(
        denoiser.module, paths, options.rank, frozen, seed=context.seed, device=denoiser.device
    )
    try:
        with denoiser.frozen(checkpointing=options.checkpointing):
            prompts = Prompts(inputs, options, denoiser, context, concept_share)
            yield Loop(options, objective, context, denoiser, adapter, prompts)
    finally:
        adapter.remove()


@dataclass(frozen=True)
class Rows:
    """One piece of a step: latents and times (n, ...) by branch, texts (n) by row."""

    latents: dict[str, Tensor]
    times: dict[str, Tensor]
    texts: dict[Row, list[Encoded]]


class Loop:
    """Steps over keyed samples, with checkpoints.

    Args:
        options: of the method.
        objective: what is aligned with what.
        context: seed, processes, progress, folders.
        denoiser: frozen.
        adapter: hooked into it.
        prompts: texts by run.
    """

    def __init__(
        self,
        options: LoraOptions,
        objective: Objective,
        context: Context,
        denoiser: Denoiser,
        adapter: Adapter,
        prompts: Prompts,
    ) -> None:
        self._options, self._objective, self._context = options, objective, context
        self.denoiser, self.adapter, self._prompts = denoiser, adapter, prompts
        self._sampler = Sampler(
            denoiser,
            steps=options.sample_steps,
            guidance=options.sample_guidance,
            window=options.time_range,
            seed=context.seed,
        )
        self._texts = {ERASE: [p.erased for p in prompts.erased], KEEP: prompts.kept}
        self._pools: dict[str, Pool] = {}
        self._state = State(adapter, options, objective.names)

    def run(self) -> None:
        """Pool, then every step that no checkpoint has."""
        options, context = self._options, self._context
        watch = Watch(options, context, self.denoiser, self.adapter, self._prompts)
        self.draw()
        path = context.work / "checkpoint.safetensors" if context.work else None
        if path is not None:
            self._state.restore(path)
        if context.team.tell(self._state.step) != self._state.step:
            raise EditError(
                "this process sees another checkpoint than process 0",
                got=f"step {self._state.step} in {path}",
                next="--output a folder on a disk that all machines share",
            )
        context.team.wait()  # nobody writes a checkpoint that another still reads
        with watch, context.bar(options.steps, "training") as bar:
            bar.update(self._state.step)
            while self._state.step < options.steps:
                means = self.step(self._state.step)
                done = self._state.step
                bar.set_postfix(
                    {name: f"{value:.4f}" for name, value in means.items()}, refresh=False
                )
                bar.update()
                due = done % options.save_every == 0 or done == options.steps
                if path is not None and due and context.team.leads:
                    self._state.save(path)
                watch.after(done, means)

    def draw(self) -> None:
        """The pool: noisy latents of every branch that the objective reads."""
        options, context = self._options, self._context
        if options.latents == "current":
            return
        branches = self._objective.branches
        total = sum(len(self._texts[branch]) for branch in branches)
        with context.bar(total, "drawing latents") as bar:
            self._pools = {
                branch: build_pool(
                    self._sampler,
                    self._texts[branch],
                    options.kept_times,
                    label=branch,
                    work=context.work,
                    team=context.team,
                    bar=bar,
                )
                for branch in branches
            }

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step on the samples of `step`; the global means of the loss parts."""
        options, team, adapter = self._options, self._context.team, self.adapter
        first = step * options.batch
        own = list(range(first + team.rank, first + options.batch, team.size))
        sums = torch.zeros(len(self._objective.names), device=self.denoiser.device)
        for piece in _pieces(own, options.accumulate):
            rows = self.rows(piece)
            teacher = self.predict(rows, self._objective.teacher, grad=False)
            with adapter.student():  # until backward is done: it may compute the forward again
                student = self.predict(rows, self._objective.student, grad=True)
                parts = self._objective.parts(teacher, student)
                share = len(piece) / options.batch
                (share * parts["loss"]).backward()
            sums += share * torch.stack([parts[name].detach() for name in self._objective.names])
        values = self._reduce(sums).tolist()
        means = dict(zip(self._objective.names, values, strict=True))
        if not all(value == value and abs(value) < float("inf") for value in values):
            raise EditError(
                f"the loss is no number at step {step + 1}",
                got=str(means),
                next="--set align.lr=1e-5, or --set align.precision=fp32",
            )
        self._state.advance(values)
        return means

    def rows(self, samples: Sequence[int]) -> Rows:
        """Latents, times and texts of some samples, by their global indices."""
        latents: dict[str, Tensor] = {}
        times: dict[str, Tensor] = {}
        runs: dict[str, list[int]] = {}
        for branch in self._objective.branches:
            make = self._pooled if self._pools else self._fresh
            latents[branch], times[branch], runs[branch] = make(branch, samples)
        wanted = dict.fromkeys((*self._objective.teacher, *self._objective.student))
        texts = {
            (branch, condition): [
                self._text(condition, run, sample)
                for run, sample in zip(runs[branch], samples, strict=True)
            ]
            for branch, condition in wanted
        }
        return Rows(latents, times, texts)

    def predict(self, rows: Rows, wanted: Sequence[Row], *, grad: bool) -> dict[Row, Tensor]:
        """All wanted rows in one batch."""
        branches = [branch for branch, _ in wanted]
        with torch.set_grad_enabled(grad):
            output = self.denoiser(
                torch.cat([rows.latents[branch] for branch in branches]),
                torch.cat([rows.times[branch] for branch in branches]),
                [text for row in wanted for text in rows.texts[row]],
            )
        return dict(zip(wanted, output.chunk(len(wanted)), strict=True))

    def result(self) -> dict[str, LowRank]:
        """The trained factors, or their running mean."""
        return self._state.factors()

    def summary(self) -> dict[str, Any]:
        """For the provenance: what was trained, and how the loss went."""
        return {"steps": self._options.steps, "rank": self._options.rank, **self._state.losses()}

    def _text(self, condition: str, run: int, sample: int) -> Encoded:
        if condition == NEIGHBOR:
            return self._prompts.neighbor(run, sample)
        if condition == KEPT:
            return self._prompts.kept[run]
        if condition == EMPTY:
            return self._prompts.empty
        prompt = self._prompts.erased[run]
        return {ERASED: prompt.erased, TARGET: prompt.target}[condition]

    def _pooled(self, branch: str, samples: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        pool = self._pools[branch]
        at = [self._pick(len(pool), branch, sample) for sample in samples]
        return pool.latents[at], pool.times[at], pool.runs[at].tolist()

    def _fresh(self, branch: str, samples: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        """Runs of the model in training, each from noise of its own to one time."""
        texts = self._texts[branch]
        runs = [self._pick(len(texts), branch, sample) for sample in samples]
        noise = [self._sampler.noise(branch, "sample", sample) for sample in samples]
        kept = [self._sampler.kept(1, branch, "sample", sample) for sample in samples]
        with self.adapter.student():
            found = self._sampler.runs(noise, [texts[run] for run in runs], kept)
        times = self._sampler.times[[row[0] for row in kept]]
        return torch.stack([row[0] for row in found]), times, runs

    def _pick(self, count: int, branch: str, sample: int) -> int:
        generator = keyed(self._context.seed, "sample", branch, sample)
        return int(torch.randint(count, (), generator=generator))

    def _reduce(self, sums: Tensor) -> Tensor:
        """Sum gradients and loss parts over the processes, in one message."""
        weights = list(self.adapter.parameters())
        for weight in weights:
            if weight.grad is None:  # no row of this step is ours
                weight.grad = torch.zeros_like(weight)
        if self._context.team.size == 1:
            return sums
        flat = torch.cat(
            [sums, *(weight.grad.flatten() for weight in weights if weight.grad is not None)]
        )
        flat = self._context.team.sum(flat)
        at = len(sums)
        for weight in weights:
            weight.grad = flat[at : at + weight.numel()].view_as(weight).clone()
            at += weight.numel()
        return flat[: len(sums)]


def _pieces(samples: Sequence[int], count: int) -> list[Sequence[int]]:
    """`samples` in `count` runs of nearly equal length, without empty ones."""
    cuts = [at * len(samples) // count for at in range(count + 1)]
    return [samples[a:b] for a, b in pairwise(cuts) if b > a]


def _joined(
    start: WeightEdit, trained: dict[str, LowRank], component: str, summary: dict[str, Any]
) -> WeightEdit:
    """Both changes as one: factors side by side, rank reduced."""
    lora = {f"{component}.{path}": pair for path, pair in trained.items()}
    whole = start + WeightEdit(lora, exact_rank=max(pair.rank for pair in lora.values()))
    return replace(whole, provenance={"align": summary})
