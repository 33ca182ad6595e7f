"""Write the goldens of XLM's tokenizer with transformers 4.37.2, and train its small vocabulary.

    python tests/reference/make_xlm_tokenizer_golden.py --own-python PYTHON [--train]

It runs in the interpreter of the reference, which needs sacremoses, jieba, pythainlp and kytea
besides; ``--own-python`` is one that has xlmfam, to write files that the reference reads back.
``kytea.bin`` was made from ``kytea_corpus.txt`` by ``train-kytea -notags -charn 2 -typen 2
-charw 2 -typew 2`` of KyTea 0.4.7. Only what the reference returns is kept, never its code.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "tokenizers" / "xlm"
CORPUS = json.loads((DATA / "corpus.json").read_text(encoding="utf-8"))
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{n}>" for n in range(10))]
MERGES = 1100

# What is put between, into and around ordinary words to make noisy text of them.
NOISE = [
    *"\t\n\r\x00\x07\x1b\x7f\x85\xa0\xad\u0600\u200b\u200c\u200d\u200e\u2028\u2029\u202e\u2060\ufeff",
    *"\u3000\u2009\u0301\u0308\u0327\u0345\u093c\u0e31\u20e3\ufe0f\ue000\uffff\U0001f1e9\U000e0041",
    *"😀👍🏽☃™©½²Ⅷ①ﬁﬃĳ㎏ＡｂＺ０９！？，．：；（）％＂＇～「」『』【】《》〈〉。、・…—–‐‑−„“”‚‘’«»‹›´`",
    *"'\",.;:!?()[]{}<>@#$%^&*-_=+|\\/~€£¥₹ßſİıſẞǅŉΣςΆάΐ",
    *(
        "''",
        "``",
        '""',
        "...",
        "....",
        "..",
        "--",
        " %",
        "5 %",
        " :",
        " ;",
        ") .",
        "( a )",
        "nº\xa0",
        "\xa0cm",
    ),
    *(
        "1\xa0000",
        "\xa0%",
        "\xa0?",
        '",',
        '."',
        "a.b.",
        "e.g.",
        "No. 5",
        "'s",
        "n't",
        "DOTMULTI",
        "</w>",
    ),
    *(
        "<unk>",
        "<special1>",
        "</s>",
        "@-@",
        "&amp;",
        "&quot;",
        "👨\u200d👩\u200d👧",
        "e\u0301",
        "。 ",
        "．",
        "x'",
        "'x",
    ),
]
ADVERSARIAL = [
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
    "' '",
    '"',
    '"""',
    ",",
    ",,",
    "a,",
    ",a",
    ",.'",
    "1,2,3",
    "1,a",
    "a,1",
    "1,000,000.",
    "a.'",
    "a. '",
    "x.'  ",
    "'.'",
    "a'b'c'd",
    "'a''b'''c",
    "a ' b",
    "rock 'n' roll",
    "5's 5'6\" 6'2",
    "l'l'l'",
    "DOTMULTI",
    "a DOTDOTMULTI b",
    "DOTMULTI.x",
    "a..b...c....d",
    "..a",
    "a..",
    "... .",
    "THISISPROTECTED000",
    "U.S.A. is",
    "U.S.A. Is",
    "etc. and",
    "etc. And",
    "No. 5",
    "No. five",
    "No. V",
    "pp. 5",
    "pp. x",
    "Mr. X",
    "mr. X",
    "Sr. y",
    "Dl. X",
    "dr. h. c. X",
    "bzw. X",
    "3. Mai",
    "a. B",
    "é. É",
    "1.5. 6",
    "x.y. Z",
    "١. ٢",
    "word.\u200bword",
    "a\nb\nc",
    "a\tb",
    "a\rb",
    "a\r\nb",
    "a\x00b\x01c",
    "a\u2028b\u2029c",
    "a\x85b",
    "a\x1cb\x1fc",
    "\ufeffbom",
    "soft\xadhyphen",
    "zero\u200bwidth\u200djoin\u200cer",
    "\u202eright\u202c",
    "a\u0301\u0301\u0301",
    "\u0301",
    "\u0301 \u0308",
    "a \u0301 b",
    "e\u0302\u0301 \u2460\u0301",
    "\u1e9b\u0323",
    "\u212b \u2126 \u212a",
    "\uac00\u11a8",
    "ΑΣ ΒΣ. ΣΑΣ'",
    "ΌΔΟΣ,ΣΟΣ",
    "İSTANBUL Iı İ",
    "ẞ ß SS",
    "ŉ ǆ ǅ Ǆ",
    "ſ ﬀ ﬁ ﬃ ﬆ",
    "½ ² Ⅷ ⅷ Ⅻ",
    "①②③ ㎏ ㍿",
    "ｆｕｌｌ ｗｉｄｔｈ １２３",
    "（ａ）【ｂ】《ｃ》",
    "。。 。a",
    "．．a． b",
    "a。 \n b",
    "！？，：；",
    "“a” ‘b’ „c‟ ‚d‛ «e» ‹f›",
    "a’s a‘s ’s n’t 5’6",
    "«\xa0a\xa0»",
    "«a»",
    "5\xa0000 5\u202f000",
    "5 % 5\xa0% %",
    "a : b ; c :d",
    "( a ) (b)(c) )( () ) .",
    "a--b a—b a–b",
    "http://a.b/c?d=e&f=g",
    "<a href='b'>c</a>",
    "a@b.c",
    "#tag @user $5 €5 5€ £5.00",
    "a/b\\c|d",
    "a_b-c+d=e*f^g~h`i",
    "``a''",
    "`a`",
    "´a´",
    "''a''",
    "' a '",
    '"a",',
    '"a".',
    '"a"...',
    'a,"b',
    'a."b c',
    "😀😀 👍🏽 🇩🇪 👨\u200d👩\u200d👧 1️⃣",
    "<s>a</s>",
    "<unk> <pad>",
    "<special1>x<special0>",
    "< special1 >",
    "<SPECIAL1>",
    "a</w>b </w>",
    "a b</w>",
    "@@ a@@",
    "\ue000\uf8ff\U000f0000\U0010ffff",
    "\u0378\u0379",
    "\u0e33\u0e4d\u0e32",
    "\u1100\u1161\u11a8",
    "ﷺ ﷲ ـــ",
    "कि क\u094dष क्\u200dष",
    "ş ţ ș ț Ş Ţ Ș Ț ă â î Ă Â Î",
    "s\u0327 t\u0326 a\u0306",
    "a" * 120,
    "ab" * 60 + " " + "the" * 40,
    "." * 50,
    "'" * 30,
    "," * 30,
    "a" * 47 + " " + "a" * 48 + " " + "a" * 49 + " " + "a" * 50,
    "-" * 20,
    "\u0301" * 20,
    "é" * 70,
    "thethe" * 30,
    "! ! !",
    "!!!",
    "?!?!",
    "a!b?c",
    "(((",
    ")))",
    "[x]{y}<z>",
    "%%%",
    "50%",
    "a%b",
    "$$",
    "&&",
    "x\u037ey",
    "a\u1fefb",
    "a\u0387b",
]

