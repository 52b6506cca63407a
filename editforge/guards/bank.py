"""What a prototype bank says of itself, and what of it is believed: the header of `bank.safetensors`.

A bank comes from others. Every number that steers is checked before a tensor is read: a negative beta
would draw the concept instead of erasing it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from editforge.families.identity import Identity
from editforge.ground.errors import PackageError

FORMAT = "editforge.bank/1"
_MOST = 4096  # prototypes; a bank of the paper has 16


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Guidance(_Data):
    """How a triggered prompt is steered (methods.md 4.4, arXiv 2603.08271).

    Args:
        beta: pull away from the prototype. Higher: surer, and less of a picture.
        mask: differences of predictions up to this are left out.
        rescale: phi, the share that is brought back to the deviation of plain guidance.
        window: share of the steps, from the first on, in which the prototype is asked.
        blend: share of the prompt's states that become those of the target; 0: the paper's, the
            prompt keeps its own.
    """

    beta: float = Field(ge=0)
    mask: float = Field(0.005, ge=0)
    rescale: float = Field(0.5, ge=0, le=1)
    window: float = Field(0.6, ge=0, le=1)
    blend: float = Field(0.0, ge=0, le=1)


class Guarded(_Data):
    """One concept of a bank: its name, from which score on it acts, what is drawn instead.

    Args:
        name: what was erased.
        threshold: of the score; see `guards.gate`.
        instead: the target's text; None: nothing, the prototype alone steers.
        benign_rate: share of held-out harmless prompts that trigger it; None: not measured.
        miss_rate: share of held-out prompts with the concept that do not.
        benign: how many harmless prompts that share is of.
        missed: how many prompts with the concept that share is of.
    """

    name: str = Field(min_length=1, max_length=200)
    threshold: float = Field(gt=0)
    instead: str | None = Field(None, max_length=1000)
    benign_rate: float | None = Field(None, ge=0, le=1)
    miss_rate: float | None = Field(None, ge=0, le=1)
    benign: int = Field(0, ge=0)
    missed: int = Field(0, ge=0)

    @property
    def said(self) -> str:
        """Threshold and both rates in words."""

        def share(value: float | None, count: int) -> str:
            return "not measured" if value is None else f"{value:.1%} of {count}"

        return (
            f"threshold {self.threshold:.3f}; harmless held-out prompts that trigger: "
            f"{share(self.benign_rate, self.benign)}; prompts with it that do not: "
            f"{share(self.miss_rate, self.missed)}"
        )


class Facts(_Data):
    """The header of a bank.

    Args:
        format: of the file.
        concepts: in the order that the tensor `concept` counts them.
        guidance: of all concepts.
        form: `token`, one state at one position; `prompt`, whole prompts.
        family: whose pipelines it is for.
        encoder_sha256: of the pipeline's text encoders, values rounded to float16.
        encoder_sketch: of the same; see `families.identity`.
        prediction_type: of the base that it was tuned on.
        alpha: guidance scale that beta was tuned at.
        selector_model: the CLIP whose picture tower found the clusters: its sha256.
    """

    format: Literal["editforge.bank/1"] = "editforge.bank/1"
    concepts: tuple[Guarded, ...] = Field(min_length=1, max_length=_MOST)
    guidance: Guidance
    form: Literal["token", "prompt"] = "token"
    family: str = Field(max_length=200)
    encoder_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    encoder_sketch: dict[str, Any] = Field(min_length=2)
    prediction_type: str = Field("epsilon", max_length=40)
    alpha: float = Field(gt=0)
    selector_model: str = Field("", max_length=200)

    @property
    def encoder(self) -> Identity:
        """Of the text encoders; a sketch that no run writes is refused here."""
        told = {"base_sha256": self.encoder_sha256, "base_sketch": self.encoder_sketch}
        return Identity.recorded(told)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [concept.name for concept in self.concepts]
        if len(set(names)) != len(names):
            raise ValueError("a concept is there twice")
        return self


def read_facts(text: str, file: str) -> Facts:
    """The facts of a header.

    Raises:
        PackageError: not JSON, another format, an unknown key, a number out of range, NaN.
    """
    try:
        facts = Facts.model_validate(json.loads(text))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "header"
        raise PackageError(
            f"{file} is no bank that this version reads",
            got=f"{where}: {str(fault.get('input'))[:80]!r}",
            allowed=fault["msg"],
            next="take another copy of it, or build it again: editforge guard build",
        ) from None
    except (ValueError, RecursionError):
        raise PackageError(f"the header of {file} is not JSON") from None
    _ = facts.encoder
    return facts


def check_shapes(tensors: Mapping[str, Tensor], facts: Facts, file: str) -> None:
    """Refuse tensors that do not belong together.

    `token` (K, d), `position` (K,), `selector` (K, d), `center` (d,), `concept` (K,); of the form
    `prompt` `prompt_embeds` (K, q, d) instead of `token` and `position`, and perhaps
    `pooled_prompt_embeds` (K, p). Listed names have selectors of their own, `name_selector` (M, d),
    each with the prototype that it stands for, `name_prototype` (M,).

    Raises:
        PackageError: which tensor, and what it should be.
    """
    selector = tensors.get("selector")
    if selector is None or selector.ndim != 2 or not 0 < len(selector) <= _MOST:
        raise _wrong(file, "selector", selector, f"1 to {_MOST} prototypes, (K, d)")
    K, d = selector.shape
    wanted: dict[str, tuple[int | None, ...]] = {
        "selector": (K, d),
        "center": (d,),
        "concept": (K,),
    }
    if facts.form == "token":
        wanted |= {"token": (K, d), "position": (K,)}
    else:
        wanted |= {"prompt_embeds": (K, None, d)}
    optional: dict[str, tuple[int | None, ...]] = {"pooled_prompt_embeds": (K, None)}
    if "name_selector" in tensors or "name_prototype" in tensors:
        names = tensors.get("name_selector", selector[:0])
        if names.ndim != 2:
            raise _wrong(file, "name_selector", names, f"(M, {d})")
        M = len(names)
        wanted |= {"name_selector": (M, d), "name_prototype": (M,)}
    unknown = set(tensors) - set(wanted) - set(optional)
    if unknown:
        raise PackageError(f"{file} holds a tensor that no bank has", got=sorted(unknown)[0])
    for name, shape in {**wanted, **{n: optional[n] for n in optional if n in tensors}}.items():
        tensor = tensors.get(name)
        fits = tensor is not None and len(shape) == tensor.ndim
        if not fits or any(w not in (None, g) for w, g in zip(shape, tensor.shape, strict=True)):  # type: ignore[union-attr]
            raise _wrong(file, name, tensor, str(shape))
    concept = tensors["concept"].long()
    if int(concept.min()) < 0 or int(concept.max()) >= len(facts.concepts):
        raise PackageError(f"{file} has prototypes of a concept that it does not name")
    if set(concept.tolist()) != set(range(len(facts.concepts))):
        raise PackageError(f"{file} names a concept without a prototype: it would never act")
    of = tensors.get("name_prototype", concept[:0]).long()
    if len(of) > _MOST or (len(of) and not 0 <= int(of.min()) <= int(of.max()) < K):
        raise PackageError(f"{file} has a name of a prototype that it does not hold")
    if facts.form == "token" and int(tensors["position"].min()) < 1:
        raise PackageError(
            f"{file} puts a token where every prompt begins", got=int(tensors["position"].min())
        )


def _wrong(file: str, name: str, tensor: Tensor | None, allowed: str) -> PackageError:
    got = "no such tensor" if tensor is None else tuple(tensor.shape)
    return PackageError(f"{file}: {name} has the wrong shape", got=got, allowed=allowed)
