"""Text states are the pipeline's own, in any window, and a name is found where it stands."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editforge.edit.vectors import Columns
from editforge.families.model import Model, Origin
from editforge.families.vocabulary import load_vocabulary, word_list
from editforge.ground.errors import RecipeError
from editforge.ground.team import Team
from tests.models import KINDS, TINY, family_file, opened, tiny_folder
from tests.tiny import TEXT_WIDTHS, WORDS

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PROMPTS = ["violin", "a red violin on the grass", "an image of a lighthouse", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_pipelines_own_encode_prompt(kind):
    model = opened(kind)
    pipe = model.pipeline()
    for part in model.family.text:
        getattr(pipe, part.encoder).float()
    own = pipe.encode_prompt(
        prompt=PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )[0]
    found = model.encoder.encode(PROMPTS)
    assert found.shape == (len(PROMPTS), model.family.tokens, model.family.text_width)
    torch.testing.assert_close(found, own.float(), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_window_gives_the_same_states_at_the_positions_that_remain(kind):
    encoder = opened(kind).encoder
    whole = encoder.encode(PROMPTS)
    for window in (12, 16):
        torch.testing.assert_close(
            encoder.encode(PROMPTS, window=window), whole[:, :window], **CLOSE
        )
    assert encoder.window == whole.shape[1]  # and the tokenizer has its own length back
    assert (whole[0] - whole[1]).norm() > 1  # the control: other words, other states


@settings(deadline=None, max_examples=15)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), batch=st.integers(1, 4))
def test_batches_and_windows_change_rounding_alone(words, batch):
    encoder = opened("sd1").encoder
    prompts = [" ".join(words[: n + 1]) for n in range(len(words))]
    window = len(words) + 2
    found = encoder.encode(prompts, window=window, positions=batch * window)
    torch.testing.assert_close(found, encoder.encode(prompts)[:, :window], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_words_state_is_its_last_tokens_in_the_full_window(kind):
    encoder = opened(kind).encoder
    words = ["violin", "van gogh", "red green blue house", "dog", "cello"]
    whole = encoder.encode(words)
    expected = [whole[row, encoder.span(word, word).last] for row, word in enumerate(words)]
    torch.testing.assert_close(encoder.encode_words(words), torch.stack(expected), **CLOSE)


def test_sdxl_states_are_both_encoders_penultimate_states_side_by_side():
    model = opened("sdxl")
    pipe, prompts = model.pipeline(), ["a violin", "van gogh"]
    parts = []
    for part in model.family.text:
        ids = getattr(pipe, part.tokenizer)(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            states = getattr(pipe, part.encoder)(ids, output_hidden_states=True).hidden_states
        parts.append(states[-2])
        assert part.states == "penultimate"
        assert not part.final_norm
    found = model.encoder.encode(prompts)
    first, second = TEXT_WIDTHS["sdxl"]
    torch.testing.assert_close(found[:, :, :first], parts[0], **CLOSE)
    torch.testing.assert_close(found[:, :, first:], parts[1], **CLOSE)
    assert found.shape[2] == first + second


@pytest.mark.parametrize("kind", ["sd1", "sd2", "emoji"])
def test_one_encoders_states_are_the_last_ones_behind_the_final_norm(kind):
    model = opened(kind)
    pipe = model.pipeline()
    pipe.text_encoder.float()
    ids = pipe.tokenizer(
        ["a violin"], padding="max_length", max_length=model.family.tokens, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        output = pipe.text_encoder(ids, output_hidden_states=True)
    found = model.encoder.encode(["a violin"])
    torch.testing.assert_close(found, output.last_hidden_state, **CLOSE)
    assert not torch.allclose(found, output.hidden_states[-1], **CLOSE)


@pytest.mark.parametrize(
    ("prompt", "phrase", "start", "last", "end"),
    [
        ("violin", "violin", 1, 1, 2),
        ("a violin", "violin", 2, 2, 3),
        ("an image of van gogh", "van gogh", 4, 5, 6),
        ("van gogh style", "van gogh", 1, 2, 4),
        ("a photo of a red lighthouse in the grass", "red lighthouse", 5, 6, 10),
        ("violin and violin", "violin", 3, 3, 4),  # the last one counts
        ("A Violin", "violin", 2, 2, 3),
    ],
)
@pytest.mark.parametrize("kind", TINY)
def test_a_name_is_found_token_by_token(kind, prompt, phrase, start, last, end):
    span = opened(kind).encoder.span(prompt, phrase)
    assert (span.start, span.last, span.end) == (start, last, end)


def test_a_name_of_several_tokens_ends_at_its_last_one_in_every_template():
    encoder = opened("emoji").encoder
    for kind, templates in opened("emoji").family.templates.items():
        for text in templates:
            prompt = text.replace("{a}", "an ear of corn").replace("{n}", "ear of corn")
            span, ids = encoder.span(prompt, "ear of corn"), encoder.tokens(prompt)
            assert ids[span.start - 1 : span.last] == encoder.tokens("ear of corn"), kind
            assert span.end == len(ids) + 1


def test_a_word_inside_another_word_is_not_the_name():
    encoder = opened("sd1").encoder
    assert encoder.span("a cat", "cat").last == 2
    with pytest.raises(RecipeError, match="is not a phrase of the prompt"):
        encoder.span("a category", "cat")


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_would_be_cut_off_is_refused_with_its_length(kind):
    encoder = opened(kind).encoder
    room = encoder.window - 2
    encoder.check(" ".join(["cat"] * room))
    with pytest.raises(RecipeError, match="cut off by the text encoder") as caught:
        encoder.check(" ".join(["cat"] * (room + 1)))
    assert caught.value.allowed == f"{room} tokens"
    assert f"{room + 1} tokens" in caught.value.got
    assert "shorter name" in caught.value.next


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_tokens_is_refused(kind, text):
    encoder = opened(kind).encoder
    with pytest.raises(RecipeError, match="tokenizes to nothing"):
        encoder.check(text)
    with pytest.raises(RecipeError, match="tokenizes to nothing"):
        encoder.encode_words(["violin", text])


def test_a_word_that_does_not_fit_is_refused_not_read_at_the_wrong_place():
    encoder = opened("sd1").encoder
    with pytest.raises(RecipeError, match="cut off"):
        encoder.encode_words(["violin", " ".join(["cat"] * 80)])


def test_a_tokenizer_has_its_length_back_after_an_error():
    encoder = opened("sd1").encoder
    with pytest.raises(ValueError, match="text input must be of type"):
        encoder.encode([3], window=5)  # type: ignore[list-item]
    assert encoder.window == 77
    assert encoder.encode(["violin"]).shape[1] == 77


# --- columns ------------------------------------------------------------------------------------


RULES = {"subject": 1, "subject_eot": 2, "phrase": 6, "aligned": None, "all": None}


@pytest.mark.parametrize("rule", RULES)
def test_a_token_rule_takes_exactly_its_positions(rule):
    model = opened("sd1")
    states = model.encoder.encode(["a red violin"])[
        0
    ].double()  # begin, a, red, violin, end, padding
    picked = {
        "subject": [3],
        "subject_eot": [3, 4],
        "phrase": [3, 4, 5, 28, 52, 76],
        "aligned": list(range(3, 77)),
        "all": list(range(77)),
    }[rule]
    found = Columns(model, ("a {n}",), rule).of("red violin")
    torch.testing.assert_close(found, states[picked].T, **CLOSE)
    assert RULES[rule] in (None, found.shape[1])


def test_aligned_sides_start_at_both_last_tokens_and_end_with_the_shorter():
    model = opened("sd1")
    own, goal = model.encoder.encode(["violin", "red blue trumpet"]).double()
    C, T = Columns(model, ("{n}",), "aligned").pair("violin", "red blue trumpet")
    torch.testing.assert_close(C, own[1:75].T, **CLOSE)  # 74 positions, and the name is the first
    torch.testing.assert_close(T, goal[3:77].T, **CLOSE)
    T, C = Columns(model, ("{n}",), "aligned").pair("red blue trumpet", "violin")
    torch.testing.assert_close(T, goal[3:77].T, **CLOSE)
    torch.testing.assert_close(C, own[1:75].T, **CLOSE)


@pytest.mark.parametrize(("rule", "position"), [("bos", 0), ("eot", 1)])
def test_nothing_is_the_begin_or_the_end_of_the_empty_prompt(rule, position):
    model = opened("sd1")
    empty = model.encoder.encode([""])[0].double()
    _, T = Columns(model, ("{n}", "a {n}"), "subject", rule).pair("violin", "")
    torch.testing.assert_close(T, empty[[position, position]].T, **CLOSE)
    _, T = Columns(model, ("{n}",), "aligned", rule).pair("violin", "")
    torch.testing.assert_close(T, empty[position : position + 76].T, **CLOSE)


@pytest.mark.parametrize("company", [(), ("red blue green cat",)])
def test_the_mean_of_the_padding_does_not_depend_on_what_is_read_with_it(company):
    model = opened("sd1")
    columns = Columns(model, ("{n}",), "subject", "pad_mean")
    columns.read_all(["violin", *company, ""])
    _, T = columns.pair("violin", "")
    torch.testing.assert_close(
        T[:, 0], model.encoder.encode([""])[0, 2:].double().mean(dim=0), **CLOSE
    )


def test_templates_read_a_name_with_and_without_its_article():
    columns = Columns(opened("sd1"), ("{n}", "{a}", "an image of {a}"), "subject")
    expected = [
        Columns(opened("sd1"), (text,), "subject").of("violin")
        for text in ("{n}", "a {n}", "an image of a {n}")
    ]
    torch.testing.assert_close(columns.of("violin"), torch.cat(expected, dim=1), **CLOSE)
    with pytest.raises(RecipeError, match="lacks its place for the name"):
        Columns(opened("sd1"), ("an image",), "subject")


def test_two_spellings_of_one_state_are_no_pair():
    columns = Columns(opened("sd1"), ("{n}",), "subject")
    with pytest.raises(RecipeError, match="are one to the text encoder"):
        columns.pair("violin", "VIOLIN")
    C, T = columns.pair("violin", "trumpet")
    assert (C - T).norm() > 0.1


# --- word lists ---------------------------------------------------------------------------------


def test_a_tokenizers_vocabulary_is_its_whole_words_in_a_fixed_order():
    words = word_list(opened("sd1"), "tokenizer")
    assert words == word_list(opened("sd1"), "family")
    assert set(words) == {word for word in WORDS if len(word) >= 3}
    assert len(set(words)) == len(words)


def test_a_word_file_is_read_once_each_without_what_has_no_tokens(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# instruments\nviolin\n\n  van   gogh \nviolin\n" + "cat " * 90 + "\n")
    assert word_list(opened("sd1"), str(path)) == ("violin", "van gogh")
    vectors = load_vocabulary(opened("sd1"), str(path)).vectors
    torch.testing.assert_close(vectors, opened("sd1").encoder.encode_words(["violin", "van gogh"]))


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "no such word list"), (b"\xff\xfe", "no such word list"), (b"# \n", "is empty")],
)
def test_a_bad_word_file_is_refused(data, message, tmp_path):
    path = tmp_path / "words.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        word_list(opened("sd1"), str(path))


def test_a_damaged_cache_of_words_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("editforge.families.vocabulary._CACHED_FROM", 5)
    model = Model(tiny_folder("sd1"), Origin("tiny"), family=family_file("sd1"))
    first = load_vocabulary(model, "tokenizer").vectors
    (path,) = tmp_path.rglob("*.safetensors")
    assert torch.equal(load_vocabulary(model, "tokenizer").vectors, first)  # from the cache
    path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(load_vocabulary(model, "tokenizer").vectors, first)
    assert path.stat().st_size > 100


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_shares_the_words_and_loses_none(size, monkeypatch):
    encoder = opened("sd1").encoder
    words = [
        *WORDS,
        "red green blue house",
        "van gogh",
        *(f"{a} {b} c" for a in WORDS for b in WORDS),
    ]
    parts = []
    monkeypatch.setattr(Team, "sum", lambda self, tensor: tensor)
    for rank in range(size):
        parts.append(encoder.encode_words(words, team=Team(rank, size)))
    whole = encoder.encode_words(words)
    assert torch.equal(sum(parts), whole)
    assert all(0 < int(part.any(dim=1).sum()) < len(words) for part in parts[:2])
