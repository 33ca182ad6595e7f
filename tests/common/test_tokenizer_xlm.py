"""XLM's tokenizer against what transformers 4.37.2 does."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.tokenizers import AddedToken, AutoTokenizer, XLMTokenizer

DATA = Path(__file__).resolve().parents[1] / "data" / "tokenizers" / "xlm"
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
TEXTS = GOLDEN["texts"]
PACKAGES = {"zh": "jieba", "th": "pythainlp", "ja": "Mykytea"}
ABSENT = {lang for lang, name in PACKAGES.items() if importlib.util.find_spec(name) is None}


def make(**kwargs):
    kwargs = {"kytea_model": DATA / "kytea.bin", **kwargs}
    return XLMTokenizer(DATA / "vocab.json", DATA / "merges.txt", **kwargs)


LOWER = make()
CASED = make(do_lowercase_and_remove_accent=False)
CASES = {"lower": LOWER, "cased": CASED}


def lists(value):
    return json.loads(json.dumps(value))


@pytest.fixture
def tokenizer():
    return copy.deepcopy(LOWER)


# -- goldens ---------------------------------------------------------------------------------


def test_goldens_cover_what_they_should():
    kinds = {kind: {row["lang"] for row in TEXTS if row["kind"] == kind} for kind in KINDS}
    wanted = {"en", "fr", "de", "es", "ru", "ar", "hi", "tr", "vi", "ro", "el", "zh", "th", "ja"}
    assert wanted <= kinds["ordinary"]
    assert wanted <= kinds["noisy"]
    assert len(TEXTS) > 400
    # Case and language have to make a difference, or the rows say little.
    assert sum("cased" in row for row in TEXTS) > 200
    assert sum("called" in row for row in TEXTS) > 10
    known = [i for row in TEXTS if row["kind"] == "ordinary" for i in row["lower"]]
    assert 0 < known.count(3) < len(known) / 10


KINDS = ("ordinary", "noisy", "adversarial")


@pytest.mark.parametrize("lang", sorted({row["lang"] for row in TEXTS}))
@pytest.mark.parametrize("case", CASES)
def test_ids(case, lang):
    if lang in ABSENT:
        pytest.skip(f"{PACKAGES[lang]} is not installed")
    tokenizer = CASES[case]
    for row in TEXTS:
        if row["lang"] != lang:
            continue
        expected = row.get(case, row["lower"])
        assert tokenizer(row["text"], lang=lang)["input_ids"] == expected, row["text"]
        tokens = tokenizer.tokenize(row["text"], lang=lang)
        assert tokenizer.convert_tokens_to_ids(tokens) == expected[1:-1], row["text"]
        if case == "lower" and row["kind"] == "ordinary":
            assert tokens == row["tokens"]
            assert tokenizer.decode(expected) == row["decoded"]
            assert tokenizer.decode(expected, skip_special_tokens=True) == row["skipped"]


@pytest.mark.parametrize("number", range(len(GOLDEN["calls"])))
def test_call(number):
    call = GOLDEN["calls"][number]
    kwargs = dict(call.get("kwargs", {}))
    if "method" not in call:
        kwargs["return_token_type_ids"] = True  # row 2
    result = getattr(LOWER, call.get("method", "__call__"))(*call["args"], **kwargs)
    assert lists(dict(result) if hasattr(result, "keys") else result) == call["result"]


def test_reference_reads_what_we_write():
    """The golden script tried it, with plain folders and with added tokens."""
    assert GOLDEN["own files"] == {"lower": [], "cased": [], "added": []}


# -- where the reference is wrong ------------------------------------------------------------


def public_folder(folder, **settings):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(DATA / name, folder)
    config = {"model_type": "xlm", "lang2id": {"en": 0, "fr": 1}}
    config["id2lang"] = {"0": "en", "1": "fr"}
    (folder / "config.json").write_text(json.dumps(config))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_token_types_only_when_asked_for(tmp_path):
    """Row 2: the model would add word embeddings 0 and 1 for them."""
    assert "token_type_ids" in GOLDEN["documented"]["columns"]
    tokenizer = XLMTokenizer.from_pretrained(public_folder(tmp_path))
    assert list(tokenizer("the river")) == ["input_ids", "attention_mask"]
    asked = tokenizer("the", "mill", return_token_type_ids=True)
    assert asked["token_type_ids"] == [0, 0, 0] + [1] * (len(asked["input_ids"]) - 3)


@pytest.mark.parametrize("settings", [{}, {"lang2id": None, "id2lang": None}])
def test_languages_of_the_config(tmp_path, settings):
    """Row 6: the reference has None, on a folder as the public ones are."""
    assert GOLDEN["documented"]["lang2id"] is GOLDEN["documented"]["id2lang"] is None
    tokenizer = XLMTokenizer.from_pretrained(public_folder(tmp_path, **settings))
    assert tokenizer.lang2id == {"en": 0, "fr": 1}
    assert tokenizer.id2lang == {0: "en", 1: "fr"}


def test_languages_of_the_tokenizer_come_first(tmp_path):
    folder = public_folder(tmp_path, lang2id={"de": 0})
    assert XLMTokenizer.from_pretrained(folder).lang2id == {"de": 0}
    assert XLMTokenizer.from_pretrained(folder, id2lang={0: "de"}).id2lang == {0: "de"}
    own = XLMTokenizer.from_pretrained(public_folder(tmp_path), lang2id={"ro": 3}, id2lang=None)
    assert (own.lang2id, own.id2lang) == ({"ro": 3}, {3: "ro"})


def test_lang_counts_in_a_call():
    """The reference takes ``lang`` in a call, and returns what it returns for English."""
    rows = [row for row in TEXTS if "called" in row and row["lang"] not in ABSENT]
    assert {"fr", "it"} <= {row["lang"] for row in rows}
    for row in rows:
        assert LOWER(row["text"])["input_ids"] == row["called"]
        assert LOWER(row["text"], lang=row["lang"])["input_ids"] == row["lower"] != row["called"]


def test_original_steps(tmp_path):
    """Off, ids are those of transformers; on, text is prepared as XLM's own scripts did."""
    other = make(original_steps=True)
    # transformers lowers first, and then Moses takes each stop for one inside a sentence.
    text = "The old mill. The river"
    plain = "".join(LOWER.tokenize(text)).split("</w>")
    assert plain[:4] == ["the", "old", "mill.", "the"]
    original = "".join(other.tokenize(text)).split("</w>")
    assert original[:5] == ["the", "old", "mill", ".", "the"]
    # Control characters join what they stood between, or part it.
    for control in "\n\t\r\x00\u200b":
        joined, parted = LOWER.tokenize("the river"), LOWER.tokenize("theriver")
        assert LOWER.tokenize(f"the{control}river") == parted
        assert other.tokenize(f"the{control}river") == joined
    other.save_pretrained(tmp_path)
    assert XLMTokenizer.from_pretrained(tmp_path).original_steps
    assert "original_steps" not in LOWER._config_for_file()


