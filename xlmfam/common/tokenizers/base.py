"""The call layer that slow and fast tokenizers share."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger

from .encoding import BatchEncoding
from .files import TokenizerFiles
from .options import DEFAULTS, NO_LIMIT, CallOptions, check_text, make_options
from .padding import PaddingStrategy
from .prepare import PreparesIds
from .special_tokens import ADDITIONAL, ROLES, SpecialTokens
from .tensors import TensorType, as_lists
from .truncation import TruncationStrategy, check_side

logger = get_logger(__name__)

# Space that tokenisation puts before these marks and contractions goes when decoding.
_CLEAN_UP = (".", "?", "!", ",", " ' ", "n't", "'m", "'s", "'ve", "'re")


class PreTrainedTokenizerBase(SpecialTokens, PreparesIds, TokenizerFiles):
    """What every tokenizer does, whatever splits its text.

    Args:
        model_max_length: The longest input of the model.
        padding_side: Where padding goes, ``right`` or ``left``.
        truncation_side: Where truncation takes tokens from, ``right`` or ``left``.
        model_input_names: The columns that a call returns unless told otherwise.
        clean_up_tokenization_spaces: Whether decoding removes space before punctuation.
        **kwargs: Special tokens by role (``bos_token``, ...); anything else is kept and written
            back by `save_pretrained`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    model_input_names: list[str] = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012
    padding_side: str = "right"
    truncation_side: str = "right"
    slow_tokenizer_class: Any = None
    # Options of a call that only this kind of tokenizer has; they reach prepare_for_tokenization.
    call_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **kwargs: Any):
        self.init_inputs: tuple[Any, ...] = ()
        self.init_kwargs: dict[str, Any] = copy.deepcopy(kwargs)
        self.name_or_path: str = kwargs.pop("name_or_path", "")
        limit = kwargs.pop("model_max_length", kwargs.pop("max_len", None))
        self.model_max_length: int = NO_LIMIT if limit is None else int(limit)
        self.padding_side = check_side(
            "padding_side", kwargs.pop("padding_side", self.padding_side)
        )
        self.truncation_side = check_side(
            "truncation_side", kwargs.pop("truncation_side", self.truncation_side)
        )
        self.model_input_names = list(kwargs.pop("model_input_names", self.model_input_names))
        self.clean_up_tokenization_spaces: bool = kwargs.pop("clean_up_tokenization_spaces", True)
        self.verbose = bool(kwargs.pop("verbose", False))
        self._warned: set[str] = set()
        self._init_special_tokens(kwargs)

    # -- what a kind of tokenizer fills in ---------------------------------------------------

    @property
    def is_fast(self) -> bool:
        """Whether the ``tokenizers`` library does the work."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        """Return the whole vocabulary, added tokens included, as token to id."""
        raise NotImplementedError

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Return the tokens of ``text`` (and of ``pair``) as strings."""
        raise NotImplementedError

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text that tokens stand for."""
        raise NotImplementedError

    def _encode(
        self, inputs: list[Any], options: CallOptions, batched: bool, **kwargs: Any
    ) -> BatchEncoding:
        """Encode ``inputs``: texts (or lists of words), or pairs of them as tuples of two."""
        raise NotImplementedError

    def _decode(self, ids: list[int], skip_special_tokens: bool, **kwargs: Any) -> str:
        """Return the text of ``ids``, before spaces are cleaned up."""
        raise NotImplementedError

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Join one or two sequences of ids with the special tokens of the model."""
        return token_ids_0 if token_ids_1 is None else token_ids_0 + token_ids_1

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return the token types of what `build_inputs_with_special_tokens` returns."""
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or [])

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others.

        Args:
            token_ids_0: Ids of the first sequence.
            token_ids_1: Ids of the second sequence.
            already_has_special_tokens: The ids are a whole model input already.
        """
        if not already_has_special_tokens:
            return [0] * (len(token_ids_0) + len(token_ids_1 or []))
        if token_ids_1 is not None:
            raise XlmfamError(
                "token_ids_1 is given with already_has_special_tokens=True: pass the whole input, "
                "both sequences in one, as token_ids_0"
            )
        special = set(self.all_special_ids)
        return [int(token in special) for token in token_ids_0]

    # -- lengths ----------------------------------------------------------------------------

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens one text (or a pair) gets."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of a pair fit into the model."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    # -- encoding ---------------------------------------------------------------------------

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str | PaddingStrategy = False,
        truncation: bool | str | TruncationStrategy | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        padding_side: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Turn texts into model inputs.

        Args:
            text: One text or a list of them. With ``is_split_into_words`` a text is a list of
                words. A list of tuples of two is a batch of pairs.
            text_pair: The second text of each pair.
            text_target: Texts whose ids are returned as ``labels``.
            text_pair_target: The second text of each target pair.
            add_special_tokens: Add the special tokens of the model.
            padding: ``True`` or ``"longest"`` pads to the longest row, ``"max_length"`` to
                ``max_length``, ``False`` not at all.
            truncation: ``True`` or ``"longest_first"`` takes tokens off the longer of a pair,
                ``"only_first"`` and ``"only_second"`` off that one, ``False`` keeps everything.
            max_length: The length for both; the model's own where it is ``None``.
            stride: How many tokens an overflowing row repeats of the one before.
            padding_side: ``left`` or ``right``; by default the tokenizer's own.
            is_split_into_words: The texts are lists of words.
            pad_to_multiple_of: Round padded lengths up.
            return_tensors: ``np``, ``pt``, ``tf`` or ``jax``; lists where it is ``None``.
            return_token_type_ids: Return ``token_type_ids``; as `model_input_names` where ``None``.
            return_attention_mask: Return ``attention_mask``; the same.
            return_overflowing_tokens: Return what truncation removed: a fast tokenizer gives
                further rows and ``overflow_to_sample_mapping``, a slow one
                ``overflowing_tokens`` and ``num_truncated_tokens``.
            return_special_tokens_mask: Return ``special_tokens_mask``, 1 for special tokens.
            return_offsets_mapping: Return the characters of each token (fast tokenizers).
            return_length: Return ``length``, the length of each row.
            verbose: Warn when a row is longer than the model takes.
            **kwargs: Options of one kind of tokenizer, such as a language.

        Returns:
            A `BatchEncoding`.

        Raises:
            XlmfamError: an argument is something else than described here.
        """
        arguments = {**locals(), **kwargs}
        for name in ("self", "kwargs", "text", "text_pair", "text_target", "text_pair_target"):
            arguments.pop(name)
        if text is None and text_target is None:
            raise XlmfamError("text is None and text_target is None: one of them is needed")
        result = None
        if text is not None:
            result = self._call_one("text", text, text_pair, arguments)
        if text_target is not None:
            target = self._call_one("text_target", text_target, text_pair_target, arguments)
            if result is None:
                return target
            result["labels"] = target["input_ids"]
        assert result is not None
        return result

    def _call_one(
        self, name: str, text: Any, pair: Any, arguments: dict[str, Any]
    ) -> BatchEncoding:
        words = arguments["is_split_into_words"]
        check_text(name, text, words)
        if pair is not None:
            check_text(f"{name}_pair", pair, words)
        is_list = isinstance(text, (list, tuple))
        batched = is_list and (not words or (bool(text) and isinstance(text[0], (list, tuple))))
        if not batched:
            return self.encode_plus(text, pair, **arguments)
        if pair is None:
            return self.batch_encode_plus(list(text), **arguments)
        if isinstance(pair, str) or len(pair) != len(text):
            came = "one text" if isinstance(pair, str) else f"{len(pair)} texts"
            raise XlmfamError(f"{name}_pair is {came}; {name} is a batch of {len(text)}")
        return self.batch_encode_plus(list(zip(text, pair, strict=True)), **arguments)

    def _options(self, arguments: dict[str, Any]) -> tuple[CallOptions, dict[str, Any]]:
        """Check the arguments of a call; those that are no options of it are returned too."""
        values: dict[str, Any] = {**DEFAULTS, **arguments}
        if values.pop("pad_to_max_length", False) and not values["padding"]:
            values["padding"] = "longest" if values["max_length"] is None else "max_length"
        rest = {name: values.pop(name) for name in list(values) if name not in DEFAULTS}
        for name in [name for name in rest if name not in self.call_options]:
            del rest[name]
            self._warn_once(f"{type(self).__name__} has no option {name!r}: it is ignored")
        side = values.pop("padding_side")
        values["padding_side"] = check_side("padding_side", side or self.padding_side)
        options = make_options(
            **values,
            model_max_length=self.model_max_length,
            model_input_names=self.model_input_names,
            has_pad_token=self._roles.get("pad_token") is not None,
            warn_once=self._warn_once if values["verbose"] else lambda _: None,
        )
        return options, rest

    def encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        """Encode one text or pair; options as for a call.

        Returns:
            A `BatchEncoding` without a batch axis, unless ``return_tensors`` is given.
        """
        options, rest = self._options(kwargs)
        one = text if text_pair is None else (text, text_pair)
        return self._encode([one], options, batched=False, **rest)

    def batch_encode_plus(
        self, batch_text_or_text_pairs: list[Any], **kwargs: Any
    ) -> BatchEncoding:
        """Encode a batch: texts, or tuples of two for pairs; options as for a call."""
        if not isinstance(batch_text_or_text_pairs, (list, tuple)):
            raise XlmfamError(
                f"batch_text_or_text_pairs is a {type(batch_text_or_text_pairs).__name__}; "
                "it may be a list"
            )
        options, rest = self._options(kwargs)
        return self._encode(list(batch_text_or_text_pairs), options, batched=True, **rest)

    def encode(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        """Return only the ids of one text or pair; options as for a call."""
        return self.encode_plus(text, text_pair, **kwargs)["input_ids"]

    def _warn_if_long(self, length: int, options: CallOptions) -> None:
        if options.verbose and options.max_length is None and length > self.model_max_length:
            self._warn_once(
                f"an input has {length} tokens and the model takes {self.model_max_length}: "
                "running it will fail or give nonsense; truncation=True bounds it"
            )

    # -- decoding ---------------------------------------------------------------------------

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the text of one row of ids.

        Args:
            token_ids: One id, a list or a tensor of one axis.
            skip_special_tokens: Leave special tokens out.
            clean_up_tokenization_spaces: Remove space before punctuation; as the tokenizer is
                configured where ``None``.
            **kwargs: Options of one kind of tokenizer.
        """
        ids = as_lists(token_ids)
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and isinstance(ids[0], (list, tuple)):
            raise XlmfamError("token_ids has rows: batch_decode takes a batch, decode one row")
        text = self._decode(ids, skip_special_tokens, **kwargs)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the text of each row; arguments as for `decode`."""
        return [
            self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
            for row in as_lists(sequences)
        ]

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Remove the space that stands before punctuation and English contractions."""
        for mark in _CLEAN_UP:
            before = mark if mark.startswith(" ") else f" {mark}"
            out_string = out_string.replace(before, mark.strip())
        return out_string

    # -- the object itself ------------------------------------------------------------------

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"is_fast={self.is_fast}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, "
            f"special_tokens={self.special_tokens_map}, "
            f"clean_up_tokenization_spaces={self.clean_up_tokenization_spaces})"
        )

    def _settings_to_save(self) -> dict[str, Any]:
        """Return what `save_pretrained` writes into ``tokenizer_config.json``."""
        settings = {
            name: value
            for name, value in self.init_kwargs.items()
            if name not in ("name_or_path", "verbose", *ROLES, ADDITIONAL)
        }
        settings.update(self.special_tokens_map_extended)
        # What has no token and would get one by default stays without.
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if name in (*ROLES, ADDITIONAL) and name not in settings and parameter.default:
                settings[name] = [] if name == ADDITIONAL else None
        settings["model_max_length"] = self.model_max_length
        settings["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        for name in ("padding_side", "truncation_side"):
            if name in settings or getattr(self, name) != getattr(type(self), name):
                settings[name] = getattr(self, name)
        if "model_input_names" in settings or (
            self.model_input_names != type(self).model_input_names
        ):
            settings["model_input_names"] = self.model_input_names
        return settings
