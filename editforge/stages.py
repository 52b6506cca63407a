"""What a method of your own is given and gives back, see docs/extending.md: `recipe.contract`."""

from editforge.recipe.contract import (
    AlignInputs,
    Context,
    EditInputs,
    EditOutput,
    MineInputs,
    StageConfig,
    TargetInputs,
)

__all__ = [
    "AlignInputs",
    "Context",
    "EditInputs",
    "EditOutput",
    "MineInputs",
    "StageConfig",
    "TargetInputs",
]
