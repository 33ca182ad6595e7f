"""Two checkpoints of any formats held against each other, tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.parameters import Parameter
from xlmfam.common.parameters.spelling import is_transposed
from xlmfam.conversion.report import text_table
from xlmfam.conversion.sources import OpenCheckpoint, recognise
from xlmfam.conversion.streaming import Reading

Status = Literal["equal", "within tolerance", "differs", "dtype", "shape", "only in A", "only in B"]
# Values per block: two blocks and their copies in double precision are all that is held.
_BLOCK = 2**20
# What a conversion sets anew, or what only says how a file came to be.
_NOT_OF_THE_MODEL = ("architectures", "torch_dtype", "transformers_version", "_name_or_path")
_MOST_ROWS = 40
_RowReader = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class TensorDifference:
    """One parameter in both checkpoints; pairs are of the first and of the second.

    Attributes:
        name: Its canonical name, as in a model with a head.
        status: What came of the comparison; ``equal`` values may still have other bytes.
        shapes: Its shapes in canonical layout; ``None`` where it is not there.
        dtypes: Its dtypes as stored.
        size: Number of values in the larger one.
        identical: Whether every byte is the same.
        differing: Number of values that differ; values that are no number count as one and the
            same.
        largest: The largest absolute difference; NaN where only one of two values is finite.
        relative: The same in relation to the largest value of both.
        nan: Number of values that are no number.
        infinite: Number of infinite ones.
    """

    name: str
    status: Status
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    size: int
    identical: bool = False
    differing: int = 0
    largest: float = 0.0
    relative: float = 0.0
    nan: tuple[int, int] = (0, 0)
    infinite: tuple[int, int] = (0, 0)

    @property
    def ok(self) -> bool:
        """Whether it counts as equal."""
        return self.status in ("equal", "within tolerance")

    @property
    def badness(self) -> tuple[int, float, int]:
        """What to sort by, the worst last."""
        rank = ("equal", "within tolerance", "dtype", "differs", "shape", "only in A", "only in B")
        relative = math.inf if math.isnan(self.relative) else self.relative
        return rank.index(self.status), relative, self.differing


@dataclass(frozen=True)
class Difference:
    """What two checkpoints have not in common.

    Attributes:
        a: The first checkpoint.
        b: The second.
        heads: Their classes.
        formats: Their file formats.
        tolerance: Largest relative difference that counts as none.
        tensors: Every parameter of either, the worst first.
        config: Settings that differ, with both values; ``None`` also where one is not there.
    """

    a: str
    b: str
    heads: tuple[str, str]
    formats: tuple[str, str]
    tolerance: float
    tensors: Sequence[TensorDifference]
    config: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether they are equal, within the tolerance."""
        return not self.config and not self.differing()

    def differing(self) -> list[TensorDifference]:
        """Return the parameters that are not equal, the worst first."""
        return [tensor for tensor in self.tensors if not tensor.ok]

    @property
    def largest(self) -> float:
        """The largest relative difference of what is in both; NaN is larger than every number."""
        every = [tensor.relative for tensor in self.tensors]
        return math.nan if any(map(math.isnan, every)) else max(every, default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON; what is no finite number becomes a string."""
        return _plain({**asdict(self), "largest": self.largest, "ok": self.ok})

    def __str__(self) -> str:
        lines = [f"A  {self.a} ({self.formats[0]})", f"B  {self.b} ({self.formats[1]})"]
        lines += [f"config: {key} is {a!r} / {b!r}" for key, (a, b) in self.config.items()]
        shown = [t for t in self.tensors if not (t.ok and t.identical) or any(t.nan + t.infinite)]
        if shown:
            lines += ["", text_table([_HEADINGS, *map(_row, shown[:_MOST_ROWS])])]
            more = len(shown) - _MOST_ROWS
            lines += [f"... and {more} more", ""] if more > 0 else [""]
        same = sum(t.identical for t in self.tensors)
        equal = sum(t.ok for t in self.tensors)
        verdict = "equal" if self.ok else "DIFFERENT"
        lines.append(
            f"{verdict}: {equal} of {len(self.tensors)} tensors agree, {same} of them byte for "
            f"byte; largest relative difference {self.largest:.2e}, tolerance {self.tolerance:g}"
        )
        return "\n".join(lines)


_HEADINGS = ("parameter", "result", "shape", "dtype", "values", "largest", "relative", "NaN, inf")


def _row(tensor: TensorDifference) -> tuple[str, ...]:
    shapes = [" x ".join(map(str, s)) or "scalar" for s in tensor.shapes if s is not None]
    dtypes = [dtype for dtype in tensor.dtypes if dtype]
    compared = tensor.status not in ("shape", "only in A", "only in B")
    numbers = (str(tensor.differing), f"{tensor.largest:.1e}", f"{tensor.relative:.1e}")
    a, b = (f"{tensor.nan[side]}, {tensor.infinite[side]}" for side in (0, 1))
    return (
        tensor.name,
        tensor.status,
        " / ".join(dict.fromkeys(shapes)),
        " / ".join(dict.fromkeys(dtypes)),
        *(numbers if compared else ("-", "-", "-")),
        ("" if a == b == "0, 0" else " / ".join(dict.fromkeys((a, b)))) if compared else "-",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    tolerance: float = 0.0,
    weights_only: bool = False,
    heads: tuple[str | None, str | None] = (None, None),
    formats: tuple[str | None, str | None] = (None, None),
    **hub: Any,
) -> Difference:
    """Compare two checkpoints of any formats, parameter by parameter, in blocks of rows.

    Names and layouts are the canonical ones, so that a checkpoint and what it was converted to
    are equal. A parameter that one checkpoint shares and the other stores is compared with what it
    shares.

    Args:
        a: Folder, file of weights, or hub id.
        b: The same.
        tolerance: Largest difference, in relation to a tensor's largest value, that counts as
            none. Above zero, dtypes may differ too.
        weights_only: Leave classes and configs out.
        heads: Classes of the two where their configs do not say or are wrong.
        formats: Formats to read of the two, for folders that hold several.
        **hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``subfolder``.

    Returns:
        What differs.

    Raises:
        CheckpointError: When one is missing or damaged, or does not fit its config while names
            of both are spelled differently.
        ConfigError: When a config is missing or of a family that is not ours.
        XlmfamError: For a tolerance that is none.
    """
    if not 0 <= tolerance < math.inf:
        raise XlmfamError(f"tolerance is {tolerance}; it must be zero or a positive number")
    with (
        recognise(a, head=heads[0], format=formats[0], **hub) as one,
        recognise(b, head=heads[1], format=formats[1], **hub) as other,
    ):
        compared = [_compare(*pair, tolerance) for pair in _pairs(one, other)]
        return Difference(
            a=os.fspath(a),
            b=os.fspath(b),
            heads=(one.head, other.head),
            formats=(one.format, other.format),
            tolerance=tolerance,
            tensors=sorted(compared, key=lambda tensor: tensor.badness, reverse=True),
            config={} if weights_only else _config_differences(one, other),
        )


def _config_differences(a: OpenCheckpoint, b: OpenCheckpoint) -> dict[str, tuple[Any, Any]]:
    def settings(checkpoint: OpenCheckpoint) -> dict[str, Any]:
        data = checkpoint.config.to_dict()
        kept = {key: value for key, value in data.items() if key not in _NOT_OF_THE_MODEL}
        return {"class": checkpoint.head, **kept}

    ours, theirs = settings(a), settings(b)
    pairs = {key: (ours.get(key), theirs.get(key)) for key in {**ours, **theirs}}
    return {key: pair for key, pair in pairs.items() if not _alike(*pair)}


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return list(a) == list(b)
    return a == b


# ---- what is compared with what -----------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """A tensor in an open checkpoint; ``parameter`` is ``None`` where the table is not asked."""

    checkpoint: OpenCheckpoint
    stored: str
    parameter: Parameter | None

    @property
    def spec(self) -> TensorSpec:
        spec = self.checkpoint.source.specs()[self.stored]
        return TensorSpec(spec.shape[::-1], spec.dtype) if self.is_transposed else spec

    @property
    def is_transposed(self) -> bool:
        spelling = self.checkpoint.source.spelling
        return self.parameter is not None and is_transposed(self.parameter, spelling)

    def rows(self, canonical: bool) -> _RowReader:
        """Return what reads rows, of the canonical layout or of the file's."""
        source = self.checkpoint.source
        if canonical and self.is_transposed and self.parameter is not None:
            reading = Reading(source, self.stored, self.parameter)
            return _InOrder(reading.canonical()).rows
        if self.spec.shape:
            return lambda start, stop: source.read_rows(self.stored, start, stop)
        return lambda start, stop: source.read(self.stored)  # noqa: ARG005


class _InOrder:
    """Gives rows that come in blocks of one size in blocks of another, from the first on."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks = blocks
        self._rest: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the next rows."""
        wanted, parts = stop - start, []
        while wanted:
            block = next(self._blocks) if self._rest is None else self._rest
            parts.append(block[:wanted])
            self._rest = block[wanted:] if len(block) > wanted else None
            wanted -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pairs(
    a: OpenCheckpoint, b: OpenCheckpoint
) -> Iterator[tuple[str, _Held | None, _Held | None]]:
    try:
        (ours, our_ties), (theirs, their_ties) = _by_table(a), _by_table(b)
    except CheckpointError:
        # What does not fit its config can still be compared by the names in the file.
        if a.source.spelling != b.source.spelling:
            raise
        ours, theirs = _as_stored(a), _as_stored(b)
        our_ties, their_ties = {}, {}
    for name in {**ours, **theirs}:
        yield name, {**our_ties, **ours}.get(name), {**their_ties, **theirs}.get(name)


def _by_table(checkpoint: OpenCheckpoint) -> tuple[dict[str, _Held], dict[str, _Held]]:
    """Every parameter by its canonical name in a model with a head, and those that are tied."""
    plan = checkpoint.plan()
    parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)
    held = {
        parameters[name].full_name: _Held(checkpoint, stored, parameters[name])
        for name, stored in plan.sources.items()
    }
    ties = {p.full_name: p.tied_to for p in parameters.values() if p.tied_to in held}
    return held, {name: held[origin] for name, origin in ties.items() if origin}


