"""Orbax checkpoints: what we write, Orbax restores; what Orbax saved of a training run, we read."""

import json
import re
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import make, make_arrays, make_config, save

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError, ConfigError, MissingPackageError
from xlmfam.common.parameters import relayout, spell, table_of
from xlmfam.conversion import checksum, convert, inspect, verify
from xlmfam.conversion.formats import orbax
from xlmfam.conversion.sources import recognise

ocp = pytest.importorskip("orbax.checkpoint")

# The class, and settings that make its tree another one.
CASES = {
    "XGLMForCausalLM": {},
    "XLMForQuestionAnswering": {},
    "XmodForMaskedLM": {},
    "TransfoXLLMHeadModel": {"untie_r": False},
    "XGLMModel": {},
}


def tree_of(arrays, config, head):
    """The arrays as Flax has them, as a tree of dicts."""
    tree = {}
    for name, parameter in table_of(config.model_type).expand(config, head).items():
        if name in arrays:
            *path, leaf = spell(parameter, "flax").split("/")
            place = tree
            for step in path:
                place = place.setdefault(step, {})
            place[leaf] = np.ascontiguousarray(
                relayout(arrays[name], parameter, "canonical", "flax")
            )
    return tree


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield "/".join((*path, key)), np.asarray(value)


def save_tree(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)
    return path


def restore(path):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute())


@pytest.fixture(params=CASES)
def made(request, tmp_path):
    """A checkpoint of a class: its folder, config, class, and arrays."""
    head = request.param
    config = make_config(head, **CASES[head])
    arrays = make_arrays(config, head)
    return save(tmp_path / "first", arrays, config, head), config, head, arrays


def test_orbax_restores_what_is_written(made, tmp_path, checks):
    folder, config, head, arrays = made
    convert(folder, tmp_path / "out", "orbax")
    expected = dict(leaves(tree_of(arrays, config, head)))
    checks.assert_same(dict(leaves(restore(tmp_path / "out" / "params"))), expected)
    assert (tmp_path / "out" / "config.json").is_file()


def test_what_orbax_saved_is_read(made, tmp_path):
    folder, config, head, arrays = made
    run = tmp_path / "run"
    config.save_pretrained(run)
    save_tree(run / "params", tree_of(arrays, config, head))
    for source in (run, run / "params"):
        convert(source, tmp_path / "back", head=head, overwrite=True)
        assert checksum(tmp_path / "back", head=head) == checksum(folder)
    assert inspect(run, head=head).format == "orbax"


def test_the_parameters_of_a_training_state_are_found(tmp_path):
    head = "XGLMForCausalLM"
    config = make_config(head, architectures=[head])
    arrays = make_arrays(config, head)
    tree = tree_of(arrays, config, head)
    state = {"step": np.int32(3), "params": {"params": tree}, "opt_state": ({"mu": tree}, None)}
    for step in (90, 100):
        state["step"] = np.int32(step)
        save_tree(tmp_path / "run" / str(step) / "default", state)
        tree["model"]["layer_norm"]["bias"] = tree["model"]["layer_norm"]["bias"] + 1
    config.save_pretrained(tmp_path / "run")
    came = convert(tmp_path / "run", tmp_path / "out")
    assert came.source_format == "orbax"
    assert set(came.dropped.values()) == {"is part of the training state, not of the model"}
    assert "opt_state/0/mu/model/layer_norm/bias" in came.dropped
    arrays["model.layer_norm.bias"] = arrays["model.layer_norm.bias"] + 1  # the last step
    assert came.checksum == checksum(arrays)


@pytest.mark.slow
def test_backends_run_what_orbax_saved(tmp_path):
    pytest.importorskip("torch")
    folder = make(tmp_path / "first", num_layers=1)
    convert(folder, tmp_path / "out", "orbax")
    came = verify({"pt": tmp_path / "out", "flax": folder}, gradients=False)
    assert came.ok, came
    assert came.backends == ["pt", "flax"]


def test_every_dtype_comes_back(tmp_path, checks):
    arrays = checks.arrays([f"a/{letter}" for letter in "abcdefghijkl"])
    orbax.write_folder(tmp_path / "params", checks.specs(arrays), lambda name: [arrays[name]])
    with orbax.OrbaxSource(tmp_path / "params") as source:
        checks.assert_source_is(source, arrays)
    restored = restore(tmp_path / "params")
    checks.assert_same(dict(leaves(restored)), arrays)


