"""The embedded model: verified bytes, stock classes, lists that keep the benchmark's promises."""

import subprocess
import sys

import pytest
import torch

from editforge import emoji
from editforge.emoji import assets
from editforge.ground.errors import PackageError


@pytest.fixture
def fresh_checks():
    """Digests are checked once a process; forget that before and after a test damages files."""
    caches = (assets._digests, assets._verified, assets.manifest)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def copied(tmp_path, monkeypatch, fresh_checks):
    """A damaged-to-be copy of the small files, in place of the shipped ones."""
    for name in ("digests.json", "manifest.json", "ATTRIBUTION.md"):
        (tmp_path / name).write_bytes((assets._ASSETS / name).read_bytes())
    monkeypatch.setattr(assets, "_ASSETS", tmp_path)
    return tmp_path


def test_importing_and_listing_names_needs_no_torch():
    code = (
        "import sys, editforge.emoji as e\n"
        "assert len(e.words()) == 180 and e.folder().is_dir()\n"
        "assert 'torch' not in sys.modules\n"
        "assert not [m for m in sys.modules if m.startswith('editforge.')\n"
        "            and not m.startswith(('editforge.emoji', 'editforge.ground'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_shipped_file_has_a_digest_and_is_small():
    files = [path for path in assets._ASSETS.rglob("*") if path.is_file()]
    names = {path.relative_to(assets._ASSETS).as_posix() for path in files}
    assert names - {"digests.json"} == set(assets._digests())
    assert max(path.stat().st_size for path in files) < 50_000_000


def test_a_changed_file_is_refused_by_name(copied):
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(PackageError, match=r"has changed(.|\n)*manifest\.json"):
        emoji.manifest()


def test_a_missing_file_is_refused_by_name(copied):
    (copied / "ATTRIBUTION.md").unlink()
    with pytest.raises(PackageError, match=r"is missing(.|\n)*ATTRIBUTION\.md"):
        emoji.attribution()


def test_only_the_files_of_the_loaded_part_are_read(copied):
    assert len(emoji.manifest().names) == 240
    with pytest.raises(PackageError, match="pipeline"):
        emoji.folder()


def test_an_unknown_judge_is_refused():
    with pytest.raises(PackageError, match="a, b"):
        emoji.judge_digest("c")


def test_names_splits_and_lists_are_consistent():
    manifest = emoji.manifest()
    names, splits = set(manifest.names), manifest.splits
    assert len(manifest.concepts) == len(names) == 240
    assert [c.index for c in manifest.concepts] == list(range(240))
    assert [len(splits[key]) for key in ("test", "dev", "retain60", "core_ten")] == [20, 12, 60, 10]
    disjoint = [*splits["test"], *splits["dev"], *splits["retain60"]]
    assert len(set(disjoint)) == len(disjoint)
    assert set(splits["core_ten"]) <= set(splits["test"])
    for concept in (*splits["test"], *splits["dev"]):
        near = manifest.near[concept]
        eight = (*near.meaning, *near.appearance)
        assert len(near.meaning) == len(near.appearance) == 4
        assert set(eight) <= set(manifest.words) - {concept, *manifest.twins_of(concept)}
        assert len(manifest.find(concept).aliases) == 2
        assert concept in manifest.far_panel
    assert set(manifest.far["A"]) | set(manifest.far["B"]) <= set(splits["retain60"])
    assert set(manifest.far["DEV"]) <= set(manifest.words)
    sizes = [len(manifest.multi[key]) for key in ("1", "10", "50", "100")]
    assert sizes == [1, 10, 50, 100]
    assert not set(manifest.multi["100"]) & {*splits["retain60"], *splits["dev"]}


def test_words_are_all_names_but_the_withheld_ones_in_order():
    manifest = emoji.manifest()
    withheld = set(manifest.splits["retain60"])
    assert list(emoji.words()) == [name for name in manifest.names if name not in withheld]
    assert len(emoji.words()) == 180


def test_a_name_an_alias_and_a_group_word_are_found():
    manifest = emoji.manifest()
    assert manifest.find("violin").name == manifest.find("fiddle").name == "violin"
    assert manifest.find("giraffe") is None
    assert manifest.members("weapon") == manifest.broad["weapon"].members
    assert set(manifest.members("instrument")) == {"guitar", "trumpet", "violin", "drum"}
    assert manifest.members("violin") == ()
    assert manifest.twins_of("cat") == ("cat face",)


def test_attribution_names_every_style_with_its_license():
    text = emoji.attribution().read_text()
    for style in emoji.manifest().styles:
        row = next(line for line in text.splitlines() if f"| {style.name} |" in line)
        assert style.license in row
        assert style.version in row


def test_the_license_of_the_weights_names_every_style_under_its_license():
    text = (assets._verified("LICENSE.md")).read_text()
    for style in emoji.manifest().styles:
        row = next(line for line in text.splitlines() if line.startswith(f"| [{style.license}]"))
        assert style.name in row


def test_the_pipeline_is_stock_float32_with_its_own_scheduler():
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = emoji.load_pipeline()
    assert type(pipe) is StableDiffusionPipeline
    assert type(pipe.scheduler) is DDIMScheduler
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    half = emoji.load_pipeline(dtype=torch.float16)
    assert {p.dtype for p in half.text_encoder.parameters()} == {torch.float16}
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}


def test_the_text_tower_of_clip_is_the_pipelines():
    clip, tokenizer = emoji.load_clip()
    pipe = emoji.load_pipeline()
    assert next(clip.parameters()).dtype == torch.float32
    tokens = tokenizer(["a violin"], return_tensors="pt")
    with torch.no_grad():
        ours = clip.text_model(**tokens).last_hidden_state
        theirs = pipe.text_encoder(**tokens).last_hidden_state
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("which", ["a", "b"])
def test_judges_know_all_names_and_none(which):
    judge = emoji.load_judge(which)
    labels = [judge.config.id2label[index] for index in range(241)]
    assert labels == [*emoji.manifest().names, "none"]
    assert len(emoji.judge_digest(which)) == 64
