"""XLM in PyTorch: languages, labelled logits, caches, pruning, filling in, half precision."""

import numpy as np
import pytest
import torch
from pt_models import randomise
from tolerances import MODEL

from xlmfam import XLMConfig, pt
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.positions import interleaved_sinusoids

SIZES = {
    "vocab_size": 53,
    "emb_dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_langs": 3,
    "lang2id": {"de": 0, "en": 1, "fr": 2},
    "max_position_embeddings": 37,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "summary_first_dropout": 0.0,
}
LM = "XLMWithLMHeadModel"


def build(class_name=LM, seed=0, **options):
    return randomise(getattr(pt, class_name)(XLMConfig(**{**SIZES, **options})), seed)


def error(came, expected):
    return ((came - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def ids():
    return torch.randint(6, 53, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(ids):
    kept = torch.tensor([[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 1]]).bool()
    return ids.masked_fill(~kept, -100)


# ---- languages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "langs",
    [
        ["fr", "de"],
        [2, 0],
        torch.tensor([2, 0]),
        np.array([2, 0]),
        torch.tensor([[2], [0]]),
        [["fr"] * 7, [0] * 7],
    ],
    ids=["names", "ids", "tensor", "array", "column", "tokens"],
)
def test_every_way_to_say_the_languages(ids, langs):
    model = build()
    full = torch.tensor([[2] * 7, [0] * 7])
    expected = model(ids, langs=full).logits
    assert torch.equal(model(ids, langs=langs).logits, expected)
    assert error(model(ids).logits, expected) > 1e-2
    assert error(model(ids, langs="fr").logits[:1], expected[:1]) < MODEL
    assert error(model(ids, langs="fr").logits[1:], expected[1:]) > 1e-2


def test_unknown_languages(ids):
    model = build()
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows de, en, fr"):
        model(ids, langs="xx")
    with pytest.raises(XlmfamError, match="langs holds 3; this model has 3 languages: de, en, fr"):
        model(ids, langs=torch.full((2, 7), 3))
    with pytest.raises(XlmfamError, match="langs must have shape"):
        model(ids, langs=["de", "en", "fr"])
    with pytest.raises(XlmfamError, match="no lang2id"):
        build(lang2id=None)(ids, langs="de")


def test_choices_take_a_language_each(ids):
    model = build("XLMForMultipleChoice")
    choices = torch.stack([ids, ids.flip(1)], 1)
    by_choice = torch.tensor([[0, 2], [1, 1]])
    expected = model(choices, langs=by_choice[..., None].expand(2, 2, 7)).logits
    assert error(model(choices, langs=by_choice).logits, expected) < MODEL
    by_sample = model(choices, langs=["de", "en"]).logits
    assert error(by_sample, model(choices, langs=torch.tensor([[0, 0], [1, 1]])).logits) < MODEL
    assert error(by_sample, expected) > 1e-3


# ---- labelled positions only ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"asm": True, "asm_cutoffs": [9, 30]}])
def test_labelled_logits_are_those_of_the_whole(ids, labels, options):
    model = build(**options)
    whole = model(ids, labels=labels)
    some = model(ids, labels=labels, labelled_logits_only=True)
    places = (
        torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        if options.get("causal")
        else labels
    )
    assert some.logits.shape == ((places != -100).sum(), 53)
    assert error(some.logits, whole.logits[places != -100]) < MODEL
    assert error(some.loss, whole.loss) < MODEL
    fixed = model(ids, labels=labels, labelled_logits_only=8)
    assert fixed.logits.shape == (8, 53)
    assert error(fixed.logits[: len(some.logits)], some.logits) < MODEL
    assert error(fixed.loss, whole.loss) < MODEL


def test_the_gradients_of_labelled_logits(ids, labels):
    gradients = []
    for room in (False, True, 9):
        model = build()
        model(ids, labels=labels, labelled_logits_only=room).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    largest = max(value.abs().max() for value in gradients[0].values())
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, value in gradients[0].items():
            assert (other[name] - value).abs().max() < MODEL * largest, name


def test_too_little_room_for_the_labels(ids, labels):
    model = build()
    with pytest.raises(XlmfamError, match="labelled_logits_only=4, and there are 5 labels"):
        model(ids, labels=labels, labelled_logits_only=4)
    with pytest.raises(XlmfamError, match="needs labels"):
        model(ids, labelled_logits_only=True)
    with pytest.raises(XlmfamError, match="not the last one's"):
        model(ids, labels=labels, last_logits_only=True)
    # Where the labels cannot be counted, too many of them must not go unnoticed.
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert compiled(ids, labels=labels, labelled_logits_only=4).loss.isnan()
    room = compiled(ids, labels=labels, labelled_logits_only=6)
    assert error(room.loss, model(ids, labels=labels).loss) < MODEL


# ---- caches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"asm": True, "asm_cutoffs": [9, 30]}])
def test_both_caches_give_what_the_whole_gives(ids, options):
    model = build(causal=True, **options)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    langs = torch.arange(14).view(2, 7) % 3
    whole = model(ids, mask, langs).logits
    cache = {"slen": 0}
    buffer = model.init_cache(2, 9)
    for start, end in ((0, 4), (4, 5), (5, 7)):
        new = slice(start, end)
        step = model(ids[:, :end], mask[:, :end], langs[:, :end], cache=cache).logits
        assert error(step[mask[:, new] == 1], whole[:, new][mask[:, new] == 1]) < MODEL
        again = model(ids[:, new], mask[:, :end], langs[:, new], cache=buffer).logits
        assert error(again[mask[:, new] == 1], step[mask[:, new] == 1]) < MODEL
    assert cache["slen"] == buffer.length == 7
    assert cache[1][0].shape == (2, 4, 7, 6)


def test_caches_that_cannot_be(ids):
    model = build()
    cache = {"slen": 0}
    model(ids[:, :4], cache=cache)
    with pytest.raises(XlmfamError, match="a filled cache needs a causal model"):
        model(ids, cache=cache)
    causal = build(causal=True)
    cache = {"slen": 0}
    causal(ids, cache=cache)
    with pytest.raises(XlmfamError, match="nothing is new"):
        causal(ids, cache=cache)
    with pytest.raises(XlmfamError, match="must be a dict that begins as"):
        causal(ids, cache={})
    with pytest.raises(XlmfamError, match="labels need the whole text at once"):
        causal(torch.cat([ids, ids], 1), cache=cache, labels=torch.cat([ids, ids], 1))


# ---- positions, padding, lengths ------------------------------------------------------------


def test_left_padding_of_a_causal_model_changes_nothing(ids):
    model = build(causal=True)
    padded = torch.cat([torch.full((2, 3), 2), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    expected = model(ids).logits
    assert error(model(padded, mask).logits[:, 3:], expected) < MODEL
    # Padding that a causal row begins with is seen without being told.
    assert error(model(padded).logits[:, 3:], expected) < MODEL


def test_lengths_beyond_the_text_and_texts_beyond_the_positions(ids):
    model = build()
    with pytest.raises(XlmfamError, match=r"lengths holds 8, outside \[0, 7\]"):
        model(ids, lengths=torch.tensor([7, 8]))
    with pytest.raises(XlmfamError, match="the text has 38 tokens, max_position_embeddings is 37"):
        model(torch.full((1, 38), 9))
    with pytest.raises(XlmfamError, match=r"position_ids holds 37, outside \[0, 36\]"):
        model(ids, position_ids=torch.full((2, 7), 37))
    with pytest.raises(XlmfamError, match="token_type_ids holds 60"):
        model(ids, token_type_ids=torch.full((2, 7), 60))
    with pytest.raises(XlmfamError, match="src_enc needs a decoder"):
        model(ids, src_enc=torch.zeros(2, 3, 24))
    with pytest.raises(ConfigError, match="needs 39 positions"):
        model.generate(ids, max_length=39)


def test_a_row_of_nothing_but_padding(ids):
    model = build()
    mask = torch.ones_like(ids)
    mask[1] = 0
    output = model.transformer(ids, mask)
    assert (
        error(output.last_hidden_state[0], model.transformer(ids[:1]).last_hidden_state[0]) < MODEL
    )
    assert not output.last_hidden_state[1].any()


# ---- parameters -----------------------------------------------------------------------------


def test_sinusoids_are_kept_and_never_learned(ids, tmp_path):
    model = pt.XLMModel(XLMConfig(**SIZES, sinusoidal_embeddings=True))
    table = model.position_embeddings.weight
    assert torch.equal(table, torch.from_numpy(interleaved_sinusoids(37, 24)))
    assert not table.requires_grad
    assert "position_embeddings.weight" not in model.decay_parameters()
    with torch.no_grad():
        table += 1
    model.save_pretrained(tmp_path)
    again = pt.XLMModel.from_pretrained(tmp_path)
    assert not again.position_embeddings.weight.requires_grad
    assert torch.equal(again.position_embeddings.weight, table)
    assert again.train()(ids).last_hidden_state.requires_grad


def test_initial_values():
    model = pt.XLMModel(XLMConfig(**{**SIZES, "vocab_size": 5000, "embed_init_std": 0.5}))
    assert model.embeddings.weight.std().item() == pytest.approx(0.5, rel=0.02)
    assert model.ffns[0].lin1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.embeddings.weight[2].any()


def test_pruned_heads_are_heads_that_are_masked(ids, tmp_path):
    model = build()
    head_mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]])
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    expected = model(ids, mask, head_mask=head_mask).logits
    model.prune_heads({0: [1]})
    model.prune_heads({1: [3, 0], 0: [1]})
    assert model.transformer.attentions[1].q_lin.weight.shape == (12, 24)
    assert model.transformer.attentions[1].out_lin.weight.shape == (24, 12)
    assert error(model(ids, mask).logits, expected) < MODEL
    # A mask for all heads that there were: of those that are left it takes its own.
    assert error(model(ids, mask, head_mask=head_mask).logits, expected) < MODEL
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}
    model.save_pretrained(tmp_path)
    again = pt.XLMWithLMHeadModel.from_pretrained(tmp_path)
    assert error(again(ids, mask).logits, expected) < MODEL
    model(ids, labels=ids).loss.backward()
    with pytest.raises(ConfigError, match="leaves layer 0 no head"):
        model.prune_heads({0: [0, 2, 3]})
    with pytest.raises(ConfigError, match=r"layer 1, heads \[0, 3, 9\]"):
        model.prune_heads({1: [9]})
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}


