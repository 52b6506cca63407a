"""The last step before a package is finished: nothing of this machine may be in it.

Every text file, safetensors header and PNG text chunk is searched for the home and working
directories, the user and host names, absolute paths, clock times and Hub tokens. A hit is an error
that names the file and the place; nothing is repaired in silence. Files copied from a published
base are searched for this machine's own names and for tokens alone: a tokenizer's vocabulary holds
every short word, and paths that others published are not ours to change.
"""

from __future__ import annotations

import ast
import getpass
import json
import os
import re
import socket
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from editforge.ground.errors import PackageError
from editforge.ground.resources import resource_folder

_COMMON = {"root", "user", "users", "admin", "ubuntu", "runner", "home", "test", "localhost"}
_PATH = r"(?<![^\s\"'`(\[{=:,<>|])(?:~|/[\w.+@-]+)(?:/[\w.+@-]+)+/?|\b[A-Za-z]:\\{1,2}\w[^\s\"']*"
_CLOCK = r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}"
_TOKEN = r"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Mark:
    """One thing that must not appear. `strict` ones are searched in copied files as well."""

    name: str
    pattern: re.Pattern[str]
    strict: bool


def marks() -> list[Mark]:
    """What to search for on this machine. Names too common to tell apart are left out."""
    found = [
        Mark("a Hub token", re.compile(_TOKEN), True),
        Mark("an absolute path", re.compile(_PATH), False),
        Mark("a clock time", re.compile(_CLOCK), False),
    ]
    for name, place in (("home", Path.home()), ("working", Path.cwd())):
        if len(place.parts) > 1:
            pattern = rf"(?<![\w/.-]){re.escape(str(place))}(?![\w.-])"
            found.append(Mark(f"the {name} directory", re.compile(pattern), True))
    for name, read in (("user", getpass.getuser), ("host", socket.gethostname)):
        word = _word(read)
        if word is not None:
            found.append(Mark(f"the {name} name", _bare(word), False))
    return found


def _word(read: Callable[[], str]) -> str | None:
    """A user or host name, unless it is a word that we write ourselves: then it is no evidence.

    Whoever is called lion or guitar finds that name in every report. A path with it is still found.
    """
    try:
        word = read()
    except (OSError, KeyError):  # a container may run as a user without a name
        return None
    if len(word) < 3 or word.lower() in _COMMON:
        return None
    return None if _is_ours(_bare(word)) else word


def _bare(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE)


def _is_ours(word: re.Pattern[str]) -> bool:
    """Whether a word stands in what EditForge writes: cards, recipes, names, keys, sentences."""
    package = Path(__file__).parents[1]
    data = [
        *resource_folder("model_cards").glob("*.j2"),
        *resource_folder("pipelines").glob("*.yaml"),
        *package.glob("families/*.yaml"),
        package / "emoji" / "assets" / "manifest.json",
    ]
    if any(word.search(path.read_text(encoding="utf-8")) for path in data):
        return True
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if word.search(text) and any(map(word.search, _written(ast.parse(text)))):
            return True
    return False


def _written(tree: ast.Module) -> Iterator[str]:
    """What code can write: texts and fields. Comments and docstrings name authors, nobody else."""
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            yield node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def scan(
    folder: Path,
    *,
    public: Collection[str] = (),
    is_copy: Callable[[str], bool] = lambda name: False,
) -> None:
    """Search every file below `folder`.

    Args:
        folder: the finished package.
        public: strings that may be said (Hub ids, concept names): they are no hit, whatever they
            contain.
        is_copy: true for the path of a file that was copied from the base.

    Raises:
        PackageError: the first hit, with file and place.
    """
    wanted = marks()
    # Whole words, longest first: a concept called "a" must not take letters out of what is searched.
    masked = [_bare(text) for text in sorted({*public} - {""}, key=len, reverse=True)]
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        active = [mark for mark in wanted if mark.strict or not is_copy(name)]
        for place, text in _texts(path):
            for hidden in masked:
                text = hidden.sub("", text)
            for mark in active:
                if match := mark.pattern.search(text):
                    raise PackageError(
                        f"{name} holds {mark.name}",
                        got=f"{match[0][:60]!r} in {_where(place, text, match.start())}",
                        next="take it out of the recipe, the concept names or the base's configs",
                    )


def _where(place: str, text: str, start: int) -> str:
    return place or f"line {text.count(chr(10), 0, start) + 1}"


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of everything readable in a file; an empty place means the file's lines."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
        for key, value in sorted(header.get("__metadata__", {}).items()):
            yield f"header key {key}", f"{key} {value}"
        yield "tensor names", "\n".join(header)
    elif path.suffix == ".png":
        yield from _chunks(path)
    else:
        yield "", path.read_bytes().decode("utf-8", errors="replace")


def _chunks(path: Path) -> Iterator[tuple[str, str]]:
    """Text of a PNG's text chunks. Chunks that hold EXIF data or a time are refused outright."""
    data = path.read_bytes()
    if not data.startswith(_PNG):
        raise PackageError(f"{path.name} is not a PNG file")
    position = len(_PNG)
    while position + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + size]
        if kind in (b"eXIf", b"tIME"):
            raise PackageError(
                f"{path.name} holds metadata of a camera or a clock", got=kind.decode()
            )
        if kind in (b"tEXt", b"iTXt", b"zTXt"):
            yield f"chunk {kind.decode()}", _chunk_text(kind, body)
        position += 12 + size


def _chunk_text(kind: bytes, body: bytes) -> str:
    keyword, _, rest = body.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if packed:
        start = 1 if kind == b"zTXt" else rest.index(b"\0", rest.index(b"\0", 2) + 1) + 1
        rest = zlib.decompressobj().decompress(rest[start:], 1_000_000)
    return f"{keyword.decode('latin-1')} {rest.decode('utf-8', errors='replace')}"


def mark_paths(text: str, known: dict[str, str]) -> tuple[str, list[str]]:
    """A recipe or command with local paths replaced, each visibly, and the list of what changed.

    Args:
        text: what the user wrote.
        known: path to its public name, the base's folder to its label for example.
    """
    replaced = []
    for path, label in sorted(known.items(), key=lambda item: -len(item[0])):
        if len(Path(path).parts) > 1 and path in text:
            text = text.replace(path, f"<{label}>")
            replaced.append(f"a local path became <{label}>")
    matches = list(re.finditer(_PATH, text))
    for match in reversed(matches):
        name = os.path.basename(match[0].rstrip("/"))
        text = f"{text[: match.start()]}<local:{name}>{text[match.end() :]}"
        replaced.append(f"a local path became <local:{name}>")
    return text, replaced
