"""Transformer-XL in PyTorch (Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length
Context").

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, L layers,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.evaluation import Evaluation, evaluate_stream
from xlmfam.pt.attention import make_mask
from xlmfam.pt.base import PreTrainedModel, initialise
from xlmfam.pt.checks import IGNORED, is_cheap
from xlmfam.pt.generation import GenerationMixin
from xlmfam.pt.linear import Linear
from xlmfam.pt.losses import classification_loss
from xlmfam.pt.outputs import (
    TransfoXLLMHeadModelOutput,
    TransfoXLModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
)
from xlmfam.pt.transfo_xl_memory import ProjectedMemory
from xlmfam.pt.transfo_xl_modules import (
    AdaptiveEmbedding,
    AdaptiveSoftmax,
    Distances,
    TransfoXLLayer,
    sinusoids,
)

Mems = Sequence[Tensor] | ProjectedMemory


Rows = tuple[slice, slice]  # where they were, and where they are


def end_to_end(old: Tensor, new: Tensor) -> Rows:
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
    base_model_prefix = "transformer"
    config: TransfoXLConfig

    def get_input_embeddings(self) -> AdaptiveEmbedding:
        """Return the embedding of all clusters."""
        return self.base_model.word_emb

    def reset_memory_length(self, mem_len: int) -> None:
        """Keep ``mem_len`` states of each layer from the next call on.

        Raises:
            XlmfamError: For a length that is negative.
        """
        if mem_len < 0:
            raise XlmfamError(f"mem_len must be 0 or more, got {mem_len}")
        self.base_model.mem_len = mem_len

    def init_mems(self, bsz: int) -> list[Tensor] | None:
        """Return memories of zeros, (mem_len, B, D) for each layer; ``None`` where none is kept."""
        length = self.base_model.mem_len
        if not length:
            return None
        shape = (length, bsz, self.config.d_model)
        return [
            torch.zeros(shape, dtype=self.dtype, device=self.device)
            for _ in range(self.config.n_layer)
        ]

    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, layer: int = -1
    ) -> AdaptiveEmbedding:
        """Give a cluster of the vocabulary another size; what both sizes have is kept.

        Its new words are at its end: later clusters, and the ids of their words, move.

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
            if parameter.shape == old[name].shape or parameter.tied_to is not None:
                continue
            value = self.get_parameter(name)
            new = nn.Parameter(value.new_empty(parameter.shape), value.requires_grad)
            initialise(new, parameter)
            # A table of all clusters grows inside; one of its own at its end.
            for source, target in kept if config.div_val == 1 else [end_to_end(value, new)]:
                with torch.no_grad():
                    new[target] = value[source]
            self._put(name, new)
        self.tie_weights()
        for module in self.modules():
            if isinstance(module, AdaptiveEmbedding | AdaptiveSoftmax):
                module.resize(config)
        return self.get_input_embeddings()

    def init_cache(self, batch_size: int, max_length: int = 1) -> ProjectedMemory:
        """Return the memory of zeros as keys and values, to be given as ``mems``.

        Calls then project what is new and nothing else. Only for inference: the memory has no
        gradients.

        Args:
            batch_size: B.
            max_length: Most tokens of a single call.
        """
        return ProjectedMemory(self.base_model, batch_size, max_length)


