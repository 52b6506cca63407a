"""Is every file of a package what was written? Hashes only; nothing is loaded or changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from editforge.ground.disk import read_json, sha256_file, write_text
from editforge.ground.errors import PackageError

SUMS = "SHA256SUMS"
FACTS = "editforge.json"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def hashes(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Path below `folder`, forward slashes, sorted, to sha256; hidden files are left out."""
    return {
        name: sha256_file(path)
        for name, path in sorted(_files(folder).items())
        if name not in leave_out
    }


def write_sums(folder: Path) -> Path:
    """Write `SHA256SUMS` over every other file, in the form `sha256sum -c` reads."""
    rows = hashes(folder, (SUMS,))
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in rows.items()))
    return folder / SUMS


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a package, or with one repository folder of it; [] means nothing is.

    Checks `SHA256SUMS` of a package and the hashes in each `editforge.json`, missing and extra
    files included. Hidden files, `.gitattributes` of the Hub for example, are not looked at.

    Raises:
        PackageError: the folder has neither file, so nothing can be said.
    """
    found = [FACTS] if (path / FACTS).is_file() else []
    found += sorted(f"{p.parent.name}/{FACTS}" for p in path.glob(f"*/{FACTS}"))
    if not found and not (path / SUMS).is_file():
        raise PackageError(
            "nothing to verify here",
            got=path.name,
            allowed=f"a package with {SUMS}, or a folder with {FACTS}",
        )
    problems = _check_sums(path) if (path / SUMS).is_file() else []
    for name in found:
        problems += _check_facts(path / name, name.removesuffix(FACTS))
    return problems


def _check_sums(path: Path) -> list[str]:
    rows: dict[str, str] = {}
    problems = []
    for number, line in enumerate((path / SUMS).read_text(encoding="utf-8").splitlines(), 1):
        if match := _LINE.fullmatch(line):
            rows[match[2]] = match[1]
        else:
            problems.append(f"{SUMS}: line {number} is not a hash and a name")
    return problems + _compare(path, rows, (SUMS,), "")


def listed_files(facts: Path) -> dict[str, str] | None:
    """The table of an `editforge.json`, path to sha256; None if it has none."""
    body: Any = read_json(facts)
    rows = body.get("files") if isinstance(body, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(v, str) for v in rows.values()):
        return None
    return rows


def _check_facts(file: Path, prefix: str) -> list[str]:
    rows = listed_files(file)
    if rows is None:
        return [f"{prefix}{FACTS}: no table of files"]
    return _compare(file.parent, rows, (FACTS, SUMS), prefix)


def _compare(
    folder: Path, rows: Mapping[str, str], leave_out: tuple[str, ...], prefix: str
) -> list[str]:
    present = {n: p for n, p in _files(folder).items() if n not in leave_out}
    return differences(rows, present, lambda name: sha256_file(present[name]) == rows[name], prefix)


def differences(
    rows: Mapping[str, str], present: Collection[str], same: Callable[[str], bool], prefix: str = ""
) -> list[str]:
    """What of a table is missing, what it does not list, and what is there but not the `same`.

    Only files that are both listed and there are asked about: nothing foreign is ever read.
    """
    problems = [f"{prefix}{name}: missing" for name in sorted(set(rows) - set(present))]
    problems += [f"{prefix}{name}: not listed" for name in sorted(set(present) - set(rows))]
    both = sorted(set(rows) & set(present))
    return problems + [f"{prefix}{name}: changed" for name in both if not same(name)]


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder; names that leave it (a hostile list) are never followed."""
    named = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: path
        for name, path in named.items()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/"))
    }
