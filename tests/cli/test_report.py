from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from xlmfam.cli.charts import (
    FAILED_COLOUR,
    Bar,
    BarGroup,
    bar_chart,
    format_number,
    heat_colour,
    line_chart,
    standalone,
)
from xlmfam.cli.report import render_report, write_report
from xlmfam.cli.report_data import (
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
    Score,
    Timing,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Checker(HTMLParser):
    """Balanced tags, unique ids, and everything that would reach outside the file."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.errors: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href", "srcset", "action"}:
                self.outside.append(f"{tag} {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"unexpected </{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.errors == []
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return checker


def heatmap(**changes) -> Heatmap:
    heat = Heatmap(
        rows=["embeddings", "layer 1", "gradients"],
        columns=["PyTorch-TensorFlow", "PyTorch-Flax"],
        values=[[0.0, 1.25e-8], [3.5e-7, None], [4.75e-6, 2.5e-6]],
        tolerance=5e-5,
    )
    return replace(heat, **changes)


def filling(chance=0.75, **changes) -> Filling:
    guesses = [Guess("Garten", chance), Guess("Haus", 0.004)]
    filling = Filling(
        "Der Hund schläft im ____.",
        {"PyTorch": guesses, "Flax": [Guess("Garten", chance + 1e-6), guesses[1]]},
        "German",
        "Garten",
    )
    return replace(filling, **changes)


def addition(**changes) -> Addition:
    added = Addition(
        language="Swahili",
        beginning="the mean of the others",
        learned=4321,
        parameters=86420,
        seconds=6.5,
        before=9.12,
        after=3.456,
        others=1.789,
        untouched=True,
        goal=5.0,
    )
    return replace(added, **changes)


def reading(**changes) -> Reading:
    """Perplexities 4.953 and 9.974 of an unseen text, but for rounding."""
    found = Reading(
        text="unseen text",
        tokens=7654,
        segment=24,
        memory=72,
        remembering={"PyTorch": 1.6, "Flax": 1.6 + 3e-6},
        forgetful={"PyTorch": 2.3, "Flax": 2.3},
        tolerance=5e-5,
    )
    return replace(found, **changes)


def family(**changes) -> FamilySection:
    section = FamilySection(
        name="XGLM",
        parameters=1_234_567,
        description="A small one.",
        loss=LossCurve([6.9, 3.3, 0.4321], vocab_size=1000, goal=1.0),
        heatmap=heatmap(),
        chain=[
            ChainStep("TensorFlow", "tf_model.h5", "abc123", True, 1.5),
            ChainStep("PyTorch", "model.safetensors", "abc123", True),
        ],
        generations=[
            Generation("كلب", {"PyTorch": "كلب ينام", "Flax": "كلب ينام"}, "Arabic"),
        ],
        scores=[Score("Completed", "of what it read", 9, 10, check="remembers")],
        fillings=[filling()],
        addition=addition(),
        readings=[reading()],
        timings=[Timing("train", 87.6), Timing("verify", 12.3)],
    )
    return replace(section, **changes)


def report(*sections: FamilySection, **changes) -> ReportData:
    data = ReportData(
        title="The demo",
        sections=sections or (family(),),
        subtitle="All of it",
        created="today",
        command="xlmfam demo",
        versions={"torch": "2.99.1"},
    )
    return replace(data, **changes)


def test_all_facts_are_on_the_page():
    checker = check(render_report(report()))
    text = " ".join(checker.text)
    facts = [
        *("The demo", "All of it", "xlmfam demo", "today", "torch", "2.99.1"),
        *("XGLM", "1,234,567", "0.432", "6.91", "goal 1.00"),
        *("1.2e-08", "3.5e-07", "4.8e-06", "2.5e-06", "tolerance 5e-05", "–"),
        *("tf_model.h5", "model.safetensors", "abc123", "bit-exact", "1.50 s"),
        *("كلب", " ينام", "Arabic", "87.6 s", "12.3 s", "99.9 seconds in all"),
        *("2 of 2", "1 of 1", "Everything agrees"),
        *("Completed", "9/10", "of what it read"),
        *("German", "Garten ✓", "75%", "Haus", "<1%", "Der Hund schläft im"),
        *("add Swahili", "4,321 of 86,420 values", "6.50 seconds", "5.0%", "9.12 nats"),
        *("3.46 nats", "1.79 nats", "as the mean of the others", "bit for bit what it was"),
        *(
            "9.97 → 4.95",
            "perplexity of unseen text",
            "unseen text, 7,654 tokens",
            "segments of 24",
        ),
        *("72 tokens remembered", "9.97 words", "4.95303", "9.97418", "1.9e-06 apart"),
    ]
    assert [fact for fact in facts if fact not in text] == []
    assert "✗" not in text


def test_page_is_self_contained():
    html = render_report(report())
    checker = check(html)
    assert checker.outside == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(checker.tags)
    assert not re.search(r"https?:|//\w|@import|url\(", html)


def test_every_chart_has_title_and_description():
    html = render_report(report())
    charts = re.findall(r"<svg.*?</svg>", html)
    assert len(charts) == 5  # loss, timings, scale of the heat map, language added, memory
    for chart in charts:
        root = ElementTree.fromstring(chart)
        title, desc = root[0], root[1]
        assert (title.tag, desc.tag) == ("title", "desc")
        assert title.text
        assert desc.text
        assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {desc.attrib['id']}"


def test_everything_is_escaped():
    section = family(
        name=HOSTILE,
        description=HOSTILE,
        heatmap=heatmap(rows=[HOSTILE, "b", "c"], columns=[HOSTILE, "d"]),
        chain=[ChainStep(HOSTILE, HOSTILE, HOSTILE, True)],
        generations=[Generation(HOSTILE, {HOSTILE: HOSTILE + "<b>"}, HOSTILE)],
        timings=[Timing(HOSTILE, 1.0)],
        scores=[Score(HOSTILE, HOSTILE, 1, 1, check=HOSTILE)],
        addition=addition(language=HOSTILE, beginning=HOSTILE),
        readings=[reading(text=HOSTILE, remembering={HOSTILE: 1.0}, forgetful={HOSTILE: 2.0})],
        fillings=[
            Filling(HOSTILE, {HOSTILE: [Guess(HOSTILE, 0.5)], "b": []}, HOSTILE, HOSTILE),
            Filling(HOSTILE, {HOSTILE: [Guess(HOSTILE, 0.5)]}, HOSTILE),
        ],
    )
    strings = dict.fromkeys(("title", "subtitle", "created", "command"), HOSTILE)
    html = render_report(report(section, versions={HOSTILE: HOSTILE}, **strings))
    checker = check(html)
    assert "<script" not in html
    assert "script" not in checker.tags
    assert "b" not in checker.tags
    assert "".join(checker.text).count(HOSTILE) >= 15


def test_dollar_signs_are_only_text():
    assert "$title $5" in render_report(report(title="$title $5"))


def test_right_to_left_text_sets_its_own_direction():
    html = render_report(report())
    assert html.count('<p dir="auto">') == 3
    assert '<bdi class="prompt">كلب</bdi>' in html


@pytest.mark.parametrize("bad", [math.nan, math.inf, 5.1e-5])
def test_a_difference_that_is_no_number_or_too_large_is_a_failure(bad):
    heat = heatmap(values=[[0.0, 1e-8], [bad, None], [1e-6, 2e-6]])
    assert not heat.passed
    (failure,) = heat.failures()
    assert failure[:2] == ("layer 1", "PyTorch-TensorFlow")
    assert format_number(heat.largest) == format_number(bad)
    html = render_report(report(family(heatmap=heat)))
    text = " ".join(check(html).text)
    assert f'<td style="background:{FAILED_COLOUR}' in html
    assert "✗ Something does not hold" in text
    assert "not so: backends agree" in text
    assert "Beyond the tolerance" in text


def test_nan_is_worse_than_any_number():
    assert math.isnan(heatmap(values=[[1.0, math.nan], [2.0, 3.0], [math.inf, 0.0]]).largest)


def test_nothing_compared_is_not_a_pass():
    heat = heatmap(values=[[None, None]] * 3)
    assert not heat.passed
    check(render_report(report(family(heatmap=heat))))
    assert not ReportData("empty", []).passed


def test_heatmap_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="3 rows of 2 numbers"):
        heatmap(values=[[0.0, 0.0]])


ONE_MORE = reading(forgetful={"PyTorch": 2.3, "Flax": 2.3, "TensorFlow": 2.3})
APART = reading(remembering={"PyTorch": 1.6, "Flax": 1.6001})
USELESS = reading(
    remembering={"PyTorch": 2.2, "Flax": 2.2}, forgetful={"PyTorch": 2.2, "Flax": 2.2}
)
UNEQUAL_WORDS = Filling("a", {"x": [Guess("b", 0.5)], "y": [Guess("c", 0.5)]})
UNEQUAL_CHANCES = Filling("a", {"x": [Guess("b", 0.5)], "y": [Guess("b", 0.501)]})


def test_guesses_that_differ_are_shown_for_each_backend():
    equal = render_report(report(family(fillings=[filling()])))
    assert equal.count('<ol class="guesses">') == 1
    html = render_report(report(family(fillings=[UNEQUAL_WORDS])))
    assert html.count('<ol class="guesses">') == 2
    text = " ".join(check(html).text)
    assert "the backends differ" in text
    assert text.index(" x ") < text.index(" b ") < text.index(" y ") < text.index(" c ")


@pytest.mark.parametrize("bad", [{}, {"PyTorch": math.nan, "Flax": 1.0}, {"PyTorch": math.inf}])
def test_a_reading_of_nothing_or_without_end_is_a_failure(bad):
    found = reading(remembering=bad)
    assert not found.equal
    assert not found.helps
    assert not family(readings=[found]).passed
    check(render_report(report(family(readings=[found]))))


def test_readings_that_differ_are_shown():
    text = " ".join(check(render_report(report(family(readings=[APART])))).text)
    assert "losses of unseen text are 6.2e-05 apart" in text
    assert "the backends differ" in text


def test_words_known_by_their_language_alone_stand_apart():
    alone = filling(text="____ ____.", answer="")
    page = render_report(report(family(fillings=[filling(), alone])))
    text = " ".join(check(page).text)
    assert text.index("What it fills in") < text.index("only the language is known")
    assert page.count('class="right"') == 1
    page = render_report(report(family(fillings=[alone])))
    assert "What it fills in" not in page


def test_a_chance_is_as_long_as_it_is_likely():
    page = render_report(report(family(fillings=[filling(0.25)])))
    assert 'style="width:25.0%"' in page
    assert 'style="width:0.4%"' in page


@pytest.mark.parametrize(
    ("changes", "check_name"),
    [
        ({"loss": LossCurve([7.0, 1.5], 1000, goal=1.0)}, "trained"),
        ({"loss": LossCurve([7.0, math.nan], 1000)}, "trained"),
        ({"loss": LossCurve([], 1000)}, "trained"),
        ({"chain": [ChainStep("Flax", "f", "c", False)]}, "conversions are bit-exact"),
        ({"generations": [Generation("a", {"x": "a b", "y": "a c"})]}, "same text everywhere"),
        ({"generations": [Generation("a", {})]}, "same text everywhere"),
        ({"scores": [Score("a", "b", 7, 10, check="remembers")]}, "remembers"),
        ({"scores": [Score("a", "b", 0, 0, check="remembers")]}, "remembers"),
        ({"addition": addition(after=5.1)}, "learns a language afterwards"),
        ({"addition": addition(after=math.nan)}, "learns a language afterwards"),
        ({"addition": addition(untouched=False)}, "leaves the others as they were"),
        ({"readings": [reading(), APART]}, "same perplexity everywhere"),
        ({"readings": [ONE_MORE]}, "same perplexity everywhere"),
        ({"readings": [reading(), USELESS]}, "memory helps"),
        ({"fillings": [Filling("a", {})]}, "same guesses everywhere"),
        ({"fillings": [Filling("a", {"x": [], "y": []})]}, "same guesses everywhere"),
        ({"fillings": [UNEQUAL_WORDS]}, "same guesses everywhere"),
        ({"fillings": [UNEQUAL_CHANCES]}, "same guesses everywhere"),
    ],
)
def test_each_check_can_fail_and_says_so(changes, check_name):
    section = family(**changes)
    assert [name for name, good in section.checks().items() if not good] == [check_name]
    assert not report(section).passed
    text = " ".join(check(render_report(report(section))).text)
    assert f"not so: {check_name}" in text


def test_one_bad_family_fails_the_report():
    bad = family(name="Other", loss=LossCurve([math.inf], 10))
    data = report(family(), bad)
    assert not data.passed
    assert "Something does not hold" in render_report(data)


def test_parts_that_are_missing_are_left_out():
    bare = FamilySection("Bare", 7)
    html = render_report(ReportData("t", [bare]))
    check(html)
    assert "<svg" not in html
    assert "Made with" not in html


def test_write_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "deep" / "report.html"
    for title in ("first", "second"):
        assert write_report(target, report(title=title)) == target
    assert "second" in target.read_text(encoding="utf-8")
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_heat_colours_darken_with_the_difference():
    colours = [heat_colour(v, 1e-4, 1e-8)[0] for v in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)]
    brightness = [sum(bytes.fromhex(c[1:])) for c in colours]
    assert brightness == sorted(brightness, reverse=True)
    assert len(set(brightness)) == 5
    assert heat_colour(1.01e-4, 1e-4, 1e-8)[0] == FAILED_COLOUR
    assert heat_colour(math.nan, 1e-4, 1e-8)[0] == FAILED_COLOUR


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.04321, "0.0432"),
        (5.0, "5.00"),
        (12345, "12,345"),
        (1.5e-7, "1.5e-07"),
        (2.5e7, "2.5e+07"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    "values", [[], [math.nan], [3.0], [0.0, 0.0], [2.0, math.inf, 1.0], list(range(5000, 0, -1))]
)
def test_line_chart_takes_any_series(values):
    svg = line_chart(values, title="t", x_label="x", y_label="y")
    numbers = re.findall(r'points="([^"]*)"', svg)
    ElementTree.fromstring(svg)
    assert "nan" not in svg.replace("finite", "")
    assert all(len(points.split()) <= 402 for points in numbers)
    lost = sum(not math.isfinite(v) for v in values)
    assert (f"{lost} values are not finite" in svg) == bool(lost)


def test_bars_are_as_long_as_their_values():
    bars = [
        Bar("a", 1.0),
        Bar("b", 4.0, 3.0, 5.0, highlight=True),
        Bar("c", math.nan, note="failed"),
    ]
    svg = bar_chart([BarGroup("one", bars, "ms"), BarGroup("two", [Bar("d", 0.0)])], title="t")
    root = ElementTree.fromstring(standalone(svg))
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(r.attrib["width"]) for r in root.iter(f"{space}rect") if "x" in r.attrib]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)
    assert len(widths) == 3  # no bar for the value that is missing
    texts = [t.text for t in root.iter(f"{space}text")]
    assert {"1.00 ms", "4.00 ms", "failed", "0 s"} <= set(texts)
