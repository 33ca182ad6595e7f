"""ONNX: ONNX Runtime computes what PyTorch does, text by text and step by step."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_checkpoints import make, make_arrays, make_config, save
from tolerances import MODEL

from xlmfam.common.errors import CheckpointError, MissingPackageError
from xlmfam.common.parameters import TABLES, table_of
from xlmfam.conversion import convert
from xlmfam.conversion.targets import onnx as target
from xlmfam.conversion.targets.signatures import signature_of

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

STEPS = (4, 1, 3, 1)
LENGTH = sum(STEPS)
DECODING = {
    "XGLMForCausalLM": {},
    "XLMWithLMHeadModel": {"causal": True, "n_langs": 1},
    "XmodForCausalLM": {"num_hidden_layers": 1},
    "TransfoXLLMHeadModel": {"n_layer": 1, "cutoffs": [23]},
}
READING = {
    "XLMForSequenceClassification": {"n_langs": 3, "n_layers": 1},
    "XmodForTokenClassification": {"num_hidden_layers": 1},
}


def text(shape, seed=0):
    return np.random.default_rng(seed).integers(4, 50, shape)


def exported(tmp_path, head, settings):
    """A session of the exported model, and the PyTorch model."""
    import xlmfam.pt

    folder = make(tmp_path / "first", head, **settings)
    convert(folder, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    return session, getattr(xlmfam.pt, head).from_pretrained(folder)


def run(session, **arrays):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def call(model, **arrays):
    with torch.no_grad():
        return model(**{k: torch.from_numpy(v) for k, v in arrays.items()}, return_dict=True)


def assert_close(came, expected):
    came, expected = np.asarray(came), np.asarray(expected)
    assert came.shape == expected.shape
    assert np.max(np.abs(came - expected)) <= MODEL * np.max(np.abs(expected))


def start(config, head):
    if head.startswith("Transfo"):
        zeros = np.zeros((config.mem_len, 2, config.d_model), np.float32)
        return {f"mems.{layer}": zeros for layer in range(config.n_layer)}
    heads = config.num_attention_heads
    nothing = np.zeros((2, heads, 0, config.hidden_size // heads), np.float32)
    layers = range(config.num_hidden_layers)
    return {f"past_key_values.{i}.{part}": nothing for i in layers for part in ("key", "value")}


@pytest.mark.slow
@pytest.mark.parametrize("head", DECODING)
def test_steps_give_what_the_whole_text_gives(head, tmp_path):
    session, model = exported(tmp_path, head, DECODING[head])
    ids = text((2, LENGTH))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    ids[mask == 0] = model.config.pad_token_id  # by which X-MOD counts
    languages = {"lang_ids": np.array([0, 2])} if head.startswith("Xmod") else {}
    output = call(model, input_ids=ids, attention_mask=mask, **languages)
    name = next(iter(run_names(session)))
    memory, done, parts = start(model.config, head), 0, []
    whole = run(session, input_ids=ids, attention_mask=mask, **languages, **memory)
    for new in STEPS:
        seen = mask[:, done : done + new] if "mems.0" in memory else mask[:, : done + new]
        part = ids[:, done : done + new]
        out = run(session, input_ids=part, attention_mask=seen, **languages, **memory)
        parts.append(out.pop(name))
        memory = {
            key.replace("present", "past_key_values").replace("new_mems", "mems"): value
            for key, value in out.items()
        }
        done += new
    expected = output[name].numpy()
    for came in (whole[name], np.concatenate(parts, 1)):
        assert_close(came[0], expected[0])
        assert_close(came[1, 2:], expected[1, 2:])


def run_names(session):
    return [output.name for output in session.get_outputs()]


@pytest.mark.slow
@pytest.mark.parametrize("head", READING)
def test_texts_of_any_size(head, tmp_path):
    session, model = exported(tmp_path, head, READING[head])
    for batch, length in ((1, 1), (3, 8)):
        inputs = {"input_ids": text((batch, length))}
        mask = np.ones((batch, length), np.int64)
        mask[-1, : length // 3] = 0
        inputs["attention_mask"] = mask
        if head.startswith("Xmod"):
            inputs["lang_ids"] = np.arange(batch) % 3
        elif head.startswith("XLM"):
            inputs["langs"] = text((batch, length), 1) % 3
        assert_close(run(session, **inputs)["logits"], call(model, **inputs).logits)


@pytest.mark.slow
def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "MOST_BYTES_INSIDE", 1000)
    size = (1 << 18) // 12 + 1  # what the exporter would otherwise store transposed as well
    settings = {"num_layers": 1, "vocab_size": size}
    session, model = exported(tmp_path, "XGLMForCausalLM", settings)
    beside = (tmp_path / "out" / "model.onnx.data").stat().st_size
    every = 4 * model.num_parameters()
    assert 0.99 * every < beside < 1.01 * every
    assert onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    named = {dimension for each in session.get_inputs() for dimension in each.shape}
    assert {"past", "batch", "length", "total"} <= named


def test_other_results_are_found_out(tmp_path, monkeypatch):
    def export(graph, path, dtype, shortest):
        del dtype, shortest
        path.write_bytes(b"")

    class Session:
        def __init__(self, *args, **kwargs):
            pass

        def run(self, names, inputs):
            with torch.no_grad():
                batch, length = inputs["input_ids"].shape
            return [np.zeros((batch, length, 61), np.float32) for _ in names]

    monkeypatch.setattr(target, "export", export)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(CheckpointError, match="computes other logits than PyTorch"):
        convert(make(tmp_path / "first"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "torch"])
def test_missing_packages_are_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"'{package}'.*" + re.escape("xlmfam[onnx]")):
        convert(make(tmp_path / "first"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written(tmp_path):
    from xlmfam.conversion.targets.torch_graph import build

    with pytest.raises(CheckpointError, match="float32 or float16, not in bfloat16"):
        convert(make(tmp_path / "first"), tmp_path / "out", "onnx", dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"no class of xlmfam\.pt"):
        build(SimpleNamespace(head="XGLMForNothing"), np.dtype(np.float32))


CLASSES = [head for family in TABLES for head in (table_of(family).base, *table_of(family).heads)]


@pytest.mark.parametrize("head", CLASSES)
def test_graphs_are_the_models(head, tmp_path):
    """What is handed to the exporter computes what the model does; that it exports takes long."""
    import xlmfam.pt
    from xlmfam.conversion.convert import checked_reader
    from xlmfam.conversion.sources import recognise
    from xlmfam.conversion.targets import Work
    from xlmfam.conversion.targets.torch_graph import Graph, build

    config = make_config(head)
    folder = save(tmp_path / "first", make_arrays(config, head), config, head)
    signature = signature_of(config, head)
    sizes = {"batch": 2, "choices": 3, "length": 7, "past": 0, "total": 7, "target": 5, "source": 4}
    inputs, memory = (
        target.examples(each, sizes, config, np.dtype(np.float32), padded=False)
        for each in (signature.inputs, signature.memory)
    )
    with recognise(folder) as checkpoint:
        work = Work(config, head, checked_reader(checkpoint, None), tmp_path, {})
        graph = Graph(build(work, np.dtype(np.float32)), signature)
    with torch.no_grad():
        came = graph.named(*([torch.from_numpy(a) for a in group] for group in (inputs, memory)))
    named = dict(zip([each.name for each in signature.inputs], inputs, strict=True))
    if signature.memory_argument == "mems":
        named["mems"] = memory
    model = getattr(xlmfam.pt, head).from_pretrained(folder)
    arguments = {
        name: [torch.from_numpy(a) for a in value] if name == "mems" else torch.from_numpy(value)
        for name, value in named.items()
    }
    with torch.no_grad():
        expected = model(**arguments, return_dict=True)
    tensors = {name: value for name, value in expected.items() if torch.is_tensor(value)}
    assert len(came) == len(tensors) + len(signature.memory)
    for name, value in tensors.items():
        assert_close(came[name], value)
