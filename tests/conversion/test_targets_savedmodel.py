"""SavedModels: what is served equals what the models compute, text by text and step by step."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_checkpoints import make, make_config
from tolerances import MODEL

from xlmfam.common.errors import CheckpointError
from xlmfam.conversion import convert
from xlmfam.conversion.targets.keras_model import build

tf = pytest.importorskip("tensorflow")

RNG_IDS = (4, 50)
# Classes without a memory, and settings that make their signature another one.
READING = {
    "XLMWithLMHeadModel": {"n_langs": 3, "n_layers": 1},
    "XLMForMultipleChoice": {"n_langs": 1, "n_layers": 1},
    "XmodForSequenceClassification": {"num_hidden_layers": 1},
    "TransfoXLForSequenceClassification": {"mem_len": 0, "n_layer": 1},
}
DECODING = {
    "XGLMForCausalLM": {},
    "XLMWithLMHeadModel": {"causal": True, "n_langs": 1},
    "XmodForCausalLM": {"default_language": "de_DE"},
    "TransfoXLLMHeadModel": {},
}


def text(shape, seed=0):
    return np.random.default_rng(seed).integers(*RNG_IDS, shape).astype(np.int32)


def model_of(folder, head):
    import xlmfam.tf

    return getattr(xlmfam.tf, head).from_pretrained(folder)


def served(folder, tmp_path, head):
    convert(folder, tmp_path / "out", "savedmodel")
    return tf.saved_model.load(str(tmp_path / "out")).signatures


def assert_close(came, expected):
    came, expected = np.asarray(came), np.asarray(expected)
    assert came.shape == expected.shape
    assert np.max(np.abs(came - expected)) <= MODEL * np.max(np.abs(expected))


def call(signature, **arrays):
    return signature(**{name: tf.constant(value) for name, value in arrays.items()})


@pytest.mark.slow
@pytest.mark.parametrize("head", READING)
def test_texts_of_any_size(head, tmp_path):
    folder = make(tmp_path / "first", head, **READING[head])
    model, signatures = model_of(folder, head), served(folder, tmp_path, head)
    assert list(signatures) == ["serving_default"]
    for batch, length in ((2, 7), (3, 1)):
        rows = (batch, 2) if "Choice" in head else (batch,)
        inputs = {"input_ids": text((*rows, length))}
        mask = np.ones((*rows, length), np.int32)
        mask[0, ..., : length // 3] = 0
        if not head.startswith("Transfo"):
            inputs["attention_mask"] = mask
        if head.startswith("Xmod"):
            inputs["lang_ids"] = np.arange(batch, dtype=np.int32) % 3
        if READING[head].get("n_langs") == 3:
            inputs["langs"] = text((batch, length)) % 3
        expected = model(**inputs, return_dict=True)
        came = call(signatures["serving_default"], **inputs)
        assert "logits" in came
        for name, value in came.items():
            assert_close(value, expected[name])


def start(config, head, batch, total):
    """What is remembered before there is anything."""
    if head.startswith("Transfo"):
        zeros = np.zeros((config.mem_len, batch, config.d_model), np.float32)
        return {f"mems_{layer}": zeros for layer in range(config.n_layer)}
    heads = config.num_attention_heads
    room = config.max_position_embeddings if head.startswith("XLM") else 0
    zeros = np.zeros((batch, heads, room, config.hidden_size // heads), np.float32)
    layers = range(config.num_hidden_layers)
    found = {f"past_key_values_{i}_{part}": zeros for i in layers for part in ("key", "value")}
    return found | ({"past_length": np.int32(0)} if room else {})


@pytest.mark.slow
@pytest.mark.parametrize("head", DECODING)
def test_steps_give_what_the_whole_text_gives(head, tmp_path):
    folder = make(tmp_path / "first", head, **DECODING[head])
    model, signatures = model_of(folder, head), served(folder, tmp_path, head)
    ids = text((2, 9))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    config = model.config
    ids[mask == 0] = config.pad_token_id  # by which X-MOD counts
    languages = {"lang_ids": np.int32([0, 2])} if head.startswith("Xmod") else {}
    expected = model(input_ids=ids, attention_mask=mask, **languages, return_dict=True)
    whole = call(signatures["serving_default"], input_ids=ids, attention_mask=mask, **languages)
    (name,) = whole
    assert_close(whole[name][0], expected[name][0])
    memory, done, parts = start(config, head, 2, 9), 0, []
    for new in (4, 1, 3, 1):
        seen = mask[:, : done + new]
        if head.startswith("XLM"):  # which has a column for each place of its buffer
            seen = np.pad(seen, [(0, 0), (0, config.max_position_embeddings - done - new)])
        if head.startswith("Transfo"):
            seen = seen[:, done:]
        part = ids[:, done : done + new]
        out = call(signatures["decode"], input_ids=part, attention_mask=seen, **languages, **memory)
        parts.append(np.asarray(out.pop(name)))
        memory = {
            key.replace("present_length", "past_length")
            .replace("present", "past_key_values")
            .replace("new_mems", "mems"): value
            for key, value in out.items()
        }
        done += new
    came = np.concatenate(parts, 1)
    assert_close(came[0], expected[name][0])
    assert_close(came[1, 2:], np.asarray(expected[name])[1, 2:])


def test_dtypes_that_cannot_be_served(tmp_path):
    folder = make(tmp_path / "first")
    with pytest.raises(CheckpointError, match="not of float64"):
        convert(folder, tmp_path / "out", "savedmodel", dtype="float64")
    assert not (tmp_path / "out").exists()


def test_classes_that_are_not_there():
    with pytest.raises(CheckpointError, match=r"no class of xlmfam\.tf"):
        build(SimpleNamespace(head="XGLMForNothing"), None, "float32")


def test_config_and_files_lie_together(tmp_path):
    came = convert(make(tmp_path / "first"), tmp_path / "out", "savedmodel", dtype="bfloat16")
    assert {"saved_model.pb", "config.json", "generation_config.json"} <= set(came.files)
    assert make_config().model_type == came.family
