"""The peer's side of X-MOD: transformers 4.37.2 and 5.23.0, which have it in PyTorch only."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import LanguagesWorker, run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class PyTorch(LanguagesWorker):
    def __init__(self, arguments):
        super().__init__(arguments)
        import torch
        from transformers import XmodModel

        self.torch, self.cls = torch, XmodModel

    def load_model(self):
        return self.cls.from_pretrained(self.arguments.checkpoint).eval()

    def touch(self, model):
        with self.torch.no_grad():
            return sum(float(p.sum()) for p in model.parameters())

    def encode_work(self, ids: np.ndarray, languages: np.ndarray) -> Callable[[], np.ndarray]:
        torch, model = self.torch, self.load_model()
        inputs, numbers = torch.from_numpy(ids).long(), torch.from_numpy(languages).long()

        def work():
            with torch.inference_mode():
                return model(inputs, lang_ids=numbers).last_hidden_state.numpy()

        return work


if __name__ == "__main__":
    run({"pt": PyTorch})
