"""The demo's report: one self-contained HTML page that shows what happened and whether it holds.

The data classes of `report_data` say what a report is made of and decide what counts as passed; the
functions below turn them into a page without scripts, external files or network addresses. A report
has one section per model family. All text is escaped: prompts and generated text may contain
anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from xlmfam.cli.charts import (
    CHART_STYLE,
    EXACT_COLOUR,
    MISSING_COLOUR,
    Bar,
    BarGroup,
    bar_chart,
    format_number,
    heat_colour,
    heat_scale,
    line_chart,
)
from xlmfam.cli.report_data import (
    HIDDEN,
    Addition,
    ChainStep,
    FamilySection,
    Filling,
    Generation,
    Guess,
    Heatmap,
    LossCurve,
    Reading,
    ReportData,
    Timing,
    perplexity,
)


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """Write the report to ``path``; the file appears whole or not at all.

    Returns:
        The path that was written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".part")
    draft.write_text(render_report(data), encoding="utf-8")
    draft.replace(target)
    return target


def render_report(data: ReportData) -> str:
    """The report as HTML text."""
    verdict = "Everything agrees" if data.passed else "Something does not hold"
    return _PAGE.substitute(
        title=escape(data.title),
        subtitle=_paragraph(data.subtitle, "lead"),
        style=_STYLE + CHART_STYLE,
        verdict_class="good" if data.passed else "bad",
        verdict=f"{_mark(data.passed)} {verdict}",
        sections="".join(_section(section) for section in data.sections),
        versions=_versions(data.versions),
        footer=_footer(data),
    )


def _section(section: FamilySection) -> str:
    cards = [
        _loss_card(section.loss) if section.loss else "",
        _timings_card(section.timings) if section.timings else "",
        _heat_card(section.heatmap) if section.heatmap else "",
        _chain_card(section.chain) if section.chain else "",
        _addition_card(section.addition) if section.addition else "",
        _reading_card(section.readings) if section.readings else "",
        _generation_card(section.generations) if section.generations else "",
        _filling_cards(section.fillings),
    ]
    return (
        f"<section><h2>{escape(section.name)}</h2>{_paragraph(section.description)}"
        f'{_tiles(section)}<div class="cards">{"".join(cards)}</div></section>'
    )


def _tiles(section: FamilySection) -> str:
    failed = [name for name, good in section.checks().items() if not good]
    note = "not so: " + ", ".join(failed) if failed else f"all {len(section.checks())} checks hold"
    tiles = [
        _tile("Verdict", "passed" if section.passed else "failed", note, section.passed),
        _tile("Parameters", f"{section.parameters:,}", ""),
    ]
    if section.loss:
        start = format_number(section.loss.guessing)
        goal = "" if section.loss.goal is None else f"goal {format_number(section.loss.goal)}, "
        note = f"{goal}{start} when guessing"
        tiles.append(
            _tile("Final loss", format_number(section.loss.final), note, section.loss.passed)
        )
    for score in section.scores:
        tiles.append(_tile(score.label, f"{score.right}/{score.asked}", score.what, score.passed))
    if section.addition:
        tiles.append(_addition_tile(section.addition))
    if section.readings:
        tiles.append(_reading_tile(section.readings[-1]))
    if section.heatmap:
        heat = section.heatmap
        note = f"tolerance {heat.tolerance:.0e}"
        tiles.append(_tile("Largest difference", _difference(heat.largest), note, heat.passed))
    if section.chain:
        tiles.append(
            _count_tile("Bit-exact", [step.exact for step in section.chain], "checkpoints")
        )
    if section.generations:
        tiles.append(_count_tile("Same text", [g.equal for g in section.generations], "prompts"))
    if section.fillings:
        tiles.append(_count_tile("Same guesses", [f.equal for f in section.fillings], "texts"))
    # More than fit into a line stand in two, as even as can be.
    many = "" if len(tiles) < 8 else " many" if len(tiles) == 8 else " most"
    return f'<div class="tiles{many}">{"".join(tiles)}</div>'


def _tile(label: str, value: str, note: str, passed: bool | None = None) -> str:
    state = "" if passed is None else (" good" if passed else " bad")
    mark = "" if passed is None else _mark(passed) + " "
    return (
        f'<div class="tile{state}"><span class="label">{escape(label)}</span>'
        f'<span class="value">{mark}{escape(value)}</span>'
        f'<span class="note">{escape(note)}</span></div>'
    )


