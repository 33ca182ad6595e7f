"""The families that the equivalence suite runs over; a new family adds an entry, not code.

Every size of a config differs from every other one, so that a mistaken axis cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlmfam import TransfoXLConfig, XGLMConfig, XLMConfig, XmodConfig
from xlmfam.common.parameters import table_of

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One call to compare.

    Attributes:
        inputs: Makes the arrays from a config and a generator.
        flags: Further arguments.
        when: The call exists only where this holds for the config.
        valid: Name of the mask of what is compared, where the inputs have it.
    """

    inputs: Callable[[Any, np.random.Generator], Inputs]
    flags: Mapping[str, Any] = field(default_factory=dict)
    when: Callable[[Any], bool] = lambda config: True
    valid: str = "attention_mask"


@dataclass(frozen=True)
class Head:
    """A class of a family.

    Attributes:
        name: The class.
        calls: What to call it with, by name.
        training: Names of calls with labels; the last one that the config has is differentiated.
        generation: Options of ``generate``, by name; empty where it has none.
        prompts: Makes the inputs of ``generate``.
        variants: Names of the configs that it is tried with; all by default.
    """

    name: str
    calls: Mapping[str, Call]
    training: tuple[str, ...] = ()
    generation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: Callable[[Any, np.random.Generator], Inputs] | None = None
    variants: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: Folder of its golden numbers.
        configs: Variants by name.
        heads: Its classes.
        zero_gradient: Whether a parameter's gradient is zero but for rounding.
    """

    name: str
    configs: Mapping[str, Any]
    heads: tuple[Head, ...]
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
            prompts=padded_ids,
        ),
    ),
    zero_gradient=lambda name: name.endswith("k_proj.bias"),
)

# ---- XLM ------------------------------------------------------------------------------------

# Three texts, so that no config has as many layers, labels or answers.
ROWS, CHOICES, TARGET = 3, 8, 9
STATES = {"output_hidden_states": True, "output_attentions": True}
XLM_GENERATION = {
    "greedy": {"max_new_tokens": 6, "do_sample": False},
    "beam": {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
}


def _xlm_config(**settings):
    still = {"dropout": 0.0, "attention_dropout": 0.0, "summary_first_dropout": 0.0}
    return XLMConfig(**still, **settings)


def _languages(config, rng, *shape):
    return rng.integers(0, config.n_langs, shape)


def _head_mask(config, rng):
    return rng.random((config.n_layers, config.n_heads), np.float32)


def _words(config, rng):
    return {"input_ids": token_ids(config, rng, ROWS)}


def _left(config, rng):
    return {**padded_ids(config, rng, ROWS), "langs": _languages(config, rng, ROWS, LENGTH)}


def _right(config, rng):
    return {name: values[:, ::-1].copy() for name, values in _left(config, rng).items()}


def _every_input(config, rng):
    return {
        **_right(config, rng),
        "token_type_ids": token_ids(config, rng, ROWS),
        "position_ids": rng.integers(0, config.max_position_embeddings, (ROWS, LENGTH)),
        "head_mask": _head_mask(config, rng),
    }


def _vectors(config, rng):
    return {
        "inputs_embeds": normal(rng, ROWS, LENGTH, config.emb_dim),
        "lengths": np.array([7, 4, 5]),
        "langs": _languages(config, rng, ROWS),
        "head_mask": _head_mask(config, rng)[0],
    }


def _to_predict(config, rng, mask):
    """Labels of words, for most of those that are there."""
    labels = token_ids(config, rng, *mask.shape)
    return np.where((rng.random(mask.shape) < 0.2) | (mask == 0), -100, labels)


def _word_labels(config, rng):
    made = _left(config, rng) if config.causal else _right(config, rng)
    return {**made, "labels": _to_predict(config, rng, made["attention_mask"])}


def _text_labels(config, rng):
    made = _right(config, rng)
    if config.problem_type == "multi_label_classification":
        width = config.num_labels if config.summary_proj_to_labels else config.emb_dim
        return {**made, "labels": rng.integers(0, 2, (ROWS, width)).astype(np.float32)}
    return {**made, "labels": rng.integers(0, config.num_labels, ROWS)}


def _token_labels(config, rng):
    made = _right(config, rng)
    labels = rng.integers(0, config.num_labels, (ROWS, LENGTH))
    return {**made, "labels": np.where(made["attention_mask"] == 0, -100, labels)}


def _choices(config, rng):
    """Inputs (rows, choices, length) of as many texts."""
    texts = ROWS * CHOICES
    ends = rng.integers(2, LENGTH + 1, texts)
    flat = {
        "input_ids": token_ids(config, rng, texts),
        "attention_mask": (np.arange(LENGTH) < ends[:, None]).astype(np.int64),
        "langs": _languages(config, rng, texts, LENGTH),
    }
    return {name: values.reshape(ROWS, CHOICES, LENGTH) for name, values in flat.items()}


def _choice_labels(config, rng):
    return {**_choices(config, rng), "labels": rng.integers(0, CHOICES, ROWS)}


def _answers(config, rng):
    """Texts with more possible answers than are kept: of forbidden ones none is the best."""
    mask = (np.arange(LENGTH) < np.array([[7], [6], [5]])).astype(np.int64)
    p_mask = (mask == 0).astype(np.float32)
    p_mask[:, 0] = 1.0
    return {
        "input_ids": np.where(mask == 1, token_ids(config, rng, ROWS), config.pad_index),
        "attention_mask": mask,
        "langs": _languages(config, rng, ROWS, LENGTH),
        "p_mask": p_mask,
        "cls_index": np.array([0, 2, 1]),
    }


def _span():
    return {"start_positions": np.array([1, 2, 3]), "end_positions": np.array([5, 2, 4])}


def _answer_labels(config, rng):
    truth = np.array([0.0, 1.0, 0.0], np.float32)
    return {**_answers(config, rng), **_span(), "is_impossible": truth}


def _translated(config, rng):
    """A source, and a target that begins with the end token; both padded on the right."""
    mask = (np.arange(TARGET) < np.array([[6], [9], [4]])).astype(np.int64)
    target = np.where(mask == 1, token_ids(config, rng, ROWS, TARGET), config.pad_index)
    target[:, 0] = config.eos_index
    return {
        **_right(config, rng),
        "decoder_input_ids": target,
        "decoder_attention_mask": mask,
        "decoder_langs": _languages(config, rng, ROWS),
    }


def _translated_vectors(config, rng):
    return {
        **_vectors(config, rng),
        "decoder_inputs_embeds": normal(rng, ROWS, TARGET, config.emb_dim),
        "decoder_langs": _languages(config, rng, ROWS, TARGET),
        "decoder_head_mask": _head_mask(config, rng),
    }


def _translation_labels(config, rng):
    made = _translated(config, rng)
    return {**made, "labels": _to_predict(config, rng, made["decoder_attention_mask"])}


def _source(config, rng):
    """Short texts: what they are translated into is longer."""
    made = {name: values[:, -4:] for name, values in _right(config, rng).items()}
    made["attention_mask"][:, 0] = 1
    return made


def _prompts(config, rng):
    """Only a causal model's prompts are padded: masked ones count padding as positions."""
    if config.is_causal:
        return _left(config, rng)
    return {**_words(config, rng), "langs": _languages(config, rng, ROWS, LENGTH)}