class TransfoXLModel(TransfoXLPreTrainedModel):
    """Transformer-XL without a head.

    Args:
        config: The config.
    """

    table_class = "TransfoXLModel"

    def __init__(self, config: TransfoXLConfig):
        super().__init__(config)
        self.mem_len = config.mem_len
        self.word_emb = AdaptiveEmbedding(
            config.vocab_size, config.d_embed, config.d_model, config.cutoffs, config.div_val
        )
        if not config.untie_r:
            self.r_w_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
            self.r_r_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.layers = nn.ModuleList(TransfoXLLayer(config) for _ in range(config.n_layer))
        self.post_init()

    def set_input_embeddings(self, value: AdaptiveEmbedding) -> None:
        """Replace the embedding."""
        self.word_emb = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
    ) -> TransfoXLModelOutput | tuple[Any, ...]:
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

        Returns:
            ``mems`` among the rest: what to give to the next call.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        check_inputs(input_ids, inputs_embeds, config.d_model)
        self.check_ids("input_ids", input_ids)
        hidden = self.word_emb(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length, _ = hidden.shape
        memories = self._memories(mems, batch)
        past = mems.length if isinstance(mems, ProjectedMemory) else _length(memories)
        padding = self._padding(attention_mask, batch, length, past)
        distances = self._distances(past, length, padding, hidden)
        head_mask = self._head_mask(head_mask)

        hidden = F.dropout(hidden, config.dropout, self.training)
        states, attentions = [hidden], []
        for index, layer in enumerate(self.layers):
            hidden, weights = self._run_layer(
                layer,
                hidden,
                memories[index],
                distances,
                None if head_mask is None else head_mask[index],
                output_attentions,
            )
            states.append(hidden)
            attentions.append(weights)
        hidden = F.dropout(hidden, config.dropout, self.training)
        kept: Mems | None = self._keep(memories, states, distances.shift)
        if isinstance(mems, ProjectedMemory):
            mems.advance(length)
            kept = mems
        output = TransfoXLModelOutput(
            last_hidden_state=hidden,
            mems=kept,
            hidden_states=(*states[:-1], hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    # ---- memory -------------------------------------------------------------------------

    def _memories(self, mems: Mems | None, batch: int) -> list[Any]:
        """Return what each layer remembers: (B, M, D), projections, or ``None``."""
        if isinstance(mems, ProjectedMemory):
            if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
                raise XlmfamError(
                    "a memory of keys and values has no gradients: give the mems that a call "
                    "returned, or use torch.no_grad()"
                )
            mems.check(batch)
            return mems.layers
        layers, width = self.config.n_layer, self.config.d_model
        if mems is None:
            mems = self.init_mems(batch)
        if mems is None:
            return [None] * layers
        if len(mems) != layers:
            raise XlmfamError(f"mems must have one for each of {layers} layers, got {len(mems)}")
        for memory in mems:
            check_shape("a layer of mems", memory, (mems[0].shape[0], batch, width))
        return [memory.transpose(0, 1) for memory in mems]

    def _keep(
        self, memories: list[Any], states: list[Tensor], shift: Tensor | None
    ) -> list[Tensor] | None:
        """Return the last states of each layer's inputs, (M, B, D), without gradients."""
        if not self.mem_len or isinstance(memories[0], tuple):
            return None
        kept = []
        with torch.no_grad():
            for memory, hidden in zip(memories, states, strict=False):
                every = hidden if memory is None else torch.cat([memory, hidden], 1)
                if shift is not None:
                    every = every.gather(1, shift[..., None].expand(-1, -1, every.shape[-1]))
                kept.append(every[:, -self.mem_len :].detach().transpose(0, 1))
        return kept

    # ---- positions and masks ------------------------------------------------------------

    def _padding(
        self, attention_mask: Tensor | None, batch: int, length: int, past: int
    ) -> Tensor | None:
        """Return how many tokens of padding each row begins with, (B,), or ``None``."""
        check_shape("attention_mask", attention_mask, (batch, length))
        if attention_mask is None:
            return None
        mask = attention_mask.bool()
        padding = length - mask.sum(-1)
        if not is_cheap(mask):
            return padding
        if mask.all():
            return None
        if not torch.equal(mask, torch.arange(length) >= padding[:, None]):
            raise XlmfamError("attention_mask must have its padding on the left")
        if past < self.mem_len:
            raise XlmfamError(
                f"rows of unequal length need mems of the whole memory, {self.mem_len}: "
                f"these have {past}"
            )
        return padding

    def _distances(
        self, past: int, length: int, padding: Tensor | None, hidden: Tensor
    ) -> Distances:
        """Return what attention needs to know of ``length`` tokens behind ``past``."""
        config, device, keys = self.config, hidden.device, past + length
        steps = torch.arange(keys - 1, -2, -1, device=device).clamp(min=0)
        if config.clamp_len > 0:
            steps = steps.clamp(max=config.clamp_len)
        vectors = sinusoids(steps, config.d_model, hidden.dtype)
        vectors = F.dropout(vectors, config.dropout, self.training)
        places = torch.arange(keys, device=device)
        away = places[past:, None] - places
        allowed = away >= 0
        if config.same_length and self.mem_len:
            allowed &= away < self.mem_len
        allowed = allowed[None, None]
        shift = None
        if padding is not None:
            allowed = allowed & (places >= padding[:, None])[:, None, None, :]
            moved = (places - padding[:, None]).clamp(min=0)
            shift = torch.where(places < past + padding[:, None], moved, places)
        mask = make_mask(allowed, hidden.dtype)
        return Distances(vectors, mask, shift)

    def _head_mask(self, head_mask: Tensor | None) -> Tensor | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        layers, heads = self.config.n_layer, self.config.n_head
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        return None if head_mask is None else head_mask.expand(layers, heads)

    def _run_layer(self, layer: nn.Module, *arguments: Any):
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def _length(memories: list[Any]) -> int:
    return 0 if memories[0] is None else memories[0].shape[1]


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """Transformer-XL with the adaptive softmax, tied to the embedding by default.

    Args:
        config: The config.
    """

    table_class = "TransfoXLLMHeadModel"
    generation_arguments = ("mems", "head_mask")

    def __init__(self, config: TransfoXLConfig):
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.crit = AdaptiveSoftmax(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
        last_logits_only: bool = False,
    ) -> TransfoXLLMHeadModelOutput | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``TransfoXLModel.forward``, as for all arguments but
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

        Raises:
            XlmfamError: For labels that do not fit, and see ``TransfoXLModel.forward``.
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            attention_mask=attention_mask,
        )
        hidden, losses, loss, scores = output.last_hidden_state, None, None, None
        if labels is None:
            scores = self._score(hidden[:, -1:] if last_logits_only else hidden)
        else:
            targets = labels[:, 1:]
            losses = self.crit.losses(hidden[:, :-1].flatten(0, 1), targets.flatten())
            losses = losses.view_as(targets)
            loss = losses.sum() / (targets != IGNORED).sum()
        result = TransfoXLLMHeadModelOutput(
            losses=losses,
            prediction_scores=scores,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            loss=loss,
        )
        return result if return_dict else result.to_tuple()

    def _score(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (B, S, V) of states (B, S, D)."""
        return self.crit.log_prob(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)

    def _check_labels(self, labels, input_ids, inputs_embeds) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        if given.shape[1] < 2:
            raise XlmfamError("labels need two tokens in a row at least: the first has no score")
        self.check_ids("labels", labels.masked_fill(labels == IGNORED, 0))

    # ---- evaluation ---------------------------------------------------------------------

    def token_losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        mems: Mems | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Mems | None]:
        """Return the losses (B, S) of what follows each token, and the mems for the next call.

        Args:
            input_ids: (B, S).
            targets: (B, S), what each position is to predict; -100 does not count and costs 0.
            mems: See ``TransfoXLModel.forward``.
            attention_mask: (B, S).

        Raises:
            XlmfamError: For inputs that do not fit.
        """
        check_shape("targets", targets, tuple(input_ids.shape))
        self.check_ids("targets", targets.masked_fill(targets == IGNORED, 0))
        output = self.transformer(input_ids, mems, attention_mask=attention_mask, return_dict=True)
        losses = self.crit.losses(output.last_hidden_state.flatten(0, 1), targets.flatten())
        return losses.view_as(targets), output.mems

    @torch.no_grad()
    def evaluate_perplexity(
        self,
        stream: Any,
        batch_size: int = 1,
        segment_length: int = 128,
        memory_length: int | None = None,
        clamp_length: int | None = None,
    ) -> Evaluation:
        """Evaluate a long text with carried memories, as section 4 of the paper does.

        Args:
            stream: Token ids of the text, one after the other.
            batch_size: Number of rows that the text is cut into, to be read side by side.
            segment_length: Tokens of a call.
            memory_length: Tokens that are remembered; by default those of the model.
            clamp_length: Distances beyond it count as it; by default that of the model.

        Returns:
            Loss, perplexity and bits.

        Raises:
            XlmfamError: For a text that is too short, ids outside the vocabulary, and sizes that
                cannot be.
        """

        def step(ids, targets, mems):
            tensors = (
                torch.as_tensor(array, device=self.device).long() for array in (ids, targets)
            )
            losses, mems = self.token_losses(*tensors, mems)
            return float(losses.double().sum()), mems

        before = self.transformer.mem_len, self.config.clamp_len, self.training
        try:
            self.eval()
            self.reset_memory_length(before[0] if memory_length is None else memory_length)
            self.config.clamp_len = before[1] if clamp_length is None else clamp_length
            return evaluate_stream(step, stream, batch_size, segment_length)
        finally:
            self.transformer.mem_len, self.config.clamp_len, training = before
            self.train(training)

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether there is a memory to keep."""
        return self.transformer.mem_len > 0

    def next_logits(self, ids, length, mask, cache, extra: dict[str, Any]) -> Tensor:
        """Return the log-probabilities (R, V) of the token that follows; see ``GenerationMixin``."""
        del length
        extra = dict(extra)
        mems, only_the_best = extra.pop("mems", None), extra.pop("only_the_best", False)
        if cache is not None:
            if mems is not None and not cache.is_used:
                cache.load(mems)
            # What stood behind padding has been moved; from there on rows are alike.
            mask, mems = (None if cache.is_used else mask), cache
        output = self.transformer(ids, mems, attention_mask=mask, return_dict=True, **extra)
        score = self.crit.greedy_scores if only_the_best else self.crit.log_prob
        return score(output.last_hidden_state[:, -1])

    def prepare_greedy(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Let tail clusters be skipped that cannot have the best word."""
        return {**extra, "only_the_best": True}


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Transformer-XL that classifies texts by the state of their last token.

    Args:
        config: The config.
    """

    table_class = "TransfoXLForSequenceClassification"

    def __init__(self, config: TransfoXLConfig):
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.score = Linear(config.d_model, config.num_labels, bias=False)
        self.post_init(keep=tuple(f"transformer.{n}" for n in self.transformer.state_dict()))

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
    ) -> TransfoXLSequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``TransfoXLModel.forward``, as for all arguments but
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

        Raises:
            XlmfamError: For labels that do not fit, for several rows of ids without a padding
                token in the config, and see ``TransfoXLModel.forward``.
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            attention_mask=attention_mask,
        )
        hidden = output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.score(hidden[rows, self._ends(input_ids, hidden, attention_mask)])
        result = TransfoXLSequenceClassifierOutputWithPast(
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if return_dict else result.to_tuple()

    def _ends(
        self, input_ids: Tensor | None, hidden: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """Return the place of each row's last token, (B,)."""
        batch, length = hidden.shape[:2]
        last = torch.full((batch,), length - 1, device=hidden.device)
        pad = self.config.pad_token_id
        if input_ids is None or attention_mask is not None:
            return last
        if pad is None:
            if batch > 1:
                raise XlmfamError(
                    "texts of a batch end before their padding: set pad_token_id in the config, "
                    "or give attention_mask for padding on the left"
                )
            return last
        padded = input_ids == pad
        first = padded.int().argmax(-1)
        return torch.where(padded.any(-1) & (first > 0), first - 1, last)
