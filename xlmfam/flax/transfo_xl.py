"""Transformer-XL with its heads in Flax: the language model, the classifier of texts.

Shapes: B batch, S sequence, M memory, H heads, D width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.checks import check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.evaluation import Evaluation, evaluate_stream
from xlmfam.flax.base import Params, as_arrays, is_concrete
from xlmfam.flax.checks import check_classes
from xlmfam.flax.generation import GenerationMixin, Reader, check_extra
from xlmfam.flax.losses import IGNORED, classification_loss
from xlmfam.flax.outputs import (
    CausalLMOutputWithCrossAttentions,
    TransfoXLLMHeadModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
)
from xlmfam.flax.transfo_xl_clusters import AdaptiveSoftmax, Words, normal
from xlmfam.flax.transfo_xl_layers import Mems, TransfoXLModule
from xlmfam.flax.transfo_xl_memory import ProjectedMemory
from xlmfam.flax.transfo_xl_transformer import TransfoXLModel, TransfoXLPreTrainedModel

__all__ = [
    "TransfoXLForSequenceClassification",
    "TransfoXLLMHeadModel",
    "TransfoXLModel",
    "TransfoXLPreTrainedModel",
]


class TransfoXLLMHeadModule(nn.Module):
    """Transformer-XL with the adaptive softmax, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
        mem_len: See ``TransfoXLModule``.
        clamp_len: See ``TransfoXLModule``.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False
    mem_len: int | None = None
    clamp_len: int | None = None

    def setup(self) -> None:
        """Build the transformer and the softmax."""
        self.transformer = TransfoXLModule(
            self.config, self.dtype, self.gradient_checkpointing, self.mem_len, self.clamp_len
        )
        self.crit = AdaptiveSoftmax(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Any = None,
        logits_at: Any = None,
        **kwargs: Any,
    ) -> TransfoXLLMHeadModelOutput:
        """Run the module; arguments as in ``TransfoXLLMHeadModel.__call__``, checked there.

        Args:
            input_ids: (B, S).
            labels: (B, S).
            logits_at: The one position whose scores are needed; ``None`` for all.
            **kwargs: As in ``TransfoXLModule``.
        """
        output = self.transformer(input_ids, **kwargs)
        hidden, losses, loss, scores = output.last_hidden_state, None, None, None
        if labels is None:
            scores = self._score(hidden, logits_at)
        else:
            targets, mask = labels[:, 1:], kwargs.get("attention_mask")
            if mask is not None:  # what padding predicts means nothing
                targets = jnp.where(jnp.asarray(mask)[:, :-1] == 0, IGNORED, targets)
            losses = self._losses(hidden[:, :-1], targets)
            loss = losses.sum() / (targets != IGNORED).sum()
        return TransfoXLLMHeadModelOutput(
            losses=losses,
            prediction_scores=scores,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            loss=loss,
        )

    def words(self) -> Words:
        """Return tables and projections of the embedding."""
        return self.transformer.word_emb.words()

    def _score(
        self,
        hidden: Array,
        logits_at: Any,
        words: Words | None = None,
        only_the_best: bool = False,
    ) -> Array:
        """Return log-probabilities (B, S or 1, V) of states (B, S, D)."""
        if logits_at is not None:
            hidden = lax.dynamic_slice_in_dim(hidden, logits_at, 1, 1)
        score = self.crit.greedy_scores if only_the_best else self.crit.log_prob
        scores = score(hidden.reshape(-1, hidden.shape[-1]), words or self.words())
        return scores.reshape(*hidden.shape[:2], -1)

    def _losses(self, hidden: Array, targets: Any) -> Array:
        """Return losses (B, S) of targets (B, S) under states (B, S, D)."""
        states = hidden.reshape(-1, hidden.shape[-1])
        losses = self.crit.losses(states, targets.reshape(-1), self.words())
        return losses.reshape(targets.shape)

    def token_losses(
        self, input_ids: Array, targets: Any, mems: Mems | None, attention_mask: Array | None = None
    ) -> tuple[Array, Mems | None]:
        """Return losses and mems; see ``TransfoXLLMHeadModel.token_losses``."""
        output = self.transformer(input_ids, mems, attention_mask=attention_mask)
        return self._losses(output.last_hidden_state, targets), output.mems

    def begin_memory(self, *arguments: Any) -> ProjectedMemory:
        """Return a projected memory; see ``TransfoXLModule.begin_memory``."""
        return self.transformer.begin_memory(*arguments)

    def next_scores(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        logits_at: Any = None,
        memories: Sequence[Array] | None = None,
        head_mask: Array | None = None,
        tables: tuple[Array, ...] | None = None,
        past_key_values: ProjectedMemory | None = None,
        use_cache: bool = False,
        only_the_best: bool = False,
    ) -> CausalLMOutputWithCrossAttentions:
        """Return the scores (B, 1, V) of a token to come, and the memory for the next step.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S).
            logits_at: The position before it.
            memories: (B, M, D) for each layer.
            head_mask: (L, H) or (H,).
            tables: The embedding's, cut by clusters.
            past_key_values: What the last step returned.
            use_cache: Return projections.
            only_the_best: Nobody looks at scores but the best.
        """
        mems: Any = past_key_values
        if mems is None and memories is not None:
            mems = [memory.swapaxes(0, 1) for memory in memories]
        output = self.transformer(
            input_ids, mems, head_mask, attention_mask=attention_mask, projects=use_cache
        )
        words = self.words() if tables is None else self.words()._replace(tables=tables)
        keeps = use_cache or past_key_values is not None
        return CausalLMOutputWithCrossAttentions(
            logits=self._score(output.last_hidden_state, logits_at, words, only_the_best),
            past_key_values=output.mems if keeps else None,
        )


