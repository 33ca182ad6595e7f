"""Write the goldens of Transformer-XL's tokenizer and corpora with transformers 4.37.2.

    python tests/reference/make_transfo_xl_tokenizer_golden.py [--train]

It runs in the interpreter of the reference. ``vocab.txt`` (``--train``) is what the reference makes
of ``corpus.txt``. Only what the reference returns is kept, never its code.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

# The reference reads its own pickled vocabularies only then; all of them are written here.
os.environ["TRUST_REMOTE_CODE"] = "True"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from transformers import TransfoXLCorpus, TransfoXLTokenizer

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "tokenizers" / "transfo_xl"
CORPUS, PLAIN = DATA / "corpus.txt", DATA / "plain.txt"
LINES = CORPUS.read_text(encoding="utf-8").splitlines()
MODULE = sys.modules[TransfoXLTokenizer.__module__]

# Put between, into and around ordinary words to make noisy text of them.
NOISE = [
    *"\t\n\r\x00\x07\x1b\x7f\x85\xa0\xad\u200b\u200d\u2028\u202e\ufeff\u3000\u2009\u0301\ufffd",
    *"😀👍½²①ﬁＡ０，。！？（）「」、・…—–‐−„“”‚‘’«»‹›´`",
    *"'\",.;:!?()[]{}<>@#$%^&*-_=+|\\/~€£¥",
    *("''", "``", '""', "...", "....", "--", " %", "5 %", "'s", "n't", "'ll", "@-@", "@,@", "@.@"),
    *("<unk>", "<eos>", "<formula>", "<UNK>", "</s>", "&amp;", "&quot;", "&#39;", "&#124;"),
    *(
        "1,000",
        "3.14",
        "1,000.5",
        "10,00",
        "1.2.3",
        "1,2,3",
        ",5",
        ".5",
        "5,",
        "5.",
        "1,000,000.25",
    ),
]
ORDINARY = [
    "The old mill stands by the river.",
    "Hello, world! How are you?",
    "It was built in 1,704 by two brothers.",
    "1,000.5 and 3.14",
    "The river is 1,300 kilometres (about 808.5 miles) long.",
    'She said, "It\'s late," and went home.',
    "They don't, we'll, I'm, you're, he's, can't, o'clock.",
    "A well-known mill-wheel - and a dash -- or two.",
    "$5,000 and 40% of the money",
    "What?! No... Yes; maybe: never.",
    "Is the train late again? No, it's on time: we'll be home by 10:45.",
    "The <unk> people and the <formula> of <eos> days",
    "Café owners from 東京 and Москва",
    "naïve façade coöperate Ångström",
    "THE OLD MILL",
    "the old mill",
    "Dr. Smith and Mr. Jones went to the U.S.A. on Jan. 5.",
    "e.g. this, i.e. that, etc.",
    "http://example.org/a?b=c&d=e and user@example.org",
    "a/b and c\\d and e|f",
    "[a] {b} <c> (d)",
    "the dog 's house",
    "the miller @-@ wheel 1 @,@ 000 and 2 @.@ 5",
    "'single' and ''double'' and `back` and ``two''",
    "100,000,000 people, 1,000,000.25 trees",
    "version 1.2.3 of 1,2,3",
    "In 1999, 2.75 metres",
    "the end of the day",
    "= = The River = =",
    "a & b < c > d",
]
ADVERSARIAL = [
    *(
        "",
        " ",
        "\n",
        "\t \r\n",
        ".",
        "..",
        "...",
        ". . .",
        "'",
        "''",
        '"',
        '"""',
        ",",
        ",,",
        "a,",
        ",a",
    ),
    *(
        "1,2",
        "1,22",
        "1,222",
        "1,2222",
        "12,345",
        "1,234,567",
        "1,234.567",
        "1.234,567",
        "0.5",
        "00.50",
    ),
    *(
        ".5",
        "5.",
        "5.5.",
        "5.5.5",
        "1,",
        ",1",
        "1,,2",
        "1..2",
        "1 , 000",
        "1, 000",
        "a1,000b",
        "1,000s",
    ),
    *(
        "-1,000",
        "+1.5",
        "$1,000.50",
        "1,000%",
        "(1,000)",
        "1.5e10",
        "1,000-2,000",
        "3.14.",
        "3.14,",
    ),
    *("١,٢٣٤", "１,０００", "1\u00a0000", "1,\n000", "1٫5", "½,5", "²,³"),
    *(
        "@,@",
        "@.@",
        "@-@",
        "1 @,@ 000",
        "1 @.@ 5",
        "1 @,@",
        "@,@ 1",
        "a @,@ b",
        "a @-@ b",
        "@",
        "@@",
        "@,",
    ),
    *("a-b", "a--b", "a - b", "well-known-fact", "-a-", "a-", "-a", "a–b", "a—b", "1-2", "3-d"),
    *(
        "<unk>",
        "<eos>",
        "<formula>",
        "a<unk>b",
        "<unk><unk>",
        "<unk>.",
        "< unk >",
        "<UNK>",
        "<Eos>",
    ),
    *(
        "the <unk>, the <eos>; <formula>!",
        "<formula><eos>",
        " <unk> ",
        "<s>",
        "</s>",
        "<pad>",
        "<S>",
    ),
    *(
        "it's",
        "it 's",
        "its'",
        "'tis",
        "don't",
        "do n't",
        "don 't",
        "can't've",
        "I'd've",
        "y'all",
        "l'eau",
    ),
    *(
        '"a"',
        '"a',
        'a"',
        '" a "',
        "'a'",
        "''a''",
        "``a''",
        "“a”",
        "‘a’",
        "«a»",
        "„a“",
        '"a."',
        '"a".',
    ),
    *(
        "a.b",
        "a. b",
        "a .b",
        "U.S.A.",
        "a...b",
        "a....b",
        "Mr. X",
        "mr. x",
        "No. 5",
        "e.g.",
        "etc. And",
    ),
    *(
        "a&b",
        "a & b",
        "&amp;",
        "&lt;",
        "&#39;",
        "a|b",
        "a[b]",
        "<b>",
        "a<b",
        "a>b",
        "%",
        "5%",
        "5 %",
    ),
    *(
        "a\nb",
        "a\tb",
        "a\rb",
        "a\r\nb",
        "  a   b  ",
        "a\x00b",
        "a\u2028b",
        "a\x85b",
        "a\u00a0b",
        "\ufeffa",
    ),
    *(
        "e\u0301",
        "\u0301",
        "\u200b",
        "a\u200bb",
        "\xad",
        "😀",
        "👨\u200d👩\u200d👧",
        "ﬁ",
        "Ａ",
        "İ",
        "ẞ",
        "ΑΣ",
    ),
    *("東京 タワー", "中文。", "Это тест.", "नमस्ते।", "مرحبا،", "שלום", "สวัสดี", "한국어."),
    *("a" * 120, "." * 30, "'" * 20, "1," * 20, "1,000" * 10, "-" * 20, "<unk>" * 5, "@,@" * 5),
    *("THE Mill", "The mIll", "the", "The", "mill.", "mill's", "river,", "(river)", "river;sea"),
]


