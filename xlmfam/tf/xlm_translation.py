"""XLM's translation model in TensorFlow: an encoder, and a decoder that looks at what it read.

Conneau and Lample 2019, section 5.2; search as in the original release, each search one compiled
loop.

Shapes: B batch, S source, T target (S what is new of it, with a cache), H heads, K head width,
D width, L layers, V vocabulary, N beams, R = B * N rows, M = ``max_length``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import resolve_langs
from xlmfam.common.translation import Translation, TranslationMixin, check_translation
from xlmfam.tf.attention import Tensor
from xlmfam.tf.beams import LOWEST, put
from xlmfam.tf.cache import KeyValueCache, repeat
from xlmfam.tf.generation import XLA_PAYS, Graphs, bucket
from xlmfam.tf.layers import IGNORED, Embedding, label_losses, label_weights, mean_label_loss
from xlmfam.tf.outputs import BaseModelOutput, Seq2SeqLMOutput
from xlmfam.tf.training import main_output
from xlmfam.tf.xlm import XLMPreTrainedModel
from xlmfam.tf.xlm_modules import XLMPredLayer
from xlmfam.tf.xlm_transformer import Past, XLMTransformer


@keras.saving.register_keras_serializable("xlmfam")
class XLMEncoderDecoder(XLMPreTrainedModel, TranslationMixin):
    """XLM's encoder and decoder, each with embeddings of its own.

    Args:
        config: The config of both; ``is_encoder`` and ``causal`` follow from the part.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMEncoderDecoder"

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        policy = self.dtype_policy
        self.decoder.pred_layer = XLMPredLayer(config, dtype=policy, name="pred_layer")
        self.post_init()

    def _make_transformer(self) -> None:
        halves = (self.config.half(is_encoder=True), self.config.half(is_encoder=False))
        self.encoder = XLMTransformer(halves[0], dtype=self.dtype_policy, name="encoder")
        self.decoder: Any = XLMTransformer(halves[1], dtype=self.dtype_policy, name="decoder")

    def get_input_embeddings(self) -> Embedding:
        """Return the token embedding of the encoder."""
        return self.encoder.embeddings

    def get_output_embeddings(self) -> keras.layers.Layer | None:
        """Return the layer that has the projection to the vocabulary, the embedding while tied."""
        if self.config.asm:
            return None
        head = self.decoder.pred_layer
        return self.decoder.embeddings if head.is_tied else head.proj

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> keras.layers.Layer:
        """Give both vocabularies another size; see ``PreTrainedModel``."""
        result = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
        for half in (self.encoder, self.decoder):
            half.config.vocab_size = self.config.vocab_size
        return result

    def prune_heads(self, heads_to_prune: Any) -> None:  # noqa: ARG002
        """Refused: encoder and decoder have one config, and other heads that matter."""
        raise XlmfamError("prune_heads: a translation model cannot be pruned")

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache of the decoder for ``batch_size`` rows of ``max_length`` tokens."""
        return self.decoder.init_cache(batch_size, max_length)

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.decoder.pred_layer(hidden, self.decoder.embeddings)

    def call(
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
        training: bool | None = None,
    ) -> Any:
        """Read a source and predict the target.

        Args:
            input_ids: (B, S) ids of the source, or a dict or list of all arguments.
            attention_mask: (B, S), 1 for tokens and 0 for padding.
            langs: Languages of the source by name or id, see ``XLMModel.call``.
            lengths: (B,) instead of ``attention_mask``.
            decoder_input_ids: (B, T) ids of the target, which begins with ``eos_index``; made of
                ``labels`` where they are not given.
            decoder_attention_mask: (B, T).
            decoder_langs: Languages of the target.
            decoder_lengths: (B,).
            encoder_outputs: What the encoder gave before, or its (B, S, D) states.
            cache: For the target: a dict that is filled in place.
            head_mask: (L, H) or (H,) for the encoder.
            decoder_head_mask: (L, H) or (H,) for the decoder's attention to itself.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            decoder_inputs_embeds: (B, T, D) instead of ``decoder_input_ids``.
            labels: (B, T) ids to predict, label i at position i; -100 does not count. ``loss`` is
                then (n,), one per label that counts; XLA, which cannot have that shape, trains
                through ``fit``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            last_logits_only: Compute the logits of the last position only, (B, 1, V).
            training: Drop values.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        if labels is not None:
            decoder_input_ids = self._read(
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
                training=training,
            )
        elif tf.is_tensor(encoder_outputs):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs)
        if attention_mask is None and lengths is None and input_ids is not None:
            lengths = self._lengths(input_ids)
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
            src_enc=encoder_outputs.last_hidden_state,
            src_len=lengths if attention_mask is None else None,
            src_mask=attention_mask,
            training=training,
        )
        hidden = output.last_hidden_state
        logits = self.project(hidden[:, -1:] if last_logits_only else hidden)
        result = Seq2SeqLMOutput(
            loss=None if labels is None else label_losses(logits, labels),
            logits=logits,
            decoder_hidden_states=output.hidden_states,
            decoder_attentions=output.attentions,
            cross_attentions=output.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )
        return self._finished(result, return_dict)

    def _lengths(self, input_ids: Tensor) -> Tensor:
        return tf.reduce_sum(tf.cast(input_ids != self.config.pad_index, tf.int32), -1)

    def _read(self, labels, ids, embeds, last_logits_only=False) -> Tensor | None:
        """Check the labels; return the ids to read, made of them if need be."""
        if last_logits_only:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        given = ids if embeds is None else embeds
        check_shape("labels", labels, (None, None) if given is None else tuple(given.shape[:2]))
        padding = tf.cast(self.config.pad_index, labels.dtype)
        tokens = tf.where(labels == IGNORED, padding, labels)
        self.check_ids("labels", tokens)
        if given is not None:
            return ids
        return tf.pad(tokens[:, :-1], [[0, 0], [1, 0]], constant_values=self.config.eos_index)

    # ---- training -----------------------------------------------------------------------

    def loss_inputs(self, x: dict[str, Any], y: Any) -> dict[str, Any]:
        """Return the arguments; what the decoder reads is made of ``y`` where it is not given."""
        ids, embeds = x.get("decoder_input_ids"), x.get("decoder_inputs_embeds")
        if y is None or ids is not None or embeds is not None:
            return x
        return {**x, "decoder_input_ids": self._read(tf.convert_to_tensor(y), ids, embeds)}

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the labels; zero where none counts."""
        weights = label_weights(weights, is_shifted=False)
        return mean_label_loss(main_output(output), tf.convert_to_tensor(labels), weights)

    # ---- translating --------------------------------------------------------------------

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
        jit_compile: bool | None = None,
    ) -> Tensor:
        """Translate ids, greedily or by beam search, as the original release does.

        Sources are padded to a bucket, so that calls of similar lengths share a graph.

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
            jit_compile: Compile with XLA, by default for large models only.

        Returns:
            (B, length) ids that begin and end with ``eos_index``, padded with ``pad_index``.

        Raises:
            XlmfamError: For an unknown language, and options and shapes that cannot be.
        """
        plan = check_translation(
            self.config, target_lang, max_length, num_beams, length_penalty, early_stopping
        )
        ids = tf.convert_to_tensor(input_ids)
        check_inputs(ids, None, self.config.emb_dim)
        self.check_ids("input_ids", ids)
        mask, langs = self._source(ids, attention_mask, lengths, langs)
        if jit_compile is None:
            jit_compile = self.num_parameters() >= XLA_PAYS
        key = (plan, jit_compile)
        known = self._searches().by_options
        if key not in known:
            known[key] = Search(self, plan, jit_compile)
        more = [[0, 0], [0, bucket(ids.shape[1]) - ids.shape[1]]]
        if more[1][1] + ids.shape[1] > self.config.max_position_embeddings:
            more = [[0, 0], [0, 0]]
        padded = tf.pad(tf.cast(ids, tf.int32), more, constant_values=plan.pad_token_id)
        langs = None if langs is None else tf.pad(langs, more)
        found, length = known[key].run(padded, tf.pad(mask, more), langs)
        return tf.cast(found[:, : int(length)], ids.dtype)

    def _source(self, ids, attention_mask, lengths, langs) -> tuple[Tensor, Tensor | None]:
        """Return the (B, S) mask and languages of a source, checked."""
        batch, width = ids.shape
        if attention_mask is None:
            lengths = self._lengths(ids) if lengths is None else tf.convert_to_tensor(lengths)
            check_shape("lengths", lengths, (batch,))
            attention_mask = tf.range(width) < tf.cast(lengths, tf.int32)[:, None]
        attention_mask = tf.convert_to_tensor(attention_mask)
        check_shape("attention_mask", attention_mask, (batch, width))
        langs = self.encoder.languages(resolve_langs(self.config, langs), batch, width)
        if langs is not None:
            langs = tf.broadcast_to(tf.cast(langs, tf.int32), [batch, width])
        return tf.cast(attention_mask, tf.int32), langs

    def generate_ids(self, input_ids: Any, attention_mask: Any, langs: Any, **options: Any) -> Any:
        """Call ``generate`` with (B, S) NumPy arrays; return lists of ids."""
        return self.generate(input_ids, attention_mask, langs, **options).numpy().tolist()

    def _searches(self) -> Graphs:
        return self.__dict__.setdefault("_generation_graphs", Graphs())

    def forget_traces(self) -> None:
        """Drop the graphs that ``generate`` and Keras have made."""
        super().forget_traces()
        self.__dict__["_generation_graphs"] = Graphs()


class Source(NamedTuple):
    """What the decoder looks at, for R rows."""

    encoded: Tensor  # (R, S, D)
    mask: Tensor  # (R, S)


class Greedy(NamedTuple):
    """What greedy search carries from step to step."""

    ids: Tensor  # (B, M)
    length: Tensor
    finished: Tensor  # (B,)
    cache: KeyValueCache


class Beam(NamedTuple):
    """What beam search carries from step to step: what runs, and the best that is finished."""

    ids: Tensor  # (B, N, M)
    length: Tensor
    scores: Tensor  # (B, N)
    kept: Tensor  # (B, N) scores
    kept_ids: Tensor  # (B, N, M)
    kept_lengths: Tensor  # (B, N)
    done: Tensor  # (B,)
    cache: KeyValueCache


class Search:
    """The compiled loop for one set of options.

    Args:
        model: The model.
        plan: The options.
        jit_compile: Compile with XLA.
    """

    def __init__(self, model: XLMEncoderDecoder, plan: Translation, jit_compile: bool):
        self.model = model
        self.plan = plan
        # A function of its own: TensorFlow takes methods for one that is traced again and again.
        self.run = tf.function(
            lambda *args: self._run(*args), autograph=False, jit_compile=jit_compile
        )

    def _run(self, ids: Tensor, mask: Tensor, langs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the translations (B, M) of (B, S) ids, and their greatest length."""
        model, plan = self.model, self.plan
        encoded = model.encoder(
            input_ids=ids, attention_mask=mask, langs=langs, training=False
        ).last_hidden_state
        # The source is projected once for all steps and beams.
        cross = tuple(a.project_source(encoded) for a in model.decoder.encoder_attn)
        source = Source(repeat(encoded, plan.num_beams), repeat(mask, plan.num_beams))
        batch = ids.shape[0]
        cache = model.init_cache(batch * plan.num_beams, plan.max_length)
        cache = cache._replace(
            cross=tuple((repeat(k, plan.num_beams), repeat(v, plan.num_beams)) for k, v in cross)
        )
        return (self._greedy if plan.num_beams == 1 else self._beam)(source, cache, batch)

    def _logits(self, last: Tensor, source: Source, cache: KeyValueCache):
        """Return the scores (R, V) after the newest tokens (R,), and the cache with them."""
        output = self.model.decoder(
            input_ids=last[:, None],
            langs=self.plan.target_lang,
            cache=cache,
            src_enc=source.encoded,
            src_mask=source.mask,
            training=False,
        )
        logits = self.model.project(output.last_hidden_state[:, -1])
        return tf.cast(logits, tf.float32), output.past_key_values

    def _start(self, *shape: int) -> Tensor:
        """Return (..., M) ids with the first end token in them."""
        ids = tf.fill([*shape, self.plan.max_length], self.plan.pad_token_id)
        return put(ids, tf.fill([*shape], self.plan.eos_token_id), tf.constant(0))

    def _greedy(self, source: Source, cache: KeyValueCache, batch: int) -> tuple[Tensor, Tensor]:
        """Take the best token at every step; what is not finished in time gets an end token."""
        plan = self.plan

        def goes_on(*state):
            state = Greedy(*state)
            return (state.length < plan.max_length) & ~tf.reduce_all(state.finished)

        def body(*state):
            ids, length, finished, cache = state
            logits, cache = self._logits(ids[:, length - 1], source, cache)
            best = tf.argmax(logits, -1, output_type=tf.int32)
            best = tf.where(finished, plan.pad_token_id, best)
            finished = finished | (best == plan.eos_token_id)
            return Greedy(put(ids, best, length), length + 1, finished, cache)

        start = Greedy(self._start(batch), tf.constant(1), tf.zeros([batch], tf.bool), cache)
        ids, length, finished, _ = tf.while_loop(goes_on, body, tuple(start), parallel_iterations=1)
        ended = tf.where(finished, ids[:, length - 1], plan.eos_token_id)
        return put(ids, ended, length - 1), length

    def _beam(self, source: Source, cache: KeyValueCache, batch: int) -> tuple[Tensor, Tensor]:
        """Beam search by the rules of the original release."""
        plan, beams = self.plan, self.plan.num_beams
        ids = self._start(batch, beams)
        start = Beam(
            ids=ids,
            length=tf.constant(1),
            scores=tf.constant([[0.0] + [LOWEST] * (beams - 1)] * batch),
            kept=tf.fill([batch, beams], -float("inf")),
            kept_ids=ids,
            kept_lengths=tf.ones([batch, beams], tf.int32),
            done=tf.zeros([batch], tf.bool),
            cache=cache,
        )

        def goes_on(*state):
            state = Beam(*state)
            return (state.length < plan.max_length) & ~tf.reduce_all(state.done)

        def body(*state):
            return tuple(self._step(Beam(*state), source))

        end = Beam(*tf.while_loop(goes_on, body, tuple(start), parallel_iterations=1))
        return self._ended(end.kept_ids[:, 0], end.kept_lengths[:, 0])

    def _step(self, state: Beam, source: Source) -> Beam:
        """Extend the beams by a token.

        Of twice as many candidates as beams, end tokens finish a translation until enough others
        go on; at the last length all of them finish one.
        """
        plan, beams = self.plan, self.plan.num_beams
        batch, length = state.ids.shape[0], state.length
        last = tf.reshape(state.ids[:, :, length - 1], [-1])
        logits, cache = self._logits(last, source, state.cache)
        vocab = logits.shape[-1]
        total = tf.reshape(tf.nn.log_softmax(logits), [batch, beams, vocab])
        total = tf.reshape(total + state.scores[..., None], [batch, -1])
        best, index = tf.math.top_k(total, 2 * beams)
        beam, token = index // vocab, index % vocab
        is_end = token == plan.eos_token_id
        others_before = tf.cumsum(tf.cast(~is_end, tf.int32), -1)
        finishes = is_end & (others_before < beams) | (length == plan.max_length - 1)
        state = state._replace(done=state.done | self._overtaken(state, best[:, 0]))
        state = self._keep(state, best, beam, finishes & ~state.done[:, None])
        going = tf.argsort(tf.cast(is_end, tf.int32), stable=True)[:, :beams]
        best, beam, token = (tf.gather(v, going, batch_dims=1) for v in (best, beam, token))
        rows = tf.range(batch)[:, None] * beams + beam
        return state._replace(
            ids=put(tf.gather(state.ids, beam, batch_dims=1), token, length),
            length=length + 1,
            scores=best,
            cache=cache.reorder(tf.reshape(rows, [-1])),
        )

    def _overtaken(self, state: Beam, best: Tensor) -> Tensor:
        """Which texts' finished translations no running one can overtake; ``best`` is (B,)."""
        plan, worst = self.plan, state.kept[:, -1]
        full = worst > -float("inf")
        if plan.early_stopping:
            return full
        return full & (worst >= best / (plan.max_length - 1) ** plan.length_penalty)

    def _keep(self, state: Beam, best: Tensor, beam: Tensor, finishes: Tensor) -> Beam:
        """Keep the best of the finished translations and of (B, 2 N) candidates."""
        penalty = tf.cast(state.length, tf.float32) ** self.plan.length_penalty
        scores = tf.where(finishes, best / penalty, -float("inf"))
        kept, chosen = tf.math.top_k(tf.concat([state.kept, scores], 1), self.plan.num_beams)
        ids = tf.concat([state.kept_ids, tf.gather(state.ids, beam, batch_dims=1)], 1)
        lengths = tf.concat([state.kept_lengths, tf.fill(beam.shape, state.length)], 1)
        return state._replace(
            kept=kept,
            kept_ids=tf.gather(ids, chosen, batch_dims=1),
            kept_lengths=tf.gather(lengths, chosen, batch_dims=1),
        )

    def _ended(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, M) ids, cut behind their (B,) lengths, with an end token there."""
        places, lengths = tf.range(ids.shape[1]), lengths[:, None]
        ids = tf.where(places > lengths, self.plan.pad_token_id, ids)
        ids = tf.where(places == lengths, self.plan.eos_token_id, ids)
        return ids, tf.reduce_max(lengths) + 1


TFXLMEncoderDecoder = XLMEncoderDecoder