def _is_masked(config):
    return not config.is_causal


XLM_CALLS = {
    "plain": Call(_words),
    "everything": Call(_every_input, STATES),
    "left_padding": Call(_left, STATES),
    "embeddings": Call(_vectors, STATES, _is_masked),
}
WORD_LABELS = {
    "labels": Call(_word_labels),
    "labelled_logits": Call(_word_labels, {"labelled_logits_only": True}),
}


def _xlm_head(name, make, labels, variants):
    """A head of texts, tried with and without labels."""
    calls = {"everything": Call(make, STATES), "labels": Call(labels)}
    return Head(name, calls, training=("labels",), variants=variants)


XLM = Family(
    name="xlm",
    configs={
        "masked": _xlm_config(
            vocab_size=53,
            emb_dim=20,
            n_heads=5,
            n_layers=2,
            max_position_embeddings=31,
            n_langs=6,
            num_labels=9,
            summary_type="mean",
            summary_activation="tanh",
        ),
        "causal": _xlm_config(
            vocab_size=43,
            emb_dim=24,
            n_heads=6,
            n_layers=2,
            max_position_embeddings=37,
            n_langs=5,
            num_labels=11,
            causal=True,
            gelu_activation=False,
            tie_word_embeddings=False,
            summary_type="last",
            summary_proj_to_labels=False,
            problem_type="multi_label_classification",
        ),
        "adaptive": _xlm_config(
            vocab_size=51,
            emb_dim=20,
            n_heads=5,
            n_layers=1,
            max_position_embeddings=31,
            sinusoidal_embeddings=True,
            asm=True,
            asm_cutoffs=[12, 29],
            asm_div_value=2.0,
        ),
        "adaptive_untied": _xlm_config(
            vocab_size=61,
            emb_dim=36,
            n_heads=4,
            n_layers=1,
            max_position_embeddings=33,
            n_langs=5,
            causal=True,
            tie_word_embeddings=False,
            asm=True,
            asm_cutoffs=[8, 25, 40],
            asm_div_value=2.0,
        ),
        "answers": _xlm_config(
            vocab_size=41,
            emb_dim=30,
            n_heads=6,
            n_layers=1,
            max_position_embeddings=19,
            n_langs=9,
            num_labels=2,
            start_n_top=4,
            end_n_top=2,
        ),
        "translation": _xlm_config(
            vocab_size=45,
            emb_dim=20,
            n_heads=5,
            n_layers=2,
            max_position_embeddings=23,
            n_langs=6,
        ),
    },
    heads=(
        Head("XLMModel", XLM_CALLS, variants=("masked", "causal")),
        Head(
            "XLMWithLMHeadModel",
            {**XLM_CALLS, **WORD_LABELS},
            training=("labels",),
            generation=XLM_GENERATION,
            prompts=_prompts,
            variants=("masked", "causal"),
        ),
        Head(
            "XLMWithLMHeadModel",
            {"everything": XLM_CALLS["everything"], **WORD_LABELS},
            training=("labels",),
            variants=("adaptive", "adaptive_untied"),
        ),
        _xlm_head("XLMForSequenceClassification", _every_input, _text_labels, ("masked", "causal")),
        _xlm_head("XLMForMultipleChoice", _choices, _choice_labels, ("masked",)),
        _xlm_head("XLMForTokenClassification", _every_input, _token_labels, ("masked",)),
        _xlm_head(
            "XLMForQuestionAnsweringSimple",
            _every_input,
            lambda config, rng: {**_right(config, rng), **_span()},
            ("answers",),
        ),
        _xlm_head("XLMForQuestionAnswering", _answers, _answer_labels, ("answers",)),
        Head(
            "XLMEncoderDecoder",
            {
                "everything": Call(_translated, STATES, valid="decoder_attention_mask"),
                "embeddings": Call(_translated_vectors, STATES),
                "labels": Call(_translation_labels, valid="decoder_attention_mask"),
            },
            training=("labels",),
            generation={
                "greedy": {"target_lang": 4, "max_length": 8},
                "beam": {"target_lang": 4, "max_length": 8, "num_beams": 3},
            },
            prompts=_source,
            variants=("translation",),
        ),
    ),
    # What shifts all scores of a softmax alike changes nothing.
    zero_gradient=lambda name: name.endswith(
        (
            "k_lin.bias",
            "logits_proj.bias",
            "qa_outputs.bias",
            "qa_outputs.start_logits.dense.bias",
            "qa_outputs.end_logits.LayerNorm.bias",
            "qa_outputs.end_logits.dense_1.bias",
        )
    ),
)