SINGLE = [
    {"args": ["The river"]},
    {"args": ["The river", "an old mill"]},
    {"args": [["The river", "an old mill", ""]], "kwargs": {"padding": True}},
    {
        "args": [["The river", "an old mill"], ["a b", "c"]],
        "kwargs": {"padding": "max_length", "max_length": 30},
    },
    {
        "args": ["The old river mill", "an old mill"],
        "kwargs": {"truncation": True, "max_length": 9},
    },
    {
        "args": ["The old river mill", "an old mill"],
        "kwargs": {"truncation": "only_second", "max_length": 12},
    },
    {
        "args": ["The old river"],
        "kwargs": {"return_special_tokens_mask": True, "return_length": True},
    },
    {"args": ["The old river"], "kwargs": {"add_special_tokens": False}},
    {"args": [["The", "river's", "mill."]], "kwargs": {"is_split_into_words": True}},
    {"args": ["l'été où", "d'après"], "kwargs": {"lang": "fr"}},
    {"args": ["The don't mill's É"], "kwargs": {"bypass_tokenizer": True}},
    {"args": ["  The\tdon't \n mill's  "], "kwargs": {"bypass_tokenizer": True, "lang": "zh"}},
    {"method": "encode", "args": ["The river", "mill"]},
    {"method": "tokenize", "args": ["The old river, don't"]},
    {"method": "tokenize", "args": ["L'été, qu'il"], "kwargs": {"lang": "fr"}},
    {
        "method": "convert_tokens_to_ids",
        "args": [["the</w>", "</s>", "nonsense", "<pad>", "<special3>"]],
    },
    {"method": "convert_ids_to_tokens", "args": [[0, 1, 2, 3, 5, 13, 14, 999999]]},
    {"method": "convert_tokens_to_string", "args": [["the</w>", "ri", "ver</w>", "x"]]},
    {"method": "build_inputs_with_special_tokens", "args": [[5, 6]]},
    {"method": "build_inputs_with_special_tokens", "args": [[5, 6], [7]]},
    {"method": "create_token_type_ids_from_sequences", "args": [[5, 6]]},
    {"method": "create_token_type_ids_from_sequences", "args": [[5, 6], [7]]},
    {"method": "get_special_tokens_mask", "args": [[5, 6]]},
    {"method": "get_special_tokens_mask", "args": [[5, 6], [7]]},
    {
        "method": "get_special_tokens_mask",
        "args": [[0, 50, 1, 60, 1, 2, 3, 5]],
        "kwargs": {"already_has_special_tokens": True},
    },
    {"method": "num_special_tokens_to_add", "args": []},
    {"method": "num_special_tokens_to_add", "args": [True]},
    {"method": "decode", "args": [[0, 50, 60, 1, 70, 1, 2]]},
    {
        "method": "decode",
        "args": [[0, 50, 60, 1, 70, 1, 2]],
        "kwargs": {"skip_special_tokens": True},
    },
    {"method": "bpe", "args": ["thethe"]},
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
        elif kind < 0.5:
            place = draw.randrange(len(word) + 1)
            word = word[:place] + draw.choice(NOISE) + word[place:]
        elif kind < 0.6:
            word = word.upper()
        parts.append(word + draw.choice(("", " ", " ", " ", "  ")))
    return "".join(parts)


def texts() -> list[tuple[str, str, str]]:
    """Return kind, language and text of every golden row."""
    rows = [("ordinary", lang, line) for lang, lines in CORPUS.items() for line in lines]
    for number, (lang, lines) in enumerate(CORPUS.items()):
        words = [word for line in lines for word in line.split()]
        if lang in ("zh", "th", "ja"):
            words = [line[place : place + 4] for line in lines for place in range(0, len(line), 4)]
        rows += [("noisy", lang, noisy(100 * number + n, words, 14)) for n in range(6)]
    langs = ["en", "fr", "de", "ro", "ru", "zh", "th", "ja", "hi", "ko", "xx"]
    for number, text in enumerate(ADVERSARIAL):
        rows += [("adversarial", lang, text) for lang in ("en", langs[number % len(langs)])]
    return list(dict.fromkeys(rows))


def words_of(tokenizer, lang: str, line: str) -> list[str]:
    """Return the words that the reference finds: without merges, each character is a token."""
    return "".join(tokenizer._tokenize(line, lang=lang)).split("</w>")[:-1]


def train(make) -> None:
    """Train byte pairs on the words that the reference makes of the corpus, in both cases."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(SPECIAL)}))
        Path(folder, "merges.txt").write_text("")
        counts: Counter = Counter()
        for lower in (True, False):
            tokenizer = make(folder, do_lowercase_and_remove_accent=lower)
            for lang, lines in CORPUS.items():
                for line in lines:
                    counts.update(words_of(tokenizer, lang, line))
    table = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(counts) if word}
    symbols = Counter(s for word, row in table.items() for s in row for _ in range(counts[word]))
    merges: list[str] = []
    tokens = [s for s, n in sorted(symbols.items(), key=lambda i: (-i[1], i[0])) if n > 1]
    while len(merges) < MERGES:
        pairs: Counter = Counter()
        for word, row in table.items():
            for pair in itertools.pairwise(row):
                pairs[pair] += counts[word]
        pair = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(f"{pair[0]} {pair[1]} {pairs[pair]}\n")  # with a count, as the public files
        tokens.append(pair[0] + pair[1])
        for row in table.values():
            place = 0
            while place < len(row) - 1:
                if (row[place], row[place + 1]) == pair:
                    row[place : place + 2] = [pair[0] + pair[1]]
                place += 1
    vocab = {token: n for n, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}
    (DATA / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    (DATA / "merges.txt").write_text("".join(merges), encoding="utf-8")


def honouring_lang(base):
    """Return the reference's tokenizer with ``lang`` and ``bypass_tokenizer`` in effect.

    4.37.2 takes both in a call and ignores them ("not recognized"); only the method that splits a
    text knows them.
    """

    class HonouringLang(base):
        options: dict = {}  # noqa: RUF012 - set anew and never changed in place

        def _tokenize(self, text, **kwargs):
            return super()._tokenize(text, **{**self.options, **kwargs})

        def asked(self, method, *args, **kwargs):
            known = ("lang", "bypass_tokenizer")
            self.options = {name: kwargs.pop(name) for name in known if name in kwargs}
            try:
                return getattr(self, method)(*args, **kwargs)
            finally:
                self.options = {}

    return HonouringLang


def of_call(tokenizer, call: dict) -> dict:
    """Return what a call returns."""
    method = call.get("method", "__call__")
    result = tokenizer.asked(method, *call["args"], **call.get("kwargs", {}))
    is_mapping = hasattr(result, "keys")
    return {"result": {name: result[name] for name in result} if is_mapping else result}


def of_text(tokenizers: dict, kind: str, lang: str, text: str) -> dict:
    """Return one row: ids by case, and of ordinary text tokens and decoded text as well."""
    row = {"kind": kind, "lang": lang, "text": text}
    for case, tokenizer in tokenizers.items():
        row[case] = tokenizer.asked("encode", text, lang=lang)
    if kind == "ordinary":
        lower = tokenizers["lower"]
        row["tokens"] = lower.asked("tokenize", text, lang=lang)
        row["decoded"] = lower.decode(row["lower"])
        row["skipped"] = lower.decode(row["lower"], skip_special_tokens=True)
        # What a plain call gives, where lang makes no difference.
        row["called"] = lower(text, lang=lang)["input_ids"]
        if row["called"] == row["lower"]:
            del row["called"]
    return row


WRITE_OWN = """
import json, sys
from xlmfam.common.tokenizers import AddedToken
from xlmfam.common.tokenizers.xlm import XLMTokenizer
sys.path.insert(0, "tests/reference")
from make_xlm_tokenizer_golden import ADDED_TEXTS, DATA, texts
out = {}
for case, lower in (("lower", True), ("cased", False)):
    tokenizer = XLMTokenizer.from_pretrained(DATA, do_lowercase_and_remove_accent=lower,
                                             lang2id={"en": 0, "fr": 1})
    tokenizer.save_pretrained(f"{sys.argv[1]}/{case}")
    tokenizer.lang2id = None
    tokenizer.kytea_model = DATA / "kytea.bin"
    out[case] = [tokenizer(text, lang=lang)["input_ids"] for _, lang, text in texts()]
tokenizer.add_tokens(["<new>", AddedToken("<left>", lstrip=True), "the</w>"])
tokenizer.add_special_tokens({"mask_token": "<mask>"})
tokenizer.save_pretrained(f"{sys.argv[1]}/added")
out["added"] = [tokenizer(text)["input_ids"] for text in ADDED_TEXTS]
json.dump(out, open(f"{sys.argv[1]}/ids.json", "w"))
"""
ADDED_TEXTS = [
    "the <new> river<new>",
    "the <left> river",
    "a <mask> b <special1>",
    "<new><new>  the",
]


def check_own_files(own_python: str, reference) -> dict:
    """Let the reference read what xlmfam writes; return the texts whose ids differ, by case."""
    different = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([own_python, "-c", WRITE_OWN, folder], check=True, cwd=ROOT)
        expected = json.loads(Path(folder, "ids.json").read_text())
        for case, ids in expected.items():
            tokenizer = reference.from_pretrained(f"{folder}/{case}")
            rows = [("en", t) for t in ADDED_TEXTS] if case == "added" else [r[1:] for r in texts()]
            found = [tokenizer.asked("encode", text, lang=lang) for lang, text in rows]
            different[case] = [r for r, a, b in zip(rows, ids, found, strict=True) if a != b]
            if case != "added":
                assert tokenizer.lang2id == {"en": 0, "fr": 1}, tokenizer.lang2id
                assert tokenizer.do_lowercase_and_remove_accent == (case == "lower")
    return different


def documented(reference) -> dict:
    """Return what rows 2 and 6 are about: default columns, and languages of a public folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(DATA / name, folder)
        config = {
            "model_type": "xlm",
            "lang2id": {"en": 0, "fr": 1},
            "id2lang": {"0": "en", "1": "fr"},
        }
        Path(folder, "config.json").write_text(json.dumps(config))
        tokenizer = reference.from_pretrained(folder)
        columns = list(tokenizer("the river"))
        return {"lang2id": tokenizer.lang2id, "id2lang": tokenizer.id2lang, "columns": columns}


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--own-python", required=True)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as home:
        # The reference looks for KyTea's model below the home folder only.
        os.environ["HOME"] = home
        Path(home, "local/share/kytea").mkdir(parents=True)
        shutil.copy(DATA / "kytea.bin", Path(home, "local/share/kytea/model.bin"))
        import transformers
        from transformers import XLMTokenizer as Reference

        assert transformers.__version__ == "4.37.2", transformers.__version__
        transformers.logging.set_verbosity_error()
        honouring = honouring_lang(Reference)

        def make(folder, **kwargs):
            return honouring(f"{folder}/vocab.json", f"{folder}/merges.txt", **kwargs)

        if options.train:
            train(make)
        tokenizers = {
            "lower": make(DATA),
            "cased": make(DATA, do_lowercase_and_remove_accent=False),
        }
        golden: dict = {"transformers": transformers.__version__}
        golden["texts"] = [of_text(tokenizers, *row) for row in texts()]
        for row in golden["texts"]:
            if row["cased"] == row["lower"]:
                del row["cased"]
        golden["calls"] = [{**call, **of_call(tokenizers["lower"], call)} for call in SINGLE]
        golden["documented"] = documented(Reference)
        golden["special_tokens_map"] = tokenizers["lower"].special_tokens_map
        golden["own files"] = check_own_files(options.own_python, honouring)
    path = DATA / "golden.json"
    lines = [json.dumps(row, ensure_ascii=True, sort_keys=True) for row in golden.pop("texts")]
    rest = json.dumps(golden, ensure_ascii=True, sort_keys=True)
    path.write_text(rest[:-1] + ', "texts": [\n' + ",\n".join(lines) + "\n]}\n")
    for case, different in golden["own files"].items():
        print(f"{case}: {len(different)} texts differ {different[:5]}", file=sys.stderr)
    print(f"{path}: {path.stat().st_size} bytes, {len(lines)} texts", file=sys.stderr)


if __name__ == "__main__":
    main()
