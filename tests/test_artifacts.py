"""Files: equal content gives equal bytes, and nothing of a damaged or hostile one is used."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editforge.ground.disk import (
    parse_yaml,
    read_json,
    read_yaml,
    sha256_file,
    sha256_json,
    write_atomic,
    write_json,
)
from editforge.ground.errors import EditforgeError, PackageError, RecipeError, did_you_mean
from editforge.ground.files import DTYPES, LazyTensor, read_header, read_tensors, write_safetensors

dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)


@settings(deadline=None, max_examples=40)
@given(
    parts=st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        st.tuples(dtypes, st.lists(st.integers(0, 3), max_size=3)),
        max_size=4,
    ),
    metadata=st.dictionaries(
        st.text("xyz", min_size=1, max_size=3), st.text(max_size=5), max_size=2
    ),
    seed=st.randoms(use_true_random=False),
)
def test_tensors_come_back_and_equal_content_is_equal_bytes(
    parts, metadata, seed, tmp_path_factory
):
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("files")
    tensors = {name: (torch.rand(shape) * 9).to(dtype) for name, (dtype, shape) in parts.items()}
    order = list(tensors)
    seed.shuffle(order)
    write_safetensors(folder / "a", tensors, metadata)
    write_safetensors(
        folder / "b", {name: tensors[name] for name in order}, dict(reversed(metadata.items()))
    )
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    found, public = read_tensors(folder / "a"), load_file(folder / "a")
    assert set(found) == set(public) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert torch.equal(public[name], tensor)
    assert read_header(folder / "a")[0] == {"format": "pt", **metadata}


def test_a_view_is_written_as_what_it_shows(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    write_safetensors(tmp_path / "x", {"view": whole.T, "part": whole[1:, ::2]}, {})
    back = read_tensors(tmp_path / "x")
    assert torch.equal(back["view"], whole.T)
    assert torch.equal(back["part"], whole[1:, ::2])


def test_some_tensors_are_read_alone_and_a_missing_one_is_named(tmp_path):
    write_safetensors(tmp_path / "x", {"a": torch.ones(2), "b": torch.zeros(2)}, {})
    assert set(read_tensors(tmp_path / "x", ["b"])) == {"b"}
    with pytest.raises(PackageError, match="lacks 1 tensors") as caught:
        read_tensors(tmp_path / "x", ["a", "c"])
    assert caught.value.got == "c"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_neither_written_nor_read(value, tmp_path):
    with pytest.raises(PackageError, match="x holds 1 values that are NaN"):
        write_safetensors(tmp_path / "a", {"x": torch.tensor([1.0, value])}, {})
    assert not list(tmp_path.iterdir())
    write_safetensors(tmp_path / "a", {"x": torch.tensor([1.0, 2.0]), "y": torch.ones(1)}, {})
    data = (tmp_path / "a").read_bytes()
    spoiled = data.replace(struct.pack("<f", 2.0), struct.pack("<f", value))
    (tmp_path / "a").write_bytes(spoiled)
    with pytest.raises(PackageError, match="x holds 1 values that are NaN"):
        read_tensors(tmp_path / "a")
    assert torch.equal(read_tensors(tmp_path / "a", ["y"])["y"], torch.ones(1))


def test_a_lazy_tensor_is_made_once_and_must_be_what_it_announced(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return torch.ones(2, 3)

    write_safetensors(tmp_path / "a", {"x": LazyTensor(torch.float32, (2, 3), make)}, {})
    assert calls == [1]
    assert torch.equal(read_tensors(tmp_path / "a")["x"], torch.ones(2, 3))
    with pytest.raises(PackageError, match="changed shape or dtype"):
        write_safetensors(tmp_path / "a", {"x": LazyTensor(torch.float32, (3, 3), make)}, {})
    assert torch.equal(read_tensors(tmp_path / "a")["x"], torch.ones(2, 3))  # the old file is whole


def spoiled(path, change):
    """The file with another header in front of the same data."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = change(json.loads(data[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def with_row(**changes):
    return lambda header: {**header, "x": {**header["x"], **changes}}


