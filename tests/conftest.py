"""The suite sees no Hub but the loopback one, whatever the caller's shell says.

The Hub client reads its environment once, when it is imported, so this stands here and not in a
fixture: a caller's HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT or HF_HOME must neither break a test nor be
used by one. The home folder is an empty one, so that no login and no cached model of the caller is seen;
the endpoint is one where nobody answers, so that a test which would need the network fails.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

import pytest

OF_THE_HUB = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "DIFFUSERS_")

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before the tests set its environment")
for _name in [name for name in os.environ if name.startswith(OF_THE_HUB)]:
    del os.environ[_name]
_home = tempfile.TemporaryDirectory(prefix="editforge-hub-home-")
os.environ["HF_HOME"] = _home.name
# Nor words and pictures of the caller's runs; the workers of one suite share those of the base.
_cache = os.environ.setdefault("EDITFORGE_TESTS_CACHE", f"{_home.name}/cache")
os.environ["XDG_CACHE_HOME"] = _cache
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Files of most seconds, the longest first, so that the workers of `--dist loadfile` end together.
LONGEST = (
    "test_saved", "test_resume", "test_zoo", "test_prototypes", "test_zoo_edits", "test_processes",
    "test_age", "test_registry", "test_targets", "test_cli", "test_withheld", "test_guard_command",
    "test_plan", "test_again", "test_graph", "test_held", "test_api", "test_gate", "test_align",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line where tests that need a GPU were asked for and none was there."""
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum("gpu" in report.keywords for report in skipped):
        terminalreporter.write_line(
            f"{count} gpu tests did not run: no CUDA GPU here. `make test-gpu` runs them where one is."
        )


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """The Hub of this process is a server on the loopback, with an empty cache."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    from tests.hub_server import TOKEN, serving

    with serving() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        cache = tmp_path_factory.mktemp("hub-cache")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # see hub_server
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    close_session()


@pytest.fixture(scope="module")
def zoo_pipe():
    """The embedded model, whose erasers `tests/zoo.py` keeps."""
    from editforge import emoji

    return emoji.load_pipeline()


@pytest.fixture(scope="module")
def zoo_base(zoo_pipe, tmp_path_factory):
    """A folder with what it draws for violin and for a trumpet, once for many erasers."""
    from tests.zoo import draw_base

    folder = tmp_path_factory.mktemp("base")
    draw_base(zoo_pipe, folder)
    return folder


@pytest.fixture
def judged(zoo_pipe, zoo_base, tmp_path):
    """The real gate on an eraser of violins: `judged(eraser, target="trumpet")`."""
    from tests.zoo import judge

    shutil.copytree(zoo_base, tmp_path / "work")
    return lambda eraser, target="trumpet": judge(zoo_pipe, eraser, tmp_path / "work", target)
