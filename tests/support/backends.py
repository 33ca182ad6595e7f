"""One adapter per backend: the same methods, NumPy in and NumPy out.

Frameworks are imported when an adapter is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pytest

BACKENDS = ("pt", "tf", "flax")
PACKAGES = {"pt": "torch", "tf": "tensorflow", "flax": "flax"}
# torch's AdamW, spelled out because the frameworks' defaults differ. With the usual epsilon of
# 1e-8 the direction of a step is the sign of a rounding error wherever a gradient is small.
SGD = {"lr": 0.1}
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 0.01}


@lru_cache
def get_backend(name):
    """Return the adapter of a backend; the test is skipped where it is not installed."""
    pytest.importorskip(PACKAGES[name])
    return {"pt": Torch, "tf": TensorFlow, "flax": Flax}[name]()


def convert(nested, leaf):
    """Apply ``leaf`` to every leaf; mappings become dicts, sequences tuples."""
    if nested is None or isinstance(nested, str | bool):
        return nested
    if isinstance(nested, Mapping):
        return {key: convert(value, leaf) for key, value in nested.items()}
    if isinstance(nested, list | tuple):
        return tuple(convert(value, leaf) for value in nested)
    return leaf(nested)


class Backend:
    """What the adapters share.

    Attributes:
        name: ``pt``, ``tf`` or ``flax``.
        module: The package with the model classes.
    """

    name = ""

    def __init__(self):
        self.module = importlib.import_module(f"xlmfam.{self.name}")

    def __repr__(self):
        return self.name

    def cls(self, class_name):
        """Return a model class."""
        return getattr(self.module, class_name)

    def load(self, class_name, folder, **kwargs):
        """Load a checkpoint."""
        return self.cls(class_name).from_pretrained(folder, **kwargs)

    def build(self, class_name, config, **kwargs):
        """Build a model with initial values, in evaluation mode."""
        return self.cls(class_name).from_config(config, **kwargs)

    def save(self, model, folder, **kwargs):
        """Write a checkpoint."""
        model.save_pretrained(folder, **kwargs)
        return folder

    def parameters(self, model):
        """Return arrays by canonical name, in canonical layout, shared ones once."""
        return {name: np.asarray(value) for name, value in model.to_canonical().items()}

    def raw_call(self, model, inputs, **flags):
        """Call the model with arrays (or its own values); return its own output."""
        inputs = {k: convert(v, self.tensor) if v is not None else v for k, v in inputs.items()}
        return self.run(model, **inputs, **flags)

    def run(self, model, **arguments):
        """Call the model."""
        return model(**arguments)

    def call(self, model, inputs, **flags):
        """Call the model with arrays; return nested arrays by output field."""
        return self.numpy(self.raw_call(model, inputs, **flags))

    def numpy(self, nested):
        """Return the model's own values as arrays."""
        return convert(nested, self.array)

    def generate(self, model, inputs, **options):
        """Return the ids, or with ``return_dict_in_generate`` a dict of arrays."""
        inputs = {name: self.tensor(np.asarray(value)) for name, value in inputs.items()}
        output = model.generate(**inputs, **options)
        if options.get("return_dict_in_generate"):
            return self.numpy(output)
        return self.array(getattr(output, "sequences", output))

    def tensor(self, value):
        """Return the backend's own value of an array."""
        raise NotImplementedError

    def array(self, value):
        """Return the array of one of the backend's own values."""
        return np.asarray(value)

    def project(self, model, states):
        """Return the scores of every word for states (..., width)."""
        return self.array(model.project(self.tensor(states)))

    def projection_gradients(self, model, states, targets):
        """Return the mean loss of targets under the projection alone, and its gradients.

        Args:
            model: Its projection gives log-probabilities.
            states: (n, width).
            targets: (n,) ids.

        Returns:
            The loss, the gradient of the states, and those of the parameters by canonical name
            (perhaps with zeros for what takes no part).
        """
        raise NotImplementedError

    def loss_and_gradients(self, model, inputs, **flags):
        """Return the loss and its gradients by canonical name, in evaluation mode.

        What is never learned has none.
        """
        raise NotImplementedError

    def step(self, model, inputs, optimiser, **options):
        """Take one optimiser step in place; return the parameters after it.

        Args:
            model: The model; it changes.
            inputs: Arrays, labels among them.
            optimiser: ``sgd`` or ``adamw``; weight decay applies to everything.
            options: Spelled as torch does; ``SGD`` and ``ADAMW`` by default.
        """
        raise NotImplementedError


