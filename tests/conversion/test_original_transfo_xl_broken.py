"""Original Transformer-XL files that are damaged, hostile, or of other models."""

import re

import numpy as np
import pytest
from original_transfo_xl import unpack

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.pickles import Placeholder
from xlmfam.conversion import convert
from xlmfam.conversion.formats.torch_file import TorchFile
from xlmfam.conversion.formats.torch_writer import Made, tensor_of, write_torch_file
from xlmfam.conversion.originals import (
    open_original,
    transfo_xl_bundle,
    transfo_xl_bundle_writer,
    transfo_xl_crc,
)
from xlmfam.conversion.originals.transfo_xl_bundle import Bundle
from xlmfam.conversion.originals.transfo_xl_flags import divisor, given_flags
from xlmfam.conversion.originals.transfo_xl_module import stored_model
from xlmfam.conversion.originals.transfo_xl_words import find_words
from xlmfam.conversion.sources import recognise

FLOAT = np.float32
MODULE = ("mem_transformer", "MemTransformerLM")


def state_of(path):
    """Return the arrays of a checkpoint of one layer, by the original's names."""
    file = TorchFile(path)
    arrays = {name: file.read(t) for name, t in stored_model(file.value).tensors.items()}
    file.close()
    return arrays


@pytest.fixture
def folder(tmp_path):
    return unpack("state", tmp_path)


def write_state(folder, **changes):
    """Write a state dict with some arrays changed; ``None`` leaves one out."""
    arrays = {**state_of(folder / "checkpoint.pt"), **changes}
    tensors = {name: tensor_of(array) for name, array in arrays.items() if array is not None}
    (folder / "checkpoint.pt").unlink()
    write_torch_file(folder / "model.pt", tensors)
    return folder / "model.pt"


def refused(path, message):
    """Assert that a checkpoint is refused, whole, and that nothing is written."""
    target = path.parent / "written" / "here"
    with pytest.raises(CheckpointError, match=message):
        convert(path, target.parent.parent.parent / f"{path.parent.name}-out")
    assert not target.exists()


# -- models that are not the paper's ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r_emb": np.zeros((1, 9, 2, 3), FLOAT)}, r"attn_type is 1 \(learned positions"),
        (
            {"layers.0.dec_attn.q_net.weight": np.zeros((6, 8), FLOAT)},
            r"attn_type is 2 \(absolute sin",
        ),
        (
            {
                "layers.0.dec_attn.q_net.weight": np.zeros((6, 8), FLOAT),
                "r_emb": np.zeros(3, FLOAT),
            },
            r"attn_type is 3 \(absolute learned",
        ),
        ({"out_layer.weight": np.zeros((23, 5), FLOAT)}, "sample_softmax"),
        (
            {"layers.0.dec_attn.o_net.weight": None},
            r"missing: transformer\.layers\.0\.dec_attn\.o_net",
        ),
        ({"layers.0.pos_ff.CoreNet.3.bias": np.zeros(9, FLOAT)}, "misshapen"),
        ({"layers.0.strange": np.zeros(9, FLOAT)}, r"unexpected: transformer\.layers\.0\.strange"),
        ({"layers.2.dec_attn.qkv_net.weight": np.zeros((18, 8), FLOAT)}, "do not count up from 0"),
        ({"r_w_bias": np.zeros(6, FLOAT)}, r"r_w_bias has the shape \(6,\)"),
        ({"r_w_bias": None}, "lacks r_w_bias"),
        ({"crit.cluster_bias": np.zeros(3, FLOAT)}, "form 3 clusters, and cutoffs is"),
        ({"r_w_bias": np.zeros((2, 3), np.int64)}, "must be floating-point"),
    ],
)
def test_state_dicts_that_are_refused(folder, changes, message):
    refused(write_state(folder, **changes), message)


def test_cutoffs_must_be_known(folder):
    (folder / "settings.json").unlink()
    refused(folder / "checkpoint.pt", "cutoffs is not known; write it into settings.json")


@pytest.mark.parametrize(
    ("kind", "name"), [(1, "Shaw"), (2, "Vaswani"), (3, "Al-Rfou"), (9, "no known")]
)
def test_whole_models_with_another_attention(tmp_path, kind, name):
    model = Made(MODULE, (), {"attn_type": kind, "_parameters": {}, "_buffers": {}, "_modules": {}})
    write_torch_file(tmp_path / "model.pt", model)
    refused(tmp_path / "model.pt", f"attn_type is {kind} .*{name}")


