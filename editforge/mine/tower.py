"""A CLIP whose text tower is the pipeline's: from what the denoiser reads to CLIP's shared space.

What a pipeline reads of an encoder are its last states, or those before the last layer, with or without
the final norm (the family says which). CLIP's feature of a position is

    W LN(layer_last(h))     or     W LN(h),  W h      as far as that is done already
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from editforge.families.encode import TextEncoder
from editforge.families.schema import Family
from editforge.ground.errors import RecipeError
from editforge.judges.clip import Clip

_PROBES = ("a photo", "something red, oil painting", "two", "the old town at night")
_WITHIN = 0.02  # of the states' size: float16 files and other kernels, never another tower


class Tower:
    """The text tower of a CLIP inside a pipeline's text states.

    Args:
        clip: with a picture tower.
        encoder: the pipeline's text side.
        family: which says what of an encoder the denoiser reads.

    Raises:
        RecipeError: none of the pipeline's text encoders is this CLIP's text tower.
    """

    def __init__(self, clip: Clip, encoder: TextEncoder, family: Family) -> None:
        self.clip, self._encoder, self._text = clip, encoder, clip.model.text_model
        self.window = encoder.window
        self.empty = encoder.encode([""])  # (1, q, d)
        states, start = encoder.encode(_PROBES), 0
        for part in family.text:
            columns = slice(start, start + part.width)
            start += part.width
            self._last, self._normed = part.states == "last", part.final_norm
            if part.width != clip.model.config.text_config.hidden_size:
                continue
            if self._normed and not self._last:
                continue  # a norm cannot be undone, so the last layer cannot be run
            # the pipeline's: it may pad otherwise, and padding is read
            self._tokenizer = getattr(encoder.pipe, part.tokenizer)
            probes = self._tokens(_PROBES)
            if int(probes["input_ids"].max()) >= len(self.embeddings):
                continue
            own = self._read(probes)
            if float((own - states[..., columns]).norm() / own.norm()) < _WITHIN:
                self.columns = columns
                return
        raise RecipeError(
            "this CLIP's text tower is none of the pipeline's text encoders",
            got=f"width {clip.model.config.text_config.hidden_size}, "
            f"{clip.model.config.text_config.num_hidden_layers} layers",
            allowed=f"the CLIP that {family.title} was trained with",
            next="--set mine.prototypes.clip=FOLDER or a Hub id, for example "
            "openai/clip-vit-large-patch14 for SD 1.x",
        )

    def features(self, h: Tensor) -> Tensor:
        """CLIP's unit features (..., w) of single states (..., d) that the pipeline reads.

        A state before the last layer is put at the last position of the empty prompt for that layer.
        """
        own = h[..., self.columns]
        if not self._last:
            own = self._through_last(own)
        if not (self._last and self._normed):
            own = self._text.final_layer_norm(own)
        return normalize(self.clip.model.text_projection(own), dim=-1)

    def norm(self, u: Tensor) -> Tensor:
        """What makes any vector a state of the kind that the pipeline reads: LN, or nothing."""
        return self._text.final_layer_norm(u) if self._normed else u

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The pipeline's states at the end of each text (n, d), CLIP's unit features there (n, w)."""
        lengths = [min(len(self._encoder.tokens(text)), self.window - 2) for text in texts]
        states = self._encoder.encode(list(texts), window=max(lengths, default=0) + 2)
        at = torch.tensor(lengths) + 1
        ends = states[torch.arange(len(texts)), at]
        found = []
        for first in range(0, len(texts), 256):
            tokens = self._tokens(texts[first : first + 256], padding=True)
            pooled = self.clip.model.get_text_features(**tokens).pooler_output
            found.append(normalize(pooled, dim=-1))
        return ends, torch.cat(found)

    def soft(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts of m free token embeddings (K, m, d_t): the states (K, q, d_t) and features (K, w).

        The whole encoder runs: begin of text, the m vectors, end of text, padding.
        """
        K, m, _ = vectors.shape
        filler = self._tokens([" ".join(["a"] * m)])["input_ids"].expand(K, -1)

        def placed(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return torch.cat([output[:, :1], vectors.to(output), output[:, 1 + m :]], dim=1)

        table = self._text.embeddings.token_embedding
        handle = table.register_forward_hook(placed)
        try:
            out = self._text(input_ids=filler, output_hidden_states=True)
        finally:
            handle.remove()
        feature = normalize(
            self.clip.model.text_projection(out.last_hidden_state[:, 1 + m]), dim=-1
        )
        return self._kind(out), feature

    @property
    def embeddings(self) -> Tensor:
        """The table of token embeddings (V, d_t)."""
        found: Tensor = self._text.embeddings.token_embedding.weight.detach()
        return found

    def _tokens(self, texts: Sequence[str], padding: Any = "max_length") -> Any:
        return self._tokenizer(
            list(texts),
            padding=padding,
            max_length=self.window,
            truncation=True,
            return_tensors="pt",
        )

    @torch.no_grad()
    def _read(self, tokens: Any) -> Tensor:
        # pipelines hand no mask to the encoder: padding reads padding
        return self._kind(self._text(input_ids=tokens["input_ids"], output_hidden_states=True))

    def _kind(self, out: Any) -> Tensor:
        if self._last:
            return out.last_hidden_state if self._normed else out.hidden_states[-1]
        states = out.hidden_states[-2]
        return self._text.final_layer_norm(states) if self._normed else states

    def _through_last(self, own: Tensor) -> Tensor:
        """The last layer at the last position, behind the empty prompt's states."""
        flat = own.reshape(-1, own.shape[-1])
        before = self.empty[..., self.columns].expand(len(flat), -1, -1)
        states = torch.cat([before[:, :-1], flat[:, None]], dim=1)
        q = states.shape[1]
        mask = torch.full((q, q), float("-inf")).triu(1)[None, None]
        out = self._text.encoder.layers[-1](states, mask)
        out = out[0] if isinstance(out, tuple) else out
        return out[:, -1].reshape(own.shape)
