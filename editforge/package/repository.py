"""What stands around the weights of one repository folder: card, license, pictures, `reproduce/`.

The order matters: the card is rendered from the files that are there, and the hashes in
`editforge.json` are taken last.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from editforge.artifacts.sums import FACTS, hashes
from editforge.families.config import EMBEDDED
from editforge.ground.disk import OWN, parse_yaml, write_json, write_text
from editforge.ground.names import shortened, slug
from editforge.package.card import render_card
from editforge.package.exports import exporter
from editforge.package.scrub import marks
from editforge.recipe.export import BaseModel

RESULTS = "editforge_results.json"
PINNED = ("diffusers", "huggingface_hub", "peft", "safetensors", "torch", "transformers")
_NOTICES = ("LICENSE", "NOTICE", "ATTRIBUTION")
_LINKED = ("LICENSE", "LICENSE.md")  # the only files that the Hub takes for a license link
_OWN = ("README.md", "LICENSE-note", FACTS, RESULTS, "images/", "reproduce/")
_HUB_NAME = 96  # characters of a repository, without its owner
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")


def surround(
    folder: Path,
    facts: dict[str, Any],
    results: Mapping[str, Any],
    evaluation: Path | None,
    notices: Sequence[Path],
    lists: Mapping[str, str],
) -> None:
    """Everything in a repository but its weights; the card and then the hashes come last."""
    if evaluation is not None:
        for source in sorted(evaluation.glob("images/*.png")):
            _copy(source, folder / "images" / source.name)
        if (evaluation / "grid.png").is_file():
            _copy(evaluation / "grid.png", folder / "images" / "before_after.png")
    for source in notices:
        _copy(source, folder / source.name)
    write_text(folder / "LICENSE-note", _license_note(facts["base"], notices))
    write_json(folder / RESULTS, results)
    _reproduce(folder / "reproduce", facts, results, lists)
    write_json(folder / FACTS, facts)
    write_text(folder / "README.md", render_card(folder))
    write_json(folder / FACTS, {**facts, "files": hashes(folder, (FACTS,))})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def notices_of(model: BaseModel) -> list[Path]:
    """License and attribution files beside the base's weights, which travel with them.

    Those of the embedded model lie one folder above its pipeline.
    """
    folders = [model.folder]
    if model.label == EMBEDDED:
        folders.append(model.folder.parent)
    found = [path for folder in folders for path in folder.iterdir()]
    return sorted(
        path
        for path in found
        if path.name.upper().startswith(_NOTICES) and path.is_file() and path.stat().st_size < 2**20
    )


def public_words(provenance: Mapping[str, Any]) -> list[str]:
    """Concepts, targets and preserved names: words of the recipe, which may equal a user's name."""
    words = []
    for row in provenance.get("erased", []):
        words += [row.get("name"), row.get("target")]
        words += [*row.get("aliases", []), *row.get("mined", [])]
    return [str(word) for word in [*words, *provenance.get("preserve", [])] if word]


def listed_words(lists: Mapping[str, str]) -> list[str]:
    """Words of the lists that travel with a package and happen to be a user's or a host's name.

    No others: every word that is public here is left out where `scan` looks for leaks.
    """
    if not lists:
        return []
    named = [mark.pattern for mark in marks() if mark.name in ("the user name", "the host name")]
    words: list[str] = []
    for name, text in lists.items():
        body = parse_yaml(text, name, OWN)
        rows = [*body["concepts"], *body.get("preserve", [])]
        for row in body["concepts"]:
            rows += [*row.get("words", []), *row.get("candidates", [])]
        words += [row["word"] for row in rows if "word" in row]
    return [word for word in dict.fromkeys(words) if any(p.fullmatch(word) for p in named)]


def _license_note(base: Mapping[str, Any], notices: Sequence[Path]) -> str:
    said = base["license"] or "none that we could read"
    if base["license_name"]:
        said += f" ({base['license_name']})"
    lines = [f"These weights are derived from {base['label']}, whose declared license is: {said}."]
    if base["license_link"]:
        lines.append(f"License text: {base['license_link']}")
    if notices:
        lines.append(f"Notices of the base: {', '.join(path.name for path in notices)}.")
    lines.append(
        "The license was taken over from the base. Nothing was added to it or taken from it."
    )
    return "\n".join(lines) + "\n"


def _reproduce(
    folder: Path, facts: Mapping[str, Any], results: Mapping[str, Any], lists: Mapping[str, str]
) -> None:
    provenance = facts["provenance"]
    for name, content in lists.items():
        write_text(folder / name, content)
    write_text(folder / "recipe.yaml", facts["recipe"].rstrip() + "\n")
    pins = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in PINNED]
    version = provenance.get("editforge_version")
    pins = [*([f"editforge=={version}"] if version else []), *pins]
    write_text(folder / "requirements.txt", "\n".join(sorted(pins)) + "\n")
    write_json(
        folder / "reproduce.json",
        {
            "base": facts["base"],
            "seed": provenance.get("seed"),
            "evaluation_seeds": results.get("seeds"),
            "device": results.get("device"),
            "dtype": results.get("dtype"),
            "judges": results.get("judges", []),
            "vocabulary": provenance.get("vocabulary"),
            "edited_by_hand": provenance.get("edited_by_hand", []),
            "recipe_sha256": provenance.get("recipe_sha256"),
        },
    )
    where = "an empty folder"
    if lists:
        where = (
            f"a folder with copies of {', '.join(f'`{name}`' for name in ('recipe.yaml', *lists))}"
        )
    text = f"Install `requirements.txt`, then run this in {where}:\n\n"
    write_text(folder / "README.md", f"# How to repeat this\n\n{text}    {facts['command']}\n")


def is_copy(model: BaseModel, carried: Collection[str], name: str) -> bool:
    """True for a file that comes from the base and not from us, by its path in the package.

    Of a local base only vocabularies and weights count: its configs are as private as our own,
    whatever Hub model it is said to be a copy of.
    """
    export, _, rest = name.partition("/")
    if rest in carried:
        return True
    copied = not rest.startswith(_OWN) and exporter(export).copied(model.family, rest)
    return copied and (not model.local or rest.endswith((*_VOCABULARY, ".safetensors")))


def base_facts(model: BaseModel, carried: Sequence[Path]) -> dict[str, Any]:
    """The base as a package names it; a relative license link becomes one that leads somewhere."""
    link = model.license_link
    here = link in _LINKED and link in [path.name for path in carried]
    if link and "://" not in link and not here:
        on_hub = "/" in model.label and model.label != EMBEDDED
        place = f"https://huggingface.co/{model.label}/blob/{model.revision or 'main'}/{link}"
        link = place if on_hub else None
    return {
        "label": model.label,
        "revision": model.revision,
        "sha256": model.base_sha256,
        "license": model.license,
        "license_name": model.license_name,
        "license_link": link,
        "prediction_type": model.prediction_type,
        "variant": model.variant,
    }


def release_name(base: str, concepts: list[str]) -> str:
    """`<base>-<concept>-erased` in lower case, digits and hyphens; the stem users type in A1111.

    At most 96 characters, as a repository's name on the Hub.
    """
    slugs = [part for part in (slug(name, 40) for name in concepts) if part]
    listed = slugs if len(slugs) <= 3 else [slugs[0], "and", str(len(slugs) - 1), "more"]
    stem = "-".join([slug(base, 40) or "model", *(listed or ["concept"])])
    return shortened(stem, _HUB_NAME - len("-erased"), "\n".join([base, *concepts])) + "-erased"
