"""The parameter table of XLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xlmfam.common.parameters.table import Kind, Row, Table, linear, norm

LANGUAGE_MODEL = frozenset({"XLMWithLMHeadModel"})
SUMMARY = frozenset({"XLMForSequenceClassification", "XLMForMultipleChoice"})
BEAM = frozenset({"XLMForQuestionAnswering"})
TRANSLATION = frozenset({"XLMEncoderDecoder"})
HEADS = (
    "XLMWithLMHeadModel",
    "XLMForSequenceClassification",
    "XLMForMultipleChoice",
    "XLMForTokenClassification",
    "XLMForQuestionAnsweringSimple",
    "XLMForQuestionAnswering",
)
ONE_TRANSFORMER = frozenset({"XLMModel", *HEADS})
When = Callable[[Any], bool]


def _attention(name: str, width: str, **kwargs: Any) -> tuple[Row, ...]:
    rows: tuple[Row, ...] = ()
    for projection in ("q_lin", "k_lin", "v_lin"):
        rows += linear(f"{name}.{projection}", width, "embed", ("heads", "embed"), **kwargs)
    return (*rows, *linear(f"{name}.out_lin", "embed", width, ("embed", "heads"), **kwargs))


def _embedding(name: str, rows: str, **kwargs: Any) -> Row:
    axes = ("vocab" if rows == "vocab" else "rows", "embed")
    return Row(
        f"{name}.weight", Kind.EMBEDDING, (rows, "embed"), axes, std="embed_init_std", **kwargs
    )


def _transformer(prefix: str, looks_at_source: When, heads: frozenset[str]) -> tuple[Row, ...]:
    """Return the rows of an encoder or a decoder whose names begin with ``prefix``."""
    positions = f"{prefix}.position_embeddings"
    return (
        _embedding(
            positions,
            "positions",
            when=lambda config: not config.sinusoidal_embeddings,
            heads=heads,
            h5_leaf="embeddings",
        ),
        _embedding(
            positions,
            "positions",
            when=lambda config: config.sinusoidal_embeddings,
            heads=heads,
            init="sinusoids",
            trainable=False,
            h5_leaf="embeddings",
        ),
        _embedding(
            f"{prefix}.lang_embeddings",
            "languages",
            when=lambda config: config.uses_languages,
            heads=heads,
            h5_leaf="embeddings",
        ),
        _embedding(f"{prefix}.embeddings", "vocab", padding_row="pad_index", heads=heads),
        *norm(f"{prefix}.layer_norm_emb", "embed", heads=heads),
        *_attention(f"{prefix}.attentions.{{layer}}", "kept", heads=heads),
        *norm(f"{prefix}.layer_norm1.{{layer}}", "embed", heads=heads),
        *linear(f"{prefix}.ffns.{{layer}}.lin1", "mlp", "embed", ("mlp", "embed"), heads=heads),
        *linear(f"{prefix}.ffns.{{layer}}.lin2", "embed", "mlp", ("embed", "mlp"), heads=heads),
        *norm(f"{prefix}.layer_norm2.{{layer}}", "embed", heads=heads),
        *norm(f"{prefix}.layer_norm15.{{layer}}", "embed", when=looks_at_source, heads=heads),
        *_attention(f"{prefix}.encoder_attn.{{layer}}", "embed", when=looks_at_source, heads=heads),
    )


def _prediction(
    prefix: str, embedding: str, heads: frozenset[str], h5_path: str | None = None
) -> tuple[Row, ...]:
    """Return the rows of the vocabulary projection, plain or adaptive."""

    def plain(config: Any) -> bool:
        return not config.asm

    def adaptive(config: Any) -> bool:
        return bool(config.asm)

    head_axes = ("vocab", "embed")
    tail = f"{prefix}.proj.tail.{{tail}}"
    return (
        # A tied adaptive softmax lists the embedding too, though it takes no part.
        Row(
            f"{prefix}.proj.weight",
            Kind.LINEAR,
            ("vocab", "embed"),
            head_axes,
            when=lambda config: not config.asm or config.tie_word_embeddings,
            heads=heads,
            tied_to=embedding,
            h5_path=h5_path,
        ),
        Row(
            f"{prefix}.proj.bias",
            Kind.BIAS,
            ("vocab",),
            ("vocab",),
            when=plain,
            heads=heads,
            h5_path=h5_path,
        ),
        *linear(
            f"{prefix}.proj.head", "short_list", "embed", head_axes, when=adaptive, heads=heads
        ),
        Row(
            f"{tail}.0.weight",
            Kind.LINEAR,
            ("tail_width", "embed"),
            ("rows", "embed"),
            when=adaptive,
            heads=heads,
        ),
        Row(
            f"{tail}.1.weight",
            Kind.LINEAR,
            ("tail_words", "tail_width"),
            ("vocab", "rows"),
            when=adaptive,
            heads=heads,
        ),
    )


def _looks_at_source(config: Any) -> bool:
    return not config.is_encoder


def _always(config: Any) -> bool:  # noqa: ARG001
    return True


def _never(config: Any) -> bool:  # noqa: ARG001
    return False


def _tails(config: Any) -> range:
    return range(len(config.asm_cuts) - 1)


def _to_labels(config: Any) -> bool:
    return bool(config.summary_proj_to_labels)


XLM = Table(
    family="xlm",
    prefix="transformer",
    base="XLMModel",
    heads=(*HEADS, "XLMEncoderDecoder"),
    tokens="transformer.embeddings.weight",
    sizes={
        "vocab": lambda config: config.vocab_size,
        "embed": lambda config: config.emb_dim,
        "mlp": lambda config: 4 * config.emb_dim,
        "positions": lambda config: config.max_position_embeddings,
        "languages": lambda config: config.n_langs,
        "labels": lambda config: config.num_labels,
        "summary": lambda c: c.num_labels if _to_labels(c) else c.emb_dim,
        "one": lambda config: 1,  # noqa: ARG005
        "double": lambda config: 2 * config.emb_dim,
        "short_list": lambda config: config.asm_cuts[0] + len(config.asm_cuts) - 1,
    },
    indexed_sizes={
        "kept": lambda c, at: c.emb_dim // c.n_heads * len(c.kept_heads(at["layer"])),
        "tail_width": lambda c, at: int(c.emb_dim // c.asm_div_value ** (at["tail"] + 1)),
        "tail_words": lambda c, at: c.asm_cuts[at["tail"] + 1] - c.asm_cuts[at["tail"]],
    },
    indices={"layer": lambda config: range(config.n_layers), "tail": _tails},
    init_std=lambda config: config.init_std,
    h5_index="_._",
    h5_has_ties=False,
    h5_lost={
        "pred_layer.proj.weight": "transformers' TensorFlow files have no untied projection: take "
        "another format, or tie_word_embeddings=True for what TensorFlow computes"
    },
    rows=(
        *_transformer("transformer", _looks_at_source, ONE_TRANSFORMER),
        *_transformer("encoder", _never, TRANSLATION),
        *_transformer("decoder", _always, TRANSLATION),
        *_prediction(
            "pred_layer", "transformer.embeddings.weight", LANGUAGE_MODEL, "pred_layer_._proj"
        ),
        *_prediction("decoder.pred_layer", "decoder.embeddings.weight", TRANSLATION),
        *linear(
            "sequence_summary.summary",
            "summary",
            "embed",
            ("labels", "embed"),
            when=lambda config: config.summary_use_proj,
            heads=SUMMARY,
        ),
        *linear(
            "logits_proj",
            "one",
            "labels",
            ("rows", "labels"),
            heads=frozenset({"XLMForMultipleChoice"}),
        ),
        *linear(
            "classifier",
            "labels",
            "embed",
            ("labels", "embed"),
            heads=frozenset({"XLMForTokenClassification"}),
        ),
        *linear(
            "qa_outputs",
            "labels",
            "embed",
            ("labels", "embed"),
            heads=frozenset({"XLMForQuestionAnsweringSimple"}),
        ),
        *linear("qa_outputs.start_logits.dense", "one", "embed", ("rows", "embed"), heads=BEAM),
        *linear("qa_outputs.end_logits.dense_0", "embed", "double", ("rows", "embed"), heads=BEAM),
        *norm("qa_outputs.end_logits.LayerNorm", "embed", heads=BEAM),
        *linear("qa_outputs.end_logits.dense_1", "one", "embed", ("rows", "embed"), heads=BEAM),
        *linear(
            "qa_outputs.answer_class.dense_0", "embed", "double", ("rows", "embed"), heads=BEAM
        ),
        Row(
            "qa_outputs.answer_class.dense_1.weight",
            Kind.LINEAR,
            ("one", "embed"),
            ("rows", "embed"),
            heads=BEAM,
        ),
    ),
    ignored=(
        ("transformer.position_ids", "positions are counted, not stored"),
        ("encoder.pred_layer.proj.weight", "the encoder's own head is not used to translate"),
        ("encoder.pred_layer.proj.bias", "the encoder's own head is not used to translate"),
    ),
)
