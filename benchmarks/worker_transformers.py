"""The peer's side: transformers 4.37.2 (three frameworks) and 5.23.0 (PyTorch), as users run them.

Each peer gets its best documented way: inference mode and, where it exists, logits of the last
position only in PyTorch; XLA in TensorFlow; ``jax.jit`` around the whole of generation in Flax.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import Worker, run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class PyTorch(Worker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import torch
        from transformers import XGLMForCausalLM

        self.torch, self.cls = torch, XGLMForCausalLM

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint).eval()

    def touch(self, model):
        with self.torch.no_grad():
            return sum(float(p.sum()) for p in model.parameters())

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        import inspect

        model = self.load_model()
        inputs = self.torch.from_numpy(ids).long()
        known = inspect.signature(model.forward).parameters
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

        def work():
            with self.torch.inference_mode():
                return model(inputs, use_cache=True, **last_only).logits[:, -1]

        return work

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        model = self.load_model()
        inputs = self.torch.from_numpy(ids).long()
        options = {
            "attention_mask": self.torch.ones_like(inputs),
            "max_new_tokens": new_tokens,
            "min_new_tokens": new_tokens,
            "do_sample": False,
        }

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
        from transformers import TFXGLMForCausalLM

        self.tf, self.cls = tf, TFXGLMForCausalLM

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint)

    def touch(self, model):
        return sum(float(self.tf.reduce_sum(v)) for v in model.weights)

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        model, inputs = self.load_model(), self.tf.constant(ids)

        @self.tf.function(jit_compile=True)
        def forward(inputs):
            return model(inputs, use_cache=True).logits[:, -1]

        return lambda: forward(inputs).numpy()

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        model, inputs = self.load_model(), self.tf.constant(ids)
        generate = self.tf.function(model.generate, jit_compile=True)
        length = ids.shape[1] + new_tokens
        mask = self.tf.ones_like(inputs)

        def work():
            return generate(
                inputs,
                attention_mask=mask,
                max_length=length,
                min_length=length,
                do_sample=False,
            ).numpy()

        return work

    def train_work(self, ids: np.ndarray) -> Callable[[], float]:
        tf = self.tf
        model, inputs = self.load_model(), tf.constant(ids)

        @tf.function(jit_compile=True)
        def step(inputs):
            with tf.GradientTape() as tape:
                output = model(inputs, labels=inputs, use_cache=False, training=True)
                loss = tf.reduce_mean(output.loss)
            variables = model.trainable_variables
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
        from transformers import FlaxXGLMForCausalLM

        self.jax, self.jnp, self.cls = jax, jnp, FlaxXGLMForCausalLM

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint)

    def touch(self, model):
        leaves = self.jax.tree_util.tree_leaves(model.params)
        return sum(float(np.asarray(leaf).sum()) for leaf in leaves)

    def prefill_work(self, ids: np.ndarray) -> Callable[[], object]:
        model, inputs = self.load_model(), self.jnp.asarray(ids)

        @self.jax.jit
        def forward(params, inputs):
            # As generation does it: an empty cache that the prompt fills.
            cache = model.init_cache(1, inputs.shape[1])
            output = model(inputs, params=params, past_key_values=cache, position_ids=positions)
            return output.logits[:, -1], output.past_key_values

        positions = self.jnp.arange(ids.shape[1])[None]
        return lambda: self.jax.block_until_ready(forward(model.params, inputs))

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        model, inputs = self.load_model(), self.jnp.asarray(ids)
        length = ids.shape[1] + new_tokens
        mask = self.jnp.ones_like(inputs)

        @self.jax.jit
        def generate(params, inputs, mask):
            options = {"max_length": length, "min_length": length, "do_sample": False}
            return model.generate(inputs, attention_mask=mask, params=params, **options).sequences

        params = model.params
        return lambda: np.asarray(generate(params, inputs, mask))

    def train_work(self, ids: np.ndarray) -> Callable[[], float]:
        jax, jnp = self.jax, self.jnp
        model, inputs = self.load_model(), jnp.asarray(ids)

        def loss_of(params, key):
            logits = model(inputs, params=params, dropout_rng=key, train=True).logits[:, :-1]
            scores = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(scores, inputs[:, 1:, None], axis=-1).mean()

        def step(params, key):
            loss, gradients = jax.value_and_grad(loss_of)(params, key)
            update = jax.tree_util.tree_map(lambda p, g: p - 1e-2 * g, params, gradients)
            return update, loss

        compiled = jax.jit(step, donate_argnums=0)
        state = {"params": model.params, "key": jax.random.PRNGKey(0)}
        model._params = None  # the step takes its memory over

        def work():
            state["key"], key = jax.random.split(state["key"])
            state["params"], loss = compiled(state["params"], key)
            jax.block_until_ready(state["params"])
            return float(loss)

        return work


if __name__ == "__main__":
    run({"pt": PyTorch, "tf": TensorFlow, "flax": Flax})
