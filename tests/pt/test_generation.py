"""What generate offers in PyTorch besides the reference's tokens."""

import itertools
import math
import threading

import pytest
import torch

from xlmfam import GenerationConfig
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.pt import KeyValueCache, TextIteratorStreamer, TextStreamer, processors
from xlmfam.pt.outputs import GenerateOutput

FREE = {"eos_token_id": None, "pad_token_id": 1}


class Letters:
    """A tokenizer of one character per id, spaces among them."""

    text = "".join(chr(97 + i % 26) if i % 4 else " " for i in range(53))

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.text[int(i)] for i in ids if not (skip_special_tokens and i < 4))


@pytest.fixture
def make(make):
    """Untied models: tied ones with random parameters say the same token for ever."""
    return lambda **options: make(**{"tie_word_embeddings": False, **options})


# ---- cache and steps ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}])
def test_with_and_without_a_cache(make, left_padded, options):
    model = make()
    options = {**FREE, **options, "max_new_tokens": 6}
    with_cache = model.generate(**left_padded, **options)
    without = model.generate(**left_padded, **options, use_cache=False)
    assert torch.equal(with_cache, without)


def test_buffers_are_allocated_once(make, ids, monkeypatch):
    model = make()
    seen = []
    advance = KeyValueCache.advance

    def watching(cache, tokens):
        seen.append([t.data_ptr() for t in (*cache.keys, *cache.values)])
        advance(cache, tokens)

    monkeypatch.setattr(KeyValueCache, "advance", watching)
    model.generate(ids, max_new_tokens=6, **FREE)
    assert len(seen) == 6
    assert all(pointers == seen[0] for pointers in seen)


def test_beams_swap_between_as_few_buffers_as_can_be(make, ids, monkeypatch):
    model = make()
    seen = []
    advance = KeyValueCache.advance

    def watching(cache, tokens):
        seen.append([t.data_ptr() for t in (*cache.keys, *cache.values)])
        advance(cache, tokens)

    monkeypatch.setattr(KeyValueCache, "advance", watching)
    model.generate(ids, max_new_tokens=9, num_beams=3, **FREE)
    after_prompt = {pointer for pointers in seen[1:] for pointer in pointers}
    assert len(after_prompt) == 2 * (2 + 1), "one spare key and value for two layers"


def test_one_position_s_logits_and_one_token_at_a_time(make, ids, monkeypatch):
    model = make()
    shapes = []
    forward = model.forward

    def watching(*args, **kwargs):
        output = forward(*args, **kwargs)
        shapes.append((tuple(kwargs["input_ids"].shape), tuple(output.logits.shape)))
        return output

    monkeypatch.setattr(model, "forward", watching)
    model.generate(ids, max_new_tokens=3, **FREE)
    assert shapes == [((2, 7), (2, 1, 53)), ((2, 1), (2, 1, 53)), ((2, 1), (2, 1, 53))]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_left_padded_rows_are_what_they_are_alone(make, left_padded, options):
    model = make()
    options = {**options, "max_new_tokens": 6, **FREE}
    together = model.generate(**left_padded, **options)
    alone = model.generate(left_padded["input_ids"][1:, 3:], **options)
    assert torch.equal(together[1, 3:], alone[0])
    by_pads = model.generate(left_padded["input_ids"], **options)
    assert torch.equal(by_pads, together), "pads are found where no mask is given"


def test_with_an_encoder(make, ids):
    model = make(add_cross_attention=True)
    encoder = {
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    }
    for options in ({}, {"num_beams": 3}):
        options = {**options, "max_new_tokens": 5, **FREE}
        came = model.generate(ids, **encoder, **options)
        slow = model.generate(ids, **encoder, **options, use_cache=False)
        assert torch.equal(came, slow)
        alone = model.generate(
            ids[1:], encoder_hidden_states=encoder["encoder_hidden_states"][1:, :2], **options
        )
        assert torch.equal(came[1:], alone)
        assert not torch.equal(came, model.generate(ids, **options))


