"""Files as older releases wrote them: other names, more names, and dtypes tensor by tensor."""

from __future__ import annotations

from itertools import pairwise

import h5py
import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import make_arrays, make_config, save

from xlmfam.common.checkpoints.files import save_checkpoint
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import Kind, table_of
from xlmfam.common.positions import interleaved_sinusoids
from xlmfam.conversion import checksum, convert, diff, inspect
from xlmfam.conversion.runners import installed_backends

HEADS = ("XGLMForCausalLM", "XLMWithLMHeadModel", "XmodForMaskedLM", "TransfoXLLMHeadModel")
BASES = ("XGLMModel", "XLMModel", "XmodModel", "TransfoXLModel")
needs_torch = pytest.mark.skipif("pt" not in installed_backends(), reason="needs torch")
FORMATS = ["safetensors", pytest.param("pt", marks=needs_torch)]
EXTRA = {
    "XGLMForCausalLM": {
        "model.embed_positions.weights": np.ones((34, 12), np.float32),
        "model.embed_positions._float_tensor": np.ones(1, np.float32),
    },
    "XLMWithLMHeadModel": {"transformer.position_ids": np.arange(31)[None]},
    "XmodForMaskedLM": {"roberta.embeddings.position_ids": np.arange(31)[None]},
    "TransfoXLLMHeadModel": {"transformer.pos_emb.inv_freq": np.ones(9, np.float32)},
}


def write(folder, arrays, config, head, format="safetensors"):
    """A checkpoint with just these names."""
    config.architectures = [head]
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
    save_checkpoint(folder, specs, arrays.__getitem__, format=format, architecture=head)
    config.save_pretrained(folder)
    return folder


def with_old_norms(arrays, config, head):
    """The same with layer norms that are called as they were before 2019."""
    old = {Kind.NORM_SCALE: "gamma", Kind.NORM_SHIFT: "beta"}
    found = {}
    for name, parameter in table_of(config.model_type).expand(config, head).items():
        if name in arrays:
            leaf = old.get(parameter.kind, name.rpartition(".")[2])
            found[f"{name.rpartition('.')[0]}.{leaf}"] = arrays[name]
    assert sum(name.endswith((".gamma", ".beta")) for name in found) >= 8
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head", [*HEADS, *BASES])
def test_norms_called_gamma_and_beta(tmp_path, head, format):
    config = make_config(head)
    arrays = make_arrays(config, head)
    new = save(tmp_path / "new", arrays, config, head)
    old = write(tmp_path / "old", with_old_norms(arrays, config, head), config, head, format)
    assert checksum(old) == checksum(new)
    assert inspect(old).ok
    convert(old, tmp_path / "converted", "flax")
    assert diff(tmp_path / "converted", new).ok


@pytest.mark.parametrize("head", HEADS)
def test_norms_with_names_of_both_kinds(tmp_path, head):
    config = make_config(head)
    arrays = make_arrays(config, head)
    both = {**arrays, **with_old_norms(arrays, config, head)}
    with pytest.raises(CheckpointError, match="ambiguous"):
        convert(write(tmp_path / "old", both, config, head), tmp_path / "target")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head", HEADS)
def test_what_is_stored_and_not_needed(tmp_path, head, format):
    config = make_config(head)
    arrays = make_arrays(config, head)
    old = write(tmp_path / "old", {**arrays, **EXTRA[head]}, config, head, format)
    report = convert(old, tmp_path / "converted", "tf")
    assert report.dropped.keys() == EXTRA[head].keys()
    assert all("not stored" in reason or "nothing" in reason for reason in report.dropped.values())
    assert diff(tmp_path / "converted", save(tmp_path / "new", arrays, config, head)).ok


@pytest.mark.parametrize("format", ["safetensors", "flax"])
@pytest.mark.parametrize(("head", "base"), list(zip(HEADS, BASES, strict=True)))
def test_the_prefix_of_a_base(tmp_path, head, base, format):
    """A base's file may have the names of a model with a head, and the other way round."""
    config = make_config(base)
    arrays = make_arrays(config, base)
    table = table_of(config.model_type)
    long = {p.full_name: arrays[n] for n, p in table.expand(config, base).items() if n in arrays}
    assert long.keys() & arrays.keys() == set()
    one = write(tmp_path / "long", long, config, base)
    other = write(tmp_path / "short", arrays, config, base)
    assert checksum(one) == checksum(other)
    convert(one, tmp_path / "target", format)
    assert diff(tmp_path / "target", other).ok
    # A model's own file is read as its base, without what belongs to the head.
    whole = make_arrays(config, head)
    pooled = {name: array for name, array in long.items() if name not in whole}
    made = save(tmp_path / "whole", whole, config, head)
    if not pooled:
        convert(made, tmp_path / "base", format, head=base)
        assert diff(tmp_path / "base", made, weights_only=True, heads=(None, base)).ok


