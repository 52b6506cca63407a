"""Which edits lie on a pipeline's denoiser, and the original bits below them: undo is exact.

Originals are kept while an edit is on, once per denoiser however many edits lie on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editforge.artifacts.low_rank import Change
from editforge.families.editable import check_acts, uncompiled
from editforge.families.identity import beneath
from editforge.ground.errors import EditError


@dataclass
class _Original:
    """Where a weight is, and its bits without any edit."""

    path: str
    parameter: nn.Parameter
    bits: Tensor


@dataclass
class Ledger:
    """Which edits lie on one denoiser, and the bits below them."""

    originals: dict[str, _Original] = field(default_factory=dict)
    edits: list[Change] = field(default_factory=list)

    def add(
        self, edit: Change, pipe: Any, places: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        """Put an edit on; nothing is changed if it does not fit.

        Args:
            edit: what is added.
            pipe: whose denoiser this ledger keeps.
            places: name in the edit to the parameter's path and shape.
        """
        parameters = {name: parameter_of(pipe, path) for name, (path, _) in places.items()}
        for name, parameter in parameters.items():
            want = places[name][1]
            if tuple(parameter.shape) != tuple(want):
                got = f"{tuple(want)} for a weight of {tuple(parameter.shape)}"
                raise EditError(f"the edit does not fit {name}", got=got, next="use its own base")
        self.find(pipe)
        for name, parameter in parameters.items():
            original = _Original(places[name][0], parameter, parameter.detach().clone())
            self.originals.setdefault(name, original)
        self.edits.append(edit)
        beneath[_denoiser(pipe)] = {one.path: one.bits for one in self.originals.values()}
        self.write()

    def take_off(self, edit: Change, pipe: Any) -> None:
        """Take this very edit off again.

        Raises:
            EditError: it is not on, or the pipeline computes with other weights than it shows.
        """
        for position, one in enumerate(self.edits):
            if one is edit:
                self.find(pipe)
                del self.edits[position]
                self.write()
                if not self.edits:
                    beneath.pop(_denoiser(pipe), None)
                return
        raise EditError("this edit is not applied to this pipeline")

    def find(self, pipe: Any) -> None:
        """Make sure that what `write` writes to is what the denoiser computes with, or refuse.

        A weight keeps its identity through casts and moves, and below an adapter, where its name
        changes. Hooks that come and go leave another one under the same name.
        """
        there = {id(parameter) for parameter in _denoiser(pipe).parameters()}
        for known in self.originals.values():
            if id(known.parameter) in there:
                check_acts(_denoiser(pipe), known.path.partition(".")[2], known.parameter)
            else:
                known.parameter = parameter_of(pipe, known.path)

    def write(self) -> None:
        """Give every edited weight the sum of all edits; without one, its original bits."""
        with torch.no_grad():
            for name, known in self.originals.items():
                known.parameter.copy_(stacked(name, known.bits, self.edits))
        if not self.edits:
            self.originals.clear()


def stacked(name: str, original: Tensor, edits: Sequence[Change]) -> Tensor:
    """The original plus all edits in float64, rounded once; the original itself if none acts."""
    acting = [edit for edit in edits if edit.strength != 0 and name in {*edit.factors, *edit.dense}]
    if not acting:
        return original
    total = original.double()
    for edit in acting:
        total = total + edit.delta(name).to(total.device)
    return total.to(original.dtype)


_ledgers: WeakKeyDictionary[nn.Module, Ledger] = WeakKeyDictionary()


def _denoiser(pipe: Any) -> nn.Module:
    for name in ("unet", "transformer"):
        module: nn.Module | None = uncompiled(getattr(pipe, name, None))
        if module is not None:
            return module
    raise EditError("this object has no denoiser", got=type(pipe).__name__)


def ledger_of(pipe: Any) -> Ledger:
    """The one ledger of a pipeline's denoiser, for as long as that lives."""
    return _ledgers.setdefault(_denoiser(pipe), Ledger())


def parameter_of(pipe: Any, name: str) -> nn.Parameter:
    """A weight of the pipeline by its path, component first.

    Raises:
        EditError: it has none of that name, or does not compute with what it shows.
    """
    component, _, path = name.partition(".")
    try:
        root = uncompiled(getattr(pipe, component))
        parameter: nn.Parameter = root.get_parameter(path)
    except AttributeError:
        raise EditError(
            f"the pipeline has no parameter {name}",
            got=type(pipe).__name__,
            next="unload LoRA adapters first (they rename modules), load the pipeline without "
            "quantization, or use the edit's own base",
        ) from None
    check_acts(root, path, parameter)
    return parameter
