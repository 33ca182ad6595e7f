"""What the tools of this package return: plain data that prints as a person would want it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.files import REPORT_FILES

_UNITS = ("B", "kB", "MB", "GB", "TB")


def readable_size(size: float) -> str:
    """Return a number of bytes as people read it: ``1.2 GB``."""
    step = 0
    while size >= 999.5 and step < len(_UNITS) - 1:
        size, step = size / 1000, step + 1
    return f"{size:.0f} {_UNITS[step]}" if step == 0 else f"{size:.3g} {_UNITS[step]}"


def text_table(rows: Sequence[Sequence[str]], right: bool = True) -> str:
    """Return rows as aligned text; all columns but the first are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(column: int, value: str) -> str:
        return value.rjust(widths[column]) if column and right else value.ljust(widths[column])

    lines = ["  ".join(cell(i, value) for i, value in enumerate(row)).rstrip() for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def as_data(value: Any) -> Any:
    """Return nested data as JSON has it: strings as keys, and numbers that it lacks as strings."""
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


MOST_NAMES_SHOWN = 8


def _reasons(dropped: Mapping[str, str]) -> list[str]:
    """Return a line for each name, or one for all that are left out for the same reason."""
    names: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        names.setdefault(reason, []).append(name)
    lines = []
    for reason, alike in names.items():
        if len(alike) > MOST_NAMES_SHOWN:
            lines.append(f"{len(alike)} tensors such as {alike[0]}: {reason}")
        else:
            lines += [f"{name}: {reason}" for name in alike]
    return lines


@dataclass(frozen=True)
class SourceFile:
    """A file that was read, and what tells it from a later one of its name."""

    name: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class CarriedTensor:
    """One parameter on its way.

    Attributes:
        name: Its canonical name.
        stored_as: Its name in the source.
        written_as: Its names in the target; several where a format stores what is shared.
        files: The file of the target that each of these lies in.
        shape: In canonical layout.
        source_dtype: As it was stored.
        dtype: As it was written.
        transposed: Whether it lies the other way round in the target.
        sha256: Of its bytes as written, in canonical layout: the same in every format.
    """

    name: str
    stored_as: str
    written_as: Sequence[str]
    files: Sequence[str]
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    transposed: bool
    sha256: str


@dataclass(frozen=True)
class Conversion:
    """What went where in one conversion.

    Attributes:
        source: The checkpoint that was read.
        target: The folder that was written.
        family: Its ``model_type``.
        head: Its class.
        source_format: Format that was read.
        format: Format that was written.
        files: Name and bytes of every file written.
        tensors: Number of parameters (tensors) carried over.
        parameters: Number of values in them.
        dtypes: Number of tensors written per dtype.
        cast: Number of tensors whose dtype was changed.
        dropped: Names in the source that were not carried over, with the reason.
        copied: Names of the files, such as the tokenizer's, that were copied as they are.
        warnings: What the user should look at.
        seconds: How long it took.
        carried: Every parameter, with where it came from and where it went.
        ties: Canonical name of a parameter and of the one that it shares.
        checksum: Of all weights as written, as `checksum` gives it.
        source_files: The files that were read.
        notes: What the importer of an original release has to say.
        options: What was asked for.
        versions: Versions of what did the work.
        resumed: Number of tensors that an earlier attempt, which was killed, had written.
        verification: What ``--verify`` found.
    """

    source: str
    target: Path
    family: str
    head: str
    source_format: str
    format: str
    files: Mapping[str, int]
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    cast: int
    dropped: Mapping[str, str]
    copied: Sequence[str]
    warnings: Sequence[str]
    seconds: float
    carried: Sequence[CarriedTensor] = ()
    ties: Mapping[str, str] = field(default_factory=dict)
    checksum: str = ""
    source_files: Sequence[SourceFile] = ()
    notes: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    resumed: int = 0
    verification: Verification | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON; numbers that JSON lacks are strings."""
        data = as_data({**asdict(self), "target": str(self.target), "bytes": self.nbytes})
        if self.verification is not None:
            data["verification"] |= {
                "ok": self.verification.ok,
                "largest": as_data(self.verification.largest),
            }
        return data

    def to_json(self) -> str:
        """Return the text of ``conversion_report.json``."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    @property
    def report_files(self) -> list[Path]:
        """The report, as data and as a page."""
        return [self.target / name for name in REPORT_FILES if name in self.files]

    @property
    def nbytes(self) -> int:
        """Bytes of all files written."""
        return sum(self.files.values())

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        cast = f", {self.cast} cast" if self.cast else ""
        lines = [
            f"{self.head}: {self.source_format} -> {self.format}",
            f"  from    {self.source}",
            f"  to      {self.target}",
            f"  tensors {self.tensors} ({dtypes}{cast}), {self.parameters:,} parameters",
            f"  wrote   {len(self.files)} files, {readable_size(self.nbytes)}, "
            f"in {self.seconds:.1f} s",
        ]
        if self.copied:
            lines.append(f"  copied  {', '.join(self.copied)}")
        if self.report_files:
            lines.append(f"  report  {', '.join(path.name for path in self.report_files)}")
        if self.resumed:
            lines.append(f"  resumed {self.resumed} tensors were there from an earlier attempt")
        lines += [f"  note    {text}" for text in self.notes]
        lines += [f"  left    {line}" for line in _reasons(self.dropped)]
        lines += [f"  warning {text}" for text in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class TensorEntry:
    """One parameter of a checkpoint: canonical name, shape and layout; dtype as stored."""

    name: str
    stored_as: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, from its headers alone.

    Attributes:
        source: The checkpoint.
        family: Its ``model_type``.
        head: Its class.
        format: Its file format.
        files: The weight files or the index that was opened.
        parameters: Number of values, shared ones counted once.
        nbytes: Bytes of all tensors in the files.
        tensors: Every parameter that was found.
        ties: Canonical name of a parameter and of the one that it shares.
        dropped: Names in the file that no model needs, with the reason.
        problems: Everything that keeps the checkpoint from being loaded.
        config: Its config, as data.
    """

    source: str
    family: str
    head: str
    format: str
    file: str
    parameters: int
    nbytes: int
    tensors: Sequence[TensorEntry]
    ties: Mapping[str, str]
    dropped: Mapping[str, str]
    problems: Sequence[str]
    config: Mapping[str, Any] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible data."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        rows = [("parameter", "shape", "dtype", "size")]
        rows += [
            (t.name, " x ".join(map(str, t.shape)) or "scalar", t.dtype, readable_size(t.nbytes))
            for t in self.tensors
        ]
        lines = [
            f"{self.source}",
            f"  family      {self.family}",
            f"  class       {self.head}",
            f"  format      {self.format} ({self.file})",
            f"  parameters  {self.parameters:,}",
            f"  size        {readable_size(self.nbytes)}",
        ]
        lines += [f"  tied        {name} = {to}" for name, to in self.ties.items()]
        lines += [f"  not needed  {name}: {reason}" for name, reason in self.dropped.items()]
        lines += [f"  PROBLEM     {problem}" for problem in self.problems]
        return "\n".join([*lines, "", text_table(rows)])


@dataclass(frozen=True)
class Comparison:
    """The largest difference between two backends in one part of the model's results.

    Attributes:
        field: What was compared, e.g. ``layer 3``.
        kind: ``state``, ``logits``, ``loss`` or ``gradient``.
        pair: The two backends.
        difference: Relative to the largest value; NaN when anything was not finite.
        where: The parameter that differs most, for gradients.
    """

    field: str
    kind: str
    pair: tuple[str, str]
    difference: float
    where: str = ""

    def passes(self, tolerance: float) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.difference <= tolerance


@dataclass(frozen=True)
class Verification:
    """The same checkpoint in several backends, held against each other.

    Attributes:
        source: The checkpoint.
        head: Its class.
        backends: Those that ran.
        tolerance: Largest difference allowed.
        comparisons: Every field and pair.
        failures: Backends that could not run it, with the reason.
        seconds: Time that each backend took to load and run.
        losses: The loss in each backend.
    """

    source: str
    head: str
    backends: Sequence[str]
    tolerance: float
    comparisons: Sequence[Comparison]
    failures: Mapping[str, str]
    seconds: Mapping[str, float]
    losses: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Whether every backend ran, something was compared and nothing differs."""
        return bool(self.comparisons) and not self.failures and not self.differing()

    @property
    def largest(self) -> float:
        """The largest difference; NaN if any is, for it is worse than every number."""
        every = [c.difference for c in self.comparisons]
        return math.nan if any(map(math.isnan, every)) else max(every, default=math.nan)

    def differing(self) -> list[Comparison]:
        """Return the comparisons beyond the tolerance."""
        return [c for c in self.comparisons if not c.passes(self.tolerance)]

    @property
    def fields(self) -> list[str]:
        """What was compared, in the order of the model."""
        return list(dict.fromkeys(c.field for c in self.comparisons))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of backends."""
        return list(dict.fromkeys(c.pair for c in self.comparisons))

    def matrix(self) -> list[list[float | None]]:
        """Return the differences, a row per field and a column per pair."""
        found = {(c.field, c.pair): c.difference for c in self.comparisons}
        return [[found.get((field, pair)) for pair in self.pairs] for field in self.fields]

    def table(self) -> str:
        """Return the differences as text; ``!`` marks those beyond the tolerance."""
        rows = [["largest relative difference", *(f"{a} - {b}" for a, b in self.pairs)]]
        for name, line in zip(self.fields, self.matrix(), strict=True):
            rows.append([name, *(_cell(value, self.tolerance) for value in line)])
        return text_table(rows)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.head} in {', '.join(self.backends) or 'no backend'}"]
        if self.comparisons:
            lines += ["", self.table(), ""]
        lines += [f"{name} could not run it: {reason}" for name, reason in self.failures.items()]
        lines += [
            f"differs: {c.field} between {' and '.join(c.pair)}: {c.difference:.2e}"
            + (f" ({c.where})" if c.where else "")
            for c in self.differing()
        ]
        timings = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        verdict = "the backends agree" if self.ok else "NOT VERIFIED"
        largest = f"largest difference {self.largest:.2e}, " if self.comparisons else ""
        lines.append(f"{verdict}: {largest}tolerance {self.tolerance:.0e}; {timings}".rstrip("; "))
        return "\n".join(lines)


def _cell(value: float | None, tolerance: float) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" + (" " if value <= tolerance else "!")
