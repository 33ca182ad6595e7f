"""Our side: xlmfam in PyTorch, TensorFlow and Flax, run the way its documentation says."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import Worker, run

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class PyTorch(Worker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import torch

        from xlmfam.pt import XGLMForCausalLM

        self.torch, self.cls = torch, XGLMForCausalLM

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint).eval()

    def touch(self, model):
        with self.torch.no_grad():
            return sum(float(p.sum()) for p in model.parameters())

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        model, inputs = self.load_model(), self.torch.from_numpy(ids).long()

        def work():
            with self.torch.inference_mode():
                return model(inputs, use_cache=True, last_logits_only=True).logits[:, -1]

        return work

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        model, inputs = self.load_model(), self.torch.from_numpy(ids).long()
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}

        def work():
            with self.torch.inference_mode():
                return model.generate(inputs, **options).numpy()

        return work

    def train_work(self, ids: np.ndarray) -> Callable[[], float]:
        model = self.load_model().train()
        inputs = self.torch.from_numpy(ids).long()
        optimizer = self.torch.optim.SGD(model.parameters(), lr=1e-2)

        def work():
            optimizer.zero_grad(set_to_none=True)
            loss = model(inputs, labels=inputs, use_cache=False).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return work


class TensorFlow(Worker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import tensorflow as tf

        from xlmfam.tf import XGLMForCausalLM

        self.tf, self.cls = tf, XGLMForCausalLM

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint)

    def touch(self, model):
        return sum(float(self.tf.reduce_sum(v.value)) for v in model.trainable_variables)

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        model, inputs = self.load_model(), self.tf.constant(ids)

        @self.tf.function(jit_compile=True)
        def forward(inputs):
            return model(inputs, use_cache=True, last_logits_only=True).logits[:, -1]

        return lambda: forward(inputs).numpy()

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        model, inputs = self.load_model(), self.tf.constant(ids)
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        return lambda: model.generate(inputs, **options).numpy()

    def train_work(self, ids: np.ndarray) -> Callable[[], float]:
        tf = self.tf
        model, inputs = self.load_model(), tf.constant(ids)

        @tf.function(jit_compile=True)
        def step(inputs):
            with tf.GradientTape() as tape:
                logits = model(inputs, use_cache=False, training=True).logits
                loss = model.own_loss(logits, inputs, None)
            variables = [v.value for v in model.trainable_variables]
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                if isinstance(gradient, tf.IndexedSlices):
                    gradient = tf.convert_to_tensor(gradient)
                variable.assign_sub(1e-2 * gradient)
            return loss

        return lambda: float(step(inputs))


class Flax(Worker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import jax
        import jax.numpy as jnp

        from xlmfam.flax import XGLMForCausalLM

        self.jax, self.jnp, self.cls = jax, jnp, XGLMForCausalLM

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint)

    def touch(self, model):
        leaves = self.jax.tree_util.tree_leaves(model.params)
        return sum(float(np.asarray(leaf).sum()) for leaf in leaves)

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        model, inputs = self.load_model(), self.jnp.asarray(ids)

        @self.jax.jit
        def forward(params, inputs):
            output = model(inputs, params=params, use_cache=True, last_logits_only=True)
            return output.logits[:, -1], output.past_key_values

        return lambda: self.jax.block_until_ready(forward(model.params, inputs))

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        model, inputs = self.load_model(), self.jnp.asarray(ids)
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}

        def run_once():
            output = model.generate(inputs, **options)
            return np.asarray(getattr(output, "sequences", output))

        return run_once

    def train_work(self, ids: np.ndarray) -> Callable[[], float]:
        jax = self.jax
        model, inputs = self.load_model(), self.jnp.asarray(ids)

        def loss_of(params, key):
            return model(inputs, labels=inputs, params=params, dropout_rng=key, train=True).loss

        def step(params, key):
            loss, gradients = jax.value_and_grad(loss_of)(params, key)
            update = jax.tree_util.tree_map(lambda p, g: p - 1e-2 * g, params, gradients)
            return update, loss

        compiled = jax.jit(step, donate_argnums=0)
        state = {"params": model.params, "key": jax.random.PRNGKey(0)}

        def work():
            state["key"], key = jax.random.split(state["key"])
            state["params"], loss = compiled(state["params"], key)
            jax.block_until_ready(state["params"])
            return float(loss)

        return work


if __name__ == "__main__":
    run({"pt": PyTorch, "tf": TensorFlow, "flax": Flax})