def noisy(seed: int, words: list[str], length: int) -> str:
    """Return words with noise between and inside them."""
    draw = random.Random(seed)
    parts = []
    for _ in range(length):
        word = draw.choice(words)
        kind = draw.random()
        if kind < 0.25:
            word = draw.choice(NOISE)
        elif kind < 0.45:
            place = draw.randrange(len(word) + 1)
            word = word[:place] + draw.choice(NOISE) + word[place:]
        elif kind < 0.55:
            word = word.upper()
        parts.append(word + draw.choice(("", " ", " ", " ", "  ")))
    return "".join(parts)


def texts() -> list[tuple[str, str]]:
    """Return kind and text of every golden row."""
    rows = [("ordinary", text) for text in ORDINARY]
    rows += [("corpus", line) for line in LINES]
    words = [word for line in LINES for word in line.split()]
    rows += [("noisy", noisy(number, words, 12)) for number in range(70)]
    rows += [("adversarial", text) for text in ADVERSARIAL]
    return list(dict.fromkeys(rows))


def plain(value: object) -> object:
    """Return a value as JSON holds it."""
    if torch.is_tensor(value):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "keys"):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def tried(function: object, *args: object, **kwargs: object) -> dict:
    """Return the result of a call, or the type of its error."""
    try:
        return {"result": plain(function(*args, **kwargs))}
    except Exception as error:
        return {"error": type(error).__name__}


