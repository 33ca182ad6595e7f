"""Numbers of transformers 4.37.2 (tests/reference/README.md) and the assertions on them."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from comparing import assert_close, assert_same_tokens, error_of
from tolerances import MODEL

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
# Axes of batch and query in the fields that ``valid`` applies to.
BATCH_AND_QUERY = {
    "logits": (0, 1),
    "start_logits": (0, 1),
    "end_logits": (0, 1),
    "last_hidden_state": (0, 1),
    "hidden_states": (0, 1),
    "decoder_hidden_states": (0, 1),
    "attentions": (0, 2),
    "cross_attentions": (0, 2),
    "prediction_scores": (0, 1),
    "decoder_attentions": (0, 2),
}


@lru_cache
def folder(family):
    """Return the folder of a family's numbers."""
    return GOLDEN / family.replace("-", "_")


@lru_cache
def cases(family, section):
    """Return ``calls``, ``training`` or ``processors`` of a family."""
    return json.loads((folder(family) / "cases.json").read_text())[section]


@lru_cache
def arrays(path):
    """Return the arrays of an ``.npz`` file."""
    with np.load(path) as file:
        return dict(file)


def resolve(keys, stored):
    """Return nested arrays for nested keys."""
    if isinstance(keys, list):
        return tuple(resolve(key, stored) for key in keys)
    if isinstance(keys, dict):
        return {name: resolve(key, stored) for name, key in keys.items()}
    return stored[keys]


def named(items):
    """Return the cases as parameters of a test, by their names."""
    return {"argvalues": items, "ids": [item["name"] for item in items]}


def load_case(backend, family, case, class_name=None):
    """Load the checkpoint of a case, with the config values that it overrides.

    Args:
        backend: The adapter.
        family: The family.
        case: Names the checkpoint.
        class_name: The case's own class by default.
    """
    path = folder(family) / case["checkpoint"]
    return backend.load(class_name or case["class"], path, **case.get("overrides", {}))


class LoadedOnce:
    """Keeps models, one for each backend, class, checkpoint and overrides."""

    def __init__(self, class_name=None):
        self.class_name = class_name
        self.models = {}

    def __call__(self, backend, family, case):
        class_name = self.class_name or case["class"]
        overrides = json.dumps(case.get("overrides", {}), sort_keys=True)
        key = (backend.name, family, class_name, case["checkpoint"], overrides)
        if key not in self.models:
            self.models[key] = load_case(backend, family, case, class_name)
        return self.models[key]


# ---- calls --------------------------------------------------------------------------------


def assert_call(backend, model, family, case, tolerance=MODEL):
    """Run every step of a case of ``calls`` and assert that it gives what it should."""
    stored = arrays(folder(family) / case["arrays"])
    past = None
    cache = {"slen": 0}  # the same through all steps: the model fills it
    for number, step in enumerate(case["steps"]):
        inputs, flags = resolve(step["inputs"], stored), dict(step["flags"])
        if step.get("use_past"):
            inputs["past_key_values"] = past
        if step.get("use_mems"):
            inputs["mems"] = past
        if "reset_memory_length" in step:
            model.reset_memory_length(step["reset_memory_length"])
        if "cache" in step:
            flags["cache"] = cache
        output = backend.raw_call(model, inputs, **flags)
        past = output.get("mems", output.get("past_key_values"))
        what = f"{backend} {case['name']} step {number}"
        assert_step(_mean_loss(backend.numpy(output)), step, stored, what, tolerance)
        if "cache" in step:
            assert_cache(backend.numpy(cache), step["cache"], stored, what, tolerance)
    if any("reset_memory_length" in step for step in case["steps"]):
        model.reset_memory_length(model.config.mem_len)  # others use it too


def assert_cache(cache, expected, stored, what, tolerance=MODEL):
    """Assert what a call has left in a cache that is a dict."""
    assert cache["slen"] == expected["slen"], f"{what}: slen is {cache['slen']}"
    if "layers" in expected:
        layers = resolve(expected["layers"], stored)
        came = {name: value for name, value in cache.items() if name != "slen"}
        assert_close(came, dict(enumerate(layers)), tolerance, f"{what} cache")


def _mean_loss(output):
    """TensorFlow's loss is one per label; its mean is the others' loss."""
    if output.get("loss") is not None:
        output["loss"] = np.mean(output["loss"])
    return output


def assert_step(output, step, stored, what, tolerance=MODEL):
    """Assert that the output of one call has the right fields and numbers."""
    for name in step["absent"]:
        assert output.get(name) is None, f"{what}: {name} should not be there"
    for name in step["present"]:
        assert output.get(name) is not None, f"{what}: {name} is not there"
    wanted = resolve(step["expected"], stored)
    valid = stored[step["valid"]] if "valid" in step else None
    keys = stored[step["valid_keys"]] if "valid_keys" in step else None
    came = {name: select(name, output.get(name), valid, keys) for name in wanted}
    expected = {name: select(name, value, valid, keys) for name, value in wanted.items()}
    assert_close(came, expected, tolerance, what)
    for name, value in resolve(step.get("reference", {}), stored).items():
        error = error_of(came[name], select(name, value, valid, keys))
        assert error > tolerance, f"{what}: {name} repeats the reference's mistake"