# ---- X-MOD ----------------------------------------------------------------------------------


def _xmod_config(**settings):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    codes = ["en_XX", "de_DE", "sw_KE"]
    return XmodConfig(**still, **{"languages": codes, **settings})


def _adapted(config, rng, padded=padded_ids):
    """Texts of which each has a language of its own, so that every adapter learns."""
    return {**padded(config, rng, ROWS), "lang_ids": np.array([2, 0, 1])}


def _adapted_right(config, rng):
    made = padded_ids(config, rng, ROWS)
    return {
        **{name: values[:, ::-1].copy() for name, values in made.items()},
        "lang_ids": np.array([2, 0, 1]),
    }


def _adapted_fully(config, rng):
    heads = (config.num_hidden_layers, config.num_attention_heads)
    room = config.max_position_embeddings
    return {
        **_adapted_right(config, rng),
        "lang_ids": rng.integers(0, config.n_langs, (ROWS, LENGTH)),
        "token_type_ids": rng.integers(0, config.type_vocab_size, (ROWS, LENGTH)),
        "position_ids": rng.integers(2, room, (ROWS, LENGTH)),
        "head_mask": rng.random(heads, np.float32),
    }


def _adapted_vectors(config, rng):
    return {
        "inputs_embeds": normal(rng, ROWS, LENGTH, config.hidden_size),
        "attention_mask": rng.integers(0, 2, (ROWS, LENGTH, LENGTH)) | np.eye(LENGTH, dtype=int),
        "lang_ids": np.array([1, 1, 1]),
    }