class Torch(Backend):
    """xlmfam.pt."""

    name = "pt"

    def __init__(self):
        super().__init__()
        self.torch = importlib.import_module("torch")

    def build(self, class_name, config, **kwargs):
        return super().build(class_name, config, **kwargs).eval()

    def tensor(self, value):
        return self.torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    def array(self, value):
        return value.detach().numpy() if isinstance(value, self.torch.Tensor) else value

    def loss_and_gradients(self, model, inputs, **flags):
        model.zero_grad()
        loss = self.raw_call(model, inputs, **flags).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return self.array(loss), model.to_canonical(gradients)

    def projection_gradients(self, model, states, targets):
        model.zero_grad()
        states = self.tensor(states).clone().requires_grad_()
        chosen = model.project(states).gather(1, self.tensor(targets)[:, None])
        loss = -chosen.mean()
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return self.array(loss), self.array(states.grad), model.to_canonical(gradients)

    def step(self, model, inputs, optimiser, **options):
        optim = self.torch.optim
        if optimiser == "sgd":
            rule = optim.SGD(model.parameters(), **(options or SGD))
        else:
            rule = optim.AdamW(model.parameters(), **(options or ADAMW))
        self.loss_and_gradients(model, inputs)
        rule.step()
        return {name: value.copy() for name, value in self.parameters(model).items()}


class TensorFlow(Backend):
    """xlmfam.tf."""

    name = "tf"

    def __init__(self):
        super().__init__()
        self.tf = importlib.import_module("tensorflow")
        self.keras = importlib.import_module("keras")

    def tensor(self, value):
        return self.tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value

    def array(self, value):
        return value.numpy() if hasattr(value, "numpy") else value

    def call(self, model, inputs, **flags):
        output = super().call(model, inputs, **flags)
        if output.get("loss") is not None:  # one per label here; its mean is the others' loss
            output["loss"] = output["loss"].mean()
        return output

    def _gradients(self, model, inputs, **flags):
        with self.tf.GradientTape() as tape:
            loss = self.tf.reduce_mean(self.raw_call(model, inputs, **flags).loss)
        return loss, tape.gradient(loss, model.trainable_variables)

    def loss_and_gradients(self, model, inputs, **flags):
        loss, gradients = self._gradients(model, inputs, **flags)
        return self.array(loss), model.to_canonical(gradients)

    def projection_gradients(self, model, states, targets):
        tf = self.tf
        states = self.tensor(states)
        with tf.GradientTape() as tape:
            tape.watch(states)
            scores = model.project(states)
            loss = -tf.reduce_mean(tf.gather(scores, self.tensor(targets), batch_dims=1))
        of_states, gradients = tape.gradient(loss, [states, model.trainable_variables])
        return self.array(loss), self.array(of_states), model.to_canonical(gradients)

    def step(self, model, inputs, optimiser, **options):
        optimizers = self.keras.optimizers
        if optimiser == "sgd":
            rule = optimizers.SGD((options or SGD)["lr"])
        else:
            options = options or ADAMW
            beta_1, beta_2 = options["betas"]
            rule = optimizers.AdamW(
                options["lr"],
                beta_1=beta_1,
                beta_2=beta_2,
                # Keras adds epsilon before it corrects the bias of the first step.
                epsilon=options["eps"] * (1 - beta_2) ** 0.5,
                weight_decay=options["weight_decay"],
            )
        _, gradients = self._gradients(model, inputs)
        rule.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return self.parameters(model)


class Flax(Backend):
    """xlmfam.flax."""

    name = "flax"

    def __init__(self):
        super().__init__()
        self.jax = importlib.import_module("jax")
        self.optax = importlib.import_module("optax")

    def tensor(self, value):
        return self.jax.numpy.asarray(value) if isinstance(value, np.ndarray) else value

    def array(self, value):
        return np.asarray(value) if isinstance(value, self.jax.Array) else value

    def _gradients(self, model, inputs, **flags):
        def loss_of(params):
            return self.raw_call(model, inputs, params=params, **flags).loss

        return self.jax.jit(self.jax.value_and_grad(loss_of))(model.params)

    def loss_and_gradients(self, model, inputs, **flags):
        loss, gradients = self._gradients(model, inputs, **flags)
        return self.array(loss), model.to_canonical(gradients)

    def projection_gradients(self, model, states, targets):
        np_ = self.jax.numpy

        def loss_of(params, states):
            scores = model.project(states, params=params)
            return -np_.take_along_axis(scores, targets[:, None], 1).mean()

        run = self.jax.value_and_grad(loss_of, argnums=(0, 1))
        loss, (gradients, of_states) = run(model.params, self.tensor(states))
        return self.array(loss), self.array(of_states), model.to_canonical(gradients)

    def _learned(self, model):
        """Return a tree of booleans: what is learned, all else must not decay."""
        traverse = importlib.import_module("flax.traverse_util")
        return traverse.unflatten_dict({p: row.trainable for p, row in model.paths().items()})

    def step(self, model, inputs, optimiser, **options):
        if optimiser == "sgd":
            rule = self.optax.sgd((options or SGD)["lr"])
        else:
            options = options or ADAMW
            (b1, b2), lr, eps = options["betas"], options["lr"], options["eps"]
            decay, learned = options["weight_decay"], self._learned(model)
            rule = self.optax.adamw(lr, b1, b2, eps, weight_decay=decay, mask=learned)
        _, gradients = self._gradients(model, inputs)
        updates, _ = rule.update(gradients, rule.init(model.params), model.params)
        model.params = self.optax.apply_updates(model.params, updates)
        return self.parameters(model)