def test_a_pruned_causal_model_generates(ids):
    model = build(causal=True)
    masked = torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    expected = model.generate(ids, langs="de", head_mask=masked, max_new_tokens=5, num_beams=2)
    model.prune_heads({0: [1]})
    assert torch.equal(model.generate(ids, langs="de", max_new_tokens=5, num_beams=2), expected)
    with pytest.raises(XlmfamError, match="needs a dict"):
        model.init_cache(1, 5)


@pytest.mark.parametrize("options", [{}, {"asm": True, "asm_cutoffs": [9, 30]}])
def test_resizing_the_vocabulary(ids, options):
    model = build(**options)
    before = model(ids).logits
    model.resize_token_embeddings(61)
    output = model(ids)
    assert output.logits.shape == (2, 7, 61)
    if not options:  # an adaptive softmax normalises over the new words too
        assert error(output.logits[..., :53], before) < MODEL
        assert model.pred_layer.proj.weight is model.transformer.embeddings.weight
    model(torch.full((1, 3), 60), labels=torch.full((1, 3), 60)).loss.backward()


# ---- training, compiling, precision ---------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_checkpointed_gradients_are_equal(ids, labels, causal):
    gradients = []
    for again in (False, True):
        model = build(causal=causal).train()
        if again:
            model.gradient_checkpointing_enable()
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        model(ids, mask, langs="en", labels=labels).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_compile_without_graph_breaks(ids, labels, causal):
    torch._dynamo.reset()
    model = build(causal=causal)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    arguments = {"attention_mask": mask, "langs": torch.full((2, 7), 2), "labels": labels}
    expected = model(ids, **arguments)
    output = torch.compile(model, fullgraph=True, backend="eager")(ids, **arguments)
    assert error(output.logits[mask == 1], expected.logits[mask == 1]) < MODEL
    assert error(output.loss, expected.loss) < MODEL
    torch._dynamo.reset()


