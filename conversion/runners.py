"""The same few things done in each backend: load, run with gradients, generate.

Frameworks are imported by the runner that needs them; arrays are NumPy on both sides.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from xlmfam.common.errors import MissingPackageError, XlmfamError
from xlmfam.common.parameters import table_of
from xlmfam.conversion.examples import Inputs, forward_only
from xlmfam.conversion.sources import named_class

# Package that tells whether a backend is installed. The order matters: torch goes before
# TensorFlow where both are loaded into one process.
PACKAGES = {"pt": "torch", "tf": "tensorflow", "flax": "flax"}
FRAMEWORKS = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax"}
BACKENDS = tuple(PACKAGES)


@dataclass
class Observation:
    """What one backend makes of a checkpoint and one batch; float32 throughout.

    Attributes:
        backend: ``pt``, ``tf`` or ``flax``.
        states: (B, S, D) of the embeddings and of every layer, by their names.
        predictions: Logits, probabilities and the like by their names; none of a base model.
        loss: Mean over the labels; for a base model one over its hidden states.
        gradients: Gradient of the loss by canonical parameter name, in canonical layout.
        seconds: Time to load and run.
    """

    backend: str
    states: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    loss: float
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0


class Runner(Protocol):
    """What is done differently in each framework."""

    def forward(self, model: Any, inputs: Inputs) -> Any:
        """Return the output."""

    def call(self, model: Any, inputs: Inputs, gradients: bool) -> tuple[Any, Any, Any]:
        """Return output, loss and gradients (the latter as ``model.to_canonical`` takes them)."""

    def array(self, value: Any) -> np.ndarray:
        """Return a framework's tensor as an array."""

    def generate(self, model: Any, inputs: Inputs, jit: bool, options: dict[str, Any]) -> Any:
        """Continue prompts."""


def installed_backends() -> tuple[str, ...]:
    """Return the backends whose framework is installed, without importing any."""
    return tuple(name for name, package in PACKAGES.items() if _is_installed(package))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # blocked from import, or half loaded
        return False


def require_backend(backend: str) -> None:
    """Raise unless ``backend`` is one of ours and its framework is installed.

    Raises:
        XlmfamError: For another name.
        MissingPackageError: Where the framework is missing, with the way to get it.
    """
    if backend not in PACKAGES:
        raise XlmfamError(f"backend must be one of {', '.join(PACKAGES)}; got {backend!r}")
    if not _is_installed(PACKAGES[backend]):
        install = f'pip install "xlmfam[{backend}]"'
        raise MissingPackageError(PACKAGES[backend], f"backend {backend!r}", install)


def load(
    backend: str,
    name_or_path: str | os.PathLike[str],
    head: str | None = None,
    **kwargs: Any,
) -> Any:
    """Load a checkpoint into a backend, in float32.

    Args:
        backend: ``pt``, ``tf`` or ``flax``.
        name_or_path: Folder, file or hub id.
        head: The class; by default the one that the config names.
        **kwargs: For ``from_pretrained``.
    """
    require_backend(backend)
    module = importlib.import_module(f"xlmfam.{backend}")
    if head is None:
        from xlmfam.common.configs import AutoConfig
        from xlmfam.common.configs.base import pop_hub_arguments

        config = AutoConfig.from_pretrained(name_or_path, **pop_hub_arguments(dict(kwargs)))
        head = named_class(config) or table_of(config.model_type).heads[0]
    return getattr(module, head).from_pretrained(name_or_path, **kwargs)


def observe(
    backend: str,
    name_or_path: str | os.PathLike[str],
    inputs: Inputs,
    gradients: bool = True,
    *,
    head: str | None = None,
    jit: bool = False,
    **kwargs: Any,
) -> Observation:
    """Load a checkpoint in one backend and run it once, without dropout.

    Args:
        backend: ``pt``, ``tf`` or ``flax``.
        name_or_path: Folder, file or hub id.
        inputs: What its class takes, with labels; see `example_inputs`.
        gradients: Whether to run backwards as well.
        head: The class; by default the one that the config names.
        jit: Compile whole calls (Flax only): few layers take less time so, while many have their
            pieces in common.
        **kwargs: For ``from_pretrained``.
    """
    started = time.perf_counter()
    model = load(backend, name_or_path, head, **kwargs)
    return observe_model(backend, model, inputs, gradients, started, jit)


