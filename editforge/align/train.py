"""The one training loop: part of a frozen denoiser, whatever the objective, however many processes.

A step is a turn: of the model, which lowers its loss, or of the mixture of targets that it plays against
(`objective.Turn`). It works on `batch` samples with the global indices step * batch + i. Everything
random about a sample is keyed by its index, and processes share the indices of a step among them: their
number changes the order of a sum and nothing else. The same holds for a resumed run.

Gradients are not left to DistributedDataParallel: they are a few megabytes, go into one sum together
with the losses, and a process without a row of the batch adds zeros. The denoiser stays the caller's
own module, in no wrapper. accelerate launches the processes, sums, and tracks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from editforge.align.adapter import Adapter, Change, linear_paths
from editforge.align.denoiser import Denoiser, Encoded
from editforge.align.mixture import Mixture
from editforge.align.objective import MIXTURE, Objective, Row, Turn
from editforge.align.options import LoraOptions
from editforge.align.prompts import ErasedPrompt, Prompts
from editforge.align.rows import Gatherer, Rows
from editforge.align.state import Player, State
from editforge.align.swapped import Swapped, part_of
from editforge.align.trajectory import Trajectory
from editforge.align.watch import Watch
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditError
from editforge.recipe.contract import AlignInputs, Context


@dataclass(frozen=True)
class Opponent:
    """The mixture that a model plays against.

    Args:
        mixture: of candidate targets.
        lr: of its logits.
        quiet_from: share of the training from which its draws have no noise; None: noise to the end.
        lead_runs: sampling runs of a candidate that comes to lead.
    """

    mixture: Mixture
    lr: float
    quiet_from: float | None
    lead_runs: int


def train(
    inputs: AlignInputs,
    options: LoraOptions,
    objective: Objective,
    context: Context,
    *,
    concept_share: float = 1.0,
    told: Mapping[str, Callable[[ErasedPrompt, Encoded], Encoded]] | None = None,
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
        told: texts of conditions that are the method's own; see `Gatherer`.

    Raises:
        RecipeError: modules that are not there, a precision the model has not; EditError: the loss
            is no number; ProcessLost: another process ended.
    """
    refuse_dense(inputs.edit)
    with training(inputs, options, objective, context, concept_share) as loop:
        loop.gather.told = told or {}
        if options.steps == 0:
            return inputs.edit
        loop.run()
        return loop.on(inputs.edit)


def refuse_dense(edit: WeightEdit) -> None:
    """Nothing can be trained on dense deltas."""
    if edit.dense:
        raise EditError("a LoRA cannot lie on an edit with dense deltas", got=min(edit.dense))


@contextmanager
def training(
    inputs: AlignInputs,
    options: LoraOptions,
    objective: Objective,
    context: Context,
    concept_share: float,
) -> Iterator[Loop]:
    """A loop of the model alone."""
    with prepared(inputs, options, context, concept_share) as (denoiser, trained, prompts):
        yield Loop(options, (Turn(objective),), context, denoiser, trained, prompts)


@contextmanager
def prepared(
    inputs: AlignInputs,
    options: LoraOptions,
    context: Context,
    concept_share: float = 1.0,
    templates: Sequence[str] | None = None,
) -> Iterator[tuple[Denoiser, Adapter | Swapped, Prompts]]:
    """What a loop needs, on the model's own pipeline, which is put back as it was."""
    pipe = context.model.pipeline()
    denoiser = Denoiser(pipe, options.size, options.precision)
    component = f"{context.model.family.denoiser}."
    frozen = {
        path.removeprefix(component): LowRank(inputs.edit.strength * pair.B, pair.A)
        for path, pair in inputs.edit.factors.items()
    }
    trained: Adapter | Swapped
    if options.train == "lora":
        paths = linear_paths(denoiser.module, options.modules)
        trained = Adapter(
            denoiser.module, paths, options.rank, frozen, seed=context.seed, device=denoiser.device
        )
    else:
        names = part_of(denoiser.module, options.train)
        trained = Swapped(denoiser.module, names, frozen, options.rank, device=denoiser.device)
    try:
        with denoiser.frozen(checkpointing=options.checkpointing):
            yield (
                denoiser,
                trained,
                Prompts(inputs, options, denoiser, context, concept_share, templates),
            )
    finally:
        trained.remove()


