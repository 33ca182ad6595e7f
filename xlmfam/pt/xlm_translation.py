"""XLM's translation model in PyTorch: an encoder, and a decoder that looks at what it read.

Conneau and Lample 2019, section 5.2; search as in the original release.

Shapes: B batch, S source, T target (S what is new of it, with a cache), H heads, K head width,
D width, L layers, V vocabulary, N beams, R = B * N rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.translation import Translation, TranslationMixin, check_translation
from xlmfam.pt.beams import LOWEST, take_beams
from xlmfam.pt.checks import IGNORED
from xlmfam.pt.losses import mean_loss
from xlmfam.pt.outputs import BaseModelOutput, Seq2SeqLMOutput
from xlmfam.pt.xlm_modules import XLMPredLayer
from xlmfam.pt.xlm_transformer import Past, XLMModel, XLMPreTrainedModel


class XLMEncoderDecoder(XLMPreTrainedModel, TranslationMixin):
    """XLM's encoder and decoder, each with embeddings of its own.

    Args:
        config: The config of both; ``is_encoder`` and ``causal`` follow from the part.
    """

    table_class = "XLMEncoderDecoder"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.encoder = XLMModel(config.half(is_encoder=True))
        self.decoder = XLMModel(config.half(is_encoder=False))
        self.decoder.pred_layer = XLMPredLayer(config)
        halves = {"encoder": self.encoder, "decoder": self.decoder}
        made = {f"{name}.{n}" for name, half in halves.items() for n in half.expected_parameters()}
        self.post_init(keep=tuple(made))

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding of the encoder."""
        return self.encoder.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding of the encoder."""
        self.encoder.embeddings = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the projection to the vocabulary, or ``None`` of an adaptive softmax."""
        return None if self.config.asm else self.decoder.pred_layer.proj  # type: ignore

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Give both vocabularies another size; see ``PreTrainedModel``."""
        result = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
        for half in (self.encoder, self.decoder):
            half.config.vocab_size = self.config.vocab_size
            half.embeddings.num_embeddings = self.config.vocab_size
        return result

    def prune_heads(self, heads_to_prune: Any) -> None:  # noqa: ARG002
        """Refused: encoder and decoder have one config, and other heads that matter."""
        raise XlmfamError("prune_heads: a translation model cannot be pruned")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Any = None,
        lengths: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_langs: Any = None,
        decoder_lengths: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Past | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        last_logits_only: bool = False,
    ) -> Any:
        """Read a source and predict the target.

        Args:
            input_ids: (B, S) ids of the source.
            attention_mask: (B, S), 1 for tokens and 0 for padding.
            langs: Languages of the source by name or id, see ``XLMModel.forward``.
            lengths: (B,) instead of ``attention_mask``.
            decoder_input_ids: (B, T) ids of the target, which begins with ``eos_index``; made of
                ``labels`` where they are not given.
            decoder_attention_mask: (B, T).
            decoder_langs: Languages of the target.
            decoder_lengths: (B,).
            encoder_outputs: What the encoder gave before, or its (B, S, D) states.
            cache: For the target: a dict that is filled in place, or a ``KeyValueCache``.
            head_mask: (L, H) or (H,) for the encoder.
            decoder_head_mask: (L, H) or (H,) for the decoder's attention to itself.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            decoder_inputs_embeds: (B, T, D) instead of ``decoder_input_ids``.
            labels: (B, T) ids to predict, label i at position i; -100 does not count.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            last_logits_only: Compute the logits of the last position only, (B, 1, V).

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        if labels is not None:
            labels, decoder_input_ids = self._targets(
                labels, decoder_input_ids, decoder_inputs_embeds, last_logits_only
            )
        check_inputs(decoder_input_ids, decoder_inputs_embeds, self.config.emb_dim)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                langs=langs,
                lengths=lengths,
                head_mask=head_mask,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
        elif isinstance(encoder_outputs, Tensor):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs)
        if attention_mask is None and lengths is None and input_ids is not None:
            lengths = (input_ids != self.config.pad_index).sum(-1)
        output = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            langs=decoder_langs,
            lengths=decoder_lengths,
            cache=cache,
            head_mask=decoder_head_mask,
            inputs_embeds=decoder_inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            src_enc=encoder_outputs.last_hidden_state,
            src_len=lengths if attention_mask is None else None,
            src_mask=attention_mask,
        )
        hidden = output.last_hidden_state
        logits = self.project(hidden[:, -1:] if last_logits_only else hidden)
        result = Seq2SeqLMOutput(
            loss=None if labels is None else mean_loss(logits, labels),
            logits=logits,
            decoder_hidden_states=output.hidden_states,
            decoder_attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return result if return_dict else result.to_tuple()

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.decoder.pred_layer(hidden)  # type: ignore[operator]

    def _targets(self, labels, ids, embeds, last_logits_only) -> tuple[Tensor, Tensor | None]:
        """Check the labels; return them and the ids to read, made of them if need be."""
        if last_logits_only:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        given = ids if embeds is None else embeds
        check_shape("labels", labels, (None, None) if given is None else tuple(given.shape[:2]))
        tokens = labels.masked_fill(labels == IGNORED, self.config.pad_index)
        self.check_ids("labels", tokens)
        if given is None:
            ids = F.pad(tokens[:, :-1], (1, 0), value=self.config.eos_index)
        return labels, ids

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        langs: Any = None,
        lengths: Tensor | None = None,
        *,
        target_lang: str | int | None = None,
        max_length: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
    ) -> Tensor:
        """Translate ids, greedily or by beam search, as the original release does.

        Args:
            input_ids: (B, S) ids of the source.
            attention_mask: (B, S).
            langs: Languages of the source by name or id.
            lengths: (B,) instead of ``attention_mask``.
            target_lang: Language to translate into, by name or id.
            max_length: Most tokens of a translation, the end tokens at both ends counted; 200 by
                default, or as many as there are positions.
            num_beams: Width of the beam; 1 is greedy search, as in the original's scripts.
            length_penalty: Beam scores are divided by ``length ** length_penalty``, the first end
                token counted and the last one not.
            early_stopping: Stop a text once ``num_beams`` translations are finished, rather than
                when none that is running can become better than the worst of them.

        Returns:
            (B, length) ids that begin and end with ``eos_index``, padded with ``pad_index``.

        Raises:
            XlmfamError: For an unknown language, and options and shapes that cannot be.
        """
        plan = check_translation(
            self.config, target_lang, max_length, num_beams, length_penalty, early_stopping
        )
        encoded = self.encoder(
            input_ids, attention_mask, langs, lengths=lengths, return_dict=True
        ).last_hidden_state
        if attention_mask is None:
            if lengths is None:
                lengths = (input_ids != self.config.pad_index).sum(-1)
            attention_mask = torch.arange(input_ids.shape[1], device=lengths.device)
            attention_mask = (attention_mask < lengths[:, None]).long()
        step = _Step(self, plan, encoded, attention_mask)
        return _greedy(step, plan) if num_beams == 1 else _beam(step, plan)

    def generate_ids(self, input_ids: Any, attention_mask: Any, langs: Any, **options: Any) -> Any:
        """Call ``generate`` with (B, S) NumPy arrays; return lists of ids."""
        ids, mask = (torch.as_tensor(v, device=self.device) for v in (input_ids, attention_mask))
        return self.generate(ids, mask, langs, **options).tolist()


