"""``model.pt`` as kimiyoung's ``train.py`` writes it: the whole model, pickled.

The file names the original's classes and says what their objects hold; reading it needs the
original code, writing it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.parameters import table_of
from xlmfam.conversion.formats.torch_writer import (
    Made,
    Tensor,
    parameter_of,
    tensor_of,
    write_torch_file,
)
from xlmfam.conversion.originals.transfo_xl import OF_TAILS
from xlmfam.conversion.targets import Work

FILE_NAME = "model.pt"
# The length of a segment, which a config does not have; evaluation sets its own.
_SEGMENT = 128


def write_model(work: Work) -> None:
    """Write ``model.pt``; see `transfo_xl.write_original`."""
    write_torch_file(work.folder / FILE_NAME, _Model(work).build(), work.progress)


def _module(
    place: str,
    parameters: dict[str, Any] | None = None,
    modules: dict[str, Any] | None = None,
    buffers: dict[str, Any] | None = None,
    **attributes: Any,
) -> Made:
    """Return an object of a class of modules, such as ``torch.nn.modules.linear.Linear``."""
    state = {
        "training": False,
        "_parameters": parameters or {},
        "_buffers": buffers or {},
        "_backward_hooks": {},
        "_forward_hooks": {},
        "_forward_pre_hooks": {},
        "_modules": modules or {},
        **attributes,
    }
    module, _, name = place.rpartition(".")
    return Made((module, name), (), state)


def _list(modules: list[Made], place: str = "torch.nn.modules.container.ModuleList") -> Made:
    return _module(place, modules={str(number): module for number, module in enumerate(modules)})


def _parameters(parameters: list[Made | None]) -> Made:
    listed = {str(number): parameter for number, parameter in enumerate(parameters)}
    place = "torch.nn.modules.container.ParameterList"
    return _module(place, listed, _size=len(parameters))


def _dropout(p: float) -> Made:
    return _module("torch.nn.modules.dropout.Dropout", p=float(p), inplace=False)


class _Model:
    """Builds the original's objects around the parameters of a work.

    Args:
        work: What is written.
    """

    def __init__(self, work: Work):
        self.work = work
        self.config: Any = work.config
        self._own = dict(_by_own_name(work))
        self._made: dict[str, Made] = {}

    def parameter(self, name: str) -> Made:
        """Return a parameter by the original's name; one and the same where it is shared."""
        canonical = self._own[name]
        parameter = self.work.reader.parameters[canonical]
        if parameter.tied_to is not None:
            full = {p.full_name: n for n, p in self.work.reader.parameters.items()}
            canonical = full[parameter.tied_to]
        if canonical not in self._made:
            self._made[canonical] = parameter_of(self._tensor(canonical, name in OF_TAILS))
        return self._made[canonical]

    def _tensor(self, canonical: str, is_reversed: bool) -> Tensor:
        reader = self.work.reader
        dtype = reader.dtype or reader.source.specs()[reader.plan.sources[canonical]].dtype
        spec = TensorSpec(reader.parameters[canonical].shape, dtype)
        return Tensor(spec, _blocks(lambda: reader.read(canonical), is_reversed))

    def optional(self, name: str) -> Made | None:
        """Return a parameter, or ``None`` where the model has none of the name."""
        return self.parameter(name) if name in self._own else None

    def build(self) -> Made:
        """Return the model."""
        config = self.config
        lengths = {"tgt_len": _SEGMENT, "mem_len": config.mem_len, "ext_len": 0}
        return _module(
            "mem_transformer.MemTransformerLM",
            {name: self.parameter(name) for name in ("r_w_bias", "r_r_bias")},
            {
                "word_emb": self._embedding(),
                "drop": _dropout(config.dropout),
                "layers": _list([self._layer(f"layers.{i}") for i in range(config.n_layer)]),
                "crit": self._softmax(),
                "pos_emb": self._positions(),
            },
            **self._named("n_layer", "n_head", "d_embed", "d_model", "d_head"),
            **self._named("same_length", "clamp_len"),
            **lengths,
            n_token=config.vocab_size,
            max_klen=sum(lengths.values()),
            attn_type=0,
            sample_softmax=-1,
        )

    def _named(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in names}

    def _clusters(self) -> dict[str, Any]:
        """Return the settings that embedding and softmax have in common."""
        ends = self.config.cluster_ends
        common = {"n_token": self.config.vocab_size, "d_proj": self.config.d_model}
        return {
            **common,
            **self._named("d_embed", "div_val"),
            "cutoffs": ends,
            "cutoff_ends": [0, *ends],
        }

    def _widths(self) -> list[tuple[int, int]]:
        """Return rows and columns of the tables."""
        config = self.config
        if config.div_val == 1:
            return [(config.vocab_size, config.d_embed)]
        bounds = enumerate(config.cluster_bounds)
        return [(end - first, config.cluster_width(place)) for place, (first, end) in bounds]

    def _embedding(self) -> Made:
        tables = [
            _module(
                "torch.nn.modules.sparse.Embedding",
                {"weight": self.parameter(f"word_emb.emb_layers.{place}.weight")},
                num_embeddings=rows,
                embedding_dim=width,
                padding_idx=None,
                max_norm=None,
                norm_type=2.0,
                scale_grad_by_freq=False,
                sparse=False,
            )
            for place, (rows, width) in enumerate(self._widths())
        ]
        projs = [self.optional(f"word_emb.emb_projs.{place}") for place in range(len(tables))]
        return _module(
            "mem_transformer.AdaptiveEmbedding",
            modules={
                "emb_layers": _list(tables),
                "emb_projs": _parameters([proj for proj in projs if proj is not None]),
            },
            **self._clusters(),
            emb_scale=self.config.d_model**0.5,
        )

    def _softmax(self) -> Made:
        ends = self.config.cluster_ends
        tables = [
            self._linear(f"crit.out_layers.{place}", width, rows)
            for place, (rows, width) in enumerate(self._widths())
        ]
        projs = [self.optional(f"crit.out_projs.{place}") for place in range(len(ends))]
        tails = len(ends) - 1
        return _module(
            "proj_adaptive_softmax.ProjectedAdaptiveLogSoftmax",
            {n.removeprefix("crit."): self.parameter(n) for n in OF_TAILS if tails},
            {"out_layers": _list(tables), "out_projs": _parameters(projs)},
            **self._clusters(),
            shortlist_size=ends[0],
            n_clusters=tails,
            head_size=ends[0] + tails,
            keep_order=False,
        )

    def _linear(self, name: str, in_size: int, out_size: int) -> Made:
        return _module(
            "torch.nn.modules.linear.Linear",
            {leaf: self.optional(f"{name}.{leaf}") for leaf in ("weight", "bias")},
            in_features=in_size,
            out_features=out_size,
        )

    def _norm(self, name: str) -> Made:
        return _module(
            "torch.nn.modules.normalization.LayerNorm",
            {leaf: self.parameter(f"{name}.{leaf}") for leaf in ("weight", "bias")},
            normalized_shape=(self.config.d_model,),
            eps=self.config.layer_norm_epsilon,
            elementwise_affine=True,
        )

    def _layer(self, name: str) -> Made:
        modules = {"dec_attn": self._attention(name), "pos_ff": self._feed_forward(name)}
        return _module("mem_transformer.RelPartialLearnableDecoderLayer", modules=modules)

    def _attention(self, layer: str) -> Made:
        config, name = self.config, f"{layer}.dec_attn"
        width, heads = config.d_model, config.n_head * config.d_head
        return _module(
            "mem_transformer.RelPartialLearnableMultiHeadAttn",
            modules={
                "qkv_net": self._linear(f"{name}.qkv_net", width, 3 * heads),
                "drop": _dropout(config.dropout),
                "dropatt": _dropout(config.dropatt),
                "o_net": self._linear(f"{name}.o_net", heads, width),
                "layer_norm": self._norm(f"{name}.layer_norm"),
                "r_net": self._linear(f"{name}.r_net", width, heads),
            },
            **self._named("n_head", "d_model", "d_head", "dropout", "pre_lnorm"),
            scale=config.d_head**-0.5,
        )

    def _feed_forward(self, layer: str) -> Made:
        config, name = self.config, f"{layer}.pos_ff"
        steps = [
            self._linear(f"{name}.CoreNet.0", config.d_model, config.d_inner),
            _module("torch.nn.modules.activation.ReLU", inplace=True),
            _dropout(config.dropout),
            self._linear(f"{name}.CoreNet.3", config.d_inner, config.d_model),
            _dropout(config.dropout),
        ]
        return _module(
            "mem_transformer.PositionwiseFF",
            modules={
                "CoreNet": _list(steps, "torch.nn.modules.container.Sequential"),
                "layer_norm": self._norm(f"{name}.layer_norm"),
            },
            **self._named("d_model", "d_inner", "dropout", "pre_lnorm"),
        )

    def _positions(self) -> Made:
        width = self.config.d_model
        # Half the model's precision where the model has it: the original multiplies them so.
        dtype = self._tensor(self._own["word_emb.emb_layers.0.weight"], False).spec.dtype
        powers = np.arange(0.0, width, 2.0, dtype=np.float32) / np.float32(width)
        frequencies = (1 / np.float32(10000) ** powers).astype(dtype)
        return _module(
            "mem_transformer.PositionalEmbedding",
            buffers={"inv_freq": tensor_of(frequencies)},
            demb=width,
        )


def _by_own_name(work: Work) -> Iterator[tuple[str, str]]:
    """Yield what the original calls a parameter, and what we do."""
    prefix = f"{table_of(work.config.model_type).prefix}."
    for canonical in work.reader.parameters:
        yield canonical.removeprefix(prefix), canonical


def _blocks(
    read: Callable[[], np.ndarray], is_reversed: bool
) -> Callable[[], Iterator[np.ndarray]]:
    def blocks() -> Iterator[np.ndarray]:
        array = read()
        yield array[::-1] if is_reversed else array

    return blocks
