"""Conversions hold a few blocks, never a large tensor: it is cut up, turned in strips, cast."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import make, make_arrays, make_config, save

from xlmfam.common.checkpoints import safetensors_files
from xlmfam.common.checkpoints.files import FORMATS, open_checkpoint, save_checkpoint
from xlmfam.common.checkpoints.raw import Rows
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import table_of
from xlmfam.conversion import checksum, convert, streaming

LM = "XGLMForCausalLM"


def skip_without_torch(*formats):
    if "pt" in formats:
        pytest.importorskip("torch")


@pytest.fixture
def small_blocks(monkeypatch):
    """Cuts even tiny tensors into blocks, strips and tiles with a rest at their ends."""
    monkeypatch.setattr(streaming, "BYTES_PER_BLOCK", 200)
    monkeypatch.setattr(streaming, "BYTES_PER_STRIP", 500)
    monkeypatch.setattr(streaming, "_TILE", 5)


# ---- rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", ["5GB", 100])
def test_rows_are_slices(tmp_path, format, size):
    skip_without_torch(format)
    rng = np.random.default_rng(0)
    kinds = [np.float32, ml_dtypes.bfloat16, np.float16, np.int64]
    arrays = {f"a/x{i}": rng.normal(size=(7, 3, 2)).astype(k) for i, k in enumerate(kinds)}
    arrays |= {"a/row": rng.normal(size=11), "a/none": np.zeros((0, 3), np.float32)}
    specs = {name: TensorSpec(a.shape, a.dtype) for name, a in arrays.items()}
    save_checkpoint(
        tmp_path,
        specs,
        arrays.__getitem__,
        format=format,
        architecture=LM,
        max_shard_size=size,
    )
    with open_checkpoint(tmp_path) as source:
        assert len(source.files()) == (1 if size == "5GB" else 6)
        for name, array in arrays.items():
            for start, stop in ((0, len(array)), (2, 5), (6, 7), (3, 3)):
                begin, end = min(start, len(array)), min(stop, len(array))
                rows, expected = source.read_rows(name, begin, end), array[begin:end]
                assert (rows.shape, rows.dtype) == (expected.shape, expected.dtype)
                assert rows.tobytes() == expected.tobytes()
        with pytest.raises(CheckpointError, match="no tensor 'b'"):
            source.read_rows("b", 0, 1)


def test_pieces_of_a_leaf_need_not_end_with_a_row(tmp_path, monkeypatch):
    from xlmfam.conversion.formats import flax_msgpack

    monkeypatch.setattr(flax_msgpack, "_MAX_LEAF_BYTES", 50)
    array = np.arange(7 * 5, dtype=np.float32).reshape(7, 5)
    specs = {"x": TensorSpec(array.shape, array.dtype)}
    save_checkpoint(tmp_path, specs, lambda _: array, format="flax")
    serialization = pytest.importorskip("flax.serialization")
    read = serialization.msgpack_restore((tmp_path / "flax_model.msgpack").read_bytes())
    np.testing.assert_array_equal(read["x"], array)
    with open_checkpoint(tmp_path) as source:
        for start, stop in itertools.combinations(range(8), 2):
            np.testing.assert_array_equal(source.read_rows("x", start, stop), array[start:stop])


@pytest.mark.parametrize("turned", [True, False])
def test_readings_give_the_parameter(tmp_path, small_blocks, turned):
    folder = make(tmp_path, format="flax" if turned else "safetensors")
    name = "model.layers.1.fc1.weight"
    parameter = table_of("xglm").expand(make_config(), LM)[name]
    array = make_arrays(make_config())[name]
    with open_checkpoint(folder) as source:
        stored = name if not turned else name.replace(".", "/").replace("weight", "kernel")
        reading = streaming.Reading(source, stored, parameter)
        assert reading.is_turned is turned
        blocks = list(reading.canonical())
        assert len(blocks) > 3
        np.testing.assert_array_equal(np.concatenate(blocks), array)
        seen = []
        other = np.concatenate(list(reading.blocks(not turned, seen.append)))
        np.testing.assert_array_equal(other, array.T)
        half = streaming.Reading(source, stored, parameter, np.dtype(np.float16))
        np.testing.assert_array_equal(
            np.concatenate(list(half.canonical())), array.astype(np.float16)
        )


# ---- conversions --------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), list(itertools.product(FORMATS, FORMATS)))
def test_cut_up_every_pair_is_bit_exact(tmp_path, small_blocks, start, end):
    skip_without_torch(start, end)
    source = make(tmp_path / "source", format=start, tie_word_embeddings=False)
    report = convert(source, tmp_path / "target", end, max_shard_size="4KB")
    expected = checksum(make_arrays(make_config(tie_word_embeddings=False)))
    assert report.checksum == checksum(tmp_path / "target") == expected


@pytest.mark.parametrize("end", FORMATS)
def test_cut_up_and_cast(tmp_path, small_blocks, end):
    skip_without_torch(end)
    convert(make(tmp_path / "source", format="flax"), tmp_path / "target", end, dtype="float16")
    cast = {name: a.astype(np.float16) for name, a in make_arrays(make_config()).items()}
    assert checksum(tmp_path / "target") == checksum(cast)


@pytest.mark.parametrize("format", ["pt", "tf"])
def test_cut_up_ties_are_held_against_each_other(tmp_path, small_blocks, format):
    skip_without_torch(format)
    arrays = make_arrays(make_config(tie_word_embeddings=False))
    for same in (True, False):
        head = arrays["model.embed_tokens.weight"].copy()
        if not same:
            head[-1, -1] += 1  # the last value of all
        source = save(
            tmp_path / f"{same}",
            {**arrays, "lm_head.weight": head},
            make_config(tie_word_embeddings=False),
            format=format,
        )
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        report = convert(source, tmp_path / f"target{same}")
        assert len(report.warnings) == (0 if same else 1)


def test_rows_that_are_not_what_was_promised(tmp_path):
    class Short(Rows):
        def __init__(self, *shapes):
            super().__init__(TensorSpec((4, 3), np.dtype(np.float32)))
            self.shapes = shapes

        def blocks(self):
            yield from (np.zeros(shape, np.float32) for shape in self.shapes)

    specs = {"x": TensorSpec((4, 3), np.dtype(np.float32))}
    save_checkpoint(tmp_path / "good", specs, lambda _: Short((1, 3), (3, 3)))
    for shapes, said in (([(3, 3)], "12 bytes missing"), ([(4, 3), (1, 3)], "with more than")):
        with pytest.raises(CheckpointError, match=said):
            save_checkpoint(tmp_path / "bad", specs, lambda _, s=shapes: Short(*s))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


# ---- pytorch_model.bin, written without PyTorch -------------------------------------------


def test_bin_is_what_torch_and_zip_readers_take(tmp_path):
    torch = pytest.importorskip("torch")
    source = make(tmp_path / "source")
    convert(source, tmp_path / "target", "pt")
    path = tmp_path / "target/pytorch_model.bin"
    arrays = make_arrays(make_config())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every checksum
    for mapped in (True, False):
        state = torch.load(path, weights_only=True, mmap=mapped)
        assert state.keys() == {*arrays, "lm_head.weight"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(state[name].numpy(), array)
            assert state[name].data_ptr() % 64 == 0
    # What is tied is one tensor, in the file and in memory.
    embedding = state["model.embed_tokens.weight"]
    assert state["lm_head.weight"].data_ptr() == embedding.data_ptr()
    assert path.stat().st_size < 1.5 * sum(a.nbytes for a in arrays.values()) + 10_000


def test_what_is_tied_is_one_tensor_in_shards_too(tmp_path):
    torch = pytest.importorskip("torch")
    convert(make(tmp_path / "source"), tmp_path / "target", "pt", max_shard_size="2900B")
    index = json.loads((tmp_path / "target/pytorch_model.bin.index.json").read_text())
    arrays = make_arrays(make_config())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    shard = index["weight_map"]["lm_head.weight"]
    assert shard == index["weight_map"]["model.embed_tokens.weight"]
    state = torch.load(tmp_path / "target" / shard, weights_only=True)
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_bin_archives_beyond_4_gb_are_described_right():
    from xlmfam.conversion.formats.torch_archive import _Entry

    entry = _Entry(b"archive/data/0", 2**33, 0, 2**32 + 5, 7)
    listing, header = entry.listing(), entry.local_header()
    assert header[18:26] == listing[20:28] == b"\xff" * 8
    assert (2**32 + 5).to_bytes(8, "little") in header
    assert (2**33).to_bytes(8, "little") in listing
    assert entry.begin == 2**33 + len(header)


# ---- memory -------------------------------------------------------------------------------

ROOMY = {"vocab_size": 256_008, "attention_heads": 3}
MEASURED = """
import sys
from xlmfam.conversion import convert
report = convert(*sys.argv[1:4], dtype=sys.argv[4])
# Not getrusage, which counts what the process was forked from.
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(report.checksum, peak * 1024)
"""


def make_sparse(folder, **settings):
    """A checkpoint with an embedding of up to 1.2 GB, of which the disk has the header only."""
    config = make_config(**ROOMY, **settings)
    config.architectures = [LM]
    config.save_pretrained(folder)
    parameters = table_of("xglm").expand(config, LM)
    specs = {
        name: TensorSpec(p.shape, np.dtype(np.float32))
        for name, p in parameters.items()
        if p.tied_to is None
    }
    path = folder / "model.safetensors"
    layout = safetensors_files.lay_out(path, specs)
    ((_, header),) = layout.literals
    path.write_bytes(header)
    with open(path, "r+b") as file:
        file.truncate(len(header) + sum(spec.nbytes for spec in specs.values()))
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("to", "tied", "width"),
    [
        ("pt", True, 1152),
        pytest.param("flax", False, 768, marks=pytest.mark.slow),  # with a head that is turned
    ],
)
def test_a_tensor_beyond_the_memory(tmp_path, to, tied, width):
    source = make_sparse(tmp_path / "source", d_model=width, tie_word_embeddings=tied)
    # A small dtype: fewer bytes for the disk.
    command = [sys.executable, "-c", textwrap.dedent(MEASURED)]
    command += [str(source), str(tmp_path / "target"), to, "float8_e4m3fn"]
    done = subprocess.run(command, timeout=600, capture_output=True, text=True, check=True)
    digest, peak = done.stdout.split()
    assert int(peak) < 500e6
    assert len(digest) == 64
    (weights,) = (tmp_path / "target").glob(FORMATS[to].single)
    assert weights.stat().st_size > ROOMY["vocab_size"] * width * (1 if tied else 2)
