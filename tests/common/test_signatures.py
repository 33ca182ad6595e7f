"""Calls take what transformers 4.37.2 documents, in its order and with its defaults."""

import inspect
import json
from pathlib import Path

import pytest

from xlmfam.common.parameters import TABLES

FOLDER = Path(__file__).parents[1] / "data" / "manifests"
MANIFESTS = {
    name: json.loads((FOLDER / f"{name.replace('-', '_')}.json").read_text())["signatures"]
    for name in TABLES
}
PREFIX = {"pt": "", "tf": "TF", "flax": "Flax"}
CALL = {"pt": "forward", "tf": "call", "flax": "__call__"}
# Our own, which the reference does not have.
OURS = ["XLMEncoderDecoder"]
CLASSES = sorted(
    {
        name.removeprefix("TF").removeprefix("Flax")
        for signatures in MANIFESTS.values()
        for name in signatures
        if "." not in name
    }
)


def documented(name):
    """The reference's arguments and their defaults; none where it has no such class."""
    for signatures in MANIFESTS.values():
        if name in signatures:
            return {k: v for k, v in signatures[name] if not k.startswith("**")}
    return {}


def parameters_of(model_class, method):
    """The arguments of a method; ``*args`` and ``**kwargs`` are those of the base's."""
    found = {}
    for base in model_class.__mro__:
        if method not in vars(base):
            continue
        own = inspect.signature(getattr(base, method)).parameters
        kinds = {parameter.kind for parameter in own.values()}
        passes_on = inspect.Parameter.VAR_POSITIONAL in kinds
        named = {n: p for n, p in own.items() if p.kind not in VARIADIC}
        found |= {name: p for name, p in named.items() if name not in found}
        if not passes_on:
            break
    return {name: p for name, p in found.items() if name != "self"}


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@pytest.mark.parametrize("class_name", CLASSES)
def test_call(backend, class_name):
    parameters = parameters_of(backend.cls(class_name), CALL[backend.name])
    # Where it has no class for this framework, PyTorch's arguments count.
    expected = documented(PREFIX[backend.name] + class_name) or documented(class_name)
    assert expected
    missing = [name for name in expected if name not in parameters]
    assert not missing
    defaults = {name: parameters[name].default for name in expected}
    empty = inspect.Parameter.empty
    wrong = {
        name: (defaults[name], value)
        for name, value in expected.items()
        # What is required there may be optional here; Keras 3 decides on training=None.
        if (value != "<required>" and defaults[name] != value and name != "training")
        or (value == "<required>" and defaults[name] not in (None, empty))
    }
    assert not wrong
    positional = [name for name in parameters if name in expected]
    assert positional == [n for n in expected if n in positional], "the same by position"


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_backend_takes_what_pytorch_takes(backend, class_name):
    parameters = parameters_of(backend.cls(class_name), CALL[backend.name])
    missing = [name for name in documented(class_name) if name not in parameters]
    assert not missing


@pytest.mark.parametrize("class_name", [*CLASSES, *OURS])
def test_every_backend_takes_what_ours_in_pytorch_takes(backend, pt, class_name):
    parameters = parameters_of(backend.cls(class_name), CALL[backend.name])
    ours = parameters_of(pt.cls(class_name), CALL["pt"])
    assert ours
    missing = [name for name in ours if name not in parameters]
    assert not missing
    wrong = [name for name, own in ours.items() if parameters[name].default != own.default]
    assert not wrong


@pytest.mark.parametrize("class_name", [*CLASSES, *OURS])
def test_flax_constructor(flax, class_name):
    # Families that never were in Flax are built as XGLM is.
    names = (f"Flax{class_name}.__init__", "FlaxXGLMForCausalLM.__init__")
    expected = next(filter(None, map(documented, names)))
    parameters = parameters_of(flax.cls(class_name), "__init__")
    missing = [name for name in expected if name not in parameters]
    assert not missing
    for name in ("seed", "_do_init"):
        assert parameters[name].default == expected[name]


@pytest.mark.parametrize("class_name", [*CLASSES, *OURS, "AutoModel", "AutoModelForCausalLM"])
def test_prefixed_names_are_the_same_classes(backend, class_name):
    assert backend.cls(PREFIX[backend.name] + class_name) is backend.cls(class_name)


def test_the_three_packages_export_the_same_models():
    from backends import get_backend

    def models(name):
        return {n for n in get_backend(name).module.__all__ if n.startswith(("X", "Auto"))}

    assert models("pt") == models("tf") == models("flax")