@pytest.mark.parametrize("lang", ["th", "ja"])
def test_original_steps_have_no_blank_words(lang):
    if lang in ABSENT:
        pytest.skip(f"{PACKAGES[lang]} is not installed")
    text = {"th": "ราคา บาท", "ja": "川 川"}[lang]
    assert CASED.tokenize(text, lang=lang).count("") == 1
    assert "" not in make(do_lowercase_and_remove_accent=False, original_steps=True).tokenize(
        text, lang=lang
    )


# -- languages -------------------------------------------------------------------------------


def test_lang_per_sample():
    texts = ["l'été où", "the dog's", "Der Hund."]
    langs = ["fr", "en", "de"]
    batch = LOWER(texts, lang=langs, padding=True)
    alone = [LOWER(t, lang=lang)["input_ids"] for t, lang in zip(texts, langs, strict=True)]
    assert [[i for i in row if i != 2] for row in batch["input_ids"]] == alone
    assert {len(row) for row in batch["input_ids"]} == {max(map(len, alone))}
    assert LOWER(texts, lang=tuple(langs))["input_ids"] == alone
    assert LOWER(texts, lang=["en"] * 3)["input_ids"] == LOWER(texts)["input_ids"]
    assert LOWER([], lang=[])["input_ids"] == []
    # Two texts, or a list of two words, are no pair.
    assert LOWER(texts[:2], lang=langs[:2])["input_ids"] == alone[:2]
    words = LOWER([["l'été", "où"]], lang=["fr"], is_split_into_words=True)["input_ids"]
    assert words == alone[:1]
    assert LOWER([["the", "dog's"], [""]], lang=["en", "fr"], is_split_into_words=True)[
        "input_ids"
    ] == [alone[1], [0, 1]]


