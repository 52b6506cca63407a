"""Where the data folders `pipelines/` and `model_cards/` are: in a checkout or in the wheel."""

from __future__ import annotations

from pathlib import Path


def resource_folder(name: str) -> Path:
    """The folder `name` of the checkout, or its copy that the wheel carries in `_data/`."""
    package = Path(__file__).parents[1]
    carried = package / "_data" / name
    return carried if carried.is_dir() else package.parent / name
