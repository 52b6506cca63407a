"""The wheel carries its data and works in a bare environment outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.command import ENVIRONMENT, ROOT

pytest.importorskip("hatchling")
LIMIT = 50_000_000  # bytes; PyPI and GitHub both balk at larger files


def run(*command, cwd, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # What `pip wheel` and `python -m build` call.
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = run(sys.executable, "-c", code, folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """A new environment: EditForge from the wheel, its libraries from where they are."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    done = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd="/")
    site = site.stdout.strip()
    install = ("-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    done = run(sys.executable, *install, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    # A plain line adds the folder of the libraries and reads no .pth in it: not the checkout's.
    with open(os.path.join(site, "libraries.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_carries_recipes_cards_families_and_the_embedded_model(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "pipelines").glob("*.yaml"):
        assert f"editforge/_data/pipelines/{path.name}" in names
    for path in (ROOT / "model_cards").glob("*.j2"):
        assert f"editforge/_data/model_cards/{path.name}" in names
    tracked = subprocess.run(
        ["git", "ls-files", "editforge"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    present = [name for name in tracked if name and (ROOT / name).is_file()]
    assert len(present) > 60
    assert [name for name in present if name not in names] == []
    assert any(name.endswith(".safetensors") and "emoji/assets" in name for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)
    assert any("LICENSE" in name for name in names)


def test_the_wheel_holds_nothing_large_and_nothing_foreign(wheel):
    entries = zipfile.ZipFile(wheel).infolist()
    assert [entry.filename for entry in entries if entry.file_size >= LIMIT] == []
    tops = {entry.filename.partition("/")[0] for entry in entries}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"editforge"}
    strays = (".pyc", ".pt", ".bin", ".ckpt", ".pkl", ".partial")
    assert [entry.filename for entry in entries if entry.filename.endswith(strays)] == []


def test_the_same_source_makes_the_same_wheel(wheel, tmp_path):
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    assert run(sys.executable, "-c", code, tmp_path, cwd=ROOT).returncode == 0
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_installed_package_is_the_wheel_and_not_the_checkout(bare, tmp_path):
    code = "import editforge, torch; print(editforge.__file__); print(torch.__file__)"
    done = run(bare / "bin" / "python", "-c", code, cwd=tmp_path)
    ours, torch = done.stdout.split()
    assert ours.startswith(str(bare)), done.stderr
    assert not torch.startswith(str(bare))


@pytest.mark.parametrize("what", ["methods", "stages", "families"])
def test_the_installed_command_lists_what_the_checkout_lists(what, bare, tmp_path):
    installed = run(bare / "bin" / "editforge", "list", what, cwd=tmp_path)
    checkout = run(sys.executable, "-m", "editforge.cli.main", "list", what, cwd=ROOT)
    assert installed.returncode == 0, installed.stderr
    assert installed.stdout == checkout.stdout


def test_the_installed_command_erases(bare, tmp_path):
    command = (bare / "bin" / "editforge", "erase", "violin", "--judge", "none")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not judged" in done.stdout
    package = tmp_path / "runs" / "violin" / "package"
    assert (package / "lora" / "pytorch_lora_weights.safetensors").is_file()
    checked = run(bare / "bin" / "editforge", "verify", "runs/violin", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
