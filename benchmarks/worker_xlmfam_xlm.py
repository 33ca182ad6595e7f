"""Our side of XLM: xlmfam in PyTorch, TensorFlow and Flax, run the way its documentation says."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import MaskedWorker, run

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class PyTorch(MaskedWorker):
    def encode_work(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        import torch

        from xlmfam.pt import XLMModel

        model = XLMModel.from_pretrained(self.arguments.checkpoint).eval()
        inputs = torch.from_numpy(ids).long()

        def work():
            with torch.inference_mode():
                return model(inputs).last_hidden_state.numpy()

        return work

    def mlm_work(self, ids: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
        import torch

        from xlmfam.pt import XLMWithLMHeadModel

        model = XLMWithLMHeadModel.from_pretrained(self.arguments.checkpoint).train()
        inputs, targets = torch.from_numpy(ids).long(), torch.from_numpy(labels).long()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        room = self.arguments.shape.labelled

        def work():
            optimizer.zero_grad(set_to_none=True)
            loss = model(inputs, labels=targets, labelled_logits_only=room).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return work


class TensorFlow(MaskedWorker):
    def encode_work(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        import tensorflow as tf

        from xlmfam.tf import XLMModel

        model, inputs = XLMModel.from_pretrained(self.arguments.checkpoint), tf.constant(ids)

        @tf.function(jit_compile=True)
        def encode(inputs):
            return model(inputs).last_hidden_state

        return lambda: encode(inputs).numpy()

    def mlm_work(self, ids: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
        import tensorflow as tf

        from xlmfam.tf import XLMWithLMHeadModel

        model = XLMWithLMHeadModel.from_pretrained(self.arguments.checkpoint)
        inputs, targets = tf.constant(ids), tf.constant(labels)
        room = self.arguments.shape.labelled

        @tf.function(jit_compile=True)
        def step(inputs, targets):
            with tf.GradientTape() as tape:
                options = {"labelled_logits_only": room, "training": True}
                loss = tf.reduce_mean(model(inputs, labels=targets, **options).loss)
            variables = [v.value for v in model.trainable_variables]
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                if isinstance(gradient, tf.IndexedSlices):
                    gradient = tf.convert_to_tensor(gradient)
                variable.assign_sub(1e-2 * gradient)
            return loss

        return lambda: float(step(inputs, targets))


class Flax(MaskedWorker):
    def encode_work(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        import jax
        import jax.numpy as jnp

        from xlmfam.flax import XLMModel

        model, inputs = XLMModel.from_pretrained(self.arguments.checkpoint), jnp.asarray(ids)

        @jax.jit
        def encode(params, inputs):
            return model(inputs, params=params).last_hidden_state

        return lambda: np.asarray(encode(model.params, inputs))

    def mlm_work(self, ids: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
        import jax
        import jax.numpy as jnp

        from xlmfam.flax import XLMWithLMHeadModel

        model = XLMWithLMHeadModel.from_pretrained(self.arguments.checkpoint)
        inputs, targets = jnp.asarray(ids), jnp.asarray(labels)
        room = self.arguments.shape.labelled

        def loss_of(params, inputs, targets, key):
            options = {"labelled_logits_only": room, "dropout_rng": key, "train": True}
            return model(inputs, labels=targets, params=params, **options).loss

        def step(params, inputs, targets, key):
            loss, gradients = jax.value_and_grad(loss_of)(params, inputs, targets, key)
            update = jax.tree_util.tree_map(lambda p, g: p - 1e-2 * g, params, gradients)
            return update, loss

        compiled = jax.jit(step, donate_argnums=0)
        state, key = {"params": model.params}, jax.random.PRNGKey(0)

        def work():
            state["params"], loss = compiled(state["params"], inputs, targets, key)
            jax.block_until_ready(state["params"])
            return float(loss)

        return work


if __name__ == "__main__":
    run({"pt": PyTorch, "tf": TensorFlow, "flax": Flax})
