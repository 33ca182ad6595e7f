"""Our side of X-MOD: xlmfam in PyTorch, TensorFlow and Flax, run the way its documentation says.

Languages are data to the compiled functions: one that has been compiled serves any of them. Only
a batch of one language says so beforehand, as a user with such a batch would.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import LanguagesWorker, run

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class XmodWorker(LanguagesWorker):
    cls: Any

    def load_model(self):
        first = self.arguments.shape.config["languages"][:1]
        return self.cls.from_pretrained(self.arguments.checkpoint, languages=first)

    def code(self, languages: np.ndarray) -> str | None:
        """The code of the only language, or none where there are several."""
        known = self.arguments.shape.config["languages"]
        return known[languages[0]] if len(set(languages)) == 1 else None


class PyTorch(XmodWorker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import torch

        from xlmfam.pt import XmodModel

        self.torch, self.cls = torch, XmodModel

    def touch(self, model):
        with self.torch.no_grad():
            return sum(float(p.sum()) for p in model.parameters())

    def encode_work(self, ids: np.ndarray, languages: np.ndarray) -> Callable[[], np.ndarray]:
        torch = self.torch
        model = self.cls.from_pretrained(self.arguments.checkpoint).eval()
        inputs, numbers = torch.from_numpy(ids).long(), torch.from_numpy(languages).long()

        def work():
            with torch.inference_mode():
                return model(inputs, lang_ids=numbers).last_hidden_state.numpy()

        return work


class TensorFlow(XmodWorker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import tensorflow as tf

        from xlmfam.tf import XmodModel

        self.tf, self.cls = tf, XmodModel

    def touch(self, model):
        return sum(float(self.tf.reduce_sum(v.value)) for v in model.trainable_variables)

    def encode_work(self, ids: np.ndarray, languages: np.ndarray) -> Callable[[], np.ndarray]:
        tf = self.tf
        model = self.cls.from_pretrained(self.arguments.checkpoint)
        inputs, numbers = tf.constant(ids), tf.constant(languages)
        code = self.code(languages)

        @tf.function(jit_compile=True)
        def encode(inputs, numbers):
            return model(inputs, lang_ids=code or numbers).last_hidden_state

        return lambda: encode(inputs, numbers).numpy()


class Flax(XmodWorker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import jax
        import jax.numpy as jnp

        from xlmfam.flax import XmodModel

        self.jax, self.jnp, self.cls = jax, jnp, XmodModel

    def touch(self, model):
        leaves = self.jax.tree_util.tree_leaves(model.params)
        return sum(float(np.asarray(leaf).sum()) for leaf in leaves)

    def encode_work(self, ids: np.ndarray, languages: np.ndarray) -> Callable[[], np.ndarray]:
        jax, jnp = self.jax, self.jnp
        model = self.cls.from_pretrained(self.arguments.checkpoint)
        inputs, numbers = jnp.asarray(ids), jnp.asarray(languages)
        code = self.code(languages)

        @jax.jit
        def encode(params, inputs, numbers):
            return model(inputs, lang_ids=code or numbers, params=params).last_hidden_state

        return lambda: np.asarray(encode(model.params, inputs, numbers))


if __name__ == "__main__":
    run({"pt": PyTorch, "tf": TensorFlow, "flax": Flax})