# ---- vocabularies ------------------------------------------------------------------------------

_EOS = {"special": ["<eos>"]}
VOCABULARIES: list[tuple[dict, dict]] = [
    ({}, {}),
    (_EOS, {}),
    (_EOS, {"add_eos": True}),
    ({"special": ["<unk>", "<eos>"]}, {}),
    ({"special": ["<eos>", "<elsewhere>"]}, {}),
    ({**_EOS, "lower_case": True}, {}),
    ({**_EOS, "min_freq": 2}, {}),
    ({**_EOS, "min_freq": 3, "lower_case": True}, {}),
    ({**_EOS, "max_size": 10}, {}),
    ({"special": ["<eos>", "<unk>"], "max_size": 10, "min_freq": 2}, {}),
    ({**_EOS, "delimiter": ""}, {}),
    ({**_EOS, "delimiter": ","}, {}),
    ({**_EOS, "never_split": ["mill", "a,b"]}, {}),
    ({**_EOS, "language": "de"}, {}),
]


def vocabularies() -> list[dict]:
    """Return the symbols, in their order, that the reference finds with each set of options."""
    rows = []
    for options, kwargs in VOCABULARIES:
        for path in (CORPUS, PLAIN):
            tokenizer = TransfoXLTokenizer(**options)
            tokenizer.count_file(str(path), **kwargs)
            tokenizer.build_vocab()
            rows.append(
                {
                    "options": options,
                    "count": kwargs,
                    "file": path.name,
                    "symbols": tokenizer.idx2sym,
                    "counts": [tokenizer.counter.get(symbol, 0) for symbol in tokenizer.idx2sym],
                }
            )
    tokenizer = TransfoXLTokenizer(**_EOS)
    tokenizer.count_sents([["b", "a"], ["b", "c", "a"], []])
    tokenizer.build_vocab()
    rows.append({"options": _EOS, "sentences": [["b", "a"], ["b", "c", "a"], []]})
    rows[-1]["symbols"] = tokenizer.idx2sym
    return rows


# ---- calls -------------------------------------------------------------------------------------

