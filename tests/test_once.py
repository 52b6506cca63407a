"""What a run has computed it does not compute again: counted at the encoder and at the hash."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from editforge import emoji
from editforge.edit.held import background
from editforge.edit.vectors import Columns
from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts, Prompt
from editforge.families import draw, encode, sampling, vocabulary
from editforge.families.config import ModelConfig
from editforge.families.draw import Sampler, sample
from editforge.families.encode import TextEncoder
from editforge.families.live import LiveModel
from editforge.families.model import Model, Origin
from editforge.families.open import open_model
from editforge.families.vocabulary import load_vocabulary, word_list
from editforge.ground.errors import RecipeError
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.order import execute
from tests.models import LOOSE, family_file, opened, recipe, solved, tiny_folder
from tests.tiny import save_tiny, tiny_pipeline


def fresh(kind: str = "sd1") -> Model:
    """A model that has read nothing yet."""
    return Model(tiny_folder(kind), Origin("tiny"), family=family_file(kind))


@pytest.fixture
def texts(monkeypatch):
    """Every call of the encoder: its prompts and its window."""
    calls = Counter()
    own = TextEncoder.encode

    def counted(self, prompts, *, window=None, **options):
        calls[tuple(prompts), window] += 1
        return own(self, prompts, window=window, **options)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    return calls


@pytest.fixture
def hashed(monkeypatch):
    """Every file that is read for its hash."""
    calls = Counter()
    own = hashlib.file_digest

    def counted(file, *rest):
        calls[Path(file.name)] += 1
        return own(file, *rest)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return calls


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["default", "realera"])
def test_miners_target_and_edit_read_the_word_list_and_the_concept_once(method, texts):
    with open_model(ModelConfig(device="cpu")) as model:
        solved(model, recipe("violin", None, "align=null", method=method))
    assert sum(len(prompts) for prompts, _ in texts) > len(emoji.words())
    # alone, and first of its own spellings: two lists, and the same one word of one token in both
    assert {call: n for call, n in texts.items() if n > 1} == {(("violin",), 3): 2}
    with open_model(ModelConfig(device="cpu")) as other:
        for words, states in model.encoder._kept.items():
            assert torch.equal(states, other.encoder.encode_words(words))  # nobody changed it


def test_a_short_list_is_kept_and_a_long_one_is_not(texts, monkeypatch):
    encoder, words = fresh().encoder, ("violin", "van gogh", "dog")
    first = encoder.encode_words(words)
    calls = texts.copy()
    assert encoder.encode_words(list(words)) is first
    assert texts == calls
    assert not torch.equal(encoder.encode_words(words[::-1]), first)  # another list
    with pytest.raises(RecipeError, match="tokenizes to nothing"):
        encoder.encode_words(["", "dog"])
    monkeypatch.setattr(encode, "_KEPT", 3)
    encoder = fresh().encoder
    assert torch.equal(encoder.encode_words(words), first)
    assert encoder.kept(words) is None


def test_a_pipeline_whose_encoder_changed_is_read_anew():
    pipe = tiny_pipeline("sd1")
    before = LiveModel(pipe, family_file("sd1")).encoder.encode_words(["violin"])
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(2)
    after = LiveModel(pipe, family_file("sd1")).encoder.encode_words(["violin"])
    assert not torch.allclose(before, after)


def test_a_short_list_needs_no_hash_of_the_model(hashed):
    model = fresh()
    load_vocabulary(model, "tokenizer")
    assert not hashed
    assert "digest" not in vars(model)


def test_a_long_list_lies_on_the_disk_or_where_that_is_refused_in_memory(
    texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(vocabulary, "_CACHED_FROM", 5)
    monkeypatch.setattr(encode, "_KEPT", 0)
    (tmp_path / "file").write_text("no folder")
    found = []
    for cache, in_memory in ((tmp_path / "cache", False), (tmp_path / "file", True)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        model = fresh()
        texts.clear()
        found.append(load_vocabulary(model, "tokenizer").vectors)
        assert texts
        texts.clear()
        assert torch.equal(load_vocabulary(model, "tokenizer").vectors, found[0])
        assert not texts
        kept = model.encoder.kept(word_list(model, "tokenizer"))
        assert (kept is not None) is in_memory


def test_a_word_file_is_tokenized_once(tmp_path, monkeypatch):
    path, encoder = tmp_path / "words.txt", fresh().encoder
    path.write_text("violin\ndog\n")
    calls, own = [], TextEncoder.tokens
    monkeypatch.setattr(
        TextEncoder, "tokens", lambda self, text: calls.append(text) or own(self, text)
    )
    family = opened("sd1").family
    for _ in range(2):
        assert vocabulary.words_of(family, encoder, str(path)) == ("violin", "dog")
    assert calls == ["violin", "dog"]
    path.write_text("violin\n")
    assert vocabulary.words_of(family, encoder, str(path)) == ("violin",)  # the file, not its name


@pytest.mark.parametrize("small", [True, False])
def test_what_is_taken_off_the_background_is_not_read_again(small, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("editforge.edit.held._CACHED_FROM", 2**60 if small else 0)
    model, taken = fresh(), ["dog", "violin"]
    columns = Columns(model, ("{n}", "a {n}"), "phrase")
    with_cache = []
    for _ in range(2):  # the second time the sum lies in the cache, unless the list is small
        held = Columns(model, ("{n}", "a {n}"), "phrase")
        with_cache.append(background(held, "tokenizer", 200, taken, Context(model)))
        texts.clear()
        for name in taken:
            torch.testing.assert_close(held.of(name), columns.of(name))
            assert held.pair(name, "house")[0].shape == (model.family.text_width, 12)
        assert held.unread(taken) == []
    assert torch.equal(*with_cache)
    words = word_list(model, "tokenizer")
    texts.clear()
    background(Columns(model, ("{n}", "a {n}"), "phrase"), "tokenizer", 200, taken, Context(model))
    read = Counter(text for prompts, _ in texts for text in prompts)
    assert read["dog"] == 1
    assert len(read) == 2 * (len(words) if small else len(taken))


# --- hashes -------------------------------------------------------------------------------------


def test_each_file_of_a_base_is_hashed_once_for_all_its_digests(hashed, tmp_path):
    base = save_tiny(tmp_path / "base", "sd1")
    with open_model(ModelConfig(id=str(base), family=family_file("sd1"), device="cpu")) as model:
        told = model.label, model.base_sha256, model.digest
    own = Counter({path: n for path, n in hashed.items() if base in path.parents})
    assert set(own.values()) == {1}
    plain = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in own}

    def digest(rows):
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    every = digest({str(path.relative_to(base)): plain[path] for path in sorted(own)})
    assert told == (f"local:{model.base_sha256[:12]}", model.base_sha256, every)


def test_the_embedded_model_is_hashed_when_it_is_verified_and_not_again(hashed):
    emoji.folder()
    hashed.clear()
    with open_model(ModelConfig(device="cpu")) as model:
        told = model.base_sha256, model.digest
    assert not hashed
    plain = Model(emoji.folder(), model.origin)
    assert told == (plain.base_sha256, plain.digest)
    assert set(hashed.values()) == {1}


def test_a_run_hashes_each_file_of_its_base_once_and_no_weight_that_it_draws_with(
    hashed, tmp_path, monkeypatch
):
    counts = Counts(name=2, least=2, names=1, images=1, reference=0)
    few = functools.partial(gate.evaluate_gate, counts=counts)
    monkeypatch.setattr(gate, "evaluate_gate", few)
    monkeypatch.setattr(sampling, "default_sampler", lambda family: ONE)
    monkeypatch.setattr(gate, "weights_digest", None)  # whoever calls it fails
    monkeypatch.setattr(draw, "weights_digest", None)
    base = save_tiny(tmp_path / "base", "sd1")
    overrides = {
        "concepts": [{"name": "violin"}],
        "model": {"id": str(base), "family": family_file("sd1"), "device": "cpu"},
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar", "piano"],
        "evaluate": {"judge": None},
        "package": {"export": ["lora", "unet"]},
    }
    result = execute(resolve("uce", overrides, ["mine=null", *LOOSE]), tmp_path / "run")
    assert result.report is not None
    own = {path: n for path, n in hashed.items() if base in path.parents}
    assert len(own) > 5
    assert set(own.values()) == {1}


# --- pictures that are kept ---------------------------------------------------------------------

ONE = Sampler(steps=1, batch=2)
PROMPTS = [
    Prompt(id="p", set="name", name="owl", concept="owl", text="an owl", template="t1",
           labels=("owl",), seeds=(0, 1))
]  # fmt: skip


def test_without_a_name_for_the_weights_other_weights_draw_anew(tmp_path):
    pipe = tiny_pipeline("sd1")
    options = {"progress": False, "workdir": tmp_path, "dtype": "float32"}
    first = sample(pipe, PROMPTS, ONE, **options)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(3)
    other = sample(pipe, PROMPTS, ONE, **options)
    assert not np.array_equal(first, other)
    named = sample(pipe, PROMPTS, ONE, **options, weights="mine")
    assert np.array_equal(named, other)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(3)
    assert np.array_equal(sample(pipe, PROMPTS, ONE, **options, weights="mine"), named)  # as told
    assert not np.array_equal(sample(pipe, PROMPTS, ONE, **options, weights="yours"), named)


def test_a_gate_with_a_folder_of_the_users_hashes_base_and_edited_once_each(tmp_path, monkeypatch):
    pipe, calls, own = tiny_pipeline("sd1"), [], draw.weights_digest
    monkeypatch.setattr(gate, "weights_digest", lambda pipe: calls.append(own(pipe)) or calls[-1])
    monkeypatch.setattr(draw, "weights_digest", None)

    @contextmanager
    def tripled(pipe):
        with torch.no_grad():
            pipe.unet.conv_out.weight.mul_(3)
        yield pipe

    eraser = SimpleNamespace(applied=tripled)
    report = gate.evaluate_gate(
        pipe, eraser, recipe("violin").concepts, family_name="sd1", judge=None, near=["guitar"],
        targets={"violin": "trumpet"}, sampler=ONE, progress=False, workdir=tmp_path,
        counts=Counts(name=2, least=2, names=1, images=1, reference=1),
    )  # fmt: skip
    assert len(set(calls)) == len(calls) == 2
    assert report.metrics["drift"]["near_pixel"].value > 0