def test_lang_of_pairs():
    french, english = LOWER("l'été", lang="fr")["input_ids"], LOWER("dog's")["input_ids"]
    pair = french + english[1:]
    assert LOWER("l'été", "dog's", lang=("fr", "en"))["input_ids"] == pair
    one_list = LOWER([("l'été", "dog's")] * 2, lang=[("fr", "en"), "fr"])["input_ids"]
    assert one_list[0] == pair
    assert one_list[1] == LOWER("l'été", "dog's", lang="fr")["input_ids"] != pair
    assert LOWER("l'été", lang=["fr"])["input_ids"] == french
    assert LOWER.tokenize("l'été", lang="fr") == LOWER.convert_ids_to_tokens(french[1:-1])


@pytest.mark.parametrize(
    ("texts", "lang", "said"),
    [
        (["a", "b"], ["en"], "1 languages, and there are 2 texts"),
        (["a", "b"], {"en"}, "list with one for each text"),
        (["a"], [3], "lang is 3"),
        ("a", 3, "lang is 3"),
        ("a", ["en", "fr"], "for one text"),
        (["a"], [("en", "fr")], "for one text"),
        ([("a", "b")], [("en", "fr", "de")], "two texts of a pair"),
    ],
)
def test_wrong_lang(texts, lang, said):
    with pytest.raises(XlmfamError, match=said):
        LOWER(texts, lang=lang)


def test_unknown_language_names_the_known():
    tokenizer = make(lang2id={"en": 0, "fr": 1})
    with pytest.raises(XlmfamError, match="'de'; the languages of this model are en, fr"):
        tokenizer("Hund", lang="de")
    with pytest.raises(XlmfamError, match="'de'"):
        tokenizer(["Hund", "dog"], lang=["de", "en"])
    assert tokenizer("l'été", lang="fr") == LOWER("l'été", lang="fr")
    assert tokenizer("Hund", lang=None) == tokenizer("Hund")
    assert make(lang2id={"de": 0})("Hund")["input_ids"]  # the default is no choice of the caller


def test_lang2id_and_id2lang():
    assert (LOWER.lang2id, LOWER.id2lang) == (None, None)
    assert make(id2lang={"0": "en", "7": "de"}).lang2id == {"en": 0, "de": 7}
    with pytest.raises(XlmfamError, match="do not say the same"):
        make(lang2id={"en": 0}, id2lang={0: "de"})
    with pytest.raises(XlmfamError, match="may be mappings"):
        make(lang2id=["en"])
    with pytest.raises(XlmfamError, match="may be mappings"):
        make(id2lang={"en": 0})


# -- the object ------------------------------------------------------------------------------