def test_the_caller_s_tensors_and_options_stay(make, left_padded):
    model = make()
    before = {name: value.clone() for name, value in left_padded.items()}
    options = model.generation_config.to_dict()
    out = model.generate(**left_padded, max_new_tokens=3, num_beams=2)
    assert all(torch.equal(left_padded[name], value) for name, value in before.items())
    assert model.generation_config.to_dict() == options
    assert not out.requires_grad
    assert out.dtype is torch.long


def test_a_generation_config_and_options_over_it(make, ids):
    model = make()
    options = GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=1)
    assert model.generate(ids, generation_config=options).shape == (2, 10)
    assert model.generate(ids, generation_config=options, max_new_tokens=2).shape == (2, 9)
    assert model.generate(inputs=ids, generation_config=options).shape == (2, 10)


def test_no_prompt(make):
    model = make()
    assert model.generate(max_new_tokens=2, **FREE)[0, 0] == 0
    with pytest.raises(XlmfamError, match="no bos_token_id"):
        model.generate(generation_config=GenerationConfig(max_new_tokens=2))


def test_results_as_a_dict(make, ids):
    model = make()
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, **FREE}
    output = model.generate(ids, **options, output_scores=True)
    assert type(output) is GenerateOutput
    assert [tuple(step.shape) for step in output.scores] == [(2, 53)] * 3
    assert output.sequences_scores is None
    assert model.generate(ids, **options).scores is None
    beams = model.generate(ids, **options, output_scores=True, num_beams=2)
    assert [tuple(step.shape) for step in beams.scores] == [(4, 53)] * 3
    assert beams.sequences_scores.shape == (2,)


WRONG = {
    "right_padding": (
        {"attention_mask": torch.tensor([[1] * 7, [1] * 6 + [0]])},
        "must be padded on the left",
    ),
    "all_masked": ({"attention_mask": torch.tensor([[1] * 7, [0] * 7])}, "masks a whole prompt"),
    "mask_shape": (
        {"attention_mask": torch.ones(2, 6)},
        r"attention_mask must have shape \(2, 7\)",
    ),
    "option": ({"max_tokens": 3}, "no option max_tokens"),
    "temperature": ({"temperature": 0.0}, "temperature must be a positive number"),
    "length": ({"max_length": 5, "max_new_tokens": None}, "prompt has 7 tokens"),
    "flat": ({"input_ids": torch.zeros(7).long()}, r"must be \(batch, sequence\)"),
    "empty": ({"input_ids": torch.zeros(2, 0).long()}, "not empty"),
    "ids": ({"input_ids": torch.full((2, 7), 60)}, "outside the vocabulary"),
    "streamer": ({"streamer": TextStreamer(Letters())}, "streamer needs one prompt"),
    "stop_strings": ({"stop_strings": "a"}, "stop_strings needs tokenizer"),
    "encoder": ({"encoder_hidden_states": torch.zeros(2, 5, 24)}, "add_cross_attention"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=list(WRONG))
def test_what_cannot_be(make, ids, changes, message):
    with pytest.raises((ConfigError, XlmfamError), match=message):
        make().generate(**{"input_ids": ids, "max_new_tokens": 3, **changes})


# ---- hooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
def test_logits_processors_see_and_change_scores(make, ids, beams):
    seen = []

    def only_even(so_far, scores):
        seen.append((tuple(so_far.shape), tuple(scores.shape)))
        odd = torch.arange(53) % 2 == 1
        return scores.masked_fill(odd, float("-inf"))

    out = make().generate(
        ids, max_new_tokens=4, num_beams=beams, logits_processor=[only_even], **FREE
    )
    assert (out[:, 7:] % 2 == 0).all()
    assert seen[0] == ((2 * beams, 7), (2 * beams, 53))
    assert [shape[1] for shape, _ in seen] == [7, 8, 9, 10]


def test_stopping_criteria_for_all_rows_and_row_by_row(make, ids):
    model = make()
    everything = model.generate(ids, max_new_tokens=8, **FREE)
    out = model.generate(
        ids, max_new_tokens=8, stopping_criteria=[lambda so_far, _: so_far.shape[1] == 9], **FREE
    )
    assert torch.equal(out, everything[:, :9])

    def first_row_at_nine(so_far, scores):
        return torch.tensor([so_far.shape[1] >= 9, False])

    out = model.generate(ids, max_new_tokens=5, stopping_criteria=[first_row_at_nine], **FREE)
    assert torch.equal(out[1], everything[1, :12])
    assert torch.equal(out[0, :9], everything[0, :9])
    assert (out[0, 9:] == 1).all()


def test_stop_strings(make, ids):
    model = make()
    everything = model.generate(ids, max_new_tokens=10, **FREE)
    tokenizer = Letters()
    string = tokenizer.decode(everything[0, 8:10])
    assert tokenizer.decode(everything[0, 7:9]) != string
    out = model.generate(ids, max_new_tokens=10, stop_strings=[string], tokenizer=tokenizer, **FREE)
    texts = [tokenizer.decode(row[7:]) for row in everything.tolist()]
    ends = [text.find(string) + 2 if string in text else 10 for text in texts]
    assert ends[0] == 3
    for row, whole, end in zip(out, everything, ends, strict=True):
        assert torch.equal(row[: 7 + end], whole[: 7 + end])
        assert (row[7 + end :] == 1).all()


def test_text_streamer(make, ids, capsys):
    model = make()
    tokenizer = Letters()
    out = model.generate(
        ids[:1], max_new_tokens=12, streamer=TextStreamer(tokenizer, skip_prompt=True), **FREE
    )
    assert capsys.readouterr().out == tokenizer.decode(out[0, 7:]) + "\n"
    model.generate(ids[:1], max_new_tokens=12, streamer=TextStreamer(tokenizer), **FREE)
    assert capsys.readouterr().out == tokenizer.decode(out[0]) + "\n"


def test_text_streamer_hands_on_whole_words_only():
    pieces = []

    class Collecting(TextStreamer):
        def on_text(self, text, is_end):
            pieces.append(text)

    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    streamer = Collecting(Bytes())
    streamer.put(torch.tensor([[]], dtype=torch.long))
    for byte in "one twö 漢字 x\n".encode():
        streamer.put(torch.tensor([byte]))
    streamer.end()
    assert pieces == ["one ", "twö ", "漢", "字", " ", "x\n", ""]
    streamer.put(torch.tensor([[104, 105]]))
    streamer.end()
    assert pieces[-1] == "hi", "it can be used again"


def test_text_iterator_streamer(make, ids):
    model = make()
    tokenizer = Letters()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            model.generate(ids[:1], max_new_tokens=12, streamer=streamer, **FREE)
        )
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(found[0][0, 7:])
    assert len(pieces) > 1


