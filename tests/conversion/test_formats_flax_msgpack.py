"""flax_model.msgpack: both ways against flax.serialization, and files that lie."""

import msgpack
import numpy as np
import pytest

from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.formats import flax_msgpack, msgpack_scan

NAMES = [f"model/layers/{i}/fc/kernel" for i in range(10)] + ["model/norm/scale", "bias"]


def save(folder, checks, arrays, **options):
    specs = checks.specs(arrays)
    return save_checkpoint(folder, specs, arrays.__getitem__, format="flax", **options)


def tree_of(arrays):
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(arrays, sep="/")


@pytest.mark.parametrize("size", ["5GB", 200])
def test_round_trip(tmp_path, checks, size):
    arrays = checks.arrays(NAMES)
    paths = save(tmp_path, checks, arrays, max_shard_size=size)
    assert len(paths) == (1 if size == "5GB" else 5)
    with open_checkpoint(tmp_path) as source:
        assert source.spelling == "flax"
        checks.assert_source_is(source, arrays)


def test_flax_reads_what_we_write(tmp_path, checks):
    serialization = pytest.importorskip("flax.serialization")
    from flax.traverse_util import flatten_dict

    arrays = checks.arrays(NAMES)
    (path,) = save(tmp_path, checks, arrays)
    came = flatten_dict(serialization.msgpack_restore(path.read_bytes()), sep="/")
    checks.assert_same(came, arrays)


def test_we_read_what_flax_writes(tmp_path, checks):
    serialization = pytest.importorskip("flax.serialization")
    arrays = checks.arrays(NAMES)
    tree = tree_of(arrays) | {"numpy_scalar": np.float32(2.5), "nothing": {}}
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree))
    with open_checkpoint(tmp_path) as source:
        checks.assert_source_is(source, arrays | {"numpy_scalar": np.array(2.5, np.float32)})


@pytest.mark.parametrize("writer", ["flax", "ours"])
def test_leaves_in_chunks(tmp_path, checks, monkeypatch, writer):
    serialization = pytest.importorskip("flax.serialization")
    arrays = {"a/b": np.arange(105, dtype=np.float32).reshape(5, 21), "a/c": np.ones(2)}
    path = tmp_path / "flax_model.msgpack"
    if writer == "ours":
        monkeypatch.setattr(flax_msgpack, "_MAX_LEAF_BYTES", 100)
        save(tmp_path, checks, arrays)
        restored = serialization.msgpack_restore(path.read_bytes())["a"]
        checks.assert_same({f"a/{name}": a for name, a in restored.items()}, arrays)
    else:
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
        path.write_bytes(serialization.msgpack_serialize(tree_of(arrays)))
    assert path.read_bytes().count(msgpack_scan.CHUNKED.encode()) == 1
    with open_checkpoint(path) as source:
        checks.assert_source_is(source, arrays)


def test_names_that_do_not_fit_a_tree(tmp_path, checks):
    for names in (("a", "a/b"), ("a/b", "a")):
        arrays = dict.fromkeys(names, np.ones(2))
        with pytest.raises(CheckpointError, match="inside"):
            save(tmp_path, checks, arrays)


def leaf(shape=(2,), dtype="float32", data=bytes(8), code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


LIES = {
    "empty file": b"",
    "not a map": msgpack.packb([1, 2]),
    "text": b"hello, this is no msgpack",
    "number as leaf": msgpack.packb({"a": {"step": 3}}),
    "nothing as leaf": msgpack.packb({"a": None}),
    "list as leaf": msgpack.packb({"a": [1, 2]}),
    "number as key": msgpack.packb({1: leaf()}),
    "more after the end": msgpack.packb({"a": leaf()}) + b"\0",
    "shape": msgpack.packb({"a": leaf(shape=(3,))}),
    "huge shape": msgpack.packb({"a": leaf(shape=(2**40, 2**20))}),
    "negative shape": msgpack.packb({"a": leaf(shape=(-1, -2))}),
    "dtype": msgpack.packb({"a": leaf(dtype="object")}),
    "void dtype": msgpack.packb({"a": leaf(dtype="V4")}),
    "complex": msgpack.packb({"a": leaf(code=2)}),
    "payload": msgpack.packb({"a": msgpack.ExtType(1, b"\x93\x91")}),
    "more after the payload": msgpack.packb(
        {"a": msgpack.ExtType(1, msgpack.packb(((2,), "float32", bytes(8))) + b"\0")}
    ),
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge extension": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "huge key": b"\x81\xdb\xff\xff\xff\xff",
    "twice": b"\x82" + 2 * msgpack.packb({"a": leaf()})[1:],
    "deep": b"\x81\xa1a" * 5000 + b"\x80",
    "key": b"\x81\xa1\xff\x80",
    "chunks": msgpack.packb({"a": {msgpack_scan.CHUNKED: True, "shape": {"0": 2}, "chunks": {}}}),
    "chunk sizes": msgpack.packb(
        {"a": {msgpack_scan.CHUNKED: True, "shape": {"0": 9}, "chunks": {"0": leaf()}}}
    ),
    "chunk order": msgpack.packb(
        {"a": {msgpack_scan.CHUNKED: True, "shape": {"0": 2}, "chunks": {"1": leaf()}}}
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(tmp_path, lie):
    path = tmp_path / "a.msgpack"
    path.write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match=r"a\.msgpack"):
        flax_msgpack.open_file(path)


def test_every_truncation_is_noticed(tmp_path):
    whole = msgpack.packb({"a": {"b": leaf(), "c": leaf((2, 1))}, "d": leaf(data=bytes(8))})
    path = tmp_path / "a.msgpack"
    path.write_bytes(whole)
    flax_msgpack.open_file(path).close()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            flax_msgpack.open_file(path)


def test_a_file_of_nothing_but_maps_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(msgpack_scan, "_MAX_TOKENS", 1000)
    path = tmp_path / "a.msgpack"
    path.write_bytes(b"\xde\xff\xff" + b"\xa0\x80" * 65_535)
    with pytest.raises(CheckpointError, match="more entries"):
        flax_msgpack.open_file(path)
