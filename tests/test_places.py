"""A folder here or a repository on the Hub: a mistyped path is never looked up."""

from __future__ import annotations

import pytest

from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.ground.errors import FamilyError, HubError, PackageError
from editforge.ground.places import is_hub_id
from editforge.run.saved import local_folder
from tests.models import family_file, tiny_folder

REPO = "ann/tiny-model"
PATHS = ["./models/sd15", "../models/sd15", "~/models", "/models/sd15", "models/sd15.safetensors",
         "runs/vioiln", "models/sd15/unet", "my.ckpt", "models\\sd15"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("text", PATHS)
def test_a_mistyped_path_is_refused_without_a_request(text, loopback):
    assert not is_hub_id(text)
    with pytest.raises((FamilyError, PackageError)), open_model(ModelConfig(id=text)):
        pass
    with pytest.raises(PackageError):
        local_folder(text)
    assert loopback.calls == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "text",
    [
        "stabilityai/stable-diffusion-xl-base-1.0",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "SG161222/Realistic_Vision_V5.1_noVAE",
        "models/sd15",
    ],
)
def test_owner_and_name_without_such_a_folder_is_a_hub_id(text):
    assert is_hub_id(text)


@pytest.mark.usefixtures("here")
def test_what_is_neither_here_nor_on_the_hub_says_so(loopback):
    with pytest.raises(HubError) as model, open_model(ModelConfig(id="models/sd15")):
        pass
    with pytest.raises(HubError) as package:
        local_folder("models/sd15")
    for caught in (model, package):
        assert caught.value.what == (
            "neither a local folder nor a Hub repository is called models/sd15"
        )
        assert "spelling" in caught.value.next
    assert "info" in loopback.calls


@pytest.mark.usefixtures("here")
def test_a_hub_id_opens_what_the_hub_holds(loopback):
    """The positive control of the refusals above."""
    folder = tiny_folder("sd1")
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    loopback.repo(REPO, private=False, files=files)
    with open_model(ModelConfig(id=REPO, family=family_file("sd1"), device="cpu")) as model:
        assert model.label == REPO
        assert model.revision == loopback.repos[REPO].refs["main"]
        assert (model.folder / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert (local_folder(REPO) / "model_index.json").is_file()
