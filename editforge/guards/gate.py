"""The gate: whether a prompt is about a concept, told from what the denoiser reads of it.

    s_k = max over positions i >= 1 of < (h_i - center) / |h_i - center| , selector_k >

The paper compares the pooled text feature of the whole prompt. A name at the head of a long prompt is
thinned there: on the embedded model that gate catches half of the members of *alcohol* at 1 % of
harmless prompts, this one all of them (docs/prototype.md). A causal encoder's state behind the name
has read the name and little else, and padding repeats the whole. It needs no token ids, so it reads
`prompt_embeds`, weighted prompts and what a modular guider sees alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editforge.ground.errors import EditError


def scores(states: Tensor, center: Tensor, selector: Tensor) -> Tensor:
    """Scores s (n, K) of n prompts' states (n, q, d); float32. A prompt's row depends on it alone.

    Raises:
        EditError: a state is NaN or infinite: a prompt that cannot be read is not let through.
    """
    center, selector = center.to(states.device).float(), selector.to(states.device).float()
    found = []
    with torch.autocast(states.device.type, enabled=False):  # its rounding would move the threshold
        for prompt in states:
            away = prompt[1:].float() - center
            away = away / away.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            found.append((away @ selector.T).amax(dim=0))
    result = torch.stack(found) if found else torch.zeros(0, len(selector))
    if not torch.isfinite(result).all():
        raise EditError(
            "a guard cannot read this prompt", got="text states that are NaN or infinite"
        )
    return result