def _as_stored(checkpoint: OpenCheckpoint) -> dict[str, _Held]:
    return {name: _Held(checkpoint, name, None) for name in checkpoint.source.specs()}


# ---- values -------------------------------------------------------------------------------


def _compare(name: str, a: _Held | None, b: _Held | None, tolerance: float) -> TensorDifference:
    ours, theirs = a.spec if a else None, b.spec if b else None
    size = max(math.prod(spec.shape) for spec in (ours, theirs) if spec)
    shapes = (ours.shape if ours else None, theirs.shape if theirs else None)
    dtypes = (ours.dtype.name if ours else None, theirs.dtype.name if theirs else None)
    if a is None or b is None:
        return TensorDifference(
            name, "only in B" if a is None else "only in A", shapes, dtypes, size
        )
    if shapes[0] != shapes[1]:
        return TensorDifference(name, "shape", shapes, dtypes, size)
    tally = _compare_values(a, b)
    if tally.relative > tolerance or math.isnan(tally.relative):
        status: Status = "differs"
    elif dtypes[0] != dtypes[1] and not tolerance:
        status = "dtype"
    else:
        status = "within tolerance" if tally.differing else "equal"
    return TensorDifference(
        name,
        status,
        shapes,
        dtypes,
        size,
        tally.identical,
        tally.differing,
        tally.largest,
        tally.relative,
        (tally.nan[0], tally.nan[1]),
        (tally.infinite[0], tally.infinite[1]),
    )


