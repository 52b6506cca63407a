"""The contract of a stage: `(inputs, config, context) -> artifact`.

A stage reads what earlier stages made, calls no other stage, and touches the world through `Context`
alone. A method of your own is one file with a config, a function and `@register` from
`editforge.registry`; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from editforge.artifacts.chosen import Chosen
from editforge.artifacts.concepts import Concept
from editforge.artifacts.eraser import Eraser
from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.team import Team

if TYPE_CHECKING:
    from editforge.artifacts.system import System
    from editforge.families.model import Described, TextModel


AUTO = "auto"  # in a preserve list: and what lies nearest


class StageConfig(BaseModel):
    """Base of every stage's options: frozen, no unknown keys, tagged by `use`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    use: str = ""

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """Refuse what these options can never do, before a model is opened; small files are read.

        Raises:
            EditforgeError: a file that is not there, or options that contradict the concepts.
        """

    def check_model(self, model: Described) -> None:
        """Refuse what these options cannot do with this model, before a weight is read."""

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int | None:
        """Of an edit or align: the rank that it adds at most, for `--dry-run`; None: it cannot say.

        Args:
            names: erased names, aliases and mined words included.
            templates: prompts that a name is put into.
            window: positions of a prompt.
            neighbors: points that are mined around each erased state.
        """
        return None

    @property
    def leaves_dense(self) -> bool:
        """Of an edit or align: whether it changes what no low-rank factor holds."""
        return False

    def foreseen(self, names: int, width: int) -> Mapping[str, float]:
        """Of an edit: numbers of its checks that can be told before the solve, for `--dry-run`.

        Args:
            names: erased names, aliases and mined words included.
            width: of a text state.
        """
        return {}

    def draws(self, model: Described, concepts: int) -> int:
        """Of a miner or target rule: the base's pictures that it looks at, about, for `--dry-run`."""
        return 0

    def mines(self, concept: Concept) -> tuple[int, int]:
        """Of a miner: words erased with a concept, points around each of its states, at most."""
        return 0, 0


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its inputs.

    Args:
        model: the base model.
        seed: the recipe's; derive every generator from it.
        progress: whether bars go to stderr.
        work: a folder of this stage's own for checkpoints; survives a kill, gone when it is done.
        say: prints one line for the user (what was decided and why), on stderr.
        log: the run's folder for what a person may watch; in no digest.
        team: the processes of this run; a stage that shares its work reads rank and size there.
    """

    model: TextModel
    seed: int = 0
    progress: bool = False
    work: Path | None = None
    say: Callable[[str], None] = field(default=lambda line: None)
    log: Path | None = None
    team: Team = field(default_factory=Team)

    def bar(self, total: int, what: str) -> Any:
        """A tqdm bar on stderr; silent without `progress` and for what ends at once."""
        from tqdm import tqdm

        return tqdm(total=total, desc=what, disable=not self.progress, leave=False, delay=1)


@dataclass(frozen=True)
class MineInputs:
    """For `mine`: what must go, and what the user wants kept ("auto" leaves it to us)."""

    concepts: tuple[Concept, ...]


@dataclass(frozen=True)
class TargetInputs:
    """For `target`: the concepts, what lies near them, and the user's own preserve list or None.

    A list that holds `auto` asks for the nearest words beside it, see `target.preserve`.
    """

    concepts: tuple[Concept, ...]
    neighbors: Neighbors
    preserve: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EditInputs(Chosen):
    """For `edit`: the concepts, their targets, the neighbors, and the system of an earlier edit."""

    earlier: System | None = None


@dataclass(frozen=True)
class EditOutput:
    """What a stage that erases leaves: the eraser, and the system if a later edit can join it."""

    edit: Eraser
    system: System | None = None

    def save(self, folder: Path) -> None:
        """Write the eraser's file, and `solve.safetensors`."""
        self.edit.save(folder / self.edit.file)
        if self.system is not None:
            self.system.save(folder / "solve.safetensors")


@dataclass(frozen=True)
class GuideInputs(Chosen):
    """For `guide`: the concepts and what was mined for them; no targets where the recipe has none."""


@dataclass(frozen=True)
class AlignInputs(Chosen):
    """For `align`: the edit so far and everything it was made from."""

    edit: WeightEdit
