"""A user or host called like a word of ours can package; what only this machine says is caught."""

from __future__ import annotations

import time

import pytest

from editforge.ground.errors import PackageError
from editforge.package.scrub import marks, scan
from tests.command import QUICK, editforge
from tests.test_cli import FEW_PICTURES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A judged run, so that near and far names, prompts and a report are in its package."""
    folder = tmp_path_factory.mktemp("run")
    done = editforge("erase", "violin", *QUICK, "--output", "run", cwd=folder, before=FEW_PICTURES)
    assert done.code in (0, 1), done.err
    return folder


def called(name):
    user = f"os.environ['LOGNAME'] = {name!r}"
    return f"import os, socket\n{user}\nsocket.gethostname = lambda: {name!r}\n"


def packaged(run, name):
    """Package a finished run again, as a user of that name on a host of that name."""
    done = run / "run" / "package"
    done.rename(run / f"package-{time.monotonic_ns()}")
    return editforge("run", "run/recipe.yaml", "--output", "run", cwd=run, before=called(name))


@pytest.mark.parametrize("name", ["lion", "guitar", "Elephant", "drawing", "prompt", "violin"])
def test_a_user_with_an_ordinary_name_can_package(name, run):
    done = packaged(run, name)
    assert done.code in (0, 1), done.err
    assert (run / "run/package/SHA256SUMS").is_file()


def test_the_results_do_hold_such_a_name(run):
    """The positive control: without the rule these packages would be refused."""
    text = (run / "run/evaluate/editforge_results.json").read_text()
    assert any(f'"{name}"' in text for name in ("lion", "guitar", "elephant"))
    assert '"prompt"' in text


@pytest.mark.parametrize("which", ["getpass.getuser", "socket.gethostname"])
@pytest.mark.parametrize("name", ["qx7user", "liu", "gandikota", "capon"])
def test_a_name_that_only_this_machine_has_is_found(name, which, tmp_path, monkeypatch):
    """Authors stand in comments, and comments are in no package."""
    monkeypatch.setattr(which, lambda: name)
    (tmp_path / "recipe.yaml").write_text("concepts: [{name: violin, aliases: [a fiddle]}]\n")
    scan(tmp_path, public=["a", "user"])
    (tmp_path / "recipe.yaml").write_text(f"concepts: [{{name: violin, owner: {name}}}]\n")
    with pytest.raises(PackageError, match=r"holds the (user|host) name"):
        scan(tmp_path, public=["a", "user", "q", name[:2]])


@pytest.mark.parametrize("place", ["/home/lion/run", "~/lion", "C:\\\\Users\\\\lion"])
def test_a_path_with_an_ordinary_name_is_found(place, tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "lion")
    assert not any(mark.name == "the user name" for mark in marks())
    (tmp_path / "recipe.yaml").write_text(f"words: {place}\n")
    with pytest.raises(PackageError, match="absolute path"):
        scan(tmp_path)


def test_a_leak_in_the_recipe_of_a_run_is_refused(tmp_path):
    line = ("erase", "violin", *QUICK, "--set", "evaluate=null", "--set", "edit.captions=qx7user.csv",
            "--output", "run")  # fmt: skip
    (tmp_path / "qx7user.csv").write_text("a lion\n")
    done = editforge(*line, cwd=tmp_path, before=called("qx7user"))
    assert done.code == 2, done.err
    assert "qx7user" in done.err
    assert not (tmp_path / "run/package").exists()
