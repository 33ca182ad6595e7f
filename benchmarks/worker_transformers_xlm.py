"""The peer's side of XLM: transformers 4.37.2 (PyTorch, TensorFlow) and 5.23.0 (PyTorch).

Run as users run them: inference mode in PyTorch, XLA in TensorFlow. Neither can leave logits out.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import MaskedWorker, run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class PyTorch(MaskedWorker):
    def encode_work(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        import torch
        from transformers import XLMModel

        model = XLMModel.from_pretrained(self.arguments.checkpoint).eval()
        inputs = torch.from_numpy(ids).long()

        def work():
            with torch.inference_mode():
                return model(inputs).last_hidden_state.numpy()

        return work

    def mlm_work(self, ids: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
        import torch
        from transformers import XLMWithLMHeadModel

        model = XLMWithLMHeadModel.from_pretrained(self.arguments.checkpoint).train()
        inputs, targets = torch.from_numpy(ids).long(), torch.from_numpy(labels).long()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

        def work():
            optimizer.zero_grad(set_to_none=True)
            loss = model(inputs, labels=targets).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return work


class TensorFlow(MaskedWorker):
    def encode_work(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        import tensorflow as tf
        from transformers import TFXLMModel

        model, inputs = TFXLMModel.from_pretrained(self.arguments.checkpoint), tf.constant(ids)

        @tf.function(jit_compile=True)
        def encode(inputs):
            return model(inputs).last_hidden_state

        return lambda: encode(inputs).numpy()

    def mlm_work(self, ids: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
        import tensorflow as tf
        from transformers import TFXLMWithLMHeadModel

        model = TFXLMWithLMHeadModel.from_pretrained(self.arguments.checkpoint)
        inputs, targets = tf.constant(ids), tf.constant(labels)

        @tf.function(jit_compile=True)
        def step(inputs, targets):
            counts = tf.cast(targets != -100, tf.float32)
            with tf.GradientTape() as tape:
                logits = model(inputs, training=True).logits
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    tf.maximum(targets, 0), logits
                )
                loss = tf.reduce_sum(losses * counts) / tf.reduce_sum(counts)
            variables = model.trainable_variables
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                if isinstance(gradient, tf.IndexedSlices):
                    gradient = tf.convert_to_tensor(gradient)
                variable.assign_sub(1e-2 * gradient)
            return loss

        return lambda: float(step(inputs, targets))


if __name__ == "__main__":
    run({"pt": PyTorch, "tf": TensorFlow})
