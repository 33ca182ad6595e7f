"""Transformer-XL's tokenizer against what transformers 4.37.2 does."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xlmfam import AutoTokenizer, TransfoXLTokenizer
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.tokenizers.transfo_xl_text import (
    HyphenWords,
    detokenize_numbers,
    hyphen_words,
    tokenize_numbers,
)

DATA = Path(__file__).resolve().parents[1] / "data" / "tokenizers" / "transfo_xl"
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
TEXTS = GOLDEN["texts"]
ABSENT = ("vocab_file", "vocab_files_names")


def make(**kwargs):
    return TransfoXLTokenizer(vocab_file=DATA / "vocab.txt", **kwargs)


CASED, LOWER = make(), make(lower_case=True)


def lists(value):
    """A result as JSON holds it."""
    if hasattr(value, "keys"):
        return {name: lists(value[name]) for name in value}
    if isinstance(value, (list, tuple)):
        return [lists(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def tried(function, *args, **kwargs):
    try:
        return {"result": lists(function(*args, **kwargs))}
    except ValueError:
        return {"error": "ValueError"}


def same(ours, row):
    """Whether a result is the golden one; errors of any kind are ours of one kind."""
    return ours.get("result") == row.get("result") and ("error" in ours) == ("error" in row)


# -- goldens ---------------------------------------------------------------------------------


def test_goldens_cover_what_they_should():
    assert len(TEXTS) > 300
    assert {row["kind"] for row in TEXTS} == {"ordinary", "corpus", "noisy", "adversarial"}
    assert sum("@,@" in row["tokens"] for row in TEXTS) > 40
    assert sum("@-@" in row["tokens"] for row in TEXTS) > 10
    # Texts that lower case tears otherwise, and that do not come back as they were.
    assert sum("lower_tokens" in row for row in TEXTS) > 4
    assert sum("joined" in row for row in TEXTS) > 100


@pytest.mark.parametrize("kind", ["ordinary", "corpus", "noisy", "adversarial"])
def test_texts(kind):
    for row in TEXTS:
        if row["kind"] != kind:
            continue
        text = row["text"]
        assert CASED.tokenize(text) == row["tokens"], text
        assert CASED.encode(text) == row["ids"], text
        lower = row.get("lower_tokens", [token.lower() for token in row["tokens"]])
        assert LOWER.tokenize(text) == lower, text
        assert CASED.convert_tokens_to_string(row["tokens"]) == row.get("joined", text)
        if "decoded" in row:
            assert LOWER.encode(text) == row["lower_ids"], text
            assert CASED.decode(row["ids"]) == row["decoded"]


@pytest.mark.parametrize("number", range(len(GOLDEN["calls"])))
def test_call(number):
    call = GOLDEN["calls"][number]
    tokenizer, kwargs = make(), call.get("kwargs", {})
    result = tried(getattr(tokenizer, call["method"]), *call["args"], **kwargs)
    if call["method"] == "tokenize" and "add_eos" in kwargs:
        # differs: the option does what it says; _tokenize, which has it there too, does.
        assert call["result"] == ["the", "mill"]
        assert result["result"] == ["the", "mill", "<eos>"]
        return
    assert same(result, call)
    if "after" in call:
        after = call["after"]
        assert tokenizer.encode(after["text"]) == after["result"]
        assert len(tokenizer) == after["length"]


@pytest.mark.parametrize("number", range(len(GOLDEN["options"])))
def test_options(number):
    row = GOLDEN["options"][number]
    tokenizer = make(**row["options"])
    assert len(tokenizer) == row["length"]
    for (text, tokens), ids in zip(row["tokens"], row["ids"], strict=True):
        assert tokenizer.tokenize(text) == tokens
        assert same(tried(tokenizer.encode, text), ids)


@pytest.mark.parametrize("number", range(len(GOLDEN["vocabularies"])))
def test_vocabulary_of_counts(number):
    row = GOLDEN["vocabularies"][number]
    tokenizer = TransfoXLTokenizer(**row["options"])
    if "file" in row:
        assert len(tokenizer.count_file(DATA / row["file"], **row["count"])) in (5, 25)
    else:
        tokenizer.count_sents(row["sentences"])
    tokenizer.build_vocab()
    assert tokenizer.idx2sym == row["symbols"]
    counts = [tokenizer.counter[word] for word in tokenizer.idx2sym]
    if row.get("count"):
        # differs: the end token of each line is counted.
        assert (row["counts"][0], counts[0]) in [(0, 5), (0, 25)]
        counts[0] = 0
    assert counts == row.get("counts", counts)


def test_fields():
    for name, value in GOLDEN["fields"].items():
        if name not in ABSENT:
            assert getattr(CASED, name) == value, name
    assert set(GOLDEN["fields"]["vocab_files_names"].items()) - set(
        CASED.vocab_files_names.items()
    ) == {("vocab_file", "vocab.txt")}


def test_numbers():
    for text, parts in GOLDEN["numbers"]:
        assert tokenize_numbers([text]) == parts
    for text, joined in GOLDEN["joined numbers"]:
        assert detokenize_numbers(text) == joined


@pytest.mark.parametrize("number", range(len(GOLDEN["encoded files"])))
def test_encoded_file(number):
    """differs: the reference has no end tokens, whatever add_eos says."""
    row = GOLDEN["encoded files"][number]
    ids = make().encode_file(DATA / row["file"], **row["kwargs"])
    assert lists(ids) == row["expected"]
    arrays = [ids] if row["kwargs"].get("ordered") else ids
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}
    if row["kwargs"].get("add_eos", True):
        assert row["expected"] != row["reference"]


# -- words -----------------------------------------------------------------------------------

MARKS = st.sampled_from([*"-.,'\"<>@&|1٣a Bé東\t\n²", "--", "...", "ab", "<unk>", "<UNK>", "e.g."])


@settings(max_examples=300, deadline=None)
@given(st.lists(MARKS, max_size=14).map("".join), st.sampled_from(["en", "fr", "de"]))
@example("a-b-c -d e- 1-2", "en")
@example("x<unk>-<UNK>.'", "en")
@example("THISISPROTECTED000<unk>", "en")
def test_words_are_those_of_sacremoses(text, lang):
    words = hyphen_words(lang)
    protected = ["<unk>", "1a"]
    expected = words._moses.tokenize(
        text, aggressive_dash_splits=True, escape=False, protected_patterns=protected
    )
    assert words.split_but_for(text, protected) == expected


def test_many_strings_to_keep_are_told_apart():
    """sacremoses refuses more than 1000; marks of one width are needed beyond that."""
    wanted = [f"a,{number}b" for number in range(1100)]
    assert HyphenWords("en").split_but_for(" ".join(wanted), wanted) == wanted


def test_strings_to_keep_are_no_expressions():
    tokenizer = make(never_split=["a.c", "(("])
    assert tokenizer.tokenize("a.c, axc-d ((") == ["a.c", ",", "axc", "@-@", "d", "(("]
    assert tokenizer.tokenize("A.C-x") == ["A.C", "@-@", "x"]
    # The longer one is not torn for the sake of the shorter one.
    assert make(never_split=["a-b", "a-b-c"]).tokenize("a-b a-b-c") == ["a-b", "a-b-c"]


def test_ends_of_a_text():
    assert CASED.encode("the mill", add_eos=True) == [1, 22, 0]
    assert CASED(["the <unk> mill", ""], add_eos=True)["input_ids"] == [[1, 50, 22, 0], [0]]
    # Words of a list are parts of one text, and the texts of a pair are two.
    words = {"is_split_into_words": True, "add_eos": True}
    assert CASED(["the", "mill,"], **words)["input_ids"] == [1, 22, 3, 0]
    assert CASED("the", "mill", add_eos=True)["input_ids"] == [1, 0, 22, 0]
    tokens = ["<S>", "the", "<unk>", "mill", "<S>"]
    assert CASED.tokenize("the <unk> mill", add_double_eos=True) == tokens
    tokenizer = make(eos_token="</s>")
    assert tokenizer.tokenize("the", add_eos=True) == ["the", "</s>"]
    tokenizer.eos_token = None
    with pytest.raises(XlmfamError, match="eos_token is None"):
        tokenizer.encode("the", add_eos=True)


def test_original_steps_take_tokenised_text(tmp_path):
    text = " = The Mill = 1 @,@ 000 @-@ b, <unk> <UNK>\n"
    tokens = ["=", "The", "Mill", "=", "1", "@,@", "000", "@-@", "b,", "<unk>", "<UNK>"]
    tokenizer = make(original_steps=True)
    assert tokenizer.tokenize(text) == tokens
    assert "@,@" not in CASED.tokenize(text)
    tokenizer.save_pretrained(tmp_path)
    assert TransfoXLTokenizer.from_pretrained(tmp_path).tokenize(text) == tokens
    assert make(original_steps=True, delimiter="|").tokenize("a b|c") == ["a b", "c"]


# -- the vocabulary --------------------------------------------------------------------------


def built(**kwargs):
    tokenizer = TransfoXLTokenizer(**{"special": ["<eos>"], **kwargs})
    tokenizer.count_file(DATA / "plain.txt")
    tokenizer.build_vocab()
    return tokenizer


def test_special_tokens_have_ids_of_their_own():
    """differs: the reference leaves them at 0, 1, 2, which are words."""
    tokenizer = built()
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<eos>", "<unk>", "<formula>", "the", "a")]
    assert ids == [0, 20, 21, 1, 2]
    assert (tokenizer.vocab_size, len(tokenizer)) == (20, 22)
    assert tokenizer.decode([1, 20, 2]) == "the <unk> a"
    assert len(set(tokenizer.get_vocab().values())) == 22
    tokenizer.add_symbol("new")
    assert tokenizer.convert_tokens_to_ids(["new", "<unk>", "<formula>"]) == [20, 21, 22]


def test_special_tokens_of_reference_files_are_put_right(tmp_path):
    """What the reference saves of a vocabulary that it built after construction."""
    (tmp_path / "vocab.txt").write_text("<eos>\nthe\na\n<unk>\n")
    decoder = {
        number: {"content": token, "special": True}
        for number, token in enumerate(["<unk>", "<eos>", "<formula>"])
    }
    config = {"added_tokens_decoder": decoder, "tokenizer_class": "TransfoXLTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.added_tokens_encoder == {"<eos>": 0, "<unk>": 3, "<formula>": 4}
    assert tokenizer.encode("the a") == [1, 2]


def test_unknown_words():
    with pytest.raises(XlmfamError, match="lacks 'zebra'"):
        built().encode("zebra")
    assert built(special=["<eos>", "<unk>"]).encode("zebra") == [1]
    # The vocabulary of the One Billion Word benchmark has capitals.
    assert built(special=["<eos>", "<UNK>"]).encode("zebra") == [1]
    assert built(special=["<unk>", "?"], unk_token="?").encode("zebra") == [1]


def test_special_words_that_are_counted_take_places():
    sizes = {}
    for size in (0, 2):
        tokenizer = TransfoXLTokenizer(special=["<unk>"], max_size=size)
        tokenizer.count_sents([["<unk>", "<unk>", "a", "b", "c"]])
        tokenizer.build_vocab()
        sizes[size] = tokenizer.idx2sym
    assert sizes == {0: ["<unk>"], 2: ["<unk>", "a"]}


def test_a_vocabulary_of_a_file_stays():
    tokenizer = make()
    tokenizer.count_sents([["zebra"]])
    tokenizer.build_vocab()
    assert tokenizer.idx2sym == CASED.idx2sym


def test_added_tokens_move_into_the_vocabulary():
    tokenizer = make()
    tokenizer.add_tokens(["qux", "zot"])
    tokenizer.move_added_token("zot", 1)
    assert tokenizer.idx2sym[:3] == ["<eos>", "zot", "the"]
    assert (tokenizer.vocab_size, len(tokenizer)) == (184, 185)
    assert tokenizer.encode("the qux zot <unk> <eos>") == [2, 184, 1, 51, 0]
    assert tokenizer.decode([1, 184, 51]) == "zot qux <unk>"
    for token, place, named in (("the", 1, "token"), ("x", 1, "token"), ("qux", 186, "target")):
        with pytest.raises(XlmfamError, match=f"^{named}"):
            tokenizer.move_added_token(token, place)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("special", "<eos>"), ("special", [1]), ("never_split", "abc"), ("never_split", [""])),
        *(("min_freq", -1), ("min_freq", 1.5), ("max_size", -1), ("delimiter", 5)),
        ("language", None),
    ],
)
def test_wrong_options_are_named(name, value):
    with pytest.raises(XlmfamError, match=f"^{name} is"):
        TransfoXLTokenizer(**{name: value})


@pytest.mark.parametrize("number", [-1, 183, 5000])
def test_ids_outside_are_refused(number):
    with pytest.raises(XlmfamError, match=f"id {number} is outside the vocabulary, 0 to 182"):
        CASED.decode([number])


# -- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [None, "x"])
def test_saved_and_read_back(tmp_path, prefix):
    options = {"lower_case": True, "never_split": ["a,b"], "language": "fr", "min_freq": 2}
    tokenizer = make(**options, special=["<eos>"], max_size=500, model_max_length=77)
    tokenizer.add_tokens(["newword"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    names = [Path(p).name for p in tokenizer.save_pretrained(tmp_path, filename_prefix=prefix)]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert {"vocab.json", "vocab.txt"} == {n.removeprefix("x-") for n in names if "vocab" in n}
    if prefix:
        return
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is TransfoXLTokenizer
    for name in (*options, "special", "max_size", "model_max_length", "idx2sym", "pad_token"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "The a,b l'eau newword <pad> zebra 1,000 <unk>"
    assert again.encode(text) == tokenizer.encode(text)
    # Text alone serves as well: it is what transformers reads.
    (tmp_path / "vocab.json").unlink()
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_vocabularies_with_space_are_saved(tmp_path):
    (tmp_path / "vocab.txt").write_text("of\nan\nearlier\nsave\n")
    tokenizer = built(delimiter="", special=["<eos>", "<unk>"])
    assert " " in tokenizer.sym2idx
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    again = TransfoXLTokenizer.from_pretrained(tmp_path)
    assert again.idx2sym == tokenizer.idx2sym
    assert again.encode("a cat") == tokenizer.encode("a cat")
    assert len(again.encode("a cat")) == 5


def test_model_type_is_enough(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "transfo-xl"}')
    (tmp_path / "vocab.txt").write_text((DATA / "vocab.txt").read_text())
    assert AutoTokenizer.from_pretrained(tmp_path).encode("the mill") == [1, 22]
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"none of vocab\.json, vocab\.txt"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("the 5\n<unk> 3\n", ["the", "<unk>"]),
        ("the\n\nthe\nof\r\n", ["the", "of"]),
        ("a\u2028b\n x\u00a0y\n", ["a", "x"]),
    ],
)
def test_text_vocabularies(tmp_path, content, words):
    path = tmp_path / "words"
    path.write_text(content, encoding="utf-8", newline="")
    assert TransfoXLTokenizer(vocab_file=path).idx2sym == words
    assert TransfoXLTokenizer.from_pretrained(path).idx2sym == words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["b", "a"]', ["b", "a"]),
        ('{"a": 1, "b": 0}', ["b", "a"]),
        ('{"a": 1, "b": 2}', "0 to that"),
        ('{"a": 0, "b": true}', "no number"),
        ('["a", "a"]', "more than once"),
        ('["a", 5]', "no vocabulary"),
        ('["\\ud800"]', "no text"),
        ("5", "no vocabulary"),
        ("{", "as JSON"),
        ("[" * 100_000, "as JSON"),
    ],
)
def test_json_vocabularies(tmp_path, content, words):
    path = tmp_path / "v.json"
    path.write_text(content, encoding="utf-8")
    if isinstance(words, list):
        assert TransfoXLTokenizer(vocab_file=path).idx2sym == words
        return
    with pytest.raises(CheckpointError, match=words):
        TransfoXLTokenizer(vocab_file=path)


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "vocab.txt"
    for content in (b"\xff\xfe", b"", b"\n \n"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"vocab\.txt"):
            TransfoXLTokenizer(vocab_file=path)
    with pytest.raises(CheckpointError, match="absent"):
        TransfoXLTokenizer(vocab_file=tmp_path / "absent")
    path.write_bytes(b"the\n\xff\n")
    for text in (path, tmp_path / "absent"):
        with pytest.raises(XlmfamError, match="cannot be read as text"):
            make().encode_file(text)


def test_copies_are_the_same():
    for again in (copy.deepcopy(CASED), pickle.loads(pickle.dumps(CASED))):
        assert again.encode("The mill-wheel, 1,000.5") == CASED.encode("The mill-wheel, 1,000.5")
        assert again.get_vocab() == CASED.get_vocab()


def test_no_tokens_are_an_empty_array():
    ids = CASED.encode_sents([], ordered=True)
    assert (ids.dtype, ids.shape) == (np.int64, (0,))
    assert CASED.convert_to_tensor([]).dtype == np.int64
    assert CASED.encode_sents([]) == []


def test_tokens_that_there_are_not_stay_away(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\nc\n")
    none = {"eos_token": None, "unk_token": None, "additional_special_tokens": []}
    tokenizer = TransfoXLTokenizer(vocab_file=tmp_path / "vocab.txt", **none)
    tokenizer.save_pretrained(tmp_path / "again")
    again = TransfoXLTokenizer.from_pretrained(tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab() == {"a": 0, "b": 1, "c": 2}
    assert again.eos_token is None
