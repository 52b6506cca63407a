"""EditForge: erase a concept from a text-to-image diffusion model, prove it, ship it.

    edit = editforge.erase(pipe, ["violin"])      # WeightEdit('violin' -> ...); pipe is untouched
    edit.apply(pipe); edit.remove(pipe)           # exact undo
    edit.save_lora("out/")                        # pipe.load_lora_weights("out/")

    guard = editforge.PrototypeGuard.from_pretrained("bank/")   # steers, changes no weight
    guard.attach(pipe); guard.detach(pipe)

Importing this package imports nothing heavy and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from editforge.ground.version import __version__ as __version__

if TYPE_CHECKING:
    from editforge.artifacts.weight_edit import WeightEdit as WeightEdit
    from editforge.guards.prototype import PrototypeGuard as PrototypeGuard
    from editforge.run.load import load_edit as load_edit
    from editforge.run.memory import erase as erase

__all__ = ["PrototypeGuard", "WeightEdit", "erase", "load_edit"]

_HOME = {
    "erase": "editforge.run.memory",
    "load_edit": "editforge.run.load",
    "WeightEdit": "editforge.artifacts.weight_edit",
    "PrototypeGuard": "editforge.guards.prototype",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