class Loop:
    """Steps over keyed samples, with checkpoints.

    Args:
        options: of the method.
        turns: whose step it is, in turn.
        context: seed, processes, progress, folders.
        denoiser: frozen.
        adapter: what is trained, hooked into it.
        prompts: texts by run.
        against: the mixture, where one of the turns is its own.
    """

    def __init__(
        self,
        options: LoraOptions,
        turns: Sequence[Turn],
        context: Context,
        denoiser: Denoiser,
        adapter: Adapter | Swapped,
        prompts: Prompts,
        against: Opponent | None = None,
    ) -> None:
        self._options, self._turns, self._context = options, tuple(turns), context
        self.denoiser, self.adapter, self._prompts = denoiser, adapter, prompts
        self.steps = options.steps * len(turns)
        self.mixture = against.mixture if against else None
        others = {}
        if against is not None:
            others[MIXTURE] = Player(dict(against.mixture.named_parameters()), against.lr)
        self.gather = Gatherer(options, context, denoiser, adapter, prompts, self.mixture)
        if against is not None:
            self.gather.lead_runs = against.lead_runs
            self.gather.noise = lambda step: _noise(step / self.steps, against.quiet_from)
        self._names = turns[0].objective.names
        self.state = State(
            dict(adapter.named_parameters()),
            options,
            self._names,
            others,
            [turn.player for turn in turns],
        )
        self.trajectory = Trajectory(self.mixture) if self.mixture is not None else None

    def run(self) -> None:
        """Pool, then every step that no checkpoint has."""
        options, context, state = self._options, self._context, self.state
        watch = Watch(options, context, self.denoiser, self.adapter, self._prompts)
        self.draw()
        path = context.work / "checkpoint.safetensors" if context.work else None
        if path is not None:
            more = state.restore(path)
            if self.trajectory is not None:
                self.trajectory.restore(more)
        if context.team.tell(state.step) != state.step:
            raise EditError(
                "this process sees another checkpoint than process 0",
                got=f"step {state.step} in {path}",
                next="--output a folder on a disk that all machines share",
            )
        context.team.wait()  # nobody writes a checkpoint that another still reads
        with watch, context.bar(self.steps, "training") as bar:
            bar.update(state.step)
            while state.step < self.steps:
                means = self.step(state.step)
                done = state.step
                bar.set_postfix(
                    {name: f"{value:.4f}" for name, value in means.items()}, refresh=False
                )
                bar.update()
                due = done % options.save_every == 0 or done == self.steps
                if path is not None and due and context.team.leads:
                    state.save(path, self.trajectory.tensors() if self.trajectory else None)
                watch.after(done, means)
        learned = self.trajectory is not None and any(t.player == MIXTURE for t in self._turns)
        if learned and context.log is not None and context.team.leads:
            assert self.trajectory is not None
            self.trajectory.save(context.log / "align", context.say)

    def draw(self) -> None:
        """The pool: noisy latents of every branch that an objective reads."""
        branches = [branch for turn in self._turns for branch in turn.objective.branches]
        self.gather.draw(list(dict.fromkeys(branches)))

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step on the samples of `step`; the global means of the loss parts."""
        options, team, adapter = self._options, self._context.team, self.adapter
        turn = self._turns[step % len(self._turns)]
        self.state.begin()
        self.gather.lead()
        first = step * options.batch
        own = list(range(first + team.rank, first + options.batch, team.size))
        sums = torch.zeros(len(self._names), device=self.denoiser.device)
        for piece in _pieces(own, options.accumulate):
            rows = self.rows(piece, turn)
            with self.denoiser.keeping():
                teacher = self.predict(rows, turn.objective.teacher, turn, grad=bool(turn.teacher))
            with adapter.student():  # until backward is done: it may compute the forward again
                student = self.predict(rows, turn.objective.student, turn, grad=True)
                parts = turn.objective.parts(teacher, student)
                share = len(piece) / options.batch
                (share * (-parts["loss"] if turn.ascends else parts["loss"])).backward()
            sums += share * torch.stack([parts[name].detach() for name in self._names])
        values = self._reduce(sums, turn.player).tolist()
        means = dict(zip(self._names, values, strict=True))
        if not all(value == value and abs(value) < float("inf") for value in values):
            raise EditError(
                f"the loss is no number at step {step + 1}",
                got=str(means),
                next="--set align.lr=1e-5, or --set align.precision=fp32",
            )
        self.state.advance(values)
        if self.trajectory is not None and turn.player == MIXTURE:
            self.trajectory.note()
        return means

    def rows(self, samples: Sequence[int], turn: Turn | None = None) -> Rows:
        """Latents, times and texts of some samples, by their global indices."""
        return self.gather.rows(samples, (turn or self._turns[0]).objective)

    def predict(
        self, rows: Rows, wanted: Sequence[Row], turn: Turn | None = None, *, grad: bool
    ) -> dict[Row, Tensor]:
        """All wanted rows in one batch; texts let a gradient through where the turn says so."""
        turn = turn or self._turns[0]
        through = turn.student if grad and wanted is turn.objective.student else turn.teacher
        branches = [branch for branch, _ in wanted]
        texts = [
            text if row in through else _closed(text) for row in wanted for text in rows.texts[row]
        ]
        times = torch.cat([rows.times[branch] for branch in branches])
        with torch.set_grad_enabled(grad):
            output = self.denoiser(
                torch.cat([rows.latents[branch] for branch in branches]), times, texts
            )
            if (scale := turn.objective.scale) is not None:
                output = output * scale(times).to(output)[:, None, None, None]
        return dict(zip(wanted, output.chunk(len(wanted)), strict=True))

    def on(self, start: WeightEdit) -> WeightEdit:
        """The edit that training started from, and what it changed."""
        change = self.adapter.change(self.state.values())
        summary = {
            "steps": self._options.steps,
            **({"rank": self._options.rank} if self._options.train == "lora" else {}),
            **self.state.losses(),
            **change.facts,
        }
        return _joined(start, change, self._context.model.family.denoiser, summary)

    def _reduce(self, sums: Tensor, player: str) -> Tensor:
        """Sum gradients and loss parts over the processes, in one message."""
        weights = list(self.state.players[player].weights.values())
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


def _closed(text: Encoded) -> Encoded:
    """The same text, through which no gradient goes."""
    if not text.states.requires_grad:
        return text
    return Encoded(text.states.detach(), None if text.pooled is None else text.pooled.detach())


def _noise(progress: float, quiet_from: float | None) -> float:
    """How much of the Gumbel noise is left: falls to 0 at `quiet_from` of the training."""
    return 1.0 if quiet_from is None else max(0.0, 1.0 - progress / quiet_from)


def _pieces(samples: Sequence[int], count: int) -> list[Sequence[int]]:
    """`samples` in `count` runs of nearly equal length, without empty ones."""
    cuts = [at * len(samples) // count for at in range(count + 1)]
    return [samples[a:b] for a, b in pairwise(cuts) if b > a]


def _joined(
    start: WeightEdit, change: Change, component: str, summary: dict[str, Any]
) -> WeightEdit:
    """Both changes as one: factors side by side, rank reduced; or the change that holds both."""
    factors = {f"{component}.{path}": pair for path, pair in change.factors.items()}
    dense = {f"{component}.{name}": delta for name, delta in change.dense.items()}
    if change.whole:
        return WeightEdit(factors, dense, 1.0, None, {"align": summary})
    lora = WeightEdit(factors, exact_rank=max(pair.rank for pair in factors.values()))
    return replace(start + lora, provenance={"align": summary})
