"""The conversion report as one page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from xlmfam.conversion.report import Conversion, Verification, readable_size

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8884; padding: .2rem .6rem; text-align: left;
  vertical-align: top; }
td.number { text-align: right; } code { font-size: .85em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .bad { background: #b00020; color: white; }
.good { background: #1b7a3d; color: white; }
.verdict { padding: .1rem .5rem; border-radius: .3rem; }
.warning { border-left: .3rem solid #b00020; padding-left: .6rem; }
td.heat { text-align: right; color: #111; }
"""
# Differences of this size and below are as good as none; the colours begin there.
_FAINTEST = 1e-9


def html_page(conversion: Conversion) -> str:
    """Return the page.

    Args:
        conversion: What is told.
    """
    parts = [
        f"<h1>{escape(conversion.head)}: {escape(conversion.source_format)} &rarr; "
        f"{escape(conversion.format)}</h1>",
        *(f'<p class="warning">{escape(text)}</p>' for text in conversion.warnings),
        _facts(conversion),
        *(f"<p>{escape(text)}</p>" for text in conversion.notes),
        _verification(conversion.verification),
        _left_out(conversion.dropped),
        _ties(conversion.ties),
        _tensors(conversion),
        _files(conversion),
        _pairs("Options", conversion.options),
        _pairs("Versions", conversion.versions),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Conversion of {escape(conversion.source)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(filter(None, parts))}\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML already."""
    lines = [
        "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        for row in rows
    ]
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{top}</tr>\n{body}</table></div>'


def _code(value: object) -> str:
    return f"<code>{escape(str(value))}</code>"


def _number(value: object) -> str:
    return f'<td class="number">{escape(str(value))}</td>'


def _facts(conversion: Conversion) -> str:
    dtypes = ", ".join(f"{count} {name}" for name, count in conversion.dtypes.items())
    facts = {
        "source": _code(conversion.source),
        "target": _code(conversion.target),
        "family": escape(conversion.family),
        "tensors": f"{conversion.tensors} ({escape(dtypes)}), {conversion.cast} cast",
        "parameters": f"{conversion.parameters:,}",
        "size": readable_size(conversion.nbytes),
        "checksum": _code(conversion.checksum),
        "time": f"{conversion.seconds:.1f} s",
    }
    if conversion.resumed:
        facts["resumed"] = f"{conversion.resumed} tensors were there from an earlier attempt"
    rows = "\n".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in facts.items())
    return f"<table>{rows}</table>"


def _left_out(dropped: Mapping[str, str]) -> str:
    if not dropped:
        return "<h2>Left out</h2><p>Nothing: every name of the source was carried over.</p>"
    rows = [(_code(name), escape(reason)) for name, reason in dropped.items()]
    return "<h2>Left out</h2>" + _table(("name in the source", "reason"), rows)


def _ties(ties: Mapping[str, str]) -> str:
    if not ties:
        return ""
    rows = [(_code(name), _code(origin)) for name, origin in ties.items()]
    return "<h2>Shared</h2>" + _table(("parameter", "shares the values of"), rows)


def _tensors(conversion: Conversion) -> str:
    rows = [
        (
            _code(t.name),
            _code(t.stored_as) if t.stored_as != t.name else "the same",
            "<br>".join(map(_code, t.written_as)) if [*t.written_as] != [t.name] else "the same",
            escape(", ".join(dict.fromkeys(t.files))),
            " &times; ".join(map(str, t.shape)) or "scalar",
            escape(t.dtype if t.dtype == t.source_dtype else f"{t.source_dtype} → {t.dtype}"),
            "yes" if t.transposed else "",
            _code(t.sha256[:16]),
        )
        for t in conversion.carried
    ]
    head = ("parameter", "in the source", "in the target", "file", "shape", "dtype", "turned")
    return "<h2>Tensors</h2>" + _table((*head, "SHA-256 (first 16 digits)"), rows)


def _files(conversion: Conversion) -> str:
    read = [(_code(f.name), _number(f"{f.size:,}")) for f in conversion.source_files]
    wrote = [(_code(name), _number(f"{size:,}")) for name, size in conversion.files.items()]
    head = ("file", "bytes")
    return f"<h2>Files read</h2>{_table(head, read)}<h2>Files written</h2>{_table(head, wrote)}"


def _pairs(title: str, values: Mapping[str, Any]) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return ""
    rows = [(escape(name), _code(value)) for name, value in given.items()]
    return f"<h2>{title}</h2>" + _table(("", ""), rows)


# ---- what running it has shown ------------------------------------------------------------


def _verification(found: Verification | None) -> str:
    if found is None:
        return ""
    verdict = ("good", "agree") if found.ok else ("bad", "NOT VERIFIED")
    parts = [
        f'<h2>Verification</h2><p><span class="verdict {verdict[0]}">{verdict[1]}</span> '
        f"largest relative difference {found.largest:.2e}, tolerance {found.tolerance:.0e}; "
        f"loss {escape(', '.join(f'{k} {v:.6f}' for k, v in found.losses.items()))}</p>",
        *(
            f'<p class="warning">{escape(name)} could not run it: {escape(reason)}</p>'
            for name, reason in found.failures.items()
        ),
    ]
    if found.comparisons:
        head = ("", *(f"{a} – {b}" for a, b in found.pairs))
        rows = [
            (escape(name), *(_heat(value, found.tolerance) for value in line))
            for name, line in zip(found.fields, found.matrix(), strict=True)
        ]
        parts.append(_table(head, rows))
    return "\n".join(parts)


def _heat(value: float | None, tolerance: float) -> str:
    """A cell that is the redder the larger its difference; beyond the tolerance it is marked."""
    if value is None:
        return "<td></td>"
    if not value <= tolerance:  # NaN too
        return f'<td class="number bad">{value:.1e}</td>'
    span = math.log10(tolerance) - math.log10(_FAINTEST)
    part = (math.log10(max(value, _FAINTEST)) - math.log10(_FAINTEST)) / span if span > 0 else 0.0
    hue = round(130 - 90 * min(max(part, 0.0), 1.0))
    return f'<td class="heat" style="background:hsl({hue} 70% 75%)">{value:.1e}</td>'
