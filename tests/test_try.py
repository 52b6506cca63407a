"""`editforge try`: base and edited side by side, on this computer alone, and as a Space."""

import functools
import json
import os
import shutil
import signal
import socket
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import gradio
import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from editforge.families.draw import Sampler, Shown, sample
from editforge.ground.errors import EditforgeError, HubError, PackageError, RecipeError
from editforge.run.load import load_edit
from editforge.run.page import page
from editforge.run.space import write_space
from editforge.run.trying import NOISE, trial
from tests.command import QUICK, ROOT, UNJUDGED, editforge, start

REPO = "someone/violin-erased"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("try")
    done = editforge(
        "erase", "violin", *QUICK, *UNJUDGED, "--export", "lora,unet", "--output", "run", cwd=folder
    )
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def opened(run):
    with trial(str(run), device="cpu") as found:
        yield found


# --- what is drawn ------------------------------------------------------------------------------


def test_the_base_is_what_the_gate_draws_and_strength_0_is_the_base(opened):
    weights = {name: tensor.clone() for name, tensor in opened.pipe.unet.state_dict().items()}
    shares = []
    pair = opened.draw("a violin", 3, steps=2, tick=shares.append)
    row = Shown(NOISE, "a violin", (3,))
    gate = sample(opened.pipe, [row], Sampler(steps=2, guidance=4.0), progress=False)[0]
    assert np.array_equal(pair.base, gate)
    assert not np.array_equal(pair.edited, pair.base)
    off = opened.draw("a violin", 3, steps=2, strength=0)
    assert np.array_equal(off.base, gate)
    assert np.array_equal(off.edited, gate)
    half = opened.draw("a violin", 3, steps=2, strength=0.5).edited
    assert not np.array_equal(half, pair.edited)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(tensor.equal(weights[n]) for n, tensor in opened.pipe.unet.state_dict().items())


def test_a_seed_is_the_noise_whatever_is_asked(opened):
    one = opened.draw("a violin", 3, steps=1).base
    assert not np.array_equal(one, opened.draw("a violin", 4, steps=1).base)
    # the first picture of `guard try` with the same seed
    again = sample(opened.pipe, [Shown("try/0", "a violin", (3,))], Sampler(1, 4.0), progress=False)
    assert np.array_equal(one, again[0])


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("  ", {}, "no prompt"),
        ("a violin", {"seed": -1}, "the seed"),
        ("a violin", {"seed": None}, "the seed"),
        ("a violin", {"strength": 2.5}, "the strength"),
        ("a violin", {"strength": float("nan")}, "the strength"),
        ("a violin", {"steps": 0}, "steps"),
        ("a violin", {"guidance": 21}, "guidance"),
    ],
)
def test_what_cannot_be_drawn_is_refused(opened, prompt, options, said):
    with pytest.raises(RecipeError, match=said):
        opened.draw(prompt, **{"seed": 0, "steps": 1, **options})


def test_the_end_of_a_long_prompt_is_said_and_the_rest_is_drawn(opened):
    assert opened.draw("a violin", 0, steps=1).cut == ""
    long = opened.draw("a violin " + "and a horse " * 12 + "under an umbrella", 0, steps=1)
    assert long.cut.endswith("under an umbrella")
    assert not long.cut.startswith("a violin")


def test_a_lora_is_the_run_and_a_checkpoint_has_its_strength_inside(run, opened):
    wanted = opened.draw("a violin", 0, steps=2).edited.astype(int)
    with trial(str(run / "package" / "lora"), device="cpu") as lora:
        assert lora.has_strength
        assert np.abs(lora.draw("a violin", 0, steps=2).edited - wanted).mean() < 1
    with trial(str(run / "package" / "unet"), device="cpu") as whole:
        pair = whole.draw("a violin", 0, steps=2)
        assert np.abs(pair.edited - wanted).mean() < 1
        assert not np.array_equal(pair.base, pair.edited)
        assert not whole.has_strength
        with pytest.raises(RecipeError, match="strength inside"):
            whole.draw("a violin", 0, strength=0.5)


