"""The run's folder as every process but the first sees it: told what is done, never writing there.

Process 0 has a `Workspace`. It tells the others, stage by stage, whether there is something to do. They
take part in the stages that share their work and wait for the rest; then all read the same files. So
the folder must be one that every machine sees.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from editforge.ground.errors import RecipeError
from editforge.ground.team import Team
from editforge.recipe.line import Step


class Follower:
    """In place of a `Workspace`, with the same `stage`.

    Args:
        folder: of the run.
        recipe: resolved recipe as YAML text; must be that of process 0.
        team: of the run.

    Raises:
        RecipeError: another recipe than process 0, or a folder that is not here.
    """

    def __init__(self, folder: Path, recipe: str, team: Team) -> None:
        self.folder, self._team = folder, team
        if team.tell(None) != recipe:
            raise RecipeError(
                f"process {team.rank} has another recipe than process 0",
                next="start all processes with the same command and the same files",
            )
        if not folder.is_dir():
            raise RecipeError(
                f"process {team.rank} does not see the run's folder",
                got=str(folder),
                next="--output a folder on a disk that all machines share",
            )

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def stage(
        self,
        step: Step,
        config: Any,
        inputs: Mapping[str, Path],
        facts: Mapping[str, Any],
        make: Callable[[Path, Path], object],
        check: Callable[[Path], object],
    ) -> Path:
        """Take part in one stage, or wait for it; see `Workspace.stage`."""
        if self._team.tell(None):
            if step.shared:
                partial = self.folder / f".{step.name}.partial"
                own = partial / f"out-{self._team.rank}"  # process 0 removes it with the rest
                shutil.rmtree(own, ignore_errors=True)
                own.mkdir()
                make(own, partial / "work")
            self._team.wait()  # what was shared is done
            self._team.wait()  # and in its place
        return self.folder / step.name

    def written(self, name: str) -> str | None:
        """Process 0 knows what a person edited, and makes what says so."""
        return None
