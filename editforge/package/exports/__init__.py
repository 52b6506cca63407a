"""In which forms does an eraser ship? One file a form; what is registered elsewhere is asked alike."""

from __future__ import annotations

from collections.abc import Sequence

from editforge.ground.errors import PackageError, did_you_mean
from editforge.recipe import registry
from editforge.recipe.export import Exportable, Exporter


def exporter(name: str) -> Exporter:
    """The exporter that is registered under a name.

    Raises:
        RecipeError: no such name, or a broken plugin.
    """
    made: Exporter = registry.get(registry.EXPORT, name).function()
    return made


def check_exports(model: Exportable, exports: Sequence[str]) -> None:
    """Refuse an export that nobody registered or that this base cannot have, one twice, or none.

    Raises:
        PackageError: with those there are.
    """
    if not exports or len(set(exports)) != len(exports):
        raise PackageError(
            "a package cannot export this",
            got=", ".join(exports) or "nothing",
            allowed="at least one export, each once",
        )
    known = registry.known(registry.EXPORT)
    for name in exports:
        if name not in known:
            raise PackageError(
                "EditForge cannot export this",
                got=name,
                allowed=did_you_mean(name, known),
                next="editforge list stages",
            )
        exporter(name).check(model)


def check_accepted(eraser: type, exports: Sequence[str]) -> None:
    """Refuse an export that cannot write erasers of a class.

    Raises:
        PackageError: with those that can.
    """
    if found := registry.misfit(eraser, exports):
        name, accepted, takers = found
        raise PackageError(
            f"the export {name} does not take this eraser",
            got=eraser.__name__,
            allowed=accepted,
            next=f"one that does: {takers}" if takers else "register one: docs/extending.md",
        )


def check_dense(exports: Sequence[str]) -> None:
    """Refuse an export that cannot hold changes that are no low-rank factors.

    Raises:
        PackageError: with those that can.
    """
    for name in exports:
        if not exporter(name).holds_dense:
            raise PackageError(
                f"the export {name} holds low-rank factors alone, and whole parameters are trained",
                got="align.train other than lora",
                allowed=", ".join(
                    n for n in registry.known(registry.EXPORT) if exporter(n).holds_dense
                ),
                next="--export unet, or --set align.train=lora",
            )