# Method and arguments; each on a tokenizer of its own.
CALLS: list[dict] = [
    {"method": "__call__", "args": ["the mill and the river"]},
    {"method": "__call__", "args": [["the mill", "the old river ."]]},
    {"method": "__call__", "args": [["the mill", "the old river ."]], "kwargs": {"padding": True}},
    {"method": "__call__", "args": ["the mill", "the river"]},
    {
        "method": "__call__",
        "args": ["the old mill and the river"],
        "kwargs": {"truncation": True, "max_length": 3},
    },
    {"method": "__call__", "args": [["the", "mill,"]], "kwargs": {"is_split_into_words": True}},
    {"method": "__call__", "args": ["the mill"], "kwargs": {"return_token_type_ids": True}},
    {"method": "encode", "args": ["the mill"], "kwargs": {"add_special_tokens": False}},
    {"method": "decode", "args": [[1, 0, 2, 3]]},
    {"method": "decode", "args": [[1, 0, 2, 3]], "kwargs": {"skip_special_tokens": True}},
    {"method": "decode", "args": [[1, 2]], "kwargs": {"clean_up_tokenization_spaces": False}},
    {"method": "decode", "args": [[]]},
    {"method": "decode", "args": [5000]},
    {"method": "convert_ids_to_tokens", "args": [[0, 1, 2]]},
    {"method": "convert_ids_to_tokens", "args": [[5000]]},
    {"method": "convert_ids_to_tokens", "args": [[-1]]},
    {"method": "convert_tokens_to_ids", "args": [["the", "zebra", "<eos>", "<unk>", "<formula>"]]},
    {"method": "convert_tokens_to_ids", "args": ["the"]},
    {"method": "convert_tokens_to_string", "args": [["a", "@-@", "b", ",", "1", "@,@", "000"]]},
    {"method": "convert_tokens_to_string", "args": [["5", "@.@", "2", "'s", '"', "q", '"', "."]]},
    {"method": "convert_tokens_to_string", "args": [["(", "x", ")", "<eos>", "= ", "=", "&apos;"]]},
    {"method": "convert_tokens_to_string", "args": [["a @,@ b", "@,@", "@.@", "@-@"]]},
    {"method": "convert_tokens_to_string", "args": [[]]},
    {"method": "build_inputs_with_special_tokens", "args": [[4, 5]]},
    {"method": "build_inputs_with_special_tokens", "args": [[4, 5], [6]]},
    {"method": "get_special_tokens_mask", "args": [[0, 4], None, True]},
    {"method": "num_special_tokens_to_add", "args": []},
    {"method": "tokenize", "args": ["the mill"], "kwargs": {"add_eos": True}},
    {"method": "moses_punct_norm", "args": ["« a »  “b” — c… ’d’"]},
    {"method": "moses_tokenize", "args": ["Hello, 'world' a-b & c's 1,000"]},
    {"method": "moses_pipeline", "args": ["Hello, 'world' a-b & c's 1,000.5"]},
    {"method": "_tokenize", "args": ["the mill 's"], "kwargs": {"add_eos": True}},
    {"method": "_tokenize", "args": ["the mill 's"], "kwargs": {"add_double_eos": True}},
    {"method": "encode_sents", "args": [[["the", "mill"], ["zebra"], []]]},
    {"method": "encode_sents", "args": [[["the", "mill"], ["zebra"]]], "kwargs": {"ordered": True}},
    {"method": "convert_to_tensor", "args": [["the", "zebra", "<eos>"]]},
    {"method": "add_tokens", "args": [["new", "the", "two words"]]},
    {"method": "add_special_tokens", "args": [{"pad_token": "<pad>"}]},
    {"method": "add_symbol", "args": ["new"]},
    {"method": "add_special", "args": ["<new>"]},
    {"method": "get_added_vocab", "args": []},
    {"method": "__len__", "args": []},
]
# What is asked of the tokenizer after calls that change it.
_AFTER = ("add_tokens", "add_special_tokens", "add_symbol", "add_special")
_AFTER_TEXT = "the new two words and <pad> <new>"
FIELDS = (
    *("unk_token", "eos_token", "additional_special_tokens", "all_special_ids", "unk_token_id"),
    *("pad_token", "bos_token", "special", "min_freq", "max_size", "lower_case", "delimiter"),
    *("never_split", "language", "vocab_file", "model_max_length", "model_input_names"),
    *("padding_side", "vocab_files_names", "vocab_size", "is_fast", "eos_token_id"),
)
NUMBERS = [
    *("1,000", "1,000,000.5", "3.14", "1,2", "1.", ",1", "1,", "1..2", "1,,2", "a1,2b", "1 ,000"),
    *("-1.5", "1,000.", "1.5.2", "٣,٤", "a.b", "a,b", "1,a", "", "5"),
]
JOINED = [
    *("1 @,@ 000", "1 @.@ 5", "1@,@5", "a @,@ b", "@,@", " @,@ ", "1 @,@ 000 @.@ 5", "a @-@ b"),
    *("1 @,@", "@.@ 1", "1  @,@  2"),
]


