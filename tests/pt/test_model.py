"""The module: names, ties, sizes, training switches, caches, copies."""

import copy
import pickle

import pytest
import torch
from comparing import error_of
from tolerances import LAYER, MODEL
from torch import nn

from xlmfam import pt
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.pt import KeyValueCache, XGLMForCausalLM, XGLMModel


def error(came, expected):
    return error_of(came.detach().numpy(), expected.detach().numpy())


def tied(model):
    return model.lm_head.weight is model.model.embed_tokens.weight


# ---- names and ties -------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", ["XGLMModel", "XGLMForCausalLM"])
@pytest.mark.parametrize(
    "options", [{}, {"add_cross_attention": True, "tie_word_embeddings": False}]
)
def test_state_dict_is_exactly_the_table(make, class_name, options):
    model = make(class_name, **options)
    expected = {name: tuple(row.shape) for name, row in model.expected_parameters().items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert not list(model.buffers())


def test_state_dict_has_the_order_of_the_reference():
    import json
    from pathlib import Path

    path = Path(__file__).parents[1] / "data" / "manifests" / "xglm.json"
    for entry in json.loads(path.read_text())["variants"].values():
        model = XGLMForCausalLM(pt.XGLMConfig(**entry["options"]))
        expected = entry["classes"]["XGLMForCausalLM"]["pt_state_dict"]
        assert list(model.state_dict()) == list(expected)


def test_linear_layers_are_found_by_class_and_name(make):
    """Adapters such as LoRA find their targets by class and name."""
    model = make(add_cross_attention=True)
    found = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert found == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "lm_head"}
    assert type(model.get_input_embeddings()) is nn.Embedding
    assert set(model.tensor_parallel_plan()) <= {name for name, _ in model.named_modules()}


def test_tied_weights_are_one_tensor_through_everything(make, tmp_path, ids):
    model = make()
    assert tied(model)
    count = model.num_parameters()
    assert count == sum(row.size for row in model.expected_parameters().values() if not row.tied_to)
    model.save_pretrained(tmp_path)
    for again in (
        XGLMForCausalLM.from_pretrained(tmp_path),
        model.to(torch.float16).to(torch.float32),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert tied(again)
        assert again.num_parameters() == count
    model.resize_token_embeddings(60)
    assert tied(model)
    model.load_state_dict(make(seed=3, vocab_size=60).state_dict())
    assert tied(model)
    model.double()
    assert tied(model)
    assert "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_the_gradient_of_a_tied_weight_is_the_sum(make, ids):
    model, free = make(), make(tie_word_embeddings=False)
    free.load_state_dict(model.state_dict())
    for each in (model, free):
        each(ids, labels=ids).loss.backward()
    total = free.lm_head.weight.grad + free.model.embed_tokens.weight.grad
    assert error(model.lm_head.weight.grad, total) < MODEL


def test_copies_and_pickles_are_independent(make, ids):
    model = make()
    expected = model(ids).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(ids).logits, expected)
        with torch.no_grad():
            again.lm_head.weight.zero_()
        assert torch.equal(model(ids).logits, expected)
        assert again.config == model.config
        assert again.config is not model.config


def test_initial_values(config):
    torch.manual_seed(0)
    model = XGLMForCausalLM(config(d_model=64, vocab_size=500, init_std=0.05))
    for name, value in model.named_parameters():
        row = model.expected_parameters()[name]
        if row.init == "normal":
            assert abs(value.std().item() - 0.05) < 0.005, name
        else:
            assert torch.equal(value, torch.full_like(value, float(row.init == "ones")))
    assert not model.model.embed_tokens.weight[1].any()
    torch.manual_seed(0)
    again = XGLMForCausalLM(config(d_model=64, vocab_size=500, init_std=0.05))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_meta_device(config):
    with torch.device("meta"):
        model = XGLMForCausalLM(config())
    assert model.device.type == "meta"
    assert tied(model)


def test_another_family_s_config():
    from xlmfam import PretrainedConfig

    with pytest.raises(ConfigError, match="needs a XGLMConfig, got PretrainedConfig"):
        XGLMModel(PretrainedConfig())