def _compare_values(a: _Held, b: _Held) -> _Tally:
    # Where both files have it transposed, no turning is needed, and rows can be read as they lie.
    canonical = a.is_transposed != b.is_transposed
    shape = a.spec.shape if canonical or not a.is_transposed else a.spec.shape[::-1]
    tally = _Tally()
    if not math.prod(shape):
        tally.identical = a.spec == b.spec
        return tally
    count = shape[0] if shape else 1
    step = max(1, _BLOCK // math.prod(shape[1:]))
    ours, theirs = a.rows(canonical), b.rows(canonical)
    for start in range(0, count, step):
        stop = min(start + step, count)
        tally.add(ours(start, stop), theirs(start, stop))
    return tally


class _Tally:
    """What is known of two tensors so far."""

    def __init__(self) -> None:
        self.identical = True
        self.differing = 0
        self.largest = 0.0
        self.scale = 0.0
        self.nan = [0, 0]
        self.infinite = [0, 0]

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Take two blocks of one shape into account."""
        if _same_bytes(a, b):
            self._number(a, (0, 1))
            return
        self.identical = False
        ours, theirs = self._number(a, (0,)), self._number(b, (1,))
        with np.errstate(invalid="ignore"):
            if a.dtype == b.dtype and a.dtype.kind in "iu":
                differ = a != b  # the larger ones have no equal in double precision
            else:
                differ = (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
            count = int(differ.sum())
            if count:
                self.differing += count
                largest = float(np.abs(ours[differ] - theirs[differ]).max())
                # One of them infinite or no number: there is no saying by how much.
                self.largest = max(self.largest, largest) if math.isfinite(largest) else math.nan

    @property
    def relative(self) -> float:
        """The largest difference in relation to the largest value."""
        if not self.largest or math.isnan(self.largest):
            return self.largest
        return self.largest / self.scale

    def _number(self, block: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
        """Return the block in double precision, counted."""
        values = block.astype(np.float64)
        size = np.abs(values)
        largest = float(size.max())
        if not math.isfinite(largest):
            for side in sides:
                self.nan[side] += int(np.isnan(values).sum())
                self.infinite[side] += int(np.isinf(values).sum())
            largest = float(np.max(size, where=np.isfinite(size), initial=0.0))
        self.scale = max(self.scale, largest)
        return values


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype:
        return False
    bits = f"u{a.dtype.itemsize}"
    return bool(np.array_equal(a.view(bits), b.view(bits)))
