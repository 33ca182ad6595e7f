"""Truncation, special tokens and padding of inputs that are ids already."""

from __future__ import annotations

from typing import Any

from xlmfam.common.errors import XlmfamError

from .encoding import BatchEncoding
from .options import CallOptions
from .padding import PaddingStrategy, collect_rows, lists_and_type, pad_row, round_up
from .tensors import TensorType
from .truncation import TruncationStrategy, truncate_sequences


class PreparesIds:
    """The part of a tokenizer that works on ids."""

    model_input_names: list[str]
    padding_side: str
    truncation_side: str
    pad_token_id: Any
    pad_token_type_id: Any
    _options: Any
    _warn_if_long: Any
    num_special_tokens_to_add: Any
    build_inputs_with_special_tokens: Any
    create_token_type_ids_from_sequences: Any
    get_special_tokens_mask: Any

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str | bool | TruncationStrategy = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Take tokens off a sequence or a pair, from `truncation_side`.

        Args:
            ids: The first sequence.
            pair_ids: The second sequence.
            num_tokens_to_remove: How many tokens are too many.
            truncation_strategy: Which of the two gets shorter.
            stride: How many of the kept tokens the overflow repeats.

        Returns:
            Both sequences, and the overflow.
        """
        return truncate_sequences(
            ids, pair_ids, num_tokens_to_remove, truncation_strategy, stride, self.truncation_side
        )

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        prepend_batch_axis: bool = False,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Add special tokens to ids, truncate and pad; options as for a call.

        Args:
            ids: Ids of the first text.
            pair_ids: Ids of the second text.
            prepend_batch_axis: Put the tensors into a batch of one.
            **kwargs: Options of the call.
        """
        options, _ = self._options(kwargs)
        data = self._prepare(ids, pair_ids, options)
        if options.padding is not PaddingStrategy.DO_NOT_PAD or options.return_attention_mask:
            data = self._pad_columns(data, options, batched=False)
        kind = options.return_tensors
        return BatchEncoding(data, tensor_type=kind, prepend_batch_axis=prepend_batch_axis)

    def _prepare(
        self, ids: list[int], pair_ids: list[int] | None, options: CallOptions
    ) -> dict[str, Any]:
        """Truncate one row and add special tokens, with the columns that ``options`` ask for."""
        pair = pair_ids is not None
        extra = self.num_special_tokens_to_add(pair) if options.add_special_tokens else 0
        total = len(ids) + len(pair_ids or []) + extra
        data: dict[str, Any] = {}
        cut = options.truncation is not TruncationStrategy.DO_NOT_TRUNCATE
        if (
            options.return_overflowing_tokens
            and pair
            and options.truncation is TruncationStrategy.LONGEST_FIRST
        ):
            raise XlmfamError(
                "return_overflowing_tokens=True: a pair truncated 'longest_first' overflows in "
                "two places; truncation may be 'only_first' or 'only_second'"
            )
        overflow: list[int] = []
        if cut and options.max_length is not None:
            if options.max_length < extra:
                raise XlmfamError(
                    f"max_length={options.max_length} leaves no room: the special tokens alone "
                    f"are {extra}"
                )
            ids, pair_ids, overflow = self.truncate_sequences(
                ids, pair_ids, total - options.max_length, options.truncation, options.stride
            )
        if options.return_overflowing_tokens:
            data["overflowing_tokens"] = overflow
            data["num_truncated_tokens"] = total - (options.max_length or 0)
        if options.add_special_tokens:
            row = self.build_inputs_with_special_tokens(ids, pair_ids)
            types = self.create_token_type_ids_from_sequences(ids, pair_ids)
            special = self.get_special_tokens_mask(ids, pair_ids)
        else:
            row = ids + pair_ids if pair_ids is not None else ids
            types = [0] * len(ids) + [0] * len(pair_ids or [])
            special = [0] * len(row)
        data["input_ids"] = row
        if options.return_token_type_ids:
            data["token_type_ids"] = types
        if options.return_special_tokens_mask:
            data["special_tokens_mask"] = special
        self._warn_if_long(len(row), options)
        if options.return_length:
            data["length"] = len(row)
        return data

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        verbose: bool = True,
        padding_side: str | None = None,
    ) -> BatchEncoding:
        """Bring the rows of encoded inputs to one length.

        Args:
            encoded_inputs: A dictionary of one row or of a batch, or a list of dictionaries;
                lists or tensors.
            padding: As in a call.
            max_length: As in a call.
            pad_to_multiple_of: As in a call.
            return_attention_mask: As in a call.
            return_tensors: As in a call; the framework of the tensors that came where ``None``.
            verbose: Warn when nothing can be padded to.
            padding_side: As in a call.

        Returns:
            The padded columns.

        Raises:
            XlmfamError: the columns are not what a call returns.
        """
        main_name = self.model_input_names[0]
        columns, kind = lists_and_type(collect_rows(encoded_inputs, main_name))
        kind = kind if return_tensors is None else TensorType.of(return_tensors)
        options, _ = self._options(
            {
                "padding": padding,
                "max_length": max_length,
                "truncation": False,
                "pad_to_multiple_of": pad_to_multiple_of,
                "return_attention_mask": return_attention_mask,
                "verbose": verbose,
                "padding_side": padding_side,
            }
        )
        main = columns[main_name]
        if not main:
            if options.return_attention_mask:
                columns["attention_mask"] = []
            return BatchEncoding(columns, tensor_type=kind)
        batched = isinstance(main[0], (list, tuple))
        return BatchEncoding(self._pad_columns(columns, options, batched), tensor_type=kind)

    def _pad_columns(
        self, columns: dict[str, Any], options: CallOptions, batched: bool
    ) -> dict[str, Any]:
        main_name = self.model_input_names[0]
        if not batched:
            columns = {name: [value] for name, value in columns.items()}
        main = columns[main_name]
        for name, column in columns.items():
            if len(column) != len(main):
                raise XlmfamError(f"{name} has {len(column)} rows, {main_name} has {len(main)}")
        length = 0
        if options.padding is PaddingStrategy.LONGEST:
            length = max((len(row) for row in main), default=0)
        elif options.padding is PaddingStrategy.MAX_LENGTH:
            length = options.max_length or 0
        if options.padding is not PaddingStrategy.DO_NOT_PAD:
            length = round_up(length, options.pad_to_multiple_of)
        fill = {
            main_name: self.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": self.pad_token_type_id,
            "special_tokens_mask": 1,
        }
        padded: dict[str, Any] = {}
        for number in range(len(main)):
            row = {name: column[number] for name, column in columns.items()}
            row = pad_row(
                row, length, fill, main_name, options.padding_side, options.return_attention_mask
            )
            for name, value in row.items():
                padded.setdefault(name, []).append(value)
        return padded if batched else {name: value[0] for name, value in padded.items()}
