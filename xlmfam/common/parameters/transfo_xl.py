"""The parameter table of Transformer-XL: clusters of the vocabulary, and what ties them."""

from __future__ import annotations

from typing import Any

from xlmfam.common.parameters.table import Kind, Row, Table, linear, norm

WORDS = "transformer.word_emb"
LAYER = "transformer.layers.{layer}"
ATTENTION = f"{LAYER}.dec_attn"
FEED_FORWARD = f"{LAYER}.pos_ff"
LANGUAGE_MODEL = frozenset({"TransfoXLLMHeadModel"})
CLASSIFIER = frozenset({"TransfoXLForSequenceClassification"})


def _shares_biases(config: Any) -> bool:
    return not config.untie_r


def _has_own_biases(config: Any) -> bool:
    return bool(config.untie_r)


def _has_tails(config: Any) -> bool:
    return bool(config.cutoffs)


def _is_divided(config: Any) -> bool:
    return config.div_val > 1


def _is_projected(config: Any) -> bool:
    return config.div_val == 1 and config.d_model != config.d_embed


def _tables(config: Any) -> range:
    """Numbers of the embedding tables: one for all clusters, or one for each."""
    return range(len(config.cluster_ends) if _is_divided(config) else 1)


def _rows(config: Any, values: dict[str, Any]) -> int:
    if not _is_divided(config):
        return config.vocab_size
    first, end = config.cluster_bounds[values["table"]]
    return end - first


def _width(config: Any, values: dict[str, Any]) -> int:
    (cluster,) = values.values()
    return config.cluster_width(cluster)


def _ties_projection(config: Any, values: dict[str, Any]) -> bool:
    return config.ties_projection(values["cluster"])


def _linear(name: str, sizes: tuple[str, str], axes: tuple[str, str]) -> Row:
    return Row(f"{name}.weight", Kind.LINEAR, sizes, axes)


def _attention_biases(
    prefix: str, names: tuple[str, ...], tied: bool = False, **kwargs: Any
) -> tuple[Row, ...]:
    return tuple(
        Row(
            f"{prefix}.{name}",
            Kind.RAW_BIAS,
            ("heads", "head"),
            ("heads", "head"),
            tied_to=f"transformer.{name}" if tied else None,
            always_tied=tied,
            init="normal",
            **kwargs,
        )
        for name in names
    )


def _projection(name: str, width: str, **kwargs: Any) -> Row:
    path, _, index = name.rpartition(".")
    owner, _, group = path.rpartition(".")
    return Row(
        name,
        Kind.RAW,
        ("embed", width),
        ("embed", "rows"),
        std="proj_init_std",
        h5_path=owner.replace(".", "/"),
        h5_leaf=f"{group}_._{index}",
        h5_transposed=True,
        **kwargs,
    )


def _feed_forward(place: int, out_size: str, in_size: str) -> tuple[Row, ...]:
    path = f"transformer/layers_._{{layer}}/pos_ff/CoreNet_._{place}"
    name = f"{FEED_FORWARD}.CoreNet.{place}"
    return linear(name, out_size, in_size, (out_size, in_size), h5_path=path)


TRANSFO_XL = Table(
    family="transfo-xl",
    prefix="transformer",
    base="TransfoXLModel",
    heads=("TransfoXLLMHeadModel", "TransfoXLForSequenceClassification"),
    tokens=f"{WORDS}.emb_layers.0.weight",
    sizes={
        "embed": lambda config: config.d_model,
        "mlp": lambda config: config.d_inner,
        "heads": lambda config: config.n_head,
        "head": lambda config: config.d_head,
        "all_heads": lambda config: config.n_head * config.d_head,
        "queries_keys_values": lambda config: 3 * config.n_head * config.d_head,
        "tails": lambda config: len(config.cutoffs),
        "first_width": lambda config: config.d_embed,
        "labels": lambda config: config.num_labels,
    },
    indexed_sizes={
        "vocab": _rows,
        "width": _width,
    },
    indices={
        "layer": lambda config: range(config.n_layer),
        "table": _tables,
        "cluster": lambda config: range(len(config.cluster_ends)),
    },
    init_std=lambda config: config.init_std,
    init_bound=lambda config: config.init_range if config.init == "uniform" else None,
    h5_index="_._",
    rows=(
        *_attention_biases("transformer", ("r_w_bias", "r_r_bias"), when=_shares_biases),
        Row(
            f"{WORDS}.emb_layers.{{table}}.weight",
            Kind.EMBEDDING,
            ("vocab", "width"),
            ("vocab", "embed"),
            h5_leaf="embeddings",
            part="embeddings",
        ),
        _projection(f"{WORDS}.emb_projs.{{table}}", "width", when=_is_divided, part="embeddings"),
        _projection(f"{WORDS}.emb_projs.0", "first_width", when=_is_projected, part="embeddings"),
        *_attention_biases(ATTENTION, ("r_r_bias", "r_w_bias"), when=_has_own_biases),
        *_attention_biases(ATTENTION, ("r_r_bias", "r_w_bias"), when=_shares_biases, tied=True),
        _linear(f"{ATTENTION}.qkv_net", ("queries_keys_values", "embed"), ("heads", "embed")),
        _linear(f"{ATTENTION}.o_net", ("embed", "all_heads"), ("embed", "heads")),
        *norm(f"{ATTENTION}.layer_norm", "embed"),
        _linear(f"{ATTENTION}.r_net", ("all_heads", "embed"), ("heads", "embed")),
        *_feed_forward(0, "mlp", "embed"),
        *_feed_forward(3, "embed", "mlp"),
        *norm(f"{FEED_FORWARD}.layer_norm", "embed"),
        Row(
            "crit.cluster_weight",
            Kind.RAW,
            ("tails", "first_width"),
            ("rows", "embed"),
            when=_has_tails,
            heads=LANGUAGE_MODEL,
            init="zeros",
        ),
        Row(
            "crit.cluster_bias",
            Kind.RAW_BIAS,
            ("tails",),
            ("rows",),
            when=_has_tails,
            heads=LANGUAGE_MODEL,
        ),
        Row(
            "crit.out_layers.{table}.weight",
            Kind.LINEAR,
            ("vocab", "width"),
            ("vocab", "embed"),
            heads=LANGUAGE_MODEL,
            tied_to=f"{WORDS}.emb_layers.{{table}}.weight",
            h5_path="crit",
            h5_leaf="out_layers_._{table}_._weight",
            h5_transposed=False,
        ),
        Row(
            "crit.out_layers.{table}.bias",
            Kind.BIAS,
            ("vocab",),
            ("vocab",),
            heads=LANGUAGE_MODEL,
            h5_path="crit",
            h5_leaf="out_layers_._{table}_._bias",
        ),
        _projection(
            "crit.out_projs.{cluster}",
            "width",
            when=_is_divided,
            heads=LANGUAGE_MODEL,
            tied_to=f"{WORDS}.emb_projs.{{cluster}}",
            tied_when=_ties_projection,
        ),
        _projection(
            "crit.out_projs.{cluster}",
            "first_width",
            when=_is_projected,
            heads=LANGUAGE_MODEL,
            tied_to=f"{WORDS}.emb_projs.0",
            tied_when=_ties_projection,
        ),
        Row(
            "score.weight", Kind.LINEAR, ("labels", "embed"), ("labels", "embed"), heads=CLASSIFIER
        ),
    ),
    ignored=(("transformer.pos_emb.inv_freq", "positions are computed, not stored"),),
)
