"""Transformer-XL in PyTorch: memories, left padding, projected memories, clusters, training."""

import copy

import numpy as np
import pytest
import torch
from pt_models import randomise
from tolerances import LAYER, MODEL

from xlmfam import TransfoXLConfig, pt
from xlmfam.common.errors import ConfigError, XlmfamError

SIZES = {
    "vocab_size": 53,
    "cutoffs": [11, 28],
    "d_model": 18,
    "d_embed": 12,
    "n_head": 3,
    "d_head": 5,
    "d_inner": 23,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 9,
    "clamp_len": 8,
    "num_labels": 7,
    "dropout": 0.0,
}
KINDS = [
    {},
    {"pre_lnorm": True, "same_length": False},
    {"div_val": 1, "untie_r": False, "clamp_len": -1},
]
LM = "TransfoXLLMHeadModel"


def build(class_name=LM, **options):
    return randomise(getattr(pt, class_name)(TransfoXLConfig(**{**SIZES, **options})), 0)


def words(*shape, seed=1):
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(seed))


def error(came, expected):
    return ((came - expected).abs().max() / expected.abs().max()).item()


def padded(lengths, length):
    """Ids and mask of rows of unequal length, padded on the left with a word like any other."""
    ids = words(len(lengths), length)
    mask = torch.arange(length) >= length - torch.tensor(lengths)[:, None]
    return ids, mask.long()


# ---- padding on the left --------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
def test_rows_of_unequal_length_are_each_row_alone(options):
    model, lengths = build(**options), (7, 3, 5)
    mems = [torch.randn(9, 3, 18, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    for given in (None, mems):
        ids, mask = padded(lengths, 7)
        first = model(ids, given, attention_mask=mask)
        more, more_mask = padded((4, 6, 1), 6)
        second = model(more, first.mems, attention_mask=more_mask)
        for row, (one, other) in enumerate(zip(lengths, (4, 6, 1), strict=True)):
            own = given and [memory[:, row : row + 1] for memory in given]
            alone = model(ids[row : row + 1, -one:], own)
            assert error(first.prediction_scores[row, -one:], alone.prediction_scores[0]) < MODEL
            for together, separate in zip(first.mems, alone.mems, strict=True):
                assert error(together[:, row], separate[:, 0]) < MODEL
            alone = model(more[row : row + 1, -other:], alone.mems)
            assert error(second.prediction_scores[row, -other:], alone.prediction_scores[0]) < MODEL
    assert error(model(ids, mems).prediction_scores[1, -3:], first.prediction_scores[1, -3:]) > 1e-3


def test_losses_of_rows_of_unequal_length():
    model, lengths = build(), (6, 4)
    ids, mask = padded(lengths, 6)
    output = model(ids, labels=ids.masked_fill(mask == 0, -100), attention_mask=mask)
    total = 0.0
    for row, length in enumerate(lengths):
        own = ids[row : row + 1, -length:]
        alone = model(own, labels=own).losses
        total += alone.sum()
        assert error(output.losses[row, 1 - length :], alone[0]) < MODEL
    assert output.loss.item() == pytest.approx(total.item() / (5 + 3), rel=1e-5)


def test_classes_of_rows_of_unequal_length():
    model = build("TransfoXLForSequenceClassification")
    ids, mask = padded((6, 4), 6)
    logits = model(ids, attention_mask=mask).logits
    for row, length in enumerate((6, 4)):
        assert error(logits[row], model(ids[row : row + 1, -length:]).logits[0]) < MODEL


def test_padding_that_cannot_be():
    model, (ids, mask) = build(), padded((6, 4), 6)
    with pytest.raises(XlmfamError, match="padding on the left"):
        model(ids, attention_mask=mask.flip(1))
    short = [torch.zeros(4, 2, 18)] * 2
    with pytest.raises(XlmfamError, match="need mems of the whole memory, 9: these have 4"):
        model(ids, short, attention_mask=mask)
    model(ids, short, attention_mask=torch.ones_like(mask))


# ---- memories as keys and values ------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS)
@torch.no_grad()
def test_projected_memories_are_exact(options, monkeypatch):
    monkeypatch.setattr("xlmfam.pt.transfo_xl_memory.SPARE", 5)  # moves to the front often
    model = build(**options)
    cache, mems, moves = model.init_cache(2, 4), None, 0
    for number, length in enumerate((4, 1, 1, 3, 1, 1, 1, 12, 2, 1, 1, 1, 1, 1, 1)):
        ids, before = words(2, length, seed=number), cache.start
        came = model(ids, cache)
        expected = model(ids, mems)
        assert error(came.prediction_scores, expected.prediction_scores) < LAYER
        assert came.mems is cache
        mems, moves = expected.mems, moves + (cache.start < before)
    assert moves > 2


@torch.no_grad()
def test_a_projected_memory_takes_over_mems_and_padding():
    model, (ids, mask) = build(), padded((7, 3, 5), 7)
    mems = model(words(3, 12, seed=5)).mems
    cache = model.init_cache(3, 7)
    cache.load(mems)
    expected = model(ids, mems, attention_mask=mask)
    came = model(ids, cache, attention_mask=mask)
    seen = mask.bool()
    assert error(came.prediction_scores[seen], expected.prediction_scores[seen]) < LAYER
    after = words(3, 2, seed=6)
    expected = model(after, expected.mems).prediction_scores
    assert error(model(after, cache).prediction_scores, expected) < LAYER


def test_a_projected_memory_has_no_gradients():
    model = build()
    cache = model.init_cache(2)
    with pytest.raises(XlmfamError, match="no gradients"):
        model(words(2, 3), cache)
    with torch.no_grad(), pytest.raises(XlmfamError, match="has 2 rows, the inputs have 3"):
        model(words(3, 3), cache)
    with pytest.raises(XlmfamError, match="one for each of 2 layers, got 1"):
        cache.load([torch.zeros(9, 2, 18)])
    model.requires_grad_(False)
    model(words(2, 3), cache)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 4}])
