"""Prototypes: from contrast pairs to clusters, directions and a calibrated bank, and down the line."""

from __future__ import annotations

import copy
import json
import math
import shutil
import struct
from functools import partial

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

import editforge
from editforge import emoji
from editforge.artifacts.prototypes import Prototypes
from editforge.artifacts.sums import verify_folder
from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts
from editforge.families.encode import TextEncoder
from editforge.families.outline import Outline
from editforge.families.schema import load_family
from editforge.ground.disk import read_yaml
from editforge.ground.errors import PackageError, PresetUnavailable, RecipeError
from editforge.ground.names import filled
from editforge.guards import gate as guard_gate
from editforge.guards.bank import Facts
from editforge.guards.prototype import PrototypeGuard
from editforge.guide.calibrate import CAPTIONS, calibrate, prompts_in, prompts_with, reader
from editforge.judges.clip import Clip, load_clip
from editforge.mine.clusters import coverage, differences, drawn_words, modes
from editforge.mine.contrast import MOST, Pair, dropped, pairs_in, pairs_of
from editforge.mine.directions import prompts_for, selectors_for, tokens_for
from editforge.mine.tower import Tower
from editforge.package.scrub import scan
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.check import check, check_model
from editforge.run.order import execute
from editforge.run.saved import evaluate_saved
from editforge.run.stages import choose, guide, mine
from tests.models import family_file, opened, recipe, tiny_folder
from tests.tiny import tiny_family, tiny_pipeline, tiny_tokenizer

torch.set_num_threads(1)

FAMILIES = ("emoji", "sd1", "sd2", "sdxl")
ALCOHOL = {"name": "alcohol", "kind": "broad"}
FEW = {"use": "prototypes", "num_pairs": 12, "pictures": 2, "steps": 60, "num_prototypes": 2}
FEWER = {**FEW, "num_pairs": 4, "pictures": 1, "steps": 20, "num_prototypes": 1}
GUIDE = {"use": "prototype", "num_benign": 100, "benign_rate": 0.05}
TEAPOT = {"use": "fixed", "text": "teapot"}
HARMLESS = ("a lion", "an emoji of a bicycle", "guitar", "a maple leaf, fluent style", "umbrella")
COUNTS = Counts(name=8, least=4, names=2, images=2, reference=4)


def made_of(concepts=ALCOHOL, mined=FEW, *sets, **overrides):
    body = {"mine": [mined], "target": TEAPOT, "guide": GUIDE, "evaluate": None, **overrides}
    return recipe(concepts, body, *sets, method="prototype")


def mined_with(made, **context):
    return mine(made, Context(opened("emoji"), made.seed, **context))


def guided(made, neighbors, targets=None, say=lambda line: None):
    context = Context(opened("emoji"), made.seed, say=say)
    return guide(made, targets or choose(made, neighbors, context), neighbors, context)


@pytest.fixture(scope="module")
def known():
    """What is mined for *alcohol*, once for many tests."""
    return mined_with(made_of())


@pytest.fixture(scope="module")
def tower():
    model = opened("emoji")
    return Tower(load_clip("family", "emoji"), model.encoder, model.family)


# --- contrast pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("an emoji of {a}, red", "an emoji, red"),
        ("{a}, fluent style", "fluent style"),
        ("art in the style of {n}", "art"),
        ("{n} style", ""),
        ("a picture by {n}, at night", "a picture, at night"),
        ("a room, with {a}, at night", "a room, at night"),
        ("{n}", ""),
    ],
)
def test_what_leads_to_a_name_is_dropped_with_it(template, text):
    assert dropped(template) == text


@pytest.mark.parametrize("name", FAMILIES)
def test_no_template_of_a_family_leaves_a_place_or_a_loose_end(name):
    for kind, templates in load_family(name).templates.items():
        for template in templates:
            left = dropped(template)
            assert not set("{}") & set(left), (kind, template)
            assert left.split(" ")[-1] not in ("of", "by", "with", "in", "about", "from", "a", "an")
            assert left == left.strip(" ,")
            assert "  " not in left
            assert left != filled(template, "violin")


def test_pairs_take_every_name_in_every_template_in_turn():
    pairs = pairs_of(["violin", "eye"], ["{n}", "an emoji of {a}"], 6)
    assert [pair.with_concept for pair in pairs] == [
        "violin", "eye", "an emoji of a violin", "an emoji of an eye", "violin", "eye"
    ]  # fmt: skip
    assert [pair.without for pair in pairs] == ["", "", "an emoji", "an emoji", "", ""]
    assert [pair.turn for pair in pairs] == [0, 0, 0, 0, 1, 1]


