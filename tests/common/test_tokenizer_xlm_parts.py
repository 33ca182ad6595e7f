"""The parts of XLM's tokenizer by themselves: Moses, byte pairs, segmenters, original files."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
import types
import unicodedata
from pathlib import Path

import pytest
import sacremoses
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xlmfam.common.errors import CheckpointError, MissingPackageError
from xlmfam.common.tokenizers import XLMTokenizer
from xlmfam.common.tokenizers import xlm_segmenters as segmenters
from xlmfam.common.tokenizers.xlm_bpe import BytePairs, merge_long, merge_short, read_merges
from xlmfam.common.tokenizers.xlm_moses import moses_words, rewrite_around
from xlmfam.common.tokenizers.xlm_originals import (
    SPECIAL_WORDS,
    convert_original_files,
    read_original_words,
    vocabulary_of_words,
)
from xlmfam.common.tokenizers.xlm_text import (
    lower_each,
    lower_without_accents,
    normalize_punctuation,
    remove_non_printing,
    replace_unicode_punctuation,
    strip_romanian,
)

DATA = Path(__file__).resolve().parents[1] / "data" / "tokenizers" / "xlm"
CORPUS = json.loads((DATA / "corpus.json").read_text(encoding="utf-8"))
RANKS = read_merges(DATA / "merges.txt")

LANGS = ["en", "fr", "it", "de", "es", "cs", "ro", "ru", "el", "ko", "ca", "fi", "xx"]
MOSES = {lang: sacremoses.MosesTokenizer(lang=lang) for lang in LANGS}
NORMALIZERS = {lang: sacremoses.MosesPunctNormalizer(lang=lang) for lang in LANGS}
WORDS = sorted({word for lines in CORPUS.values() for line in lines for word in line.split()})
WORDS += ["Mr.", "No.", "5", "etc.", "pp.", "U.S.A.", "DOTMULTI", "DOTDOTMULTI.", "...", ".'", "''"]
PUNCTUATION = st.sampled_from(
    [
        *" \t'\",.;:!?()[]`´‘’“”«»—–…%sStT5aé。：（）５٢가三ー-/<>@#$&*_😀",
        "  ",
        "\xa0",
        "\u3000",
        "..",
        "nº",
    ]
)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(PUNCTUATION, max_size=25).map("".join),
    st.lists(st.one_of(st.sampled_from(WORDS), PUNCTUATION), max_size=10).map(" ".join),
    st.lists(st.one_of(st.sampled_from(WORDS), PUNCTUATION), max_size=10).map("".join),
)


# -- Moses -----------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(TEXT, st.sampled_from(LANGS))
@example("a'b'c''d '", "en")
@example("'", "fr")
@example("x .'", "de")
@example(",.'", "en")
@example("1,2,a,3,,", "en")
@example("\x01 a\x02\x1cb", "en")
@example("DOTMULTI a.. DOTMULTI. ....", "ru")
def test_words_are_those_of_sacremoses(text, lang):
    assert moses_words(lang).split(text) == MOSES[lang].tokenize(text, escape=False)


def test_words_of_text_with_many_other_characters():
    text = " ".join(chr(code) + "a" for code in range(0x2190, 0x2300)) + "x"
    assert moses_words("en").split(text) == MOSES["en"].tokenize(text, escape=False)


@pytest.mark.parametrize("lang", LANGS)
def test_stops_of_abbreviations(lang):
    prefixes = sacremoses.corpus.NonbreakingPrefixes().words(lang)
    for prefix in [prefix.split()[0] for prefix in prefixes]:
        for after in ("Xa", "xa", "5", "٢", "", "."):
            text = f"Xa {prefix}. {after}"
            assert moses_words(lang).split(text) == MOSES[lang].tokenize(text, escape=False), text


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab' '"), max_size=15))
def test_rewriting_places_is_rewriting_the_whole(text):
    rules = [
        (re.compile(r"([^ab])'([^ab])"), r"\1 ' \2"),
        (re.compile(r"([ab])'([ab])"), r"\1 '\2"),
        (re.compile(r"([^ab])'(b)"), r"\1' \2"),
    ]

    def rewrite(place):
        for expression, replacement in rules:
            place = expression.sub(replacement, place)
        return place

    assert rewrite_around(text, "'", rewrite) == rewrite(text)


@settings(max_examples=500, deadline=None)
@given(TEXT, st.sampled_from(LANGS))
@example("``a'' ( b ) . 5 % : ;", "en")
@example("1\xa0000 \xa0% nº\xa05 \xa0? ,\xa0x", "cs")
def test_punctuation_is_that_of_sacremoses(text, lang):
    assert normalize_punctuation(text, lang) == NORMALIZERS[lang].normalize(text)
    assert replace_unicode_punctuation(text) == NORMALIZERS[lang].replace_unicode_punct(text)


# -- characters ------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_steps_on_characters(text):
    kept = [c for c in text if unicodedata.category(c)[0] != "C"]
    assert remove_non_printing(text) == "".join(kept)
    assert len(remove_non_printing(text, " ")) == len(text)
    assert lower_each(text) == "".join([c.lower() for c in text])
    # Words may be taken one by one, as spaces keep them apart in every step.
    line = f"{text} ΑΣ {text}"
    one_by_one = " ".join([lower_without_accents(word) for word in line.split(" ")])
    assert lower_without_accents(line) == one_by_one


def test_lower_without_accents():
    assert lower_without_accents("ÀÉÎõü") == "aeiou"
    assert lower_without_accents("İSTANBUL ΟΔΟΣ") == "istanbul οδος"
    assert lower_without_accents("\u0301") == ""
    assert strip_romanian("ȘșŞş ȚțŢţ ĂăÂâÎî é") == "SsSs TtTt AaAaIi é"


# -- byte pairs ------------------------------------------------------------------------------


def merge_slowly(symbols, ranks):
    """The definition: the best pair, everywhere from the left, until there is none."""
    while True:
        pairs = [pair for pair in itertools.pairwise(symbols) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=ranks.__getitem__)
        merged, place = [], 0
        while place < len(symbols):
            if tuple(symbols[place : place + 2]) == best:
                merged.append("".join(best))
                place += 2
            else:
                merged.append(symbols[place])
                place += 1
        symbols = merged


PIECES = st.text("ab", min_size=1, max_size=4)
# Any ranks, and not only those that training could give.
ODD_RANKS = st.lists(st.tuples(PIECES, PIECES), max_size=14).map(
    lambda pairs: {pair: rank for rank, pair in enumerate(pairs)}
)


@settings(max_examples=400, deadline=None)
@given(st.text("ab", min_size=1, max_size=40), ODD_RANKS)
@example("aaaaa", {("a", "a"): 0, ("aa", "a"): 1})
@example("abab", {("a", "b"): 1, ("ab", "a"): 0})
def test_merging_is_by_definition(word, ranks):
    expected = merge_slowly([*word], ranks)
    assert merge_short([*word], ranks) == expected
    assert merge_long([*word], ranks) == expected


def test_merging_real_words():
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        expected = merge_slowly(symbols, RANKS)
        assert merge_long([*symbols], RANKS) == expected == [*BytePairs(RANKS).split(word)]


def test_long_words_take_no_long_time():
    pairs = BytePairs(RANKS)
    start = time.perf_counter()
    pieces = pairs.split("theriver" * 12_500)
    assert "".join(pieces) == "theriver" * 12_500 + "</w>"
    assert time.perf_counter() - start < 10  # the square of it would be minutes
    assert not pairs._found


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("xlmfam.common.tokenizers.xlm_bpe._CACHE_SIZE", 4)
    monkeypatch.setattr("xlmfam.common.tokenizers.xlm._CACHE_SIZE", 4)
    tokenizer = XLMTokenizer(DATA / "vocab.json", DATA / "merges.txt")
    for word in WORDS[:40]:
        tokenizer(word)
    assert len(tokenizer.byte_pairs._found) <= 4
    assert len(tokenizer._word_ids[True]) < 12


def test_merges_with_counts_or_without(tmp_path):
    (tmp_path / "merges.txt").write_text("a b 7\nab c\n\nodd\nb c 1")
    ranks = read_merges(tmp_path / "merges.txt")
    assert sorted(ranks, key=ranks.get) == [("a", "b"), ("ab", "c"), ("b", "c")]
    with pytest.raises(CheckpointError, match=r"no\.txt cannot be read"):
        read_merges(tmp_path / "no.txt")


# -- segmenters ------------------------------------------------------------------------------


def make(**kwargs):
    return XLMTokenizer(DATA / "vocab.json", DATA / "merges.txt", **kwargs)


@pytest.mark.parametrize(
    ("lang", "module", "package"),
    [
        ("zh", "jieba", "jieba"),
        ("th", "pythainlp.tokenize", "pythainlp"),
        ("ja", "Mykytea", "kytea"),
    ],
)
def test_missing_package(monkeypatch, lang, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"pip install {package}.*xlmfam.{lang}"):
        make()("x", lang=lang)
    assert make()("x", lang="en")["input_ids"]  # and nobody else needs it


@pytest.fixture
def fakes(monkeypatch):
    """Segmenters that part every second character, and say what they were given."""
    given_texts = []

    def pairs(text):
        given_texts.append(text)
        return [text[place : place + 2] for place in range(0, len(text), 2)]

    class Kytea:
        def __init__(self, options):
            given_texts.append(options)
            self.getWS = pairs

    for name, values in (
        ("jieba", {"cut": pairs}),
        ("pythainlp.tokenize", {"word_tokenize": pairs}),
        ("Mykytea", {"Mykytea": Kytea}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    segmenters._kytea.cache_clear()
    yield given_texts
    segmenters._kytea.cache_clear()


def test_chinese_is_segmented_before_it_is_cleaned(fakes):
    tokens = make(do_lowercase_and_remove_accent=False).tokenize("中文！Ａ\x01", lang="zh")
    assert fakes == ["中文！Ａ\x01"]
    assert "".join(tokens) == "中文</w>!Ａ</w>"


@pytest.mark.parametrize("lang", ["th", "ja"])
def test_thai_and_japanese_are_segmented_after(fakes, lang, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    tokenizer = make(do_lowercase_and_remove_accent=False, kytea_model=tmp_path / "model.bin")
    tokens = tokenizer.tokenize("ab！\x01  é ", lang=lang)
    assert fakes[-1] == "ab! é"
    assert "".join(tokens) == "ab</w>!</w>é</w>"
    assert tokens.count("") == 1  # what the reference makes of the space beside the mark
    if lang == "ja":
        assert fakes[0] == f"-model {tmp_path / 'model.bin'}"


def test_kytea_model(fakes, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(segmenters.KYTEA_VARIABLE, raising=False)
    with pytest.raises(CheckpointError, match=f"{segmenters.KYTEA_VARIABLE}=PATH.*local/share"):
        make()("x", lang="ja")
    usual = tmp_path / "local/share/kytea/model.bin"
    usual.parent.mkdir(parents=True)
    usual.write_bytes(b"")
    assert segmenters.kytea_model_path() == str(usual)
    monkeypatch.setenv(segmenters.KYTEA_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"XLMFAM_KYTEA_MODEL='.*nowhere' is no file"):
        make()("x", lang="ja")
    monkeypatch.setenv(segmenters.KYTEA_VARIABLE, str(usual))
    assert segmenters.kytea_model_path() == str(usual)
    with pytest.raises(CheckpointError, match=r"kytea_model='.*other' is no file"):
        make(kytea_model=tmp_path / "other")("x", lang="ja")
    (tmp_path / "with space").mkdir()
    spaced = tmp_path / "with space" / "model.bin"
    spaced.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no path with spaces"):
        make(kytea_model=spaced)("x", lang="ja")
    monkeypatch.chdir(spaced.parent)
    assert make(kytea_model=spaced)("x", lang="ja")["input_ids"]
    assert fakes[-2] == "-model model.bin"


def test_kytea_cannot_read_its_model(fakes, monkeypatch, tmp_path):
    def fail(options):
        raise RuntimeError("bad magic")

    monkeypatch.setattr(sys.modules["Mykytea"], "Mykytea", fail)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"KyTea cannot read .*bad magic"):
        make(kytea_model=tmp_path / "model.bin")("x", lang="ja")


def test_nothing_is_imported_early():
    code = (
        "import sys; from xlmfam.common.tokenizers import XLMTokenizer; "
        "names = {'jieba', 'pythainlp', 'Mykytea', 'sacremoses', 'torch'}; "
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- original files --------------------------------------------------------------------------


def test_original_files(tmp_path):
    (tmp_path / "vocab").write_text("the 90\nri@@ 50\nver 40\nno count\n\nx y 3\nver 2\n@@ 1\n")
    (tmp_path / "codes").write_text("t h 90\nth e</w> 80\nr i 7\nv e 5\nve r</w> 4\n")
    assert read_original_words(tmp_path / "vocab") == [*SPECIAL_WORDS, "the", "ri@@", "ver", "@@"]
    paths = convert_original_files(tmp_path / "vocab", tmp_path / "codes", tmp_path / "out")
    assert [Path(path).name for path in paths] == ["vocab.json", "merges.txt"]
    tokenizer = XLMTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab()["@@</w>"] == 17
    assert tokenizer("The river")["input_ids"] == [0, 14, 15, 16, 1]
    assert tokenizer.tokenize("the river") == ["the</w>", "ri", "ver</w>"]


def test_original_files_that_are_wrong(tmp_path):
    with pytest.raises(CheckpointError, match="word 15, 'a', is the token 'a</w>'"):
        vocabulary_of_words([*SPECIAL_WORDS, "a", "a"])
    (tmp_path / "vocab").write_text("no\ncounts\n")
    with pytest.raises(CheckpointError, match="no line with a word and its count"):
        read_original_words(tmp_path / "vocab")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        read_original_words(tmp_path / "nowhere")
