"""How bytes and text reach the disk, whole or not at all, and how a stranger's text is read.

YAML is data alone: no tags, no aliases (a nest of them fills the memory), no key twice. No torch here:
`--help` and `list` read YAML.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from editforge.ground.errors import PackageError, RecipeError

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")
_LEFT_FOR = 3600  # seconds without a byte after which a write is taken for killed


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex digest of a text as `write_text` puts it on the disk."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_json(value: object) -> str:
    """Hex digest of a value's canonical JSON: sorted keys, no white space, no NaN."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Give `write` a binary file beside `path`, flush it to the disk, then rename it to `path`.

    Guarantee: `path` is at any instant whole, and what one writer wrote: each call has a file of its
    own, so writers of one path do not meet, and the last to end wins. What a killed writer left is no
    file that anyone reads; an hour after its last byte the next write into the folder removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with temporary.open("xb") as file:
            # by the disk's own clock, which may be another machine's
            old = os.fstat(file.fileno()).st_mtime - _LEFT_FOR
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for left in leftovers(path.parent):
        with contextlib.suppress(OSError):  # another writer was faster
            if left.stat().st_mtime < old:
                left.unlink()


def leftovers(folder: Path) -> list[Path]:
    """Files of writes into `folder` that go on now, or were killed; who alone writes may remove them."""
    return sorted(path for path in folder.glob(".*.partial") if _PARTIAL.fullmatch(path.name))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """Write sorted, indented JSON with a final newline; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        PackageError: the file is missing or is not JSON, or nested over any sane depth.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PackageError(f"no file {path.name}", got=path.parent) from None
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{path.name} is not valid JSON", got=str(error)) from None


# libyaml's parser where PyYAML was built with it: a third of the time for a list of 100 concepts
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DataLoader(_Loader):
    """Plain data alone: no tags, no anchors (a nest of them fills the memory), no key twice."""

    def get_single_node(self) -> yaml.Node | None:  # noqa: D102
        root: yaml.Node | None = super().get_single_node()
        seen: set[int] = set()
        waiting = [root] if root is not None else []
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                raise yaml.YAMLError("aliases (*name) are not accepted")
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                waiting += [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value
        return root

    def construct_mapping(  # noqa: D102
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"the key {key!r} stands twice")
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


LIMIT, OWN = 1_000_000, 64_000_000  # characters of a stranger's YAML, and of a list that we write


def parse_yaml(text: str, source: str, limit: int = LIMIT, loader: Any = DataLoader) -> Any:
    """Parse a user's YAML: plain data only.

    Args:
        text: the YAML.
        source: where it came from, for messages.
        limit: characters; `OWN` for what a run writes, which a person may have edited.
        loader: a kind of `DataLoader`.

    Raises:
        RecipeError: over the limit, malformed, nested over any sane depth, an alias, a tag, a key twice.
    """
    if len(text) > limit:
        raise RecipeError(
            f"{source} is too large for YAML", got=f"{len(text)} characters", allowed=limit
        )
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        got = " ".join(str(error).split())[:300]
        raise RecipeError(
            f"{source} is not readable YAML",
            got=got,
            allowed="plain mappings, lists, text and numbers",
        ) from None


def read_yaml(path: Path, limit: int = LIMIT) -> Any:
    """Read and parse a user's YAML file; see `parse_yaml`."""
    return parse_yaml(read_text(path), str(path), limit)


def read_text(path: Path) -> str:
    """A user's text file in UTF-8.

    Raises:
        RecipeError: no such file, or another encoding.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError("no such file", got=str(path)) from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text") from None


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Plain, text: str) -> yaml.ScalarNode:
    # PyYAML takes these three for line breaks and folds them into a space; in double quotes it
    # escapes them
    odd = any(mark in text for mark in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Plain.add_representer(str, _text)


def dump_yaml(value: object) -> str:
    """YAML in the order given, unaliased, 100 columns; reads back as it was."""
    return yaml.dump(
        value,
        Dumper=_Plain,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