def _adapted_encoder(config, rng):
    return {
        **_adapted(config, rng),
        "encoder_hidden_states": normal(rng, ROWS, ENCODER, config.hidden_size),
        "encoder_attention_mask": left_padding(ROWS, ENCODER)[:, ::-1].copy(),
    }


def _xmod_labels(make, of):
    """Inputs with types and labels, so that every embedding learns."""

    def inputs(config, rng):
        made = make(config, rng)
        made["token_type_ids"] = rng.integers(0, config.type_vocab_size, (ROWS, LENGTH))
        return {**made, **of(config, rng, made)}

    return inputs


def _of_words(config, rng, made):
    return {"labels": _to_predict(config, rng, made["attention_mask"])}


def _of_texts(config, rng, made):
    return {"labels": rng.integers(0, config.num_labels, ROWS)}


def _of_tokens(config, rng, made):
    labels = rng.integers(0, config.num_labels, (ROWS, LENGTH))
    return {"labels": np.where(made["attention_mask"] == 0, -100, labels)}


def _of_spans(config, rng, made):
    return _span()


def _xmod_choices(config, rng):
    langs = rng.permuted(np.arange(ROWS * CHOICES) % 3).reshape(ROWS, CHOICES)
    return {**_choices_of_words(config, rng), "lang_ids": langs}


def _choices_of_words(config, rng):
    texts = ROWS * CHOICES
    ends = rng.integers(2, LENGTH + 1, texts)
    flat = {
        "input_ids": token_ids(config, rng, texts),
        "attention_mask": (np.arange(LENGTH) < ends[:, None]).astype(np.int64),
        "token_type_ids": rng.integers(0, config.type_vocab_size, (texts, LENGTH)),
    }
    return {name: values.reshape(ROWS, CHOICES, LENGTH) for name, values in flat.items()}


def _xmod_choice_labels(config, rng):
    return {**_xmod_choices(config, rng), "labels": rng.integers(0, CHOICES, ROWS)}


def _xmod_head(name, make, labels, variants=("masked",)):
    """A head of texts, tried with and without labels."""
    calls = {"everything": Call(make, STATES), "labels": Call(labels)}
    return Head(name, calls, training=("labels",), variants=variants)


