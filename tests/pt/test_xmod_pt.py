"""X-MOD in PyTorch: languages, grouping, adding and freezing, loading some languages only."""

import numpy as np
import pytest
import torch
from pt_models import randomise
from tolerances import MODEL

from xlmfam import XmodConfig, pt
from xlmfam.common.checkpoints.safetensors_files import SafetensorsSource
from xlmfam.common.errors import CheckpointError, XlmfamError

SIZES = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 37,
    "type_vocab_size": 3,
    "languages": ["en_XX", "de_DE", "sw_KE"],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LM = "XmodForMaskedLM"


def build(class_name=LM, seed=0, **options):
    return randomise(getattr(pt, class_name)(XmodConfig(**{**SIZES, **options})), seed)


def error(came, expected):
    return ((came - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def ids():
    return torch.randint(4, 53, (4, 7), generator=torch.Generator().manual_seed(1))


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "langs",
    [
        ["sw_KE", "en_XX", "sw_KE", "de_DE"],
        [2, 0, 2, 1],
        torch.tensor([2, 0, 2, 1]),
        np.array([2, 0, 2, 1]),
        torch.tensor([2, 0, 2, 1])[:, None].expand(4, 7),
    ],
    ids=["codes", "numbers", "tensor", "array", "tokens"],
)
def test_a_mixed_batch_is_each_sample_alone(ids, langs):
    model = build()
    mixed = model(ids, langs, output_hidden_states=True)
    for row, lang in enumerate([2, 0, 2, 1]):
        alone = model(ids[row : row + 1], SIZES["languages"][lang])
        assert error(mixed.logits[row], alone.logits[0]) < MODEL
    assert error(model(ids, "en_XX").logits, mixed.logits) > 1e-2


def test_a_language_for_each_token(ids):
    model = build(num_hidden_layers=1)
    langs = torch.arange(28).view(4, 7) % 3
    mixed = model(ids, langs).logits
    for lang in range(3):
        alone = model(ids, lang).logits
        assert error(mixed[langs == lang], alone[langs == lang]) < MODEL


@pytest.mark.parametrize("by_token", [False, True])
def test_compiled_graphs_gather_what_eager_groups(ids, by_token):
    torch._dynamo.reset()
    model = build()
    langs = torch.arange(28).view(4, 7) % 3 if by_token else torch.tensor([2, 0, 2, 1])
    expected = model(ids, langs, labels=ids)
    expected.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, langs, labels=ids)
    output.loss.backward()
    assert error(output.logits, expected.logits) < MODEL
    largest = max(value.abs().max() for value in gradients.values())
    for name, value in gradients.items():
        assert (model.get_parameter(name).grad - value).abs().max() < MODEL * largest, name
    torch._dynamo.reset()


def test_no_language_and_unknown_ones(ids):
    model = build()
    with pytest.raises(XlmfamError, match=r"set_default_language\(...\), one of en_XX, de_DE"):
        model(ids)
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows en_XX, de_DE"):
        model(ids, "xx")
    with pytest.raises(XlmfamError, match="lang_ids holds 3; this model has 3 languages: en_XX"):
        model(ids, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(XlmfamError, match="lang_ids must have shape"):
        model(ids, ["en_XX", "de_DE"])
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        model.set_default_language("xx")
    model.set_default_language("sw_KE")
    assert torch.equal(model(ids).logits, model(ids, "sw_KE").logits)
    model.config.default_language = "gone"
    with pytest.raises(XlmfamError, match="unknown language 'gone'"):
        model(ids)


def test_choices_take_a_language_each(ids):
    model = build("XmodForMultipleChoice")
    choices = ids.view(2, 2, 7)
    by_choice = torch.tensor([[0, 2], [1, 1]])
    flat = torch.stack(
        [
            model(choices[i, j][None, None], int(by_choice[i, j])).logits[0, 0]
            for i in range(2)
            for j in range(2)
        ]
    ).view(2, 2)
    assert error(model(choices, by_choice).logits, flat) < MODEL
    full = by_choice[..., None].expand(2, 2, 7)
    assert error(model(choices, full).logits, flat) < MODEL
    expected = model(choices, torch.tensor([[0, 0], [1, 1]])).logits
    assert error(model(choices, ["en_XX", "de_DE"]).logits, expected) < MODEL


# ---- adapters that come and go --------------------------------------------------------------


@pytest.mark.parametrize("init_from", ["random", "mean", "de_DE"])
def test_adding_a_language(ids, init_from, tmp_path):
    model = build()
    before = {lang: model(ids, lang).logits for lang in SIZES["languages"]}
    model.add_language("fr_XX", init_from)
    assert model.config.languages == [*SIZES["languages"], "fr_XX"]
    for lang, logits in before.items():
        assert torch.equal(model(ids, lang).logits, logits)
    came = model(ids, "fr_XX").logits
    if init_from == "de_DE":
        assert torch.equal(came, before["de_DE"])
    adapters = model.roberta.encoder.layer[1].output.adapter_modules
    weights = [adapters[lang].dense1.weight for lang in SIZES["languages"]]
    if init_from == "mean":
        assert error(adapters["fr_XX"].dense1.weight, torch.stack(weights).mean(0)) < MODEL
    if init_from == "random":
        assert 0.01 < adapters["fr_XX"].dense1.weight.std() < 0.03
        assert not adapters["fr_XX"].dense1.bias.any()
    model.save_pretrained(tmp_path)
    again = pt.XmodForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids, "fr_XX").logits, came)