class _Step:
    """Runs the decoder one token further, for R rows.

    Args:
        model: The model.
        plan: The options.
        encoded: (B, S, D).
        mask: (B, S).
    """

    def __init__(self, model: XLMEncoderDecoder, plan: Translation, encoded: Tensor, mask: Tensor):
        self.model, self.plan = model, plan
        self.source = encoded.repeat_interleave(plan.num_beams, 0)
        self.mask = mask.repeat_interleave(plan.num_beams, 0)
        self.batch = encoded.shape[0]
        self.cache = model.decoder.init_cache(self.source.shape[0], plan.max_length)

    def logits(self, last: Tensor) -> Tensor:
        """Return the scores (R, V) after the newest tokens (R,)."""
        output = self.model(
            decoder_input_ids=last[:, None],
            decoder_langs=self.plan.target_lang,
            encoder_outputs=self.source,
            attention_mask=self.mask,
            cache=self.cache,
            return_dict=True,
        )
        return output.logits[:, -1].float()

    def start(self) -> Tensor:
        """Return (R, max_length) ids with the first end token in them."""
        rows, plan = self.source.shape[0], self.plan
        ids = self.mask.new_full((rows, plan.max_length), plan.pad_token_id)
        ids[:, 0] = plan.eos_token_id
        return ids