XMOD_CALLS = {
    "plain": Call(_adapted),
    "right_padding": Call(_adapted_right, STATES),
    "everything": Call(_adapted_fully, STATES),
    "embeddings": Call(_adapted_vectors, STATES, valid="none"),
    "encoder": Call(_adapted_encoder, STATES, _has_encoder),
}
XMOD = Family(
    name="xmod",
    configs={
        "masked": _xmod_config(
            vocab_size=53,
            hidden_size=20,
            num_attention_heads=5,
            num_hidden_layers=2,
            intermediate_size=34,
            max_position_embeddings=31,
            type_vocab_size=4,
            num_labels=9,
            adapter_layer_norm=True,
            ln_before_adapter=False,
        ),
        "pre_norm": _xmod_config(
            vocab_size=43,
            hidden_size=24,
            num_attention_heads=4,
            num_hidden_layers=2,
            intermediate_size=38,
            max_position_embeddings=29,
            type_vocab_size=5,
            pre_norm=True,
            adapter_reduction_factor=3.0,
            hidden_act="gelu_new",
            tie_word_embeddings=False,
        ),
        "decoder": _xmod_config(
            vocab_size=47,
            hidden_size=30,
            num_attention_heads=6,
            num_hidden_layers=2,
            intermediate_size=41,
            max_position_embeddings=33,
            type_vocab_size=4,
            is_decoder=True,
            add_cross_attention=True,
            adapter_reuse_layer_norm=False,
            hidden_act="silu",
        ),
        "relative": _xmod_config(
            vocab_size=41,
            hidden_size=28,
            num_attention_heads=7,
            num_hidden_layers=2,
            intermediate_size=36,
            max_position_embeddings=23,
            type_vocab_size=3,
            position_embedding_type="relative_key_query",
        ),
        "answers": _xmod_config(
            vocab_size=39,
            hidden_size=18,
            num_attention_heads=3,
            num_hidden_layers=2,
            intermediate_size=32,
            max_position_embeddings=21,
            type_vocab_size=5,
        ),
    },
    heads=(
        Head("XmodModel", XMOD_CALLS, variants=("masked", "relative", "decoder")),
        Head(
            "XmodForMaskedLM",
            {
                **XMOD_CALLS,
                "labels": Call(_xmod_labels(_adapted_right, _of_words)),
                "labelled_logits": Call(
                    _xmod_labels(_adapted_right, _of_words), {"labelled_logits_only": True}
                ),
            },
            training=("labels",),
            variants=("masked", "pre_norm"),
        ),
        Head(
            "XmodForCausalLM",
            {**XMOD_CALLS, "labels": Call(_xmod_labels(_adapted_encoder, _of_words))},
            training=("labels",),
            generation=XLM_GENERATION,
            prompts=_adapted,
            variants=("decoder",),
        ),
        _xmod_head(
            "XmodForSequenceClassification",
            _adapted_fully,
            _xmod_labels(_adapted_right, _of_texts),
        ),
        _xmod_head("XmodForMultipleChoice", _xmod_choices, _xmod_choice_labels),
        _xmod_head(
            "XmodForTokenClassification", _adapted_fully, _xmod_labels(_adapted_right, _of_tokens)
        ),
        _xmod_head(
            "XmodForQuestionAnswering",
            _adapted_fully,
            _xmod_labels(_adapted_right, _of_spans),
            ("answers",),
        ),
    ),
    # What shifts all scores of a softmax alike changes nothing.
    zero_gradient=lambda name: name.endswith(
        ("self.key.bias", "qa_outputs.bias", "classifier.bias")
    ),
)

# ---- Transformer-XL -------------------------------------------------------------------------


def _memories(config, rng):
    shape = (config.mem_len, ROWS, config.d_model)
    return tuple(normal(rng, *shape) for _ in range(config.n_layer))


def _first_segment(config, rng):
    return {"input_ids": token_ids(config, rng, ROWS)}


def _next_segment(config, rng):
    return {
        "input_ids": token_ids(config, rng, ROWS),
        "mems": _memories(config, rng),
        "head_mask": rng.random((config.n_layer, config.n_head), np.float32),
    }


def _padded_segment(config, rng):
    return {**padded_ids(config, rng, ROWS), "mems": _memories(config, rng)}