@pytest.mark.parametrize(
    "change",
    [
        lambda header: b"{",
        lambda header: b"[]",
        lambda header: b"\xff\xff",
        lambda header: b"[" * 200_000,
        lambda header: {**header, "__metadata__": {"a": 1}},
        lambda header: {**header, "__metadata__": []},
        lambda header: {**header, "x": 1},
        lambda header: {**header, "x": {}},
        with_row(dtype="F99"),
        with_row(dtype=["F32"]),
        with_row(shape=[3]),
        with_row(shape=[-1, -2]),
        with_row(shape=["2"]),
        with_row(shape=[2.0]),
        with_row(shape=None),
        with_row(data_offsets=[4, 12]),
        with_row(data_offsets=[0.0, 8.0]),
        with_row(data_offsets=[-8, 0]),
        with_row(data_offsets=["0", "8"]),
        with_row(data_offsets=[0]),
        with_row(data_offsets=[0, 10**30], shape=[10**30 // 4]),
        lambda header: {**header, "y": header["x"]},
        lambda header: {k: v for k, v in header.items() if k != "x"},
    ],
)
def test_a_header_that_lies_is_refused(change, tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.ones(2)}, {})
    spoiled(path, lambda header: header)
    assert torch.equal(
        read_tensors(path)["x"], torch.ones(2)
    )  # the control: rewriting alone is fine
    spoiled(path, change)
    with pytest.raises(PackageError):
        read_tensors(path)


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=120))
def test_any_bytes_are_refused_or_read(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "a"
    path.write_bytes(data)
    with pytest.raises(PackageError):
        read_tensors(path)


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 200), flip=st.integers(0, 10_000))
def test_a_flipped_bit_or_a_cut_never_escapes_as_another_error(cut, flip, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "a"
    write_safetensors(
        path, {"x": torch.ones(2, 2), "y": torch.zeros(3, dtype=torch.int64)}, {"k": "v"}
    )
    data = bytearray(path.read_bytes())
    at = flip % (8 * len(data))
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(bytes(data[: max(0, len(data) - cut)]))
    with contextlib.suppress(PackageError):
        read_tensors(path)


def test_every_dtype_that_is_read_is_written(tmp_path):
    for name, dtype in DTYPES.items():
        write_safetensors(tmp_path / name, {"x": torch.ones(3).to(dtype)}, {})
        assert read_header(tmp_path / name)[1]["x"].dtype == name


# --- whole or not at all --------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "deep/file"
    write_atomic(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, broken)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from editforge.ground.disk import write_atomic
me, other, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
def halves(file):
    file.write(me.encode() * 100_000)
    file.flush()
    (path.parent / f"half-{me}").touch()
    deadline = time.monotonic() + 30
    while not (path.parent / f"half-{other}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    file.write(me.encode() * 100_000)
write_atomic(path, halves)
"""


def test_two_processes_write_one_file_at_once_and_it_is_one_of_the_two(tmp_path):
    path = tmp_path / "file"
    running = [
        subprocess.Popen([sys.executable, "-c", TWO_AT_ONCE, me, other, str(path)])
        for me, other in ("ab", "ba")
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert path.read_bytes() in (b"a" * 200_000, b"b" * 200_000)
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_write_left_is_removed_once_it_is_old(tmp_path):
    names = [".file.0123456789abcdef.partial", ".other.0123456789abcdef.partial"]
    names += [".file.partial", ".theirs.partial", "file.0123456789abcdef.partial"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    write_atomic(tmp_path / "file", lambda file: file.write(b"whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "file"])  # may be at work
    for name in names:
        os.utime(tmp_path / name, (time.time() - 4000,) * 2)
    write_atomic(tmp_path / "another", lambda file: file.write(b"whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[2:], "another", "file"])


def test_json_is_written_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b", {"a": [1.5, None], "b": 1})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    assert read_json(tmp_path / "a") == {"a": [1.5, None], "b": 1}
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "c", {"a": float("nan")})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b""])
def test_a_file_that_is_no_json_is_refused_by_name(data, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(PackageError, match=r"a.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(PackageError, match=r"no file b.json"):
        read_json(tmp_path / "b.json")


# --- a stranger's YAML ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: 1\na: 2", "stands twice"),
        ("!!python/object/apply:os.system ['true']", "not readable"),
        ("!mine 1", "not readable"),
        ("[" * 5000, "not readable"),
        ("{" * 5000, "not readable"),
        ("a: b: c", "not readable"),
        ("? [1, 2]\n: 3", "not readable"),
        ("a: 2024-13-45", "not readable"),
        ("x" * 1_000_001, "too large"),
        ("\x00", "not readable"),
    ],
)
def test_yaml_that_is_more_than_data_is_refused(text, message):
    assert parse_yaml("a: [1, {b: c}]", "text") == {"a": [1, {"b": "c"}]}
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, "text")


@settings(deadline=None, max_examples=100)
@given(text=st.text("ab:-[]{}&*!#'\" \n?|>%@,0e.", max_size=30))
def test_any_text_is_yaml_or_a_readable_refusal(text):
    with contextlib.suppress(RecipeError):
        parse_yaml(text, "text")


def test_a_yaml_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    for missing in (tmp_path, tmp_path / "b.yaml"):
        with pytest.raises(RecipeError, match="no such file"):
            read_yaml(missing)


# --- messages -------------------------------------------------------------------------------------


def test_a_refusal_prints_its_parts_a_line_each_and_leaves_out_the_empty():
    error = EditforgeError("no such thing", got=0, allowed="", next="do this")
    assert str(error) == "no such thing\n  got:     0\n  next:    do this"
    assert str(EditforgeError("plain")) == "plain"


def test_the_nearest_name_comes_first():
    assert did_you_mean("rigde", ["ridge", "other"]) == "did you mean ridge? known: other, ridge"
    assert did_you_mean("zzz", ["ridge"]) == "known: ridge"
    assert did_you_mean("zzz", []) == "known: none"
