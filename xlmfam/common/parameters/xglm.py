"""The parameter table of XGLM."""

from __future__ import annotations

from xlmfam.common.parameters.table import Kind, Row, Table, linear, norm

LAYER = "model.layers.{layer}"


def _attention(name: str, **kwargs):
    projections = ("k_proj", "v_proj", "q_proj")
    rows: tuple[Row, ...] = ()
    for projection in projections:
        axes = ("heads", "embed")
        rows += linear(f"{LAYER}.{name}.{projection}", "embed", "embed", axes, **kwargs)
    rows += linear(f"{LAYER}.{name}.out_proj", "embed", "embed", ("embed", "heads"), **kwargs)
    return (*rows, *norm(f"{LAYER}.{name}_layer_norm", "embed", **kwargs))


def _has_cross_attention(config) -> bool:
    return bool(config.add_cross_attention)


XGLM = Table(
    family="xglm",
    prefix="model",
    base="XGLMModel",
    heads=("XGLMForCausalLM",),
    tokens="model.embed_tokens.weight",
    sizes={
        "vocab": lambda config: config.vocab_size,
        "embed": lambda config: config.d_model,
        "mlp": lambda config: config.ffn_dim,
    },
    indices={"layer": lambda config: range(config.num_layers)},
    init_std=lambda config: config.init_std,
    rows=(
        Row(
            "model.embed_tokens.weight",
            Kind.EMBEDDING,
            ("vocab", "embed"),
            ("vocab", "embed"),
            padding_row="pad_token_id",
        ),
        *_attention("self_attn"),
        *_attention("encoder_attn", when=_has_cross_attention),
        *linear(f"{LAYER}.fc1", "mlp", "embed", ("mlp", "embed")),
        *linear(f"{LAYER}.fc2", "embed", "mlp", ("embed", "mlp")),
        *norm(f"{LAYER}.final_layer_norm", "embed"),
        *norm("model.layer_norm", "embed"),
        Row(
            "lm_head.weight",
            Kind.LINEAR,
            ("vocab", "embed"),
            ("vocab", "embed"),
            heads=frozenset({"XGLMForCausalLM"}),
            tied_to="model.embed_tokens.weight",
        ),
    ),
    ignored=(
        ("model.embed_positions.weights", "the sinusoidal table is computed, not stored"),
        ("model.embed_positions._float_tensor", "a placeholder of fairseq, holds nothing"),
    ),
)