def calls(make: Callable[[], TransfoXLTokenizer]) -> list[dict]:
    """Return what each of the calls returns."""
    rows = []
    for call in CALLS:
        tokenizer = make()
        method = getattr(tokenizer, call["method"])
        row = {**call, **tried(method, *call["args"], **call.get("kwargs", {}))}
        if call["method"] in _AFTER:
            row["after"] = {"text": _AFTER_TEXT, **tried(tokenizer.encode, _AFTER_TEXT)}
            row["after"]["length"] = len(tokenizer)
        rows.append(row)
    return rows


# Options of a tokenizer with the same vocabulary, and texts that tell them apart.
OPTIONS = [
    {"lower_case": True},
    {"lower_case": True, "never_split": ["ABC", "Mill"]},
    {"never_split": ["the mill", "a,b", "well-known"]},
    {"never_split": []},
    {"delimiter": ""},
    {"delimiter": ","},
    {"language": "de"},
    {"language": "fr"},
    {"eos_token": "</s>", "unk_token": "<UNK>"},
    {"additional_special_tokens": ["<river>", "@-@"]},
]
OPTION_TEXTS = [
    "The ABC-d Mill's abc, <unk> <UNK> <eos> </s> <formula>",
    "see the mill's a,b well-known 1,000.5 Café",
    "z.B. der Mühle, d.h. l'été c'est 1.000,5 e.g. this",
    "the <river> runs @-@ a @-@ b",
]


def with_options() -> list[dict]:
    """Return the tokens of some texts with each set of options."""
    rows = []
    for options in OPTIONS:
        row: dict = {"options": options}
        try:
            tokenizer = TransfoXLTokenizer(vocab_file=str(DATA / "vocab.txt"), **options)
        except Exception as error:
            rows.append({**row, "error": type(error).__name__})
            continue
        row["tokens"] = [[text, tokenizer.tokenize(text)] for text in OPTION_TEXTS]
        row["ids"] = [tried(tokenizer.encode, text) for text in OPTION_TEXTS]
        row["length"] = len(tokenizer)
        rows.append(row)
    return rows


def of_text(tokenizers: dict, kind: str, text: str) -> dict:
    """Return one row: tokens by case, how they are joined, and what becomes of the ids."""
    plain_one, lower = tokenizers["cased"], tokenizers["lower"]
    row = {"kind": kind, "text": text, "tokens": plain_one.tokenize(text)}
    tokens = lower.tokenize(text)
    if tokens != [token.lower() for token in row["tokens"]]:
        row["lower_tokens"] = tokens
    row["ids"] = plain_one.encode(text)
    row["joined"] = plain_one.convert_tokens_to_string(row["tokens"])
    if row["joined"] == text:
        del row["joined"]
    if kind in ("ordinary", "corpus"):
        row["lower_ids"] = lower.encode(text)
        row["decoded"] = plain_one.decode(row["ids"])
    return row


# ---- files -------------------------------------------------------------------------------------


def files(make: Callable[[], TransfoXLTokenizer]) -> dict:
    """Return what is written, and whether it is read back."""
    tokenizer = make()
    with tempfile.TemporaryDirectory() as folder:
        whole, one, absent = (Path(folder, name) for name in ("whole", "one", "absent"))
        written = tokenizer.save_pretrained(whole)
        one.mkdir()
        prefixed = tokenizer.save_vocabulary(str(one), filename_prefix="x")
        alone = tokenizer.save_vocabulary(str(absent))
        again = TransfoXLTokenizer.from_pretrained(whole)
        result = {
            "save_pretrained": [Path(path).name for path in written],
            "there": sorted(path.name for path in whole.iterdir()),
            "save_vocabulary": [Path(path).name for path in (*prefixed, *alone)],
            "tokenizer_config.json": json.loads((whole / "tokenizer_config.json").read_text()),
            "special_tokens_map.json": json.loads((whole / "special_tokens_map.json").read_text()),
            "same": again.idx2sym == tokenizer.idx2sym,
        }
        os.environ["TRUST_REMOTE_CODE"] = "False"
        result["untrusted"] = tried(TransfoXLTokenizer.from_pretrained, whole).get("error")
        os.environ["TRUST_REMOTE_CODE"] = "True"
    return result


