"""tf_model.h5: what we write by h5py alone, what Keras 2 wrote, and files that lie."""

import json

import h5py
import numpy as np
import pytest

from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.formats import tf_h5

NAMES = [f"model/layers.{i}/fc/kernel" for i in range(10)] + ["lm_head/kernel", "loose"]
CLASS = "XGLMForCausalLM"
INSTANCE = "tfxglm_for_causal_lm"


def save(folder, checks, arrays, **options):
    options = {"architecture": CLASS} | options
    specs = checks.specs(arrays)
    return save_checkpoint(folder, specs, arrays.__getitem__, format="tf", **options)


@pytest.mark.parametrize("size", ["5GB", 200])
def test_round_trip(tmp_path, checks, size):
    arrays = checks.arrays(NAMES)
    paths = save(tmp_path, checks, arrays, max_shard_size=size)
    assert len(paths) == (1 if size == "5GB" else 5)
    with open_checkpoint(tmp_path) as source:
        assert source.spelling == "keras_h5"
        checks.assert_source_is(source, arrays)


def names_in(attribute):
    return [name.decode() for name in attribute]


def test_the_layout_is_that_of_keras_2(tmp_path, checks):
    arrays = checks.arrays(NAMES)
    (path,) = save(tmp_path, checks, arrays)
    with h5py.File(path) as file:
        assert file.attrs["backend"] == "tensorflow"
        assert file.attrs["keras_version"].startswith("2.")
        assert names_in(file.attrs["layer_names"]) == ["model", "lm_head"]
        listed = {group: names_in(file[group].attrs["weight_names"]) for group in file}
        assert listed["lm_head"] == [f"{INSTANCE}/lm_head/kernel:0"]
        assert listed["top_level_model_weights"] == [f"{INSTANCE}/loose:0"]
        assert listed["model"] == [f"{INSTANCE}/{name}:0" for name in NAMES[:10]]
        for group, names in listed.items():
            for name in names:
                ours = arrays[name.removeprefix(f"{INSTANCE}/").removesuffix(":0")]
                stored = file[group][name][...]
                # bfloat16 comes as float32 where nobody knows the type
                np.testing.assert_array_equal(stored, ours.astype(stored.dtype))


def test_shards_stand_without_groups_and_the_index_has_full_names(tmp_path, checks):
    arrays = {name: np.ones(8, np.float32) for name in NAMES}
    save(tmp_path, checks, arrays, max_shard_size=64)
    index = json.loads((tmp_path / "tf_model.h5.index.json").read_text())
    assert set(index["weight_map"]) == {f"{INSTANCE}/{name}:0" for name in NAMES}
    for name in NAMES:
        with h5py.File(tmp_path / index["weight_map"][f"{INSTANCE}/{name}:0"]) as file:
            assert f"{name}:0" in names_in(file.attrs["layer_names"])
            assert file[f"{name}:0"].shape == (8,)


def keras_2_file(path, weights, *, root="", chunks=1, as_text=True):
    """A file as Keras 2 lays it out: weights by their full names, grouped by layer."""
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        top.attrs["layer_names"] = list(weights)
        for layer, arrays in weights.items():
            group = top.create_group(layer)
            names = list(arrays) if as_text else [name.encode() for name in arrays]
            if chunks == 1:
                group.attrs["weight_names"] = names
            for number, piece in enumerate(np.array_split(names, chunks) if chunks > 1 else []):
                group.attrs[f"weight_names{number}"] = piece.tolist()
            for name, array in arrays.items():
                group[name] = array
    return path


def ones(value):
    return np.full((2, 3), value, np.float32)


WEIGHTS = {
    "transformer": {
        "tfxlm_model_3/transformer/embeddings/weight:0": ones(1),
        "tfxlm_model_3/transformer/attentions_._0/q_lin/kernel:0": ones(2),
        "tfxlm_model_3/transformer/attentions_._0/q_lin/bias:0": ones(3),
    },
    "pred_layer": {"tfxlm_model_3/pred_layer/bias:0": ones(4)},
    "shared": {"shared/weight:0": ones(5)},
}
NAMES_OF_WEIGHTS = {
    "transformer/embeddings/weight": ones(1),
    "transformer/attentions_._0/q_lin/kernel": ones(2),
    "transformer/attentions_._0/q_lin/bias": ones(3),
    "pred_layer/bias": ones(4),
    "shared/weight": ones(5),
}


@pytest.mark.parametrize(
    "options", [{}, {"root": "model_weights"}, {"chunks": 3}, {"as_text": False}]
)
def test_files_of_keras_2(tmp_path, checks, options):
    path = keras_2_file(tmp_path / "tf_model.h5", WEIGHTS, **options)
    with open_checkpoint(path) as source:
        checks.assert_source_is(source, NAMES_OF_WEIGHTS)


def test_long_lists_of_names_are_cut(tmp_path, checks):
    arrays = {f"model/layers.{i}/{'x' * 80}/kernel": np.full(1, i, np.int32) for i in range(1500)}
    (path,) = save(tmp_path, checks, arrays)
    with h5py.File(path) as file:
        assert "weight_names" not in file["model"].attrs
        assert len(file["model"].attrs["weight_names2"]) > 0
    with open_checkpoint(path) as source:
        checks.assert_source_is(source, arrays)


