"""The three backends against each other, two at a time, on random parameters."""

import zlib
from functools import lru_cache

import numpy as np
import pytest
from backends import get_backend
from comparing import assert_close, assert_same_bits, assert_same_tokens, flatten
from families import FAMILIES, head_of, heads, learned
from golden import gradient_scales, select
from tolerances import MODEL

PAIRS = [("pt", "tf"), ("pt", "flax"), ("tf", "flax")]
HEADS = heads()
TRAINED = [entry for entry in HEADS if head_of(*entry).training]
GENERATING = [entry for entry in HEADS if head_of(*entry).generation]

pairs = pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])


def over(entries):
    return pytest.mark.parametrize("entry", entries, ids=["-".join(e) for e in entries])


class Results:
    """What every backend gives for a head; each thing is computed once."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        for name in ("model", "forward", "gradients", "step", "generation"):
            setattr(self, name, lru_cache(None)(getattr(self, name)))

    def parts(self, entry):
        family, variant, _ = entry
        return FAMILIES[family].configs[variant], head_of(*entry)

    def inputs(self, entry, name, make):
        return make(self.parts(entry)[0], np.random.default_rng(zlib.crc32(name.encode())))

    def model(self, name, entry):
        return get_backend(name).load(entry[2], self.checkpoint(*entry)[0])

    def forward(self, name, entry):
        config, head = self.parts(entry)
        return {
            call_name: self._call(name, entry, call_name, call)
            for call_name, call in head.calls.items()
            if call.when(config)
        }

    def _call(self, name, entry, call_name, call):
        inputs = self.inputs(entry, call_name, call.inputs)
        output = get_backend(name).call(self.model(name, entry), inputs, **call.flags)
        mask = inputs.get(call.valid)
        return {field: select(field, value, mask, mask) for field, value in output.items()}

    def _labelled(self, entry):
        config, head = self.parts(entry)
        *_, chosen = (name for name in head.training if head.calls[name].when(config))
        return self.inputs(entry, chosen, head.calls[chosen].inputs)

    def gradients(self, name, entry):
        return get_backend(name).loss_and_gradients(self.model(name, entry), self._labelled(entry))

    def step(self, name, entry):
        backend = get_backend(name)
        fresh = backend.load(entry[2], self.checkpoint(*entry)[0])
        return backend.step(fresh, self._labelled(entry), "adamw")

    def generation(self, name, entry, options):
        head = self.parts(entry)[1]
        inputs = self.inputs(entry, "prompts", head.prompts)
        chosen = head.generation[options]
        return get_backend(name).generate(self.model(name, entry), inputs, **chosen)


@pytest.fixture(scope="module")
def results(checkpoint):
    return Results(checkpoint)


@pytest.fixture
def names(pair):
    for name in pair:
        get_backend(name)
    return pair


@pairs
@over(HEADS)
def test_every_output_of_every_call(names, entry, results):
    one, other = (results.forward(name, entry) for name in names)
    assert one.keys() == other.keys() != set()
    for call in one:
        assert_close(one[call], other[call], MODEL, f"{names} {entry} {call}")


@pairs
@over(TRAINED)
def test_loss_and_the_gradient_of_every_parameter(names, entry, results):
    (loss, gradients), (other_loss, others) = (results.gradients(name, entry) for name in names)
    assert_close({"loss": loss}, {"loss": other_loss}, MODEL, f"{names} {entry}")
    assert set(gradients) == learned(*entry), "a gradient for each parameter"
    largest = max(np.abs(value).max() for value in others.values())
    still = [name for name in others if FAMILIES[entry[0]].zero_gradient(name)]
    scales = gradient_scales(still, largest)
    assert_close(gradients, others, MODEL, f"{names} {entry} gradients", scales=scales)
    silent = [
        n for n, v in gradients.items() if np.abs(v).max() < 1e-6 * largest and n not in still
    ]
    assert not silent, f"nothing reaches {silent}"


@pairs
@over(TRAINED)
def test_one_adamw_step(names, entry, results):
    before = results.checkpoint(*entry)[1]
    one, other = (results.step(name, entry) for name in names)
    # Where the gradient is a rounding error, the step's direction is its sign.
    kept = [name for name in before if not FAMILIES[entry[0]].zero_gradient(name)]
    one, other = ({name: values[name] for name in kept} for values in (one, other))
    assert_close(one, other, MODEL, f"{names} {entry} step")
    moved = {name for name in kept if np.abs(other[name] - before[name]).max() > 5e-4}
    assert moved == learned(*entry) & set(kept)
    still = {name: before[name] for name in kept if name not in moved}
    if still:
        assert_same_bits({name: other[name] for name in still}, still, "what is never learned")


@pairs
@over(GENERATING)
@pytest.mark.parametrize("options", ["greedy", "beam"])
def test_tokens(names, entry, options, results):
    one, other = (results.generation(name, entry, options) for name in names)
    assert_same_tokens(one, other, f"{names} {entry} {options}")
    prompt = flatten(results.inputs(entry, "prompts", head_of(*entry).prompts))["input_ids"]
    assert np.asarray(one).shape[1] > prompt.shape[1]
