"""The one hook: a denoiser that answers with steered predictions where a rule asks for it.

It sits on the denoiser through diffusers' `HookRegistry`. The stock call is made first, with the batch
as it came, so samples that no rule acts on keep their bits, alone and beside others. What rules ask
for is a second call with the samples concerned alone. A steered sample gets g in both halves of the
batch, so the pipeline's own g + alpha (g - g) leaves it.

A step costs the denoiser its stock batch, and one row more for each question of each sample. A compiled
denoiser runs uncompiled while the hook is on: what rules ask of a pipeline cannot be traced.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from editforge.families.editable import uncompiled
from editforge.ground.errors import EditError
from editforge.guards.push import rescaled
from editforge.guards.words import Added, Ask, Moment, Reading, Rule, Speaks, Texts

NAME = "editforge_guards"


class Steering(ModelHook):
    """Rules of one pipeline, acting on its denoiser.

    Args:
        pipe: whose guidance scale, scheduler and empty prompt count.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe, self.rules = pipe, list[tuple[Any, Rule]]()
        self._speaks = Speaks(pipe)
        self._read: tuple[Tensor, Tensor | None, list[Reading]] | None = None
        self._began: tuple[Tensor | None, int] = (None, 0)

    @torch.compiler.disable
    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's forward: stock, or with g in the rows that are steered."""
        forward: Any = self.fn_ref.original_forward
        if _drawing() not in (None, self.pipe):
            return forward(*args, **kwargs)
        call = _Call(forward, _named(module, args, kwargs), self._guided())
        moment = self._moment(call)
        given = call.prompts
        if moment.step == 0 or self._read is None or self._read[0] is not call.states:
            self._read = (call.states, call.pooled, [rule.read(given) for _, rule in self.rules])
        readings = self._read[2]
        prompts, empty = given, call.empty
        for reading in readings:
            prompts = reading.conditions(prompts)
            empty = empty and reading.instead_of_empty(empty)
        if prompts is not given or empty is not call.empty:
            call = call.saying(prompts, empty)
        stock = call.predict()
        nothing = empty or self._speaks("").repeated(call.count)
        asked = [list(reading.asks(moment, nothing)) for reading in readings]
        flat = [ask for asks in asked for ask in asks]
        if not any(len(ask.rows) for ask in flat):
            return call.answer(stock)
        idle, drawn, told = self._predictions(call, stock, flat, nothing)
        plain = idle + moment.alpha * (drawn - idle)
        added: list[Added] = []
        for reading, asks in zip(readings, asked, strict=True):
            own, told = told[: len(asks)], told[len(asks) :]
            added += reading.adds(moment, plain, idle, drawn, own) if asks else ()
        return call.answer(call.with_rows(stock, *_steered(plain, added)))

    def _predictions(
        self, call: _Call, stock: Tensor, asks: Sequence[Ask], empty: Texts
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Without and with prompt of all samples, and the answers; one call for all that is missing."""
        rows = [ask.rows for ask in asks]
        texts = [ask.texts for ask in asks]
        acted = torch.cat(rows).unique()
        if not call.guided:  # its pipeline asks for no prediction without a prompt
            rows, texts = [acted, *rows], [empty.at(acted), *texts]
        extra = list(call.ask(torch.cat(rows), texts).split([len(row) for row in rows]))
        if call.guided:
            idle, drawn = stock.chunk(2)
            return idle, drawn, extra
        idle = stock.clone()
        idle[acted] = extra[0]
        return idle, stock, extra[1:]

    def _guided(self) -> bool:
        own = getattr(self.pipe, "do_classifier_free_guidance", None)
        return bool(self._alpha() > 1 if own is None else own)

    def _alpha(self) -> float:
        return float(getattr(self.pipe, "_guidance_scale", None) or 1.0)

    def _moment(self, call: _Call) -> Moment:
        """Steps are counted among those that are run: image to image begins in the middle.

        A scheduler makes its times anew for each picture, so new ones are a picture's first step.
        """
        times = self.pipe.scheduler.timesteps
        now = torch.as_tensor(call.timestep, device=times.device, dtype=torch.float64).reshape(-1)
        at = int((times.double() - now[0]).abs().argmin())
        run = int(getattr(self.pipe, "_num_timesteps", 0) or len(times))
        if times is not self._began[0]:
            self._began = (times, at)
        alpha = self._alpha() if call.guided else 1.0
        return Moment(max(at - self._began[1], 0), min(run, len(times)), alpha)


class _Call:
    """One call of the denoiser: [without prompt; with prompt], or prompts alone."""

    def __init__(self, forward: Any, kwargs: Mapping[str, Any], guided: bool) -> None:
        self.forward, self.guided = forward, guided
        self.kwargs = dict(kwargs)
        self._dict = bool(self.kwargs.pop("return_dict", True))
        self.count = len(self.kwargs["sample"]) // (2 if guided else 1)

    @property
    def timestep(self) -> Any:
        return self.kwargs["timestep"]

    @property
    def states(self) -> Tensor:
        found: Tensor = self.kwargs["encoder_hidden_states"]
        return found

    @property
    def pooled(self) -> Tensor | None:
        return (self.kwargs.get("added_cond_kwargs") or {}).get("text_embeds")

    @property
    def prompts(self) -> Texts:
        return self._half(len(self.states) - self.count)

    @property
    def empty(self) -> Texts | None:
        """What stands in place of a prompt: nothing, or the user's negative prompt."""
        return self._half(0) if self.guided else None

    def _half(self, start: int) -> Texts:
        part = slice(start, start + self.count)
        return Texts(self.states[part], None if self.pooled is None else self.pooled[part])

    def saying(self, prompts: Texts, empty: Texts | None) -> _Call:
        """The same call with other texts."""
        halves = [*([empty] if empty else []), prompts]
        kwargs = _with_texts(self.kwargs, halves)
        return _Call(self.forward, {**kwargs, "return_dict": self._dict}, self.guided)

    def predict(self) -> Tensor:
        """The stock call."""
        found: Tensor = self.forward(**self.kwargs, return_dict=False)[0]
        return found

    def ask(self, rows: Tensor, texts: Sequence[Texts]) -> Tensor:
        """Predictions for some samples with other texts, everything else as they have it."""
        kwargs = {key: _at(value, rows, len(self.states)) for key, value in self.kwargs.items()}
        found: Tensor = self.forward(**_with_texts(kwargs, texts), return_dict=False)[0]
        return found

    def with_rows(self, stock: Tensor, rows: Tensor, value: Tensor) -> Tensor:
        """The batch with g in both halves of steered samples; every other row keeps its bits."""
        result = stock.clone()
        for start in (0, self.count) if self.guided else (0,):
            result[start + rows] = value.to(result)
        return result

    def answer(self, prediction: Tensor) -> Any:
        if not self._dict:
            return (prediction,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=prediction)


def _steered(plain: Tensor, added: Sequence[Added]) -> tuple[Tensor, Tensor]:
    """(rows, g): the sum of all that is added, rescaled by the largest phi of each sample.

    g <- phi g std(plain) / std(g) + (1 - phi) g, deviations over all but the batch axis.
    """
    g, phi = plain.float(), torch.zeros(len(plain), device=plain.device)
    rows = torch.cat([part.rows for part in added]).unique() if added else torch.zeros(0).long()
    for part in added:
        g = g.index_add(0, part.rows, part.value.float())
        phi[part.rows] = phi[part.rows].clamp(min=part.rescale)
    g, before = g[rows], plain[rows].float()
    if bool((phi > 0).any()):
        share = phi[rows].reshape(-1, *[1] * (g.ndim - 1))
        g = torch.where(share > 0, rescaled(g, before, share), g)
    return rows, g


def _named(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a denoiser by its name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _drawing() -> Any:
    """The pipeline that calls, the nearest on the stack; None: a loop of the user's own.

    Pipelines that share a UNet share its scheduler too, so nothing that the UNet is given tells them
    apart, and the guidance scale of one would be taken for that of the other.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            own = frame.f_locals.get("self")
            if isinstance(own, DiffusionPipeline):
                return own
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _with_texts(kwargs: Mapping[str, Any], texts: Sequence[Texts]) -> dict[str, Any]:
    like = kwargs["encoder_hidden_states"]
    changed = {**kwargs, "encoder_hidden_states": torch.cat([t.states.to(like) for t in texts])}
    pooled = [t.pooled for t in texts if t.pooled is not None]
    if pooled:
        own = dict(kwargs["added_cond_kwargs"])
        own["text_embeds"] = torch.cat([part.to(own["text_embeds"]) for part in pooled])
        changed["added_cond_kwargs"] = own
    return changed


def _at(value: Any, rows: Tensor, batch: int) -> Any:
    """Rows of everything that has one for each of the batch: added conditions, ControlNet residuals.

    `rows` count samples; the first half of a guided batch is the one without prompts.
    """
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: _at(inner, rows, batch) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_at(inner, rows, batch) for inner in value)
    return value


def attach(guard: Any, pipe: Any) -> None:
    """Put a guard's rule on a pipeline; see `Guard.attach`."""
    denoiser = _denoiser(pipe)
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    hook: Any = registry.get_hook(NAME)
    if hook is not None and hook.pipe is not pipe:
        raise EditError(
            "a guard of another pipeline sits on this UNet",
            got=f"{type(pipe).__name__} shares it with a {type(hook.pipe).__name__}",
            next="guard.detach(the other pipeline) first",
        )
    if hook is not None and any(known is guard for known, _ in hook.rules):
        raise EditError("this guard is attached already", got=type(guard).__name__)
    _check_branches(pipe)
    rule = guard.rule(pipe)
    if hook is None:
        hook = Steering(pipe)
        with _beneath_offloading(denoiser):
            registry.register_hook(hook, NAME)
    hook.rules.append((guard, rule))
    hook._read = None


def detach(guard: Any, pipe: Any) -> None:
    """Take a guard's rule off again; the last one takes the hook with it."""
    denoiser = _denoiser(pipe)
    registry: Any = getattr(denoiser, "_diffusers_hook", None)
    hook: Any = registry and registry.get_hook(NAME)
    kept = [pair for pair in hook.rules if pair[0] is not guard] if hook else []
    if not hook or hook.pipe is not pipe or len(kept) == len(hook.rules):
        raise EditError("this guard is not on the pipeline", got=type(guard).__name__)
    hook.rules[:], hook._read = kept, None
    if not kept:
        with _beneath_offloading(denoiser):
            registry.remove_hook(NAME)


@contextmanager
def _beneath_offloading(denoiser: Any) -> Iterator[None]:
    """The denoiser's forward without accelerate's around it, which is put back around what is made.

    With `enable_model_cpu_offload` a pipeline takes accelerate's hooks off after each picture and puts
    them on again. What lies outside of them would be lost there, and with it the guard.
    """
    outer = vars(denoiser).get("forward") if hasattr(denoiser, "_old_forward") else None
    if outer is None:
        yield
        return
    denoiser.forward = denoiser._old_forward
    try:
        yield
    finally:
        denoiser._old_forward, denoiser.forward = denoiser.forward, outer


def _check_branches(pipe: Any) -> None:
    """Refuse pipelines of which a batch is more than the two halves that a guard reads."""
    known = ("do_perturbed_attention_guidance", "image_guidance_scale")
    if any(hasattr(type(pipe), name) for name in known):
        raise EditError(
            "this pipeline asks for predictions other than with and without the prompt",
            got=type(pipe).__name__,
            allowed="pipelines of classifier-free guidance: text to image, image to image, "
            "inpainting, ControlNet",
        )


def _denoiser(pipe: Any) -> Any:
    denoiser = uncompiled(getattr(pipe, "unet", None))
    if denoiser is None:
        raise EditError(
            "a guard needs a pipeline with a UNet",
            got=type(pipe).__name__,
            allowed="Stable Diffusion 1.x, 2.x, XL and the embedded model",
        )
    return denoiser