def test_special_tokens(tokenizer):
    assert tokenizer.special_tokens_map == GOLDEN["special_tokens_map"]
    ids = [tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    assert [*ids, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2, 3, 1]
    assert tokenizer.mask_token_id == 5
    assert tokenizer.additional_special_tokens_ids == [*range(4, 14)]
    assert tokenizer.vocab_size == len(tokenizer) == len(tokenizer.get_vocab())
    assert tokenizer.do_lower_case is tokenizer.do_lowercase_and_remove_accent is True
    assert not tokenizer.is_fast
    with pytest.raises(XlmfamError, match="already_has_special_tokens"):
        tokenizer.get_special_tokens_mask([0], [1], already_has_special_tokens=True)


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "folder", "auto"])
def test_copies_are_equal(tokenizer, way, tmp_path):
    tokenizer.add_tokens(["<new>", AddedToken("<left>", lstrip=True)])
    tokenizer.lang2id, tokenizer.id2lang = {"en": 0, "fr": 4}, {0: "en", 4: "fr"}
    tokenizer("the river")
    if way == "pickle":
        other = pickle.loads(pickle.dumps(tokenizer))
    elif way == "deepcopy":
        other = copy.deepcopy(tokenizer)
    else:
        names = {Path(path).name for path in tokenizer.save_pretrained(tmp_path)}
        assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= names
        reader = AutoTokenizer if way == "auto" else XLMTokenizer
        other = reader.from_pretrained(tmp_path)
    assert type(other) is XLMTokenizer
    assert other.lang2id == tokenizer.lang2id
    assert other.id2lang == tokenizer.id2lang
    assert other.get_vocab() == tokenizer.get_vocab()
    assert other.byte_pairs.ranks == tokenizer.byte_pairs.ranks
    for text in ("the <new> river <left> mill", "Ünï don't", "<special1>"):
        assert other(text) == tokenizer(text)


def test_case_is_saved_and_known_of_two_checkpoints(tmp_path):
    CASED.save_pretrained(tmp_path / "saved")
    assert not XLMTokenizer.from_pretrained(tmp_path / "saved").do_lowercase_and_remove_accent
    for name, cased in (("xlm-mlm-100-1280", True), ("xlm-mlm-en-2048", False)):
        (tmp_path / name).mkdir()
        tokenizer = XLMTokenizer.from_pretrained(public_folder(tmp_path / name))
        assert tokenizer.do_lowercase_and_remove_accent is not cased
    asked = XLMTokenizer.from_pretrained(
        tmp_path / "xlm-mlm-100-1280", do_lowercase_and_remove_accent=True
    )
    assert asked.do_lowercase_and_remove_accent


def test_save_vocabulary(tokenizer, tmp_path):
    paths = tokenizer.save_vocabulary(tmp_path / "new", filename_prefix="x")
    assert [Path(path).name for path in paths] == ["x-vocab.json", "x-merges.txt"]
    again = XLMTokenizer(*paths)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.byte_pairs.ranks == tokenizer.byte_pairs.ranks


def test_added_tokens_change_what_is_remembered(tokenizer):
    before = tokenizer("the river zzz")["input_ids"]
    assert tokenizer.add_tokens(["zzz", "the</w>"]) == 1
    after = tokenizer("the river zzz")["input_ids"]
    assert after == [*LOWER("the river")["input_ids"][:-1], len(LOWER), 1] != before
    tokenizer.add_tokens(["ri"])
    assert tokenizer("the mill")["input_ids"] == LOWER("the mill")["input_ids"]
    assert tokenizer("\u4e00")["input_ids"] == [0, 3, 1]
    tokenizer.add_tokens("\u4e00</w>")  # a piece of a word, as the reference takes it too
    assert tokenizer("\u4e00")["input_ids"] == [0, len(tokenizer) - 1, 1]
    assert tokenizer("\u4e01")["input_ids"] == [0, 3, 1]
    tokenizer.unk_token = "<special5>"
    assert tokenizer("\u4e01")["input_ids"] == [0, 9, 1]