def _greedy(step: _Step, plan: Translation) -> Tensor:
    """Take the best token at every step; what is not finished in time gets an end token."""
    ids = step.start()
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    length = 1
    while length < plan.max_length and not finished.all():
        best = step.logits(ids[:, length - 1]).argmax(-1)
        best = torch.where(finished, plan.pad_token_id, best)
        ids[:, length] = best
        finished |= best == plan.eos_token_id
        length += 1
    ids[:, length - 1] = torch.where(finished, ids[:, length - 1], plan.eos_token_id)
    return ids[:, :length]


def _beam(step: _Step, plan: Translation) -> Tensor:
    """Beam search by the rules of the original release.

    Of twice as many candidates as beams, end tokens finish a translation until enough others go
    on; at the last length all of them finish one.
    """
    batch, beams, device = step.batch, plan.num_beams, step.source.device
    ids = step.start().view(batch, beams, -1)
    scores = torch.full((batch, beams), LOWEST, device=device)
    scores[:, 0] = 0.0
    kept = torch.full((batch, beams), float("-inf"), device=device)
    kept_ids, kept_lengths = ids.clone(), torch.ones_like(ids[:, :, 0])
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    first_row = torch.arange(batch, device=device)[:, None] * beams
    for length in range(1, plan.max_length):
        chances = step.logits(ids[:, :, length - 1].flatten()).log_softmax(-1)
        vocab = chances.shape[-1]
        total = (chances.view(batch, beams, vocab) + scores[..., None]).flatten(1)
        best, index = total.topk(2 * beams, -1)
        beam, token = index // vocab, index % vocab
        is_end = token == plan.eos_token_id
        full = kept[:, -1] > float("-inf")
        attainable = best[:, 0] / (plan.max_length - 1) ** plan.length_penalty
        done |= full & (plan.early_stopping | (kept[:, -1] >= attainable))
        if length == plan.max_length - 1:
            finishes = torch.ones_like(is_end)
        else:
            finishes = is_end & ((~is_end).cumsum(-1) < beams)
        new = torch.where(
            finishes & ~done[:, None], best / length**plan.length_penalty, float("-inf")
        )
        kept, chosen = torch.cat([kept, new], 1).topk(beams, -1)
        kept_ids = take_beams(torch.cat([kept_ids, take_beams(ids, beam)], 1), chosen)
        lengths = torch.cat([kept_lengths, torch.full_like(beam, length)], 1)
        kept_lengths = lengths.gather(1, chosen)
        if done.all():
            break
        going = is_end.int().sort(stable=True, dim=-1).indices[:, :beams]
        scores, beam, token = (values.gather(1, going) for values in (best, beam, token))
        ids = take_beams(ids, beam)
        ids[:, :, length] = token
        step.cache.reorder((first_row + beam).flatten())
    return _ended(kept_ids[:, 0], kept_lengths[:, 0], plan)


def _ended(ids: Tensor, lengths: Tensor, plan: Translation) -> Tensor:
    """Return (B, length) ids, cut behind their (B,) lengths, with an end token there."""
    places = torch.arange(ids.shape[1], device=ids.device)
    ids = ids.masked_fill(places > lengths[:, None], plan.pad_token_id)
    ids = ids.masked_fill(places == lengths[:, None], plan.eos_token_id)
    return ids[:, : int(lengths.max()) + 1]
