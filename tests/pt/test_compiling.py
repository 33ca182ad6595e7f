"""torch.compile, torch.export, autocast, half precision, gradient checkpointing."""

import pytest
import torch
from tolerances import MODEL


def error(came, expected):
    return ((came - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("inductor", marks=pytest.mark.slow)],
)
def test_compile_without_graph_breaks(make, left_padded, backend):
    model = make()
    labels = left_padded["input_ids"].masked_fill(left_padded["attention_mask"] == 0, -100)
    expected = model(**left_padded, labels=labels, output_hidden_states=True)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    output = compiled(**left_padded, labels=labels, output_hidden_states=True)
    assert type(output) is type(expected)
    assert error(output.logits, expected.logits) < MODEL
    assert error(output.loss, expected.loss) < MODEL
    assert len(output.hidden_states) == len(expected.hidden_states)


def test_compile_with_everything(make, ids):
    model = make(add_cross_attention=True)
    inputs = {
        "inputs_embeds": torch.randn(2, 7, 24),
        "position_ids": torch.arange(7)[None],
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "encoder_attention_mask": torch.ones(2, 5, dtype=torch.long),
        "head_mask": torch.rand(2, 4),
        "cross_attn_head_mask": torch.rand(2, 4),
        "output_attentions": True,
        "use_cache": True,
    }
    expected = model(**inputs)
    output = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    assert error(output.logits, expected.logits) < MODEL
    assert error(output.cross_attentions[1], expected.cross_attentions[1]) < MODEL
    past = expected.past_key_values
    assert error(output.past_key_values[1][3], past[1][3]) < MODEL


def test_compile_a_step_on_a_cache_of_tuples(make, ids):
    model = make()
    past = model(ids[:, :6], use_cache=True).past_key_values
    expected = model(ids).logits[:, -1]
    step = torch.compile(model, fullgraph=True, backend="eager")
    output = step(ids[:, 6:], past_key_values=past, use_cache=True)
    assert error(output.logits[:, -1], expected) < MODEL


def test_compile_a_training_step(make, ids):
    model = make().train()
    model(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(ids, labels=ids).loss.backward()
    largest = max(value.abs().max() for value in expected.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() / largest < MODEL, name


def test_compile_with_layerdrop_and_dropout(make, ids):
    model = make(layerdrop=0.5, dropout=0.3).train()
    output = torch.compile(model, fullgraph=True, backend="eager")(ids, labels=ids)
    assert torch.isfinite(output.loss)


def test_compile_for_other_lengths_does_not_start_over_each_time(make, ids):
    model = make()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for length in (3, 4, 5, 6, 7):
        assert error(compiled(ids[:, :length]).logits, model(ids[:, :length]).logits) < MODEL
    assert counter.frame_count <= 2


def test_export(make, left_padded):
    model = make()
    exported = torch.export.export(model, (), kwargs=left_padded)
    output = exported.module()(**left_padded)
    assert error(output["logits"], model(**left_padded).logits) < MODEL


def test_export_with_free_lengths(make, left_padded):
    model = make(use_cache=False)
    dims = {
        0: torch.export.Dim("batch", min=2, max=8),
        1: torch.export.Dim("length", min=2, max=30),
    }
    exported = torch.export.export(
        model, (), kwargs=left_padded, dynamic_shapes=dict.fromkeys(left_padded, dims)
    )
    other = {name: value[:, :5].repeat(2, 1) for name, value in left_padded.items()}
    assert error(exported.module()(**other).logits, model(**other).logits) < MODEL


def test_autocast(make, left_padded):
    model = make()
    expected = model(**left_padded).logits
    labels = left_padded["input_ids"]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**left_padded, labels=labels)
    assert output.logits.dtype is torch.bfloat16
    assert output.loss.dtype is torch.float32
    assert error(output.logits.float(), expected) < 0.1
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [False, True])
def test_half_precision_is_finite_with_left_padding(make, left_padded, dtype, weights):
    model = make().to(dtype)
    left_padded["attention_mask"][1, :] = 0
    left_padded["attention_mask"][1, -1] = 1
    output = model(**left_padded, labels=left_padded["input_ids"], output_attentions=weights)
    assert output.logits.dtype is dtype
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.loss)
    expected = model.float()(**left_padded).logits
    seen = left_padded["attention_mask"].bool()
    assert error(output.logits.float()[seen], expected[seen]) < 0.1


def test_half_precision_generates(make, left_padded):
    model = make().to(torch.bfloat16)
    out = model.generate(**left_padded, max_new_tokens=3, num_beams=2, eos_token_id=None)
    assert out.shape == (2, 10)


def test_gradient_checkpointing_changes_no_gradient(make, ids):
    model = make().train()

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    for dropout in (0.0, 0.3):
        model.model.config.dropout = dropout
        for layer in model.model.layers:
            layer.dropout = dropout
        model.gradient_checkpointing_disable()
        expected = gradients()
        model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing
        came = gradients()
        assert all(torch.equal(came[name], value) for name, value in expected.items())


def test_gradient_checkpointing_recomputes(make, ids, monkeypatch):
    model = make().train()
    calls = []
    layer_class = type(model.model.layers[0])
    forward = layer_class.forward
    monkeypatch.setattr(layer_class, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    for enable, count in ((False, 2), (True, 4)):
        calls.clear()
        model.gradient_checkpointing_enable() if enable else model.gradient_checkpointing_disable()
        model(ids, labels=ids).loss.backward()
        assert len(calls) == count
