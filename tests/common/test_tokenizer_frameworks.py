"""``return_tensors`` in the three frameworks."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlmfam.common.tokenizers import BatchEncoding, XGLMTokenizer, XGLMTokenizerFast

MODEL = Path(__file__).resolve().parents[1] / "data/tokenizers/xglm/sentencepiece.bpe.model"


@pytest.fixture(params=[XGLMTokenizer, XGLMTokenizerFast])
def tokenizer(request):
    return request.param(MODEL)


def test_torch(tokenizer):
    torch = pytest.importorskip("torch")
    batch = tokenizer(["the river", "the"], padding=True, return_tensors="pt")
    assert batch.input_ids.dtype == torch.int64
    assert batch.to("cpu") is batch
    assert batch.to("meta").input_ids.device.type == "meta"
    batch = tokenizer(["the river", "the"], padding=True, return_tensors="pt")
    padded = tokenizer.pad({"input_ids": [torch.tensor([5, 6]), torch.tensor([7])]})
    assert torch.is_tensor(padded["input_ids"])
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)[1] == "the"
    assert torch.is_tensor(tokenizer.encode("the", return_tensors="pt"))
    assert torch.is_tensor(BatchEncoding({"a": [1]}).convert_to_tensors("pt", True)["a"])


def test_tensorflow(tokenizer):
    pytest.importorskip("torch")  # before TensorFlow: the other order clashes
    tf = pytest.importorskip("tensorflow")
    batch = tokenizer(["the river", "the"], padding=True, return_tensors="tf")
    assert batch.input_ids.dtype == tf.int32
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)[1] == "the"
    padded = tokenizer.pad({"input_ids": tf.constant([[5, 6]])}, padding="max_length", max_length=3)
    assert padded["input_ids"].numpy().tolist() == [[5, 6, 1]]


def test_jax(tokenizer):
    jax = pytest.importorskip("jax")
    batch = tokenizer(["the river", "the"], padding=True, return_tensors="jax")
    assert isinstance(batch.input_ids, jax.Array)
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)[1] == "the"
    assert isinstance(tokenizer.pad(batch)["input_ids"], jax.Array)
