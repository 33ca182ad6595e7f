"""Loading, saving, dtypes, resizing, and how much memory loading takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from tf_models import randomised, tiny_config

from xlmfam.common.errors import CheckpointError, ConfigError, XlmfamError
from xlmfam.tf import AutoModel, AutoModelForCausalLM, TFAutoModel, XGLMForCausalLM, XGLMModel

IDS = np.array([[5, 6, 7], [8, 9, 4]])


@pytest.mark.parametrize("format", ["safetensors", "pt", "tf", "flax"])
def test_saved_and_loaded_bit_exactly_in_every_format(shared_model, tmp_path, format):
    shared_model.save_pretrained(tmp_path, format=format)
    loaded, info = XGLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == []
    for name, value in shared_model.to_canonical().items():
        np.testing.assert_array_equal(loaded.to_canonical()[name], value, err_msg=name)
    np.testing.assert_array_equal(loaded(IDS).logits, shared_model(IDS).logits)


def test_shards_and_auto_classes(shared_model, tmp_path):
    paths = shared_model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert sum(path.suffix == ".safetensors" for path in paths) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded(IDS).logits, shared_model(IDS).logits)
    assert isinstance(AutoModel.from_pretrained(tmp_path), XGLMModel)
    assert TFAutoModel is AutoModel


def test_head_and_base_load_into_each_other(tmp_path):
    head = randomised(XGLMForCausalLM(tiny_config(tie_word_embeddings=False)))
    head.save_pretrained(tmp_path / "head")
    base = XGLMModel.from_pretrained(tmp_path / "head")
    states = head(IDS, output_hidden_states=True).hidden_states[-1]
    np.testing.assert_array_equal(base(IDS).last_hidden_state, states)
    base.save_pretrained(tmp_path / "base")
    again, info = XGLMForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == ["lm_head.weight"]
    assert again.lm_head.kernel.shape == (12, 37)


@pytest.mark.parametrize("given", ["bfloat16", "float16", "auto", "mixed_bfloat16"])
def test_dtypes_of_loading(tmp_path, given):
    XGLMForCausalLM(tiny_config(), dtype="bfloat16").save_pretrained(tmp_path)
    model = XGLMForCausalLM.from_pretrained(tmp_path, torch_dtype=given)
    wanted = {"auto": "bfloat16", "mixed_bfloat16": "float32"}.get(given, given)
    assert {v.dtype for v in model.trainable_variables} == {wanted}
    assert XGLMForCausalLM.from_pretrained(tmp_path).variable_dtype == "float32"
    assert AutoModelForCausalLM.from_config(model.config, dtype=given if given != "auto" else None)


def test_framework_dtypes_are_understood():
    import ml_dtypes
    import tensorflow as tf

    for dtype in (tf.bfloat16, ml_dtypes.bfloat16, "bfloat16"):
        assert XGLMModel(tiny_config(), dtype=dtype).variable_dtype == "bfloat16"
    with pytest.raises(ConfigError, match="int8"):
        XGLMModel(tiny_config(), dtype="int8")


def test_what_does_not_fit_is_listed(shared_model, tmp_path):
    shared_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model.embed_tokens.weight is \(37, 12\)"):
        XGLMForCausalLM.from_pretrained(tmp_path, vocab_size=40)
    loaded = XGLMForCausalLM.from_pretrained(tmp_path, vocab_size=40, ignore_mismatched_sizes=True)
    assert loaded.get_input_embeddings().embeddings.shape == (40, 12)
    with pytest.raises(ConfigError, match="colour"):
        XGLMForCausalLM.from_pretrained(tmp_path, colour=1)
    with pytest.raises(ConfigError, match="XGLMConfig"):
        XGLMForCausalLM({"vocab_size": 5})


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_keeps_what_both_sizes_have(tied):
    model = randomised(XGLMForCausalLM(tiny_config(tie_word_embeddings=tied)))
    before, logits = model.to_canonical(), model(IDS).logits.numpy()
    model.generate(IDS, max_new_tokens=2, eos_token_id=None)
    model.resize_token_embeddings(41)
    assert model(IDS).logits.shape == (2, 3, 41)
    np.testing.assert_allclose(model(IDS).logits[:, :, :37], logits, atol=1e-5)
    for name, value in model.to_canonical().items():
        np.testing.assert_array_equal(value[: len(before[name])], before[name])
    assert model.generate(np.array([[40, 39]]), max_new_tokens=2, eos_token_id=None).shape == (1, 4)
    model.resize_token_embeddings(pad_to_multiple_of=8)
    assert model.config.vocab_size == 48
    model.resize_token_embeddings(37)
    np.testing.assert_array_equal(model(IDS).logits, logits)
    assert len(model.trainable_variables) == len(before)
    with pytest.raises(XlmfamError, match="positive"):
        model.resize_token_embeddings(-1)
    with pytest.raises(XlmfamError, match="pad_token_id"):
        model.resize_token_embeddings(1)  # would leave the padding token outside
    assert model.config.vocab_size == 37


def test_setting_the_embedding_moves_the_head_too(model):
    table = np.random.RandomState(4).normal(size=(37, 12)).astype("float32")
    model.set_input_embeddings(table)
    np.testing.assert_array_equal(model.get_input_embeddings().embeddings, table)
    hidden = model(IDS, output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(model(IDS).logits, hidden @ table.T, atol=1e-5)
    with pytest.raises(XlmfamError, match="shape"):
        model.set_input_embeddings(table[:5])


def test_variables_stand_where_the_table_says(shared_model):
    layer = shared_model.model.layers[0]
    assert layer.self_attn.q_proj.kernel.shape == (12, 12)
    assert layer.fc1.kernel.shape == (12, 20)
    assert shared_model.lm_head.kernel is None  # tied
    canonical = shared_model.to_canonical()
    np.testing.assert_array_equal(
        canonical["model.layers.0.fc1.weight"], layer.fc1.kernel.numpy().T
    )
    assert len(canonical) == len(shared_model.trainable_variables)


def test_initial_values_follow_the_table():
    keras.utils.set_random_seed(1)
    model = XGLMForCausalLM(tiny_config(vocab_size=3000, init_std=0.05))
    values = model.to_canonical()
    table = values["model.embed_tokens.weight"]
    assert not table[1].any()
    np.testing.assert_allclose(table.std(), 0.05, rtol=0.05)
    assert (values["model.layer_norm.weight"] == 1).all()
    assert not values["model.layers.0.fc1.bias"].any()


MEASURE = """
import resource, sys
import tensorflow as tf
from xlmfam.tf import XGLMForCausalLM, XGLMConfig
tf.zeros([4]) + 1
small = XGLMForCausalLM.from_pretrained(sys.argv[1])
import os
def now():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def peak():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if "VmHWM" in l)
open("/proc/self/clear_refs", "w").write("5")
before = now()
model = XGLMForCausalLM.from_pretrained(sys.argv[2])
print((peak() - before) / (4 * model.num_parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_loading_takes_little_more_than_the_model(shared_model, tmp_path):
    shared_model.save_pretrained(tmp_path / "small")
    sizes = {"vocab_size": 20000, "d_model": 512, "ffn_dim": 2048, "attention_heads": 8}
    XGLMForCausalLM(tiny_config(**sizes, num_layers=12)).save_pretrained(tmp_path / "large")
    folders = [str(tmp_path / "small"), str(tmp_path / "large")]
    command = [sys.executable, "-c", MEASURE, *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(result.stdout) <= 1.1, result.stdout