def test_models_that_are_none_of_this_release(folder):
    state = state_of(folder / "checkpoint.pt")
    ours = {name: None if name.startswith("crit.") else array for name, array in state.items()}
    write_state(folder, **ours)  # a base model in our own names
    assert open_original(folder) is None


# -- whole models that are damaged ------------------------------------------------------------


def model_with(**state):
    model = Placeholder(None, Placeholder(MODULE), ())
    model.state = {"_parameters": {}, "_buffers": {}, "_modules": {}, **state}
    return model


def test_a_model_within_itself():
    model = model_with()
    model.state["_modules"]["again"] = model
    with pytest.raises(CheckpointError, match="larger than any"):
        stored_model(model)


def test_models_within_each_other_many_times():
    model = model_with()
    for _ in range(9):
        model = model_with(_modules={str(number): model for number in range(100)})
    with pytest.raises(CheckpointError, match="larger than any"):
        stored_model(model)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_parameters": {"r_w_bias": "no tensor"}}, "r_w_bias is no tensor"),
        ({"_modules": [1, 2]}, "_modules holds no names"),
        ({"_buffers": 7}, "_buffers holds no names"),
    ],
)
def test_modules_of_something_else(state, message):
    with pytest.raises(CheckpointError, match=message):
        stored_model(model_with(**state))


@pytest.mark.parametrize(
    "value", [None, 7, [], {}, {"model": None}, {"args": 3}, Placeholder(), "x" * 99]
)
def test_values_that_are_no_model(value):
    assert stored_model(value) is None


def test_settings_of_a_model_are_checked(tmp_path):
    unpack("tails", tmp_path)
    data = (tmp_path / "model.pt").read_bytes()
    # The number behind a name, in the pickle itself.
    place = data.index(b"mem_len")
    changed = data[: place + 9] + data[place + 9 :].replace(b"K\x04", b"N0N", 1)
    for key, broken in (
        ("mem_len", changed),
        ("attn_type", data.replace(b"attn_type", b"attn_typ\xff")),
    ):
        (tmp_path / "model.pt").write_bytes(broken)
        with pytest.raises(CheckpointError):
            convert(tmp_path / "model.pt", tmp_path.parent / f"{tmp_path.name}-{key}")


@pytest.mark.parametrize("case", ["tails", "untied"])
def test_truncated_models(case, tmp_path):
    path = unpack(case, tmp_path) / "model.pt"
    data = path.read_bytes()
    for size in np.linspace(70, len(data) - 1, 25).astype(int):
        path.write_bytes(data[:size])
        with pytest.raises(XlmfamError):
            recognise(path)


def test_a_pickle_that_would_run_code(tmp_path):
    class Run:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    import torch

    torch.save({"word_emb.emb_layers.0.weight": Run(), "x": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(XlmfamError):
        recognise(tmp_path / "model.pt")
    assert not (tmp_path / "made").exists()


# -- checkpoints of TensorFlow ----------------------------------------------------------------


@pytest.fixture
def prefix(tmp_path):
    return unpack("tf1_tails", tmp_path) / "model.ckpt-0"


def with_ending(prefix, ending):
    return prefix.with_name(prefix.name + ending)


def test_truncated_values(prefix):
    path = with_ending(prefix, ".data-00000-of-00001")
    path.write_bytes(path.read_bytes()[:-1])
    refused(prefix, "truncated: values of")
    path.unlink()
    refused(prefix, "cannot be read")


def test_values_that_are_not_those_that_were_written(prefix):
    path = with_ending(prefix, ".data-00000-of-00001")
    data = bytearray(path.read_bytes())
    data[1000] ^= 4
    path.write_bytes(bytes(data))
    refused(prefix, "damaged: the values of transformer/.* are not those that were written")


def test_truncated_indexes(prefix):
    path = with_ending(prefix, ".index")
    data = path.read_bytes()
    for size in range(0, len(data), 41):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            Bundle(prefix)


def changed_bytes(path, count):
    """Change a byte, at one place after the other, but for the end, which has room to spare."""
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(data) - 48, count):
        changed = bytearray(data)
        changed[place] ^= rng.integers(1, 256)
        path.write_bytes(bytes(changed))
        yield place


def test_indexes_with_any_byte_changed(prefix):
    for _ in changed_bytes(with_ending(prefix, ".index"), 60):
        with pytest.raises(CheckpointError):
            open_original(prefix)


def test_indexes_that_were_changed_on_purpose(prefix, monkeypatch):
    monkeypatch.setattr(transfo_xl_bundle, "_is_whole", lambda *_: True)
    refused = 0
    for _ in changed_bytes(with_ending(prefix, ".index"), 200):
        try:
            open_original(prefix).source.close()
        except XlmfamError as error:
            refused += len(str(error)) < 5000
    assert refused > 100


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"transformer/r_w_bias", b"transformer/r_x_bias", "lacks transformer/r_w_bias"),
        (b"cluster_W", b"cluster_X", "lacks transformer/adaptive_softmax/cutoff_0/cluster_W"),
    ],
)
def test_names_that_are_missing(prefix, old, new, message, monkeypatch):
    monkeypatch.setattr(transfo_xl_bundle, "_is_whole", lambda *_: True)
    path = with_ending(prefix, ".index")
    data = path.read_bytes()
    # Names that begin as the last one did are stored by their ends.
    old, new = (old, new) if old in data else (old[-6:], new[-6:])
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        open_original(prefix)


