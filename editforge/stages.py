"""What a method of your own is given and gives back: `recipe.contract` and `recipe.export`."""

from editforge.recipe.contract import (
    AlignInputs,
    Context,
    EditInputs,
    EditOutput,
    GuideInputs,
    MineInputs,
    StageConfig,
    TargetInputs,
)
from editforge.recipe.export import Exporter, Written

__all__ = [
    "AlignInputs",
    "Context",
    "EditInputs",
    "EditOutput",
    "Exporter",
    "GuideInputs",
    "MineInputs",
    "StageConfig",
    "TargetInputs",
    "Written",
]
