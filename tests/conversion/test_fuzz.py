"""Every reader, given valid files in which bytes are changed, cut, moved and repeated.

Whatever comes: an error of ours or success, soon. What the readers do with files that are made to
harm is in test_hostile.py. The examples are the same in every run.
"""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import change_json, make, make_config

from xlmfam import AutoConfig
from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import table_of
from xlmfam.common.pickles import read_pickle
from xlmfam.conversion import convert, inspect
from xlmfam.conversion.formats.torch_file import StoredTensor, TorchFile
from xlmfam.conversion.originals import open_original
from xlmfam.conversion.runners import installed_backends
from xlmfam.conversion.sources import recognise

HAS_TORCH = "pt" in installed_backends()
ORIGINALS = Path(__file__).parents[1] / "data" / "originals"
SECONDS = 5
FILES = {
    "safetensors": "model.safetensors",
    "flax": "flax_model.msgpack",
    "tf": "tf_model.h5",
    "pt": "pytorch_model.bin",
}
HEADS = ("XGLMForCausalLM", "XLMWithLMHeadModel", "XmodForMaskedLM", "TransfoXLLMHeadModel")
repeatable = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# ---- what is done to a file -----------------------------------------------------------------

STRANGE = (b"\0", b"\xff", b"\x7f", b"\x80", bytes(4), b"\xff" * 4, bytes(8), b"\xff" * 8)
STRANGE += (
    b"\xff" * 7 + b"\x7f",
    b"\1\0\0\0",
    b"[[[[",
    b'":',
    b"9" * 20,
    b"-1",
    b"1e999",
    b"cos\n",
)
STRANGE += (b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff", b"PK\5\6", b"PK\1\2", b"\x8e\0")
place = st.integers(0, 2**16)
change = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("put"), place, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("put"), place, st.sampled_from(STRANGE)),
    st.tuples(st.just("cut"), place, st.integers(1, 40)),
    st.tuples(st.just("end"), place, st.just(0)),
    st.tuples(st.just("repeat"), place, place),
    st.tuples(st.just("move"), place, place),
)
changes = st.lists(change, min_size=1, max_size=5)


def spoiled(content, list_of_changes):
    data = bytearray(content)
    for what, where, value in list_of_changes:
        at = where % max(1, len(data))
        if what == "flip" and data:
            data[at] ^= 1 << value
        elif what == "put":
            data[at : at + len(value)] = value
        elif what == "cut":
            del data[at : at + value]
        elif what == "end":
            del data[at:]
        elif what in ("repeat", "move"):
            other = value % max(1, len(data))
            piece = data[other : other + 48]
            data[at : at + (len(piece) if what == "move" else 0)] = piece
    return bytes(data)


def said_by(call, path):
    try:
        call(path)
    except XlmfamError as error:
        return str(error)
    return ""


def survives(read, path, content):
    """Whether an error of ours or nothing comes of reading it, soon."""
    path.write_bytes(content)
    started = time.process_time()
    assert len(said_by(read, path)) < 10_000
    assert time.process_time() - started < SECONDS


# ---- files of weights -----------------------------------------------------------------------


def read_weights(path):
    with open_checkpoint(path) as source:
        for name, spec in source.specs().items():
            array = source.read(name)
            assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
            if array.shape and len(array):
                rows = source.read_rows(name, 0, 1)
                assert rows.tobytes() == array[:1].tobytes()


