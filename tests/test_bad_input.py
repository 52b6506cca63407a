"""Bad models, recipes and disks: one message with its four parts, exit 2, nothing lost."""

import os
import shutil
import subprocess

import pytest
import torch

from editforge.ground.disk import dump_yaml
from editforge.ground.files import read_tensors, write_safetensors
from tests.command import QUICK, UNJUDGED, editforge
from tests.tiny import one_thread, save_tiny, tiny_family

LINE = ("erase", "violin", *QUICK, *UNJUDGED, "--output", "run")


def refused(done, *words):
    """One refusal: exit 2, no data, no traceback, and what it has to say."""
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err
    return done.err


# --- models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny SD 1.x folder and the family that describes it."""
    root = tmp_path_factory.mktemp("tiny")
    save_tiny(root / "base", "sd1")
    (root / "tiny.yaml").write_text(dump_yaml(tiny_family("sd1").model_dump(mode="json")))
    return root


@pytest.fixture
def base(tiny, tmp_path):
    """A copy to spoil."""
    shutil.copytree(tiny / "base", tmp_path / "base")
    shutil.copy(tiny / "tiny.yaml", tmp_path / "tiny.yaml")
    return tmp_path / "base"


def erase(base, *more):
    line = ("--model", "base", "--set", "model.family=tiny.yaml", "--set", "edit.background=null")
    # Random weights bound nothing: the guard of trained models is told so.
    return editforge(*LINE, *line, "--set", "edit.limits.residual=[10,10]", *more, cwd=base.parent)


def rewrite(path, change):
    tensors = read_tensors(path)
    change(tensors)
    write_safetensors(path, tensors, {})


UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def test_the_whole_model_is_accepted(base):
    """The positive control of every refusal below."""
    done = erase(base)
    assert done.code == 0, done.err
    assert (base.parent / "run/package/lora/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (UNET, ["no unet weights", "diffusion_pytorch_model.safetensors"]),
        (TEXT, ["no text_encoder weights", "model.safetensors"]),
        ("model_index.json", ["no model_index.json"]),
        ("unet/config.json", ["no config.json in unet"]),
        ("scheduler/scheduler_config.json", ["scheduler_config.json"]),
    ],
)
def test_a_missing_model_file_is_named(name, words, base):
    (base / name).unlink()
    refused(erase(base), *words)
    assert not (base.parent / "run/package").exists()


@pytest.mark.parametrize("name", [UNET, TEXT])
@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_truncated_weights_are_refused(name, kept, base):
    data = (base / name).read_bytes()
    (base / name).write_bytes(data[:kept])
    refused(erase(base))
    assert not (base.parent / "run/package").exists()


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", TEXT])
def test_garbage_instead_of_a_file_is_refused(name, base):
    (base / name).write_bytes(b"\xff\xfe{not json" * 40)
    refused(erase(base))


def test_pickled_weights_alone_are_refused_and_never_loaded(base):
    (base / UNET).unlink()
    planted = base / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"a": torch.zeros(1)}, planted)
    message = refused(erase(base), "pickled", "can run code", "safetensors")
    assert "diffusion_pytorch_model.bin" in message


def test_a_pickled_text_encoder_is_refused(base):
    (base / TEXT).unlink()
    torch.save({"a": torch.zeros(1)}, base / "text_encoder" / "pytorch_model.bin")
    refused(erase(base), "pickled", "can run code", "safetensors")


def test_a_pickled_checkpoint_file_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    refused(editforge(*LINE, "--model", "model.ckpt", cwd=tmp_path), "pickled", "model.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("file", "tensor"), [(UNET, KEY), (TEXT, "final_layer_norm.weight")], ids=["map", "text"]
)
def test_a_weight_that_is_no_number_is_refused(file, tensor, value, base):
    """Our writer refuses a NaN, so the bytes are changed in place."""
    tensors = read_tensors(base / file)
    name = next(key for key in tensors if key.endswith(tensor))
    marker = torch.full_like(tensors[name], 1.2345)
    write_safetensors(base / file, {**tensors, name: marker}, {})
    old, new = marker.numpy().tobytes(), torch.full_like(marker, value).numpy().tobytes()
    data = (base / file).read_bytes()
    assert data.count(old) == 1
    (base / file).write_bytes(data.replace(old, new))
    assert "NaN" in refused(erase(base)) or "finite" in refused(erase(base))
    assert not (base.parent / "run/package").exists()


def test_a_model_with_fewer_maps_is_refused(base):
    rewrite(base / UNET, lambda tensors: tensors.pop(KEY))
    refused(erase(base), "lacks 1 of the weights that its own config promises", "attn2.to_k")


def test_a_model_of_no_known_family_is_refused(base):
    done = editforge(*LINE, "--model", "base", cwd=base.parent)
    refused(done, "unknown architecture", "text width 24", "sdxl")


def test_weights_of_a_variant_alone_say_which(tmp_path, tiny):
    with one_thread():
        save_tiny(tmp_path / "base", "sd1", variant="fp16", dtype=torch.float16)
    shutil.copy(tiny / "tiny.yaml", tmp_path / "tiny.yaml")
    refused(erase(tmp_path / "base"), "--variant fp16")
    assert erase(tmp_path / "base", "--variant", "fp16").code == 0


