"""Holding the names and shapes of a file against the table, before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters.spelling import OLD_LEAVES, Spelling, layout_shape, spell
from xlmfam.common.parameters.table import Parameter, Table

MOST_NAMES_SHOWN = 20
OTHER_LANGUAGE = "its language was not asked for"


class HasShape(Protocol):
    """Anything with a ``shape``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the file's layout."""


@dataclass
class LoadPlan:
    """Which name of a file every parameter comes from.

    Attributes:
        sources: Canonical name -> name in the file, for every parameter to read.
        new: Canonical names of head parameters that the file does not have at all.
        dropped: Names in the file that are not read, with the reason.
    """

    sources: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def plan_loading(
    table: Table,
    config: Any,
    head: str,
    specs: Mapping[str, HasShape],
    spelling: Spelling,
    ignore_mismatched_sizes: bool = False,
) -> LoadPlan:
    """Decide where each parameter of class ``head`` comes from in a file.

    A file of a base model loads into a head and the other way round; the head's own parameters
    are then new. Everything else must be there, and nothing that the table does not know.

    Args:
        table: The family's table.
        config: The config.
        head: Name of the class to load into.
        specs: Names in the file and their shapes, in the file's spelling and layout.
        spelling: How the file spells names.
        ignore_mismatched_sizes: Treat parameters of another shape as new.

    Raises:
        CheckpointError: Listing all missing, unexpected, ambiguous and misshapen names at once.
    """
    parameters = table.expand(config, head)
    plan = LoadPlan()
    missing: list[str] = []
    problems: list[str] = []
    candidates = _candidates(table, config, spelling)
    for name, parameter in parameters.items():
        if parameter.tied_to is not None:
            continue
        found = [c for c in candidates(parameter) if c in specs]
        if not found and spelling == "canonical":
            # A writer that drops shared tensors may have kept the other name.
            found = [c for c in _sharing(parameters, parameter) if c in specs][:1]
        if not found:
            missing.append(name)
        elif len(found) > 1:
            problems.append(f"ambiguous: {name} could be any of {', '.join(found)}")
        elif tuple(specs[found[0]].shape) == layout_shape(parameter, spelling):
            plan.sources[name] = found[0]
        elif ignore_mismatched_sizes:
            plan.new.append(name)
            plan.dropped[found[0]] = "its shape differs (ignore_mismatched_sizes)"
        else:
            want, got = layout_shape(parameter, spelling), tuple(specs[found[0]].shape)
            plan.dropped[found[0]] = "its shape differs"
            problems.append(f"misshapen: {found[0]} is {got}, the config asks for {want}")
    absent, new = _split_missing(table, parameters, missing)
    plan.new += new
    lost = table.h5_lost if spelling == "keras_h5" else {}
    problems = [_missing(name, lost.get(name)) for name in absent] + problems
    known = _known_names(table, config, spelling)
    used = set(plan.sources.values()) | set(plan.dropped)
    for name in specs:
        if name in used:
            continue
        if name in known:
            plan.dropped[name] = known[name]
        else:
            problems.append(f"unexpected: {name}")
    if problems:
        raise CheckpointError(_describe(head, problems))
    return plan


def _candidates(table: Table, config: Any, spelling: Spelling) -> Callable[[Parameter], list[str]]:
    """Return a function giving the names under which a file may hold a parameter."""
    older: dict[str, list[str]] = {}
    for template, canonical in table.aliases:
        for values in table.index_values(canonical, config):
            older.setdefault(canonical.format(**values), []).append(template.format(**values))

    def names(parameter: Parameter) -> list[str]:
        full = spell(parameter, spelling, prefixed=True)
        every = [full, _without_prefix(table, full), *older.get(parameter.full_name, ())]
        if spelling == "canonical" and parameter.kind in OLD_LEAVES:
            every += [f"{n.rpartition('.')[0]}.{OLD_LEAVES[parameter.kind]}" for n in every]
        return list(dict.fromkeys(every))

    return names


def _sharing(parameters: Mapping[str, Parameter], parameter: Parameter) -> list[str]:
    return [p.full_name for p in parameters.values() if p.tied_to == parameter.full_name]


def _without_prefix(table: Table, name: str) -> str:
    for separator in (".", "/"):
        name = name.removeprefix(table.prefix + separator)
    return name


def _split_missing(
    table: Table, parameters: Mapping[str, Parameter], missing: list[str]
) -> tuple[list[str], list[str]]:
    """Split into names that must be there and those that may start anew, all or none of a kind.

    A head's own may start anew, and so may what not every checkpoint of the family has.
    """
    free = {name: p for name, p in parameters.items() if p.tied_to is None}
    optional = [name for name, p in free.items() if p.optional]
    own = [
        name
        for name, p in free.items()
        if not p.full_name.startswith(table.prefix + ".") and not p.optional
    ]
    # Where nothing is the base's, there is no head that could start anew.
    if len(own) == len(free):
        return missing, []
    new = [name for kind in (own, optional) if set(kind) <= set(missing) for name in kind]
    return [name for name in missing if name not in new], new


def _known_names(table: Table, config: Any, spelling: Spelling) -> dict[str, str]:
    """Names that a file may carry without being read, with the reason."""
    known: dict[str, str] = {}
    for head in (table.base, *table.heads):
        for parameter in table.expand(config, head).values():
            name = spell(parameter, spelling, prefixed=True)
            if parameter.tied_to is not None:
                known[name] = f"tied to {parameter.tied_to}"
            elif not parameter.full_name.startswith(table.prefix + "."):
                known.setdefault(name, f"belongs to {head}")
            elif parameter.optional:
                for spelled in (name, _without_prefix(table, name)):
                    known.setdefault(spelled, f"belongs to {head}")
    if config._stored is not None:
        # Adapters of languages that the file has and the caller does not want are never read.
        for parameter in table.expand(config._stored, table.base).values():
            if parameter.language is not None:
                for prefixed in (True, False):
                    known.setdefault(spell(parameter, spelling, prefixed), OTHER_LANGUAGE)
    for template, reason in table.ignored:
        for name in table.expand_names(template, config):
            for spelled in (name, _without_prefix(table, name)):
                known[spelled if spelling == "canonical" else spelled.replace(".", "/")] = reason
    return known


def _missing(name: str, why: str | None) -> str:
    return f"missing: {name}" + (f" ({why})" if why else "")


def _describe(head: str, problems: list[str]) -> str:
    shown = problems[:MOST_NAMES_SHOWN]
    more = len(problems) - len(shown)
    lines = [f"the checkpoint does not fit {head}: {len(problems)} problem(s)", *shown]
    if more:
        lines.append(f"... and {more} more")
    return "\n  ".join(lines)
