"""Languages of an X-MOD folder that come and go, without a framework."""

import numpy as np
import pytest
from tiny_checkpoints import make

from xlmfam import AutoConfig
from xlmfam.common.checkpoints.files import open_checkpoint
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.conversion import change_languages

HEAD = "XmodForMaskedLM"
ADAPTER = "roberta.encoder.layer.1.output.adapter_modules"


def tensors(folder):
    source = open_checkpoint(folder)
    try:
        return {name: np.array(source.read(name)) for name in source.specs()}
    finally:
        source.close()


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "source", HEAD, default_language="de_DE")
    return tmp_path / "source"


@pytest.mark.parametrize("init_from", ["random", "mean", "sw_KE"])
def test_adding(folder, tmp_path, init_from):
    change_languages(folder, tmp_path / "new", add=["fr_XX"], init_from=init_from)
    before, after = tensors(folder), tensors(tmp_path / "new")
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    new = {name for name in after if ".fr_XX." in name}
    assert set(after) - set(before) == new
    assert len(new) == 2 * 4
    weight, bias = (after[f"{ADAPTER}.fr_XX.dense1.{leaf}"] for leaf in ("weight", "bias"))
    others = [before[f"{ADAPTER}.{code}.dense1.weight"] for code in ("en_XX", "de_DE", "sw_KE")]
    if init_from == "random":
        assert 0.01 < weight.std() < 0.03
        assert not bias.any()
    elif init_from == "mean":
        np.testing.assert_allclose(weight, np.mean(others, 0), rtol=1e-6)
    else:
        assert np.array_equal(weight, others[2])
    config = AutoConfig.from_pretrained(tmp_path / "new")
    assert config.languages == ["en_XX", "de_DE", "sw_KE", "fr_XX"]
    assert config.default_language == "de_DE"


def test_random_beginnings_can_be_repeated(folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        change_languages(folder, tmp_path / name, add=["fr_XX"], seed=seed)
    one, same, other = (tensors(tmp_path / name) for name in "abc")
    name = f"{ADAPTER}.fr_XX.dense1.weight"
    assert np.array_equal(one[name], same[name])
    assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one[name], one[name.replace("layer.1", "layer.0")])


def test_removing(folder, tmp_path):
    change_languages(folder, tmp_path / "new", remove=["de_DE"])
    before, after = tensors(folder), tensors(tmp_path / "new")
    assert set(after) == {name for name in before if ".de_DE." not in name}
    assert all(np.array_equal(value, before[name]) for name, value in after.items())
    config = AutoConfig.from_pretrained(tmp_path / "new")
    assert config.languages == ["en_XX", "sw_KE"]
    assert config.default_language is None


def test_what_cannot_be_leaves_nothing(folder, tmp_path):
    with pytest.raises(XlmfamError, match="there is a language 'de_DE' already"):
        change_languages(folder, tmp_path / "new", add=["de_DE"])
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows en_XX"):
        change_languages(folder, tmp_path / "new", remove=["xx"])
    with pytest.raises(XlmfamError, match="init_from must be one of random, mean or a language"):
        change_languages(folder, tmp_path / "new", add=["fr_XX"], init_from="it_IT")
    make(tmp_path / "xglm")
    with pytest.raises(CheckpointError, match="is no X-MOD checkpoint but xglm"):
        change_languages(tmp_path / "xglm", tmp_path / "new", add=["fr_XX"])
    assert not (tmp_path / "new").exists()
