"""Which adapters of X-MOD a batch goes through in TensorFlow.

Shapes: B batch, S sequence, R rows that languages are told for: B samples or B * S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from xlmfam.tf.attention import Tensor, sizes

BLOCK = 32  # tokens that share a gathered adapter
FEW = 24  # adapters that are moved all rather than chosen from, which takes longer to compile


@dataclass(frozen=True, eq=False)  # no tuple: Keras takes none that mix tensors with others
class Languages:
    """Which adapter each part of a batch goes through, worked out once per call.

    Rows are put in ``order``, sent through adapters, and put back by ``inverse``. The adapters
    take ``sizes`` rows each where that many are known; else every row, or block of tokens, goes
    through the one that ``ids`` names.

    Attributes:
        present: Codes of the languages that occur, or may.
        sizes: How many rows each of them has.
        order: Rows by language; ``None`` leaves them where they are.
        inverse: (R,) where each row stands in ``order``.
        by_token: Rows are tokens rather than samples.
        ids: Place in ``present`` of each sample's language, or of each block's.
    """

    present: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    order: Tensor | None = None
    inverse: Tensor | None = None
    by_token: bool = False
    ids: Tensor | None = None


def assign_languages(ids: Tensor, codes: Sequence[str], batch: Any, length: Any) -> Languages:
    """Return which adapters a batch goes through.

    Args:
        ids: (B or 1, S or 1) numbers of languages.
        codes: Of all languages.
        batch: B.
        length: S.
    """
    # What is known outside of graphs, or was given as codes or plain numbers, takes no more
    # adapters than those that occur.
    known = tf.get_static_value(ids)
    if known is None:
        present, numbers = tuple(codes), tf.cast(ids, tf.int32)
    else:
        places, numbers = np.unique(known, return_inverse=True)
        present = tuple(codes[place] for place in places)
        numbers = numbers.reshape(known.shape).astype(np.int32)
    if len(present) == 1:
        return Languages(present)
    by_token = ids.shape[1] != 1
    if known is None or tf.is_tensor(batch) or tf.is_tensor(length):
        shape = [batch, length if by_token else 1]
        return gather_languages(present, tf.broadcast_to(numbers, shape))
    rows = np.broadcast_to(numbers, (batch, length if by_token else 1)).reshape(-1)
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=len(present)).tolist()
    inverse = np.argsort(order, kind="stable")
    return Languages(present, tuple(counts), tf.constant(order), tf.constant(inverse), by_token)


def gather_languages(present: tuple[str, ...], ids: Tensor) -> Languages:
    """Return the languages (B, S or 1), places in ``present``, with shapes that none changes.

    An adapter for each token would be far more numbers than the text. So tokens are put together
    by language, in blocks; the last block of a language need not be full.
    """
    if ids.shape[1] == 1:
        return Languages(present, ids=ids[:, 0])
    ids = tf.reshape(ids, [-1])
    (rows,) = sizes(ids)
    blocks = rows // BLOCK + tf.minimum(len(present), rows)  # enough, whatever the languages
    if not tf.is_tensor(rows):
        blocks = rows // BLOCK + min(len(present), rows)
    is_language = tf.one_hot(ids, len(present), dtype=tf.int32)  # (R, languages)
    rank = tf.reduce_sum(is_language * tf.cumsum(is_language), -1) - 1
    each = (tf.reduce_sum(is_language, 0) + BLOCK - 1) // BLOCK
    ends = tf.cumsum(each)
    place = tf.gather(ends - each, ids) * BLOCK + rank
    # Places that nobody takes read the first token; nobody reads what becomes of it.
    order = tf.scatter_nd(place[:, None], tf.range(rows), [blocks * BLOCK])
    passed = tf.reduce_sum(tf.cast(tf.range(blocks)[:, None] >= ends, tf.int32), -1)
    ids = tf.minimum(passed, len(present) - 1)
    return Languages(present, (), order, place, True, ids)


def pick(ids: Tensor, every: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Return the parameters of the adapters that are named, one after the other.

    Of many, a processor copies them one by one: to stack all would move every language's for each
    layer. Elsewhere branches cost more than memory traffic does.

    Args:
        ids: (N,) places in ``every``.
        every: Parameters of each adapter.

    Returns:
        (N, ...) for each parameter.
    """
    number = len(every[0])

    @tf.custom_gradient
    def chosen(*flat: Tensor) -> Any:
        adapters = [flat[start : start + number] for start in range(0, len(flat), number)]

        def gradient(*upstream: Tensor) -> list[Tensor]:
            # Branches would add up all adapters for each that is named.
            sums = [tf.math.unsorted_segment_sum(u, ids, len(adapters)) for u in upstream]
            by_adapter = zip(*(tf.unstack(each, len(adapters)) for each in sums), strict=True)
            return [value for adapter in by_adapter for value in adapter]

        return _pick_each(ids, adapters), gradient

    if len(every) <= FEW or tf.config.list_logical_devices("GPU"):
        return [tf.gather(tf.stack(values), ids) for values in zip(*every, strict=True)]
    return chosen(*(value for adapter in every for value in adapter))


@tf.function(autograph=False)  # traced once for all layers, which are alike
def _pick_each(ids: Tensor, adapters: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    kinds = [tf.TensorSpec(value.shape, value.dtype) for value in adapters[0]]
    return tf.map_fn(lambda place: _pick_one(place, adapters), ids, fn_output_signature=kinds)


def _pick_one(place: Tensor, adapters: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Halve the adapters until one is left: of many branches at once, each would take them all."""
    half = len(adapters) // 2
    if not half:
        return [tf.identity(value) for value in adapters[0]]
    return tf.cond(
        place < half,
        lambda: _pick_one(place, adapters[:half]),
        lambda: _pick_one(place - half, adapters[half:]),
    )