def read_transfo_xl(
    config: TransfoXLConfig,  # noqa: ARG001
    ids: Array,
    mask: Array,
    last: Any,
    cached: bool,
    extra: dict[str, Any],
    only_the_best: bool = False,
) -> dict[str, Any]:
    """Return the module's arguments for the scores of the next token; see ``read_text``."""
    given = {"method": "next_scores", "only_the_best": only_the_best, **extra}
    if not cached:
        return {
            **given,
            "input_ids": ids,
            "attention_mask": mask[:, : ids.shape[1]],
            "logits_at": last,
        }
    # What stood behind padding has been moved, and what was given is in the cache.
    given.pop("memories", None)
    return {**given, "input_ids": lax.dynamic_slice_in_dim(ids, last, 1, 1)}


read_for_the_best = partial(read_transfo_xl, only_the_best=True)


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def evaluate_segment(
    module: Any, params: Params, ids: Array, targets: Array, mems: Mems | None
) -> tuple[Array, Mems | None]:
    """Return losses (B, S) of a piece of text, and the memory for the next."""
    return module.apply({"params": params}, ids, targets, mems, method="token_losses")


@partial(jax.jit, static_argnums=(0, 2, 3))
def begin_evaluation(module: Any, params: Params, batch: int, most: int) -> ProjectedMemory:
    """Return a projected memory of zeros."""
    return module.apply({"params": params}, batch, most, None, method="begin_memory")


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """Transformer-XL with the adaptive softmax, tied to the embedding by default.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "TransfoXLLMHeadModel"
    module_class = TransfoXLLMHeadModule
    generation_arguments = ("mems", "head_mask")
    read: Reader = staticmethod(read_transfo_xl)
    read_best: Reader = staticmethod(read_for_the_best)

    def __call__(
        self,
        input_ids: Any = None,
        mems: Mems | None = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Any = None,
        last_logits_only: bool = False,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``TransfoXLModel.__call__``, as for all arguments but
                ``labels`` and ``last_logits_only``.
            mems: (M, B, D) for each layer.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B, S) ids; position i is held against the scores of position i - 1, and -100
                does not count. There are ``losses`` (B, S - 1) and their mean ``loss`` then, and
                no scores.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            attention_mask: (B, S).
            last_logits_only: Score the last position only, (B, 1, V).
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``TransfoXLModel.__call__``.
        """
        arrays = as_arrays(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            head_mask=head_mask,
        )
        return self._apply(
            arrays,
            mems,
            output_attentions,
            output_hidden_states,
            return_dict,
            train,
            params,
            dropout_rng,
            labels=self._check_labels(labels, arrays["input_ids"], arrays["inputs_embeds"]),
            logits_at=-1 if last_logits_only else None,
        )

    def _check_labels(self, labels: Any, input_ids: Any, inputs_embeds: Any) -> Any:
        """Return (B, S) labels, checked."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        if labels is None or given is None:  # that neither was given is seen later
            return None
        labels = as_arrays(labels=labels)["labels"]
        check_shape("labels", labels, tuple(given.shape[:2]))
        if given.shape[1] < 2:
            raise XlmfamError("labels need two tokens in a row at least: the first has no score")
        self.check_ids("labels", labels * (labels != IGNORED))
        return labels

    # ---- evaluation ---------------------------------------------------------------------

    def token_losses(
        self,
        input_ids: Any,
        targets: Any,
        mems: Mems | None = None,
        attention_mask: Any = None,
        params: Params | None = None,
    ) -> tuple[Array, Mems | None]:
        """Return the losses (B, S) of what follows each token, and the mems for the next call.

        Args:
            input_ids: (B, S).
            targets: (B, S), what each position is to predict; -100 does not count and costs 0.
            mems: See ``TransfoXLModel.__call__``.
            attention_mask: (B, S).
            params: To use instead of the model's own.

        Raises:
            XlmfamError: For inputs that do not fit.
        """
        arrays = as_arrays(input_ids=input_ids, targets=targets, attention_mask=attention_mask)
        input_ids, targets, mask = arrays.values()
        self._check(mems, input_ids, None, mask, None)
        check_shape("targets", targets, tuple(input_ids.shape))
        self.check_ids("targets", targets * (targets != IGNORED))
        values = {"params": self.params if params is None else params}
        given = (input_ids, targets, mems, mask)
        losses_and_mems: Any = self.module.apply(values, *given, method="token_losses")
        return losses_and_mems

    def evaluate_perplexity(
        self,
        stream: Any,
        batch_size: int = 1,
        segment_length: int = 128,
        memory_length: int | None = None,
        clamp_length: int | None = None,
        params: Params | None = None,
    ) -> Evaluation:
        """Evaluate a long text with carried memories, as section 4 of the paper does.

        Keys and values of the memory are kept, so each token is projected once.

        Args:
            stream: Token ids of the text, one after the other.
            batch_size: Number of rows that the text is cut into, to be read side by side.
            segment_length: Tokens of a call.
            memory_length: Tokens that are remembered; by default those of the model.
            clamp_length: Distances beyond it count as it; by default that of the model.
            params: To use instead of the model's own.

        Returns:
            Loss, perplexity and bits.

        Raises:
            XlmfamError: For a text that is too short, ids outside the vocabulary, and sizes that
                cannot be.
        """
        memory_length = self.mem_len if memory_length is None else memory_length
        if memory_length < 0:
            raise XlmfamError(f"mem_len must be 0 or more, got {memory_length}")
        module = self.module.clone(mem_len=memory_length)
        if clamp_length is not None:
            module = module.clone(clamp_len=clamp_length)
        values = self.params if params is None else params

        def step(ids: np.ndarray, targets: np.ndarray, mems: Any) -> tuple[float, Any]:
            self.check_ids("input_ids", ids)
            self.check_ids("targets", targets)
            if mems is None and memory_length:
                mems = begin_evaluation(module, values, len(ids), ids.shape[1])
            losses, mems = evaluate_segment(module, values, ids, targets, mems)
            return float(np.asarray(losses).sum(dtype=np.float64)), mems

        return evaluate_stream(step, stream, batch_size, segment_length)

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:  # type: ignore[override]
        """Whether there is a memory to keep."""
        return self.mem_len > 0

    def prepare_generation(
        self, plan: Any, prompt: Any, mask: Any, extra: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the arguments of ``read_transfo_xl``, with memories batch-first."""
        batch, mems = prompt.shape[0], extra.get("mems")
        arrays: dict[str, Any] = {}
        if extra.get("head_mask") is not None:
            arrays["head_mask"] = jnp.asarray(extra["head_mask"])
        check_extra(self.config, arrays, batch)
        if mems is None:
            return arrays
        if isinstance(mems, ProjectedMemory):
            raise XlmfamError("mems must be (length, batch, width) for each layer, not projected")
        mems = [jnp.asarray(memory) for memory in mems]
        self._check_mems(mems, batch)
        if is_concrete(mask) and not np.all(np.asarray(mask)):
            self._check_whole(mems)
        if plan.use_cache and self.generates_with_cache:
            mems = [memory[max(len(memory) - self.mem_len, 0) :] for memory in mems]
        return {**arrays, "memories": tuple(memory.swapaxes(0, 1) for memory in mems)}

    def place(self, params: Params, extra: dict[str, Any]) -> tuple[Params, dict[str, Any]]:
        """Cut a table of all clusters once: every step would copy the rows that it needs."""
        config = self.config
        if config.div_val > 1 or not config.cutoffs or not config.tie_word_embeddings:
            return params, extra
        words: Any = self.module.apply({"params": params}, method="words")
        (table,) = words.tables
        return params, {**extra, "tables": tuple(table[slice(*b)] for b in config.cluster_bounds)}


