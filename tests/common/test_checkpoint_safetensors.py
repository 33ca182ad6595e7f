"""One safetensors file: both ways against the official library, and files that lie."""

import json

import ml_dtypes
import numpy as np
import pytest

from xlmfam.common.checkpoints import safetensors_files
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "uint8", "bool"]


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def arrays_of_every_kind():
    rng = np.random.default_rng(0)
    arrays = {f"m.{d}": rng.integers(0, 2, (3, 5)).astype(dtype_of(d)) for d in DTYPES}
    arrays["scalar"] = np.array(7, np.int64)
    arrays["empty"] = np.zeros((0, 4), np.float16)
    arrays["odd"] = np.arange(3, dtype=np.uint8)
    arrays["名前"] = np.arange(4, dtype=np.float32)
    return arrays


def specs_of(arrays):
    return {name: TensorSpec(a.shape, a.dtype) for name, a in arrays.items()}


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def write(path, arrays):
    safetensors_files.write_file(path, specs_of(arrays), arrays.__getitem__)
    return path


def read_all(path):
    with safetensors_files.open_file(path) as source:
        return {name: source.read(name) for name in source.specs()}


def test_round_trip_of_every_dtype(tmp_path):
    arrays = arrays_of_every_kind()
    path = write(tmp_path / "a.safetensors", arrays)
    with safetensors_files.open_file(path) as source:
        assert source.specs() == specs_of(arrays)
        assert source.spelling == "canonical"
        assert all(same(source.read(name), a) for name, a in arrays.items())


def test_the_library_reads_what_we_write(tmp_path):
    from safetensors import safe_open

    arrays = arrays_of_every_kind()
    path = write(tmp_path / "a.safetensors", arrays)
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            if "float8" not in name:  # the library knows these for torch only
                assert same(file.get_tensor(name), array), name


def test_we_read_what_the_library_writes(tmp_path):
    from safetensors.numpy import save_file

    arrays = arrays_of_every_kind()
    save_file(arrays, tmp_path / "a.safetensors")
    came = read_all(tmp_path / "a.safetensors")
    assert came.keys() == arrays.keys()
    assert all(same(came[name], a) for name, a in arrays.items())


def test_data_are_aligned_to_their_items(tmp_path):
    path = write(tmp_path / "a.safetensors", arrays_of_every_kind())
    text = path.read_bytes()
    length = int.from_bytes(text[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(text[8 : 8 + length]).items():
        if name != "__metadata__" and entry["shape"] == [3, 5]:
            assert entry["data_offsets"][0] % dtype_of(name[2:]).itemsize == 0


def test_non_contiguous_arrays_are_stored_row_major(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    came = read_all(write(tmp_path / "a.safetensors", {"x": array}))
    np.testing.assert_array_equal(came["x"], array)


def test_arrays_are_fresh_and_outlive_the_source(tmp_path):
    path = write(tmp_path / "a.safetensors", {"x": np.ones(3, np.float32)})
    with safetensors_files.open_file(path) as source:
        first = source.read("x")
        first[:] = 5
        second = source.read("x")
    np.testing.assert_array_equal(second, np.ones(3))


def test_unknown_name_and_closed_source(tmp_path):
    source = safetensors_files.open_file(write(tmp_path / "a.safetensors", {"x": np.ones(3)}))
    with pytest.raises(CheckpointError, match="no tensor 'y'"):
        source.read("y")
    source.close()
    with pytest.raises(CheckpointError, match="closed"):
        source.read("x")


@pytest.mark.parametrize("came", [np.ones(4, np.float32), np.ones(3, np.float16)])
def test_an_array_unlike_its_spec_is_refused(tmp_path, came):
    specs = {"x": TensorSpec((3,), np.dtype(np.float32))}
    with pytest.raises(CheckpointError, match="'x' was announced as float32"):
        safetensors_files.write_file(tmp_path / "a.safetensors", specs, lambda _: came)


def test_a_dtype_that_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="complex64"):
        write(tmp_path / "a.safetensors", {"x": np.ones(3, np.complex64)})


@pytest.mark.parametrize("keep", [0, 4, 8, 30, -1])
def test_truncated(tmp_path, keep):
    path = write(tmp_path / "a.safetensors", {"x": np.ones(30, np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        safetensors_files.open_file(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        safetensors_files.open_file(tmp_path / "none.safetensors")


F32_2 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "overlap": ({"x": F32_2, "y": F32_2}, 8),
    "hole": ({"x": F32_2, "y": {**F32_2, "data_offsets": [12, 20]}}, 20),
    "beyond the end": ({"x": {**F32_2, "shape": [2**40], "data_offsets": [0, 2**42]}}, 8),
    "negative": ({"x": {**F32_2, "data_offsets": [-8, 0]}}, 8),
    "shape": ({"x": {**F32_2, "shape": [3]}}, 8),
    "overflow": ({"x": {**F32_2, "shape": [2**40, 2**40]}}, 8),
    "dtype": ({"x": {**F32_2, "dtype": "F31"}}, 8),
    "list": ([1, 2], 8),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(tmp_path, lie):
    header, size = LIES[lie]
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        safetensors_files.open_file(path)


@pytest.mark.parametrize("length", [2**63, 10**9, 1000])
def test_a_header_longer_than_the_file(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(50))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        safetensors_files.open_file(path)


def test_a_name_that_comes_twice(tmp_path):
    entry = json.dumps(F32_2)
    text = f'{{"x": {entry}, "x": {entry}}}'.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError):
        safetensors_files.open_file(path)