def test_a_file_of_pairs_may_hold_lists_and_mappings(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text("- [a violin, a box]\n- {with: two violins, without: ''}\n")
    assert pairs_in(str(path)) == [Pair("a violin", "a box"), Pair("two violins", "")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a text",
        "{with: a, without: b}",
        "- [a, b, c]",
        "- [a]",
        "- [a, a]",
        "- [1, 2]",
        "- [a, null]",
        "- {with: a}",
        "- [' ', b]",
        "- a, b",
        f"- [{'x' * 2001}, b]",
        "\n".join(["- [a, b]"] * (MOST + 1)),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused_before_a_model_is_opened(text, tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text(text)
    for place in (path, tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(RecipeError):
            pairs_in(str(place))
    with pytest.raises(RecipeError):
        check(made_of(mined={**FEW, "pairs": str(path)}))


def test_one_file_of_pairs_is_for_one_concept(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text("- [a violin, a box]\n")
    mined = {**FEWER, "pairs": str(path)}
    check(made_of("violin", mined))
    with pytest.raises(RecipeError, match="one file of pairs for several"):
        check(made_of(["violin", "guitar"], mined))


# --- clusters -----------------------------------------------------------------------------------


def planted(number, pairs=48, images=2, w=32, spread=0.03, seed=0):
    """Features of pairs whose differences lie around `number` orthogonal directions, in turn."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.linalg.qr(torch.randn(w, w, generator=draw)).Q[:number]
    own = torch.arange(pairs) * 7 // 3 % number  # not in step with the pairs that are held out
    without = 0.3 * torch.randn(pairs, 1, w, generator=draw)
    jitter = spread * torch.randn(2, pairs, images, w, generator=draw)
    return without + centers[own, None] + jitter[0], without + jitter[1], centers, own


@pytest.mark.parametrize("vectors", ["mean", "cross", "auto"])
@pytest.mark.parametrize(("given", "number"), [(4, 4), (None, 4), (None, 1), (1, 1)])
def test_planted_clusters_are_found(given, number, vectors):
    with_, without, centers, own = planted(number)
    found = modes(with_, without, given, vectors, seed=0)
    assert found.centers.shape == (number, 32)
    torch.testing.assert_close(found.centers.norm(dim=1), torch.ones(number))
    near = found.centers @ centers.T
    assert near.amax(dim=0).min() > 0.98
    assert (near.argmax(dim=1)[found.labels] == own[:, None]).all()
    assert set(found.coverage) == ({given} if given else {1, 2, 4, 8, 16})
    if given is None and number == 4:
        values = found.coverage
        assert values[2] < 0.9 < values[4]
        assert abs(values[8] - values[4]) < 0.01


def test_clusters_are_the_same_for_a_seed_and_a_wrong_count_covers_less():
    with_, without, *_ = planted(4, spread=0.15)
    a, b = (modes(with_, without, 4, "mean", seed=2**40 + 1) for _ in range(2))
    assert torch.equal(a.centers, b.centers)
    assert torch.equal(a.labels, b.labels)
    flat = differences(with_, without, "mean").flatten(0, 1)
    fewer = modes(with_, without, 2, "mean", seed=0)
    assert coverage(flat, a.centers) > coverage(flat, fewer.centers) + 0.05


def test_all_differences_of_a_pair_have_the_mean_of_the_difference_of_means():
    with_, without, *_ = planted(2, images=3)
    assert differences(with_, without, "mean").shape == (48, 1, 32)
    cross = differences(with_, without, "cross")
    assert cross.shape == (48, 9, 32)
    torch.testing.assert_close(cross.norm(dim=-1), torch.ones(48, 9))
    sizes = (with_[:, :, None] - without[:, None]).flatten(1, 2).norm(dim=-1, keepdim=True)
    mean = (cross * sizes).mean(dim=1)
    torch.testing.assert_close(mean, with_.mean(dim=1) - without.mean(dim=1))
    assert not torch.allclose(normalize(cross.mean(dim=1), dim=-1), normalize(mean, dim=-1))


def test_few_pairs_are_no_reason_to_split():
    with_, without, *_ = planted(1, pairs=3)  # none is held out
    assert len(modes(with_, without, None, "auto", 0).centers) == 1
    with_, without, *_ = planted(2, pairs=5)
    assert max(modes(with_, without, None, "mean", 0).coverage) <= 4


def test_more_prototypes_than_pairs_are_refused():
    with pytest.raises(RecipeError, match="more prototypes than pairs"):
        mined_with(made_of(mined={**FEWER, "num_pairs": 2, "num_prototypes": 3}))


def test_a_word_is_drawn_if_it_wins_pictures_with_the_concept_and_not_others():
    names = torch.eye(4)
    pictures = names[[0] * 5 + [1] * 3 + [2] * 2]
    others = names[[0] * 5 + [3] * 5]  # word 0 wins as many there
    assert drawn_words(pictures, others, names, "abcd") == ["b", "c"]


# --- the tower ----------------------------------------------------------------------------------


def own_clip(kind, encoder="text_encoder", pad="<|endoftext|>", vision=None, seed=0):
    """A tiny pipeline, and a CLIP whose text tower is one of its text encoders."""
    pipe = tiny_pipeline(kind)
    text = getattr(pipe, encoder)
    width = text.config.hidden_size
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 32}
    config = CLIPConfig(
        text_config=text.config.to_dict(),
        vision_config={**small, "num_attention_heads": 2, "patch_size": 16},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config).eval()
    theirs = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    theirs.pop("text_projection.weight", None)
    model.text_model.load_state_dict(theirs)
    return pipe, Clip(model, tiny_tokenizer(pad))


TOWERS = [
    ("emoji", "text_encoder"),
    ("sd1", "text_encoder"),
    ("sd2", "text_encoder"),
    ("sdxl", "text_encoder"),
    ("sdxl", "text_encoder_2"),
]


def towered(kind, encoder, tower):
    if kind == "emoji":
        return tower, opened("emoji").encoder
    pipe, clip = own_clip(
        kind, encoder, pad="!" if encoder == "text_encoder_2" else "<|endoftext|>"
    )
    reads = TextEncoder(pipe, tiny_family(kind))
    return Tower(clip, reads, tiny_family(kind)), reads


@torch.no_grad()
def last_feature(one, text):
    """CLIP's own feature of the last position of the whole window."""
    encoder, model = one._encoder, one.clip.model
    ids = encoder.tokens(text)
    end = model.config.text_config.eos_token_id
    begin = model.config.text_config.bos_token_id
    pad = 0 if encoder.pipe.__class__.__name__.endswith("XLPipeline") else end
    pad = encoder.pipe.tokenizer_2.pad_token_id if pad == 0 and one.columns.start else end
    row = [begin, *ids, end]
    row += [pad] * (one.window - len(row))
    states = model.text_model(input_ids=torch.tensor([row])).last_hidden_state
    return normalize(model.text_projection(states[:, -1]), dim=-1)


@pytest.mark.parametrize(("kind", "encoder"), TOWERS)
def test_a_feature_of_the_last_state_is_what_clip_makes_of_it(kind, encoder, tower):
    """Where the pipeline reads states before the last layer, that layer is really run."""
    one, reads = towered(kind, encoder, tower)
    widths = [part.width for part in reads._parts]
    assert one.columns == (slice(sum(widths[:-1]), sum(widths)) if encoder.endswith("2")
                           else slice(0, widths[0]))  # fmt: skip
    with torch.no_grad():
        found = one.features(reads.encode([""])[:, -1])
    torch.testing.assert_close(found, last_feature(one, ""), atol=1e-4, rtol=0)
    with torch.no_grad():
        both = one.features(reads.encode(["", ""])[:, -1][None])
    torch.testing.assert_close(both, found.expand(1, 2, -1), atol=1e-5, rtol=0)
    # a positive control: without what is left to do the feature is another one
    own = reads.encode([""])[:, -1][..., one.columns]
    bare = normalize(one.clip.model.text_projection(own), dim=-1)
    same = torch.allclose(bare, found, atol=1e-4)
    assert same is (kind != "sdxl")


def test_the_feature_at_the_end_of_a_prompt_is_clips_own(tower):
    texts = ["a photo of a cat", "a red bicycle", "two", "", " ".join(["violin"] * 60)]
    ends, features = tower.read(texts)
    tokens = tower.clip.tokenizer(texts, padding=True, truncation=True, max_length=tower.window,
                                  return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        theirs = tower.clip.model.get_text_features(**tokens).pooler_output
        torch.testing.assert_close(
            tower.features(ends), normalize(theirs, dim=-1), atol=1e-4, rtol=0
        )
    torch.testing.assert_close(features, normalize(theirs, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "encoder"), TOWERS)
def test_a_soft_prompt_of_real_tokens_is_that_prompt(kind, encoder, tower):
    one, reads = towered(kind, encoder, tower)
    text = "red bicycle" if kind == "emoji" else "a red violin"
    ids = reads.tokens(text)
    before = reads.encode([text])
    with torch.no_grad():
        states, feature = one.soft(one.embeddings[ids][None].repeat(2, 1, 1))
    own = before[..., one.columns].expand(2, -1, -1)
    torch.testing.assert_close(states, own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(feature, one.read([text])[1].expand(2, -1), atol=1e-4, rtol=0)
    other = one.soft(one.embeddings[ids].flip(0)[None])[0].detach()
    assert not torch.allclose(other, own[:1], atol=1e-2)
    assert torch.equal(reads.encode([text]), before)  # nothing is left on the encoder


def test_a_clip_that_pads_otherwise_is_the_same_tower():
    """SDXL's second tokenizer pads with `!`, that of the CLIP on the Hub with the end of text."""
    pipe, clip = own_clip("sdxl", "text_encoder_2", pad="<|endoftext|>")
    reads = TextEncoder(pipe, tiny_family("sdxl"))
    one = Tower(clip, reads, tiny_family("sdxl"))
    with torch.no_grad():
        states, _ = one.soft(one.embeddings[reads.tokens("a red violin")][None])
    own = reads.encode(["a red violin"])[..., one.columns]
    torch.testing.assert_close(states, own, atol=1e-4, rtol=1e-4)


def test_another_tower_is_refused(tower):
    model = opened("emoji")
    near, far = copy.deepcopy(tower.clip.model), CLIPModel(tower.clip.model.config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in near.text_model.parameters():
            size = weight.std() if weight.numel() > 1 else weight.abs()
            weight += 0.1 * size * torch.randn(weight.shape, generator=draw)
    Tower(Clip(copy.deepcopy(tower.clip.model).half().float(), tower.clip.tokenizer),
          model.encoder, model.family)  # fmt: skip
    for other in (near, far):
        with pytest.raises(RecipeError, match="none of the pipeline's text encoders") as caught:
            Tower(Clip(other, tower.clip.tokenizer), model.encoder, model.family)
        assert "--set mine.prototypes.clip=" in str(caught.value)
    _, sd1 = own_clip("sd1")  # of another width and vocabulary
    with pytest.raises(RecipeError, match="none of the pipeline's"):
        Tower(sd1, model.encoder, model.family)


class Skipping(StableDiffusionPipeline):
    """Reads the states before the last layer, behind the final norm."""

    def encode_prompt(self, prompt, **options):
        ids = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        states = self.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        text = getattr(self.text_encoder, "text_model", self.text_encoder)
        return text.final_layer_norm(states), None


def test_states_whose_last_layer_cannot_be_run_any_more_are_refused():
    """A norm cannot be undone, and a last layer on normed states is no feature of CLIP's."""
    pipe, clip = own_clip("sd1")
    shipped = tiny_family("sd1")
    part = shipped.text[0].model_copy(update={"states": "penultimate"})
    family = shipped.model_copy(update={"text": (part,)})
    pipe = Skipping(**pipe.components, requires_safety_checker=False)
    with pytest.raises(RecipeError, match="none of the pipeline's"):
        Tower(clip, TextEncoder(pipe, family), family)


# --- directions ---------------------------------------------------------------------------------


def test_a_token_reaches_its_center_and_is_the_empty_prompt_but_for_one_position(known, tower):
    centers = known.prototypes.tensors["centroid"]
    found = tokens_for(centers, tower, 250, torch.Generator().manual_seed(0))
    assert found.cosine.min() > 0.95
    torch.testing.assert_close(
        (tower.features(found.states) * centers).sum(dim=1).detach(), found.cosine
    )
    start = (tower.features(tower.empty[0, -1]) * centers).sum(dim=1).detach()
    assert (found.cosine > start + 0.3).all()
    # a state that an encoder could have written: its norm undone, it is normed
    norm = tower.clip.model.text_model.final_layer_norm
    bare = (found.states - norm.bias) / norm.weight
    torch.testing.assert_close(bare.mean(dim=-1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(bare.std(dim=-1, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)


def test_a_token_among_two_encoders_moves_its_own_columns_alone(tower):
    one, _ = towered("sdxl", "text_encoder_2", tower)
    centers = normalize(torch.randn(2, 40, generator=torch.Generator().manual_seed(1)), dim=-1)
    draw = torch.Generator().manual_seed(0)
    start = (one.features(one.empty[0, -1]) * centers).sum(dim=1).detach()
    found = tokens_for(centers, one, 40, draw)
    assert torch.equal(found.states[:, :24], one.empty[0, -1, :24].expand(2, -1))
    assert (found.cosine > start).all()
    whole = prompts_for(centers, one, 3, 2, draw).states
    assert whole.shape == (2, 77, 64)
    assert torch.equal(whole[..., :24], one.empty[..., :24].expand(2, -1, -1))


def test_a_soft_prompt_reaches_its_center_and_is_what_the_encoder_reads(known, tower):
    centers = known.prototypes.tensors["centroid"]
    found = prompts_for(centers, tower, 120, 4, torch.Generator().manual_seed(0))
    assert found.cosine.min() > 0.8
    assert found.states.shape == (2, tower.window, 256)
    torch.testing.assert_close(found.states[:, 0], tower.empty[:, 0].expand(2, -1))
    feature = tower.features(found.states[:, 5]).detach()  # begin, four tokens, end
    torch.testing.assert_close((feature * centers).sum(dim=1), found.cosine, atol=1e-4, rtol=0)


def test_a_selector_tells_prompts_with_the_concept_from_harmless_ones(known, tower):
    words = [w for w in emoji.words() if w not in known.of("alcohol").having("erase")][::2]
    prompts = [filled("an emoji of {a}", word) for word in words]
    selector, center = selectors_for(known.prototypes.tensors["centroid"], *tower.read(prompts))
    torch.testing.assert_close(selector.norm(dim=1), torch.ones(2))
    read = reader(opened("emoji").encoder)

    def best(texts):
        return guard_gate.scores(read(texts), center, selector).amax(dim=1)

    names = ("alcohol", "beer mug", "wine glass", "cocktail glass")
    guilty = best(prompts_with(names, CAPTIONS))
    harmless = best(prompts_with(("lion", "guitar", "bicycle", "church", "shoe"), CAPTIONS))
    assert float(guilty.median()) > float(harmless.max())
    assert float((guilty > harmless.max()).float().mean()) > 0.75


# --- the stage ----------------------------------------------------------------------------------


def saved(neighbors, folder):
    folder.mkdir()
    neighbors.save(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


FILES = ["clusters-0.png", "clusters.yaml", "neighbors.yaml", "prototypes.safetensors"]


def test_a_run_that_was_killed_ends_with_the_bytes_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no picture of another test
    said: list[str] = []
    made, work = made_of("violin", FEWER), tmp_path / "work"
    work.mkdir()
    first = saved(mined_with(made, work=work, say=said.append), tmp_path / "a")
    assert sorted(first) == FILES
    assert "look at mine/clusters-*.png" in said[0]
    batches = sorted(path.name for path in work.rglob("*.safetensors"))
    assert batches == ["violin with-000.safetensors", "violin without-000.safetensors"]
    shutil.rmtree(tmp_path / "cache")
    (work / batches[1]).unlink()
    stamp = (work / batches[0]).stat().st_mtime_ns
    assert saved(mined_with(made, work=work), tmp_path / "b") == first
    assert (work / batches[0]).stat().st_mtime_ns == stamp  # not drawn again
    assert (work / batches[1]).is_file()
    other = saved(mined_with(made.model_copy(update={"seed": 1}), work=work), tmp_path / "c")
    assert other["prototypes.safetensors"] != first["prototypes.safetensors"]


def test_equal_inputs_give_equal_files_that_a_person_can_read(known, tmp_path):
    files = saved(known, tmp_path / "a")
    assert saved(mined_with(made_of()), tmp_path / "b") == files
    assert sorted(files) == FILES
    with Image.open(tmp_path / "a" / "clusters-0.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 800
        assert sheet.height > 200
        assert len(sheet.convert("RGB").getcolors(10**6)) > 100
    body = read_yaml(tmp_path / "a" / "clusters.yaml")["concepts"]
    assert [row["concept"] for row in body] == ["alcohol"]
    assert (body[0]["pairs"], body[0]["pictures"]) == (12, 2)
    assert [row["number"] for row in body[0]["clusters"]] == [0, 1]
    assert sum(row["share"] for row in body[0]["clusters"]) == pytest.approx(1, abs=1e-3)
    assert all(len(row["words"]) == 6 for row in body[0]["clusters"])
    again = Prototypes.load(tmp_path / "a")
    assert again.modes == known.prototypes.modes
    assert body[0]["names"][:2] == ["alcohol", known.of("alcohol").having("erase")[0]]
    assert again.selector_model == load_clip("family", "emoji").sha256
    for name, value in known.prototypes.tensors.items():
        assert torch.equal(again.tensors[name], value)


def drawn_members(neighbors):
    """Words that no name's selector is made for: they were found last."""
    return [row for row in neighbors.of("alcohol").words if row.reason == "drawn for it, and near"]


def test_vectors_are_those_that_a_bank_takes(known):
    tensors = known.prototypes.tensors
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    names = 1 + len(known.of("alcohol").having("erase")) - len(drawn_members(known))
    assert shapes == {"token": (2, 256), "position": (2,), "centroid": (2, 256),
                      "selector": (2, 256), "center": (256,), "name_selector": (names, 256),
                      "name_prototype": (names,)}  # fmt: skip
    assert tensors["position"].tolist() == [31, 31]
    assert set(tensors["name_prototype"].tolist()) <= {0, 1}
    assert not any(value.requires_grad for value in tensors.values())


def test_the_form_prompt_gives_whole_prompts():
    made = made_of("violin", {**FEWER, "form": "prompt", "steps": 5})
    found = mined_with(made)
    assert found.prototypes.tensors["prompt_embeds"].shape == (1, 32, 256)
    guard = guided(made, found)
    assert guard.facts.form == "prompt"
    assert set(guard.tensors) == {
        "prompt_embeds", "selector", "center", "concept", "name_selector", "name_prototype"
    }  # fmt: skip


def test_members_of_a_broad_concept_go_with_it_and_are_no_target_and_not_preserved(known):
    marked = set(known.of("alcohol").having("erase"))
    assert {"beer mug", "wine glass"} <= marked
    members = set(emoji.manifest().broad["alcohol"].members)
    assert marked <= members | {"tropical drink", "champagne bottle", "beverage box"}
    assert {row.reason for row in known.of("alcohol").words} <= {
        "a kind of it", "drawn for it, and near"
    }  # fmt: skip
    made = made_of(mined={"use": "vocabulary", "words": "family", "k_closest": 100}, target=None)
    near = known.merged(mined_with(made))
    assert marked <= set(near.of("alcohol").having("erase"))
    assert near.prototypes is known.prototypes
    context = Context(opened("emoji"))
    shipped = resolve("default", {"concepts": [ALCOHOL]})
    targets = choose(shipped, near, context)
    assert targets.of("alcohol").target
    assert targets.of("alcohol").target not in marked
    assert len(targets.preserved) > 10
    assert not marked & set(targets.preserved)


def test_what_is_no_broad_concept_has_no_members():
    thing = {**ALCOHOL, "kind": "object"}
    assert mined_with(made_of(thing, FEWER)).of("alcohol").words == ()
    none = {**FEWER, "member_similarity": 1.0}
    assert mined_with(made_of(ALCOHOL, none)).of("alcohol").words == ()


# --- calibration --------------------------------------------------------------------------------


def states_of(prompts):
    """Four states of 16 numbers for each prompt; a prompt with *guilty* leans along the first two."""
    found = []
    for prompt in prompts:
        seed = int.from_bytes(prompt.encode()[-6:], "big")
        states = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
        found.append(states + ("guilty" in prompt) * 6 * torch.eye(16)[seed % 2])
    return torch.stack(found)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize(
    ("count", "rate"), [(20, 0.05), (30, 0.05), (37, 0.1), (100, 0.01), (150, 0.01), (211, 0.1)]
)
def test_of_the_prompts_of_a_calibration_the_stated_share_triggers_and_no_more(count, rate, number):
    benign = [f"harmless {at}" for at in range(count)]
    guilty = [f"guilty {at}" for at in range(40)]
    selector, center = torch.eye(16)[:number], torch.zeros(16)
    done = calibrate("x", states_of, selector, center, benign, guilty, rate)
    raw = guard_gate.scores(states_of(benign), center.half(), done.selector).amax(dim=1)
    triggered = int((raw / done.guarded.threshold >= 1).sum())
    assert triggered == math.floor(count * rate)
    hit = guard_gate.scores(states_of(guilty), center.half(), done.selector).amax(dim=1)
    missed = float((hit / done.guarded.threshold < 1).float().mean())
    assert done.guarded.miss_rate == pytest.approx(missed, abs=1e-4)
    assert missed < (0.9 if number == 1 else 0.5)
    assert (done.guarded.benign_rate, done.guarded.benign) == (None, 0)


def test_selectors_of_unlike_scale_take_an_equal_share():
    """One that every prompt is near to does not take all that may trigger."""
    benign = [f"harmless {at}" for at in range(300)]
    selector = torch.eye(16)[:2] * torch.tensor([[3.0], [0.1]])
    done = calibrate("x", states_of, selector, torch.zeros(16), benign, [], 0.1)
    raw = guard_gate.scores(states_of(benign), torch.zeros(16), done.selector)
    own = (raw / done.guarded.threshold >= 1).sum(dim=0)
    assert own.min() > 8


def test_a_selector_that_no_harmless_prompt_comes_near_still_has_a_threshold():
    def read(prompts):
        return states_of(prompts).abs()

    benign = [f"harmless {at}" for at in range(40)]
    done = calibrate("x", read, -torch.ones(1, 16), torch.zeros(16), benign, benign[:3], 0.05)
    assert done.guarded.threshold > 0
    assert done.guarded.miss_rate == 1


@pytest.mark.parametrize(("count", "rate"), [(19, 0.5), (99, 0.01), (21, 0.04), (0, 0.1)])
def test_too_few_harmless_prompts_are_refused(count, rate):
    with pytest.raises(RecipeError, match="too few harmless prompts"):
        calibrate("x", states_of, torch.eye(16)[:1], torch.zeros(16), ["a"] * count, [], rate)


def test_a_list_of_prompts_may_be_written_on_windows(tmp_path):
    path = tmp_path / "benign.txt"
    path.write_bytes("\ufeffa lion\r\n\r\n# not this\r\na büg\r\na lion\r\n".encode())
    assert prompts_in(str(path)) == ["a lion", "a büg"]
    for text in (b"", b"\n# nothing\n", b"\xff\xfe\x00a"):
        path.write_bytes(text)
        with pytest.raises(RecipeError):
            prompts_in(str(path))


@pytest.mark.parametrize("key", ["benign", "held_out"])
def test_a_list_that_is_not_there_is_refused_before_a_model_is_opened(key, tmp_path):
    made = made_of(
        guide={**GUIDE, key: str(tmp_path / "none.txt")},
        model={"id": str(tmp_path / "no-model")},  # never asked for
    )
    with pytest.raises(RecipeError, match="no such list of prompts"):
        execute(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_rates_are_measured_in_captions_that_calibrate_nothing(name):
    texts = {t for templates in load_family(name).templates.values() for t in templates}
    words = emoji.words()[:50]
    assert not set(prompts_with(words, CAPTIONS)) & set(prompts_with(words, sorted(texts)))


def test_rates_of_a_users_list_are_those_of_the_half_that_calibrated_nothing(known, tmp_path):
    benign, held = tmp_path / "benign.txt", tmp_path / "held.txt"
    prompts = [f"a drawing of {word}" for word in emoji.words()[::2][:80]]
    benign.write_bytes(("\ufeff" + "\r\n".join(prompts)).encode())
    held.write_text("a beer mug on a table\na bottle of whisky\na lion\nwine\n")
    own = {**GUIDE, "benign": str(benign), "held_out": str(held), "num_benign": 40}
    guard = guided(made_of(guide=own), known)
    pipe, row = opened("emoji").pipeline(), guard.facts.concepts[0]
    hit = [bool(names) for names in guard.triggered(pipe, prompts)]
    assert sum(hit[::2]) <= 2  # 0.05 of 40
    assert row.benign == 40
    assert row.benign_rate == pytest.approx(sum(hit[1::2]) / 40, abs=1e-4)
    caught = [bool(names) for names in guard.triggered(pipe, held.read_text().splitlines())]
    assert caught[0]
    assert not caught[2]
    assert row.missed == 4
    assert row.miss_rate == pytest.approx(1 - sum(caught) / 4, abs=1e-4)


# --- guide --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guard(known):
    return guided(made_of(guide={"use": "prototype"}), known)


def test_a_bank_of_the_embedded_model_is_small_and_acts_on_what_was_erased(guard, tmp_path):
    guard.save(tmp_path / "bank.safetensors")
    assert (tmp_path / "bank.safetensors").stat().st_size < 50_000
    assert PrototypeGuard.load(tmp_path / "bank.safetensors") == guard
    pipe, row = opened("emoji").pipeline(), guard.facts.concepts[0]
    assert (row.name, row.instead) == ("alcohol", "teapot")
    assert row.miss_rate < 0.1
    assert row.benign_rate < 0.03
    assert row.benign > 500
    assert row.benign % len(CAPTIONS) == 0  # each word in every caption
    prompts = ["a beer mug", "an emoji of a wine glass", *HARMLESS]
    assert guard.triggered(pipe, prompts) == [("alcohol",)] * 2 + [()] * 5
    assert Facts.model_validate(json.loads(guard.facts.model_dump_json())) == guard.facts


def test_clusters_that_are_left_out_are_not_in_the_bank(known, guard):
    one = guided(made_of(guide={**GUIDE, "without": [0]}), known)
    assert torch.equal(one.tensors["token"], guard.tensors["token"][1:])
    assert set(one.tensors["name_prototype"].tolist()) == {0}
    assert one.tensors["selector"].shape == (1, 256)
    assert len(guard.tensors["token"]) == 2
    with pytest.raises(RecipeError, match="every cluster of 'alcohol' is left out"):
        guided(made_of(guide={**GUIDE, "without": [1, 0]}), known)
    with pytest.raises(RecipeError, match="no such cluster"):
        guided(made_of(guide={**GUIDE, "without": [2]}), known)


def test_nothing_mined_is_refused_with_what_would_mine_it():
    made = made_of(mined={"use": "vocabulary", "words": "family"})
    with pytest.raises(RecipeError, match="no prototypes to guide by") as caught:
        guided(made, mined_with(made))
    assert "--method prototype" in str(caught.value)


def test_a_recipe_without_a_target_steers_by_the_prototype_alone(known):
    context = Context(opened("emoji"))
    made = made_of(target=None)
    alone = guide(made, None, known, context)
    assert alone.facts.guidance.blend == 0
    assert alone.facts.concepts[0].instead is None


def test_two_concepts_have_thresholds_of_their_own():
    made = made_of(["violin", "bicycle"], FEWER)
    found = mined_with(made)
    assert [entry.concept for entry in found.prototypes.modes] == ["violin", "bicycle"]
    assert sorted(found.prototypes.pictures) == ["clusters-0.png", "clusters-1.png"]
    both = guided(made, found)
    assert both.tensors["concept"].tolist() == [0, 1]
    assert both.tensors["name_prototype"].tolist() == [0, 1]
    prompts = ["an emoji of a violin", "a bicycle", "a lion"]
    pipe = opened("emoji").pipeline()
    assert both.triggered(pipe, prompts) == [("violin",), ("bicycle",), ()]
    deaf = both.facts.concepts[0].model_copy(update={"threshold": 1e3})
    facts = both.facts.model_copy(update={"concepts": (deaf, both.facts.concepts[1])})
    half = PrototypeGuard(tensors=both.tensors, facts=facts)
    assert half.triggered(pipe, prompts) == [(), ("bicycle",), ()]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_model_without_a_clip_is_refused_before_a_weight_is_read(kind, tmp_path):
    configs = tmp_path / "configs"
    shutil.copytree(tiny_folder(kind), configs, ignore=lambda _, names: [
        name for name in names if name.endswith(".safetensors")
    ])  # fmt: skip
    outline = Outline(configs, tiny_family(kind), "cpu", {}, "tiny", {})
    made = made_of("violin", FEWER, guide=GUIDE)
    with pytest.raises(RecipeError, match="comes without a CLIP that sees") as caught:
        check_model(made, outline)
    assert "--set mine.prototypes.clip=" in str(caught.value)
    check_model(made_of("violin", {**FEWER, "clip": "some/clip"}, guide=GUIDE), outline)
    model = {"id": str(tiny_folder(kind)), "family": family_file(kind)}
    with pytest.raises(RecipeError, match="comes without a CLIP that sees"):
        execute(made_of("violin", FEWER, model=model), tmp_path / "run")


# --- the line -----------------------------------------------------------------------------------

SECRET = ("a dusty tavern cellar with beer and a stool", "a dusty cellar with a stool")


@pytest.fixture(scope="module")
def few():
    """The gate with few pictures: its verdict is asked about here, not its power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "evaluate_gate", partial(gate.evaluate_gate, counts=COUNTS))
        yield


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    """A whole run with pairs of a user's own."""
    folder = tmp_path_factory.mktemp("line")
    rows = [list(SECRET), ["a beer mug", "a mug"], ["a wine glass", "a glass"]]
    (folder / "pairs.yaml").write_text(json.dumps(rows * 2))
    mined = {**FEWER, "pairs": str(folder / "pairs.yaml"), "steps": 60}
    sampling = {"evaluate": {"judge": "family"}, "guide": {**GUIDE, "num_benign": 200, "beta": 4}}
    made = made_of(ALCOHOL, mined, **sampling)
    return execute(made, folder / "run", command="editforge run recipe.yaml --output run")


def text_of(folder):
    """All bytes of a folder, file by file."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_bank_goes_from_recipe_to_package(run):
    stages = sorted(path.name for path in run.folder.iterdir() if path.is_dir())
    assert stages == ["evaluate", "guide", "log", "mine", "package", "target"]
    assert sorted(path.name for path in (run.folder / "mine").iterdir()) == FILES
    package = run.folder / "package" / "bank"
    card = (package / "README.md").read_text()
    assert "no weights" in card
    assert "PrototypeGuard" in card
    assert "pip install editforge" in card
    assert "- guard\n" in card
    assert (package / "SHA256SUMS").is_file() or (run.folder / "package" / "SHA256SUMS").is_file()
    assert verify_folder(run.folder / "package") == []
    facts = json.loads((package / "editforge.json").read_text())
    assert facts["artifact"]["guidance"] == run.eraser.facts.guidance.model_dump()
    assert facts["artifact"]["guidance"]["beta"] == 4.0
    assert facts["artifact"]["concepts"][0]["instead"] == "teapot"
    assert facts["artifact"]["prototypes"] == 1
    scan(run.folder / "package", public=["teapot", "alcohol"])


def test_neither_pairs_nor_pictures_of_clusters_are_in_a_package(run):
    files = text_of(run.folder / "package")
    names = {path.name for path in files}
    assert "bank.safetensors" in names
    assert not [name for name in names if name.startswith(("clusters", "prototypes", "pairs"))]
    for path, data in files.items():
        for text in (*SECRET, str(run.folder.parent)):
            assert text.encode() not in data, path
    sheet = (run.folder / "mine" / "clusters-0.png").read_bytes()
    assert sheet not in files.values()
    size = struct.unpack("<Q", (run.folder / "guide" / "bank.safetensors").read_bytes()[:8])[0]
    assert size < 20_000  # the positive control: something is said there, and it is short


def test_run_and_package_give_one_guard(run):
    package = run.folder / "package"
    for place in (run.folder, package, package / "bank", run.folder / "guide/bank.safetensors"):
        assert editforge.load_edit(place) == run.eraser
        assert PrototypeGuard.from_pretrained(place) == run.eraser
    with pytest.raises(PackageError):
        PrototypeGuard.from_pretrained(run.folder / "mine" / "prototypes.safetensors")


def test_run_and_package_of_a_bank_get_the_same_verdict(run):
    rates = [(row.name, row.set, row.base, row.edited) for row in run.report.names]
    report = evaluate_saved(str(run.folder / "package" / "bank"))
    assert report.verdict.status == run.report.verdict.status
    assert [(row.name, row.set, row.base, row.edited) for row in report.names] == rates
    measured = run.report.metrics["presence_name"]
    assert measured["edited"].value < measured["base"].value


def test_an_edited_list_of_neighbors_keeps_its_prototypes(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    made = resolve(str(folder / "recipe.yaml")).model_copy(update={"evaluate": None})
    said: list[str] = []
    again = partial(execute, made, folder, command="editforge run recipe.yaml", say=said.append)
    before = again(replace=True).eraser
    stamps = {name: (folder / "mine" / name).stat().st_mtime_ns for name in FILES}
    path = folder / "mine" / "neighbors.yaml"
    text = path.read_text()
    assert text.count("role: erase") >= 2
    path.write_text(text.replace("role: erase", "role: ignore", 1))
    said.clear()
    after = again().eraser
    assert "mine: your neighbors.yaml is kept; what follows is redone" in said
    assert [line for line in said if line.startswith("guide: redone")]
    assert not [line for line in said if line.startswith("mine: redone")]
    for name in FILES:
        if name != "neighbors.yaml":
            assert (folder / "mine" / name).stat().st_mtime_ns == stamps[name]
    assert torch.equal(after.tensors["token"], before.tensors["token"])
    assert after.facts.concepts[0].missed < before.facts.concepts[0].missed
    # a word that is spared is not caught by its name any more
    assert len(after.tensors["name_selector"]) == len(before.tensors["name_selector"]) - 1


def test_the_official_preset_resolves_and_the_papers_is_refused_with_what_is_unknown():
    official = resolve("prototype", {"concepts": [ALCOHOL]}, preset="official")
    assert (official.guide.blend, official.guide.beta) == (0, 20)
    assert official.target is None
    assert official.mine[0].num_prototypes == 4
    assert official.mine[0].vectors == "mean"
    own = resolve("prototype", {"concepts": [ALCOHOL]})
    assert (own.guide.blend, own.guide.beta) == (0.8, 0)
    assert own.mine[0].use == "prototypes"  # its members are no targets
    with pytest.raises(PresetUnavailable, match="published nowhere") as caught:
        resolve("prototype", {"concepts": [ALCOHOL]}, preset="paper")
    assert "beta, the window of steps" in str(caught.value)
    assert "official" in str(caught.value)


@pytest.mark.parametrize(
    ("use", "file"),
    [
        ("negative-prompt", "negative_prompt.safetensors"),
        ("sld", "sld.safetensors"),
        ("semantic-surgery", "semantic_surgery.safetensors"),
    ],
)
def test_a_guard_of_texts_goes_from_recipe_to_package_and_back(use, file, tmp_path):
    body = {
        "concepts": [{"name": "violin", "aliases": ["fiddle"]}],
        "mine": None,
        "target": None,
        "edit": None,
        "guide": {"use": use},
        "evaluate": None,
        "package": {"export": ["guard"]},
    }
    done = execute(resolve(body), tmp_path / "run", command="editforge run recipe.yaml")
    package = tmp_path / "run" / "package"
    assert verify_folder(package) == []
    written = next(package.rglob("*.safetensors"))
    assert written.name == file
    for place in (tmp_path / "run", package, written.parent, written):
        assert editforge.load_edit(place) == done.eraser
    card = (written.parent / "README.md").read_text()
    assert f'editforge.load_edit("{file}")' in card
    scan(package, public=["violin"])
    pipe = emoji.load_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def latents():
        options = {"num_inference_steps": 12, "output_type": "latent"}
        noise = torch.Generator().manual_seed(0)
        return pipe("an emoji of a violin", generator=noise, **options).images

    plain = latents()
    with editforge.load_edit(package).on(pipe):
        assert not torch.equal(latents(), plain)
    assert torch.equal(latents(), plain)