def test_other_byte_orders_and_compression(tmp_path, checks):
    array = np.arange(5000, dtype=np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = ["m"]
        group = file.create_group("m")
        group.attrs["weight_names"] = ["t/m/big:0", "t/m/zipped:0"]
        group.create_dataset("t/m/big:0", data=array, dtype=">f4")
        noise = np.random.default_rng(0).normal(size=5000)
        group.create_dataset("t/m/zipped:0", data=noise, compression="gzip")
    with open_checkpoint(tmp_path / "a.h5") as source:
        checks.assert_source_is(source, {"m/big": array, "m/zipped": noise})


@pytest.mark.parametrize(
    ("name", "instance"),
    [
        ("XGLMForCausalLM", "tfxglm_for_causal_lm"),
        ("TFXGLMModel", "tfxglm_model"),
        ("FlaxXGLMModel", "tfxglm_model"),
        ("XLMWithLMHeadModel", "tfxlm_with_lm_head_model"),
        ("XLMForQuestionAnsweringSimple", "tfxlm_for_question_answering_simple"),
        ("TransfoXLLMHeadModel", "tf_transfo_xllm_head_model"),
    ],
)
def test_instance_names(name, instance):
    assert tf_h5.instance_name(name) == instance


def test_the_architecture_is_needed(tmp_path, checks):
    for size in ("1GB", 8):
        with pytest.raises(CheckpointError, match="architecture is missing"):
            save(
                tmp_path / "m",
                checks,
                {"m/x": ones(1), "m/y": ones(1)},
                architecture=None,
                max_shard_size=size,
            )
    assert not (tmp_path / "m").exists()


def test_a_dtype_that_hdf5_has_not(tmp_path, checks):
    with pytest.raises(CheckpointError, match="float8"):
        save(tmp_path, checks, {"m/x": np.ones(3, tf_h5.DTYPES["float8_e5m2"])})


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_truncated(tmp_path, checks, part):
    path = keras_2_file(tmp_path / "a.h5", WEIGHTS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(CheckpointError, match=r"a\.h5"):
        open_checkpoint(path)


def lying_file(path, change):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["m"]
        group = file.create_group("m")
        group.attrs["weight_names"] = ["t/m/x:0"]
        change(group)
    return path


def external_link(group):
    group["t/m/x:0"] = h5py.ExternalLink("other.h5", "/secret")


def external_data(group):
    group.create_dataset("t/m/x:0", (4,), "u1", external=[("secret", 0, 4)])


LIES = {
    "missing": lambda group: None,
    "soft link": lambda group: group.__setitem__("t/m/x:0", h5py.SoftLink("/m")),
    "external link": external_link,
    "external data": external_data,
    "group": lambda group: group.create_group("t/m/x:0"),
    "text": lambda group: group.create_dataset("t/m/x:0", data=["a"]),
    "opaque": lambda group: group.create_dataset("t/m/x:0", data=np.zeros(3, "V2")),
    "unwritten": lambda group: group.create_dataset("t/m/x:0", (2**20, 2**20), "f4"),
    "compressed away": lambda group: group.create_dataset(
        "t/m/x:0", (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip"
    ),
    "no shape": lambda group: group.create_dataset("t/m/x:0", data=h5py.Empty("f4")),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(tmp_path, lie):
    (tmp_path / "secret").write_bytes(b"1234")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(3)
    path = lying_file(tmp_path / "a.h5", LIES[lie])
    with pytest.raises(CheckpointError, match=r"a\.h5"):
        open_checkpoint(path)


def test_other_hdf5_files(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["_layer_checkpoint_dependencies/dense/vars/0"] = np.ones(3)
    with pytest.raises(CheckpointError, match="Keras 2"):
        open_checkpoint(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [(), (3,), (2500, 2)])
def test_a_weight_that_two_layers_list(tmp_path, checks, shape):
    shared = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights = {"m": {"t/m/x:0": shared}, "n": {"t/n/y:0": ones(2), "t/m/x:0": shared.copy()}}
    path = keras_2_file(tmp_path / "a.h5", weights)
    with open_checkpoint(path) as source:
        checks.assert_source_is(source, {"m/x": shared, "n/y": ones(2)})


@pytest.mark.parametrize("row", [0, 1500, 2499])
def test_two_weights_of_one_name(tmp_path, row):
    values = np.zeros((2500, 2), np.float32)
    other = values.copy()
    other[row, 1] = 1
    weights = {"m": {"t/m/x:0": values, "u/m/x:0": other}}
    with (
        open_checkpoint(keras_2_file(tmp_path / "a.h5", weights)) as source,
        pytest.raises(CheckpointError, match="'m/x' twice"),
    ):
        source.read("m/x")
    weights["m"]["u/m/x:0"] = values[:-1]
    with pytest.raises(CheckpointError, match="'m/x' twice"):
        open_checkpoint(keras_2_file(tmp_path / "b.h5", weights))
