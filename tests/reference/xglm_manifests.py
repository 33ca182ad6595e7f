"""Names, shapes, signatures and config defaults of the reference's XGLM, as one JSON document."""

from __future__ import annotations

import tempfile
from pathlib import Path

from flax.traverse_util import flatten_dict
from golden_tools import h5_listing, signature
from transformers import (
    FlaxXGLMForCausalLM,
    FlaxXGLMModel,
    GenerationConfig,
    TFXGLMForCausalLM,
    TFXGLMModel,
    XGLMConfig,
    XGLMForCausalLM,
    XGLMModel,
)

_TINY = {
    "vocab_size": 61,
    "d_model": 24,
    "ffn_dim": 40,
    "num_layers": 3,
    "attention_heads": 4,
    "max_position_embeddings": 37,
}
VARIANTS = {
    "plain": _TINY,
    "cross_attention": {**_TINY, "num_layers": 2, "add_cross_attention": True},
    "untied": {**_TINY, "num_layers": 2, "tie_word_embeddings": False},
    "cross_attention_untied": {
        **_TINY,
        "num_layers": 1,
        "add_cross_attention": True,
        "tie_word_embeddings": False,
    },
}
_CLASSES = {
    "XGLMModel": (XGLMModel, TFXGLMModel, FlaxXGLMModel),
    "XGLMForCausalLM": (XGLMForCausalLM, TFXGLMForCausalLM, FlaxXGLMForCausalLM),
}


def _variant(options: dict) -> dict:
    config = XGLMConfig(**options)
    result: dict = {"config": config.to_dict(), "options": options, "classes": {}}
    for name, (pt, tf, flax) in _CLASSES.items():
        model = pt(config)
        entry: dict = {
            "pt_state_dict": {k: list(v.shape) for k, v in model.state_dict().items()},
            "pt_parameters": sum(p.numel() for p in model.parameters()),
        }
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "source", Path(folder) / "target"
            model.save_pretrained(source)
            from safetensors import safe_open

            with safe_open(source / "model.safetensors", "pt") as file:
                entry["safetensors_missing"] = sorted(
                    set(entry["pt_state_dict"]) - set(file.keys())
                )
                entry["safetensors_metadata"] = file.metadata()
            for key, cls in (("h5", tf), ("flax", flax)):
                try:
                    other = cls.from_pretrained(source, from_pt=True)
                except AttributeError as error:
                    entry[key] = None
                    entry[f"{key}_error"] = str(error)
                    continue
                if key == "h5":
                    other.save_pretrained(target)
                    entry[key] = h5_listing(target / "tf_model.h5")
                else:
                    entry[key] = {
                        "/".join(k): list(v.shape) for k, v in flatten_dict(other.params).items()
                    }
        result["classes"][name] = entry
    return result


def manifest() -> dict:
    signatures = {}
    for pt, tf, flax in _CLASSES.values():
        signatures[pt.__name__] = signature(pt.forward)
        signatures[tf.__name__] = signature(tf.call)
        signatures[flax.__name__] = signature(flax.__call__)
        signatures[f"{flax.__name__}.__init__"] = signature(flax.__init__)
    signatures["XGLMConfig.__init__"] = signature(XGLMConfig.__init__)
    default = XGLMConfig()
    return {
        "default_config": {
            "to_dict": default.to_dict(),
            "to_diff_dict": default.to_diff_dict(),
            "attribute_map": dict(XGLMConfig.attribute_map),
            "keys_to_ignore_at_inference": list(XGLMConfig.keys_to_ignore_at_inference),
        },
        "generation_config": {
            "from_model": GenerationConfig.from_model_config(default).to_diff_dict(),
            "defaults": GenerationConfig().to_dict(),
        },
        "signatures": signatures,
        "variants": {name: _variant(options) for name, options in VARIANTS.items()},
        "buffers": {n: list(b.shape) for n, b in XGLMModel(XGLMConfig(**_TINY)).named_buffers()},
    }


__all__ = ["VARIANTS", "manifest"]