@pytest.mark.parametrize("head", ["XGLMForCausalLM", "XLMWithLMHeadModel", "XmodForMaskedLM"])
def test_shared_weights_under_either_name(tmp_path, head):
    config = make_config(head)
    arrays = make_arrays(config, head)
    expanded = table_of(config.model_type).expand(config, head).values()
    tied = {p.name: p.tied_to for p in expanded if p.tied_to is not None}
    new = save(tmp_path / "new", arrays, config, head)
    both = {**arrays, **{name: arrays[origin] for name, origin in tied.items()}}
    old = write(tmp_path / "both", both, config, head)
    assert checksum(old) == checksum(new)
    report = convert(old, tmp_path / "target")
    assert set(report.dropped) == set(tied)
    assert report.warnings == []
    alone = {name: array for name, array in both.items() if name not in tied.values()}
    assert checksum(write(tmp_path / "alone", alone, config, head)) == checksum(new)


def test_stored_sinusoids_of_xlm(tmp_path):
    """They are parameters there, and are carried as they are."""
    head = "XLMWithLMHeadModel"
    config = make_config(head, sinusoidal_embeddings=True)
    arrays = make_arrays(config, head)
    name = "transformer.position_embeddings.weight"
    np.testing.assert_array_equal(arrays[name], interleaved_sinusoids(31, 20))
    arrays[name] = arrays[name] + np.float32(0.01)
    source = save(tmp_path / "source", arrays, config, head)
    convert(source, tmp_path / "target", "tf")
    assert diff(source, tmp_path / "target").ok


# ---- dtypes ---------------------------------------------------------------------------------

KINDS = (np.float32, np.float16, ml_dtypes.bfloat16)
# Every format to every other.
ROUTE = ["safetensors", "tf", "safetensors", "flax", "safetensors", "pt", "tf", "flax", "tf"]
ROUTE += ["pt", "flax", "pt", "safetensors"]


@needs_torch
@pytest.mark.parametrize("head", HEADS)
def test_every_tensor_keeps_its_dtype(tmp_path, head):
    config = make_config(head)
    arrays = {
        name: array.astype(KINDS[number % 3])
        for number, (name, array) in enumerate(make_arrays(config, head).items())
    }
    assert len(set(pairwise(ROUTE))) == 12
    folder = first = save(tmp_path / "0", arrays, config, head, ROUTE[0])
    for number, to in enumerate(ROUTE[1:], start=1):
        report = convert(folder, tmp_path / str(number), to)
        assert report.cast == 0
        assert report.dtypes.keys() == {"float32", "float16", "bfloat16"}
        folder = report.target
        difference = diff(first, folder)
        assert difference.ok
        assert all(tensor.identical for tensor in difference.tensors)


# ---- tf_model.h5 ----------------------------------------------------------------------------


def rewrite(path, instance, root, text):
    """The same weights as another Keras 2 called the model, with other names above them."""
    with h5py.File(path) as file:
        layers = {
            layer.decode(): {
                name.decode(): file[layer.decode()][name.decode()][...]
                for name in file[layer.decode()].attrs["weight_names"]
            }
            for layer in file.attrs["layer_names"]
        }
    path.unlink()
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        top.attrs["layer_names"] = text(layers)
        for layer, weights in layers.items():
            names = {f"{instance}{name.partition('/')[2]}": name for name in weights}
            group = top.create_group(layer)
            group.attrs["weight_names"] = text(names)
            for name, before in names.items():
                group[name] = weights[before]


def as_bytes(names):
    return [name.encode() for name in names]


def as_fixed(names):
    return np.array(as_bytes(names)) if names else np.array([])


@pytest.mark.parametrize(
    ("instance", "root", "text"),
    [
        ("tf_model_of_another_name_7/", "", as_bytes),
        ("tf_model/", "model_weights", as_fixed),
        ("", "", as_fixed),
    ],
)
@pytest.mark.parametrize("head", HEADS)
def test_names_of_other_kerases(tmp_path, head, instance, root, text):
    config = make_config(head)
    arrays = make_arrays(config, head)
    new = save(tmp_path / "new", arrays, config, head)
    old = save(tmp_path / "old", arrays, config, head, "tf")
    rewrite(old / "tf_model.h5", instance, root, text)
    assert checksum(old) == checksum(new)
    convert(old, tmp_path / "target")
    assert diff(new, tmp_path / "target").ok