def test_a_streamer_takes_one_prompt():
    with pytest.raises(ValueError, match="one prompt"):
        TextStreamer(Letters()).put(torch.zeros(2, 3))


# ---- sampling -------------------------------------------------------------------------------


def test_a_seed_makes_sampling_repeatable(make, ids):
    model = make()
    options = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 2, **FREE}
    first = model.generate(ids, seed=5, **options)
    state = torch.get_rng_state()
    assert torch.equal(model.generate(ids, seed=5, **options), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert not torch.equal(model.generate(ids, seed=6, **options), first)
    assert first.shape == (4, 15)
    assert torch.equal(first[::2, :7], ids)
    torch.manual_seed(1)
    free = model.generate(ids, **options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(ids, **options), free)


def chi_square(counts, probabilities):
    """The statistic and its 99.9 % bound (Wilson and Hilferty's approximation)."""
    kept = probabilities > 0
    expected = probabilities[kept] * counts.sum()
    statistic = ((counts[kept] - expected) ** 2 / expected).sum().item()
    degrees = int(kept.sum()) - 1
    bound = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    return statistic, bound


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}, {"typical_p": 0.5}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_draws_have_the_distribution_that_was_asked_for(make, options):
    model = make(vocab_size=9)
    prompt = torch.tensor([[5, 6]])
    options = {"top_k": 0, **options}
    count = 20000
    out = model.generate(
        prompt,
        do_sample=True,
        max_new_tokens=1,
        num_return_sequences=count,
        seed=11,
        **options,
        **FREE,
    )
    probabilities = expected_distribution(model(prompt).logits[0, -1].detach().double(), options)
    counts = torch.bincount(out[:, 2], minlength=9).double()
    assert not counts[probabilities == 0].any()
    statistic, bound = chi_square(counts, probabilities)
    assert statistic < bound
    wrong, _ = chi_square(counts, torch.full((9,), 1 / 9).double())
    assert wrong > bound, "the test would see another distribution"