def test_export(ids):
    model = build()
    batch = torch.export.Dim("batch", min=2, max=8)
    exported = torch.export.export(model, (ids,), dynamic_shapes=({0: batch},)).module()
    three = torch.cat([ids, ids[:1]])
    assert error(exported(three).logits, model(three).logits) < MODEL


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "class_name", [LM, "XLMForSequenceClassification", "XLMForQuestionAnswering"]
)
def test_half_precision_is_finite_and_near(ids, class_name, dtype):
    model = build(class_name, start_n_top=2, end_n_top=2)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    p_mask = {"p_mask": 1 - mask} if class_name == "XLMForQuestionAnswering" else {}
    expected = model(ids, mask, **p_mask)[0]
    came = model.to(dtype)(ids, mask, **p_mask)[0]
    assert came.isfinite().all()
    assert error(came.float(), expected) < 0.1


def test_dropout_only_in_training(ids):
    model = build(dropout=0.5)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert error(model(ids).logits, model(ids).logits) > 1e-2


# ---- heads ----------------------------------------------------------------------------------


def test_the_kind_of_a_classification_follows_the_labels(ids):
    model = build("XLMForSequenceClassification", num_labels=3)
    logits = model(ids).logits
    classes, several = torch.tensor([2, 0]), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    plain = torch.nn.functional
    assert error(model(ids, labels=classes).loss, plain.cross_entropy(logits, classes)) < MODEL
    expected = plain.binary_cross_entropy_with_logits(logits, several)
    assert error(model(ids, labels=several).loss, expected) < MODEL
    # The reference would have kept the first kind in the config.
    assert model.config.problem_type is None
    model.config.problem_type = "regression"
    assert error(model(ids, labels=several).loss, plain.mse_loss(logits, several)) < MODEL
    with pytest.raises(XlmfamError, match="labels must have shape"):
        model(ids, labels=torch.zeros(2, 4))


