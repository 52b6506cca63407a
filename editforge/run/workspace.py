"""A run directory: which stages are done, which are damaged, which lists a person edited.

A stage writes into a hidden sibling and is renamed into place, then the manifest follows. So a
run killed at any instant finds either the old folder, the new one, or a partial one with the
checkpoints of the same digest to go on from. No clock and no path enters a digest.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from editforge.ground.disk import (
    leftovers,
    parse_yaml,
    read_json,
    read_yaml,
    sha256_file,
    sha256_json,
    sha256_text,
    write_json,
    write_text,
)
from editforge.ground.errors import EditforgeError, RecipeError
from editforge.ground.team import Team
from editforge.ground.version import __version__
from editforge.recipe.line import Step
from editforge.run.claim import Claim

SCHEMA = "editforge.run/1"
# How a card says to repeat a run that no `erase` line describes; a package carries its recipe.yaml.
RERUN = "editforge run recipe.yaml --output run"


class Workspace:
    """One run's folder, locked while it is open.

    Args:
        folder: made if missing; an existing one must be empty or a run of the same recipe.
        recipe: resolved recipe as YAML text.
        say: takes one line for the user.
        replace: the run takes this recipe instead of its own, once everything is done.
        team: the processes of this run; the others are told what is done (`Follower`).

    Raises:
        RecipeError: the folder is no run, or belongs to another recipe: differing keys are named.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        say: Callable[[str], None],
        *,
        replace: bool = False,
        team: Team | None = None,
    ) -> None:
        self.folder, self._say, self._team = folder, say, team or Team()
        self._next_recipe, known = recipe if replace else None, folder / "recipe.yaml"
        self._claim = Claim(folder, known.name, "run")
        try:
            for left in leftovers(folder):  # of a killed run: the lock is ours
                left.unlink(missing_ok=True)
            if self._claim.fresh:
                write_text(known, recipe)
            elif not replace:
                _same_recipe(known, recipe)
            self._manifest = self._read_manifest()
            self._team.tell(recipe)
        except BaseException:
            self._claim.release()
            raise

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            # A failed or interrupted run keeps the recipe it was made with.
            if kind is None and self._next_recipe is not None:
                write_text(self.folder / "recipe.yaml", self._next_recipe)
            refused = isinstance(kind, type) and issubclass(kind, EditforgeError)
            if refused and self._claim.fresh and not self._manifest["stages"]:
                self._vanish()
        finally:
            self._claim.release()

    def _vanish(self) -> None:
        """Leave no run that was refused at once: the mended command must not meet its recipe."""
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        self._claim.vanish()

    def stage(
        self,
        step: Step,
        config: Any,
        inputs: Mapping[str, Path],
        facts: Mapping[str, Any],
        make: Callable[[Path, Path], object],
        check: Callable[[Path], object],
    ) -> Path:
        """Bring one stage up to date and return its folder.

        Args:
            step: the stage.
            config: its resolved options, JSON-able, free of paths.
            inputs: folders of earlier stages it reads; their content is what counts.
            facts: other things its result depends on: base digest, seed, version.
            make: `make(out, work)` writes the artifact into `out`; `work` outlives a kill.
            check: loads the artifact from a folder; raises if a person's edit broke it.
        """
        name = step.name
        contents = {key: sha256_json(hashes(path)) for key, path in inputs.items()}
        digest = sha256_json([name, config, contents, dict(facts)])
        folder = self.folder / name
        self._recover(name)
        reason = self._why_redo(step, digest, check)
        if reason is None:
            self._team.tell(False)
            # What a kill or an abandoned export left behind.
            shutil.rmtree(self.folder / f".{name}.partial", ignore_errors=True)
            return folder
        if reason:
            self._say(f"{name}: redone, {reason}")
        partial = self.folder / f".{name}.partial"
        if not (partial / "digest").is_file() or (partial / "digest").read_text() != digest:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "work").mkdir(parents=True)
            write_text(partial / "digest", digest)
        shutil.rmtree(partial / "out", ignore_errors=True)
        (partial / "out").mkdir()
        self._team.tell(True)
        start = time.monotonic()
        make(partial / "out", partial / "work")
        self._team.wait()  # the others still read and write below `partial`
        seconds = time.monotonic() - start
        files = hashes(partial / "out")
        if folder.exists():
            folder.rename(self.folder / f".{name}.old")
        (partial / "out").rename(folder)
        entry: dict[str, Any] = {"digest": digest, "inputs": contents, "files": files}
        if step.list:  # to tell later what a person changed in it
            entry["written"] = (folder / step.list).read_text(encoding="utf-8")
        self._manifest["stages"][name] = entry
        self._write_manifest()
        shutil.rmtree(self.folder / f".{name}.old", ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        self._log(name, seconds)
        self._team.wait()  # the others may read now
        return folder

    def _why_redo(self, step: Step, digest: str, check: Callable[[Path], object]) -> str | None:
        """None: up to date. Empty: never done. Else the reason, in words."""
        name = step.name
        entry, folder = self._manifest["stages"].get(name), self.folder / name
        if entry is None or not folder.is_dir():
            return "" if entry is None else "its folder is gone"
        now = hashes(folder)
        changed = sorted(
            key for key in {*now, *entry["files"]} if now.get(key) != entry["files"].get(key)
        )
        edited = step.list in now and changed == [step.list]
        if edited and sha256_text(entry.get("written", "")) == now[str(step.list)]:
            self._say(f"{name}: {step.list} is again what was written; what follows is redone")
            entry["files"] = now
            del entry["edited"]
            self._write_manifest()
        elif edited:
            check(folder)
            self._say(f"{name}: your {step.list} is kept; what follows is redone")
            entry |= {"files": now, "edited": True}
            self._write_manifest()
            return None
        elif changed:
            return f"{changed[0]} is not what was written"
        if entry["digest"] != digest:
            if entry.get("edited"):
                self._say(f"{name}: kept, {step.list} is yours; delete the folder to redo it")
                return None
            return "something it depends on changed"
        return None

    def written(self, name: str) -> str | None:
        """What a stage wrote into its list, if a person has changed that since; "": not known."""
        entry = self._manifest["stages"][name]
        return entry.get("written", "") if entry.get("edited") else None

    def _recover(self, name: str) -> None:
        """A kill between two renames leaves the old folder under its hidden name."""
        old, folder = self.folder / f".{name}.old", self.folder / name
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        fresh: dict[str, Any] = {"schema": SCHEMA, "stages": {}, "versions": versions()}
        if not path.is_file():
            return fresh
        try:
            body = read_json(path)
        except EditforgeError:
            body = None
        if (
            isinstance(body, dict)
            and body.get("schema") == SCHEMA
            and _is_table(body.get("stages"))
        ):
            return body
        self._say("manifest.json is damaged: every stage is redone")
        return fresh

    def _write_manifest(self) -> None:
        write_json(self.folder / "manifest.json", self._manifest)

    def _log(self, name: str, seconds: float) -> None:
        path = self.folder / "log" / "timings.json"
        try:
            timings = read_json(path)
        except EditforgeError:
            timings = {}
        write_json(path, {**timings, name: round(seconds, 3)})


def hashes(folder: Path) -> dict[str, str]:
    """Relative path to sha256 of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def versions() -> dict[str, str]:
    """What a result may depend on besides the recipe."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "safetensors")
    return {"editforge": __version__, **{name: version(name) for name in names}}


def _is_table(stages: object) -> bool:
    """Whether a manifest's stages are what `Workspace.stage` wrote, as far as it is read."""
    return isinstance(stages, dict) and all(
        isinstance(row, dict)
        and isinstance(row.get("digest"), str)
        and isinstance(row.get("files"), dict)
        for row in stages.values()
    )


def _same_recipe(known: Path, recipe: str) -> None:
    old = read_yaml(known)
    differing = sorted(_differences(old, parse_yaml(recipe, "recipe"), ""))
    if differing:
        raise RecipeError(
            "this folder holds a run of another recipe",
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
    return [] if old == new else [f"{place}: {old!r} there, {new!r} now"]


def writable(folder: Path) -> bool:
    """Whether files can be made in the nearest existing folder above `folder`."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
