"""Measure thresholds, main colors and neighbors on the embedded base model: about three minutes.

    python -m editforge.evaluate.calibrate

Each of the 240 names is drawn eleven times at threshold seeds, which no gate uses. A threshold is
the smallest tau at which a judge sees a name in at most 0.5 % of the images of *other* names, and
never under `FLOOR`. The art that the judges learned from is not shipped, so base samples alone are
used, never those of an oracle or an edited model.

Why a floor: the bound alone gives a median tau of 0.05 for judge a and 0.08 for b, because all
false positives may come from one look-alike, which is just what an erased concept may become.
Floors, measured on these samples (either judge):

    floor                                              none   0.1    0.2    0.3    0.5
    samples of the name itself that are seen           95 %   92 %   88 %   85 %   78 %
    samples of other names that are seen               0.9 %  0.4 %  0.2 %  0.1 %  0.06 %
    pairs of names, one seen in over 10 % of the other        514    251    142    45
    names seen in two samples put side by side, wrongly  5.7  2.2    0.9    0.5

At 0.2 most look-alike pairs are gone and few true samples are missed. Some stay alike at any floor,
spider and ant, dragon and lizard, tomato and red apple, star and sun: as targets of each other they
fail the gate.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from editforge import emoji
from editforge.evaluate.prompts import THRESHOLD_SEEDS, Prompt
from editforge.evaluate.prompts.emoji import held_out
from editforge.families import draw as generate
from editforge.families.sampling import default_sampler
from editforge.ground.disk import write_json
from editforge.ground.names import with_article
from editforge.judges import calibration
from editforge.judges.emoji import EmojiJudge

FLOOR = 0.2
FALSE_POSITIVES = 0.005
RANKED = 12
_ON_WHITE = ("t1", "t2", "t3", "t7")
_TWICE = (0, 3, 6)


def main() -> None:
    """Draw, measure, write `calibration.json`."""
    prompts = calibration_prompts()
    images = generate.sample(emoji.load_pipeline(), prompts, default_sampler("emoji"))
    rows = [prompt for prompt in prompts for _ in prompt.seeds]
    near = _near(images, rows)
    write_json(
        calibration.PATH,
        {
            "made_with": calibration.fingerprint(),
            "floor": FLOOR,
            "false_positives": FALSE_POSITIVES,
            "images": len(rows),
            "thresholds": {
                which: thresholds(EmojiJudge(which).probabilities(images), rows)
                for which in ("a", "b")
            },
            "main_colors": _main_colors(images, rows),
            "near": near,
        },
    )
    print(f"wrote {calibration.PATH.name} from {len(rows)} images", file=sys.stderr)


def calibration_prompts() -> list[Prompt]:
    """The eight held-out templates of all names, three of them twice."""
    first = THRESHOLD_SEEDS.start
    return [
        held_out(
            name, which, "far", name, range(first, first + 1 + (which in _TWICE)), any_color=True
        )
        for name in emoji.manifest().names
        for which in range(8)
    ]


def thresholds(probabilities: NDArray[np.float32], rows: list[Prompt]) -> dict[str, float]:
    """Tau by set of labels: each name with its twins, and each group."""
    manifest = emoji.manifest()
    column = {name: index for index, name in enumerate(manifest.names)}
    found = {}
    for word in (*manifest.names, *manifest.group_words, *manifest.broad):
        wanted = manifest.labels(word)
        other = np.array([row.name not in wanted for row in rows])
        summed = probabilities[other][:, [column[name] for name in wanted]].sum(axis=1)
        allowed = int(FALSE_POSITIVES * len(summed))
        just_above = np.nextafter(np.sort(summed)[-allowed - 1], np.float32(2))
        found[calibration.label_key(wanted)] = round(max(FLOOR, float(just_above)), 6)
    return found


def _main_colors(images: NDArray[np.uint8], rows: list[Prompt]) -> dict[str, str]:
    """The background a drawing would vanish on: the palette color of most of its pixels."""
    manifest = emoji.manifest()
    names = list(manifest.colors)
    palette = np.array([manifest.colors[name] for name in names], dtype=np.float32)
    found = {}
    for name in manifest.names:
        own = [i for i, row in enumerate(rows) if row.name == name and row.template in _ON_WHITE]
        pixels = images[own].reshape(-1, 3).astype(np.float32)
        nearest = np.linalg.norm(pixels[:, None] - palette, axis=2).argmin(axis=1)
        counts = Counter(names[index] for index in nearest if names[index] != "white")
        if counts:
            found[name] = min(counts, key=lambda color: (-counts[color], color))
    return found


@torch.no_grad()
def _near(images: NDArray[np.uint8], rows: list[Prompt]) -> dict[str, list[list[str]]]:
    """For words without a list: the nearest of the 180 names by text, then by appearance."""
    manifest, (clip, tokenizer) = emoji.manifest(), emoji.load_clip()
    words = [*manifest.names, *manifest.group_words]
    tokens = tokenizer([with_article(word) for word in words], padding=True, return_tensors="pt")
    text = normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = torch.cat([clip.get_image_features(part).pooler_output for part in pixels.split(256)])
    seen = normalize(seen, dim=-1)
    looks = []
    for word in words:
        own = [i for i, row in enumerate(rows) if row.name in (manifest.labels(word) or (word,))]
        looks.append(normalize(seen[own].mean(dim=0), dim=-1))
    look = torch.stack(looks)
    found = {}
    for index, word in enumerate(words):
        if word in manifest.near or word in manifest.broad:
            continue
        allowed = [i for i, n in enumerate(manifest.names) if n in manifest.words]
        allowed = [i for i in allowed if manifest.names[i] not in manifest.labels(word)]
        found[word] = [
            [words[allowed[i]] for i in (space[allowed] @ space[index]).topk(RANKED).indices]
            for space in (text, look)
        ]
    return found


if __name__ == "__main__":
    main()
