"""The folder of a graph: one request, locked while it is open; what is finished there is found again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editforge.ground.disk import read_json, write_json
from editforge.ground.errors import EditforgeError, PackageError, RecipeError
from editforge.run.claim import Claim

REQUEST = "request.json"


class Place:
    """A graph's folder.

    Args:
        folder: made if missing; an existing one must be empty or of the same request.
        facts: the request, plain JSON data without a path.

    Raises:
        RecipeError: the folder is no graph, belongs to another request, or is worked in.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.outcomes, self.work = folder, folder / "outcomes", folder / ".work"
        self._claim = Claim(folder, REQUEST, "graph")
        try:
            if self._claim.fresh:
                write_json(folder / REQUEST, dict(facts))
            else:
                _same_request(folder / REQUEST, facts)
        except BaseException:
            self._claim.release()
            raise

    def forget_pictures(self) -> None:
        """What they say is written: a large graph draws gigabytes."""
        shutil.rmtree(self.work, ignore_errors=True)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            refused = isinstance(kind, type) and issubclass(kind, EditforgeError)
            if refused and self._claim.fresh and not list(self.outcomes.glob("erased-*")):
                self._vanish()
        finally:
            self._claim.release()

    def _vanish(self) -> None:
        """Leave nothing of what the first erasure refused: the mended command must not meet it."""
        for below in (self.work, self.outcomes):
            shutil.rmtree(below, ignore_errors=True)
        self._claim.vanish()


def _same_request(known: Path, facts: Mapping[str, Any]) -> None:
    try:
        old = read_json(known)
    except PackageError:
        old = None
    differing = sorted(_differences(old, dict(facts), ""))
    if differing:
        raise RecipeError(
            "this folder holds a graph of another request",
            got="; ".join(differing[:6]) + ("; ..." if len(differing) > 6 else ""),
            next="--output ANOTHER, or delete the folder",
        )


def _differences(old: Any, new: Any, place: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in {*old, *new}
            for line in _differences(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
        ]
    if old == new:
        return []
    if any(isinstance(value, list | dict) for value in (old, new)):
        return [f"{place or REQUEST}: differ"]
    return [f"{place}: {old!r} there, {new!r} now"]
