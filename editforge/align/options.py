"""Options of LoRA training that every align method shares. methods.md 2.8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from editforge.artifacts.concepts import Concept
from editforge.ground.errors import RecipeError, did_you_mean
from editforge.recipe.contract import StageConfig

if TYPE_CHECKING:
    from editforge.families.model import Described


class LoraOptions(StageConfig):
    """What is trained, on which latents, for how long, and what is seen meanwhile."""

    train: Literal["lora", "xattn", "noxattn"] = Field(
        "lora",
        description="A LoRA on `modules`, all parameters of cross-attention, or all others; the last "
        "two end as factors of `rank` with the error said, and dense rests that no LoRA file holds.",
    )
    modules: tuple[str, ...] = Field(
        ("attn2.to_k", "attn2.to_v"),
        min_length=1,
        description="Endings of the linear maps that get a LoRA. More: stronger, wider effects.",
    )
    rank: int = Field(8, ge=1, description="Of each LoRA; alpha equals it. Higher: more freedom.")
    steps: int = Field(300, ge=0, description="Of the optimizer. 0: the closed form alone.")
    batch: int = Field(4, ge=1, description="Samples a step, shared by all processes.")
    lr: float = Field(1e-4, gt=0, description="Of AdamW without decay. Higher: faster, rougher.")
    accumulate: int = Field(
        1, ge=1, description="Pieces a process works its share off in. Higher: less memory, slower."
    )
    checkpointing: bool = Field(
        False, description="Recompute activations: less memory, a third slower, the same result."
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16 autocasts; LoRA and optimizer are float32 in any case."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The result is a running mean with this decay. null: the last.",
    )
    size: int | None = Field(None, ge=8, description="Pixels, height and width; null: the model's.")
    latents: Literal["pool", "current"] = Field(
        "pool",
        description="Noisy latents come from runs of the frozen model, made once; or of the model "
        "as it is trained, made anew in each step, many times slower.",
    )
    erase_runs: int = Field(32, ge=1, description="Sampling runs per erased concept.")
    keep_runs: int = Field(64, ge=1, description="Sampling runs over what is kept.")
    kept_times: int = Field(8, ge=1, description="Times kept of each run. Higher: more memory.")
    sample_steps: int = Field(50, ge=1, description="Of a full run. Fewer: faster, coarser.")
    sample_guidance: float = Field(3.0, ge=1, description="Of these runs. 1: none, half the cost.")
    time_range: tuple[float, float] = Field(
        (0.0, 1.0), description="Share of a run that is trained on: 0 the noisiest, 1 the cleanest."
    )
    beyond_fraction: float = Field(
        0.25, ge=0, le=1, description="Share of keep_runs drawn around the concept, not from words."
    )
    save_every: int = Field(25, ge=1, description="Steps between checkpoints. Fewer: less is lost.")
    grid_every: int | None = Field(
        None, ge=1, description="Steps between picture grids in the run's log/align; null: none."
    )
    tracker: Literal["tensorboard"] | None = Field(
        None, description="tensorboard: losses and grids into the run's log; needs the extra."
    )

    @property
    def leaves_dense(self) -> bool:
        """Parameters trained whole have biases, and convolutions, too."""
        return self.train != "lora"

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A tracker that is asked for must be installed."""
        check_tracker(self.tracker)

    def check_model(self, model: Described) -> None:
        """Endings that some linear map of the denoiser has, and a denoiser that reads noise alone."""
        reads, writes = (model.shapes.get(f"{name}.weight") for name in ("conv_in", "conv_out"))
        if reads and writes and reads[1] != writes[0]:
            raise RecipeError(
                "training needs a denoiser that reads noise alone",
                got=f"one that reads {reads[1]} channels and writes {writes[0]}",
                allowed="a closed form: --method default",
                next="or erase from the base checkpoint; its LoRA fits this one too",
            )
        known = [n.removesuffix(".weight") for n, shape in model.shapes.items() if len(shape) == 2]
        matching(known, self.modules)

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int:
        """That of its LoRA, on top of the edit; or what matrices are truncated to."""
        return self.rank

    @model_validator(mode="after")
    def _range_is_one(self) -> LoraOptions:
        low, high = self.time_range
        if not 0 <= low < high <= 1:
            raise ValueError("time_range is not two rising shares between 0 and 1")
        return self


def check_tracker(name: str | None) -> None:
    """Refuse a tracker whose library is not installed.

    Raises:
        RecipeError: with what to install.
    """
    from accelerate.utils import is_tensorboard_available

    if name is not None and not is_tensorboard_available():
        raise RecipeError(
            "TensorBoard is not installed",
            got=f"align.tracker={name}",
            next="pip install 'editforge[tensorboard]', or --set align.tracker=null",
        )


def matching(known: Sequence[str], endings: Sequence[str]) -> list[str]:
    """Paths of linear maps that end in one of `endings` (`attn2.to_k`), in name order.

    Raises:
        RecipeError: an ending that no map has; the near ones are named.
    """
    found: set[str] = set()
    for ending in endings:
        hits = [path for path in known if path == ending or path.endswith(f".{ending}")]
        if not hits:
            # three parts tell attn2.to_out.0 from ff.net.0.proj and stay readable
            ends = {".".join(path.split(".")[-k:]) for path in known for k in (2, 3)}
            raise RecipeError(
                f"align.modules: no linear map ends in {ending!r}",
                allowed=did_you_mean(ending, sorted(ends)[:40]),
                next="--set align.modules=[attn2.to_k,attn2.to_v]",
            )
        found |= set(hits)
    return sorted(found)