def test_variables_that_nobody_knows(prefix, monkeypatch):
    monkeypatch.setattr(transfo_xl_bundle, "_is_whole", lambda *_: True)
    path = with_ending(prefix, ".index")
    data = path.read_bytes()
    assert data.count(b"layer_1/ff") == 1
    path.write_bytes(data.replace(b"layer_1/ff", b"layer_9/ff"))
    with pytest.raises(CheckpointError, match="there are 3 layers"):
        open_original(prefix)


def test_one_block_many_times(prefix):
    path = with_ending(prefix, ".index")
    entries = {b"": b"\x08\x01"}
    table = transfo_xl_bundle_writer._table(entries)
    assert dict(transfo_xl_bundle._table(table)) == entries
    handle = bytes([0, len(transfo_xl_bundle_writer._block(entries))])
    block = transfo_xl_bundle_writer._block({b"a": handle, b"b": handle}) + b"\x00"
    start = len(table)
    data = table + block + transfo_xl_crc.masked_crc(block).to_bytes(4, "little")
    others = table[-48:-46]
    handles = others + transfo_xl_bundle_writer._number(start) + bytes([len(block) - 1])
    path.write_bytes(data + handles.ljust(40, b"\x00") + table[-8:])
    with pytest.raises(CheckpointError, match="blocks within each other"):
        Bundle(prefix)


def test_slices_and_other_machines(prefix):
    bundle = object.__new__(Bundle)
    bundle.path, bundle._shards = prefix, 1
    with pytest.raises(CheckpointError, match="big-endian"):
        bundle._header(b"\x08\x01\x10\x01")
    with pytest.raises(CheckpointError, match="in slices"):
        bundle._variable(b"x", b"\x08\x01\x3a\x00")
    assert bundle._variable(b"x", b"\x08\x07") is None  # strings


# -- what lies beside -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "must hold an object of flags"),
        ('{"memlen": 3}', "'memlen' is not one of mem_len, clamp_len"),
        ('{"mem_len": "long"}', "mem_len must be a number, got long"),
        ('{"mem_len": true}', "mem_len must be a number"),
        ('{"same_length": 1}', "same_length must be true or false"),
        ('{"dropout": 2}', "dropout must be a number from 0 to 1"),
        ('{"cutoffs": [1, "x"]}', "cutoffs must be a list of numbers"),
        ("[" * 100000, "cannot be read as JSON"),
    ],
)
def test_settings_that_are_wrong(tmp_path, text, message):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        given_flags(tmp_path)


def test_settings_that_describe_no_model(folder):
    (folder / "settings.json").write_text('{"cutoffs": [13, 6], "mem_len": 3}')
    refused(folder / "checkpoint.pt", "its settings describe no model: cutoffs must ascend")
    (folder / "settings.json").write_text('{"cutoffs": [6, 13], "mem_len": -3}')
    refused(folder / "checkpoint.pt", "mem_len must be 0 or a positive")


def test_endless_settings(tmp_path):
    with open(tmp_path / "settings.json", "wb") as file:
        file.truncate(2**32)
    with pytest.raises(CheckpointError, match="flags are few"):
        given_flags(tmp_path)


def test_widths_that_follow_no_rule(tmp_path):
    assert divisor(tmp_path, [1024, 256, 64, 16]) == 4
    with pytest.raises(CheckpointError, match="follow no div_val"):
        divisor(tmp_path, [12, 6, 5])


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"x" * 99, b"\x80\x02}q\x00."])
def test_vocabularies_that_are_damaged(tmp_path, content):
    (tmp_path / "cache.pkl").write_bytes(content)
    found = find_words(tmp_path, 23)
    assert not found.files
    assert re.match("no tokenizer is made of it: .*cache.pkl", found.notes[0])
