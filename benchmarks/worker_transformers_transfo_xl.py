"""The peer's side of Transformer-XL: transformers 4.37.2, which was the last but a few to have it.

Its TensorFlow model has neither a loss nor ``generate``: it takes no part where these are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from harness import MemoryWorker, run

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class PyTorch(MemoryWorker):
    def load_model(self):
        from transformers import TransfoXLLMHeadModel

        return TransfoXLLMHeadModel.from_pretrained(self.arguments.checkpoint).eval()

    def decode_work(self, ids: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
        import torch

        model, inputs = self.load_model(), torch.from_numpy(ids).long()
        model.generation_config.eos_token_id = None
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        return lambda: model.generate(inputs, **options).numpy()

    def segment_work(self, ids: np.ndarray) -> Callable[[], float]:
        import torch

        model, inputs = self.load_model(), torch.from_numpy(ids).long()

        state = {"mems": None}

        def work():
            with torch.inference_mode():
                output = model(inputs, mems=state["mems"], labels=inputs)
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
            output = model(inputs, mems=state["mems"], labels=inputs)
            output.loss.backward()
            optimizer.step()
            state["mems"] = output.mems
            return float(output.loss.detach())

        return work


if __name__ == "__main__":
    run({"pt": PyTorch})
