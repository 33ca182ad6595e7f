"""Opening and saving whole checkpoints: which file is found, shards, what stays in a folder."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.checkpoints.shards import deal, parse_size
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError

ARRAYS = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.weight": np.arange(8, dtype=np.float16).reshape(2, 4),
    "c": np.arange(5).astype(ml_dtypes.bfloat16),
    "d": np.array([2**40], np.int64),
}
SPECS = {name: TensorSpec(a.shape, a.dtype) for name, a in ARRAYS.items()}


def save(folder, **options):
    return save_checkpoint(folder, SPECS, ARRAYS.__getitem__, **options)


def assert_whole(folder, **options):
    with open_checkpoint(folder, **options) as source:
        assert source.specs() == SPECS
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(source.read(name), array)
            assert source.read(name).dtype == array.dtype


@pytest.mark.parametrize(("size", "shards"), [("5GB", 1), (30, 3), (1, 4)])
def test_round_trip(tmp_path, size, shards):
    paths = save(tmp_path / "m", max_shard_size=size, extra_files={"config.json": "{}"})
    assert all(path.is_file() for path in paths)
    assert sorted(os.listdir(tmp_path / "m")) == sorted(path.name for path in paths)
    assert sum(path.suffix == ".safetensors" for path in paths) == shards
    assert_whole(tmp_path / "m")
    assert_whole(paths[0] if shards == 1 else tmp_path / "m/model.safetensors.index.json")


def test_shards_are_what_the_library_and_the_index_say(tmp_path):
    from safetensors.numpy import load_file

    save(tmp_path, max_shard_size=60)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in ARRAYS.values())
    assert index["weight_map"].keys() == ARRAYS.keys()
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / file)[name], ARRAYS[name])
    assert "model-00001-of-00002.safetensors" in os.listdir(tmp_path)


def test_earlier_weights_go_and_other_files_stay(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/deep.txt").write_text("kept")
    (tmp_path / "tokenizer.json").write_text("kept")
    (tmp_path / "pytorch_model.bin").write_text("another format")
    (tmp_path / "my-model.safetensors").write_text("not ours")
    (tmp_path / "config.json").write_text("old")
    others = {"notes", "tokenizer.json", "pytorch_model.bin", "my-model.safetensors", "config.json"}
    save(tmp_path, max_shard_size=30, extra_files={"config.json": b"new"})
    sharded = set(os.listdir(tmp_path))
    assert others < sharded
    save(tmp_path)
    assert set(os.listdir(tmp_path)) == others | {"model.safetensors"}
    assert (tmp_path / "notes/deep.txt").read_text() == "kept"
    assert (tmp_path / "config.json").read_text() == "new"
    save(tmp_path, max_shard_size=30)
    assert set(os.listdir(tmp_path)) == sharded
    assert_whole(tmp_path)


def test_safetensors_are_preferred_and_a_format_can_be_asked_for(tmp_path):
    (tmp_path / "pytorch_model.bin").write_text("rubbish")
    save(tmp_path)
    assert_whole(tmp_path)
    assert_whole(tmp_path, format="safetensors")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path, format="pt")
    with pytest.raises(CheckpointError, match=r"none of flax_model\.msgpack"):
        open_checkpoint(tmp_path, format="flax")


def test_subfolder(tmp_path):
    save(tmp_path / "inner/most")
    assert_whole(tmp_path, subfolder="inner/most")
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path, subfolder="other")
    for bad in ("../x", "/etc", "a/../../b"):
        with pytest.raises(CheckpointError, match="subfolder is"):
            open_checkpoint(tmp_path, subfolder=bad)


def test_nothing_found_lists_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "weights.pkl").write_text("")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    for name in ("model.safetensors", "tf_model.h5.index.json", "weights.pkl", str(tmp_path)):
        assert name in str(caught.value)


def test_a_file_that_holds_no_weights(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"a\.txt: not a file of weights"):
        open_checkpoint(tmp_path / "a.txt")


def test_a_clone_without_git_lfs(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (tmp_path / "model.safetensors").write_text(text)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)
    paths = save(tmp_path, max_shard_size=30)
    paths[1].write_text(text)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)


def test_format_is_checked(tmp_path):
    with pytest.raises(CheckpointError, match="'onnx'; possible are safetensors, pt, tf, flax"):
        open_checkpoint(tmp_path, format="onnx")
    with pytest.raises(CheckpointError, match="'onnx'"):
        save(tmp_path, format="onnx")


@pytest.mark.parametrize("name", ["../x", "a/b", "model.safetensors", ""])
def test_names_of_extra_files_are_checked(tmp_path, name):
    with pytest.raises(CheckpointError, match="extra_files"):
        save(tmp_path / "m", extra_files={name: ""})
    assert os.listdir(tmp_path) == []


def test_progress_counts_every_byte(tmp_path):
    counts = []
    save(tmp_path, progress=counts.append)
    assert sum(counts) == sum(a.nbytes for a in ARRAYS.values())


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b", "..", "", 3, "C:\\x", None]
)
def test_an_index_cannot_point_outside(tmp_path, file):
    save(tmp_path, max_shard_size=60)
    edit_index(tmp_path, lambda weights: weights.update(c=file))
    with pytest.raises(CheckpointError, match="'c' is said to lie in"):
        open_checkpoint(tmp_path)


def test_missing_shard(tmp_path):
    paths = save(tmp_path, max_shard_size=30)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 of 3 shards are missing: {paths[1].name}"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_its_shard_lacks(tmp_path):
    save(tmp_path, max_shard_size=60)
    edit_index(tmp_path, lambda weights: weights.update(zz=weights["c"]))
    with pytest.raises(CheckpointError, match="not where the index places them: zz in model-"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    paths = save(tmp_path, max_shard_size=60)
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(CheckpointError, match="lie in both"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', "[" * 100_000, "\xff"])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index"):
        open_checkpoint(tmp_path)


def test_sizes():
    assert parse_size(7) == 7
    assert parse_size("5GB") == 5 * 10**9
    assert parse_size("200 mib") == 200 * 2**20
    assert parse_size("1.5KB") == 1500
    for bad in (0, -1, "0", "5 GBB", "GB", "", None, True, 2.5e30, "1e3"):
        with pytest.raises(CheckpointError, match="max_shard_size"):
            parse_size(bad)


def test_dealing_keeps_the_order_and_the_limit():
    shards = deal(SPECS, 26)
    assert [list(shard) for shard in shards] == [["b.weight"], ["a.weight", "c"], ["d"]]
    assert deal({}, 10) == [{}]
