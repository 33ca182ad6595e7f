"""The encoder-decoder of the original XLM code, run as an oracle: forward, cache, generation.

The code stays outside; `--original` names a checkout of facebookresearch/XLM. Sequences come first
in its tensors; here batches do.
"""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from golden_tools import mean_loss, padded, right, write_json
from safetensors.torch import save_file
from xlm_checkpoints import randomise

_OPTIONS = {
    "n_words": 47,
    "emb_dim": 15,
    "n_heads": 5,
    "n_layers": 2,
    "n_langs": 4,
    "max_positions": 29,
    "gelu_activation": True,
    "sinusoidal_embeddings": False,
    "asm": False,
    "share_inout_emb": False,
    "use_lang_emb": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "eos_index": 1,
    "pad_index": 2,
    "unk_index": 3,
    "mask_index": 5,
}
_LANGUAGES = ["de", "en", "fr", "ro"]
_NOISE = 2e-4


def _original(checkout: Path) -> ModuleType:
    """The original's transformer, with what today's torch refuses patched from outside."""
    sys.path.insert(0, str(checkout))
    module = importlib.import_module("xlm.model.transformer")
    module.N_MAX_POSITIONS = _OPTIONS["max_positions"]
    for name in ("masked_fill", "masked_fill_"):
        plain = getattr(torch.Tensor, name)

        def patched(
            self: torch.Tensor, mask: torch.Tensor, value: float, plain: object = plain
        ) -> torch.Tensor:
            return plain(self, mask.bool(), value)

        setattr(torch.Tensor, name, patched)
    return module


def _build(module: ModuleType) -> tuple[torch.nn.Module, torch.nn.Module]:
    names = dict(enumerate(_LANGUAGES))
    params = SimpleNamespace(
        **_OPTIONS, id2lang=names, lang2id={v: k for k, v in names.items()}, use_memory=False
    )
    words = [f"word{number}" for number in range(_OPTIONS["n_words"])]
    with torch.no_grad():
        encoder = module.TransformerModel(params, words, is_encoder=True, with_output=False).eval()
        decoder = module.TransformerModel(params, words, is_encoder=False, with_output=True).eval()
        randomise(encoder, 41)
        randomise(decoder, 42)
        for model in (encoder, decoder):
            for name, value in model.named_parameters():
                if "attn" in name or "attentions" in name:
                    value.mul_(1.5)
        # Less of what is the same at every step, so that the text does not repeat itself.
        decoder.position_embeddings.weight.mul_(2.0)
        for layer in range(_OPTIONS["n_layers"]):
            decoder.encoder_attn[layer].out_lin.weight.mul_(0.12)
            decoder.attentions[layer].out_lin.weight.mul_(0.2)
            decoder.ffns[layer].lin2.weight.mul_(0.3)
            for norms in (decoder.layer_norm1, decoder.layer_norm15, decoder.layer_norm2):
                norms[layer].bias.mul_(0.4)
        head = decoder.pred_layer.proj
        head.weight.mul_(1.4)
        head.bias.mul_(0.3)
        head.bias[_OPTIONS["eos_index"]] += 1.6
    return encoder, decoder


def _weights(encoder: torch.nn.Module, decoder: torch.nn.Module) -> OrderedDict:
    result = OrderedDict()
    for side, model in (("encoder", encoder), ("decoder", decoder)):
        for name, value in model.state_dict().items():
            result[f"{side}.{name}"] = value.clone()
    return result


class _Runner:
    def __init__(self, encoder: torch.nn.Module, decoder: torch.nn.Module) -> None:
        self.encoder, self.decoder = encoder, decoder

    def encode(self, ids: torch.Tensor, lengths: torch.Tensor, langs: torch.Tensor) -> torch.Tensor:
        states = self.encoder("fwd", x=ids.T, lengths=lengths, langs=langs.T, causal=False)
        return states.transpose(0, 1)

    def decode(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        langs: torch.Tensor,
        source: torch.Tensor,
        source_lengths: torch.Tensor,
        cache: dict | None = None,
    ) -> torch.Tensor:
        states = self.decoder(
            "fwd",
            x=ids.T,
            lengths=lengths,
            langs=langs.T,
            causal=True,
            src_enc=source,
            src_len=source_lengths,
            cache=cache,
        )
        return states.transpose(0, 1)


