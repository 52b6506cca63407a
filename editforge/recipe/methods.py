"""The recipes that ship: what `list methods` shows. Reading them imports no torch."""

from __future__ import annotations

from typing import Any

from editforge.ground.disk import read_yaml
from editforge.ground.resources import resource_folder


def methods() -> dict[str, dict[str, Any]]:
    """Name to `about` block, plus the names of its presets, of every shipped method."""
    found = {}
    for path in sorted(resource_folder("pipelines").glob("*.yaml")):
        body = read_yaml(path)
        found[path.stem] = {**body.get("about", {}), "presets": list(body.get("presets", {}))}
    return found