def expected_distribution(logits, options):
    """The distribution by definition, one token at a time."""
    p = (logits / options.get("temperature", 1.0)).softmax(-1)
    order = p.argsort(descending=True).tolist()
    if options["top_k"]:
        kept = order[: options["top_k"]]
    elif "typical_p" in options:
        entropy = -(p * p.log()).sum()
        order = (-p.log() - entropy).abs().argsort().tolist()
        kept = smallest_set(p, order, options["typical_p"])
    else:
        kept = smallest_set(p, order, options.get("top_p", 1.0))
    out = torch.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


def smallest_set(p, order, mass):
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += p[token].item()
        if total >= mass:
            break
    return kept


def test_support_of_the_warpers():
    scores = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    for function, arguments, kept in [
        (processors.keep_top_k, (2,), [0, 1]),
        (processors.keep_top_k, (9,), [0, 1, 2, 3, 4]),
        (processors.keep_top_p, (0.6, 1), [0, 1]),
        (processors.keep_top_p, (0.1, 1), [0]),
        (processors.keep_top_p, (0.1, 3), [0, 1, 2]),
        (processors.keep_typical, (0.3, 1), [1, 2]),
    ]:
        finite = torch.isfinite(function(scores, *arguments))[0].nonzero().flatten().tolist()
        assert finite == kept, (function.__name__, arguments)


def test_ties_at_the_edge_of_top_k_stay():
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    assert torch.isfinite(processors.keep_top_k(scores, 2)).all()


def test_sampled_beams(make, ids):
    model = make()
    options = {"num_beams": 3, "do_sample": True, "max_new_tokens": 5, "num_return_sequences": 3}
    first = model.generate(ids, seed=1, **options, **FREE)
    assert torch.equal(model.generate(ids, seed=1, **options, **FREE), first)
    rows = {tuple(model.generate(ids, seed=s, **options, **FREE)[0].tolist()) for s in range(5)}
    assert len(rows) > 1
    by_prompt = first.view(2, 3, -1)
    assert all(len({tuple(r.tolist()) for r in prompt}) == 3 for prompt in by_prompt)


# ---- the documented options, one at a time --------------------------------------------------


def test_forbidden_words_and_repeats_do_not_occur(make, ids):
    model = make()
    everything = model.generate(ids, max_new_tokens=12, **FREE)[:, 7:]
    word, pair = everything[0, 3].item(), everything[0, 5:7].tolist()
    for beams in (1, 3):
        out = model.generate(
            ids, max_new_tokens=12, bad_words_ids=[[word], pair], num_beams=beams, **FREE
        )
        assert word not in out[:, 7:]
        pairs = torch.stack([out[:, 6:-1], out[:, 7:]], -1).flatten(0, 1).tolist()
        assert pair not in pairs
        out = model.generate(
            ids, max_new_tokens=30, no_repeat_ngram_size=2, num_beams=beams, **FREE
        )
        for row in out.tolist():
            grams = list(itertools.pairwise(row))
            assert len(set(grams)) == len(grams)


def test_several_ends_and_padding_after_them(make, ids):
    model = make()
    everything = model.generate(ids, max_new_tokens=12, **FREE)
    ends = [everything[0, 9].item(), everything[1, 10].item()]
    out = model.generate(ids, max_new_tokens=12, eos_token_id=ends, pad_token_id=3)
    for row, whole in zip(out.tolist(), everything.tolist(), strict=True):
        stop = next(i for i in range(7, len(whole)) if whole[i] in ends) + 1
        assert row[:stop] == whole[:stop]
        assert all(token == 3 for token in row[stop:])
    late = model.generate(ids, max_new_tokens=12, eos_token_id=ends, min_new_tokens=8)
    assert not torch.isin(late[:, 7:15], torch.tensor(ends)).any()
