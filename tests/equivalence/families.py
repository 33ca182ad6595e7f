"""The families that the equivalence suite runs over; a new family adds an entry, not code.

Every size of a config differs from every other one, so that a mistaken axis cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlmfam import XGLMConfig

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One call to compare.

    Attributes:
        inputs: Makes the arrays from a config and a generator.
        flags: Further arguments.
        when: The call exists only where this holds for the config.
    """

    inputs: Callable[[Any, np.random.Generator], Inputs]
    flags: Mapping[str, Any] = field(default_factory=dict)
    when: Callable[[Any], bool] = lambda config: True


@dataclass(frozen=True)
class Head:
    """A class of a family.

    Attributes:
        name: The class.
        calls: What to call it with, by name.
        training: Names of calls with labels; the last one that the config has is differentiated.
        generation: Options of ``generate``, by name; empty where it has none.
    """

    name: str
    calls: Mapping[str, Call]
    training: tuple[str, ...] = ()
    generation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: Folder of its golden numbers.
        configs: Variants by name.
        heads: Its classes.
        prompts: Makes the inputs of ``generate``.
        zero_gradient: Whether a parameter's gradient is zero but for rounding.
    """

    name: str
    configs: Mapping[str, Any]
    heads: tuple[Head, ...]
    prompts: Callable[[Any, np.random.Generator], Inputs]
    zero_gradient: Callable[[str], bool]


# ---- what input makers are made of ----------------------------------------------------------

BATCH, LENGTH, ENCODER = 2, 7, 5


def token_ids(config, rng, batch=BATCH, length=LENGTH):
    """Return (batch, length) ids that are no special tokens."""
    return rng.integers(4, config.vocab_size, (batch, length))


def left_padding(batch=BATCH, length=LENGTH):
    """Return a (batch, length) mask whose row i begins with i pads."""
    return (np.arange(length) >= np.arange(batch)[:, None] * 2).astype(np.int64)


def padded_ids(config, rng, batch=BATCH, length=LENGTH):
    """Return ids and mask, padded on the left."""
    mask = left_padding(batch, length)
    ids = np.where(mask == 1, token_ids(config, rng, batch, length), config.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask}


def normal(rng, *shape):
    """Return float32 numbers."""
    return rng.normal(size=shape).astype(np.float32)


# ---- XGLM -----------------------------------------------------------------------------------

EVERYTHING = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}


def _plain(config, rng):
    return {"input_ids": token_ids(config, rng)}


def _embedded(config, rng):
    return {
        "inputs_embeds": normal(rng, BATCH, LENGTH, config.d_model),
        "position_ids": rng.integers(0, 30, (BATCH, LENGTH)),
        "head_mask": rng.random((config.num_layers, config.attention_heads), np.float32),
    }


def _encoded(config, rng):
    return {
        **padded_ids(config, rng),
        "encoder_hidden_states": normal(rng, BATCH, ENCODER, config.d_model),
        "encoder_attention_mask": left_padding(BATCH, ENCODER)[:, ::-1].copy(),
        "cross_attn_head_mask": rng.random((config.num_layers, config.attention_heads), np.float32),
    }


def _labelled(make):
    def inputs(config, rng):
        made = make(config, rng)
        labels = token_ids(config, rng)
        labels[rng.random(labels.shape) < 0.2] = -100
        # As users make them: what the last pad before a text predicts does count.
        labels[made["attention_mask"] == 0] = -100
        # A pad token that is not masked: nothing is learned for it.
        made["input_ids"][0, LENGTH // 2] = config.pad_token_id
        return {**made, "labels": labels}

    return inputs


def _has_encoder(config):
    return config.add_cross_attention


XGLM_CALLS = {
    "plain": Call(_plain),
    "everything": Call(_plain, EVERYTHING),
    "left_padding": Call(padded_ids, EVERYTHING),
    "embeddings": Call(_embedded, EVERYTHING),
    "encoder": Call(_encoded, EVERYTHING, _has_encoder),
}
XGLM = Family(
    name="xglm",
    configs={
        "tied": XGLMConfig(
            vocab_size=67,
            d_model=24,
            ffn_dim=44,
            num_layers=3,
            attention_heads=4,
            max_position_embeddings=41,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        "untied_cross": XGLMConfig(
            vocab_size=59,
            d_model=30,
            ffn_dim=38,
            num_layers=2,
            attention_heads=3,
            max_position_embeddings=33,
            activation_function="gelu_new",
            dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=False,
            add_cross_attention=True,
        ),
    },
    heads=(
        Head("XGLMModel", XGLM_CALLS),
        Head(
            "XGLMForCausalLM",
            {
                **XGLM_CALLS,
                "labels": Call(_labelled(padded_ids)),
                "labels_encoder": Call(_labelled(_encoded), when=_has_encoder),
            },
            training=("labels", "labels_encoder"),
            generation={
                "greedy": {"max_new_tokens": 6, "do_sample": False},
                "beam": {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
            },
        ),
    ),
    prompts=padded_ids,
    zero_gradient=lambda name: name.endswith("k_proj.bias"),
)

FAMILIES = {family.name: family for family in (XGLM,)}


def heads():
    """Return every (family, variant, head)."""
    return [
        (family.name, variant, head.name)
        for family in FAMILIES.values()
        for variant in family.configs
        for head in family.heads
    ]


def head_of(family, class_name):
    """Return one class of a family."""
    return next(head for head in FAMILIES[family].heads if head.name == class_name)
