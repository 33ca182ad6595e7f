"""Transformer-XL over segments, streams and vocabularies of another size, in every backend."""

import numpy as np
import pytest
from comparing import assert_close
from golden import arrays, cases, folder, gradient_scales, load_case, named, resolve
from safetensors.numpy import load_file, save_file
from tolerances import MODEL

FAMILY = "transfo-xl"


def stored_of(case):
    return arrays(folder(FAMILY) / case["arrays"])


@pytest.mark.parametrize(**named(cases(FAMILY, "streams")), argnames="case")
def test_streams(backend, case):
    """The perplexity of two rows, read in segments."""
    stored, model = stored_of(case), load_case(backend, FAMILY, case)
    text = stored[case["input_ids"]]
    came = model.evaluate_perplexity(text.reshape(-1), len(text), case["segment"])
    assert came.tokens == stored[case["losses"]].size
    assert came.loss * came.tokens == pytest.approx(case["total"], rel=1e-6)
    assert np.isclose(came.perplexity, np.exp(case["total"] / came.tokens), rtol=1e-5)


@pytest.mark.parametrize(**named(cases(FAMILY, "streams")), argnames="case")
def test_streams_token_by_token(backend, case):
    """Losses and memories, the latter handed on from call to call."""
    stored, model = stored_of(case), load_case(backend, FAMILY, case)
    text, mems, losses = stored[case["input_ids"]], None, []
    targets = np.concatenate([text[:, 1:], np.full((len(text), 1), -100)], 1)
    for first in range(0, text.shape[1], case["segment"]):
        piece = slice(first, first + case["segment"])
        tensors = (backend.tensor(array[:, piece]) for array in (text, targets))
        came, mems = model.token_losses(*tensors, mems)
        losses.append(backend.array(came))
    came = np.concatenate(losses, 1)
    assert not came[:, -1].any()
    assert_close({"losses": came[:, :-1]}, {"losses": stored[case["losses"]]}, MODEL, f"{backend}")
    expected = stored[case["mems"]]
    if expected.size:
        last = np.stack([backend.array(memory) for memory in mems])
        assert_close({"mems": last}, {"mems": expected}, MODEL, f"{backend} mems")
    else:
        assert mems is None


@pytest.mark.parametrize(**named(cases(FAMILY, "resizing")), argnames="case")
def test_resizing(backend, case, tmp_path):
    """Rows of old words stay; the scores are those of a model of the new size."""
    stored, model = stored_of(case), load_case(backend, FAMILY, case)
    before = backend.parameters(model)
    model.resize_token_embeddings(**case["arguments"])
    assert {name: getattr(model.config, name) for name in case["config"]} == case["config"]
    after = backend.parameters(model)
    assert {name: list(value.shape) for name, value in after.items()} == {
        name: shape for name, shape in case["shapes"].items() if name in after
    }
    changed = resolve(case["parameters"], stored)
    assert changed.keys() == {n for n in after if after[n].shape != before[n].shape}
    for name, value in after.items():
        rows = min(len(value), len(before[name]))
        expected = changed.get(name, value)  # with what the reference drew for new words
        np.testing.assert_array_equal(value[:rows], before[name][:rows], err_msg=name)
        np.testing.assert_array_equal(value[:rows], expected[:rows], err_msg=name)
    backend.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), **changed}, file)
    again = backend.load(case["class"], tmp_path)
    for tried, same in ((again, True), (model, not changed)):
        came = backend.call(tried, {"input_ids": stored[case["input_ids"]]})
        assert came["prediction_scores"].shape[-1] == case["config"]["vocab_size"]
        if same:
            expected = resolve(case["expected"], stored)
            assert_close(came, expected, MODEL, f"{backend}", exact_names=False)


@pytest.mark.parametrize(**named(cases(FAMILY, "segments")), argnames="case")
def test_gradients_of_segments(backend, case):
    """Each segment learns by itself; what it reads of the one before has no gradient."""
    stored, model = stored_of(case), load_case(backend, FAMILY, case)
    mems, losses, total = None, [], {}
    for name in case["segments"]:
        text = stored[name]
        inputs = {"input_ids": text, "labels": text, **({"mems": mems} if mems else {})}
        loss, gradients = backend.loss_and_gradients(model, inputs)
        mems = backend.call(model, {k: v for k, v in inputs.items() if k != "labels"})["mems"]
        losses.append(loss)
        for key, value in gradients.items():
            total[key] = total.get(key, 0) + np.asarray(value)
    assert_close({"l": np.array(losses)}, {"l": stored[case["losses"]]}, MODEL, f"{backend} losses")
    expected = resolve(case["gradients"], stored)
    scales = gradient_scales(case.get("zero_gradients", ()), case["largest_gradient"])
    assert_close(total, expected, MODEL, f"{backend} gradients", scales=scales)
