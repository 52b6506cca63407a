"""Concepts from a file as people have it: YAML, CSV, or one name a line.

Names are taken as written: to YAML `007`, `24:00` and `yes` are a number, another number and a truth,
here they are names. What is perhaps no one name (`doubtful`) is asked about unless it stands in quotes.
Every refusal names the line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from editforge.artifacts.concepts import Concept
from editforge.artifacts.doubtful import refuse_doubtful
from editforge.ground.disk import DataLoader, parse_yaml, read_text
from editforge.ground.errors import RecipeError, did_you_mean
from editforge.ground.names import fold

_KEYS = ("name", "aliases", "kind")
_HEADERS = ("names", "concept", "concepts")  # of others; to erase the word, put it in quotes
_NULL = ("~", "null", "Null", "NULL")
_YAML = (".yaml", ".yml", ".json")


class Cell(str):
    """A text of a file: on which line, and whether in quotes."""

    line: int
    quoted: bool

    @classmethod
    def of(cls, text: str, line: int, quoted: bool) -> Cell:
        """A text at its place."""
        cell = cls(text)
        cell.line, cell.quoted = line, quoted
        return cell


class _Written(DataLoader):
    """Every scalar is text."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}


def _cell(loader: Any, node: yaml.ScalarNode) -> Cell:
    quoted = bool(node.style)
    text = "" if not quoted and node.value in _NULL else node.value
    return Cell.of(text, node.start_mark.line + 1, quoted)


_Written.add_constructor("tag:yaml.org,2002:str", _cell)


def read_concepts(
    path: Path, kind: str = "object", *, as_written: bool = False
) -> list[dict[str, Any]]:
    """The concepts of a file, each a mapping with name, aliases and kind, in the file's order.

    `.yaml`, `.yml`, `.json`: a list of names or of mappings. `.csv`, `.tsv`: a header with `name` and
    perhaps `aliases` (several behind `;` or `|`) and `kind`, or one column without one. Any other file:
    one name a line, `#` starts a comment. UTF-8 with or without a mark, any line ends; blank lines are
    skipped.

    Args:
        path: the file.
        kind: of concepts whose row names none.
        as_written: every name is one name, as if it stood in quotes.

    Raises:
        RecipeError: with the line: no such file, no concept, an unknown column, an empty or impossible
            name, one that stands twice, one that is perhaps several.
    """
    text, suffix = read_text(path).removeprefix("\ufeff"), path.suffix.lower()
    if suffix in _YAML:
        rows = _of_yaml(parse_yaml(text, str(path), loader=_Written), path)
    else:
        lines = text.split("\n")
        table = _of_table(lines, path) if suffix in (".csv", ".tsv") else None
        rows = _of_lines(lines, path) if table is None else table
    if not rows:
        raise RecipeError(f"{path.name} names no concept", next="one name a line")
    found = _checked(rows, path, kind)
    if not as_written:
        _ask(rows, path)
    return found