def write_weights(folder, format, **options):
    arrays = {
        "m.layers.0.w.weight": np.random.default_rng(0).normal(size=(3, 5)).astype("f4"),
        "m.b.bias": np.arange(4, dtype="f2"),
        "m.n": np.array(1.5, "f4"),
        "m.e": np.zeros((0, 2), "f4"),
    }
    if format in ("flax", "tf"):
        arrays = {name.replace(".", "/"): array for name, array in arrays.items()}
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
    options = {"architecture": "XGLMModel"} | options
    save_checkpoint(folder, specs, arrays.__getitem__, format=format, **options)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each format; those of the old PyTorch too."""
    folder = tmp_path_factory.mktemp("files")
    found = {form: write_weights(folder / form, form) / name for form, name in FILES.items()}
    shards = write_weights(folder / "shards", "safetensors", max_shard_size=30)
    found["index"] = shards / "model.safetensors.index.json"
    if HAS_TORCH:
        import torch

        state = {"x": torch.ones(3, 2), "y": torch.zeros(4, dtype=torch.bfloat16)}
        (folder / "old").mkdir()
        found["old pt"] = folder / "old" / "pytorch_model.bin"
        torch.save(state, found["old pt"], _use_new_zipfile_serialization=False)
    return found


@pytest.mark.parametrize("format", ["safetensors", "flax", "index", "pt", "old pt"])
def test_weights(files, format):
    if "pt" in format and not HAS_TORCH:
        pytest.skip("needs torch")
    path = files[format]
    whole = path.read_bytes()
    read_weights(path)

    @repeatable
    @given(changes)
    def check(list_of_changes):
        survives(read_weights, path, spoiled(whole, list_of_changes))

    check()
    path.write_bytes(whole)


def fuzz_h5(path, examples):
    """Run by a process of its own: a fault of the HDF5 library would end it."""
    whole = path.read_bytes()

    @settings(repeatable, max_examples=examples)
    @given(changes)
    def check(list_of_changes):
        survives(read_weights, path, spoiled(whole, list_of_changes))

    read_weights(path)
    check()
    print("survived")


def test_h5(files):
    code = (
        "import importlib.util, json, pathlib, sys; sys.path[:0] = json.loads(sys.argv[1]); "
        "spec = importlib.util.spec_from_file_location('fuzzed', sys.argv[2]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "module.fuzz_h5(pathlib.Path(sys.argv[3]), 250)"
    )
    words = [sys.executable, "-X", "faulthandler", "-c", code, json.dumps(sys.path), __file__]
    run = subprocess.run([*words, files["tf"]], capture_output=True, text=True, timeout=300)
    assert run.stdout.endswith("survived\n"), run.stderr[-3000:]


# ---- files of torch.save, vocabularies ------------------------------------------------------


def walk(file, value, left):
    """Read every tensor in it, up to a number of things."""
    if left[0] <= 0:
        return
    left[0] -= 1
    if isinstance(value, StoredTensor):
        if value.spec.nbytes < 2**20:
            assert file.read(value).shape == value.shape
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            walk(file, part, left)


def read_torch_file(path):
    file = TorchFile(path)
    try:
        walk(file, file.value, [300])
    finally:
        file.close()


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(tmp_path, zipped):
    import torch

    value = {"model": {"x": torch.ones(3, 2).T, "y": torch.zeros(4)}, "args": {"a": [1, (2, "b")]}}
    path = tmp_path / "x.pt"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    read_torch_file(path)

    @settings(repeatable, max_examples=150)
    @given(changes)
    def check(list_of_changes):
        survives(read_torch_file, path, spoiled(whole, list_of_changes))

    check()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_vocabularies(tmp_path, protocol):
    words = ["a", "b", "<unk>", "longer"]
    numbers = OrderedDict((word, number) for number, word in enumerate(words))
    value = {"idx2sym": words, "sym2idx": numbers, "counter": Counter(words)}
    whole = pickle.dumps(value, protocol)

    @repeatable
    @given(changes)
    def check(list_of_changes):
        survives(read_pickle, tmp_path / "vocab.pkl", spoiled(whole, list_of_changes))

    check()


@given(st.binary(max_size=60))
@settings(repeatable, max_examples=300)
def test_any_bytes_as_a_pickle(tmp_path, content):
    survives(read_pickle, tmp_path / "vocab.pkl", content)


def read_original(path):
    original = open_original(path)
    if original is not None:
        with original.source as source:
            for name in list(source.specs())[:20]:
                source.read(name)
            original.config.to_json_string()


@pytest.mark.parametrize("release", ["fairseq/xglm/model.pt", "xlm/mlm.pth.gz"])
def test_originals(tmp_path, release):
    """Changes are in the settings and the list of tensors: values may be anything anyway."""
    origin = ORIGINALS / release
    for other in origin.parent.iterdir():
        if other.suffix not in (".pt", ".gz", ".npz"):
            (tmp_path / other.name).write_bytes(other.read_bytes())
    path = tmp_path / origin.name.removesuffix(".gz")
    packed = origin.read_bytes()
    whole = gzip.decompress(packed) if origin.suffix == ".gz" else packed
    path.write_bytes(whole)
    read_original(path)
    start = whole.index(b"\x80\x02")
    end = whole.find(b"PK\x03\x04", start)
    end = start + 6000 if end < 0 else end

    @settings(repeatable, max_examples=50)
    @given(changes)
    def check(list_of_changes):
        middle = spoiled(whole[start:end], list_of_changes)
        middle = (middle + bytes(end - start))[: end - start]  # the rest stays where it is
        survives(read_original, path, whole[:start] + middle + whole[end:])

    check()


# ---- what users of xlmfam trained, and TensorFlow 1 ------------------------------------------


def read_whole(path):
    """Open whatever it is, as convert does, and read some of it."""
    with recognise(path) as checkpoint:
        checkpoint.plan()
        for name in list(checkpoint.source.specs())[:20]:
            checkpoint.source.read(name)


def fuzz_files(folder, read, examples):
    """Spoil each file of a checkpoint in turn, whose config stays; what is whole is read first."""
    read()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name != "config.json"]
    assert files
    for path in files:
        fuzz_file(path, read, max(6, examples // len(files)))
    read()


def fuzz_file(path, read, examples):
    whole = path.read_bytes()

    @settings(repeatable, max_examples=examples)
    @given(changes)
    @example([("put", 149, bytes(4))])  # an HDF5 file with a place beyond every file
    def check(list_of_changes):
        survives(lambda _: read(), path, spoiled(whole, list_of_changes))

    check()
    path.write_bytes(whole)


@pytest.mark.parametrize("format", ["orbax", "keras"])
def test_trained(tmp_path, format):
    convert(make(tmp_path / "first"), tmp_path / "made", to=format)
    folder = tmp_path / "made"
    for report in folder.glob("conversion_report.*"):
        report.unlink()
    if format == "orbax":
        fuzz_files(folder, lambda: read_whole(folder), 60)
        return
    for other, kept in (("model.keras", "model.weights.h5"), ("model.weights.h5", "model.keras")):
        alone = tmp_path / kept
        alone.mkdir()
        (alone / kept).write_bytes((folder / kept).read_bytes())
        (alone / "config.json").write_bytes((folder / "config.json").read_bytes())
        assert not (alone / other).exists()
        fuzz_files(alone, lambda alone=alone, kept=kept: read_whole(alone / kept), 60)


def test_tensorflow_1(tmp_path):
    for packed in (ORIGINALS / "transfo_xl" / "tf1_tails").iterdir():
        if packed.name.startswith("model.ckpt") and packed.suffix == ".gz":
            (tmp_path / packed.name[:-3]).write_bytes(gzip.decompress(packed.read_bytes()))
        elif packed.name.startswith("model.ckpt"):
            (tmp_path / packed.name).write_bytes(packed.read_bytes())
    prefix = next(tmp_path.glob("*.index")).with_suffix("")
    fuzz_files(tmp_path, lambda: read_whole(prefix), 120)


# ---- configs --------------------------------------------------------------------------------


def read_config(path):
    config = AutoConfig.from_pretrained(path.parent)
    config.to_json_string()
    table = table_of(config.model_type)
    table.expand(config, table.base)


@pytest.mark.parametrize("head", HEADS)
def test_configs(tmp_path, head):
    make_config(head).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    whole = path.read_bytes()

    @repeatable
    @given(changes)
    def check(list_of_changes):
        survives(read_config, path, spoiled(whole, list_of_changes))

    check()


number = st.one_of(st.integers(-2, 9), st.sampled_from([10**9, 10**30, 2**63]), st.floats())
leaf = st.one_of(st.none(), st.booleans(), number, st.text(max_size=6), st.just("relu"))
anything = st.recursive(
    leaf,
    lambda part: st.one_of(
        st.lists(part, max_size=3), st.dictionaries(st.text(max_size=3), part, max_size=3)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("head", HEADS)
def test_settings_of_any_type(tmp_path, head):
    folder = make(tmp_path / "model", head)
    whole = (folder / "config.json").read_text()
    every = json.loads(make_config(head).to_json_string(use_diff=False))
    names = sorted({*every, "num_labels", "n_words", "lang2id", "id2lang", "asm_cutoffs", "asm"})

    @settings(repeatable, max_examples=80)
    @given(st.dictionaries(st.sampled_from(names), anything, min_size=1, max_size=2))
    def check(values):
        (folder / "config.json").write_text(whole)
        change_json(folder / "config.json", **values)
        assert len(said_by(lambda path: inspect(path).to_dict(), folder)) < 10_000

    check()
