"""diff: equal checkpoints in every pair of formats, and every way in which two may differ."""

from __future__ import annotations

import json
import math
import sys

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam.cli.main import main
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.conversion import convert, diff
from xlmfam.conversion import inspect as inspect_checkpoint  # the four are one API
from xlmfam.conversion import verify as verify_checkpoint

LM = "XGLMForCausalLM"
HEADS = (LM, "XLMWithLMHeadModel", "XmodForMaskedLM", "TransfoXLLMHeadModel")
FC1 = "model.layers.1.fc1.weight"
EMBEDDING = "model.embed_tokens.weight"

assert callable(inspect_checkpoint)
assert callable(verify_checkpoint)


@pytest.fixture(scope="module", params=HEADS)
def formats(request, tmp_path_factory):
    """A checkpoint in every format."""
    folder = tmp_path_factory.mktemp("formats")
    return {
        form: make(folder / form, request.param, form)
        for form in ("safetensors", "tf", "flax", "pt")
    }


@pytest.fixture
def changed(tmp_path):
    """Saves a checkpoint of which one tensor is changed."""

    def call(change, name=FC1, format="safetensors", **settings):
        config = make_config(LM, **settings)
        arrays = make_arrays(config, LM)
        arrays[name] = change(arrays[name])
        return save(tmp_path / "changed", arrays, config, LM, format)

    return call


@pytest.fixture
def whole(tmp_path):
    return make(tmp_path / "whole")


def only(difference):
    """The one tensor that is not equal."""
    (tensor,) = difference.differing()
    return tensor


@pytest.mark.parametrize("other", ["tf", "flax", "pt"])
def test_equal_in_every_format(formats, other):
    if other == "pt":
        pytest.importorskip("torch")
    difference = diff(formats["safetensors"], formats[other])
    assert difference.ok
    assert difference.formats == ("safetensors", other)
    assert difference.config == {}
    assert all(t.identical and t.status == "equal" for t in difference.tensors)
    assert len(difference.tensors) > 30
    assert str(difference).count("\n") == 2


def test_two_formats_that_both_are_transposed(formats):
    assert diff(formats["tf"], formats["flax"]).ok


@pytest.mark.parametrize("format", ["safetensors", "flax", "tf"])
@pytest.mark.parametrize("block", [2**20, 7])
def test_one_value(whole, changed, monkeypatch, format, block):
    monkeypatch.setattr(sys.modules["xlmfam.conversion.diff"], "_BLOCK", block)

    def change(array):
        array = array.copy()
        array[-1, -2] += 0.25
        return array

    folder = changed(change, format=format)
    tensor = only(diff(whole, folder))
    assert (tensor.name, tensor.status, tensor.differing) == (FC1, "differs", 1)
    assert tensor.shapes == ((20, 12), (20, 12))
    assert tensor.largest == pytest.approx(0.25, rel=1e-6)
    arrays = make_arrays(make_config(), LM)[FC1]
    assert tensor.relative == pytest.approx(0.25 / np.abs([arrays, change(arrays)]).max(), rel=1e-6)
    assert diff(whole, folder, tolerance=tensor.relative).ok
    assert not diff(whole, folder, tolerance=0.99 * tensor.relative).ok


@pytest.mark.parametrize("other", ["safetensors", "flax"])
def test_nothing_large_is_held(tmp_path, monkeypatch, other):
    """No tensor is read as a whole, not even one that lies the other way round."""
    import tracemalloc

    from xlmfam.conversion import streaming

    config = make_config(vocab_size=100_003, tie_word_embeddings=False)
    arrays = make_arrays(config)
    size = arrays[EMBEDDING].nbytes
    one = save(tmp_path / "one", arrays, config)
    two = save(tmp_path / "two", arrays, config, format=other)
    monkeypatch.setattr(sys.modules["xlmfam.conversion.diff"], "_BLOCK", 2**13)
    monkeypatch.setattr(streaming, "BYTES_PER_BLOCK", 2**14)
    monkeypatch.setattr(streaming, "BYTES_PER_STRIP", 2**18)
    del arrays
    tracemalloc.start()
    assert diff(one, two).ok
    assert tracemalloc.get_traced_memory()[1] < size / 2
    tracemalloc.stop()


def test_not_a_number_and_infinite(whole, changed, tmp_path):
    def spoil(array):
        array = array.copy()
        array[0, :3] = np.nan
        array[1, 1] = -np.inf
        return array

    folder = changed(spoil)
    tensor = only(diff(whole, folder, tolerance=1e9))
    assert (tensor.nan, tensor.infinite, tensor.differing) == ((0, 3), (0, 1), 4)
    assert math.isnan(tensor.largest)
    assert math.isnan(tensor.relative)
    assert math.isnan(diff(whole, folder).largest)
    assert "0, 0 / 3, 1" in str(diff(whole, folder))
    # The same ones on both sides are equal, and seen all the same.
    convert(folder, tmp_path / "copy", "flax")
    same = diff(folder, tmp_path / "copy")
    assert same.ok
    assert "3, 1" in str(same)


def test_values_that_are_the_same_in_other_bytes(whole, changed, tmp_path):
    folder = changed(lambda array: np.where(np.arange(20)[:, None] == 3, -0.0, array))
    other = make_arrays(make_config())
    other[FC1] = np.where(np.arange(20)[:, None] == 3, 0.0, other[FC1]).astype(np.float32)
    save(tmp_path / "other", {**other, FC1: other[FC1]}, make_config())
    difference = diff(folder, tmp_path / "other")
    (tensor,) = [t for t in difference.tensors if not t.identical]
    assert tensor.name == FC1
    assert tensor.differing == 0
    assert FC1 in str(difference)