def test_what_is_known_is_on_the_page(run, opened, tmp_path):
    about = opened.about
    assert about.erased == (("violin", "trumpet"),)
    assert about.examples[0] == "a violin"
    assert about.verdict is None  # UNJUDGED
    results = ROOT / "model_cards" / "example" / "editforge_results.json"
    shutil.copytree(run / "package" / "lora", tmp_path / "lora")
    shutil.copy(results, tmp_path / "lora")
    with trial(str(tmp_path / "lora"), device="cpu") as found:
        told = json.loads(results.read_text())
        assert found.about.verdict.status == told["verdict"]["status"]
        near = [row["name"] for row in told["names"] if row["set"] == "near"]
        assert any(near[0] in text for text in found.about.examples)
        shown = str(page(found).get_config_file())
        assert told["verdict"]["message"][:20] in shown
        assert "not a guarantee" in shown
    (tmp_path / "lora" / "editforge_results.json").write_text('{"verdict": 1}')
    with pytest.raises(PackageError, match="damaged"), trial(str(tmp_path / "lora")):
        pass


# --- what is refused before there is a page ------------------------------------------------------


def test_another_base_an_unnamed_one_and_one_that_does_not_fit_are_refused(run, tmp_path):
    edit = load_edit(run)
    told = {**edit.provenance, "base_sha256": "0" * 64}
    replace(edit, provenance=told).save(tmp_path / "weight_edit.safetensors")
    with pytest.raises(PackageError, match="another base"), trial(str(tmp_path)):
        pass
    own = load_file(run / "package" / "lora" / "pytorch_lora_weights.safetensors")
    other = str(tmp_path / "stranger.safetensors")
    save_file(own, other)  # no header: it says nothing of itself
    with pytest.raises(PackageError, match="cannot name its base"), trial(other):
        pass
    with trial(other, model="emoji") as found:
        assert found.about.erased == ()
        page(found)
    save_file({name.replace("attn2", "attn9"): tensor for name, tensor in own.items()}, other)
    with pytest.raises(EditforgeError, match="attn9"), trial(other, model="emoji"):
        pass
    with pytest.raises(PackageError, match="no such folder"), trial("./nowhere"):
        pass


@pytest.mark.parametrize("age", [None, "4.44.1"])
def test_without_gradio_it_says_what_to_install(run, age, tmp_path):
    before = f"""
import importlib.metadata
import editforge.run.page
def version(name):
    if {age!r} is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return {age!r}
editforge.run.page.version = version
"""
    done = editforge("try", str(run), "--no-browser", cwd=tmp_path, before=before)
    assert done.code == 2
    assert "pip install 'editforge[try]'" in done.err
    assert "opening" not in done.err


def test_a_port_that_is_taken_is_refused_before_a_model_is_read(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = editforge("try", str(run), "--no-browser", "--port", port, cwd=tmp_path)
    assert done.code == 2
    assert "this port cannot be had" in done.err
    assert "opening" not in done.err


@pytest.mark.parametrize(
    ("prompt", "seed", "said"), [("", 0, "no prompt"), ("<b>x", None, "the seed")]
)
def test_the_page_shows_a_refusal_and_draws_on(opened, prompt, seed, said):
    draw = next(fn.fn for fn in page(opened).fns.values() if fn.name == "draw")
    with pytest.raises(gradio.Error, match=said):
        draw(prompt, seed, 1, 1, 4)
    base, edited = draw("<b>violin", 0, 1, 1, 4)
    assert "data:image/png;base64," in base
    assert base != edited
    assert "<b>" not in base


# --- served ------------------------------------------------------------------------------------


def get(url):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=10) as answer:
        return answer.read().decode()


