"""A Space that shows a pushed eraser: three files, and the page is the one of `editforge try`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from editforge.ground.disk import dump_yaml, write_text
from editforge.ground.errors import PackageError
from editforge.ground.places import is_hub_id
from editforge.ground.version import __version__
from editforge.package.facts import read_facts, repository
from editforge.run.page import check_gradio
from editforge.run.saved import local_folder

_LICENSE = ("license", "license_name", "license_link")


def write_space(repo: str, folder: Path) -> None:
    """Write `app.py`, `requirements.txt` and `README.md` with the settings of a Space.

    The license is the repository's own, which is the base's.

    Args:
        repo: a pushed package, `OWNER/NAME`.
        folder: absent or empty.

    Raises:
        PackageError: no pushed package of ours, or the folder holds files.
        RecipeError: no gradio here, whose version the Space is to have.
    """
    check_gradio()
    if not is_hub_id(repo):
        raise PackageError(
            "a Space loads a repository that was pushed",
            got=repo,
            allowed="OWNER/NAME",
            next="editforge push RUN YOUR-NAME/REPO, then this with that name",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError("the folder holds files", got=folder, next="--space ANOTHER")
    here = repository(local_folder(repo))
    if here is None:
        raise PackageError(
            "this repository is no package of EditForge", got=repo, next="editforge push --help"
        )
    facts = read_facts(here)
    names = ", ".join(concept.name for concept in facts.claims.concepts)
    settings: dict[str, Any] = {
        "title": f"{names or repo}: base and edited",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "models": [repo],
        **_license(here / "README.md", repo),
    }
    files = {
        "app.py": f"from editforge.run.page import space\n\nspace({repo!r})\n",
        "requirements.txt": f"editforge[try]=={__version__}\n",
        "README.md": f"---\n{dump_yaml(settings)}---\n\n`{repo}` beside its base, on the same noise. "
        "An eraser is a preference, not a guarantee.\n",
    }
    for name, text in files.items():
        write_text(folder / name, text)


def _license(card: Path, repo: str) -> dict[str, str]:
    from huggingface_hub import metadata_load

    told = (metadata_load(card) if card.is_file() else None) or {}
    found = {key: told[key] for key in _LICENSE if isinstance(told.get(key), str)}
    link = found.get("license_link", "")
    if link and "://" not in link:  # a file of the repository
        found["license_link"] = f"https://huggingface.co/{repo}/blob/main/{link}"
    return found