def test_large_arrays_lie_in_pieces(tmp_path, monkeypatch, checks):
    monkeypatch.setattr(orbax, "_PIECE", 64)
    monkeypatch.setattr(orbax, "_COMMIT", 100)
    arrays = {"a/b": np.arange(210, dtype=np.float32).reshape(30, 7), "c": np.ones((5, 2), "f2")}
    orbax.write_folder(tmp_path / "params", checks.specs(arrays), lambda name: [arrays[name]])
    with orbax.OrbaxSource(tmp_path / "params") as source:
        checks.assert_source_is(source, arrays)
        assert (source.read_rows("a/b", 3, 8) == arrays["a/b"][3:8]).all()
    checks.assert_same(dict(leaves(restore(tmp_path / "params"))), arrays)


def test_large_parameters_are_read_in_blocks(made, tmp_path, monkeypatch, checks):
    from xlmfam.conversion import streaming
    from xlmfam.conversion.targets import orbax as target

    folder, config, head, arrays = made
    monkeypatch.setattr(target, "MOST_BYTES_AT_ONCE", 0)
    monkeypatch.setattr(streaming, "BYTES_PER_BLOCK", 96)
    monkeypatch.setattr(orbax, "_PIECE", 96)
    convert(folder, tmp_path / "out", "orbax")
    expected = dict(leaves(tree_of(arrays, config, head)))
    checks.assert_same(dict(leaves(restore(tmp_path / "out" / "params"))), expected)


def test_rows_of_what_lies_in_one_piece(tmp_path):
    array = np.arange(210, dtype=np.float32).reshape(30, 7)
    with orbax.OrbaxSource(save_tree(tmp_path / "params", {"a": array})) as source:
        came = [source.read_rows("a", start, start + 4) for start in range(0, 28, 4)]
    assert (np.concatenate(came) == array[:28]).all()


def test_a_checkpoint_without_a_config_says_so(tmp_path):
    save_tree(tmp_path / "a" / "b" / "c" / "params", {"weight": np.ones(3, np.float32)})
    with pytest.raises(ConfigError, match=r"put the model's config\.json beside it"):
        recognise(tmp_path / "a" / "b" / "c" / "params")


def test_what_is_no_parameter_is_refused(tmp_path):
    head = "XGLMForCausalLM"
    config = make_config(head, architectures=[head])
    tree = tree_of(make_arrays(config, head), config, head)
    tree["model"]["more"] = {"kernel": np.ones((2, 3), np.float32)}
    del tree["model"]["layer_norm"]["scale"]
    save_tree(tmp_path / "run" / "params", tree)
    config.save_pretrained(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"(?s)missing: .*layer_norm.*unexpected: model/more"):
        convert(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    folder = save(tmp_path / "a", make_arrays(make_config()), make_config())
    with pytest.raises(MissingPackageError, match=r'pip install "xlmfam\[orbax\]"'):
        convert(folder, tmp_path / "out", "orbax")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def written(tmp_path):
    spec = TensorSpec((3, 5), np.dtype(np.float32))
    orbax.write_folder(tmp_path / "params", {"a": spec}, lambda name: [np.ones((3, 5), "f4")])
    return tmp_path / "params"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "has no tree_metadata"),
        ('{"tree_metadata": {}}', "holds no arrays"),
        ('{"tree_metadata": {"x": 3}}', "damaged"),
        ('{"tree_metadata": {"x": {"key_metadata": [], "value_metadata": {}}}}', "damaged"),
    ],
)
def test_damaged_lists_of_arrays(written, text, message):
    (written / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        orbax.OrbaxSource(written)


@pytest.mark.parametrize("step", ["..", "a/b", ""])
def test_paths_out_of_the_folder(written, step):
    about = json.loads((written / "_METADATA").read_text())
    (entry,) = about["tree_metadata"].values()
    entry["key_metadata"][0]["key"] = step
    (written / "_METADATA").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="is no path in a tree"):
        orbax.OrbaxSource(written)


@pytest.mark.parametrize("gone", ["manifest.ocdbt", "d"])
def test_missing_files(written, gone):
    path = written / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(written))):
        orbax.OrbaxSource(written).read("a")


def test_truncated_data(written):
    for file in (written / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=re.escape(str(written))):
        orbax.OrbaxSource(written).read("a")


def test_missing_pieces_are_no_zeros(written):
    ts = pytest.importorskip("tensorstore")
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{written}/"}).result()
    store.delete_range(ts.KvStore.KeyRange("a/0", "a/1")).result()
    with pytest.raises(CheckpointError, match="1 of its 1 pieces are missing"):
        orbax.OrbaxSource(written).read("a")


def test_plain_zarr_arrays_are_read_too(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save((tmp_path / "params").absolute(), tree)
    with orbax.OrbaxSource(tmp_path / "params") as source:
        assert (source.read("a/b") == tree["a"]["b"]).all()
