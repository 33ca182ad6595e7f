"""What every Transformer-XL class has in PyTorch.

Dai et al. 2019, "Attentive Language Models beyond a Fixed-Length Context".

Shapes: B batch, S sequence, M memory, T = M + S keys, H heads, K head width, D width, L layers,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.pt.attention import make_mask
from xlmfam.pt.base import PreTrainedModel, initialise
from xlmfam.pt.checks import is_cheap, is_exporting
from xlmfam.pt.outputs import (
    TransfoXLModelOutput,
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

    def get_input_embeddings(self) -> AdaptiveEmbedding:  # type: ignore[override]
        """Return the embedding of all clusters."""
        return self._transformer.word_emb

    @property
    def _transformer(self) -> TransfoXLModel:
        return cast(TransfoXLModel, self.base_model)

    def reset_memory_length(self, mem_len: int) -> None:
        """Keep ``mem_len`` states of each layer from the next call on.

        Raises:
            XlmfamError: For a length that is negative.
        """
        if mem_len < 0:
            raise XlmfamError(f"mem_len must be 0 or more, got {mem_len}")
        self._transformer.mem_len = mem_len

    def init_mems(self, bsz: int) -> list[Tensor] | None:
        """Return memories of zeros, (mem_len, B, D) for each layer; ``None`` where none is kept."""
        length = self._transformer.mem_len
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

    def set_input_embeddings(  # type: ignore[override]
        self, value: AdaptiveEmbedding
    ) -> None:
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
        count, most = keys, config.clamp_len
        # One serves for all distances that count as one, unless each is dropped by itself; how many
        # that are depends on the lengths, which an exported graph cannot look at.
        if most > 0 and not (self.training and config.dropout) and not is_exporting():
            count = min(keys, most + 1)
        steps = torch.arange(count - 1, -1, -1, device=device)
        steps = steps.clamp(max=most) if most > 0 else steps
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