def test_generation_in_a_batch_is_generation_alone(options):
    model, lengths = build(), (7, 3, 5)
    ids, mask = padded(lengths, 7)
    if options.get("do_sample"):  # draws differ by row: only the first has the same
        ids, mask, lengths = ids[:1], mask[:1], lengths[:1]
    options = {**options, "max_new_tokens": 14, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(ids, mask, **options)
    for row, length in enumerate(lengths):
        alone = model.generate(ids[row : row + 1, -length:], **options)
        assert together[row, 7:].tolist() == alone[0, length:].tolist()


def test_generation_goes_on_from_mems():
    model, text = build(), words(1, 20, seed=3)
    mems = model(text[:, :15]).mems
    came = model.generate(text[:, 15:], mems=mems, max_new_tokens=6, eos_token_id=None)
    ids = text[:, 15:]
    for _ in range(6):
        scores = model(ids, mems).prediction_scores[:, -1]
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    # Longer than the memory, so that every step sees what the cache does.
    assert came.tolist() == ids.tolist()
    other = model.generate(text[:, 15:], max_new_tokens=6, eos_token_id=None)
    assert came.tolist() != other.tolist()


# ---- clusters -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"div_val": 1}, {"cutoffs": [], "div_val": 1}])
def test_clusters_that_cannot_win_are_skipped(options, monkeypatch):
    model = build(**options)
    states, skipped = torch.randn(40, 18, generator=torch.Generator().manual_seed(3)) * 3, []
    tail = pt.transfo_xl_modules.AdaptiveSoftmax.tail

    def spy(self, cluster, hidden):
        skipped.append(cluster)
        return tail(self, cluster, hidden)

    monkeypatch.setattr(pt.transfo_xl_modules.AdaptiveSoftmax, "tail", spy)
    for state in states.split(1):
        best = model.crit.greedy_scores(state).argmax(-1)
        assert best == model.crit.log_prob(state).argmax(-1)
    tails = len(model.config.cutoffs)
    assert len(skipped) < 2 * 40 * tails or not tails


def test_greedy_search_skips_and_other_options_do_not(monkeypatch):
    model, calls = build(), []
    softmax = pt.transfo_xl_modules.AdaptiveSoftmax
    monkeypatch.setattr(
        softmax, "greedy_scores", lambda self, h: calls.append(1) or softmax.log_prob(self, h)
    )
    model.generate(words(1, 3), max_new_tokens=4)
    assert calls
    calls.clear()
    for option in (
        {"do_sample": True},
        {"num_beams": 2},
        {"repetition_penalty": 1.2},
        {"min_new_tokens": 2},
        {"output_scores": True},
    ):
        model.generate(words(1, 3), max_new_tokens=4, **option)
    model.generate(words(1, 3), max_new_tokens=4, logits_processor=[lambda ids, scores: scores])
    assert not calls


@pytest.mark.parametrize("options", [{}, {"div_val": 1}])
def test_compiled_graphs_agree(options):
    torch._dynamo.reset()
    model, ids = build(**options), words(2, 6)
    mems = model.init_mems(2)
    expected = model(ids, mems, labels=ids)
    expected.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    came = compiled(ids, mems, labels=ids)
    came.loss.backward()
    assert error(came.losses, expected.losses) < MODEL
    largest = max(value.abs().max() for value in gradients.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() < MODEL * largest, name


# ---- training and numbers -------------------------------------------------------------------


def test_dropout_in_training_only():
    model, ids = build(dropout=0.5, dropatt=0.5), words(2, 6)
    assert error(model(ids).prediction_scores, model(ids).prediction_scores) == 0
    model.train()
    assert error(model(ids).prediction_scores, model(ids).prediction_scores) > 1e-3


def test_recomputing_layers_changes_nothing():
    model, ids = build().train(), words(2, 6)
    grads = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", KINDS)
@torch.no_grad()
def test_half_precision(dtype, options):
    model, ids = build(**options), words(2, 9)
    exact = model(ids).prediction_scores
    half = copy.deepcopy(model).to(dtype)
    came = half(ids).prediction_scores
    assert came.isfinite().all()
    assert error(came.float(), exact) < 0.05
    assert half(ids, labels=ids).loss.isfinite()
    cache = half.init_cache(2)
    assert error(half(ids, cache).prediction_scores.float(), exact) < 0.05


def test_a_model_learns():
    model, text = build().train(), words(2, 24)
    rule, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(30):
        mems, loss = None, 0
        for piece in text.split(8, 1):
            output = model(piece, mems, labels=piece)
            loss, mems = loss + output.loss, output.mems
        rule.zero_grad()
        loss.backward()
        rule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not any(memory.requires_grad for memory in mems)


def test_mems_that_require_gradients_pass_them_on():
    model, ids = build(), words(1, 4)
    mems = [memory.requires_grad_() for memory in model.init_mems(1)]
    model(ids, mems, labels=ids).loss.backward()
    assert all(memory.grad.abs().sum() > 0 for memory in mems)


def test_inputs_are_never_changed():
    model, ids = build(), words(2, 6)
    labels = torch.full((2, 6), -100)
    labels[1, 3] = 5
    mems = [torch.randn(9, 2, 18) for _ in range(2)]
    kept = copy.deepcopy((ids, labels, mems))
    loss = model(ids, mems, labels=labels).loss
    assert loss.isfinite()
    for one, other in zip((ids, labels, *mems), (*kept[:2], *kept[2]), strict=True):
        assert torch.equal(one, other)


# ---- perplexity -----------------------------------------------------------------------------


def test_perplexity_by_hand():
    model, text = build(), words(47, seed=7)
    came = model.train().evaluate_perplexity(text, 2, 5, memory_length=6, clamp_length=3)
    assert model.training
    assert (model.transformer.mem_len, model.config.clamp_len) == (9, 8)
    rows = text[:46].view(2, 23)
    other = build(mem_len=6, clamp_len=3)
    other.load_state_dict(model.state_dict())
    scores, mems = [], None
    for piece in rows.split(5, 1):
        output = other(piece, mems)
        scores.append(output.prediction_scores)
        mems = output.mems
    losses = -torch.cat(scores, 1)[:, :-1].gather(-1, rows[:, 1:, None])
    assert came.tokens == losses.numel() == 44
    assert came.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert came.perplexity == pytest.approx(losses.mean().exp().item(), rel=1e-4)
    assert came.bits_per_token == pytest.approx(losses.mean().item() / np.log(2), rel=1e-5)
    assert came.bits_per_character(88) == pytest.approx(came.bits_per_token / 2)


@pytest.mark.parametrize(
    ("stream", "sizes", "message"),
    [
        (words(3), {"batch_size": 2}, "3 tokens in 2 rows leave nothing"),
        (words(2, 9), {}, "token ids in one row"),
        (torch.zeros(9), {}, "token ids in one row"),
        (words(9), {"segment_length": 0}, "must be positive"),
        (words(9), {"memory_length": -1}, "mem_len must be 0 or more"),
        (words(9) + 50, {}, "outside the vocabulary of 53"),
    ],
)
def test_texts_that_cannot_be_evaluated(stream, sizes, message):
    with pytest.raises(XlmfamError, match=message):
        build().evaluate_perplexity(stream, **sizes)


# ---- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": words(1, 4) + 50}, "outside the vocabulary of 53"),
        ({}, "neither came"),
        ({"input_ids": words(1, 4), "mems": [torch.zeros(9, 1, 18)]}, "2 layers, got 1"),
        ({"input_ids": words(1, 4), "mems": [torch.zeros(9, 2, 18)] * 2}, "a layer of mems"),
        ({"input_ids": words(1, 4), "head_mask": torch.ones(4)}, "head_mask must have shape"),
        ({"input_ids": words(1, 4), "labels": words(1, 3)}, "labels must have shape"),
        ({"input_ids": words(1, 1), "labels": words(1, 1)}, "two tokens in a row"),
        ({"input_ids": words(1, 4), "labels": words(1, 4) + 53}, "labels holds"),
    ],
)
def test_calls_that_cannot_be(inputs, message):
    with pytest.raises(XlmfamError, match=message):
        build()(**inputs)


