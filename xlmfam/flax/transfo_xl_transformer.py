"""What every Transformer-XL class has in Flax: the linen module without a head, and the base.

Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length Context".

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, L layers,
R slots of a projected memory, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import layout_shape, partition
from xlmfam.flax.base import Params, PreTrainedModel, as_arrays, initialise, is_concrete
from xlmfam.flax.outputs import TransfoXLModelOutput
from xlmfam.flax.transfo_xl_clusters import AdaptiveEmbedding
from xlmfam.flax.transfo_xl_memory import Blank, ProjectedMemory, Projections
from xlmfam.flax.transfo_xl_modules import (
    AttentionBiases,
    Distances,
    TransfoXLLayer,
    attention_biases,
    sinusoids,
)

Mems = Sequence[Array] | ProjectedMemory

# Places of a layer's arguments that are no arrays, for ``nn.remat``; ``self`` is 0.
LAYER_FLAGS = (6, 7)


class TransfoXLLayers(nn.Module):
    """All layers, one after the other.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build the layers."""
        layer_class = TransfoXLLayer
        if self.gradient_checkpointing:
            layer_class = nn.remat(TransfoXLLayer, static_argnums=LAYER_FLAGS)
        for index in range(self.config.n_layer):
            setattr(self, str(index), layer_class(self.config, self.dtype))

    @property
    def every(self) -> list[Any]:
        """The layers."""
        return [getattr(self, str(index)) for index in range(self.config.n_layer)]

    def __call__(
        self,
        hidden: Array,
        memories: list[Any],
        distances: Distances,
        biases: AttentionBiases | None,
        head_mask: Array | None,
        erased: Array | None,
        need_weights: bool,
        deterministic: bool,
    ) -> tuple[list[Array], list[Any], list[Projections]]:
        """Return hidden states (the input's first), weights and projections of every layer.

        Args:
            hidden: (B, S, D).
            memories: Of every layer.
            distances: Of this call.
            biases: Shared by the layers, where they have none of their own.
            head_mask: (L, H).
            erased: (B, S), where the input of each layer is made zero, or ``None``.
            need_weights: Return attention weights.
            deterministic: Drop nothing.
        """
        states, attentions, projections = [], [], []
        for index, layer in enumerate(self.every):
            if erased is not None:
                hidden = jnp.where(erased[..., None], 0.0, hidden)
            states.append(hidden)
            hidden, weights, projected = layer(
                hidden,
                memories[index],
                distances,
                biases,
                None if head_mask is None else head_mask[index],
                need_weights,
                deterministic,
            )
            attentions.append(weights)
            projections.append(projected)
        return [*states, hidden], attentions, projections

    def remember(self, memories: list[Array], vectors: Array) -> list[Projections]:
        """Return what every layer makes of its memory (B, M, D) and of sinusoids (N, D)."""
        pairs = zip(self.every, memories, strict=True)
        return [layer.remember(memory, vectors) for layer, memory in pairs]


class TransfoXLModule(nn.Module):
    """Transformer-XL without a head, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
        mem_len: Most states that are kept; by default what the config says.
        clamp_len: Distances beyond it count as it; by default what the config says.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False
    mem_len: int | None = None
    clamp_len: int | None = None

    def setup(self) -> None:
        """Build embedding and layers."""
        config = self.config
        self.word_emb = AdaptiveEmbedding(
            config.vocab_size,
            config.d_embed,
            config.d_model,
            tuple(config.cutoffs),
            config.div_val,
            dtype=self.dtype,
        )
        self.biases = None if config.untie_r else attention_biases(self, config)
        self.layers = TransfoXLLayers(config, self.dtype, self.gradient_checkpointing)
        self.drop = nn.Dropout(config.dropout)

    def __call__(
        self,
        input_ids: Array | None = None,
        mems: Mems | None = None,
        head_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        attention_mask: Array | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        deterministic: bool = True,
        projects: bool = False,
    ) -> TransfoXLModelOutput:
        """Run the module; ``TransfoXLModel.__call__`` checks what comes here.

        Args:
            input_ids: (B, S).
            mems: (M, B, D) for each layer, or projected.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            attention_mask: (B, S); ``None`` where nothing is padded.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            deterministic: Drop nothing.
            projects: Return mems that are projected.
        """
        if inputs_embeds is not None:
            hidden = jnp.asarray(inputs_embeds, self.dtype)
        else:
            assert input_ids is not None
            hidden = self.word_emb(input_ids)
        batch, length, _ = hidden.shape
        memories = self._memories(mems)
        padding = None
        if attention_mask is not None:
            padding = length - jnp.sum(jnp.asarray(attention_mask) != 0, -1)
        # A memory of zeros needs not be moved to where the text begins: padding made zero is more
        # of the same.
        erased = None
        if padding is not None and mems is None:
            erased = jnp.arange(length) < padding[:, None]
        distances = self._distances(mems, padding, hidden, deterministic, projects)
        states, attentions, projections = self.layers(
            self.drop(hidden, deterministic),
            memories,
            distances,
            self.biases,
            self._head_mask(head_mask),
            erased,
            output_attentions,
            deterministic,
        )
        kept: Mems | None
        if isinstance(mems, ProjectedMemory) or projects:
            kept = self._remember(mems, projections, batch, length, padding)
        else:
            kept = self._keep(memories, states, distances.shift)
        states[-1] = self.drop(states[-1], deterministic)
        return TransfoXLModelOutput(
            last_hidden_state=states[-1],
            mems=kept,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    # ---- memory -------------------------------------------------------------------------

    @property
    def remembers(self) -> int:
        """Most states of a layer that are kept."""
        return self.config.mem_len if self.mem_len is None else self.mem_len

    @property
    def slots(self) -> int:
        """R: tokens that one token may see, itself included."""
        return max(self.remembers + (not self.config.same_length), 1)

    @property
    def farthest(self) -> int | None:
        """The largest distance that counts as itself, where there is one."""
        clamp = self.config.clamp_len if self.clamp_len is None else self.clamp_len
        return clamp if clamp > 0 else None

    def _memories(self, mems: Mems | None) -> list[Any]:
        """Return what each layer remembers: (B, M, D), zeros, or projections."""
        layers = self.config.n_layer
        if mems is None:
            return [Blank(self.remembers)] * layers
        if isinstance(mems, ProjectedMemory):
            return [mems.layer(index, self.remembers) for index in range(layers)]
        return [jnp.asarray(memory, self.dtype).swapaxes(0, 1) for memory in mems]

    def _past(self, mems: Mems | None) -> int:
        """Return M; with projections, places that there is something in or not."""
        if mems is None or isinstance(mems, ProjectedMemory):
            return self.remembers
        return mems[0].shape[0]

    def _keep(
        self, memories: list[Any], states: list[Array], shift: Array | None
    ) -> list[Array] | None:
        """Return the last states of each layer's inputs, (M, B, D), without gradients."""
        if not self.remembers:
            return None
        kept = []
        for memory, hidden in zip(memories, states, strict=False):
            old = memory
            if isinstance(memory, Blank):
                old = jnp.zeros((hidden.shape[0], memory.length, hidden.shape[2]), hidden.dtype)
            every = jnp.concatenate([old, hidden], 1)
            if shift is not None:
                every = jnp.take_along_axis(every, shift[..., None], 1)
            kept.append(lax.stop_gradient(every[:, -self.remembers :].swapaxes(0, 1)))
        return kept

    def _remember(
        self,
        mems: Mems | None,
        projections: list[Projections],
        batch: int,
        length: int,
        padding: Array | None,
    ) -> ProjectedMemory:
        """Return what the next call is to be given."""
        known: Any = self._past(mems)
        if isinstance(mems, ProjectedMemory):
            if length == 1 and padding is None:
                return mems.advance(projections)
            known = jnp.minimum(mems.known, self.remembers)
        if padding is not None:
            known = known - padding
        known = jnp.broadcast_to(jnp.asarray(known + length), (batch,))
        return ProjectedMemory.of(projections, self.slots, known)

    def begin_memory(self, batch: int, most: int, mems: Sequence[Array] | None) -> ProjectedMemory:
        """Return a projected memory.

        Args:
            batch: B.
            most: Most tokens of a single call.
            mems: (M, B, D) for each layer; zeros by default.
        """
        width, length, slots = self.config.d_model, self.remembers, self.slots
        if mems is None:
            memories = [jnp.zeros((1, 1, width), self.dtype)] * self.config.n_layer
        else:
            mems = [memory[max(len(memory) - length, 0) :] for memory in mems]
            memories = self._memories(mems)
            length = memories[0].shape[1]
        vectors = self._vectors(slots + most - 1, True)
        projections = self.layers.remember(memories, vectors)
        if mems is None:
            # One zero serves for all.
            projections = [
                (_spread(key, batch, slots), _spread(value, batch, slots), projected)
                for key, value, projected in projections
            ]
        known = jnp.full(batch, length)
        return ProjectedMemory.of(projections, slots, known)

    # ---- positions and masks ------------------------------------------------------------

    def _distances(
        self,
        mems: Mems | None,
        padding: Array | None,
        hidden: Array,
        deterministic: bool,
        projects: bool,
    ) -> Distances:
        """Return what attention needs to know of the text."""
        length, past = hidden.shape[1], self._past(mems)
        if isinstance(mems, ProjectedMemory) and length == 1 and padding is None:
            return Distances(None, self._seen_by_step(mems), None)
        keys = past + length
        places = jnp.arange(keys)
        away = places[past:, None] - places
        allowed = away >= 0
        if self.config.same_length and self.remembers:
            allowed &= away < self.remembers
        allowed = allowed[None, None]
        first: Any = 0 if padding is None else padding
        if isinstance(mems, ProjectedMemory):
            first = first + past - jnp.minimum(mems.known, past)
        if padding is not None or isinstance(mems, ProjectedMemory):
            allowed = allowed & (places >= first[:, None])[:, None, None, :]
        shift = None
        if padding is not None and mems is not None:
            moved = jnp.maximum(places - padding[:, None], 0)
            shift = jnp.where(places < past + padding[:, None], moved, places)
        if isinstance(mems, ProjectedMemory) and self._has_all(mems, keys):
            return Distances(None, allowed, shift)
        count = max(keys, self.slots) if projects else keys
        return Distances(self._vectors(count, deterministic), allowed, shift)

    def _seen_by_step(self, mems: ProjectedMemory) -> Array:
        """Return (B, 1, 1, R): which slots one token may see, once it has taken its own."""
        ages = (mems.at - jnp.arange(mems.slots)) % mems.slots
        most = jnp.minimum(mems.known, self.remembers)
        if self.config.same_length and self.remembers:
            most = jnp.minimum(most, self.remembers - 1)
        return (ages <= most[:, None])[:, None, None, :]

    def _has_all(self, mems: ProjectedMemory, keys: int) -> bool:
        """Whether all distances of so many keys have been projected."""
        there = mems.vectors[0].shape[1]
        return there >= keys or (self.farthest is not None and there > self.farthest)

    def _vectors(self, count: int, deterministic: bool) -> Array:
        """Return sinusoids (N, D) of distances below ``count``, from far to near."""
        farthest = self.farthest
        steps = jnp.arange(count - 1, -1, -1)
        if farthest is not None:
            steps = jnp.minimum(steps, farthest)
            if deterministic or not self.config.dropout:
                steps = steps[max(count - farthest - 1, 0) :]
        vectors = sinusoids(steps, self.config.d_model, self.dtype)
        return self.drop(vectors, deterministic)

    def _head_mask(self, head_mask: Array | None) -> Array | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        if head_mask is None:
            return None
        shape = (self.config.n_layer, self.config.n_head)
        return jnp.broadcast_to(jnp.asarray(head_mask), shape)


def _spread(values: Array, batch: int, tokens: int) -> Array:
    """Return (B, H, M, K) of one token's (1, H, 1, K)."""
    return jnp.broadcast_to(values, (batch, values.shape[1], tokens, values.shape[3]))


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
