"""From what the user typed to a Model: `emoji`, a Hub id, a pipeline folder, a .safetensors file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editforge.disk import sha256_file, sha256_json
from editforge.errors import FamilyError, HubError
from editforge.families.config import ModelConfig
from editforge.families.model import Model, Origin
from editforge.files import read_header

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PICKLED = (".ckpt", ".bin", ".pt", ".pth")


@contextmanager
def open_model(config: ModelConfig) -> Iterator[Model]:
    """Open the model named by `config.id` for the length of a `with` block.

    Raises:
        FamilyError: not a model we can edit; HubError: the Hub did not give it.
    """
    import torch

    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if config.dtype not in (None, *dtypes):
        raise FamilyError("unknown dtype", got=config.dtype, allowed=", ".join(dtypes))
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {
        "family": config.family,
        "variant": config.variant,
        "device": device,
        "dtype": dtypes.get(config.dtype or ""),
    }
    path = Path(config.id).expanduser()
    if config.id == "emoji":
        from editforge import emoji

        origin = Origin("editforge/emoji-sd", license="other", license_link="ATTRIBUTION.md")
        yield Model(emoji.folder(), origin, **options)
    elif path.is_dir():
        yield _local(path, options)
    elif path.suffix in (".safetensors", *_PICKLED):
        with tempfile.TemporaryDirectory(prefix="editforge-") as folder:
            yield _converted(path, config, Path(folder), options)
    elif _HUB_ID.fullmatch(config.id):
        yield _downloaded(config, options)
    else:
        raise FamilyError(
            "no such model",
            got=config.id,
            allowed="emoji, a Hub id (owner/name), a pipeline folder, a .safetensors file",
        )


def _local(folder: Path, options: dict[str, Any]) -> Model:
    model = Model(folder, Origin("local"), **options)
    model.label = f"local:{model.base_sha256[:12]}"
    return model


def _downloaded(config: ModelConfig, options: dict[str, Any]) -> Model:
    from diffusers import DiffusionPipeline
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        folder = Path(
            DiffusionPipeline.download(
                config.id, revision=config.revision, variant=config.variant, use_safetensors=True
            )
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise HubError(
            f"the Hub did not give {config.id}",
            got=" ".join(str(error).split())[:300],
            next="check the id, the revision, the network, and `hf auth login` for gated models",
        ) from None
    try:
        card = model_info(config.id, revision=folder.name).card_data
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        card = None
    origin = Origin(
        config.id,
        folder.name,
        license=getattr(card, "license", None),
        license_link=getattr(card, "license_link", None),
    )
    return Model(folder, origin, **options)


def _converted(path: Path, config: ModelConfig, folder: Path, options: dict[str, Any]) -> Model:
    """A single file as a pipeline folder; diffusers knows the key maps of the published layouts."""
    import diffusers

    if path.suffix in _PICKLED:
        raise FamilyError(
            "this checkpoint is pickled, and unpickling can run code",
            got=path.name,
            allowed=".safetensors",
            next="convert it to safetensors on a machine you can afford to lose",
        )
    _, table = read_header(path)
    sdxl = any(name.startswith("conditioner.embedders.1") for name in table)
    cls = diffusers.StableDiffusionXLPipeline if sdxl else diffusers.StableDiffusionPipeline
    extra = {"config": config.config} if config.config else {}
    try:
        pipe = cls.from_single_file(str(path), dtype=options["dtype"], **extra)
    except Exception as error:  # diffusers raises many kinds; each means the same to the user
        raise FamilyError(
            "this single file does not load",
            got=" ".join(str(error).split())[:300],
            next="offline, name a folder with its configs: --set model.config=FOLDER",
        ) from None
    pipe.save_pretrained(folder)
    digest = sha256_json([path.stat().st_size, sha256_file(path)])
    return Model(folder, Origin(f"local:{digest[:12]}"), **{**options, "variant": None})