def _arrays(runner: _Runner) -> tuple[dict, dict]:
    """Source, target, every output on the way, the loss and its gradients."""
    generator = torch.Generator().manual_seed(600)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    source_mask, target_mask = right([6, 4, 5], 6), right([5, 7, 3], 7)
    eos, pad = _OPTIONS["eos_index"], _OPTIONS["pad_index"]
    source = draw(6, 47, 3, 6)
    target = draw(6, 47, 3, 7)
    target[:, 0] = eos
    inputs = {
        "source": padded(source, source_mask, pad),
        "source_lengths": source_mask.sum(1),
        "source_langs": torch.tensor([0, 1, 3])[:, None].expand(3, 6).contiguous(),
        "target": padded(target, target_mask, pad),
        "target_lengths": target_mask.sum(1),
        "target_langs": torch.tensor([2, 2, 0])[:, None].expand(3, 7).contiguous(),
    }
    labels = torch.where(target_mask.bool(), target, -100)
    labels = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
    encoded = runner.encode(*(inputs[k] for k in ("source", "source_lengths", "source_langs")))
    given = [inputs[k] for k in ("target", "target_lengths", "target_langs")]
    states = runner.decode(*given, encoded, inputs["source_lengths"])
    logits = runner.decoder.pred_layer.proj(states)
    # The original's own loss, on the positions that have a label.
    kept = labels != -100
    _, loss = runner.decoder(
        "predict", tensor=states, pred_mask=kept, y=labels[kept], get_scores=False
    )
    torch.testing.assert_close(loss, mean_loss(logits, labels))
    loss.backward()
    gradients = {}
    for side, model in (("encoder", runner.encoder), ("decoder", runner.decoder)):
        for name, value in model.named_parameters():
            if value.grad is not None:
                gradients[f"{side}.{name}"] = value.grad
    outputs = {"encoded": encoded, "states": states, "logits": logits, "loss": loss}
    with torch.no_grad():
        cache, steps = {"slen": 0}, []
        for end in (3, 4, 7):
            row = [v[:, :end] for v in (inputs["target"], inputs["target_langs"])]
            lengths = inputs["target_lengths"].clamp(max=end)
            steps.append(
                runner.decode(row[0], lengths, row[1], encoded, inputs["source_lengths"], cache)
            )
        valid = target_mask.bool()
        torch.testing.assert_close(torch.cat(steps, 1)[valid], states[valid])
        # Language models by the encoder's and the decoder's weights alone.
        alone = runner.decoder("fwd", x=given[0].T, lengths=given[1], langs=given[2].T, causal=True)
        outputs["states_without_source"] = alone.transpose(0, 1)
    arrays = {**{f"inputs.{k}": v for k, v in inputs.items()}, "labels": labels, "valid": valid}
    arrays |= {f"expected.{k}": v.detach() for k, v in outputs.items()}
    arrays |= {f"gradient.{k}": v for k, v in gradients.items()}
    largest = max(float(v.abs().max()) for v in gradients.values())
    case = {
        "inputs": {k: f"inputs.{k}" for k in inputs},
        "labels": "labels",
        "valid": "valid",
        "expected": {k: f"expected.{k}" for k in outputs},
        "gradients": {k: f"gradient.{k}" for k in gradients},
        "largest_gradient": largest,
        "zero_gradients": [k for k, v in gradients.items() if v.abs().max() < 1e-6 * largest],
        "cache_steps": [3, 4, 7],
    }
    return arrays, case


def _translate(runner: _Runner, inputs: dict, kwargs: dict) -> dict:
    with torch.no_grad():
        source, lengths, langs = (
            torch.tensor(inputs[k]) for k in ("source", "source_lengths", "source_langs")
        )
        encoded = runner.encode(source, lengths, langs)
        options = dict(kwargs)
        common = (encoded, lengths, options.pop("target_lang"))
        if "beam_size" in options:
            tokens, sizes = runner.decoder.generate_beam(*common, **options)
        else:
            tokens, sizes = runner.decoder.generate(*common, **options)
    return {"sequences": tokens.T.tolist(), "lengths": sizes.tolist()}


