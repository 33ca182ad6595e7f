"""Old vocabularies are pickles; they are read, and nothing in them is executed."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer

from xlmfam import TransfoXLTokenizer
from xlmfam.common import pickles
from xlmfam.common.errors import CheckpointError
from xlmfam.common.pickles import Placeholder, read_pickle
from xlmfam.common.tokenizers.transfo_xl_vocabulary import read_words

WORDS = ["<eos>", "the", "Café", "東", "<unk>", "@,@", "x" * 300]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def content(**more):
    """What a file of an old release holds: all attributes of the tokenizer."""
    return {
        "counter": Counter({"the": 5, "Café": 2}),
        "special": ["<eos>"],
        "min_freq": 3,
        "max_size": None,
        "lower_case": True,
        "delimiter": None,
        "moses_punct_normalizer": MosesPunctNormalizer("en"),
        "moses_tokenizer": MosesTokenizer("en"),
        "moses_detokenizer": MosesDetokenizer("en"),
        "punction_without_space_before_pattern": re.compile(r"[^\w\s]", re.ASCII),
        "unique": {"a", "b"},
        "numbers": (1.5, -7, 2**70, True, None, b"bytes", frozenset([1]), bytearray(b"x")),
        "idx2sym": list(WORDS),
        "sym2idx": OrderedDict((word, number) for number, word in enumerate(WORDS)),
        **more,
    }


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


class Calls:
    """Asks for a call when it is unpickled."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self):
        return self.call

    def __repr__(self):  # part of a test's name, which all processes must agree on
        return "Calls"


