"""A shipped artifact as its user loads it: what the gate draws with when it judges a package."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editforge.families.model import Model
from editforge.package.exports import exporter


@dataclass(frozen=True)
class Shipped:
    """Fulfils `artifacts.eraser.Acting`; the base's pipeline is left alone.

    Args:
        form: the name of an export.
        place: the LoRA or checkpoint file, or the folder.
        model: its base.
        strength: what was baked in; only hints need it.
    """

    form: str
    place: Path
    model: Model
    strength: float = 1.0

    def applied(self, pipe: Any) -> AbstractContextManager[Any]:
        """The pipeline that erases, in the precision and on the device of `pipe`.

        Raises:
            PackageError: its loader does not take the artifact.
        """
        return exporter(self.form).applied(self.model, self.place, pipe)
