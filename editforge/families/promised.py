"""A class of diffusers built of a config, without numbers: the weights that a config promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editforge.ground.errors import FamilyError


def outlined(cls: Any, config: Mapping[str, Any]) -> Any:
    """The model of this config on the meta device: names and shapes, no memory.

    Raises:
        FamilyError: diffusers cannot build it.
    """
    import torch

    try:
        with torch.device("meta"):
            return cls.from_config(dict(config)).eval()
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise FamilyError(
            f"no {cls.__name__} can be built of its config.json",
            got=" ".join(str(error).split())[:200],
            next="download it again",
        ) from None


def promised(config: Mapping[str, Any]) -> frozenset[str]:
    """Every parameter name of the `UNet2DConditionModel` of this config."""
    from diffusers import UNet2DConditionModel

    return frozenset(outlined(UNet2DConditionModel, config).state_dict())
