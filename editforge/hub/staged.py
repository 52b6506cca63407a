"""The folder that is pushed, checked file by file before a single request is made.

What `editforge.json` lists is what is sent: no more, no less. A file that appeared, vanished or
changed after packaging stops the push here, because the leak scan and the gate ran on the listed
bytes alone. Hidden files are not looked at, and not sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from editforge.artifacts.sums import FACTS, SUMS, verify_folder
from editforge.ground.disk import read_json, sha256_file
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header

SCHEMA = "editforge.package/1"
CARD = "README.md"
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"}
_AGAIN = "write the package again: editforge package RUN"


@dataclass(frozen=True)
class Staged:
    """One repository's files on disk, checked.

    Args:
        folder: holds them.
        export: the folder's name in the package, `lora`.
        files: relative path to sha256, the card and `editforge.json` included.
        passed: the gate's verdict; None is not judged.
        receipts: where receipts go: beside the package, never inside it.
    """

    folder: Path
    export: str
    files: dict[str, str]
    passed: bool | None
    receipts: Path

    def size(self, name: str) -> int:
        """Bytes of one file."""
        return (self.folder / name).stat().st_size


def staged(place: Path, export: str | None = None) -> Staged:
    """Find and check the folder to push.

    Args:
        place: a run, a package, or one repository folder of a package.
        export: which folder of the package; unused if `place` is one already. None: the LoRA, or what
            there is if that is one alone.

    Raises:
        PackageError: nothing to push, or a file that is missing, foreign, changed or damaged.
    """
    folder, package = _find(place, export)
    facts = read_json(folder / FACTS)
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        got = facts.get("schema") if isinstance(facts, dict) else type(facts).__name__
        raise PackageError(f"{FACTS} is of another schema", got=got, allowed=SCHEMA, next=_AGAIN)
    gate = facts.get("gate")
    passed = gate.get("passed", "") if isinstance(gate, dict) else ""
    if passed is not None and not isinstance(passed, bool):
        raise PackageError(f"{FACTS} has no verdict", got=f"gate = {gate!r}", next=_AGAIN)
    if problems := verify_folder(folder):
        raise PackageError("this is not what was packaged", got="; ".join(problems), next=_AGAIN)
    listed: dict[str, str] = facts["files"]
    if CARD not in listed:
        raise PackageError("the package has no card", allowed=f"a {CARD}", next=_AGAIN)
    for name in sorted(listed):
        _check_file(folder / name, name)
    files = {**listed, FACTS: sha256_file(folder / FACTS)}
    if package is not None:
        _compare_sums(package / SUMS, folder.name, files)
    receipts = (folder.parent if package is None else package.parent) / "push"
    return Staged(folder, folder.name, files, passed, receipts)


def _find(place: Path, export: str | None) -> tuple[Path, Path | None]:
    """The repository folder and the package it belongs to, if it belongs to one."""
    place = place.absolute()
    if (place / FACTS).is_file():
        return place, place.parent if (place.parent / SUMS).is_file() else None
    package = place if (place / SUMS).is_file() else place / "package"
    if not (package / SUMS).is_file():
        raise PackageError(
            "there is no package here",
            got=place,
            allowed=f"a run, a package with its {SUMS}, or a folder with {FACTS}",
            next=_AGAIN,
        )
    exports = sorted(path.parent.name for path in package.glob(f"*/{FACTS}"))
    if export is None:
        export = exports[0] if len(exports) == 1 else "lora"
    if export not in exports:
        raise PackageError(
            f"the package has no export {export}",
            allowed=", ".join(exports) or "none was written",
            next=f"editforge package RUN --export {export}",
        )
    return package / export, package


def _check_file(path: Path, name: str) -> None:
    if path.is_symlink():
        raise PackageError("a link is never pushed", got=name, next=_AGAIN)
    if path.suffix.lower() in PICKLES:
        raise PackageError("a pickle is never pushed", got=name, allowed="safetensors")
    if path.suffix == ".safetensors" and not read_header(path)[1]:
        raise PackageError(f"{name} holds no tensor", next=_AGAIN)


def _compare_sums(path: Path, export: str, files: dict[str, str]) -> None:
    rows = [line.partition("  ") for line in path.read_text(encoding="utf-8").splitlines()]
    sums = {name: digest for digest, _, name in rows}
    expected = {f"{export}/{name}": digest for name, digest in files.items()}
    ours = {name: digest for name, digest in sums.items() if name.startswith(f"{export}/")}
    differing = sorted(n for n in {*expected, *ours} if expected.get(n) != ours.get(n))
    if differing:
        raise PackageError(
            f"{SUMS} and the folder disagree", got=", ".join(differing[:3]), next=_AGAIN
        )