# -- what the files hold ---------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_old_vocabulary(tmp_path, protocol):
    path = write(tmp_path / "vocab.pkl", content(), protocol)
    tokenizer = TransfoXLTokenizer.from_pretrained(path)
    assert tokenizer.idx2sym == WORDS
    assert (tokenizer.unk_token_id, tokenizer.encode("The 東")) == (4, [1, 3])
    assert (tokenizer.lower_case, tokenizer.min_freq, tokenizer.special) == (True, 3, ["<eos>"])
    assert TransfoXLTokenizer.from_pretrained(tmp_path).idx2sym == WORDS
    assert TransfoXLTokenizer(pretrained_vocab_file=path, special=["a"]).special == ["a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_are_what_pickle_gives(tmp_path, protocol):
    value = {"a": [1, -2, 2**40, 2**70, 1.5, True, None], "b": {"c": ("x", ("y", "z"), ())}}
    value["same"] = value["a"]
    value["unicode"] = "é\n\\東\U0001f600"
    found = read_pickle(write(tmp_path / "v", value, protocol))
    assert found == value
    assert found["same"] is found["a"]


def test_objects_are_placeholders(tmp_path):
    found = read_pickle(write(tmp_path / "v", content()))
    assert type(found["moses_tokenizer"]) is Placeholder
    assert found["moses_tokenizer"].state["lang"] == "en"
    assert type(found["counter"]) is dict
    assert found["unique"] in (["a", "b"], ["b", "a"])


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "vocab.bin"
    value = content(tensor=torch.zeros(3))
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert TransfoXLTokenizer.from_pretrained(tmp_path).idx2sym == WORDS
    assert read_pickle(path)["numbers"][:5] == (1.5, -7, 2**70, True, None)


class Vocab:
    """As in the original release, whose caches hold one inside a corpus."""


def test_vocabulary_inside_a_corpus(tmp_path):
    corpus, corpus.vocab = (vocab := Vocab()), Vocab()
    vocab.vocab.__dict__.update(idx2sym=WORDS, lower_case=False)
    path = write(tmp_path / "cache.pkl", corpus)
    assert TransfoXLTokenizer(pretrained_vocab_file=path).idx2sym == WORDS


def test_words_by_number_alone(tmp_path):
    value = content()
    del value["idx2sym"]
    assert read_words(write(tmp_path / "v.pkl", value, 2))[0] == WORDS
    # As Python 2 wrote ordered dicts.
    pairs = Calls(OrderedDict, [[word, number] for number, word in enumerate(WORDS)])
    assert read_words(write(tmp_path / "v.pkl", {"sym2idx": pairs}, 2))[0] == WORDS


@pytest.mark.parametrize(
    "value",
    [
        *(5, [], "text", {"idx2sym": 5}, {"idx2sym": ["a", 5]}, {"idx2sym": ["a", "a"]}),
        *({"sym2idx": {"a": 1}}, {"sym2idx": {"a": "0"}}, {"sym2idx": [["a"]]}, {"vocab": 3}),
        *({"sym2idx": [[1, 0]]}, {"sym2idx": Calls(print, "x")}, {"idx2sym": ["\ud800"]}),
    ],
    ids=repr,
)
def test_no_vocabulary(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"v\.pkl"):
        read_words(write(tmp_path / "v.pkl", value))


def test_our_files_come_first(tmp_path):
    write(tmp_path / "vocab.pkl", content())
    TransfoXLTokenizer.from_pretrained(tmp_path, unk_token="the").save_pretrained(tmp_path)
    (tmp_path / "vocab.pkl").write_bytes(b"damaged since")
    assert TransfoXLTokenizer.from_pretrained(tmp_path).idx2sym == WORDS


# -- files that want to run code -------------------------------------------------------------


def attacks(marker):
    command = f"touch {marker}"
    return {
        "system": Calls(os.system, command),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w')"),
        "open": Calls(open, str(marker), "w"),
        "map": Calls(list, Calls(map, os.system, [command])),
        "import": Calls(builtins.__import__, "os"),
        "state": Calls(Vocab, state={"__class__": Calls(os.system, command)}),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", attacks("x"))
def test_nothing_is_executed(tmp_path, name, protocol):
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    with pytest.raises(CheckpointError, match="no vocabulary"):
        TransfoXLTokenizer(pretrained_vocab_file=write(tmp_path / "v.pkl", attack, protocol))
    # Hidden in a vocabulary that is good otherwise.
    path = write(tmp_path / "v.pkl", content(first=attack, counter=attack), protocol)
    assert TransfoXLTokenizer(pretrained_vocab_file=path).idx2sym == WORDS
    assert not marker.exists()
    # The attack is a real one.
    if name == "system":
        pickle.loads(pickle.dumps(attack, protocol=protocol))
        assert marker.exists()


def test_what_is_called_for_one_list_is_that_list(tmp_path):
    """Copies would ask for any amount of memory, at five bytes of the file for each."""
    calls = b"c__builtin__\nlist\nh\x00\x85R" * 3
    (tmp_path / "v.pkl").write_bytes(b"\x80\x04]\x94(" + calls + b"t.")
    first, second, third = read_pickle(tmp_path / "v.pkl")
    assert first is second is third


def test_in_words_themselves(tmp_path):
    marker = tmp_path / "marker"
    value = {"idx2sym": [*WORDS, Calls(os.system, f"touch {marker}")]}
    with pytest.raises(CheckpointError, match="no vocabulary"):
        read_words(write(tmp_path / "v.pkl", value))
    assert not marker.exists()


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "imported_by_a_pickle.py").write_text(f"open({str(tmp_path / 'm')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for code in (
        b"cimported_by_a_pickle\nname\n.",
        b"(iimported_by_a_pickle\nname\n.",
        b"\x80\x04\x8c\x14imported_by_a_pickle\x8c\x04name\x93.",
        b"\x80\x04\x8c\x14imported_by_a_pickle\x8c\x04name\x93)\x81}b.",
        b"\x80\x04\x8c\x14imported_by_a_pickle\x8c\x04name\x93)}\x92.",
        b"(cimported_by_a_pickle\nname\no.",
    ):
        (tmp_path / "v.pkl").write_bytes(code)
        assert type(read_pickle(tmp_path / "v.pkl")) is Placeholder
    assert "imported_by_a_pickle" not in sys.modules
    assert not (tmp_path / "m").exists()


def test_classes_of_the_library_stay_as_they_are(tmp_path):
    """A state of two parts sets attributes, of whatever it is put on."""
    before = dict(vars(Counter))
    code = b"ccollections\nCounter\n(N}X\x06\x00\x00\x00updateK\x05stb."
    (tmp_path / "v.pkl").write_bytes(code)
    assert read_pickle(tmp_path / "v.pkl").name == ("collections", "Counter")
    assert dict(vars(Counter)) == before
    assert collections.Counter("aa")["a"] == 2


def test_registered_extensions_are_not_used(tmp_path):
    for code in (b"\x80\x02\x82\x01.", b"\x80\x02\x83\x01\x00.", b"\x80\x02\x84\x01\x00\x00\x00."):
        (tmp_path / "v.pkl").write_bytes(code)
        assert type(read_pickle(tmp_path / "v.pkl")) is Placeholder


def test_the_module_can_neither_import_nor_call():
    source = Path(pickles.__file__).read_text()
    assert not re.search(
        r"import_module|__import__|getattr|setattr|eval\(|exec\(|find_class", source
    )
    assert not re.search(r"^(import|from) (pickle|copyreg|torch)\b", source, re.MULTILINE)


# -- bombs -----------------------------------------------------------------------------------


def pickled(body):
    return b"\x80\x04" + body + b"."


def doubled(start, times):
    """A tuple of twice itself, over and over: few bytes, and a tree of 2 ** times leaves."""
    return start + b"2\x86" * times


BOMBS = {
    "deep lists": b"]" * 300_000 + b"a" * 299_999,
    "deep tuples": b")" + b"\x85" * 300_000,
    "deep states": b"ca\nb\n" * 100_000 + b"b" * 99_999,
    "doubled": doubled(b")", 400),
    "doubled as a key": b"}" + doubled(b")", 400) + b"Ns",
    "doubled in a set": b"\x8f(" + doubled(b")", 400) + b"\x90",
    "doubled in a frozen set": b"(" + doubled(b")", 400) + b"\x91",
    "doubled in a called set": b"c__builtin__\nset\n((" + doubled(b")", 400) + b"ltR",
    "in itself": b"]\x942a",
    "numbers as keys": b"}("
    + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(60_000))
    + b"u",
    "long names": b"X" + struct.pack("<I", 2**20) + b"m" * 2**20 + b"\x94"
    + b"h\x00h\x00\x93" * 20_000,
    "far memo": b"Nr\xff\xff\xff\x7f",
    "range": b"c__builtin__\nlist\nc__builtin__\nrange\n\x8a\x06\xff\xff\xff\xff\xff\x0f\x85R\x85R",
    "bytearray": b"c__builtin__\nbytearray\n\x8a\x06\xff\xff\xff\xff\xff\x0f\x85R",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_do_not_go_off(tmp_path, name):
    """Any of them takes for ever, or all memory, if what the file asks for is done."""
    path = tmp_path / "v.pkl"
    path.write_bytes(pickled(BOMBS[name]))
    with pytest.raises(CheckpointError, match="no vocabulary"):
        read_words(path)


@pytest.mark.parametrize(
    "code",
    [
        b"\x8d" + struct.pack("<Q", 2**40) + b"abc",
        b"\x96" + struct.pack("<Q", 2**40) + b"abc",
        b"\x8d" + struct.pack("<Q", 2**63) + b"abc",
        b"X\xff\xff\xff\x7fabc",
        b"\x8b\xff\xff\xff\x7fabc",
        b"L" + b"9" * 100_000 + b"L\n",
        b"I" + b"9" * 100_000 + b"\n",
        *(
            b"0",
            b"2",
            b"a",
            b"s",
            b"R",
            b"b",
            b"e",
            b"u",
            b"t",
            b"\x87",
            b"h\x05",
            b"\x93",
            b"\xff",
        ),
        *(b"", b"(K\x01d", b"}(K\x01u", b"Sabc\n", b"Vabc", b"F1.x\n", b"g-1\n"),
    ],
)
def test_damaged(tmp_path, code):
    path = tmp_path / "v.pkl"
    path.write_bytes(pickled(code))
    with pytest.raises(CheckpointError, match="damaged"):
        read_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_truncated_anywhere(tmp_path, protocol):
    whole = pickle.dumps({"idx2sym": ["a", "b"], "c": Counter("ab"), "n": 300}, protocol=protocol)
    path = tmp_path / "v.pkl"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            read_words(path)
    path.write_bytes(whole)
    assert read_words(path)[0] == ["a", "b"]


SMALL = [pickle.dumps(content(moses_tokenizer=None), protocol=p) for p in (0, 2, 4)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SMALL), st.lists(st.tuples(st.integers(0, 2**31), st.binary(max_size=3))))
def test_changed_anywhere(tmp_path_factory, whole, changes):
    changed = bytearray(whole)
    for place, new in changes:
        place %= len(changed)
        changed[place : place + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    path.write_bytes(changed)
    try:
        words, _ = read_words(path)
    except CheckpointError:
        return
    assert all(type(word) is str for word in words)


def archive(compression=zipfile.ZIP_STORED, name="archive/data.pkl", times=1):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        # Not compressed, so that the whole is larger than what is unpacked.
        file.writestr("archive/data/0", bytes(10_000), zipfile.ZIP_STORED)
        for number in range(times):
            file.writestr(f"{number}{name}", pickle.dumps(content(idx2sym=WORDS)))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (archive(zipfile.ZIP_DEFLATED), "compressed"),
        (archive(name="archive/other"), "without one"),
        (archive(times=2), "without one"),
        (archive()[:-30], "damaged"),
    ],
)
def test_archives_that_are_not_of_torch(tmp_path, whole, message):
    path = tmp_path / "vocab.bin"
    path.write_bytes(archive())
    assert read_words(path)[0] == WORDS
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=message):
        read_words(path)


def test_too_large(tmp_path, monkeypatch):
    path = write(tmp_path / "v.pkl", content())
    monkeypatch.setattr(pickles, "LARGEST", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="at most"):
        read_words(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_words(tmp_path / "absent.pkl")


def test_saved_without_pickle(tmp_path):
    write(tmp_path / "vocab.pkl", content())
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "new")
    for path in (tmp_path / "new").iterdir():
        assert path.suffix in (".json", ".txt")
        path.read_text(encoding="utf-8")
    again = TransfoXLTokenizer.from_pretrained(tmp_path / "new")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.lower_case, again.min_freq) == (True, 3)