def _segment_of_vectors(config, rng):
    return {"inputs_embeds": normal(rng, ROWS, LENGTH, config.d_model)}


def _segment_labels(config, rng):
    """Labels of every cluster; some do not count."""
    made = _padded_segment(config, rng)
    labels = np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 5 % config.vocab_size
    labels[rng.random(labels.shape) < 0.2] = -100
    return {**made, "labels": np.where(made["attention_mask"] == 0, -100, labels)}


def _long_labels(config, rng):
    """Every word once, so that every row of every table learns."""
    ids = rng.permutation(config.vocab_size)[None]
    return {"input_ids": ids, "labels": rng.permutation(config.vocab_size)[None]}


def _segment_classes(config, rng):
    return {**_padded_segment(config, rng), "labels": rng.integers(0, config.num_labels, ROWS)}


def _left_prompts(config, rng):
    return padded_ids(config, rng, ROWS)


def _transfo_xl_config(**settings):
    return TransfoXLConfig(**settings, dropout=0.0, pad_token_id=3, eos_token_id=2)


TRANSFO_XL_CALLS = {
    "first": Call(_first_segment, STATES),
    "next": Call(_next_segment, STATES),
    "left_padding": Call(_padded_segment, STATES),
    "embeddings": Call(_segment_of_vectors),
}
TRANSFO_XL = Family(
    name="transfo-xl",
    configs={
        "divided": _transfo_xl_config(
            vocab_size=53,
            cutoffs=[11, 28],
            d_model=18,
            d_embed=12,
            n_head=3,
            d_head=5,
            d_inner=23,
            div_val=2,
            n_layer=2,
            mem_len=8,
            clamp_len=9,
            num_labels=7,
        ),
        "pre_norm": _transfo_xl_config(
            vocab_size=47,
            cutoffs=[9, 21],
            d_model=20,
            d_embed=16,
            n_head=4,
            d_head=6,
            d_inner=27,
            div_val=1,
            n_layer=2,
            mem_len=13,
            clamp_len=-1,
            same_length=False,
            pre_lnorm=True,
            untie_r=False,
            num_labels=5,
        ),
        "untied": _transfo_xl_config(
            vocab_size=43,
            cutoffs=[7, 20],
            d_model=22,
            d_embed=22,
            n_head=2,
            d_head=9,
            d_inner=31,
            div_val=4,
            n_layer=1,
            mem_len=10,
            clamp_len=4,
            tie_word_embeddings=False,
            proj_share_all_but_first=False,
            num_labels=3,
        ),
    },
    heads=(
        Head("TransfoXLModel", TRANSFO_XL_CALLS),
        Head(
            "TransfoXLLMHeadModel",
            {
                **TRANSFO_XL_CALLS,
                "labels": Call(_segment_labels),
                "every_word": Call(_long_labels),
            },
            training=("labels", "every_word"),
            generation=XLM_GENERATION,
            prompts=_left_prompts,
        ),
        Head(
            "TransfoXLForSequenceClassification",
            {**TRANSFO_XL_CALLS, "labels": Call(_segment_classes)},
            training=("labels",),
            variants=("divided",),
        ),
    ),
    zero_gradient=lambda name: False,
)

FAMILIES = {family.name: family for family in (XGLM, XLM, XMOD, TRANSFO_XL)}


def heads():
    """Return every (family, variant, head)."""
    return [
        (family.name, variant, head.name)
        for family in FAMILIES.values()
        for variant in family.configs
        for head in family.heads
        if head.variants is None or variant in head.variants
    ]


def head_of(family, variant, class_name):
    """Return one class of a family as it is tried with a variant."""
    return next(
        head
        for head in FAMILIES[family].heads
        if head.name == class_name and (head.variants is None or variant in head.variants)
    )


def learned(family, variant, class_name):
    """Return the names of what is learned, shared parameters once."""
    rows = table_of(family).expand(FAMILIES[family].configs[variant], class_name)
    return {name for name, row in rows.items() if row.trainable and row.tied_to is None}