def encoded_files(make: Callable[[], TransfoXLTokenizer]) -> list[dict]:
    """Return the ids of files: those of the reference, which loses the end tokens, and expected."""
    rows = []
    for path in (PLAIN, CORPUS):
        lines = path.read_text(encoding="utf-8").splitlines()
        for kwargs in ({}, {"ordered": True}, {"ordered": True, "add_eos": False}):
            tokenizer = make()
            ids = [tokenizer.encode(line) for line in lines]
            if kwargs.get("add_eos", True):
                ids = [[*row, tokenizer.eos_token_id] for row in ids]
            rows.append(
                {
                    "file": path.name,
                    "kwargs": kwargs,
                    "expected": list(chain(*ids)) if kwargs.get("ordered") else ids,
                    "reference": plain(tokenizer.encode_file(str(path), **kwargs)),
                }
            )
    return rows


# ---- corpora -----------------------------------------------------------------------------------

_SENTENCES = [
    [10 * place + n for n in range(size)] for place, size in enumerate((5, 3, 7, 2, 6, 4))
]


def _batches(iterator: object) -> list:
    return [plain(batch) for batch in iterator]


def iterators(make: Callable[[], TransfoXLTokenizer]) -> list[dict]:
    """Return the batches of the iterators: data, targets and the length of the segment."""
    rows = []
    for size, batch, length, extended in (
        *((23, 3, 4, None), (23, 3, 4, 2), (23, 3, 30, None), (20, 2, 3, 5), (9, 4, 1, None)),
        (3, 5, 2, None),
    ):
        given = {"bsz": batch, "bptt": length, "ext_len": extended}
        made = MODULE.LMOrderedIterator(torch.arange(size), **given)
        row = {"class": "LMOrderedIterator", "data": size, "arguments": given}
        rows.append({**row, "batches": _batches(made)})
        if size == 23:
            rows.append({**row, "start": 2, "batches": _batches(made.get_fixlen_iter(start=2))})
    for seed in (0, 1):
        made = MODULE.LMOrderedIterator(torch.arange(101), 2, 5)
        np.random.seed(seed)
        lengths = [
            [batch[0].shape[1], batch[2]] for batch in made.get_varlen_iter(std=3, min_len=2)
        ]
        rows.append(
            {
                "class": "LMOrderedIterator",
                "data": 101,
                "arguments": {"bsz": 2, "bptt": 5},
                "varlen": {"std": 3, "min_len": 2, "max_deviation": 3},
                "seed": seed,
                "lengths": lengths,
            }
        )
    data = [torch.tensor(sentence) for sentence in _SENTENCES]
    for batch, length, extended, shuffle in (
        *((2, 4, None, False), (2, 4, 1, False), (3, 2, None, False), (1, 5, None, False)),
        *((2, 4, None, True), (7, 2, None, False)),
    ):
        given = {"bsz": batch, "bptt": length, "ext_len": extended, "shuffle": shuffle}
        np.random.seed(3)
        made = MODULE.LMShuffledIterator(data, **given)
        row = {"class": "LMShuffledIterator", "data": _SENTENCES, "arguments": given}
        rows.append({**row, **({"seed": 3} if shuffle else {}), "batches": _batches(made)})
    text = "the old mill\nthe river and the mill\na dog and a cat\nthe end of the day\n"
    other = "the dog\nthe cat and the dog\n"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("a.txt", "b.txt")]
        for path, content in zip(paths, (text, other * 3), strict=True):
            path.write_text(content)
        for given in ({"bsz": 2, "bptt": 3}, {"bsz": 2, "bptt": 3, "ext_len": 1}):
            made = MODULE.LMMultiFileIterator([str(path) for path in paths], make(), **given)
            row = {"class": "LMMultiFileIterator", "data": [text, other * 3], "arguments": given}
            rows.append({**row, "batches": _batches(made)})
    return rows