def test_texts_without_a_padding_id_cannot_be_classified_together():
    model = build("TransfoXLForSequenceClassification")
    with pytest.raises(XlmfamError, match="pad_token_id"):
        model(words(2, 4))
    model(words(1, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_type": 1}, "attn_type must be 0"),
        ({"sample_softmax": 5}, "sample_softmax is not supported"),
        ({"cutoffs": [28, 11]}, "cutoffs must ascend"),
        ({"cutoffs": [60]}, "cutoffs must ascend"),
        ({"div_val": 8}, "no width"),
        ({"d_model": 17}, "d_model must be even"),
        ({"mem_len": -1}, "mem_len must be 0 or"),
        ({"tie_projs": [False] * 4}, "tie_projs has more values"),
        ({"init": "xavier"}, "init must be one of"),
    ],
)
def test_configs_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        TransfoXLConfig(**{**SIZES, **options})


@pytest.mark.parametrize(
    ("size", "layer", "message"),
    [(60, 3, "no 3"), (35, 1, "leaves cluster 1 no words"), (0, -1, "no words")],
)
def test_vocabularies_that_cannot_be(size, layer, message):
    model = build()
    with pytest.raises(XlmfamError, match=message):
        model.resize_token_embeddings(size, layer)
    assert model.config.vocab_size == 53
    model(words(1, 3))


def test_embeddings_by_themselves():
    embedding = build("TransfoXLModel").word_emb
    assert isinstance(embedding, pt.AdaptiveEmbedding)
    ids = words(3, 9)
    came = embedding(ids)
    for cluster, (first, end) in enumerate(((0, 11), (11, 28), (28, 53))):
        inside = (ids >= first) & (ids < end)
        rows = embedding.emb_layers[cluster].weight[ids[inside] - first]
        expected = rows @ embedding.emb_projs[cluster].T * 18**0.5
        assert error(came[inside], expected) < LAYER
    with pytest.raises(XlmfamError, match="sample_softmax"):
        pt.AdaptiveEmbedding(53, 12, 18, [11, 28], 2, sample_softmax=1)