def test_removing_languages(ids):
    model = build(default_language="en_XX")
    kept = model(ids, "sw_KE").logits
    model.remove_languages(["en_XX", "de_DE"])
    assert model.config.languages == ["sw_KE"]
    assert model.config.default_language is None
    assert torch.equal(model(ids, "sw_KE").logits, kept)
    assert set(model.state_dict()) == set(model.expected_parameters())
    with pytest.raises(XlmfamError, match="unknown language 'en_XX'"):
        model.remove_languages("en_XX")
    with pytest.raises(XlmfamError, match="one language at least"):
        model.remove_languages("sw_KE")


def test_languages_that_cannot_be_added():
    model = build()
    with pytest.raises(XlmfamError, match="there is a language 'de_DE' already"):
        model.add_language("de_DE")
    with pytest.raises(XlmfamError, match=r"without '\.' and '/'"):
        model.add_language("de.DE")
    with pytest.raises(XlmfamError, match="init_from must be one of random, mean or a language"):
        model.add_language("fr_XX", "it_IT")
    assert model.config.languages == SIZES["languages"]


def test_loading_some_languages_reads_nothing_else(ids, tmp_path, monkeypatch):
    model = build()
    model.save_pretrained(tmp_path)
    read = []
    plain = SafetensorsSource.read
    monkeypatch.setattr(
        SafetensorsSource, "read", lambda self, name: read.append(name) or plain(self, name)
    )
    some = pt.XmodForMaskedLM.from_pretrained(tmp_path, languages=["sw_KE", "en_XX"])
    assert some.config.languages == ["sw_KE", "en_XX"]
    assert not [name for name in read if "de_DE" in name]
    assert torch.equal(some(ids, "sw_KE").logits, model(ids, "sw_KE").logits)
    assert torch.equal(some(ids, 1).logits, model(ids, "en_XX").logits)
    with pytest.raises(XlmfamError, match="unknown language 'de_DE'"):
        some(ids, "de_DE")
    with pytest.raises(CheckpointError, match=r"missing: .*adapter_modules\.fr_XX"):
        pt.XmodForMaskedLM.from_pretrained(tmp_path, languages=["fr_XX"])
    # What is saved is a checkpoint of its own, with those languages.
    some.save_pretrained(tmp_path / "some")
    again = pt.XmodForMaskedLM.from_pretrained(tmp_path / "some")
    assert again.config.languages == ["sw_KE", "en_XX"]


def test_freezing(ids):
    model = build("XmodForSequenceClassification", adapter_layer_norm=True)
    model.freeze_embeddings_and_language_adapters()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = {
        name
        for name in model.state_dict()
        if "embeddings" in name or "adapter_modules" in name or "adapter_layer_norm" in name
    }
    assert frozen == expected != set()
    model(ids, "en_XX", labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    assert not any(p.grad is not None for n, p in model.named_parameters() if n in frozen)
    model.train_only_language("sw_KE")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n in model.state_dict() if "embeddings" in n or "sw_KE" in n}
    with pytest.raises(XlmfamError, match="unknown language"):
        model.train_only_language("xx")


# ---- the rest -------------------------------------------------------------------------------


def test_a_base_without_pooling(ids, tmp_path):
    build().save_pretrained(tmp_path)
    model, info = pt.XmodModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == ["pooler.dense.weight", "pooler.dense.bias"]
    bare = pt.XmodModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert bare(ids, 0).pooler_output is None
    assert torch.equal(bare(ids, 0).last_hidden_state, model(ids, 0).last_hidden_state)
    model.save_pretrained(tmp_path / "pooled")
    again = pt.XmodModel.from_pretrained(tmp_path / "pooled", add_pooling_layer=False)
    assert torch.equal(again(ids, 0).last_hidden_state, bare(ids, 0).last_hidden_state)


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
def test_caches_give_what_the_whole_gives(ids, kind):
    model = build("XmodForCausalLM", is_decoder=True, position_embedding_type=kind)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    ids = ids.masked_fill(mask == 0, 1)
    langs = torch.tensor([2, 0, 2, 1])
    whole = model(ids, langs, mask).logits
    first = model(ids[:, :4], langs, mask[:, :4], use_cache=True)
    rest = model(ids[:, 4:], langs, mask, past_key_values=first.past_key_values).logits
    assert error(rest, whole[:, 4:]) < MODEL
    buffer = model.init_cache(4, 9)
    model(ids[:, :4], langs, mask[:, :4], past_key_values=buffer)
    assert error(model(ids[:, 4:], langs, mask, past_key_values=buffer).logits, rest) < MODEL


def test_checkpointed_gradients_are_equal(ids):
    gradients = []
    for again in (False, True):
        model = build().train()
        if again:
            model.gradient_checkpointing_enable()
        model(ids, [0, 1, 1, 2], labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(ids, dtype):
    model = build()
    expected = model(ids, [0, 1, 1, 2]).logits
    came = model.to(dtype)(ids, [0, 1, 1, 2]).logits
    assert came.isfinite().all()
    assert error(came.float(), expected) < 0.1