def corpora() -> list[dict]:
    """Return what a corpus of three files comes to, by the name of its kind."""
    rows = []
    lines = PLAIN.read_text(encoding="utf-8").splitlines(keepends=True)
    content = {"train": "".join(lines), "valid": "".join(lines[:2]), "test": lines[1] + lines[4]}
    with tempfile.TemporaryDirectory() as folder:
        for split, text in content.items():
            Path(folder, f"{split}.txt").write_text(text, encoding="utf-8")
        for kind in ("wt103", "wt2", "ptb", "enwik8", "text8", "lm1b", "other"):
            for options in ({"special": ["<eos>"]}, {"special": ["<unk>", "<eos>"], "max_size": 6}):
                row: dict = {"kind": kind, "options": options, "files": content}
                rows.append({**row, **_corpus(folder, kind, options)})
    return rows


def _corpus(folder: str, kind: str, options: dict) -> dict:
    corpus = TransfoXLCorpus(**options)
    try:
        corpus.build_corpus(folder, kind)
        iterators = {s: corpus.get_iterator(s, 2, 4) for s in ("train", "valid", "test")}
    except Exception as error:
        return {"error": type(error).__name__}
    return {
        "symbols": corpus.vocab.idx2sym,
        **{split: plain(getattr(corpus, split)) for split in iterators},
        "iterators": {split: type(made).__name__ for split, made in iterators.items()},
        "batches": {split: len(list(made)) for split, made in iterators.items()},
    }


def train() -> None:
    """Write the vocabulary that the reference makes of the corpus."""
    tokenizer = TransfoXLTokenizer(**_EOS)
    tokenizer.count_file(str(CORPUS))
    tokenizer.build_vocab()
    (DATA / "vocab.txt").write_text("\n".join(tokenizer.idx2sym) + "\n", encoding="utf-8")


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    assert transformers.__version__ == "4.37.2", transformers.__version__
    transformers.logging.set_verbosity_error()
    if options.train:
        train()

    def make(**kwargs: object) -> TransfoXLTokenizer:
        return TransfoXLTokenizer(vocab_file=str(DATA / "vocab.txt"), **kwargs)

    tokenizers = {"cased": make(), "lower": make(lower_case=True)}
    fields = {name: plain(getattr(tokenizers["cased"], name)) for name in FIELDS}
    golden = {
        "transformers": transformers.__version__,
        "fields": {**fields, "vocab_file": Path(fields["vocab_file"]).name},
        "vocabularies": vocabularies(),
        "calls": calls(make),
        "options": with_options(),
        "numbers": [[text, MODULE.tokenize_numbers([text])] for text in NUMBERS],
        "joined numbers": [[text, MODULE.detokenize_numbers(text)] for text in JOINED],
        "files": files(make),
        "encoded files": encoded_files(make),
        "iterators": iterators(make),
        "corpora": corpora(),
        "texts": [of_text(tokenizers, *row) for row in texts()],
    }
    golden["files"]["tokenizer_config.json"].pop("vocab_file", None)
    sections = []
    for name, value in golden.items():
        body = json.dumps(value, ensure_ascii=True)
        if isinstance(value, list):
            rows = [json.dumps(row, ensure_ascii=True) for row in value]
            body = "[\n" + ",\n".join(rows) + "\n]"
        sections.append(f"{json.dumps(name)}: {body}")
    path = DATA / "golden.json"
    path.write_text("{" + ",\n".join(sections) + "}\n", encoding="utf-8")
    print(
        f"{path.name}: {path.stat().st_size} bytes, {len(golden['texts'])} texts", file=sys.stderr
    )


if __name__ == "__main__":
    main()
