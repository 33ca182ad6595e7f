"""What a family's parameters are: one declarative table, expanded forward for a config.

A row names a parameter (its PyTorch state-dict name, the canonical name of the project), its
kind, symbolic shape in the canonical layout, logical axes, when it exists and what it is tied to.
Everything else about parameters (names and layouts in other frameworks and files, ties, counts,
initial values, weight decay, shardings) is derived from the expanded rows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from xlmfam.common.errors import ConfigError, XlmfamError

# X-MOD has a thousand adapters.
_MOST_OF_A_ROW = 10**5


class Kind(Enum):
    """What a parameter is; the whole difference between the frameworks follows from it."""

    LINEAR = "linear"  # canonical layout (out, in); Keras and Flax hold (in, out)
    BIAS = "bias"
    NORM_SCALE = "norm_scale"
    NORM_SHIFT = "norm_shift"
    EMBEDDING = "embedding"  # (rows, width) everywhere
    RAW = "raw"  # own name, same layout everywhere
    RAW_BIAS = "raw_bias"  # the same, of a bias


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: Name template in the spelling of a model with a head, indices in braces.
        kind: What it is.
        shape: Names of sizes, in the canonical layout.
        axes: Logical axis per dimension (``vocab``, ``embed``, ``heads``, ``mlp`` ...).
        when: The row exists only where this holds for the config.
        heads: Names of the classes that have it; ``None`` means all of the family.
        tied_to: Template of the parameter that this one shares, while ``ties`` holds.
        always_tied: It shares it whatever the config says.
        tied_when: Whether it shares it, for a config and the indices of its name, where the table's
            ``ties`` does not tell.
        init: ``"normal"``, ``"zeros"``, ``"ones"`` or ``"sinusoids"``; ``None`` follows from
            the kind.
        std: Name of the config field with the standard deviation of ``"normal"`` values;
            ``None`` is the table's.
        padding_row: Name of the config field whose row starts as zeros (embeddings).
        trainable: False for what is stored but never learned.
        h5_leaf: Last component in ``tf_model.h5`` where the kind does not tell.
        h5_path: The components before it as they are, where the name does not tell.
        h5_transposed: Whether its layout in ``tf_model.h5`` is the canonical one transposed, where
            the kind does not tell.
        part: What it belongs to where that matters for freezing, e.g. ``"embeddings"``.
        optional: Checkpoints of the family may lack it; it then starts anew.
    """

    name: str
    kind: Kind
    shape: tuple[str, ...]
    axes: tuple[str, ...]
    when: Callable[[Any], bool] | None = None
    heads: frozenset[str] | None = None
    tied_to: str | None = None
    always_tied: bool = False
    tied_when: Callable[[Any, dict[str, Any]], bool] | None = None
    init: str | None = None
    std: str | None = None
    padding_row: str | None = None
    trainable: bool = True
    h5_leaf: str | None = None
    h5_path: str | None = None
    h5_transposed: bool | None = None
    part: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Parameter:
    """One row, expanded for a config and a class.

    Attributes:
        name: Canonical name in this class (a base model has no prefix).
        full_name: Canonical name in the spelling of a model with a head.
        kind: What it is.
        shape: Sizes in the canonical layout.
        axes: Logical axis per dimension.
        tied_to: ``full_name`` of the parameter it shares, or ``None``.
        init: ``"normal"``, ``"uniform"``, ``"zeros"``, ``"ones"`` or ``"sinusoids"``.
        std: Standard deviation of ``"normal"`` values.
        bound: ``"uniform"`` values lie between it and its negative.
        padding_row: Index of the row that starts as zeros, or ``None``.
        trainable: False for what is stored but never learned.
        h5_name: Name in ``tf_model.h5`` without the model-instance component.
        h5_transposed: Whether its layout there is the canonical one transposed.
        layer: Number of the layer that it is in; ``None`` outside of all layers.
        language: Code of the language that it is for; ``None`` for what serves all.
        part: What it belongs to where that matters for freezing, or ``None``.
        optional: Checkpoints of the family may lack it; it then starts anew.
    """

    name: str
    full_name: str
    kind: Kind
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    tied_to: str | None
    init: str
    std: float
    bound: float
    padding_row: int | None
    trainable: bool
    h5_name: str
    h5_transposed: bool
    layer: int | None
    language: str | None
    part: str | None
    optional: bool

    @property
    def place(self) -> str:
        """The full name with a star for its language: equal in all languages' adapters."""
        parts = self.full_name.split(".")
        return ".".join("*" if part == self.language else part for part in parts)

    @property
    def size(self) -> int:
        """Number of values."""
        result = 1
        for length in self.shape:
            result *= length
        return result

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: not to biases, norms and what is never learned."""
        return self.trainable and self.kind not in NOT_DECAYED


@dataclass(frozen=True)
class Table:
    """All parameters of a family.

    Attributes:
        family: The ``model_type``.
        prefix: First component of every base parameter in a model with a head.
        base: Name of the class without a head.
        heads: Names of the classes with one.
        tokens: Template of the token embedding.
        sizes: Value of each size name for a config.
        indices: Values of each index of the name templates for a config.
        rows: The lines, in the order of the state dict.
        ties: Whether the ``tied_to`` column applies to a config.
        ignored: Name templates that older files may carry and nobody needs, with the reason.
        aliases: Older name templates and the template of the row they mean.
        init_std: Standard deviation of ``"normal"`` initial values for a config.
        init_bound: Bound of initial values where a config wants ``"uniform"`` ones, or ``None``;
            rows with a standard deviation of their own stay ``"normal"``.
        indexed_sizes: Value of each size name that depends on the indices of the name too.
        h5_index: What stands between a list's name and the index in ``tf_model.h5``.
        h5_has_ties: Whether ``tf_model.h5`` lists a tied parameter again.
        headless: Names of further classes without a head, which lack some of the base's rows.
        h5_lost: Names that the ``tf_model.h5`` of transformers lacks, with what can be done.
    """

    family: str
    prefix: str
    base: str
    heads: tuple[str, ...]
    tokens: str
    sizes: Mapping[str, Callable[[Any], int]]
    indices: Mapping[str, Callable[[Any], Sequence[Any]]]
    rows: tuple[Row, ...]
    init_std: Callable[[Any], float]
    ties: Callable[[Any], bool] = field(default=lambda config: bool(config.tie_word_embeddings))
    ignored: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    indexed_sizes: Mapping[str, Callable[[Any, dict[str, Any]], int]] = field(default_factory=dict)
    init_bound: Callable[[Any], float | None] = field(default=lambda _: None)
    h5_index: str = "."
    h5_has_ties: bool = True
    headless: tuple[str, ...] = ()
    h5_lost: Mapping[str, str] = field(default_factory=dict)

    def check_class(self, head: str) -> None:
        """Raise ``XlmfamError`` unless ``head`` names a class of this family."""
        known = (self.base, *self.headless, *self.heads)
        if head not in known:
            raise XlmfamError(f"'{head}' is no class of family {self.family}: {', '.join(known)}")

    def expand(self, config: Any, head: str) -> dict[str, Parameter]:
        """Return every parameter of class ``head`` under ``config``, by canonical name.

        No model is built. The order is that of the rows.
        """
        self.check_class(head)
        parameters = (
            self._parameter(row, values, config, head)
            for row in self.rows
            if self._applies(row, config, head)
            for values in self.index_values(row.name, config)
        )
        return {parameter.name: parameter for parameter in parameters}

    def expand_names(self, template: str, config: Any) -> list[str]:
        """Return the names that ``template`` stands for under ``config``."""
        return [template.format(**values) for values in self.index_values(template, config)]

    def token_embedding(self, config: Any, head: str) -> Parameter | None:
        """Return the token embedding of class ``head``, or ``None`` where it has several."""
        every = self.expand(config, head).values()
        return next((p for p in every if p.full_name == self.tokens), None)

    def index_values(self, template: str, config: Any) -> list[dict[str, Any]]:
        """Return every assignment of the indices in ``template``, in nested-loop order."""
        used = re.findall(r"{(\w+)}", template)
        ranges = [self.indices[name](config) for name in used]
        if math.prod(map(len, ranges)) > _MOST_OF_A_ROW:
            raise ConfigError(f"the config asks for too many of {template}")
        return [dict(zip(used, values, strict=True)) for values in itertools.product(*ranges)]

    def _applies(self, row: Row, config: Any, head: str) -> bool:
        if row.when is not None and not row.when(config):
            return False
        if row.heads is not None:
            return head in row.heads
        return True

    def _parameter(self, row: Row, values: dict[str, Any], config: Any, head: str) -> Parameter:
        full_name = row.name.format(**values)
        name = full_name
        if head == self.base or head in self.headless:
            name = full_name.removeprefix(self.prefix + ".")
        ties = row.always_tied or self.ties(config)
        if row.tied_when is not None:
            ties = row.tied_when(config, values)
        tied = row.tied_to.format(**values) if row.tied_to and ties else None
        transposed = row.kind is Kind.LINEAR if row.h5_transposed is None else row.h5_transposed
        padding = getattr(config, row.padding_row) if row.padding_row else None
        init = row.init or INITIAL[row.kind]
        bound = None if row.std else self.init_bound(config)
        if init == "normal" and bound is not None:
            init = "uniform"
        return Parameter(
            name=name,
            full_name=full_name,
            kind=row.kind,
            shape=tuple(self._size(size, config, values) for size in row.shape),
            axes=row.axes,
            tied_to=tied,
            init=init,
            std=getattr(config, row.std) if row.std else self.init_std(config),
            bound=bound or 0.0,
            padding_row=padding,
            trainable=row.trainable,
            h5_name=self._h5_name(row, values),
            h5_transposed=transposed,
            layer=values.get("layer"),
            language=values.get("lang"),
            part=row.part,
            optional=row.optional,
        )

    def _size(self, name: str, config: Any, values: dict[str, Any]) -> int:
        if name in self.indexed_sizes:
            return self.indexed_sizes[name](config, values)
        return self.sizes[name](config)

    def _h5_name(self, row: Row, values: dict[str, Any]) -> str:
        path = row.h5_path
        if path is None:
            path = row.name.rpartition(".")[0]
            path = re.sub(r"\.({\w+})", lambda match: f"\0{match.group(1)}", path)
            path = path.replace(".", "/").replace("\0", self.h5_index)
        leaf = H5_LEAF.get(row.kind, row.name.rpartition(".")[2])
        return f"{path}/{row.h5_leaf or leaf}".format(**values)


NOT_DECAYED = (Kind.BIAS, Kind.RAW_BIAS, Kind.NORM_SCALE, Kind.NORM_SHIFT)
INITIAL = {
    Kind.LINEAR: "normal",
    Kind.EMBEDDING: "normal",
    Kind.RAW: "normal",
    Kind.BIAS: "zeros",
    Kind.RAW_BIAS: "zeros",
    Kind.NORM_SHIFT: "zeros",
    Kind.NORM_SCALE: "ones",
}
# transformers' Keras 2 models call an embedding's variable "weight".
H5_LEAF = {
    Kind.LINEAR: "kernel",
    Kind.EMBEDDING: "weight",
    Kind.BIAS: "bias",
    Kind.NORM_SHIFT: "beta",
    Kind.NORM_SCALE: "gamma",
}


def parameter_count(parameters: Mapping[str, Parameter]) -> int:
    """Return the number of values, shared ones counted once."""
    return sum(p.size for p in parameters.values() if p.tied_to is None)


# Two helpers that keep the tables short.


def linear(name: str, out_size: str, in_size: str, axes: tuple[str, str], **kwargs: Any):
    """Return the rows of a linear layer with a bias: weight (out, in) and bias (out,)."""
    return (
        Row(f"{name}.weight", Kind.LINEAR, (out_size, in_size), axes, **kwargs),
        Row(f"{name}.bias", Kind.BIAS, (out_size,), axes[:1], **kwargs),
    )


def norm(name: str, size: str, **kwargs: Any):
    """Return the rows of a layer norm: scale and shift (size,)."""
    return (
        Row(f"{name}.weight", Kind.NORM_SCALE, (size,), ("embed",), **kwargs),
        Row(f"{name}.bias", Kind.NORM_SHIFT, (size,), ("embed",), **kwargs),
    )
