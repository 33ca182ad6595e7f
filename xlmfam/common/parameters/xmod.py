"""The parameter table of X-MOD, keyed by the languages' codes."""

from __future__ import annotations

from typing import Any

from xlmfam.common.parameters.table import Kind, Row, Table, linear, norm

LAYER = "roberta.encoder.layer.{layer}"
ADAPTER = f"{LAYER}.output.adapter_modules.{{lang}}"
LANGUAGE_MODELS = frozenset({"XmodForCausalLM", "XmodForMaskedLM"})
# A base model without the pooling layer is a class of its own to the table.
WITHOUT_POOLING = "XmodModel(add_pooling_layer=False)"
POOLED = frozenset({"XmodModel", "XmodForMultipleChoice"})


def _attention(name: str, **kwargs: Any) -> tuple[Row, ...]:
    rows: tuple[Row, ...] = ()
    for projection in ("query", "key", "value"):
        axes = ("heads", "embed")
        rows += linear(f"{LAYER}.{name}.self.{projection}", "embed", "embed", axes, **kwargs)
    return (
        *rows,
        *linear(f"{LAYER}.{name}.output.dense", "embed", "embed", ("embed", "heads"), **kwargs),
        *norm(f"{LAYER}.{name}.output.LayerNorm", "embed", **kwargs),
    )


def _is_relative(config: Any) -> bool:
    return config.position_embedding_type != "absolute"


def _looks_at_encoder(config: Any) -> bool:
    return bool(config.add_cross_attention)


def _has_adapter_norm(config: Any) -> bool:
    return bool(config.adapter_layer_norm)


def _is_pre_norm(config: Any) -> bool:
    return bool(config.pre_norm)


def _embedding(name: str, rows: str, **kwargs: Any) -> Row:
    axes = ("vocab" if rows == "vocab" else "rows", "embed")
    return Row(
        f"roberta.embeddings.{name}.weight",
        Kind.EMBEDDING,
        (rows, "embed"),
        axes,
        part="embeddings",
        **kwargs,
    )


def _classifier(name: str, out_size: str, in_size: str, *heads: str) -> tuple[Row, ...]:
    axes = ("labels" if out_size == "labels" else "rows", "embed")
    return linear(name, out_size, in_size, axes, heads=frozenset(heads))


XMOD = Table(
    family="xmod",
    prefix="roberta",
    base="XmodModel",
    headless=(WITHOUT_POOLING,),
    heads=(
        "XmodForCausalLM",
        "XmodForMaskedLM",
        "XmodForSequenceClassification",
        "XmodForMultipleChoice",
        "XmodForTokenClassification",
        "XmodForQuestionAnswering",
    ),
    tokens="roberta.embeddings.word_embeddings.weight",
    sizes={
        "vocab": lambda config: config.vocab_size,
        "embed": lambda config: config.hidden_size,
        "mlp": lambda config: config.intermediate_size,
        "head": lambda config: config.hidden_size // config.num_attention_heads,
        "positions": lambda config: config.max_position_embeddings,
        "distances": lambda config: 2 * config.max_position_embeddings - 1,
        "types": lambda config: config.type_vocab_size,
        "adapter": lambda config: config.adapter_size,
        "labels": lambda config: config.num_labels,
        "one": lambda config: 1,  # noqa: ARG005
    },
    indices={
        "layer": lambda config: range(config.num_hidden_layers),
        "lang": lambda config: config.languages,
    },
    init_std=lambda config: config.initializer_range,
    rows=(
        _embedding("word_embeddings", "vocab", padding_row="pad_token_id"),
        _embedding("position_embeddings", "positions", padding_row="pad_token_id"),
        _embedding("token_type_embeddings", "types"),
        *norm("roberta.embeddings.LayerNorm", "embed", part="embeddings"),
        *_attention("attention"),
        Row(
            f"{LAYER}.attention.self.distance_embedding.weight",
            Kind.EMBEDDING,
            ("distances", "head"),
            ("rows", "head"),
            when=_is_relative,
        ),
        *_attention("crossattention", when=_looks_at_encoder),
        *linear(f"{LAYER}.intermediate.dense", "mlp", "embed", ("mlp", "embed")),
        *linear(f"{LAYER}.output.dense", "embed", "mlp", ("embed", "mlp")),
        *norm(f"{LAYER}.output.LayerNorm", "embed"),
        *norm(
            f"{LAYER}.output.adapter_layer_norm", "embed", when=_has_adapter_norm, part="adapters"
        ),
        *linear(f"{ADAPTER}.dense1", "adapter", "embed", ("adapter", "embed"), part="adapters"),
        *linear(f"{ADAPTER}.dense2", "embed", "adapter", ("embed", "adapter"), part="adapters"),
        *norm("roberta.encoder.LayerNorm", "embed", when=_is_pre_norm),
        *linear(
            "roberta.pooler.dense",
            "embed",
            "embed",
            ("rows", "embed"),
            heads=POOLED,
            optional=True,
        ),
        Row("lm_head.bias", Kind.RAW_BIAS, ("vocab",), ("vocab",), heads=LANGUAGE_MODELS),
        *linear("lm_head.dense", "embed", "embed", ("rows", "embed"), heads=LANGUAGE_MODELS),
        *norm("lm_head.layer_norm", "embed", heads=LANGUAGE_MODELS),
        Row(
            "lm_head.decoder.weight",
            Kind.LINEAR,
            ("vocab", "embed"),
            ("vocab", "embed"),
            heads=LANGUAGE_MODELS,
            tied_to="roberta.embeddings.word_embeddings.weight",
        ),
        Row(
            "lm_head.decoder.bias",
            Kind.BIAS,
            ("vocab",),
            ("vocab",),
            heads=LANGUAGE_MODELS,
            tied_to="lm_head.bias",
            always_tied=True,
        ),
        *_classifier("classifier.dense", "embed", "embed", "XmodForSequenceClassification"),
        *_classifier("classifier.out_proj", "labels", "embed", "XmodForSequenceClassification"),
        *_classifier("classifier", "labels", "embed", "XmodForTokenClassification"),
        *_classifier("classifier", "one", "embed", "XmodForMultipleChoice"),
        *_classifier("qa_outputs", "labels", "embed", "XmodForQuestionAnswering"),
    ),
    ignored=(("roberta.embeddings.position_ids", "positions are counted, not stored"),),
)