# ---- embeddings -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [60, 47])
@pytest.mark.parametrize("tie", [True, False])
def test_resizing_keeps_what_both_sizes_have(make, ids, size, tie):
    model = make(tie_word_embeddings=tie)
    before, head = model.model.embed_tokens.weight.clone(), model.lm_head.weight.clone()
    kept = min(size, 53)
    ids = ids.clamp(max=kept - 1)
    expected = model(ids).logits
    embedding = model.resize_token_embeddings(size)
    assert embedding is model.get_input_embeddings()
    assert embedding.weight.shape == model.lm_head.weight.shape == (size, 24)
    assert (embedding.num_embeddings, model.lm_head.out_features) == (size, size)
    assert model.config.vocab_size == size
    assert torch.equal(embedding.weight[:kept], before[:kept])
    assert torch.equal(model.lm_head.weight[:kept], head[:kept])
    assert tied(model) == tie
    output = model(ids).logits
    assert output.shape[-1] == size
    assert error(output[..., :kept], expected[..., :kept]) < MODEL
    assert {n: tuple(v.shape) for n, v in model.state_dict().items()} == {
        n: row.shape for n, row in model.expected_parameters().items()
    }


def test_new_rows_are_drawn(make):
    model = make(init_std=0.5)
    new = model.resize_token_embeddings(400).weight[53:]
    assert abs(new.std().item() - 0.5) < 0.05


def test_resizing_by_multiples_and_not_at_all(make):
    model = make()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(53).num_embeddings == 53
    assert model.resize_token_embeddings(pad_to_multiple_of=8).num_embeddings == 56
    assert model.resize_token_embeddings(57, pad_to_multiple_of=8).num_embeddings == 64
    with pytest.raises(XlmfamError, match="new_num_tokens must be positive"):
        model.resize_token_embeddings(0)


def test_a_size_that_cannot_be_changes_nothing(make, ids):
    model = make(pad_token_id=50)
    expected = model(ids).logits
    with pytest.raises(ConfigError, match="pad_token_id"):
        model.resize_token_embeddings(40)
    assert model.config.vocab_size == 53
    assert torch.equal(model(ids).logits, expected)


def test_frozen_weights_stay_frozen_when_resized(make):
    model = make()
    model.get_input_embeddings().weight.requires_grad_(False)
    assert not model.resize_token_embeddings(60).weight.requires_grad


def test_set_embeddings(make):
    model = make()
    other = nn.Embedding(53, 24)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert tied(model)
    free = make(tie_word_embeddings=False)
    head = nn.Linear(24, 53, bias=False)
    free.set_output_embeddings(head)
    assert free.get_output_embeddings() is head


def test_a_ready_embedding_is_kept(config):
    embedding = nn.Embedding(53, 24)
    values = embedding.weight.clone()
    model = XGLMModel(config(), embed_tokens=embedding)
    assert model.get_input_embeddings() is embedding
    assert torch.equal(embedding.weight, values)


# ---- calls ----------------------------------------------------------------------------------


def test_inputs_are_left_as_they_were(make, left_padded):
    model = make(add_cross_attention=True)
    inputs = {
        **left_padded,
        "labels": left_padded["input_ids"].clone(),
        "position_ids": torch.arange(7)[None].repeat(2, 1),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "encoder_attention_mask": torch.ones(2, 5),
        "head_mask": torch.rand(2, 4),
        "cross_attn_head_mask": torch.rand(4),
    }
    before = {name: value.clone() for name, value in inputs.items()}
    first = model(**inputs)
    second = model(**inputs)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())
    assert torch.equal(first.logits, second.logits)


def test_left_padding_changes_nothing(make, left_padded):
    model = make()
    alone = model(left_padded["input_ids"][1:, 3:]).logits
    padded = model(**left_padded).logits[1:, 3:]
    assert error(padded, alone) < MODEL


def test_right_padding_changes_nothing(make, ids):
    model = make()
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    padded = model(ids.masked_fill(mask == 0, 1), attention_mask=mask).logits[1:, :4]
    assert error(padded, model(ids[1:, :4]).logits) < MODEL


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_masks_of_any_dtype(make, left_padded, dtype):
    model = make()
    mask = left_padded["attention_mask"]
    expected = model(**left_padded).logits
    assert torch.equal(model(left_padded["input_ids"], mask.to(dtype)).logits, expected)


