"""Which images the gate asks for: sets of prompts with their seeds, and what an eraser may know."""

from editforge.evaluate.prompts.core import (
    FEW,
    SCORING_SEEDS,
    THRESHOLD_SEEDS,
    Counts,
    GatePrompts,
    Prompt,
    Subject,
    images_of,
)
from editforge.evaluate.prompts.gate import gate_prompts

__all__ = [
    "FEW",
    "SCORING_SEEDS",
    "THRESHOLD_SEEDS",
    "Counts",
    "GatePrompts",
    "Prompt",
    "Subject",
    "gate_prompts",
    "images_of",
]
