"""Where a parameter lies among the variables of kimiyoung's TensorFlow code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from xlmfam.common.parameters import Kind, Parameter, spell

SCOPE = "transformer"
EMBED, SOFTMAX = f"{SCOPE}/adaptive_embed", f"{SCOPE}/adaptive_softmax"
# What a part of a layer is called here, by its canonical name.
_PARTS = {
    "dec_attn.qkv_net": "rel_attn/qkv",
    "dec_attn.o_net": "rel_attn/o",
    "dec_attn.r_net": "rel_attn/r",
    "dec_attn.layer_norm": "rel_attn/LayerNorm",
    "pos_ff.CoreNet.0": "ff/layer_1",
    "pos_ff.CoreNet.3": "ff/layer_2",
    "pos_ff.layer_norm": "ff/LayerNorm",
}
_LAYER = re.compile(r"transformer\.layers\.\d+\.(.+)\.[^.]+")


@dataclass(frozen=True)
class Place:
    """Where a parameter lies.

    Attributes:
        names: Its variables; those of more than one lie end to end.
        row: Its row in the variable, where that has one for each layer.
        is_projection: It may be missing where it would change no width.
    """

    names: tuple[str, ...]
    row: int | None = None
    is_projection: bool = False


def place_of(parameter: Parameter, config: Any) -> Place:
    """Return where a parameter of a config lies."""
    name = parameter.full_name
    leaf = name.rpartition(".")[2]
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        if layer[1] not in _PARTS:  # one variable for the biases of all layers
            return Place((f"{SCOPE}/{leaf}",), parameter.layer)
        leaf = spell(parameter, "keras").rpartition("/")[2]
        return Place((f"{SCOPE}/layer_{parameter.layer}/{_PARTS[layer[1]]}/{leaf}",))
    number = re.search(r"\d+", name)
    cluster = f"cutoff_{number[0]}" if number else ""
    table = f"{cluster}/" if config.div_val > 1 else ""
    if name.startswith("transformer.word_emb.emb_layers."):
        return Place((f"{EMBED}/{table}lookup_table",))
    if name.startswith("transformer.word_emb.emb_projs."):
        return Place((f"{EMBED}/{table}proj_W",), is_projection=True)
    if name.startswith("crit.out_projs."):
        return Place((f"{SOFTMAX}/{cluster}/proj",), is_projection=True)
    if name.startswith("crit.cluster_"):
        of = {Kind.RAW: "W", Kind.RAW_BIAS: "b"}[parameter.kind]
        return Place((f"{SOFTMAX}/cutoff_0/cluster_{of}",))
    if name.startswith("crit.out_layers."):
        return Place(_biases(table, len(config.cluster_ends)))
    return Place((f"{SCOPE}/{leaf}",))


def _biases(table: str, clusters: int) -> tuple[str, ...]:
    """Return where the biases of a table's words lie: by clusters."""
    if clusters == 1:
        return (f"{SOFTMAX}/bias",)
    places = [table] if table else [f"cutoff_{place}/" for place in range(clusters)]
    return tuple(f"{SOFTMAX}/{place}b" for place in places)
