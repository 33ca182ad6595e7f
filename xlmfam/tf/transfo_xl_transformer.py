"""What every Transformer-XL class has as ``transformer`` in TensorFlow.

Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length Context".

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, L layers,
V vocabulary, R slots of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import Parameter, relayout
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.base import PreTrainedModel, as_array, initial
from xlmfam.tf.checks import check_ids, is_cheap
from xlmfam.tf.layers import Dropper, TableLayer, random_seed, recomputed
from xlmfam.tf.outputs import TransfoXLModelOutput
from xlmfam.tf.transfo_xl_memory import ProjectedMemory, Ring, pack
from xlmfam.tf.transfo_xl_modules import (
    AdaptiveEmbedding,
    AdaptiveSoftmax,
    Distances,
    TransfoXLLayer,
    sinusoids,
)

Mems = Sequence[Tensor] | ProjectedMemory
Rows = tuple[slice, slice]  # where they were, and where they are


class TransfoXLTransformer(TableLayer):
    """The embedding and the layers.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    r_w_bias: Any = None
    r_r_bias: Any = None

    def __init__(self, config: TransfoXLConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.mem_len = config.mem_len
        self.gradient_checkpointing = False
        self.seeds = keras.random.SeedGenerator()
        self.word_emb = AdaptiveEmbedding(
            config.vocab_size,
            config.d_embed,
            config.d_model,
            config.cutoffs,
            config.div_val,
            dtype=policy,
            name="word_emb",
        )
        self.layers = [
            TransfoXLLayer(config, dtype=policy, name=f"layer_{index}")
            for index in range(config.n_layer)
        ]

    def call(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        room: int | None = None,
    ) -> TransfoXLModelOutput:
        """Run the model; see ``TransfoXLModel.call``.

        Args:
            input_ids: (B, S).
            mems: (M, B, D) for each layer, or a ``ProjectedMemory``.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            attention_mask: (B, S).
            training: Drop values.
            room: Return as ``mems`` a ``ProjectedMemory`` for so many tokens in a call.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        check_inputs(input_ids, inputs_embeds, config.d_model)
        check_ids("input_ids", input_ids, config.vocab_size)
        dropper = Dropper(random_seed(self.seeds) if training else None)
        if inputs_embeds is None:
            hidden = self.word_emb(input_ids)
        else:
            hidden = tf.cast(inputs_embeds, self.compute_dtype)
        memories, past = self._memories(mems, hidden, training)
        padding = self._padding(attention_mask, hidden, past)
        if isinstance(mems, ProjectedMemory):
            distances = self._ring_distances(mems, sizes(hidden)[1], padding)
        else:
            distances = self._distances(past, hidden, padding, dropper)
        head_masks = self._head_masks(head_mask)
        biases = None
        if self.r_w_bias is not None:
            biases = tf.convert_to_tensor(self.r_w_bias), tf.convert_to_tensor(self.r_r_bias)

        hidden = dropper.drop(hidden, config.dropout)
        states: list[Tensor] = [hidden]
        attentions: list[Tensor] = []
        presents: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.layers):
            hidden, weights, present = self._run_layer(
                layer,
                hidden,
                memories[index],
                biases,
                distances,
                head_masks[index],
                dropper.inner().seed,
            )
            states.append(hidden)
            attentions.append(weights)
            presents.append(present)
        hidden = dropper.drop(hidden, config.dropout)
        if isinstance(mems, ProjectedMemory):
            kept: Any = mems.after(presents, sizes(hidden)[1], self.mem_len)
        elif room is not None:
            kept = self._packed(presents, padding, room)
        else:
            kept = self._keep(memories, states, distances.shift)
        return TransfoXLModelOutput(
            last_hidden_state=hidden,
            mems=kept,
            hidden_states=(*states[:-1], hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _run_layer(self, layer: TransfoXLLayer, hidden, memory, biases, *arguments: Any):
        distances, head_mask, seed = arguments
        if not (self.gradient_checkpointing and seed is not None):
            return layer(hidden, memory, distances, biases, head_mask, seed)
        # Gradients pass through tensors that are handed on, and no others.
        given = memory if tf.is_tensor(memory) else None

        def run(hidden, given, *biases):
            shared = None if biases[0] is None else biases
            before = memory if given is None else given
            return layer(hidden, before, distances, shared, head_mask, seed)

        return recomputed(run, hidden, given, *(biases or (None, None)))

    # ---- memory -------------------------------------------------------------------------

    def _memories(self, mems: Mems | None, hidden: Tensor, training: bool | None):
        """Return what each layer remembers, and of how many tokens.

        It is (B, M, D); keys and values; a number of zeros; or ``None``.
        """
        layers, (batch, length, width) = self.config.n_layer, hidden.shape
        if mems is None:
            zeros = self.mem_len or None
            return [zeros] * layers, self.mem_len
        if isinstance(mems, ProjectedMemory):
            if training:
                raise XlmfamError(
                    "a memory of keys and values has no gradients: in training give the mems that "
                    "a call returned"
                )
            mems.check(batch, length, self.mem_len)
            return [mems.layer(index) for index in range(layers)], mems.length
        if len(mems) != layers:
            raise XlmfamError(f"mems must have one for each of {layers} layers, got {len(mems)}")
        given = list(mems)
        for memory in given:
            check_shape("a layer of mems", memory, (given[0].shape[0], batch, width))
        kept = [tf.transpose(tf.cast(memory, hidden.dtype), [1, 0, 2]) for memory in given]
        return kept, sizes(kept[0])[1]

    def _keep(self, memories: list[Any], states: list[Tensor], shift: Tensor | None):
        """Return the last states of each layer's inputs, (M, B, D), without gradients."""
        if not self.mem_len:
            return None
        kept = []
        for memory, hidden in zip(memories, states, strict=False):
            every = self._with_memory(memory, hidden)
            if shift is not None:
                every = tf.gather(every, shift, batch_dims=1)
            last = tf.stop_gradient(every[:, -self.mem_len :])
            kept.append(tf.transpose(last, [1, 0, 2]))
        return kept

    def _with_memory(self, memory: Any, hidden: Tensor) -> Tensor:
        """Return (B, T, D) of memory and text."""
        if memory is None:
            return hidden
        if not tf.is_tensor(memory):
            return tf.pad(hidden, [[0, 0], [memory, 0], [0, 0]])
        return tf.concat([memory, hidden], 1)

    def _packed(self, presents: list[Any], padding: Tensor | None, room: int):
        """Return the keys and values of a call as a ``ProjectedMemory``."""
        capacity = self.mem_len
        length = sizes(presents[0][0])[2]
        if padding is not None:
            # Rows differ only where there is more than can be kept of each.
            length = length - tf.reduce_max(padding)
        return ProjectedMemory(
            tuple(pack(key, capacity, room) for key, _ in presents),
            tuple(pack(value, capacity, room) for _, value in presents),
            self._projected_distances(capacity + room),
            tf.constant(capacity % (capacity + room)),
            tf.minimum(length, capacity),
        )

    def init_cache(self, batch: int, room: int) -> ProjectedMemory:
        """Return the memory of zeros as keys and values, for ``room`` tokens in a call."""
        capacity = self.mem_len
        slots = capacity + room
        zeros = [layer.dec_attn.zeros(batch, slots) for layer in self.layers]
        return ProjectedMemory(
            tuple(key for key, _ in zeros),
            tuple(value for _, value in zeros),
            self._projected_distances(slots),
            tf.constant(capacity % slots),
            tf.constant(capacity),
        )

    # ---- positions and masks ------------------------------------------------------------

    def _padding(self, attention_mask: Tensor | None, hidden: Tensor, past: Any) -> Tensor | None:
        """Return how many tokens of padding each row begins with, (B,), or ``None``."""
        check_shape("attention_mask", attention_mask, tuple(hidden.shape[:2]))
        if attention_mask is None:
            return None
        length = sizes(hidden)[1]
        mask = tf.cast(attention_mask, tf.bool)
        padding = length - tf.reduce_sum(tf.cast(mask, tf.int32), -1)
        if not is_cheap(mask):
            return padding
        if bool(tf.reduce_all(mask)):
            return None
        if not bool(tf.reduce_all(mask == (tf.range(length) >= padding[:, None]))):
            raise XlmfamError("attention_mask must have its padding on the left")
        self.check_whole(int(past))
        return padding

    def check_whole(self, past: int) -> None:
        """Raise ``XlmfamError`` unless a memory is one that rows of unequal length can have."""
        if past < self.mem_len:
            raise XlmfamError(
                f"rows of unequal length need mems of the whole memory, {self.mem_len}: "
                f"these have {past}"
            )

    def _distances(
        self, past: Any, hidden: Tensor, padding: Tensor | None, dropper: Dropper
    ) -> Distances:
        """Return what attention needs to know of (B, S, D) behind ``past`` tokens."""
        length = sizes(hidden)[1]
        keys = past + length
        # Where values are dropped, each distance is dropped by itself.
        drops = dropper.seed is not None and self.config.dropout
        vectors = self._sinusoids(keys, together=not drops)
        vectors = dropper.drop(vectors, self.config.dropout)
        places = tf.range(keys)
        allowed = self._allowed(places, past, length, padding)
        return Distances(vectors, allowed, _shift(places, past, padding))

    def _ring_distances(
        self, memory: ProjectedMemory, length: Any, padding: Tensor | None
    ) -> Distances:
        """Return what attention needs to know of ``length`` tokens that a ring takes in."""
        slots, past = memory.slots, memory.length
        turn = (memory.slot + length) % slots  # also where the oldest is
        before = slots - past - length  # slots that nobody reads
        places = (tf.range(slots) - turn) % slots - before
        moved = _shift(places, past, padding)
        if moved is not None:
            moved = (moved + before + turn) % slots
        ring = Ring((memory.slot + tf.range(length)) % slots, turn, moved)
        allowed = self._allowed(places, past, length, padding)
        allowed = allowed & (places >= 0)
        return Distances(None, allowed, None, ring)

    def _sinusoids(self, keys: Any, together: bool) -> Tensor:
        """Return (U, D) for the distances up to T - 1, the largest first.

        Args:
            keys: T.
            together: One vector serves for all distances that count as one.
        """
        most = self.config.clamp_len
        count = keys
        if most > 0 and together and not tf.is_tensor(keys):
            count = min(keys, most + 1)
        steps = tf.range(count - 1, -1, -1)
        steps = tf.minimum(steps, most) if most > 0 else steps
        return sinusoids(steps, self.config.d_model, self.compute_dtype)

    def _projected_distances(self, slots: int) -> tuple[Tensor, ...]:
        vectors = self._sinusoids(slots, together=True)
        return tuple(layer.dec_attn.project_distances(vectors) for layer in self.layers)

    def _allowed(self, places: Tensor, past: Any, length: Any, padding: Tensor | None) -> Tensor:
        """Return what each query may see of the keys at some places, (B or 1, 1, S, T)."""
        away = past + tf.range(length)[:, None] - places
        allowed = away >= 0
        if self.config.same_length and self.mem_len:
            allowed &= away < self.mem_len
        allowed = allowed[None, None]
        if padding is not None:
            allowed = allowed & (places >= padding[:, None])[:, None, None, :]
        return allowed

    def _head_masks(self, head_mask: Tensor | None) -> list[Any]:
        """Return one (H,) mask per layer from an (L, H) or (H,) one."""
        layers, heads = self.config.n_layer, self.config.n_head
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        if head_mask is None:
            return [None] * layers
        return tf.unstack(tf.broadcast_to(head_mask, [layers, heads]))


def _shift(places: Tensor, past: Any, padding: Tensor | None) -> Tensor | None:
    """Return the places (B, T) that keys are taken from: the memory moves up to the text."""
    if padding is None:
        return None
    padding = padding[:, None]
    moved = tf.maximum(places - padding, 0)
    return tf.where(places < past + padding, moved, places)


def end_to_end(old: np.ndarray, new: np.ndarray) -> Rows:
    """Return the rows that both have."""
    rows = slice(min(len(old), len(new)))
    return rows, rows


def kept_rows(old: TransfoXLConfig, new: TransfoXLConfig, layer: int) -> list[Rows]:
    """Return the rows of a table of all clusters that stay: up to the end of one, and behind it."""
    last, moved = old.cluster_ends[layer], new.cluster_ends[layer]
    rows = slice(min(last, moved))
    return [(rows, rows), (slice(last, None), slice(moved, None))]


class TransfoXLPreTrainedModel(PreTrainedModel):
    """What the Transformer-XL classes share."""

    config_class = TransfoXLConfig
    config: TransfoXLConfig
    transformer: TransfoXLTransformer

    def __init__(self, config: TransfoXLConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.transformer = TransfoXLTransformer(config, dtype=self.dtype_policy, name="transformer")

    def get_input_embeddings(self) -> AdaptiveEmbedding:
        """Return the embedding of all clusters."""
        return self.transformer.word_emb

    def set_input_embeddings(self, value: AdaptiveEmbedding) -> None:
        """Use the tables and projections of another embedding."""
        every = self.expected_parameters().values()
        parameters = [p for p in every if p.part == "embeddings" and p.tied_to is None]
        if not isinstance(value, AdaptiveEmbedding):
            raise XlmfamError(f"give an AdaptiveEmbedding, got a {type(value).__name__}")
        if value.emb_layers[0].embeddings is None:
            value.create()
        own, self.transformer.word_emb = self.transformer.word_emb, value
        try:
            for parameter in parameters:
                variable = self._variable(parameter)
                check_shape(parameter.name, variable, parameter.shape)
        except (XlmfamError, AttributeError, IndexError):
            self.transformer.word_emb = own
            raise XlmfamError("the embedding must have the clusters of the config") from None
        self.forget_traces()

    def reset_memory_length(self, mem_len: int) -> None:
        """Keep ``mem_len`` states of each layer from the next call on.

        Raises:
            XlmfamError: For a length that is negative.
        """
        if mem_len < 0:
            raise XlmfamError(f"mem_len must be 0 or more, got {mem_len}")
        self.transformer.mem_len = mem_len
        self.forget_traces()

    def init_mems(self, bsz: int) -> list[Tensor] | None:
        """Return memories of zeros, (mem_len, B, D) for each layer; ``None`` where none is kept."""
        length = self.transformer.mem_len
        if not length:
            return None
        shape = (length, bsz, self.config.d_model)
        return [tf.zeros(shape, self.compute_dtype) for _ in range(self.config.n_layer)]

    def init_cache(self, batch_size: int, max_length: int = 1) -> ProjectedMemory:
        """Return the memory of zeros as keys and values, to be given as ``mems``.

        Calls then project what is new and nothing else. Only for inference: the memory has no
        gradients.

        Args:
            batch_size: B.
            max_length: Most tokens of a single call.
        """
        return self.transformer.init_cache(batch_size, max_length)

    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, layer: int = -1
    ) -> AdaptiveEmbedding:
        """Give a cluster of the vocabulary another size; what both sizes have is kept.

        Its new words are at its end: later clusters, and the ids of their words, move. Compile
        again before training on: the optimizer knows the old variables.

        Args:
            new_num_tokens: Size of the whole vocabulary; ``None`` changes nothing.
            layer: The cluster that takes the difference.

        Returns:
            The embedding.

        Raises:
            XlmfamError: For a cluster that is not there, or that would have no words left.
        """
        config = self.config
        if new_num_tokens is None or new_num_tokens == config.vocab_size:
            return self.get_input_embeddings()
        changed = config.resized(new_num_tokens, layer)
        kept = kept_rows(config, changed, layer)
        old = self.expected_parameters()
        config.vocab_size, config.cutoffs = changed.vocab_size, changed.cutoffs
        for name, parameter in self.expected_parameters().items():
            if parameter.shape != old[name].shape and parameter.tied_to is None:
                self._resize_cluster(parameter, kept if config.div_val == 1 else None)
        for part in self._flatten_layers(include_self=False):
            if isinstance(part, AdaptiveEmbedding | AdaptiveSoftmax):
                part.resize(config)
        return self.get_input_embeddings()

    def _resize_cluster(self, parameter: Parameter, kept: list[Rows] | None) -> None:
        """Replace a table: one of all clusters grows inside, one of its own at its end."""
        variable = self._variable(parameter)
        old = relayout(as_array(variable), parameter, "keras", "canonical")
        drawn = as_array(initial(parameter, old.dtype.name))
        new = relayout(drawn, parameter, "keras", "canonical").copy()
        for source, target in kept or [end_to_end(old, new)]:
            new[target] = old[source]
        self._remove(parameter)
        self._create(parameter, relayout(new, parameter, "canonical", "keras").copy())
        self._variable(parameter).trainable = variable.trainable

    def predict_step(self, data: Any) -> Any:
        """Return the output for one batch without its memory, which is not by samples."""
        x, *_ = self._without_labels(data)
        output = self(**{**x, "training": False, "return_dict": True})
        output = type(output)({name: output[name] for name in output if name != "mems"})
        return self._finished(output, None)

    def _finished(self, output: Any, return_dict: bool | None) -> Any:
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()