def test_int32_ids(make, ids):
    model = make()
    expected = model(ids, labels=ids)
    came = model(ids.int(), labels=ids.int())
    assert torch.equal(came.logits, expected.logits)
    assert torch.equal(came.loss, expected.loss)


def test_fused_attention_is_the_plain_one(make, left_padded):
    model = make()
    for inputs in (left_padded, {"input_ids": left_padded["input_ids"]}):
        output = model(**inputs, output_attentions=True)
        seen = inputs.get("attention_mask", torch.ones(2, 7)).bool()
        assert error(output.logits[seen], model(**inputs).logits[seen]) < LAYER * 2
        for weights in output.attentions:
            assert torch.allclose(weights.sum(-1)[seen[:, None].expand(2, 4, 7)], torch.ones(()))
            assert not weights.triu(1)[seen[:, None].expand(2, 4, 7)].any()


def test_last_logits_only(make, left_padded):
    model = make()
    came = model(**left_padded, last_logits_only=True).logits
    assert came.shape == (2, 1, 53)
    assert error(came, model(**left_padded).logits[:, -1:]) < LAYER


def test_tuples_instead_of_outputs(make, ids):
    model = make()
    output = model(ids, labels=ids, output_hidden_states=True)
    as_tuple = model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(output.to_tuple()) == 4
    assert torch.equal(as_tuple[1], output.logits)
    assert not isinstance(make(return_dict=False)(ids), dict)


def test_flags_of_the_config(make, ids):
    model = make(output_attentions=True, output_hidden_states=True, use_cache=False)
    output = model(ids)
    assert len(output.attentions) == 2
    assert len(output.hidden_states) == 3
    assert output.past_key_values is None
    assert model(ids, output_attentions=False, use_cache=True).attentions is None


def test_a_row_of_ignored_labels_counts_nothing(make, ids):
    model = make()
    labels = ids.clone()
    labels[1] = -100
    assert error(model(ids, labels=labels).loss, model(ids[:1], labels=ids[:1]).loss) < MODEL
    assert (labels[1] == -100).all()


