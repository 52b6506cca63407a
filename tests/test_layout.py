"""Equal pictures are equal to the last bit of every number, wherever they lie in memory.

A network sums in another order over another layout. A picture that was just drawn lies plane by plane,
one read back from the disk row by row: a resumed run must not see the difference.
"""

import numpy as np
import pytest

from editforge import emoji
from editforge.evaluate.prompts import Prompt
from editforge.families.draw import Sampler, sample
from editforge.judges.emoji import EmojiJudge

PROMPTS = [
    Prompt(id=f"name/owl/{n}", set="name", name="owl", concept="owl", text="an owl", template="t1",
           labels=("owl",), seeds=(n,))
    for n in range(4)
]  # fmt: skip


def test_pictures_read_back_lie_as_pictures_just_drawn(tmp_path):
    pipe, sampler = emoji.load_pipeline(), Sampler(steps=1, guidance=4.0, size=64, batch=2)
    options = {"progress": False, "workdir": tmp_path}
    drawn = sample(pipe, PROMPTS, sampler, **options)
    read = sample(pipe, PROMPTS, sampler, **options)
    (tmp_path / "images-001.safetensors").unlink()
    mixed = sample(pipe, PROMPTS, sampler, **options)
    assert drawn.flags.c_contiguous
    assert drawn.strides == read.strides == mixed.strides
    assert drawn.tobytes() == read.tobytes() == mixed.tobytes()


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_judge_gives_the_same_bits_for_any_layout_of_the_same_pictures(which):
    judge = EmojiJudge(which)
    rows = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    planes = np.ascontiguousarray(rows.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert planes.strides != rows.strides
    assert np.array_equal(planes, rows)
    assert np.array_equal(judge.probabilities(planes), judge.probabilities(rows))
    for one, other in zip(judge.features(planes), judge.features(rows), strict=True):
        assert np.array_equal(one, other)
        assert one.strides == other.strides