def test_dtypes(whole, changed):
    halves = changed(lambda array: array.astype(ml_dtypes.bfloat16))
    tensor = only(diff(whole, halves))
    assert tensor.dtypes == ("float32", "bfloat16")
    assert 0 < tensor.relative < 2**-8
    assert diff(whole, halves, tolerance=2**-8).ok


def test_a_dtype_alone(changed, tmp_path):
    halves = changed(lambda array: np.round(array, 1).astype(np.float16))
    arrays = make_arrays(make_config())
    arrays[FC1] = np.round(arrays[FC1], 1).astype(np.float16).astype(np.float32)
    tensor = only(diff(halves, save(tmp_path / "wide", arrays, make_config())))
    assert (tensor.status, tensor.differing, tensor.largest) == ("dtype", 0, 0)
    assert diff(halves, tmp_path / "wide", tolerance=1e-9).ok


def test_shapes_and_settings(whole, tmp_path):
    other = make(tmp_path / "other", ffn_dim=22)
    difference = diff(whole, other)
    assert difference.config == {"ffn_dim": (20, 22)}
    shapes = {t.name: t.shapes for t in difference.tensors if t.status == "shape"}
    assert shapes[FC1] == ((20, 12), (22, 12))
    assert [t.status for t in difference.tensors[:6]] == ["shape"] * 6
    change_json(other / "config.json", ffn_dim=20, activation_function="relu")
    with pytest.raises(CheckpointError, match="misshapen"):
        diff(other, make(tmp_path / "flax", format="flax"))
    # Names that are spelled alike are compared all the same.
    assert not diff(whole, other).ok


def test_a_setting_alone(whole, tmp_path):
    other = make(tmp_path / "other", activation_function="relu")
    assert not diff(whole, other).ok
    assert diff(whole, other).config == {"activation_function": ("gelu", "relu")}
    assert diff(whole, other, weights_only=True).ok
    assert "activation_function is 'gelu' / 'relu'" in str(diff(whole, other))


def test_what_only_one_has(whole, tmp_path):
    other = make(tmp_path / "other", num_layers=3)
    difference = diff(whole, other)
    assert difference.config == {"num_layers": (2, 3)}
    extra = [t for t in difference.tensors if t.status == "only in B"]
    assert len(extra) == 16
    assert all(t.name.startswith("model.layers.2.") for t in extra)
    assert difference.tensors[0].status == "only in B"
    assert [t.status for t in diff(other, whole).tensors[:17]] == 16 * ["only in A"] + ["differs"]


def test_shared_in_one_and_stored_in_the_other(whole, tmp_path):
    config = make_config(tie_word_embeddings=False)
    arrays = {**make_arrays(make_config()), "lm_head.weight": make_arrays(make_config())[EMBEDDING]}
    other = save(tmp_path / "other", arrays, config)
    assert diff(whole, other, weights_only=True).ok
    assert diff(whole, other).config == {"tie_word_embeddings": (True, False)}
    arrays["lm_head.weight"] = 2 * arrays["lm_head.weight"]
    save(other, arrays, config)
    assert only(diff(whole, other)).name == "lm_head.weight"
    assert only(diff(other, whole)).name == "lm_head.weight"


def test_a_base_and_a_head(whole, tmp_path):
    arrays = {n.removeprefix("model."): a for n, a in make_arrays(make_config()).items()}
    base = save(tmp_path / "base", arrays, make_config(), "XGLMModel", "flax")
    assert diff(whole, base).config == {"class": (LM, "XGLMModel")}
    assert diff(whole, base, weights_only=True).ok
    assert diff(whole, base, heads=(None, LM)).ok


def test_formats_of_one_folder(whole, tmp_path):
    make(tmp_path / "other", seed=5, format="flax")
    (whole / "flax_model.msgpack").write_bytes(
        (tmp_path / "other" / "flax_model.msgpack").read_bytes()
    )
    assert not diff(whole, whole, formats=("safetensors", "flax")).ok
    assert diff(whole, tmp_path / "other", formats=("flax", None)).ok


def test_of_other_families(whole, tmp_path):
    other = make(tmp_path / "other", "XLMWithLMHeadModel")
    difference = diff(whole, other)
    assert difference.config["model_type"] == ("xglm", "xlm")
    assert {t.status for t in difference.tensors} == {"only in A", "only in B"}


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_a_tolerance_that_is_none(whole, tolerance):
    with pytest.raises(XlmfamError, match="tolerance"):
        diff(whole, whole, tolerance=tolerance)


def test_the_command(whole, changed, capsys, tmp_path):
    folder = changed(lambda array: array + np.float32(1e-4))
    assert main(["diff", str(whole), str(whole)]) == 0
    assert "equal: 35 of 35 tensors agree" in capsys.readouterr().out
    assert main(["diff", str(whole), str(folder)]) == 1
    assert f"{FC1}  differs" in capsys.readouterr().out
    assert main(["diff", str(whole), str(folder), "--tolerance", "1e-3"]) == 0
    capsys.readouterr()
    assert main(["diff", str(whole), str(folder), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["ok"], data["tensors"][0]["name"]) == (False, FC1)
    assert main(["diff", str(whole), str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_json_of_what_is_no_number(whole, changed, capsys):
    folder = changed(lambda array: np.full_like(array, np.nan))
    assert main(["diff", str(whole), str(folder), "--json"]) == 1
    data = json.loads(capsys.readouterr().out, parse_constant=lambda name: 1 / 0)
    assert data["tensors"][0]["largest"] == "nan"