WRONG = {
    "both": ({"inputs_embeds": torch.zeros(2, 7, 24)}, "either input_ids or inputs_embeds: both"),
    "neither": ({"input_ids": None}, "either input_ids or inputs_embeds: neither"),
    "flat": ({"input_ids": torch.zeros(7).long()}, r"must be \(batch, sequence\), got \(7,\)"),
    "large": ({"input_ids": torch.full((2, 7), 53)}, "53, outside the vocabulary of 53"),
    "negative": ({"input_ids": torch.full((2, 7), -1)}, "input_ids holds -1"),
    "floats": ({"input_ids": torch.zeros(2, 7)}, "input_ids must hold integers"),
    "mask": ({"attention_mask": torch.ones(2, 6)}, r"attention_mask must have shape \(2, 7\)"),
    "positions": ({"position_ids": torch.zeros(3, 7).long()}, "position_ids must have shape"),
    "head_mask": ({"head_mask": torch.ones(3, 4)}, r"head_mask must have shape \(2, 4\) or \(4,\)"),
    "encoder": ({"encoder_hidden_states": torch.zeros(2, 5, 24)}, "add_cross_attention=True"),
    "labels": ({"labels": torch.zeros(2, 6).long()}, r"labels must have shape \(2, 7\)"),
    "last": (
        {"labels": torch.zeros(2, 7).long(), "last_logits_only": True},
        "labels need the logits of all positions",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=list(WRONG))
def test_inputs_that_cannot_be(make, ids, changes, message):
    with pytest.raises(XlmfamError, match=message):
        make()(**{"input_ids": ids, **changes})


def test_encoder_shapes(make, ids):
    model = make(add_cross_attention=True)
    with pytest.raises(XlmfamError, match=r"encoder_hidden_states must have shape \(2, \*, 24\)"):
        model(ids, encoder_hidden_states=torch.zeros(2, 5, 20))
    with pytest.raises(XlmfamError, match=r"encoder_attention_mask must have shape \(2, 5\)"):
        model(ids, encoder_hidden_states=torch.zeros(2, 5, 24), encoder_attention_mask=ids)


# ---- caches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tuples", "buffers"])
@pytest.mark.parametrize("cross", [False, True])
def test_both_caches_give_what_the_whole_gives(make, left_padded, form, cross):
    model = make(add_cross_attention=cross)
    ids, mask = left_padded.values()
    extra = {"encoder_hidden_states": torch.randn(2, 5, 24)} if cross else {}
    expected = model(ids, mask, **extra).logits
    past = model.init_cache(2, 9) if form == "buffers" else None
    pieces, start = [], 0
    for end in (4, 5, 7):
        output = model(
            ids[:, start:end], mask[:, :end], past_key_values=past, use_cache=True, **extra
        )
        past = output.past_key_values
        pieces.append(output.logits)
        start = end
    assert isinstance(past, KeyValueCache) == (form == "buffers")
    if form == "buffers":
        assert past.length == 7
        assert len(past.cross[0]) == (2 if cross else 0)
    seen = mask.bool()
    assert error(torch.cat(pieces, 1)[seen], expected[seen]) < MODEL


def test_a_full_cache_says_so(make, ids):
    model = make()
    with pytest.raises(ValueError, match="holds 5 tokens, 7 are needed"):
        model(ids, past_key_values=model.init_cache(2, 5))


@torch.no_grad()
def test_reordering_and_repeating_a_cache(make, ids):
    model = make()
    cache = model.init_cache(2, 8)
    model(ids[:, :6], past_key_values=cache)
    cache.repeat(2)
    cache.reorder(torch.tensor([3, 0, 1, 2]))
    cache.reorder(torch.tensor([0, 0, 2, 3]))  # rows are now those of prompts 1, 1, 0, 1
    rows = torch.tensor([1, 1, 0, 1])
    came = model(ids[rows, 6:], past_key_values=cache).logits
    assert error(came, model(ids[rows]).logits[:, -1:]) < MODEL


def test_the_tuples_that_were_passed_in_stay_as_they_were(make, ids):
    model = make()
    past = model(ids[:, :4], use_cache=True).past_key_values
    before = [[t.clone() for t in layer] for layer in past]
    model(ids[:, 4:], past_key_values=past, use_cache=True)
    assert all(
        torch.equal(a, b)
        for x, y in zip(before, past, strict=True)
        for a, b in zip(x, y, strict=True)
    )


# ---- training -------------------------------------------------------------------------------


def test_dropout_only_in_training(make, ids):
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        model = make(**{"dropout": 0.0, "attention_dropout": 0.0, name: 0.5})
        expected = model(ids).logits
        assert torch.equal(model(ids).logits, expected)
        model.train()
        torch.manual_seed(0)
        first = model(ids).logits
        assert not torch.equal(first, expected), name
        torch.manual_seed(0)
        assert torch.equal(model(ids).logits, first)
        weights = model(ids, output_attentions=True).attentions[0]
        assert torch.allclose(weights.sum(-1), torch.ones(())), "weights before dropping"


def test_layerdrop(make, ids):
    model = make(layerdrop=1.0).train()
    states = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(model.model.layer_norm(states[0]), states[-1]), "every layer is skipped"
    assert not torch.equal(
        *(model.eval()(ids, output_hidden_states=True).hidden_states[i] for i in (0, 1))
    )
    half = make(layerdrop=0.5).train()
    torch.manual_seed(0)
    seen = {round(half(ids).logits.abs().sum().item(), 3) for _ in range(40)}
    assert len(seen) == 4, "each of two layers is there or not"


def test_decay_parameters(make):
    model = make()
    decayed = model.decay_parameters()
    assert all(model.state_dict()[name].dim() == 2 for name in decayed)
    assert len(decayed) == sum(v.dim() == 2 for v in model.state_dict().values())


def test_num_parameters_that_train(make):
    model = make()
    everything = model.num_parameters()
    model.model.embed_tokens.weight.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == everything - 53 * 24


def test_auto_classes(make, tmp_path, config):
    make().save_pretrained(tmp_path)
    assert type(pt.AutoModel.from_pretrained(tmp_path)) is XGLMModel
    assert type(pt.AutoModelForCausalLM.from_pretrained(tmp_path)) is XGLMForCausalLM
    assert type(pt.AutoModelForCausalLM.from_config(config())) is XGLMForCausalLM
    from xlmfam import PretrainedConfig

    with pytest.raises(ConfigError, match=r"AutoModel has no class for model_type .*xglm"):
        pt.AutoModel.from_config(PretrainedConfig())