def _translations(runner: _Runner) -> list[dict]:
    """Greedy and beam search; each case has prompts where noise changes nothing."""
    cases = []
    beam = {"length_penalty": 1.0, "early_stopping": False}
    for number, (name, target, kwargs) in enumerate(
        [
            ("greedy", 2, {"max_len": 12}),
            ("greedy_other_language", 0, {"max_len": 12}),
            ("greedy_short", 1, {"max_len": 4}),
            ("beam", 2, {"beam_size": 3, "max_len": 12, **beam}),
            ("beam_early", 3, {"beam_size": 4, "max_len": 10, **beam, "early_stopping": True}),
            ("beam_penalty", 0, {"beam_size": 3, "max_len": 12, **beam, "length_penalty": 0.3}),
            ("beam_short", 2, {"beam_size": 2, "max_len": 5, **beam}),
            ("beam_one", 2, {"beam_size": 1, "max_len": 12, **beam}),
        ]
    ):
        options = {"target_lang": target, **kwargs}
        for attempt in range(400):
            generator = torch.Generator().manual_seed(1000 * number + attempt)
            mask = right([6, 3, 5], 6)
            ids = torch.randint(6, 47, (3, 6), generator=generator)
            langs = torch.randint(0, 4, (3, 1), generator=generator).expand(3, 6)
            inputs = {
                "source": padded(ids, mask, _OPTIONS["pad_index"]).tolist(),
                "source_lengths": mask.sum(1).tolist(),
                "source_langs": langs.tolist(),
            }
            found = _attempt(runner, inputs, options)
            if found is None or (attempt < 300 and not _telling(runner, inputs, options, found)):
                continue
            if _robust(runner, inputs, options, found):
                break
        else:
            raise AssertionError(f"{name}: no source found")
        cases.append({"name": name, "inputs": inputs, "kwargs": options, "expected": found})
    return cases


def _attempt(runner: _Runner, inputs: dict, options: dict) -> dict | None:
    try:
        return _translate(runner, inputs, options)
    except AssertionError:  # its own check: a padding or a second end token was generated
        return None


def _telling(runner: _Runner, inputs: dict, options: dict, found: dict) -> bool:
    """The rows differ in length and text, and the language and the beams make a difference."""
    rows = found["sequences"]
    if options["max_len"] > 5 and sum(len(set(row)) > 3 for row in rows) < 2:
        return False
    if options["max_len"] > 5 and (len(set(found["lengths"])) < 2 or len({*map(tuple, rows)}) < 3):
        return False
    other = dict(options, target_lang=(options["target_lang"] + 1) % 4)
    if _attempt(runner, inputs, other) == found:
        return False
    if options.get("beam_size", 1) > 1:
        greedy = {k: options[k] for k in ("target_lang", "max_len")}
        return _attempt(runner, inputs, greedy) != found
    return True


def _robust(runner: _Runner, inputs: dict, options: dict, found: dict) -> bool:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)

        def add(
            _module: object, _inputs: object, output: torch.Tensor, generator: object = generator
        ) -> torch.Tensor:
            return output + _NOISE * torch.randn(output.shape, generator=generator)

        handle = runner.decoder.pred_layer.proj.register_forward_hook(add)
        noisy = _attempt(runner, inputs, options)
        handle.remove()
        if noisy != found:
            return False
    return True


def translation_cases(root: Path, checkout: Path) -> dict:
    module = _original(checkout)
    encoder, decoder = _build(module)
    folder = root / "translation"
    folder.mkdir(parents=True, exist_ok=True)
    weights = _weights(encoder, decoder)
    save_file(weights, folder / "weights.safetensors", metadata={"format": "pt"})
    options = {**_OPTIONS, "id2lang": dict(enumerate(_LANGUAGES))}
    write_json(folder / "params.json", options)
    runner = _Runner(encoder, decoder)
    arrays, case = _arrays(runner)
    np.savez_compressed(folder / "forward.npz", **{k: v.numpy() for k, v in arrays.items()})
    return {
        "about": "The original's encoder and decoder; weights.safetensors has its own names.",
        "weights": "translation/weights.safetensors",
        "params": "translation/params.json",
        "arrays": "translation/forward.npz",
        "shapes": {k: list(v.shape) for k, v in weights.items()},
        "forward": case,
        "generation": _translations(runner),
    }


__all__ = ["translation_cases"]
