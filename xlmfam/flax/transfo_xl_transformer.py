"""What every Transformer-XL class has in Flax: the base, and the model without a head.

Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length Context".

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, L layers,
R slots of a projected memory, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import layout_shape, partition
from xlmfam.flax.base import Params, PreTrainedModel, as_arrays, initialise, is_concrete
from xlmfam.flax.transfo_xl_layers import Mems, TransfoXLModule
from xlmfam.flax.transfo_xl_memory import ProjectedMemory


class TransfoXLPreTrainedModel(PreTrainedModel):
    """What the Transformer-XL classes share."""

    config_class = TransfoXLConfig
    base_model_prefix = "transformer"
    config: TransfoXLConfig

    # ---- memory -------------------------------------------------------------------------

    @property
    def mem_len(self) -> int:
        """Most states of each layer that are kept."""
        return self.config.mem_len if self.module.mem_len is None else self.module.mem_len

    def reset_memory_length(self, mem_len: int) -> None:
        """Keep ``mem_len`` states of each layer from the next call on.

        What ``jax.jit`` has compiled keeps the length that it met.

        Raises:
            XlmfamError: For a length that is negative.
        """
        if mem_len < 0:
            raise XlmfamError(f"mem_len must be 0 or more, got {mem_len}")
        self.module = self.module.clone(mem_len=mem_len)

    def init_mems(self, bsz: int) -> list[Array] | None:
        """Return memories of zeros, (mem_len, B, D) for each layer; ``None`` where none is kept."""
        if not self.mem_len:
            return None
        shape = (self.mem_len, bsz, self.config.d_model)
        return [jnp.zeros(shape, self.dtype) for _ in range(self.config.n_layer)]

    def init_cache(
        self,
        batch_size: int,
        max_length: int = 1,
        mems: Sequence[Any] | None = None,
        params: Params | None = None,
    ) -> ProjectedMemory:
        """Return a memory as keys and values, to be given as ``mems``.

        Calls then project what is new and nothing else, and return the next one as ``mems``. Only
        for inference: the memory has no gradients.

        Args:
            batch_size: B.
            max_length: Most tokens of a single call.
            mems: (M, B, D) for each layer; zeros by default.
            params: To use instead of the model's own.
        """
        if mems is not None:
            self._check_mems(mems, batch_size)
        memory: Any = self.module.apply(
            {"params": self.params if params is None else params},
            batch_size,
            max_length,
            mems,
            method="begin_memory",
        )
        return memory

    # ---- embeddings ---------------------------------------------------------------------

    def _words_path(self) -> tuple[str, ...]:
        is_base = self.table_class == self.table.base
        return ("word_emb",) if is_base else (self.base_model_prefix, "word_emb")

    def get_input_embeddings(self, params: Params | None = None) -> Params:  # type: ignore[override]
        """Return the parameters of the embedding of all clusters, an ``AdaptiveEmbedding``."""
        tree = self.params if params is None else params
        for name in self._words_path():
            tree = tree[name]
        return tree

    def set_input_embeddings(self, value: Mapping[str, Any]) -> None:
        """Replace the parameters of the embedding, and with them what is tied to them."""
        path = self._words_path()
        flat = flatten_dict(self.params)
        others = {key: x for key, x in flat.items() if key[: len(path)] != path}
        new = {(*path, *key): jnp.asarray(x) for key, x in flatten_dict(dict(value)).items()}
        self.params = unflatten_dict({**others, **new})

    def resize_token_embeddings(  # type: ignore[override]
        self,
        new_num_tokens: int | None = None,
        layer: int = -1,
        params: Params | None = None,
    ) -> Params:
        """Give a cluster of the vocabulary another size; what both sizes have is kept.

        Its new words are at its end: later clusters, and the ids of their words, move. New rows
        are drawn as initial values.

        Args:
            new_num_tokens: Size of the whole vocabulary; ``None`` changes nothing.
            layer: The cluster that takes the difference.
            params: Of a model that keeps none.

        Returns:
            The new parameters; the model's own are replaced by them where it keeps them.

        Raises:
            XlmfamError: For a cluster that is not there, or that would have no words left.
        """
        config = self.config
        values = flatten_dict(self.params if params is None else params)
        if new_num_tokens is None or new_num_tokens == config.vocab_size:
            return unflatten_dict(values)
        changed = config.resized(new_num_tokens, layer)
        end, moved = config.cluster_ends[layer], changed.cluster_ends[layer]
        config.vocab_size, config.cutoffs = changed.vocab_size, changed.cutoffs
        for index, (path, row) in enumerate(self.paths().items()):
            old, shape = values[path], layout_shape(row, "flax")
            if old.shape == shape:
                continue
            axis = partition(row, "flax", {"vocab": "vocab"}).index("vocab")
            new = initialise(self.key, index, row).astype(old.dtype)
            # A table of all clusters grows inside; one of its own at its end.
            last, first = (end, moved) if config.div_val == 1 else (old.shape[axis], shape[axis])
            count = min(last, first)
            pieces = (
                lax.slice_in_dim(old, 0, count, axis=axis),
                lax.slice_in_dim(new, count, first, axis=axis),
                lax.slice_in_dim(old, last, old.shape[axis], axis=axis),
            )
            values[path] = jnp.concatenate(pieces, axis)
        # A module of its own: what was compiled for the other size is not to be met again.
        self.module = self.module.clone()
        resized = unflatten_dict(values)
        if params is None:
            self._params = resized
        return resized

    # ---- calls --------------------------------------------------------------------------

    def _apply(
        self,
        arrays: dict[str, Any],
        mems: Mems | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        train: bool,
        params: Params | None,
        dropout_rng: Array | None,
        **own: Any,
    ) -> Any:
        """Check a call and run the module, with a head's ``own`` arguments."""
        config = self.config
        arrays = as_arrays(**arrays)
        self._check(mems, **arrays)
        mask = arrays["attention_mask"]
        if mask is not None and is_concrete(mask) and np.all(np.asarray(mask)):
            arrays["attention_mask"] = None
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        output: Any = self.module.apply(
            {"params": self.params if params is None else params},
            **arrays,
            **own,
            mems=mems,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=not train,
            rngs=self._rngs(train, dropout_rng),
        )
        return_dict = config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _rngs(self, train: bool, dropout_rng: Array | None) -> dict[str, Array] | None:
        if not train or not any((self.config.dropout, self.config.dropatt)):
            return None
        if dropout_rng is None:
            raise XlmfamError("train=True needs dropout_rng=..., a key that draws what is dropped")
        return {"dropout": dropout_rng}

    # ---- checks -------------------------------------------------------------------------

    def _check(
        self,
        mems: Mems | None,
        input_ids: Any,
        inputs_embeds: Any,
        attention_mask: Any,
        head_mask: Any,
    ) -> None:
        """Raise ``XlmfamError`` for inputs that do not fit together."""
        config = self.config
        check_inputs(input_ids, inputs_embeds, config.d_model)
        self.check_ids("input_ids", input_ids)
        batch, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        layers, heads = config.n_layer, config.n_head
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        if isinstance(mems, ProjectedMemory):
            self._check_projected(mems, batch)
        elif mems is not None:
            self._check_mems(mems, batch)
        self._check_mask(attention_mask, mems, batch, length)

    def _check_mems(self, mems: Any, batch: int) -> None:
        layers, width = self.config.n_layer, self.config.d_model
        if len(mems) != layers:
            raise XlmfamError(f"mems must have one for each of {layers} layers, got {len(mems)}")
        for memory in mems:
            check_shape("a layer of mems", memory, (mems[0].shape[0], batch, width))

    def _check_projected(self, mems: ProjectedMemory, batch: int) -> None:
        if mems.rows != batch:
            raise XlmfamError(f"the memory in mems has {mems.rows} rows, the inputs have {batch}")
        needed = self.mem_len + (not self.config.same_length)
        if mems.slots < needed:
            raise XlmfamError(
                f"the memory in mems has room for {mems.slots} tokens, {needed} are needed: "
                "make another with init_cache after reset_memory_length"
            )

    def _check_mask(self, mask: Any, mems: Mems | None, batch: int, length: int) -> None:
        check_shape("attention_mask", mask, (batch, length))
        if mask is None or not is_concrete(mask):
            return
        tokens = np.asarray(mask) != 0
        padding = length - tokens.sum(-1, keepdims=True)
        if not np.array_equal(tokens, np.arange(length) >= padding):
            raise XlmfamError("attention_mask must have its padding on the left")
        if not tokens.all():
            self._check_whole(mems)

    def _check_whole(self, mems: Mems | None) -> None:
        """Raise ``XlmfamError`` for mems that rows of unequal length would begin in."""
        if mems is None or isinstance(mems, ProjectedMemory):
            return
        past = mems[0].shape[0]
        if past < self.mem_len:
            raise XlmfamError(
                f"rows of unequal length need mems of the whole memory, {self.mem_len}: "
                f"these have {past}"
            )


class TransfoXLModel(TransfoXLPreTrainedModel):
    """Transformer-XL without a head.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "TransfoXLModel"
    module_class = TransfoXLModule

    def __call__(
        self,
        input_ids: Any = None,
        mems: Mems | None = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Any = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids.
            mems: (M, B, D) for each layer, what the last call returned; zeros of the length of the
                memory by default, which are attended to. Or what ``init_cache`` returned.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, S, D) instead of ``input_ids``, as ``word_emb`` gives them.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            attention_mask: (B, S), 1 for tokens and 0 for padding on the left. The memory then
                stands right before each row's first token, as if there were no padding.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Returns:
            ``mems`` among the rest: what to give to the next call.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        arrays = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "head_mask": head_mask,
        }
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(arrays, mems, *options, train, params, dropout_rng)