def _of_yaml(body: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(body, list):
        raise RecipeError(
            f"{path.name} is not a list of concepts",
            got="a mapping" if isinstance(body, dict) else repr(body)[:80],
            allowed="names, or {name: ..., aliases: [...], kind: ...}, one a line behind a dash",
            next="names without dashes: call the file .txt",
        )
    rows: list[Any] = [{"name": row} if isinstance(row, Cell) else row for row in body]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row:
            raise RecipeError(
                f"{path.name} holds something that is no concept",
                got=f"row {number}: {row!r}"[:90],
                allowed="a name, or {name: ..., aliases: [...], kind: ...}",
            )
        _check_columns(list(row), path)
        listed: Any = row.get("aliases", [])
        row["aliases"] = [listed] if isinstance(listed, Cell) else listed
        texts = [row.get("name", ""), row.get("kind", "")]
        texts += row["aliases"] if isinstance(row["aliases"], list) else [row["aliases"]]
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise RecipeError(
                f"{path.name} holds something that is no text",
                got=f"row {number}: {odd[0]!r}"[:90],
                allowed="name: TEXT, aliases: [TEXT, ...], kind: TEXT",
            )
    return rows


def _of_table(lines: Sequence[str], path: Path) -> list[dict[str, Any]] | None:
    """The rows of a CSV with a header; None: it has one column and no header."""
    first = next((line for line in lines if line.strip()), "")  # no name of a column needs quotes
    heads = {mark: [cell.strip() for cell in first.split(mark)] for mark in ",;\t"}
    for delimiter, header in heads.items():
        known = [cell.casefold().strip('"') for cell in header]
        if "name" in known and len(known) > 1:
            records = list(_records(lines, delimiter, path))
            return [_of_record(known, record, path) for record in records[1:]]
    for header in heads.values():  # a typing error in one of ours
        if len(header) > 1 and any(get_close_matches(cell.casefold(), _KEYS) for cell in header):
            _check_columns([Cell.of(cell, 1, False) for cell in header], path)
            raise RecipeError(f"no column of {path.name} is called name", got=first)
    return None


def _records(lines: Sequence[str], delimiter: str, path: Path) -> Iterable[list[Cell]]:
    reader = csv.reader(
        [f"{line}\n" for line in lines], delimiter=delimiter, skipinitialspace=True, strict=True
    )
    first = 0
    try:
        for record in reader:
            raw = "\n".join(lines[first : reader.line_num])
            if any(record):
                yield [
                    Cell.of(cell, first + 1, '"' + cell.replace('"', '""') + '"' in raw)
                    for cell in record
                ]
            first = reader.line_num
    except csv.Error as error:
        raise RecipeError(
            f"{path.name} is not readable CSV", got=f"line {first + 1}: {error}"
        ) from None


def _of_record(header: Sequence[str], record: Sequence[Cell], path: Path) -> dict[str, Any]:
    _check_columns([Cell.of(name, 1, False) for name in header], path)
    if len(record) > len(header):
        raise RecipeError(
            f"line {record[0].line} of {path.name} has more columns than its header",
            got=", ".join(record),
            allowed=", ".join(header),
            next="a comma that belongs to a name: put the name in quotes",
        )
    row: dict[str, Any] = dict(zip(header, map(_tidy, record), strict=False))
    listed = row.get("aliases")
    if listed is not None:
        parts = listed.replace("|", ";").split(";")
        row["aliases"] = [Cell.of(p.strip(), listed.line, True) for p in parts if p.strip()]
    return row


def _of_lines(lines: Sequence[str], path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        quoted = len(text) > 2 and text[0] == text[-1] == '"'
        cell = Cell.of(text[1:-1] if quoted else text, number, quoted)
        odd = not quoted and (
            text.startswith("- ") or " #" in text or (not rows and text.casefold() in _HEADERS)
        )
        if odd:
            raise RecipeError(
                f"line {number} of {path.name} is more than a name",
                got=text,
                allowed="one name a line; # at the start of a line is a comment; a header is `name`",
                next=f'if it is the name: "{text}", in quotes; rows with dashes: call the file .yaml',
            )
        if not (not rows and text.casefold() == "name" and path.suffix.lower() in (".csv", ".tsv")):
            rows.append({"name": cell})
    return rows


def _tidy(cell: Cell) -> Cell:
    return cell if cell.quoted else Cell.of(cell.strip(), cell.line, False)


def _check_columns(names: Sequence[Any], path: Path) -> None:
    for name in names:
        if name not in _KEYS:
            line = f"line {name.line} of {path.name}" if isinstance(name, Cell) else path.name
            raise RecipeError(
                f"{line} has an unknown column {str(name)!r}",
                allowed=did_you_mean(str(name), _KEYS),
            )


def _checked(rows: Sequence[dict[str, Any]], path: Path, kind: str) -> list[dict[str, Any]]:
    """The rows as plain mappings, each a concept, no name twice."""
    found: list[dict[str, Any]] = []
    seen: dict[str, Cell] = {}
    for row in rows:
        cells = [cell for cell in (row.get("name"), *row.get("aliases", ())) if cell is not None]
        line = next(iter(cells or row.values())).line
        if not row.get("name"):
            raise RecipeError(
                f"line {line} of {path.name} has no name", next="name it, or delete it"
            )
        plain = {
            "name": str(row["name"]),
            "aliases": [str(alias) for alias in row.get("aliases", ())],
            "kind": str(row.get("kind") or kind),
        }
        at = f"line {line} of {path.name}"
        try:
            Concept.model_validate(plain)
        except ValidationError as error:
            fault = error.errors()[0]
            raise RecipeError(
                f"{at} is no concept",
                got=f"{fault['loc'][0]}: {fault['input']!r}"[:120],
                allowed=str(fault["msg"]).removeprefix("Value error, "),
            ) from None
        for cell in cells:
            if (before := seen.setdefault(fold(cell), cell)) is not cell:
                raise RecipeError(
                    f"{str(cell)!r} stands twice in {path.name}",
                    got=f"{str(before)!r} on line {before.line}, {str(cell)!r} on line {cell.line}",
                    next="delete one",
                )
        found.append(plain)
    return found


def _ask(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Refuse unquoted names that are perhaps none."""
    for row in rows:
        for cell in (row["name"], *row.get("aliases", ())):
            at = f"line {cell.line} of {path.name}"

            def other(_: str, names: list[str], at: str = at) -> str:
                return f"{', '.join(names)}, one a line instead of {at}"

            def one(name: str, at: str = at) -> str:
                return f'"{name}" in quotes, {at}'

            refuse_doubtful([] if cell.quoted else [cell], other, one)
