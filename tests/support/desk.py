"""What a reader of the documentation has at hand in any backend, and losses summed in NumPy."""

from __future__ import annotations

import numpy as np

TENSORS = {"pt": "pt", "tf": "tf", "flax": "jax"}


class Desk:
    """A backend, a tokenizer and checkpoints.

    Args:
        backend: Its adapter.
        folder: Function that makes the checkpoint of a name, once.
        tokenizer: Of all of them.
    """

    def __init__(self, backend, folder, tokenizer):
        self.backend, self.folder, self.tokenizer = backend, folder, tokenizer
        self.loaded = {}

    def load(self, class_name, checkpoint=None, **overrides):
        """Return a model, from the checkpoint of its own class or another one."""
        key = (class_name, checkpoint, *overrides.items())
        if key not in self.loaded:
            self.loaded[key] = self.load_anew(class_name, checkpoint, **overrides)
        return self.loaded[key]

    def load_anew(self, class_name, checkpoint=None, **overrides):
        """Return a model that may be changed."""
        return self.backend.load(class_name, self.folder(checkpoint or class_name), **overrides)

    def encode(self, *texts, **options):
        """Call the tokenizer for tensors of this backend."""
        return self.tokenizer(*texts, return_tensors=TENSORS[self.backend.name], **options)

    def tensor(self, values):
        """Return numbers as a tensor."""
        return self.backend.tensor(np.asarray(values))

    def array(self, tensor):
        """Return a tensor as an array."""
        return np.asarray(self.backend.array(tensor))

    def loss(self, output):
        """Return the loss; TensorFlow has one for each label."""
        return self.array(output.loss).mean()


def cross_entropy(scores, right):
    """Return the mean, over the labels that are not -100, of minus a log-probability.

    Args:
        scores: (..., N).
        right: (...) numbers below N, or -100.
    """
    scores, right = np.asarray(scores, np.float64), np.asarray(right)
    logs = scores - scores.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logs, np.maximum(right, 0)[..., None], -1)[..., 0]
    return -chosen[right != -100].mean()


def binary_cross_entropy(scores, right):
    """Return the mean over (..., N) scores of minus the logarithm of the right answer's chance."""
    chances = 1 / (1 + np.exp(-np.asarray(scores, np.float64)))
    return -np.mean(np.where(np.asarray(right) == 1, np.log(chances), np.log(1 - chances)))