def test_a_base_that_changed_between_two_runs_is_seen(base):
    assert erase(base).code == 0
    rewrite(base / UNET, lambda tensors: tensors.update({KEY: tensors[KEY] * 1.01}))
    done = erase(base)
    assert done.code == 0
    assert "edit: redone, something it depends on changed" in done.err


# --- concepts and recipes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("violin", "--preserve", "violin"), ["'violin' is both erased and preserved"]),
        (("violin", "--preserve", "A Violin"), ["both erased and preserved"]),
        (("violin", "Violin"), ["erased twice"]),
        (("",), ["letter or digit"]),
        ((" violin",), ["white space"]),
        (("x" * 300,), ["200"]),
        (("violin", "--target", "violin"), ["nothing would be erased"]),
        (("violin", "--strength", "nan"), ["strength"]),
        (("violin", "--seed", "-1"), ["seed"]),
        (("violin", "--preset", "offical-2025", "--method", "uce"), ["did you mean official-2025"]),
        (("violin", "--method", "reallera"), ["no method 'reallera'", "default"]),
        (("violin", "--set", "edit.use=rigde"), ["edit has no 'rigde'", "did you mean ridge"]),
        (("violin", "--set", "edit.preserve_weigth=2"), ["did you mean preserve_weight"]),
        (("violin", "--set", "strenght=2"), ["unknown key strenght", "did you mean strength"]),
        (("violin", "--set", "model.devise=cpu"), ["unknown key model.devise", "device"]),
        (("violin", "--set", "edit=null"), ["nothing would be erased"]),
        (("violin", "--set", "edit.ridge=-1"), ["edit.ridge", "greater than or equal to 0"]),
        (("violin", "--set", "evaluate.tier=big"), ["evaluate.tier", "gate"]),
        (("violin", "--set", "mine.words=/nowhere.txt"), ["no such word list", "/nowhere.txt"]),
        (("violin", "--from", "/nowhere"), ["no earlier edit", "/nowhere", "--from"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_thing_that_can(args, words, tmp_path):
    start = () if "--method" in args or "mine" in str(args) else ("--method", "uce")
    target = () if "--target" in args else ("--target", "trumpet")
    done = editforge("erase", *UNJUDGED, *args, *start, *target, "--output", "run", cwd=tmp_path)
    refused(done, *words)
    assert not (tmp_path / "run/package").exists()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "malformed": (b"concepts: [violin", "not readable YAML"),
    "billion laughs": (LAUGHS.encode(), "aliases"),
    "a tag that runs code": (b"concepts: !!python/object/apply:os.system ['touch owned']", "YAML"),
    "a tag of its own": (b"concepts: !thing [violin]", "YAML"),
    "a key twice": (b"seed: 1\nseed: 2\n", "'seed' stands twice"),
    "huge": (b"concepts: [" + b"violin, " * 200_000 + b"]", "too large"),
    "deep": (b"[" * 50_000, "YAML"),
    "not UTF-8": (b"concepts: [\xff\xfe]", "not UTF-8"),
    "UTF-16": ("concepts: [violin]".encode("utf-16"), "not UTF-8"),
    "binary": (bytes(range(256)), ""),
    "a NUL": (b"seed: \x00", "YAML"),
    "a list": (b"- violin", "not a recipe"),
    "a word": (b"violin", "not a recipe"),
    "nothing": (b"", "not a recipe"),
    "a number as text": (
        b"concepts: [{name: violin}]\nedit: {use: ridge, ridge: 1e-3}",
        "edit.ridge is text to YAML",
    ),
    "an unknown key": (b"concepts: [{name: violin}]\nstrenght: 2", "did you mean strength"),
    "keys that are no text": (b"1: 2\n[a]: 3", ""),
    "a merge key": (b"concepts: [{name: violin}]\n<<: {seed: 3}", ""),
    "a concept that is a list": (b"concepts: [[violin]]", "concepts.0"),
    "a date as a name": (b"concepts: [{name: 2024-01-01}]", "concepts.0.name"),
    "a method that is a list": (b"method: [uce]\nconcepts: [{name: violin}]", "no method"),
    "a stage that is a list": (b"edit: [ridge]\nconcepts: [{name: violin}]", "edit"),
    "infinity": (b"concepts: [{name: violin}]\nstrength: .inf", "strength"),
    "a preset that is a mapping": (b"preset: {a: 1}\nconcepts: [{name: violin}]", "preset"),
    "a path in a method": (b"method: ../../etc/passwd\nconcepts: [{name: violin}]", "no method"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_in_a_second(name, tmp_path):
    data, words = HOSTILE[name]
    (tmp_path / "recipe.yaml").write_bytes(data)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
    done = editforge("run", "recipe.yaml", "--output", "run", cwd=tmp_path, before=limit)
    refused(done, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize("name", ["malformed", "billion laughs", "not UTF-8", "a word", "nothing"])
def test_a_hostile_concept_list_is_refused(name, tmp_path):
    (tmp_path / "list.yaml").write_bytes(HOSTILE[name][0])
    refused(editforge("erase", "--concepts", "list.yaml", cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["list.yaml"]


@pytest.mark.parametrize("name", ["malformed", "billion laughs", "not UTF-8", "a word", "nothing"])
def test_a_hostile_recipe_in_the_output_folder_is_refused_and_kept(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_bytes(HOSTILE[name][0])
    refused(editforge(*LINE, cwd=tmp_path))
    assert (tmp_path / "run/recipe.yaml").read_bytes() == HOSTILE[name][0]


def test_a_missing_recipe_is_named(tmp_path):
    refused(editforge("run", "nowhere.yaml", "--output", "run", cwd=tmp_path), "nowhere.yaml")


# --- disks --------------------------------------------------------------------------------------


def mounted(folder, options):
    """A mount of its own, or a skip where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")


@pytest.fixture
def disk(tmp_path):
    """A disk of 300 kB, which a run fills."""
    mounted(tmp_path / "disk", ["-t", "tmpfs", "-o", "size=300k", "tmpfs"])
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def sums(run):
    return (run / "package" / "SHA256SUMS").read_text()


def test_a_full_disk_is_said_and_the_run_goes_on_where_there_is_room(disk, tmp_path):
    whole = editforge(*LINE, cwd=tmp_path)
    assert whole.code == 0
    (disk / "ballast").write_bytes(bytes(280_000))
    refused(editforge(*LINE, cwd=disk), "the disk is full", "the same command")
    done_before = sorted(path.name for path in (disk / "run").iterdir())
    assert "package" not in done_before
    (disk / "ballast").unlink()
    refused_again = editforge(*LINE, cwd=disk)
    if refused_again.code:  # still too small for all of it
        refused(refused_again, "the disk is full")
        subprocess.run(["mount", "-o", "remount,size=9M", str(disk)], check=True)
        refused_again = editforge(*LINE, cwd=disk)
    assert refused_again.code == 0, refused_again.err
    assert sums(disk / "run") == sums(tmp_path / "run")


def test_a_full_disk_costs_a_finished_run_nothing(disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,size=2M", str(disk)], check=True)
    assert editforge(*LINE, cwd=disk).code == 0
    before = sums(disk / "run")
    with pytest.raises(OSError, match="space"):
        (disk / "ballast").write_bytes(bytes(3_000_000))
    refused(editforge("package", "run", "--export", "lora,unet", cwd=disk), "the disk is full")
    assert sums(disk / "run") == before
    assert editforge("verify", "run", cwd=disk).code == 0
    (disk / "ballast").unlink()
    assert editforge(*LINE, cwd=disk).code == 0


def test_a_file_size_limit_is_said(tmp_path):
    """The full disk of those who may not mount one."""
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    refused(editforge(*LINE, cwd=tmp_path, before=limit), "larger than", "the same command")
    assert editforge(*LINE, cwd=tmp_path).code == 0


def test_a_read_only_disk_is_said(tmp_path):
    mounted(tmp_path / "disk", ["-t", "tmpfs", "-o", "ro,size=9M", "tmpfs"])
    try:
        refused(editforge(*LINE, cwd=tmp_path / "disk"), "the disk is read-only", "--output")
        planned = editforge(*LINE, "--dry-run", "--json", cwd=tmp_path / "disk")
        assert planned.code == 0, planned.err
        assert planned.json["plan"]["can_write"] is False
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_finished_run_on_a_read_only_disk_can_be_verified_and_inspected(tmp_path):
    assert editforge(*LINE, cwd=tmp_path).code == 0
    mounted(tmp_path / "shown", ["--bind", str(tmp_path / "run")])
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path / "shown")], check=True)
        assert editforge("verify", "shown", cwd=tmp_path).code == 0
        lora = "shown/package/lora/pytorch_lora_weights.safetensors"
        assert editforge("inspect", lora, cwd=tmp_path).code == 0
        refused(editforge("package", "shown", "--export", "unet", cwd=tmp_path), "read-only")
    finally:
        subprocess.run(["umount", str(tmp_path / "shown")], check=True)


def test_a_folder_of_somebody_else_is_said(tmp_path):
    """Root may write anywhere, so the child gives that up first."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    before = ""
    if os.geteuid() == 0:
        for path in (*tmp_path.parents, tmp_path):
            if str(path).startswith(str(tmp_path.parents[2])):
                path.chmod(path.stat().st_mode | 0o055)
        before = "import os\nos.setgid(65534)\nos.setuid(65534)\n"
    refused(editforge(*LINE, cwd=folder, before=before), "no permission")


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path):
    """Word lists are kept in the user's cache folder; a broken one is no reason to stop."""
    (tmp_path / "cache").write_text("a file where a folder should be")
    before = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'cache')!r}\n"
    done = editforge("erase", "violin", *UNJUDGED, "--output", "run", cwd=tmp_path, before=before)
    assert done.code == 0, done.err