def test_capitals_do_not_hide_added_tokens(tokenizer):
    tokenizer.add_tokens(["NEW", AddedToken("OLD", normalized=False)])
    ids = tokenizer("The NEW and OLD Mill")["input_ids"]
    assert [i for i in ids if i >= len(LOWER)] == [len(LOWER), len(LOWER) + 1]


def test_damaged_files(tmp_path):
    public_folder(tmp_path)
    with pytest.raises(CheckpointError, match="pass their folder"):
        XLMTokenizer.from_pretrained(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text('{"a": "b"}')
    with pytest.raises(XlmfamError, match="'b' as id of 'a'"):
        XLMTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0')
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        XLMTokenizer.from_pretrained(tmp_path)
    public_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("one\ntwo\n")
    with pytest.raises(CheckpointError, match="no line with two symbols"):
        XLMTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        XLMTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"has no merges.txt"):
        XLMTokenizer.from_pretrained(tmp_path)


def test_no_unknown_token(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a</w>": 0}')
    (tmp_path / "merges.txt").write_text("")
    tokenizer = XLMTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt", unk_token=None)
    assert tokenizer.encode("a", add_special_tokens=False) == [0]
    with pytest.raises(XlmfamError, match="lacks 'b</w>', and there is no unk_token"):
        tokenizer("b")


# -- properties ------------------------------------------------------------------------------

MARKS = st.sampled_from(" '\",.;:!?()[]`´‘’“”«»—–…%\xa0\u3000\u0301\u200b\n\t。：（）５sStT5aéİΣş")
NOISY = sorted({c for row in TEXTS for c in row["text"]})
WORDS = sorted({w for row in TEXTS if row["kind"] == "ordinary" for w in row["text"].split()})
ANY = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(MARKS, max_size=25),
    st.text(st.sampled_from(NOISY), max_size=25),
    st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join),
)
LANGS = st.sampled_from(["en", "fr", "de", "ro", "ru", "ko", "xx"])


@settings(max_examples=300, deadline=None)
@given(ANY, LANGS, st.sampled_from(sorted(CASES)), st.booleans())
@example("\u0301", "en", "lower", False)
@example("<s>a<special1>", "en", "cased", True)
@example("\u2000\u0301 .'", "fr", "lower", False)
def test_any_text(text, lang, case, bypass):
    """Nothing raises; ids and tokens say the same; what is remembered changes nothing."""
    tokenizer, options = CASES[case], {"lang": lang, "bypass_tokenizer": bypass}
    ids = tokenizer(text, **options)["input_ids"]
    tokens = tokenizer.tokenize(text, **options)
    assert ids == [0, *tokenizer.convert_tokens_to_ids(tokens), 1]
    assert all(0 <= number < len(tokenizer) for number in ids)
    tokenizer._forget()
    tokenizer.byte_pairs._found.clear()
    assert tokenizer(text, **options)["input_ids"] == ids == tokenizer.encode(text, **options)
    assert isinstance(tokenizer.decode(ids), str)


@settings(max_examples=200, deadline=None)
@given(ANY, LANGS, st.sampled_from(sorted(CASES)))
def test_decoded_words_are_the_same_words(text, lang, case):
    tokenizer = CASES[case]
    tokens = tokenizer.tokenize(text, lang=lang)
    if set(tokens) & set(tokenizer.all_special_tokens):
        return
    decoded = tokenizer.convert_tokens_to_string(tokens)
    assert tokenizer.tokenize(decoded, bypass_tokenizer=True) == tokens


def test_decoding_is_stable():
    rows = [row for row in TEXTS if row["kind"] != "noisy" and 3 not in row["lower"]]
    for row in rows:
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        if not set(row["lower"][1:-1]) & set(LOWER.all_special_ids):
            words = LOWER.decode(row["lower"], **plain)
            assert LOWER(words, bypass_tokenizer=True)["input_ids"] == row["lower"]
            assert LOWER.decode(row["lower"][1:-1]) == LOWER.clean_up_tokenization(words)
    assert len(rows) > 100
