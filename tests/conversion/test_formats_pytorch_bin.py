"""pytorch_model.bin: both ways against torch, old files, and pickles that want to run code."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.formats import pytorch_bin

torch = pytest.importorskip("torch")

NAMES = [f"model.layers.{i}.fc.weight" for i in range(10)] + ["model.norm.weight", "bias"]


def save(folder, checks, arrays, **options):
    specs = checks.specs(arrays)
    return save_checkpoint(folder, specs, arrays.__getitem__, format="pt", **options)


def tensor(array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array)


def array(tensor):
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("size", ["5GB", 200])
def test_round_trip(tmp_path, checks, size):
    arrays = checks.arrays(NAMES)
    paths = save(tmp_path, checks, arrays, max_shard_size=size)
    assert len(paths) == (1 if size == "5GB" else 5)
    with open_checkpoint(tmp_path) as source:
        assert source.spelling == "canonical"
        checks.assert_source_is(source, arrays)


def test_torch_reads_what_we_write(tmp_path, checks):
    arrays = checks.arrays(NAMES)
    (path,) = save(tmp_path, checks, arrays)
    came = torch.load(path, weights_only=True)
    checks.assert_same({name: array(t) for name, t in came.items()}, arrays)


@pytest.mark.parametrize("zipped", [True, False])
def test_we_read_what_torch_writes(tmp_path, checks, zipped):
    arrays = checks.arrays(NAMES)
    state = OrderedDict((name, tensor(a)) for name, a in arrays.items())
    state[NAMES[0]] = torch.nn.Parameter(state[NAMES[0]])
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(tmp_path) as source:
        checks.assert_source_is(source, arrays)


def test_views_and_shared_storage(tmp_path, checks):
    base = torch.arange(24.0).reshape(4, 6)
    state = {"whole": base, "columns": base[:, 1:3], "turned": base.T, "row": base[2]}
    state["spread"] = torch.ones(1, 3).expand(5, 3)
    state["negative"] = torch.complex(torch.ones(3), torch.ones(3)).conj().imag
    torch.save(state, tmp_path / "a.bin")
    with open_checkpoint(tmp_path / "a.bin") as source:
        checks.assert_source_is(
            source, {name: t.resolve_neg().numpy() for name, t in state.items()}
        )


def test_large_tensors_are_read_in_blocks(tmp_path, checks, monkeypatch):
    monkeypatch.setattr(pytorch_bin, "_BYTES_PER_MAPPING", 1000)
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (loads.append(1), load(*a, **k))[1])
    arrays = {f"x{i}": np.random.default_rng(i).normal(size=(37, 41)) for i in range(3)}
    arrays["y"] = np.arange(5000, dtype=np.float32)
    save(tmp_path, checks, arrays)
    with open_checkpoint(tmp_path) as source:
        checks.assert_source_is(source, arrays)
    assert len(loads) > 20


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, checks, monkeypatch):
    monkeypatch.setattr(pytorch_bin, "_BYTES_PER_MAPPING", 10)
    save(tmp_path, checks, {"x": np.ones((4, 4))})
    with open_checkpoint(tmp_path) as source:
        save(tmp_path, checks, {"x": np.zeros((4, 4))})
        with pytest.raises(CheckpointError, match="replaced"):
            source.read("x")


def test_tied_names_are_stored_once(tmp_path):
    shared = np.ones((100, 100), np.float32)
    arrays = {"embed": shared, "head": shared}
    specs = {name: pytorch_bin.TensorSpec(a.shape, a.dtype) for name, a in arrays.items()}
    (path,) = save_checkpoint(tmp_path, specs, arrays.__getitem__, format="pt")
    assert path.stat().st_size < 1.5 * shared.nbytes
    assert set(torch.load(path, weights_only=True)) == {"embed", "head"}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False, "pickle"])
def test_no_code_of_a_file_is_run(tmp_path, zipped):
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "was_here"
    state = {"x": torch.ones(2), "y": Evil(str(mark))}
    if zipped == "pickle":
        path.write_bytes(pickle.dumps(state["y"], protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match=r"more than tensors \(\w+\.mkdir\)"):
        open_checkpoint(path)
    if zipped != "pickle":
        torch.load(path, weights_only=False)
        assert mark.exists(), "the file was harmless and the test worthless"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"model": {"x": torch.ones(2)}, "epoch": 3}, "'model' is a dict"),
        ({"x": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({1: torch.ones(2)}, "entry 1"),
        ([torch.ones(2)], "holds a list"),
        ({"x": torch.ones(2).to_sparse()}, "not dense"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"x": torch.ones(1).expand(2**40)}, "more than the file has"),
    ],
)
def test_what_is_no_state_dict(tmp_path, state, said):
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path / "a.bin")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path, zipped, part):
    path = tmp_path / "a.bin"
    torch.save({"x": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(CheckpointError, match=r"a\.bin"):
        open_checkpoint(path)


def test_rubbish(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"veritable rubbish\n")
    with pytest.raises(CheckpointError, match=r"truncated or damaged\): at position"):
        open_checkpoint(path)


def test_a_storage_that_the_archive_has_only_in_part(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"x": torch.ones(1000)}, tmp_path / "whole.bin")
    with zipfile.ZipFile(tmp_path / "whole.bin") as whole, zipfile.ZipFile(path, "w") as part:
        for entry in whole.namelist():
            data = whole.read(entry)
            part.writestr(entry, struct.pack("f", 1.0) if entry.endswith("data/0") else data)
    with pytest.raises(CheckpointError):
        open_checkpoint(path).read("x")


def test_a_compressed_archive(tmp_path):
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(path)
