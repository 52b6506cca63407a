"""No eraser sees what it is scored with: RETAIN-60, the held-out templates, aliases nobody gave it.

Whatever a shipped recipe reads passes the text encoder once. So it is watched there: mining, targets,
the solve and the prompts of a training, for real, on the embedded model.
"""

import re

import pytest

import editforge
from editforge import emoji
from editforge.families import draw
from editforge.families.live import LiveModel
from editforge.families.vocabulary import word_list
from editforge.ground.names import fold, name_key
from editforge.ground.resources import resource_folder
from editforge.recipe.layers import resolve

RECIPES = sorted(path.stem for path in resource_folder("pipelines").glob("*.yaml"))
RETAIN = emoji.manifest().splits["retain60"]
CONCEPT = "violin"


@pytest.fixture(scope="module")
def pipe():
    return emoji.load_pipeline()


@pytest.fixture(scope="module")
def texts(pipe, tmp_path_factory):
    """Recipe name to every text that reached the text encoder while it ran; none comes from a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(draw, "_draw", DrawnOnce(draw._draw))
        seen = Texts()
        for name in RECIPES:
            seen[name], seen.mined[name] = read_by(pipe, name)
        yield seen


class Texts(dict):
    """With the words that each recipe found by itself and erased."""

    def __init__(self):
        super().__init__()
        self.mined = {}


class DrawnOnce:
    """Recipes look at the same pictures of the base: drawn once, their prompts are read every time."""

    def __init__(self, drawing):
        self._drawing, self._drawn = drawing, {}

    def __call__(self, pipe, batch, sampler, size):
        key = repr((batch, sampler, size))
        if key in self._drawn:
            pipe.encode_prompt([prompt.text for prompt, _ in batch], "cpu", 1, True)
        else:
            self._drawn[key] = self._drawing(pipe, batch, sampler, size)
        return self._drawn[key]


def read_by(pipe, name):
    seen = []

    def record(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        seen.extend(pipe.tokenizer.batch_decode(ids, skip_special_tokens=True))

    quick, recipe = [], resolve(name, {"concepts": [{"name": CONCEPT}]})
    if recipe.align is not None:
        quick = ["align.steps=1", "align.sample_steps=1", "align.erase_runs=16"]
    if any(
        config.use == "prototypes" for config in recipe.mine or ()
    ):  # every template, few pictures
        few = {"num_pairs": 8, "pictures": 1, "num_prototypes": 2, "steps": 5}
        quick += [f"mine.prototypes.{key}={value}" for key, value in few.items()]
    hook = pipe.text_encoder.register_forward_pre_hook(record, with_kwargs=True)
    try:
        edit = editforge.erase(pipe, CONCEPT, method=name, options=quick, progress=False)
    finally:
        hook.remove()
    row = edit.provenance["erased"][0]  # nothing was given, so all other names were found
    found = [*row.get("aliases", ()), *row.get("mined", ())]
    return sorted({fold(text) for text in seen}), {fold(word) for word in found}


def holds(text, name):
    """Whether the name stands in the text as a word or words of its own, in any number."""
    return re.search(rf"\b{re.escape(name_key(name))}\b", name_key(text)) is not None


def without_known_names(text):
    """A text less the names an eraser may know: `hot dog` is one of them, `dog` is not."""
    for known in sorted(map(name_key, emoji.words()), key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(known)}\b", "", text)
    return text


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_reads_a_withheld_name(recipe, texts):
    read = [without_known_names(name_key(text)) for text in texts[recipe]]
    assert any(holds(text, CONCEPT) for text in texts[recipe])  # the control: it was watched
    found = {name: text for name in RETAIN for text in read if holds(text, name)}
    assert found == {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_reads_a_held_out_template(recipe, texts):
    patterns = []
    for template in emoji.manifest().templates["held_out"]:
        text = re.escape(template).replace(r"\{a\}", "(an? )?.+").replace(r"\{n\}", ".+")
        colors, styles = emoji.manifest().colors, [row.name for row in emoji.manifest().styles]
        text = text.replace(r"\{color\}", f"({'|'.join(colors)})")
        patterns.append(text.replace(r"\{style\}", f"({'|'.join(styles)})"))
    patterns = [re.compile(fold_pattern(text)) for text in patterns]
    assert any(pattern.fullmatch("drawing of a violin") for pattern in patterns)  # the control
    assert [t for t in texts[recipe] if any(p.fullmatch(t) for p in patterns)] == []


def fold_pattern(text):
    """`fold` of a pattern: the article in front and punctuation go."""
    return re.sub(r"^(a|an|the)\\ ", "", text).replace(",", "")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reads_an_alias_only_where_mining_found_the_word_by_itself(recipe, texts, pipe):
    """RealEra reads the tokenizer's words bare, and erases those that mean the same like any name."""
    read, mined = texts[recipe], texts.mined[recipe]
    mines = resolve(recipe, {"concepts": [{"name": CONCEPT}]}).mine or ()
    sources = {getattr(config, "words", "family") for config in mines}
    bare = {word for source in sources for word in word_list(LiveModel(pipe), source)}
    manifest = emoji.manifest()
    asked = [manifest.find(name) for name in (*manifest.splits["dev"], *manifest.splits["test"])]
    named = {fold(word) for word in (*manifest.names, *manifest.group_words)}
    secret = {fold(alias) for concept in asked for alias in concept.aliases} - named
    assert len(secret) > 20
    found = {
        (alias, text)
        for text in map(without_known_names, read)
        for alias in secret - mined
        if holds(text, alias) and not (text == alias and alias in bare)
    }
    assert found == set()
    assert mined == ({"viola", "fiddle"} if recipe == "realera" else set())


@pytest.mark.parametrize("source", ["family", "tokenizer"])
def test_no_word_list_of_the_embedded_model_holds_a_withheld_name(source, pipe):
    words = word_list(LiveModel(pipe), source)
    keys = {name_key(word) for word in words}
    assert len(words) > 100
    assert keys.isdisjoint(name_key(name) for name in RETAIN)


def test_a_word_list_of_the_users_own_is_read_as_it_is(pipe, tmp_path):
    (tmp_path / "words.txt").write_text("fox\nviola\n")
    assert word_list(LiveModel(pipe), str(tmp_path / "words.txt")) == ("fox", "viola")
