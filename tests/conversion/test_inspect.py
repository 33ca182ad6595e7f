"""Inspecting: everything from the headers, and problems as a list."""

from __future__ import annotations

import json

import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config

from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.conversion import inspect


@pytest.mark.parametrize("format", FORMATS)
def test_all_formats_say_the_same(tmp_path, format):
    if format == "pt":
        pytest.importorskip("torch")
    contents = inspect(make(tmp_path / "model", format=format))
    arrays = make_arrays(make_config())
    assert contents.ok
    assert (contents.family, contents.head, contents.format) == ("xglm", "XGLMForCausalLM", format)
    assert {t.name: t.shape for t in contents.tensors} == {n: a.shape for n, a in arrays.items()}
    assert {t.dtype for t in contents.tensors} == {"float32"}
    assert contents.parameters == sum(a.size for a in arrays.values())
    assert contents.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert contents.file == FORMATS[format].single
    assert json.loads(json.dumps(contents.to_dict()))["ok"] is True


def test_no_weights_are_read(tmp_path, monkeypatch):
    from xlmfam.common.checkpoints.safetensors_files import SafetensorsSource

    def refuse(self, name):
        raise AssertionError(name)

    monkeypatch.setattr(SafetensorsSource, "read", refuse)
    assert inspect(make(tmp_path / "model")).ok


def test_layer_after_layer(tmp_path):
    names = [tensor.name for tensor in inspect(make(tmp_path / "model")).tensors]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "model.layer_norm.bias"
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)


def test_problems_are_listed_not_raised(tmp_path):
    folder = make(tmp_path / "model")
    change_json(folder / "config.json", num_layers=3, ffn_dim=24)
    contents = inspect(folder)
    assert not contents.ok
    assert any("missing: model.layers.2" in problem for problem in contents.problems)
    assert any("misshapen" in problem for problem in contents.problems)
    assert len(contents.tensors) == 35
    assert "PROBLEM" in str(contents)


def test_sharded(tmp_path):
    contents = inspect(make(tmp_path / "model", tie_word_embeddings=False))
    assert contents.ties == {}
    from xlmfam.conversion import convert

    convert(tmp_path / "model", tmp_path / "split", max_shard_size="2KB")
    assert inspect(tmp_path / "split").file == "model.safetensors.index.json"
    assert inspect(tmp_path / "split").parameters == contents.parameters