def _count_tile(label: str, outcomes: Sequence[bool], what: str) -> str:
    return _tile(label, f"{sum(outcomes)} of {len(outcomes)}", what, all(outcomes))


def _loss_card(loss: LossCurve) -> str:
    chart = line_chart(
        list(loss.losses),
        title="Training loss per step",
        x_label="step",
        y_label="loss (nats per token)",
        baseline=(f"guessing among {loss.vocab_size:,} pieces", loss.guessing),
    )
    return _card("How it learned", f'<div class="figure">{chart}</div>')


def _timings_card(timings: Sequence[Timing]) -> str:
    bars = [Bar(t.label, t.seconds, highlight=True) for t in timings]
    total = sum(t.seconds for t in timings if math.isfinite(t.seconds))
    chart = bar_chart([BarGroup("Time", bars)], title="Seconds per step of the demo")
    note = _paragraph(f"{format_number(total)} seconds in all, on this machine.")
    return _card("Where the time went", f'<div class="figure">{chart}</div>{note}')


def _heat_card(heat: Heatmap) -> str:
    floor = _heat_floor(heat)
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in heat.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row)}</th>'
        + "".join(_heat_cell(value, heat.tolerance, floor) for value in line)
        + "</tr>"
        for row, line in zip(heat.rows, heat.values, strict=True)
    )
    table = (
        '<div class="figure"><table class="heat"><caption>Largest difference between two backends '
        "for the same weights and input, by part of the model</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    scale = f'<div class="figure">{heat_scale(heat.tolerance, floor)}</div>'
    return _card("Do the backends agree?", table + scale + _heat_failures(heat))


def _heat_floor(heat: Heatmap) -> float:
    """The light end of the scale: at the smallest difference seen, well under the tolerance."""
    seen = [v for v in heat.known() if 0 < v <= heat.tolerance]
    lowest = min([*seen, heat.tolerance / 10])
    return 10.0 ** math.floor(math.log10(lowest))


def _heat_cell(value: float | None, tolerance: float, floor: float) -> str:
    if value is None:
        style = f"background:{MISSING_COLOUR};color:#1c2733"
        return f'<td style="{style}" title="not compared">–</td>'
    background, ink = heat_colour(value, tolerance, floor)
    mark = "" if value <= tolerance else _mark(False) + " "
    return f'<td style="background:{background};color:{ink}">{mark}{_difference(value)}</td>'


def _heat_failures(heat: Heatmap) -> str:
    items = "".join(
        f"<li>{escape(row)}, {escape(column)}: {_difference(value)}</li>"
        for row, column, value in heat.failures()
    )
    return f'<p class="bad">Beyond the tolerance:</p><ul class="bad">{items}</ul>' if items else ""


def _difference(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) and value else format_number(value)


def _chain_card(chain: Sequence[ChainStep]) -> str:
    items = "".join(_chain_item(i, step) for i, step in enumerate(chain))
    return _card(
        "Through the frameworks and back",
        f'<ol class="chain">{items}</ol>'
        + _paragraph("The checksum covers the names, shapes and bytes of all weights."),
    )


def _chain_item(position: int, step: ChainStep) -> str:
    said = "the start" if position == 0 else "bit-exact" if step.exact else "differs"
    seconds = "" if step.seconds is None else f" · {format_number(step.seconds)} s"
    return (
        f'<li class="{"good" if step.exact else "bad"}"><strong>{escape(step.framework)}</strong>'
        f'<span class="state">{_mark(step.exact)} {said}{seconds}</span>'
        f"<span>{escape(step.file)}</span><code>{escape(step.checksum)}</code></li>"
    )


def _addition_tile(addition: Addition) -> str:
    note = f"of the values learned {addition.language}, afterwards"
    return _tile("Language added", f"{addition.share:.1%}", note, addition.passed)


def _addition_card(addition: Addition) -> str:
    bars = [
        Bar(f"as {addition.beginning}", addition.before),
        Bar("with its own", addition.after, highlight=True),
        Bar("the other languages", addition.others),
    ]
    chart = bar_chart(
        [BarGroup("Loss", bars, unit="nats")], title=f"Mean loss on {addition.language} and others"
    )
    said = (
        f"The model was trained without {addition.language}. Then it got an adapter for it in "
        f"every layer, and nothing else learned: {addition.learned:,} of "
        f"{addition.parameters:,} values, in {format_number(addition.seconds)} seconds. "
    )
    kept = "Everything else is bit for bit what it was."
    if not addition.untouched:
        kept = "But something else has changed."
    why = "The bars are mean losses on hidden words. Embeddings that never met it hold it back."
    return _card(
        f"What it took to add {addition.language}",
        f'<div class="texts"><div>{_paragraph(said + kept)}{_paragraph(why)}</div>'
        f'<div class="figure">{chart}</div></div>',
        wide=True,
    )


def _reading_tile(reading: Reading) -> str:
    worth = f"{format_number(reading.without)} → {format_number(reading.with_memory)}"
    return _tile("With memory", worth, f"perplexity of {reading.text}", reading.helps)


def _reading_card(readings: Sequence[Reading]) -> str:
    first = readings[0]
    groups = [
        BarGroup(
            f"{reading.text}, {reading.tokens:,} tokens",
            [
                Bar("nothing remembered", reading.without),
                Bar(f"{reading.memory} tokens remembered", reading.with_memory, highlight=True),
            ],
            unit="words",
        )
        for reading in readings
    ]
    chart = bar_chart(groups, title="Perplexity with a memory and without")
    said = (
        f"A text is read in segments of {first.segment} tokens. Without a memory each begins anew; "
        f"with one, what stood in the {first.memory} tokens before is still known. Perplexity is "
        "the number of words that would be as hard to choose from, were they all alike."
    )
    return _card(
        "What its memory is worth",
        f'<div class="texts"><div>{_paragraph(said)}{_reading_table(readings)}</div>'
        f'<div class="figure">{chart}</div></div>',
        wide=True,
    )


def _reading_table(readings: Sequence[Reading]) -> str:
    """The perplexities of every backend, and how far they are apart."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in readings[0].remembering)
    rows = "".join(
        f'<tr><th scope="row">{escape(reading.text)}{escape(how)}</th>'
        + "".join(f"<td>{_exactly(perplexity(loss))}</td>" for loss in losses.values())
        + "</tr>"
        for reading in readings
        for how, losses in (("", reading.remembering), (", no memory", reading.forgetful))
    )
    verdicts = "".join(_reading_verdict(reading) for reading in readings)
    return (
        '<div class="figure"><table class="heat"><caption>Perplexity in each framework</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>{verdicts}"
    )


def _exactly(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else format_number(value)


def _reading_verdict(reading: Reading) -> str:
    said = "the same in all backends" if reading.equal else "the backends differ"
    apart = f"losses of {reading.text} are {_difference(reading.difference)} apart"
    return (
        f'<p class="quiet">{escape(apart)} <span class="badge {_state(reading.equal)}">'
        f"{_mark(reading.equal)} {said}</span></p>"
    )


def _state(passed: bool) -> str:
    return "good" if passed else "bad"


def _generation_card(generations: Sequence[Generation]) -> str:
    return _card("What it writes", "".join(map(_generation, generations)), wide=True)


def _generation(generation: Generation) -> str:
    said = "the same in all backends" if generation.equal else "the backends differ"
    state = "good" if generation.equal else "bad"
    texts = "".join(
        f'<div><span class="label">{escape(backend)}</span>'
        f'<p dir="auto">{_continuation(generation.prompt, text)}</p></div>'
        for backend, text in generation.outputs.items()
    )
    language = f"{escape(generation.language)}: " if generation.language else ""
    return (
        f'<article><h4>{language}<bdi class="prompt">{escape(generation.prompt)}</bdi> '
        f'<span class="badge {state}">{_mark(generation.equal)} {said}</span></h4>'
        f'<div class="texts">{texts}</div></article>'
    )


def _continuation(prompt: str, text: str) -> str:
    """The text with the prompt set apart from what the model added."""
    if prompt and text.startswith(prompt):
        return f'<span class="prompt">{escape(prompt)}</span>{escape(text[len(prompt) :])}'
    return escape(text)


def _filling_cards(fillings: Sequence[Filling]) -> str:
    hidden = [filling for filling in fillings if filling.answer]
    alone = [filling for filling in fillings if not filling.answer]
    note = f"{HIDDEN} is a hidden word; a marked guess is the word that stood there."
    cards = _filling_card("What it fills in", hidden, note) if hidden else ""
    if alone:
        note = "Every word is hidden: the guesses for the first go by the language alone."
        cards += _filling_card("How it begins when only the language is known", alone, note)
    return cards


def _filling_card(title: str, fillings: Sequence[Filling], note: str) -> str:
    articles = "".join(map(_filling, fillings))
    body = f'{_paragraph(note)}<div class="fillings">{articles}</div>'
    return _card(title, body, wide=True)


def _filling(filling: Filling) -> str:
    said = "the same in all backends" if filling.equal else "the backends differ"
    state = "good" if filling.equal else "bad"
    # What is the same is shown once; what differs is shown for each.
    shown = dict(list(filling.guesses.items())[:1]) if filling.equal else filling.guesses
    lists = "".join(
        ("" if filling.equal else f'<span class="label">{escape(backend)}</span>')
        + _guesses(guesses, filling.answer)
        for backend, guesses in shown.items()
    )
    text = escape(filling.text).replace(HIDDEN, f'<span class="hidden">{HIDDEN}</span>')
    language = f"{escape(filling.language)} " if filling.language else ""
    return (
        f'<article><h4>{language}<span class="badge {state}">{_mark(filling.equal)} {said}</span>'
        f'</h4><p dir="auto">{text}</p>{lists}</article>'
    )


def _guesses(guesses: Sequence[Guess], answer: str) -> str:
    rows = "".join(_guess(guess, guess.word == answer) for guess in guesses)
    return f'<ol class="guesses">{rows}</ol>'


def _guess(guess: Guess, right: bool) -> str:
    state, mark = (' class="right"', f" {_mark(True)}") if right else ("", "")
    width = f"{100 * min(1.0, max(0.0, guess.chance)):.1f}"
    return (
        f"<li{state}>"
        f"<bdi>{escape(guess.word)}{mark}</bdi>"
        f'<span class="track"><span style="width:{width}%"></span></span>'
        f"<span>{_share(guess.chance)}</span></li>"
    )


def _share(chance: float) -> str:
    return "&lt;1%" if 0 < chance < 0.005 else f"{chance:.0%}"


def _versions(versions: Mapping[str, str]) -> str:
    if not versions:
        return ""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(version)}</dd></div>"
        for name, version in versions.items()
    )
    return f'<section><h2>Made with</h2><dl class="versions">{rows}</dl></section>'


def _footer(data: ReportData) -> str:
    command = f"Made by <code>{escape(data.command)}</code>" if data.command else "Made by xlmfam"
    return f"<p>{command}{', ' + escape(data.created) if data.created else ''}.</p>"


def _card(title: str, body: str, wide: bool = False) -> str:
    return f'<div class="card{" wide" if wide else ""}"><h3>{escape(title)}</h3>{body}</div>'


def _paragraph(text: str, css: str = "quiet") -> str:
    return f'<p class="{css}">{escape(text)}</p>' if text else ""


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --muted: #5b6875; --paper: #f3f5f8;
  --card: #ffffff; --edge: #d9dfe6; --good: #0b5cad; --bad: #b34700; --soft: #e8f1fb;
  --softbad: #fdeee3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8edf2; --muted: #a3b0bd; --paper: #10171e; --card: #18212b; --edge: #34404c;
    --good: #6db3f2; --bad: #ff9d5c; --soft: #16304a; --softbad: #43260f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem 1rem 3rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.4rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1.05rem; margin: 0 0 .7rem; }
h4 { font-size: 1rem; font-weight: 600; margin: 0 0 .4rem; }
.lead, .quiet, .note, .label { color: var(--muted); }
.lead { font-size: 1.1rem; margin: 0 0 1rem; }
.quiet { margin: .5rem 0; }
.good { --state: var(--good); --statesoft: var(--soft); }
.bad { --state: var(--bad); --statesoft: var(--softbad); }
p.bad, ul.bad { color: var(--bad); }
.verdict { display: inline-block; margin: .2rem 0; padding: .5rem 1.1rem; border-radius: 2rem;
  background: var(--statesoft); color: var(--state); font-weight: 700; font-size: 1.15rem; }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  margin: 1rem 0; }
.tiles.many { grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); }
.tiles.most { grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px; }
.tile { padding: .8rem 1rem; border-top: 4px solid var(--state, var(--edge)); }
.tile span { display: block; }
.label, .note { font-size: .85rem; }
.value { font-size: 1.45rem; font-weight: 700; line-height: 1.35; color: var(--state, inherit); }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.card { padding: 1.1rem; min-width: 0; }
.wide { grid-column: 1 / -1; }
.figure { overflow-x: auto; }
.figure svg { display: block; width: 100%; max-width: 680px; min-width: 300px; height: auto; }
table.heat { border-collapse: separate; border-spacing: 3px; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; margin-bottom: .6rem; }
.heat caption { text-align: start; color: var(--muted); padding: 0 0 .5rem 3px; }
.heat th { font-weight: 500; text-align: start; padding: .3rem .5rem; white-space: nowrap; }
.heat thead th { text-align: center; white-space: normal; overflow-wrap: normal; }
.heat tbody td { text-align: center; padding: .4rem .3rem; border-radius: 5px;
  white-space: nowrap; }
.chain { list-style: none; margin: 0; padding: 0; }
.chain li { position: relative; display: grid; gap: 0 .8rem; grid-template-columns: 2fr 3fr;
  padding: .55rem .8rem; margin-bottom: 1.5rem; border-radius: 8px; background: var(--statesoft);
  border-inline-start: 4px solid var(--state); }
.chain li:last-child { margin-bottom: .6rem; }
.chain li:not(:last-child)::after { content: "↓"; position: absolute; left: 1rem; bottom: -1.5rem;
  color: var(--muted); }
.chain .state { color: var(--state); font-weight: 600; }
code { font: .85rem ui-monospace, monospace; overflow-wrap: anywhere; }
.chain code { color: var(--muted); }
article { border-top: 1px solid var(--edge); padding: .9rem 0 .3rem; }
.badge { display: inline-block; font-size: .8rem; font-weight: 600; padding: .1rem .6rem;
  border-radius: 1rem; margin-inline-start: .4rem; background: var(--statesoft);
  color: var(--state); }
.prompt { color: var(--good); font-weight: 600; }
.texts { display: grid; gap: .3rem 1rem;
  grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.texts p { margin: .1rem 0 .5rem; white-space: pre-wrap; }
.fillings { display: grid; gap: 0 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.fillings p { margin: 0 0 .4rem; }
.hidden { color: var(--good); font-weight: 700; }
.guesses { list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .9rem; }
.guesses li { display: grid; grid-template-columns: 9em 1fr 3em; gap: .6rem; align-items: center; }
.guesses li > span:last-child { text-align: end; font-variant-numeric: tabular-nums;
  color: var(--muted); }
.guesses .right bdi { font-weight: 700; color: var(--good); }
.track { display: block; height: .6rem; border-radius: 3px; background: var(--edge);
  overflow: hidden; }
.track span { display: block; height: 100%; background: var(--muted); }
.right .track span { background: var(--good); }
.versions { display: grid; gap: .2rem 1.5rem; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.versions div { display: flex; justify-content: space-between;
  border-bottom: 1px solid var(--edge); }
.versions dd { margin: 0; font-variant-numeric: tabular-nums; color: var(--muted); }
footer { margin-top: 2rem; color: var(--muted); font-size: .9rem; }
@media (max-width: 560px) {
  .chain li { grid-template-columns: 1fr; }
  table.heat { font-size: .78rem; border-spacing: 2px; }
  .heat th, .heat tbody td { padding: .35rem .2rem; }
  .tiles, .tiles.many, .tiles.most { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .value { font-size: 1.25rem; }
}
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""

# EXACT_COLOUR is almost the card's colour by light: a thin line keeps such cells visible.
_STYLE += f'.heat td[style*="{EXACT_COLOUR}"] {{ box-shadow: inset 0 0 0 1px #c5ced8; }}\n'

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$subtitle
<p class="verdict $verdict_class">$verdict</p>
</header>
<main>
$sections
$versions
</main>
<footer>$footer</footer>
</body>
</html>
""")
