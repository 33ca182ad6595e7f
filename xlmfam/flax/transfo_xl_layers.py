"""Transformer-XL without a head, as a linen module: embeddings, layers, memory.

Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length Context".

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, L layers,
R slots of a projected memory, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.configs.transfo_xl import TransfoXLConfig
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