def waited(ready, running, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = ready()
        if found:
            return found
        assert not (running.folder / "code").exists(), (running.folder / "err").read_text()
        time.sleep(0.05)
    raise TimeoutError


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    """The command as a user types it: its address, and what ends it as Ctrl-C does."""
    folder = tmp_path_factory.mktemp("served")
    running = start("try", str(run / "package" / "lora"), "--no-browser", "--json", cwd=folder)
    out = running.folder / "out"
    line = waited(lambda: out.exists() and out.read_text(), running)

    @functools.cache
    def stop():
        os.kill(running.pid, signal.SIGINT)
        return running.wait()

    yield json.loads(line)["page"], stop, folder
    stop()


def test_the_page_draws_two_pictures_in_a_browser_and_asks_nobody_else(served):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium on this computer")
    url, _, _ = served
    asked, told = [], []
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda line: told.append(line.text) if line.type == "error" else None)
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.goto(url)
        tab.get_by_label("Prompt").fill("a violin on a table")
        tab.locator("#ef-draw").click()
        pictures = [tab.locator(f"#ef-{side} img") for side in ("base", "edited")]
        sources = []
        for picture in pictures:
            picture.wait_for(timeout=30_000)
            sources.append(picture.get_attribute("src"))
            assert picture.evaluate("image => image.naturalWidth") == 64
        assert sources[0] != sources[1]
        assert "a violin on a table" in pictures[0].get_attribute("alt")
        tab.get_by_label("Prompt").fill(" ")
        tab.locator("#ef-draw").click()
        tab.get_by_text("no prompt").wait_for(timeout=10_000)
        browser.close()
    assert told == []
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []


def test_nothing_of_this_computer_is_on_the_page(served, run):
    url, _, _ = served
    assert url.startswith("http://127.0.0.1:")
    seen = get(f"{url}/config") + get(url)
    assert "trumpet" in seen
    for private in (str(run), str(ROOT), f"{Path.home()}/", socket.gethostname()):
        assert private not in seen, private
    with pytest.raises(OSError, match="HTTP Error 40"):
        get(f"{url}/gradio_api/file={run}/recipe.yaml")


def test_a_space_serves_the_same_page_from_its_own_file(served, run, tmp_path, loopback):
    own = run / "package" / "lora"
    files = {p.relative_to(own).as_posix(): p.read_bytes() for p in own.rglob("*") if p.is_file()}
    loopback.repo(REPO, private=False, files=files)
    write_space(REPO, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"app.py", "requirements.txt", "README.md"}
    settings = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert (settings["sdk"], settings["app_file"]) == ("gradio", "app.py")
    assert settings["sdk_version"] == gradio.__version__
    assert (settings["models"], settings["license"]) == ([REPO], "other")
    assert settings["license_link"] == f"https://huggingface.co/{REPO}/blob/main/LICENSE.md"
    # A folder of the repository's name stands for the Hub, so that the file runs as it is.
    shutil.copytree(own, tmp_path / REPO)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = f"""
import os, runpy
os.environ["GRADIO_SERVER_PORT"] = "{port}"
runpy.run_path("app.py", run_name="__main__")
"""
    running, url = start(cwd=tmp_path, before=before), f"http://127.0.0.1:{port}"
    try:
        out = running.folder / "out"
        waited(lambda: out.exists() and url in out.read_text(), running)
        mine, theirs = (json.loads(get(f"{one}/config")) for one in (url, served[0]))
        assert mine["components"] == theirs["components"]
        assert mine["dependencies"] == theirs["dependencies"]
        assert mine["theme_hash"] == theirs["theme_hash"]
    finally:
        os.kill(running.pid, signal.SIGTERM)
        running.wait()


def test_ctrl_c_ends_it_and_leaves_nothing(served):
    _, stop, folder = served
    done = stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert "the page is closed" in done.err
    assert len(done.out.splitlines()) == 1
    assert list(folder.iterdir()) == []


def test_a_space_is_of_a_pushed_package_in_an_empty_folder(run, tmp_path, loopback):
    done = editforge("try", str(run), "--space", "a", cwd=tmp_path)
    assert done.code == 2
    assert "editforge push RUN YOUR-NAME/REPO" in done.err
    with pytest.raises(HubError):
        write_space("nobody/nothing", tmp_path / "a")
    loopback.repo("some/model", private=False, files={"config.json": b"{}"})
    with pytest.raises(PackageError, match="no package of EditForge"):
        write_space("some/model", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "app.py").write_text("mine")
    with pytest.raises(PackageError, match="holds files"):
        write_space("some/model", tmp_path / "full")
    assert (tmp_path / "full" / "app.py").read_text() == "mine"
