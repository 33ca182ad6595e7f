"""How the rows of a batch become equally long."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from xlmfam.common.errors import XlmfamError

from .tensors import TensorType, as_lists, tensor_type_of


class PaddingStrategy(enum.StrEnum):
    """What ``padding`` may be; ``True`` means ``longest``, ``False`` the last."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"

    @classmethod
    def of(cls, value: bool | str | PaddingStrategy | None) -> PaddingStrategy:
        """Return the member that an argument ``padding=value`` means.

        Raises:
            XlmfamError: ``value`` is nothing of the kind.
        """
        if value is None or value is False:
            return cls.DO_NOT_PAD
        if value is True:
            return cls.LONGEST
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(member.value) for member in cls)
            raise XlmfamError(
                f"padding is {value!r}; it may be True, False or one of {allowed}"
            ) from None


def round_up(length: int, multiple: int | None) -> int:
    """Return the smallest multiple of ``multiple`` that is no smaller than ``length``."""
    return length if not multiple else -(-length // multiple) * multiple


def collect_rows(encoded_inputs: Any, main_name: str) -> dict[str, Any]:
    """Return the argument of ``pad`` as one dictionary of columns.

    Args:
        encoded_inputs: A dictionary (of one row or many), or a list of dictionaries.
        main_name: The column that must be there, ``input_ids`` for most.

    Raises:
        XlmfamError: it is something else, or lacks that column.
    """
    if isinstance(encoded_inputs, (list, tuple)) and all(
        isinstance(row, Mapping) for row in encoded_inputs
    ):
        if not encoded_inputs:
            return {main_name: []}
        names = list(encoded_inputs[0])
        for number, row in enumerate(encoded_inputs):
            if set(row) != set(names):
                raise XlmfamError(
                    f"encoded_inputs: row {number} has {sorted(row)}, row 0 has {sorted(names)}"
                )
        encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in names}
    if not isinstance(encoded_inputs, Mapping):
        raise XlmfamError(
            f"encoded_inputs is a {type(encoded_inputs).__name__}; it may be a dictionary of "
            "lists or a list of dictionaries, as a tokenizer call returns them"
        )
    if main_name not in encoded_inputs:
        raise XlmfamError(
            f"encoded_inputs needs {main_name!r}; it has {list(encoded_inputs.keys())}"
        )
    return dict(encoded_inputs)


def lists_and_type(columns: dict[str, Any]) -> tuple[dict[str, Any], TensorType | None]:
    """Return ``columns`` as lists, with the framework that their tensors came from."""
    kind = None
    for value in columns.values():
        while isinstance(value, (list, tuple)) and value:
            value = value[0]
        kind = kind or tensor_type_of(value)
    return {name: as_lists(value) for name, value in columns.items()}, kind


def pad_row(
    row: dict[str, list[Any]],
    length: int,
    fill: Mapping[str, Any],
    main_name: str,
    side: str,
    with_mask: bool,
) -> dict[str, list[Any]]:
    """Return ``row`` with each column that ``fill`` knows brought to ``length``.

    Args:
        row: The columns of one row; they are not changed.
        length: The length wanted; longer rows stay as they are.
        fill: What stands in the padding, by column.
        main_name: The column whose length counts.
        side: The end that padding goes to.
        with_mask: Add ``attention_mask`` where it is missing.
    """
    row = dict(row)
    if with_mask and "attention_mask" not in row:
        row["attention_mask"] = [1] * len(row[main_name])
    missing = length - len(row[main_name])
    if missing <= 0:
        return row
    for name, value in fill.items():
        if name in row:
            padding: Sequence[Any] = [value] * missing
            row[name] = [*row[name], *padding] if side == "right" else [*padding, *row[name]]
    return row
