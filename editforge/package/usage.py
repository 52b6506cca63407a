"""How a form is used, in the words of `model_cards/use_NAME.md.j2`."""

from __future__ import annotations

from editforge.ground.resources import resource_folder
from editforge.recipe.export import Exporter


class TemplateExporter(Exporter):
    """An exporter of ours: its card's section is a template of its name."""

    def usage(self) -> str:
        """The template of this name."""
        path = resource_folder("model_cards") / f"use_{self.name}.md.j2"
        return path.read_text(encoding="utf-8")
