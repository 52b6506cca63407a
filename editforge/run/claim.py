"""A folder that is one process's own while it works in it: looked at, made, locked, and left again."""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from editforge.ground.disk import leftovers
from editforge.ground.errors import RecipeError


class Claim:
    """A claimed folder; `fresh` says that nobody has worked in it before.

    Args:
        folder: made if missing; an existing one must be empty or hold `known`.
        known: the file that tells a folder of this kind.
        what: the kind, in a word, for errors.

    Raises:
        RecipeError: the folder is of no such kind, or another process has it.
    """

    def __init__(self, folder: Path, known: str, what: str) -> None:
        self._folder, self._known = folder, folder / known
        if folder.exists() and not folder.is_dir():
            raise RecipeError("the output is a file", got=str(folder), next="--output FOLDER")
        held = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        ours = {".lock", *(path.name for path in leftovers(folder))}
        if held and not self._known.is_file() and set(held) - ours:
            raise RecipeError(
                f"the output folder is not a {what}",
                got=f"{folder} holds {', '.join(held[:4])}",
                allowed=f"a new or empty folder, or an earlier {what}",
                next="--output ANOTHER",
            )
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RecipeError(
                f"another process works in this {what}",
                got=str(folder),
                next="wait for it, or stop it",
            ) from None
        self.fresh = not self._known.is_file()

    def release(self) -> None:
        """Let others in."""
        self._lock.release()

    def vanish(self) -> None:
        """Leave no folder that was made for what was refused: the mended command must not meet it."""
        for path in (self._known, self._folder / ".lock"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies there by now
            for path in self._made:
                path.rmdir()
