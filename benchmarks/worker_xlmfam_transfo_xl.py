"""Our side of Transformer-XL: xlmfam in PyTorch, TensorFlow and Flax, as its documentation says."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import MemoryWorker, run

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class PyTorch(MemoryWorker):
    def load_model(self):
        from xlmfam.pt import TransfoXLLMHeadModel

        return TransfoXLLMHeadModel.from_pretrained(self.arguments.checkpoint)

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        import torch

        model, inputs = self.load_model(), torch.from_numpy(ids).long()
        options = {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
        return lambda: model.generate(inputs, **options).numpy()

    def segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import torch

        model, inputs = self.load_model(), torch.from_numpy(ids).long()

        state = {"mems": model.init_cache(1, inputs.shape[1])}

        def work():
            with torch.inference_mode():
                output = model(inputs, state["mems"], labels=inputs)
            state["mems"] = output.mems
            return float(output.loss)

        return work

    def train_segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import torch

        model, inputs = self.load_model().train(), torch.from_numpy(ids).long()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        state = {"mems": None}

        def work():
            optimizer.zero_grad(set_to_none=True)
            output = model(inputs, state["mems"], labels=inputs)
            output.loss.backward()
            optimizer.step()
            state["mems"] = output.mems
            return float(output.loss.detach())

        return work


class TensorFlow(MemoryWorker):
    def load_model(self):
        from xlmfam.tf import TransfoXLLMHeadModel

        return TransfoXLLMHeadModel.from_pretrained(self.arguments.checkpoint)

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        import tensorflow as tf

        model, inputs = self.load_model(), tf.constant(ids)
        options = {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
        return lambda: model.generate(inputs, **options).numpy()

    def segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import tensorflow as tf

        model, inputs = self.load_model(), tf.constant(ids)

        state = {"mems": model.init_cache(1, inputs.shape[1])}

        @tf.function(jit_compile=True)
        def evaluate(inputs, mems):
            output = model(inputs, mems=mems, labels=inputs)
            return tf.reduce_mean(output.losses), output.mems

        def work():
            loss, state["mems"] = evaluate(inputs, state["mems"])
            return float(loss)

        return work

    def train_segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import tensorflow as tf

        model, inputs = self.load_model(), tf.constant(ids)

        state = {"mems": model.init_mems(1)}

        @tf.function(jit_compile=True)
        def step(inputs, mems):
            with tf.GradientTape() as tape:
                output = model(inputs, mems=mems, labels=inputs, training=True)
                loss = tf.reduce_mean(output.losses)
            variables = [v.value for v in model.trainable_variables]
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                if isinstance(gradient, tf.IndexedSlices):
                    gradient = tf.convert_to_tensor(gradient)
                variable.assign_sub(1e-3 * gradient)
            return loss, output.mems

        def work():
            loss, state["mems"] = step(inputs, state["mems"])
            return float(loss)

        return work


class Flax(MemoryWorker):
    def load_model(self):
        from xlmfam.flax import TransfoXLLMHeadModel

        return TransfoXLLMHeadModel.from_pretrained(self.arguments.checkpoint)

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        import jax.numpy as jnp

        model, inputs = self.load_model(), jnp.asarray(ids)
        options = {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
        return lambda: np.asarray(model.generate(inputs, **options))

    def segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import jax
        import jax.numpy as jnp

        model, inputs = self.load_model(), jnp.asarray(ids)

        state = {"mems": model.init_cache(1, inputs.shape[1])}

        @jax.jit
        def evaluate(params, inputs, mems):
            output = model(inputs, mems=mems, labels=inputs, params=params)
            return output.loss, output.mems

        def work():
            loss, state["mems"] = evaluate(model.params, inputs, state["mems"])
            return float(loss)

        return work

    def train_segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import jax
        import jax.numpy as jnp

        model, inputs = self.load_model(), jnp.asarray(ids)

        def loss_of(params, inputs, mems, key):
            options = {"params": params, "dropout_rng": key, "train": True}
            output = model(inputs, mems=mems, labels=inputs, **options)
            return output.loss, output.mems

        def step(params, inputs, mems, key):
            differentiate = jax.value_and_grad(loss_of, has_aux=True)
            (loss, mems), gradients = differentiate(params, inputs, mems, key)
            update = jax.tree_util.tree_map(lambda p, g: p - 1e-3 * g, params, gradients)
            return update, mems, loss

        compiled = jax.jit(step, donate_argnums=0)
        state = {"params": model.params, "mems": model.init_mems(1)}
        key = jax.random.PRNGKey(0)

        def work():
            arguments = (state["params"], inputs, state["mems"], key)
            state["params"], state["mems"], loss = compiled(*arguments)
            jax.block_until_ready(state["params"])
            return float(loss)

        return work


if __name__ == "__main__":
    run({"pt": PyTorch, "tf": TensorFlow, "flax": Flax})