def test_question_answering_refuses_what_cannot_be(ids):
    with pytest.raises(XlmfamError, match="num_labels=2"):
        build("XLMForQuestionAnsweringSimple", num_labels=3)
    model = build("XLMForQuestionAnswering")
    with pytest.raises(XlmfamError, match=r"end_positions holds 7, outside \[0, 6\]"):
        model(ids, start_positions=torch.tensor([0, 1]), end_positions=torch.tensor([6, 7]))
    with pytest.raises(XlmfamError, match="must not exceed the 4 positions"):
        model(ids[:, :4])
    with pytest.raises(XlmfamError, match=r"\(batch, choices, sequence\)"):
        build("XLMForMultipleChoice")(ids)


# ---- text in, text out ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from pathlib import Path

    from xlmfam import XLMTokenizer

    folder = Path(__file__).parents[1] / "data" / "tokenizers" / "xlm"
    return XLMTokenizer(folder / "vocab.json", folder / "merges.txt")


def test_fill_mask(tokenizer):
    model = build(vocab_size=len(tokenizer))
    mask = tokenizer.mask_token
    one, two = f"the {mask} is red", f"{mask} and a {mask} there"
    guesses = model.fill_mask(one, tokenizer, top_k=3, lang="en")
    ids = tokenizer(one, return_tensors="pt", lang="en")["input_ids"]
    place = (ids[0] == tokenizer.mask_token_id).nonzero().item()
    chances = model(ids, langs="en").logits[0, place].softmax(-1)
    best = chances.topk(3)
    assert [guess["token"] for guess in guesses] == best.indices.tolist()
    assert [guess["score"] for guess in guesses] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert guesses[0]["token_str"].strip() in guesses[0]["sequence"]
    by_number = model.fill_mask(one, tokenizer, top_k=3, lang=1)
    assert [guess["token"] for guess in by_number] == [guess["token"] for guess in guesses]
    both = model.fill_mask([one, two], tokenizer, top_k=3, lang="en")
    assert [g["token"] for g in both[0]] == [g["token"] for g in guesses]
    assert [len(guesses) for guesses in both[1]] == [3, 3]
    with pytest.raises(XlmfamError, match="no mask token"):
        model.fill_mask("nothing hidden", tokenizer)
    with pytest.raises(XlmfamError, match="top_k must lie in"):
        model.fill_mask(one, tokenizer, top_k=0)
    with pytest.raises(XlmfamError, match="this one is causal"):
        build(causal=True).fill_mask(one, tokenizer)


def test_translate(tokenizer):
    model = build("XLMEncoderDecoder", vocab_size=len(tokenizer))
    texts = ["the house", "a red house is there"]
    both = model.translate(texts, tokenizer, "en", "de", max_length=8, num_beams=2)
    assert len(both) == 2
    assert model.translate(texts[0], tokenizer, "en", "de", max_length=8, num_beams=2) == both[0]
    with pytest.raises(XlmfamError, match="unknown language 'xx'"):
        model.translate(texts, tokenizer, "en", "xx")
    with pytest.raises(XlmfamError, match="target_lang says what to translate into"):
        model.translate(texts, tokenizer, "en")
    with pytest.raises(XlmfamError, match=r"must lie in \[2, 38\]"):
        model.translate(texts, tokenizer, "en", "de", max_length=39)


def test_a_translation_does_not_depend_on_its_neighbours(ids):
    model = build("XLMEncoderDecoder", seed=3)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    options = {"target_lang": "fr", "max_length": 9, "num_beams": 3}
    both = model.generate(ids, mask, langs=["de", "en"], **options)
    alone = model.generate(ids[1:, :4], langs="en", **options)
    width = alone.shape[1]
    assert torch.equal(both[1:, :width], alone)
    assert (both[1, width:] == 2).all()


def test_labels_make_the_decoder_s_inputs(ids):
    model = build("XLMEncoderDecoder")
    made = model(ids, labels=ids, decoder_langs="de")
    given = torch.cat([torch.full((2, 1), 1), ids[:, :-1]], 1)
    assert (
        error(made.loss, model(ids, decoder_input_ids=given, labels=ids, decoder_langs="de").loss)
        < 1e-6
    )