class TransfoXLForSequenceClassificationModule(nn.Module):
    """Transformer-XL that classifies texts, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
        mem_len: See ``TransfoXLModule``.
        clamp_len: See ``TransfoXLModule``.
    """

    config: TransfoXLConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False
    mem_len: int | None = None
    clamp_len: int | None = None

    def setup(self) -> None:
        """Build the transformer and the classifier."""
        config, dtype = self.config, self.dtype
        self.transformer = TransfoXLModule(
            config, dtype, self.gradient_checkpointing, self.mem_len, self.clamp_len
        )
        init = normal(config.init_std)
        self.score = nn.Dense(config.num_labels, use_bias=False, dtype=dtype, kernel_init=init)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Any = None,
        attention_mask: Array | None = None,
        is_padded_left: bool = False,
        **kwargs: Any,
    ) -> TransfoXLSequenceClassifierOutputWithPast:
        """Run the module; arguments as in the class to call, checked there.

        Args:
            input_ids: (B, S).
            labels: (B,) or (B, num_labels).
            attention_mask: (B, S).
            is_padded_left: The texts end with the last position.
            **kwargs: As in ``TransfoXLModule``.
        """
        output = self.transformer(input_ids, attention_mask=attention_mask, **kwargs)
        hidden = output.last_hidden_state
        ends = self._ends(None if is_padded_left else input_ids, hidden)
        logits = self.score(hidden[jnp.arange(len(hidden)), ends])
        return TransfoXLSequenceClassifierOutputWithPast(
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def begin_memory(self, *arguments: Any) -> ProjectedMemory:
        """Return a projected memory; see ``TransfoXLModule.begin_memory``."""
        return self.transformer.begin_memory(*arguments)

    def _ends(self, input_ids: Array | None, hidden: Array) -> Any:
        """Return the place of each row's last token, (B,) or one for all."""
        last, pad = hidden.shape[1] - 1, self.config.pad_token_id
        if input_ids is None or pad is None:
            return last
        padded = jnp.asarray(input_ids) == pad
        first = jnp.argmax(padded, -1)
        return jnp.where(padded.any(-1) & (first > 0), first - 1, last)


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Transformer-XL that classifies texts by the state of their last token.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "TransfoXLForSequenceClassification"
    module_class = TransfoXLForSequenceClassificationModule

    def __call__(
        self,
        input_ids: Any = None,
        mems: Mems | None = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
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
            input_ids: (B, S) token ids, see ``TransfoXLModel.__call__``, as for all arguments but
                ``labels``. The text ends before the first ``pad_token_id``.
            mems: (M, B, D) for each layer.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D); the text is all of it.
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats, (B,)
                or (B, num_labels), for regression. ``config.problem_type`` says which; by default
                the dtype and the number of classes do.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            attention_mask: (B, S).
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, for several rows of ids without a padding
                token in the config, and see ``TransfoXLModel.__call__``.
        """
        arrays = as_arrays(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            head_mask=head_mask,
        )
        given = arrays["input_ids"] if inputs_embeds is None else arrays["inputs_embeds"]
        batch = 1 if given is None else given.shape[0]  # that neither was given is seen later
        if attention_mask is None and inputs_embeds is None:
            self._check_ends(batch)
        return self._apply(
            arrays,
            mems,
            output_attentions,
            output_hidden_states,
            return_dict,
            train,
            params,
            dropout_rng,
            labels=check_classes(self.config, labels, batch, self.config.num_labels),
            is_padded_left=attention_mask is not None,
        )

    def _check_ends(self, batch: int) -> None:
        if batch > 1 and self.config.pad_token_id is None:
            raise XlmfamError(
                "texts of a batch end before their padding: set pad_token_id in the config, "
                "or give attention_mask for padding on the left"
            )
