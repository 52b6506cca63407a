"""The folder of a graph: one request, locked while it is open; what is finished there is found again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from editforge.ground.disk import leftovers, read_json, write_json
from editforge.ground.errors import EditforgeError, PackageError, RecipeError

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
        if folder.exists() and not folder.is_dir():
            raise RecipeError("the output is a file", got=str(folder), next="--output FOLDER")
        held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        known = folder / REQUEST
        ours = {".lock", *(path.name for path in leftovers(folder))}
        if held and not known.is_file() and set(held) - ours:
            raise RecipeError(
                "the output folder is not a graph",
                got=f"{folder} holds {', '.join(held[:4])}",
                allowed="a new or empty folder, or an earlier graph",
                next="--output ANOTHER",
            )
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RecipeError(
                "another process works in this folder", got=str(folder), next="wait, or stop it"
            ) from None
        try:
            self._fresh = not known.is_file()
            if self._fresh:
                write_json(known, dict(facts))
            else:
                _same_request(known, facts)
        except BaseException:
            self._lock.release()
            raise

    def forget_pictures(self) -> None:
        """What they say is written: a large graph draws gigabytes."""
        shutil.rmtree(self.work, ignore_errors=True)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            refused = isinstance(kind, type) and issubclass(kind, EditforgeError)
            if refused and self._fresh and not list(self.outcomes.glob("erased-*")):
                self._vanish()
        finally:
            self._lock.release()

    def _vanish(self) -> None:
        """Leave nothing of what the first erasure refused: the mended command must not meet it."""
        for below in (self.work, self.outcomes):
            shutil.rmtree(below, ignore_errors=True)
        for name in (REQUEST, ".lock"):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies there by now
            for path in self._made:
                path.rmdir()


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
