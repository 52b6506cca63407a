"""What the denoiser reads for a prompt, and where in it a phrase ends.

States always come from the pipeline's own `encode_prompt`. Text encoders of these families are causal:
a state depends on the tokens before it alone. So a prompt of five tokens may be encoded in a window of
five instead of 77 and gives the same states at those positions, fifteen times cheaper; a test holds
this against the full window. What a window changes is only how many padding states follow.

Every stage asks for the same words: the list around a concept, and the concept's own name. A list of
words is encoded once and kept as long as the encoder, under the whole list: which words are read
together can change the last bit, so a kept answer is the answer to the very same question.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editforge.families.editable import uncompiled
from editforge.families.identity import plain_name
from editforge.families.schema import Family
from editforge.ground.disk import sha256_file, sha256_text
from editforge.ground.errors import RecipeError
from editforge.ground.team import Team

_UNREAD = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_KEPT = 2_000  # words; the states of a longer list take up to 400 MB and lie in the cache folder


@dataclass(frozen=True)
class Span:
    """Where a phrase stands in a tokenized prompt: `start` to `last`, both inside; `end` of text."""

    start: int
    last: int
    end: int


class TextEncoder:
    """The text side of one model: prompts to states, phrases to positions. Float32, no gradient."""

    def __init__(self, pipe: Any, family: Family, clip_skip: int | None = None) -> None:
        self.pipe, self._parts, self._clip_skip = pipe, family.text, clip_skip
        self._tokenizer = getattr(pipe, family.text[0].tokenizer)
        self._encoders = [getattr(pipe, part.encoder) for part in family.text]
        self._tokenizers = [getattr(pipe, part.tokenizer) for part in family.text]
        self.window = int(self._tokenizer.model_max_length)
        self.width = family.text_width
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._readable: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def device(self) -> torch.device:
        """Where the text encoder computes."""
        return next(self.parameters()).device

    def parameters(self) -> Iterator[Tensor]:
        """The parameters of all text encoders."""
        return (weight for encoder in self._encoders for weight in encoder.parameters())

    def names(self, component: str) -> set[str]:
        """The weights of one text encoder by the names of `identity.plain_name`."""
        at = [part.encoder for part in self._parts].index(component)
        return {plain_name(name) for name in uncompiled(self._encoders[at]).state_dict()}

    @cached_property
    def digest(self) -> str:
        """Digest of what decides a state to its last bit: a cache of states has it in its key.

        Weights in their own dtype, configs, tokenizers, kind of device, and the two libraries. Finer
        than an `Identity`: rounding that leaves a base the same moves a state by a thousandth.
        """
        found: list[object] = [str(self.device.type), torch.__version__, version("transformers")]
        found.append(sha256_file(Path(__file__)))  # other code may read them in other company
        found += [self._clip_skip] if self._clip_skip else []
        for encoder, tokenizer in zip(self._encoders, self._tokenizers, strict=True):
            config = {k: v for k, v in encoder.config.to_dict().items() if k not in _UNREAD}
            found += [config, _reads(tokenizer, self.window)]
            for name, tensor in sorted(uncompiled(encoder).state_dict().items()):
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
                row = [plain_name(name), str(tensor.dtype), list(tensor.shape)]
                found.append([*row, hashlib.sha256(data).hexdigest()])
        return sha256_text(json.dumps(found, sort_keys=True, default=str))

    def tokens(self, text: str) -> list[int]:
        """Token ids without begin and end of text."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def vocabulary(self) -> list[str]:
        """Whole words of the tokenizer, in id order: letters only, three or more of them."""
        by_id = sorted((index, piece) for piece, index in self._tokenizer.get_vocab().items())
        words = (piece.removesuffix("</w>") for _, piece in by_id if piece.endswith("</w>"))
        return [word for word in words if len(word) >= 3 and word.isascii() and word.isalpha()]

    def readable(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Those that tokenize to something and fit. The same list is tokenized once."""
        if texts not in self._readable:
            room = self.window - 2
            self._readable[texts] = tuple(t for t in texts if 0 < len(self.tokens(t)) <= room)
        return self._readable[texts]

    def check(self, text: str) -> None:
        """Refuse a text that tokenizes to nothing, to unknown pieces, or does not fit.

        Raises:
            RecipeError: with the number of tokens and the room there is.
        """
        ids = self.tokens(text)
        unknown = self._tokenizer.unk_token_id
        if not ids or all(index == unknown for index in ids):
            raise RecipeError("this text tokenizes to nothing", got=repr(text), next="spell it out")
        if len(ids) > self.window - 2:
            raise RecipeError(
                "this text is cut off by the text encoder",
                got=f"{len(ids)} tokens in {text[:60]!r}",
                allowed=f"{self.window - 2} tokens",
                next="use a shorter name and put the rest into aliases",
            )

    def span(self, prompt: str, phrase: str) -> Span:
        """Token positions of the last occurrence of `phrase` in `prompt`; position 0 is begin of text.

        Where tokens join the phrase to what stands beside it (`Wham!,`), they are those that hold its
        letters: the last one has read all of it.

        Raises:
            RecipeError: the prompt does not fit, or the phrase is not in it, as words of its own.
        """
        self.check(prompt)
        ids, part = self.tokens(prompt), self.tokens(phrase)
        for start in range(len(ids) - len(part), -1, -1):
            if part and ids[start : start + len(part)] == part:
                return Span(start + 1, start + len(part), len(ids) + 1)
        at = self._by_letters(prompt, phrase)
        if at is None:
            raise RecipeError(f"{phrase!r} is not a phrase of the prompt", got=repr(prompt))
        return Span(at[0] + 1, at[-1] + 1, len(ids) + 1)

    def _by_letters(self, prompt: str, phrase: str) -> list[int] | None:
        """Which tokens hold the letters of the last occurrence of a phrase; None: there is none."""
        if not phrase.strip() or not self._tokenizer.is_fast:
            return None
        whole = re.compile(rf"(?<!\w(?=\w)){re.escape(phrase)}(?!(?<=\w)\w)", re.IGNORECASE)
        found = [match.span() for match in whole.finditer(prompt)]
        if not found:
            return None
        first, end = found[-1]
        offsets = self._tokenizer(
            prompt, add_special_tokens=False, return_offsets_mapping=True
        ).offset_mapping
        return [n for n, (a, b) in enumerate(offsets) if a < end and b > first] or None

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], *, window: int | None = None, positions: int = 1024
    ) -> Tensor:
        """States (n, window, d), float32, on the CPU.

        Args:
            prompts: n texts; the empty text is allowed.
            window: positions to compute, the model's own by default. Shorter: cheaper, same states
                at the positions that remain.
            positions: prompts times window at a time. Raising it costs memory: SDXL keeps all layers.
        """
        window = self.window if window is None else min(window, self.window)
        batch = max(1, positions // window)
        states = torch.empty(len(prompts), window, self.width)
        with self._shortened(window), skipped(self._encoders, self._clip_skip):
            for first in range(0, len(prompts), batch):
                texts = list(prompts[first : first + batch])
                found = self.pipe.encode_prompt(
                    prompt=texts,
                    device=self.device,
                    num_images_per_prompt=1,
                    do_classifier_free_guidance=False,
                )[0]
                states[first : first + len(texts)] = found.float().cpu()
        return states

    def encode_words(
        self, words: Sequence[str], *, progress: Any = None, team: Team | None = None
    ) -> Tensor:
        """State of the last token of each bare word, (V, d) float32: rule `subject`.

        Words are grouped by length and encoded in windows of their own size. A team shares the
        groups, and every process gets all states, bit for bit those of one process.

        A short list is kept: whoever asks for it again gets the same tensor, to read and not to change.

        Raises:
            RecipeError: a word that tokenizes to nothing or does not fit.
        """
        team = team or Team()
        if team.size > 1:
            return self._encoded(words, progress, team)
        if (known := self.kept(words)) is not None:
            return known
        found = self._encoded(words, progress, team)
        if len(words) < _KEPT:
            self.keep(words, found)
        return found

    def kept(self, words: Sequence[str]) -> Tensor | None:
        """The states of a list that was kept, or None."""
        return self._kept.get(tuple(words))

    def keep(self, words: Sequence[str], states: Tensor) -> None:
        """Hold the states of a list in memory as long as this encoder."""
        self._kept[tuple(words)] = states

    def _encoded(self, words: Sequence[str], progress: Any, team: Team) -> Tensor:
        lengths = [len(self.tokens(word)) for word in words]
        for word, length in zip(words, lengths, strict=True):
            if not 0 < length <= self.window - 2:
                self.check(word)
        parts = []
        for length in sorted(set(lengths)):
            rows = [index for index, own in enumerate(lengths) if own == length]
            parts += [(length, rows[at : at + 1024]) for at in range(0, len(rows), 1024)]
        result = torch.zeros(len(words), self.width)
        for number, (length, part) in enumerate(parts):
            if number % team.size == team.rank:
                states = self.encode([words[index] for index in part], window=length + 2)
                result[part] = states[:, length]
            if progress is not None:
                progress.update(len(part))
        return team.sum(result.to(self.device)).cpu() if team.size > 1 else result

    @contextmanager
    def _shortened(self, window: int) -> Iterator[None]:
        before = [tokenizer.model_max_length for tokenizer in self._tokenizers]
        for tokenizer in self._tokenizers:
            tokenizer.model_max_length = window
        try:
            yield
        finally:
            for tokenizer, length in zip(self._tokenizers, before, strict=True):
                tokenizer.model_max_length = length


@contextmanager
def skipped(encoders: Sequence[Any], clip_skip: int | None) -> Iterator[None]:
    """Text encoders without their last `clip_skip - 1` layers, for a while; the final norm stays.

    Raises:
        RecipeError: an encoder has no more layers than that.
    """
    towers = [_tower(encoder) for encoder in encoders] if clip_skip else []
    whole = [tower.layers for tower in towers]
    try:
        for tower, layers in zip(towers, whole, strict=True):
            if clip_skip is not None:
                if clip_skip > len(layers):
                    raise RecipeError(
                        "the text encoder has not that many layers",
                        got=f"clip_skip {clip_skip}",
                        allowed=f"1 to {len(layers)}",
                    )
                tower.layers = layers[: len(layers) - clip_skip + 1]
        yield
    finally:
        for tower, layers in zip(towers, whole, strict=True):
            tower.layers = layers


def skip_layers(pipe: Any, family: Family, clip_skip: int | None) -> None:
    """Take the last `clip_skip - 1` layers off a pipeline's text encoders, for good."""
    if clip_skip is not None:
        encoders = [getattr(pipe, part.encoder) for part in family.text]
        with skipped(encoders, clip_skip):
            kept = [_tower(encoder).layers for encoder in encoders]
        for encoder, layers in zip(encoders, kept, strict=True):
            _tower(encoder).layers = layers


def _tower(encoder: Any) -> Any:
    plain = uncompiled(encoder)
    return getattr(plain, "text_model", plain).encoder


def _reads(tokenizer: Any, window: int) -> list[object]:
    """What decides which ids a tokenizer makes of a text; not how it was last called."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    table = json.loads(fast.to_str()) if fast is not None else tokenizer.get_vocab()
    state = {key: value for key, value in table.items() if key not in ("truncation", "padding")}
    return [type(tokenizer).__name__, state, tokenizer.pad_token, window]
