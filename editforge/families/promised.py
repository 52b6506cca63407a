"""The weights that a denoiser's own config promises: diffusers' class built of it, without numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editforge.ground.errors import FamilyError


def promised(config: Mapping[str, Any]) -> frozenset[str]:
    """Every parameter name of the `UNet2DConditionModel` of this config.

    Raises:
        FamilyError: diffusers cannot build it.
    """
    import torch
    from diffusers import UNet2DConditionModel

    try:
        with torch.device("meta"):
            return frozenset(UNet2DConditionModel.from_config(dict(config)).state_dict())
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise FamilyError(
            "no denoiser can be built of this config.json",
            got=" ".join(str(error).split())[:200],
            next="download it again",
        ) from None
