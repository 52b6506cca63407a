"""From what the user typed to a Model: `emoji`, a Hub id, a pipeline folder, a .safetensors file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from editforge.families.config import EMBEDDED, ModelConfig, base_is_known
from editforge.families.fits import check_parts, detect
from editforge.families.model import Model, Origin, read_config, weight_name
from editforge.families.outline import Outline, wanted
from editforge.families.schema import load_family
from editforge.families.single_file import PICKLED, convert
from editforge.ground.disk import sha256_file, sha256_json
from editforge.ground.errors import FamilyError
from editforge.ground.places import hub_failure, is_hub_id, transport_error


@contextmanager
def open_model(
    config: ModelConfig, say: Callable[[str], None] = lambda line: None
) -> Iterator[Model]:
    """Open the model named by `config.id` for the length of a `with` block.

    Args:
        config: which model, and how.
        say: takes a line for the user.

    Raises:
        FamilyError: not a model we can edit; HubError: the Hub did not give it.
        RecipeError: a base for a model that names itself.
    """
    options = _options(config)
    path = Path(config.id).expanduser()
    if config.id == "emoji":
        from editforge import emoji

        origin = Origin(
            EMBEDDED,
            license="other",
            license_name="apache-2.0-and-cc-by-4.0-and-mit",  # of the art, as LICENSE.md has them
            license_link="LICENSE.md",
        )
        yield Model(emoji.folder(), origin, hashed=emoji.verified(), **options)
    elif path.is_dir():
        yield _local(path, config, options, say)
    elif path.suffix in (".safetensors", *PICKLED):
        with tempfile.TemporaryDirectory(prefix="editforge-") as folder:
            yield _converted(path, config, Path(folder), options, say)
    elif is_hub_id(config.id):
        if config.base:
            raise base_is_known(config)
        yield _downloaded(config, options)
    else:
        raise FamilyError(
            "no such model",
            got=config.id,
            allowed="emoji, a Hub id (owner/name), a pipeline folder, a .safetensors file",
        )


def _options(config: ModelConfig) -> dict[str, Any]:
    import torch

    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if config.dtype not in (None, *dtypes):
        raise FamilyError("unknown dtype", got=config.dtype, allowed=", ".join(dtypes))
    return {
        "family": config.family,
        "variant": config.variant,
        "device": chosen_device(config.device),
        "dtype": dtypes.get(config.dtype or ""),
        "clip_skip": config.clip_skip,
        "steps": config.steps,
        "guidance": config.guidance,
    }


def chosen_device(name: str) -> str:
    """The device that a recipe names, `auto` resolved.

    Raises:
        FamilyError: no such device, or not on this computer.
    """
    import torch

    here = ["cpu", *(f"cuda:{at}" for at in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return "cuda" if "cuda:0" in here else "cpu"
    if name in here or (name == "cuda" and "cuda:0" in here):
        return name
    raise FamilyError(
        "no such device here", got=name, allowed=", ".join(["auto", *here]), next="editforge doctor"
    )


@contextmanager
def describe(config: ModelConfig) -> Iterator[Outline]:
    """The model named by `config.id` without its weights; of a Hub id only small files are fetched.

    Raises:
        FamilyError: not a model we can edit; HubError: the Hub did not give it.
    """
    listed = None
    if is_hub_id(config.id):
        if config.base:
            raise base_is_known(config)
        listed = _listed(config)
    if listed is not None:
        yield listed
        return
    path = Path(config.id).expanduser()
    # A folder's label is the hash of its weights, which a plan does not need.
    local = nullcontext(Model(path, Origin("local"), **_options(config))) if path.is_dir() else None
    with local or open_model(config) as model:
        files = [path for path in model.folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(model.folder).as_posix(): path.stat().st_size for path in files}
        yield Outline(
            model.folder,
            model.family,
            model.device,
            sizes,
            model.label,
            {},
            model.variant,
            config.steps,
            config.guidance,
        )


def _listed(config: ModelConfig) -> Outline | None:
    """From the Hub's own listing; None where the Hub is out of reach and a cached copy may do."""
    from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = model_info(config.id, revision=config.revision, files_metadata=True)
        listed = {row.rfilename: row.size or 0 for row in info.siblings or ()}
        small = [name for name in listed if name.endswith((".json", ".txt"))]
        folder = Path(
            snapshot_download(
                config.id,
                revision=info.sha,
                allow_patterns=["model_index.json", *(name for name in small if "/" in name)],
            )
        )
    except OfflineModeIsEnabled:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise hub_failure(config.id, error) from None
    except transport_error():
        return None
    index = read_config(folder / "model_index.json")
    unet = read_config(folder / "unet" / "config.json")
    family = load_family(config.family) if config.family else detect(index, unet)
    check_parts(family, folder, index, unet)
    names = wanted(listed, index, config.variant)
    for component in (family.denoiser, *(part.encoder for part in family.text)):
        chosen = any(n.startswith(f"{component}/") and n.endswith(".safetensors") for n in names)
        if component == family.denoiser or not chosen:
            beside = [name.partition("/")[2] for name in listed if name.startswith(f"{component}/")]
            weight_name(component, beside, config.variant)
    absent = {
        name: listed[name]
        for name in names
        if not isinstance(try_to_load_from_cache(config.id, name, revision=info.sha), str)
    }
    sizes = {name: listed[name] for name in names}
    device = chosen_device(config.device)
    told = (config.variant, config.steps, config.guidance)
    return Outline(folder, family, device, sizes, config.id, absent, *told)


def _local(
    folder: Path, config: ModelConfig, options: dict[str, Any], say: Callable[[str], None]
) -> Model:
    if config.base:
        return Model(folder, _copy_of(config.base, say), **options)
    model = Model(folder, Origin("local", local=True), **options)
    model.label = f"local:{model.base_sha256[:12]}"
    return model


def _copy_of(base: str, say: Callable[[str], None]) -> Origin:
    """The user's files by the name of the Hub model they are a copy of, with its license facts."""
    facts = _license_facts(base, None)
    if facts is None:
        say(f"the license of {base} could not be read from the Hub: the card will name none")
    return Origin(base, local=True, **(facts or {}))


def _license_facts(repo: str, revision: str | None) -> dict[str, Any] | None:
    """What a Hub model's own card says of its license; None if the Hub did not say.

    A license is never a reason not to edit: whatever keeps the card from us, its facts stay absent.
    """
    from huggingface_hub import HfApi

    try:
        card = HfApi().model_info(repo, revision=revision, timeout=10).card_data
    except (transport_error(), OSError, ValueError):
        return None
    keys = ("license", "license_name", "license_link")
    facts = {key: getattr(card, key, None) for key in keys}
    return {key: value for key, value in facts.items() if isinstance(value, str)}


def _downloaded(config: ModelConfig, options: dict[str, Any]) -> Model:
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(
            DiffusionPipeline.download(
                config.id, revision=config.revision, variant=config.variant, use_safetensors=True
            )
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise hub_failure(config.id, error) from None
    facts = _license_facts(config.id, folder.name) or {}
    return Model(folder, Origin(config.id, folder.name, **facts), **options)


def _converted(
    path: Path,
    config: ModelConfig,
    folder: Path,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> Model:
    """A single file as a pipeline folder."""
    convert(path, folder, configs=config.config, decoder=config.vae)
    if config.base:
        origin = _copy_of(config.base, say)
    else:
        digest = sha256_json([path.stat().st_size, sha256_file(path)])
        origin = Origin(f"local:{digest[:12]}", local=True)
    return Model(folder, origin, **{**options, "variant": None})