def observe_model(
    backend: str,
    model: Any,
    inputs: Inputs,
    gradients: bool = True,
    started: float | None = None,
    jit: bool = False,
) -> Observation:
    """Run a model that is loaded already; see `observe`."""
    started = time.perf_counter() if started is None else started
    runner = FlaxRunner(jit) if jit and backend == "flax" else runner_of(backend)
    used = inputs if _has_head(model) else forward_only(inputs)
    output, loss, slopes = runner.call(model, used, gradients)
    predictions = _predictions(output, runner.array)
    if _has_head(model) and not {*predictions} - {"losses"}:  # some give a loss in their place
        unasked = _predictions(runner.forward(model, forward_only(inputs)), runner.array)
        predictions = {**unasked, **predictions}
    learned = {name for name, p in model.expected_parameters().items() if p.trainable}
    slopes = model.to_canonical(slopes) if gradients else {}
    return Observation(
        backend=backend,
        states=_states(output, runner.array),
        predictions=predictions,
        loss=float(runner.array(loss)),
        gradients={name: slope for name, slope in slopes.items() if name in learned},
        seconds=time.perf_counter() - started,
    )


def _states(output: Any, array: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states by name; an encoder's and a decoder's have its name before theirs."""
    found = {}
    for field_name in sorted(output, reverse=True):  # the encoder first
        if not field_name.endswith("hidden_states"):
            continue
        part = field_name.removesuffix("hidden_states").replace("_", " ")
        for index, state in enumerate(output[field_name]):
            name = f"layer {index - 1}" if index else "embeddings"
            found[part + name] = array(state)
    return found


def _predictions(output: Any, array: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray]:
    """What a head says, except for indices: a rounding error may swap two that are close."""
    others = ("loss", "past_key_values", "last_hidden_state", "encoder_last_hidden_state")
    arrays = {
        name: array(value)
        for name, value in output.items()
        if name not in others and not isinstance(value, tuple | list)
    }
    return {name: a for name, a in arrays.items() if np.issubdtype(a.dtype, np.floating)}


def generate(
    backend: str, model: Any, inputs: Inputs, *, jit: bool = False, **options: Any
) -> np.ndarray:
    """Continue prompts in one backend.

    Args:
        backend: ``pt``, ``tf`` or ``flax``.
        model: A model of that backend.
        inputs: ``input_ids`` and ``attention_mask``, padded on the left.
        jit: Compile the whole call (Flax only; the others have it built in or do not need it).
        **options: See ``GenerationConfig``.

    Returns:
        (B * num_return_sequences, length) ids with the prompts.
    """
    runner = runner_of(backend)
    return runner.array(runner.generate(model, inputs, jit, options))


def probe(shape: tuple[int, ...]) -> np.ndarray:
    """Fixed weights that turn the hidden states of a model without a head into one number.

    Its loss is the mean square of the weighted states: a sum of terms of both signs would be
    small and have large rounding errors.
    """
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def _has_head(model: Any) -> bool:
    return model.table_class != table_of(model.config.model_type).base


def _flags(call: Callable[..., Any]) -> dict[str, bool]:
    """What every call asks for; not all classes know a cache."""
    flags = {"output_hidden_states": True, "return_dict": True}
    has_cache = "use_cache" in inspect.signature(call).parameters
    return {**flags, "use_cache": False} if has_cache else flags


class TorchRunner:
    """xlmfam.pt."""

    def forward(self, model: Any, inputs: Inputs) -> Any:
        """See `Runner`."""
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        return model(**tensors, **_flags(model.forward))

    def call(self, model: Any, inputs: Inputs, gradients: bool) -> tuple[Any, Any, Any]:
        """See `Runner`."""
        import torch

        has_head = _has_head(model)
        with torch.set_grad_enabled(gradients):
            output = self.forward(model, inputs)
            loss = output.loss if has_head else self._probed(output, inputs["attention_mask"])
        if gradients:
            model.zero_grad()
            loss.backward()
        slopes = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
        }
        return output, loss, slopes

    def _probed(self, output: Any, mask: Any) -> Any:
        import torch

        hidden = output.last_hidden_state * torch.from_numpy(mask[..., None])
        return (hidden * torch.from_numpy(probe(tuple(hidden.shape)))).square().mean()

    def array(self, value: Any) -> np.ndarray:
        """See `Runner`."""
        return value.detach().cpu().numpy()

    def generate(self, model: Any, inputs: Inputs, jit: bool, options: dict[str, Any]) -> Any:  # noqa: ARG002
        """See `Runner`; also takes a streamer."""
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        return model.generate(**tensors, **options)


class TensorFlowRunner:
    """xlmfam.tf."""

    def forward(self, model: Any, inputs: Inputs) -> Any:
        """See `Runner`."""
        import tensorflow as tf

        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return model(**tensors, **_flags(model.call))

    def call(self, model: Any, inputs: Inputs, gradients: bool) -> tuple[Any, Any, Any]:
        """See `Runner`."""
        import tensorflow as tf

        has_head = _has_head(model)
        with tf.GradientTape() as tape:
            output = self.forward(model, inputs)
            # One value per label, whose mean is the loss.
            loss = tf.reduce_mean(
                output.loss if has_head else self._probed(output, inputs["attention_mask"])
            )
        if not gradients:
            return output, loss, None
        variables = [variable.value for variable in model.trainable_variables]
        # What the loss does not depend on has a gradient of zeros, as in the other frameworks.
        slopes = tape.gradient(loss, variables, unconnected_gradients="zero")
        slopes = [tf.convert_to_tensor(slope) for slope in slopes]
        return output, loss, slopes

    def _probed(self, output: Any, mask: Any) -> Any:
        import tensorflow as tf

        hidden = output.last_hidden_state
        weights = probe(tuple(hidden.shape)) * mask[..., None].astype(np.float32)
        return tf.square(hidden * tf.constant(weights))

    def array(self, value: Any) -> np.ndarray:
        """See `Runner`."""
        return np.asarray(value)

    def generate(self, model: Any, inputs: Inputs, jit: bool, options: dict[str, Any]) -> Any:  # noqa: ARG002
        """See `Runner`."""
        import tensorflow as tf

        return model.generate(
            **{name: tf.constant(value) for name, value in inputs.items()}, **options
        )


class FlaxRunner:
    """xlmfam.flax.

    Args:
        jit: Compile forward and backward passes as a whole.
    """

    def __init__(self, jit: bool = False):
        self.jit = jit

    def forward(self, model: Any, inputs: Inputs) -> Any:
        """See `Runner`."""
        import jax

        def run(params: Any) -> Any:
            return self._run(model, params, inputs)

        return (jax.jit(run) if self.jit else run)(model.params)

    def _run(self, model: Any, params: Any, inputs: Inputs) -> Any:
        import jax.numpy as jnp

        arrays = {
            name: jnp.asarray(value.astype(np.int32) if value.dtype.kind in "iu" else value)
            for name, value in inputs.items()
        }
        return model(**arrays, params=params, **_flags(type(model).__call__))

    def call(self, model: Any, inputs: Inputs, gradients: bool) -> tuple[Any, Any, Any]:
        """See `Runner`."""
        import jax

        has_head = _has_head(model)

        def loss_of(params: Any) -> tuple[Any, Any]:
            output = self._run(model, params, inputs)
            loss = output.loss if has_head else self._probed(output, inputs["attention_mask"])
            return loss, output

        if not gradients:
            loss, output = loss_of(model.params)
            return output, loss, None
        run = jax.value_and_grad(loss_of, has_aux=True)
        (loss, output), slopes = (jax.jit(run) if self.jit else run)(model.params)
        return output, loss, slopes

    def _probed(self, output: Any, mask: Any) -> Any:
        hidden = output.last_hidden_state * mask[..., None]
        return ((hidden * probe(tuple(hidden.shape))) ** 2).mean()

    def array(self, value: Any) -> np.ndarray:
        """See `Runner`."""
        return np.asarray(value)

    def generate(self, model: Any, inputs: Inputs, jit: bool, options: dict[str, Any]) -> Any:
        """See `Runner`; with ``jit`` the prompts and weights are arguments of one program."""
        import jax
        import jax.numpy as jnp

        arrays = {name: jnp.asarray(value.astype(np.int32)) for name, value in inputs.items()}

        def run(params: Any, arrays: dict[str, Any]) -> Any:
            return model.generate(**arrays, params=params, **options)

        return (jax.jit(run) if jit else run)(model.params, arrays)


def runner_of(backend: str) -> Runner:
    """Return the runner of a backend, whose framework must be installed."""
    require_backend(backend)
    if backend == "tf" and _is_installed("torch"):
        # Torch before TensorFlow: the other way round, their runtimes collide in one process.
        importlib.import_module("torch")
    runners: dict[str, Runner] = {
        "pt": TorchRunner(),
        "tf": TensorFlowRunner(),
        "flax": FlaxRunner(),
    }
    return runners[backend]