def select(name, value, valid, keys):
    """Return the entries of an output field that mean something."""
    if valid is None or value is None or name == "loss":
        return value
    if name == "past_key_values":
        return [[*(_at(t, keys, (0, 2)) for t in layer[:2]), *layer[2:]] for layer in value]
    if name not in BATCH_AND_QUERY:
        return value
    axes = BATCH_AND_QUERY[name]
    if isinstance(value, tuple):
        return [_at(item, valid, axes) for item in value]
    return _at(value, valid, axes)


def _at(array, mask, axes):
    moved = np.moveaxis(array, axes, (0, 1))
    # Of another shape than the mask's: left as it is, for the comparison to report.
    return moved[mask.astype(bool)] if moved.shape[:2] == mask.shape else array


# ---- training -----------------------------------------------------------------------------


def gradient_scales(names, largest):
    """Return what gradients that are zero but for rounding are compared relative to."""
    return dict.fromkeys(names, largest)


def assert_gradients(backend, model, family, case):
    """Assert loss and every gradient of a case of ``training``."""
    stored = arrays(folder(family) / case["arrays"])
    inputs = resolve(case["inputs"], stored)
    loss, gradients = backend.loss_and_gradients(model, inputs, **case["flags"])
    assert_close({"loss": loss}, {"loss": stored[case["loss"]]}, MODEL, f"{backend} loss")
    expected = resolve(case["gradients"], stored)
    for name in case.get("no_gradient", ()):  # frameworks differ in how they say so
        gradients.setdefault(name, np.zeros_like(expected[name]))
    scales = gradient_scales(case["zero_gradients"], case["largest_gradient"])
    assert_close(gradients, expected, MODEL, f"{backend} {case['name']} gradients", scales=scales)


def assert_optimiser_step(backend, model, family, case, optimiser):
    """Assert parameters and loss after one step; the model changes."""
    stored = arrays(folder(family) / case["arrays"])
    inputs = resolve(case["inputs"], stored)
    options = case[optimiser]["options"]
    before = {name: value.copy() for name, value in backend.parameters(model).items()}
    came = backend.step(model, inputs, optimiser, **options)
    if optimiser == "sgd":
        slopes = resolve(case["gradients"], stored)
        expected = {name: before[name] - options["lr"] * slopes[name] for name in before}
        skipped = set()
    else:
        expected = resolve(case[optimiser]["parameters"], stored)
        skipped = set(case["zero_gradients"])  # the sign of a rounding error
    kept = [name for name in expected if name not in skipped]
    what = f"{backend} {case['name']} {optimiser}"
    assert_close({n: came[n] for n in kept}, {n: expected[n] for n in kept}, MODEL, what)
    loss = backend.call(model, inputs, **case["flags"])["loss"]
    after = stored[case[optimiser]["loss_after"]]
    assert_close({"loss": np.mean(loss)}, {"loss": after}, MODEL, f"{what} loss after")


# ---- generation ---------------------------------------------------------------------------


@lru_cache
def generation(family):
    """Return the cases of generation."""
    data = json.loads((folder(family) / "generation.json").read_text())
    stored = arrays(folder(family) / data["about"]["arrays"])
    for case in data["cases"]:
        if "scores" in case["expected"]:
            case["expected"]["scores"] = stored[case["expected"]["scores"]]
    return data["cases"]


def assert_generation(backend, model, case, tolerance=MODEL):
    """Assert that a case of generation gives the same tokens, and the same scores."""
    expected = case["expected"]
    options = {**case["kwargs"], "return_dict_in_generate": True}
    options["output_scores"] = "scores" in expected
    came = backend.generate(model, case["inputs"], **options)
    what = f"{backend} {case['name']} {case['kwargs']}"
    assert_same_tokens(came["sequences"], expected["sequences"], what)
    if "sequences_scores" in expected:
        wanted = {"sequences_scores": np.float32(expected["sequences_scores"])}
        assert_close(came, wanted, tolerance, what, exact_names=False)
    if "beam_indices" in expected:
        _assert_origins(came["beam_indices"], np.asarray(expected["beam_indices"]), what)
    if "scores" in expected:
        running = _running(expected, len(case["inputs"]["input_ids"]))
        scores = np.stack([np.asarray(step) for step in came["scores"]])
        assert scores.shape == expected["scores"].shape, f"{what}: scores {scores.shape}"
        wanted = {"scores": expected["scores"][running]}
        assert_close({"scores": scores[running]}, wanted, tolerance, what)
    return came


def _assert_origins(came, expected, what):
    steps = int((expected >= 0).sum(-1).max())
    assert_same_tokens(np.asarray(came)[:, :steps], expected[:, :steps], f"{what} beam_indices")


def _running(expected, prompts):
    """Return (steps, rows): where a score counts; the beams of a finished prompt have none."""
    steps, rows = expected["scores"].shape[:2]
    if "beam_indices" not in expected:
        return np.ones((steps, rows), bool)
    taken = np.asarray(expected["beam_indices"])[:, :steps] >= 0
    by_prompt = taken.reshape(prompts, -1, taken.shape[1]).any(1)
    return by_prompt.T.repeat(rows // prompts, 1)
