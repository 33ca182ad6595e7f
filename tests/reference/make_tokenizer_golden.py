"""Golden numbers of the XGLM tokenizers, from transformers 4.37.2 run as a black box.

Run in the reference environment (see REFERENCE.md) from the repository's root:

    reference-env/bin/python tests/reference/make_tokenizer_golden.py \
        --own-python .venv/bin/python

It trains the two small sentencepiece models of the tests (only with ``--train``: another
sentencepiece release may train another model), records what the reference makes of a list of
texts and calls, and checks that the reference reads what xlmfam writes, with equal ids.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "tokenizers"
MODEL = DATA / "xglm" / "sentencepiece.bpe.model"
BPE_MODEL = DATA / "bpe" / "sentencepiece.bpe.model"

ODD_TEXTS = [
    "",
    " ",
    "   ",
    " the river",
    "the river ",
    "the river  ",
    "  the   river  ",
    "the\u00a0river\u00a0",
    "the\u3000river\u3000",
    "\tthe\triver\t",
    "the\nriver\n\nold\r\nmill\n",
    "the\u2028river\u2029old\u200bmill\ufeff",
    "the\u2003river\u202fold\u205fmill",
    "a\x00b\x01c\x07d\x1be\x7ff\x85g\x0bh\x0ci",
    "hi \U0001f600\U0001f600 there \U0001f44d\U0001f3fd!",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 flag \U0001f1f9\U0001f1ff.",
    "cafe\u0301 na\u00efve a\u0308o\u0308 e\u0302\u0301",
    "x\u0301\u0302\u0303\u0304 z\u0335\u0336",
    "\u2460\u2461\u2462 \u337f \ufdfa \ufb01n \u00bd \u2122 \u212b",
    "\uff34\uff48\uff45 \uff12\uff10\uff12\uff14\uff01",
    "\uff76\uff9e\uff77\uff9e \u30ab\u3099",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "the\u2581river \u2581 old\u2581",
    "\u2581the",
    "a" * 300,
    "river" * 60,
    "</s>",
    "<s>the</s><pad><unk>",
    "the </s> river",
    "the</s>river</s> </s>old",
    "<madeupword0> the<madeupword6>mill <madeupword7>",
    "<mask> [MASK] <|endoftext|>",
    "don't can't I'm it's we've they're , . ? !",
    "\u200f\u05e9\u05dc\u05d5\u05dd\u200e \u202babc\u202c",
    "\u0b95\u0bcd\u0bb7 \u0915\u093c \u0958 \u09a1\u09bc \u0e19\u0e33 \u0f73",
    "\U00020000\U0002a6d6 \U0001d400\U0001d401 \U00010348",
]

# (method, arguments, keyword arguments); for both tokenizers unless a key "only" says otherwise.
A, B = "The small river runs past the old mill.", "We read a book together every evening!"
C = "Маленькая река течёт мимо старой мельницы."
CALLS: list[dict] = [
    {"args": [A]},
    {"args": [A, B]},
    {"args": [[A, B, "", C]]},
    {"args": [[A, B], [C, A]]},
    {"args": [[[A, B], [C, ""]]]},
    {"args": [A], "kwargs": {"add_special_tokens": False}},
    {"args": [A, B], "kwargs": {"add_special_tokens": False, "return_token_type_ids": True}},
    {"args": [A, B], "kwargs": {"return_token_type_ids": True, "return_special_tokens_mask": True}},
    {"args": [A], "kwargs": {"return_attention_mask": False}},
    {"args": [[A, "river"]], "kwargs": {"return_length": True}},
    {"args": [[A, "river", ""]], "kwargs": {"padding": True}},
    {"args": [[A, "river", ""]], "kwargs": {"padding": True}, "set": {"padding_side": "left"}},
    {"args": [[A, "river"]], "kwargs": {"padding": "longest", "pad_to_multiple_of": 8}},
    {"args": [[A, "river"]], "kwargs": {"padding": "max_length", "max_length": 24}},
    {"args": [A], "kwargs": {"padding": "max_length", "max_length": 24}},
    {"args": [[A, "the"]], "kwargs": {"padding": "max_length"}, "set": {"model_max_length": 20}},
    {"args": [[A, "the"]], "kwargs": {"padding": "max_length"}},
    {"args": [[A, "the"]], "kwargs": {"truncation": True}, "set": {"model_max_length": 5}},
    {
        "args": [[A, "river"], [B, "mill"]],
        "kwargs": {
            "padding": True,
            "return_token_type_ids": True,
            "return_special_tokens_mask": True,
        },
    },
    {"args": [A], "kwargs": {"truncation": True, "max_length": 6}},
    {"args": [A], "kwargs": {"max_length": 6}},
    {
        "args": [A],
        "kwargs": {"truncation": True, "max_length": 6},
        "set": {"truncation_side": "left"},
    },
    *(
        {
            "args": [A, B],
            "kwargs": {"truncation": strategy, "max_length": length},
            "set": {"truncation_side": side},
        }
        for strategy in ("longest_first", "only_first", "only_second", "do_not_truncate", False)
        for length in (17, 30, 31)
        for side in ("right", "left")
    ),
    {"args": [[A, B, C]], "kwargs": {"truncation": True, "max_length": 7, "padding": True}},
    *(
        {
            "args": [[A, B]],
            "kwargs": {
                "truncation": True,
                "max_length": 8,
                "stride": stride,
                "return_overflowing_tokens": True,
                "padding": padding,
            },
            "set": {"truncation_side": side},
        }
        for stride in (0, 2)
        for padding in (False, True)
        for side in ("right", "left")
        if not padding or side == "right"
    ),
    *(
        {
            "args": [A, B],
            "kwargs": {
                "truncation": strategy,
                "max_length": 18,
                "stride": 2,
                "return_overflowing_tokens": True,
            },
        }
        for strategy in ("only_first", "only_second", "longest_first")
    ),
    {"args": [A.split()], "kwargs": {"is_split_into_words": True}},
    {"args": [A.split(), B.split()], "kwargs": {"is_split_into_words": True}},
    {"args": [[A.split(), B.split()]], "kwargs": {"is_split_into_words": True, "padding": True}},
    {
        "args": [A, B],
        "kwargs": {"return_offsets_mapping": True, "return_special_tokens_mask": True},
        "only": "fast",
    },
    {"args": [], "kwargs": {"text_target": A}},
    {"args": [A], "kwargs": {"text_target": B}},
    {"method": "encode", "args": [A, B]},
    {"method": "encode", "args": [A], "kwargs": {"add_special_tokens": False}},
    {"method": "encode_plus", "args": [A, B]},
    {"method": "batch_encode_plus", "args": [[A, B]], "kwargs": {"padding": True}},
    {"method": "tokenize", "args": [A]},
    {"method": "tokenize", "args": [A], "kwargs": {"add_special_tokens": True}},
    {"method": "convert_tokens_to_ids", "args": [["▁the", "</s>", "nonsense", "<pad>"]]},
    {"method": "convert_tokens_to_ids", "args": ["▁the"]},
    {"method": "convert_ids_to_tokens", "args": [[0, 1, 2, 3, 48, 1310]]},
    {
        "method": "convert_ids_to_tokens",
        "args": [[0, 1, 2, 3, 48, 1310]],
        "kwargs": {"skip_special_tokens": True},
    },
    {"method": "convert_tokens_to_string", "args": [["▁the", "▁riv", "er", "▁", "x"]]},
    {"method": "build_inputs_with_special_tokens", "args": [[5, 6]]},
    {"method": "build_inputs_with_special_tokens", "args": [[5, 6], [7]]},
    {"method": "create_token_type_ids_from_sequences", "args": [[5, 6], [7]]},
    {"method": "get_special_tokens_mask", "args": [[5, 6], [7]]},
    {
        "method": "get_special_tokens_mask",
        "args": [[2, 5, 1, 1304]],
        "kwargs": {"already_has_special_tokens": True},
    },
    {"method": "num_special_tokens_to_add", "args": []},
    {"method": "num_special_tokens_to_add", "args": [True]},
    {"method": "prepare_for_model", "args": [[5, 6, 7], [8, 9]]},
    {
        "method": "prepare_for_model",
        "args": [[5, 6, 7], [8, 9]],
        "kwargs": {"truncation": True, "max_length": 6, "padding": "max_length"},
    },
    {"method": "truncate_sequences", "args": [[1, 2, 3, 4, 5], [6, 7]], "only": "slow"},
    {
        "method": "truncate_sequences",
        "args": [[1, 2, 3, 4, 5], None, 2],
        "kwargs": {"stride": 1},
        "only": "slow",
    },
    {
        "method": "pad",
        "args": [{"input_ids": [[5, 6, 7], [8]], "special_tokens_mask": [[1, 0, 0], [1]]}],
    },
    {"method": "pad", "args": [[{"input_ids": [5, 6, 7]}, {"input_ids": [8]}]]},
    {
        "method": "pad",
        "args": [{"input_ids": [5, 6]}],
        "kwargs": {"padding": "max_length", "max_length": 4},
    },
    {"method": "decode", "args": [[2, 48, 631, 135, 5, 2, 48]]},
    {
        "method": "decode",
        "args": [[2, 48, 631, 135, 5, 2, 48, 1]],
        "kwargs": {"skip_special_tokens": True},
    },
    {
        "method": "decode",
        "args": [[2, 48, 4, 6, 48]],
        "kwargs": {"clean_up_tokenization_spaces": False},
    },
    {"method": "decode", "args": [48]},
    {"method": "batch_decode", "args": [[[2, 48], [631, 135]]]},
]

# What a user adds: (tokens as AddedToken fields or strings, special_tokens).
ADDED = [
    ["<new>"],
    [{"content": "<left>", "lstrip": True}],
    [{"content": "<right>", "rstrip": True}],
    [{"content": "<both>", "lstrip": True, "rstrip": True, "normalized": False}],
]
ADDED_SPECIAL = {"mask_token": "<mask>", "additional_special_tokens": ["<x>", "<madeupword0>"]}
ADDED_TEXTS = [
    "the <new> river<new>",
    "the <left> river",
    "the <right> river",
    "the <both> river",
    "the<both>river",
    "<new><new>",
    "a <mask> b <x> c <madeupword1> d",
    "  <new>  ",
]


def train() -> None:
    """Train the unigram and the BPE model."""
    import sentencepiece

    text = (DATA / "corpus.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line]
    jobs = (
        (MODEL, "unigram", "nmt_nfkc", 1500, lines * 2),
        (BPE_MODEL, "bpe", "identity", 700, lines[:18]),
    )
    for path, kind, rule, size, rows in jobs:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(rows),
                model_prefix=f"{folder}/m",
                model_type=kind,
                vocab_size=size,
                character_coverage=1.0,
                normalization_rule_name=rule,
                hard_vocab_limit=False,
                num_threads=1,
                minloglevel=2,
                # The order that fairseq has: its own four tokens replace the first three.
                unk_id=0,
                bos_id=1,
                eos_id=2,
            )
            path.write_bytes(Path(folder, "m.model").read_bytes())


def texts() -> list[str]:
    """Return every text of the goldens."""
    corpus = (DATA / "corpus.txt").read_text(encoding="utf-8").splitlines()
    return [*corpus, *ODD_TEXTS]


def of_text(tokenizer, text: str) -> dict:
    """Return what a tokenizer makes of a text."""
    fast = tokenizer.is_fast
    encoded = tokenizer(text, return_offsets_mapping=fast)
    ids = encoded["input_ids"]
    result = {
        "ids": ids,
        "tokens": tokenizer.tokenize(text),
        "decoded": tokenizer.decode(ids),
        "skipped": tokenizer.decode(ids, skip_special_tokens=True),
    }
    if fast:
        result["offsets"] = [list(span) for span in encoded["offset_mapping"]]
    return result


def of_call(tokenizer, call: dict) -> dict:
    """Return what a call returns, or the kind of error that it raises."""
    before = {name: getattr(tokenizer, name) for name in call.get("set", {})}
    for name, value in call.get("set", {}).items():
        setattr(tokenizer, name, value)
    try:
        method = getattr(tokenizer, call.get("method", "__call__"))
        result = method(*call["args"], **call.get("kwargs", {}))
        if hasattr(result, "keys"):
            result = {name: result[name] for name in result}
        return {"result": result}
    except Exception as error:  # whatever it is, it is what the reference does
        return {"error": type(error).__name__}
    finally:
        for name, value in before.items():
            setattr(tokenizer, name, value)


def added(tokenizer, added_token) -> dict:
    """Add tokens, and return what becomes of texts with them."""
    counts = []
    for tokens in ADDED:
        tokens = [added_token(**t) if isinstance(t, dict) else t for t in tokens]
        counts.append(tokenizer.add_tokens(tokens))
    counts.append(
        tokenizer.add_special_tokens(ADDED_SPECIAL, replace_additional_special_tokens=False)
    )
    return {
        "counts": counts,
        "length": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "all_special_ids": sorted(tokenizer.all_special_ids),
        "texts": [of_text(tokenizer, text) for text in ADDED_TEXTS],
    }


def template(folder: Path) -> dict:
    """Return a tokenizer.json with the bulk taken out that the test can put back."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for step in content["normalizer"]["normalizers"]:
        if "precompiled_charsmap" in step:
            step["precompiled_charsmap"] = "@charsmap"
    content["model"]["vocab"] = "@vocab"
    return content


def old_style(path: Path, target: Path) -> None:
    """Write tokenizer.json as earlier releases did, and as it is on the hub."""
    content = json.loads(path.read_text(encoding="utf-8"))
    steps = content["normalizer"]["normalizers"]
    content["normalizer"] = next(step for step in steps if step["type"] == "Precompiled")
    content["pre_tokenizer"].pop("prepend_scheme", None)
    content["decoder"].pop("prepend_scheme", None)
    target.write_text(json.dumps(content), encoding="utf-8")


WRITE_OWN = """
import json, sys
from tokenizers import AddedToken
from xlmfam.common.tokenizers import XGLMTokenizer, XGLMTokenizerFast
sys.path.insert(0, "tests/reference")
from make_tokenizer_golden import ADDED_TEXTS, MODEL, added, texts
out = {}
for kind, cls in (("slow", XGLMTokenizer), ("fast", XGLMTokenizerFast)):
    tokenizer = cls(MODEL)
    tokenizer.save_pretrained(f"{sys.argv[1]}/{kind}")
    out[kind] = [tokenizer(text)["input_ids"] for text in texts()]
    added(tokenizer, AddedToken)
    tokenizer.save_pretrained(f"{sys.argv[1]}/{kind}_added")
    out[f"{kind}_added"] = [tokenizer(text)["input_ids"] for text in ADDED_TEXTS]
json.dump(out, open(f"{sys.argv[1]}/ids.json", "w"))
"""


def check_own_files(own_python: str, slow_class, fast_class) -> dict:
    """Let the reference read what xlmfam writes; return how many ids differ, by case."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([own_python, "-c", WRITE_OWN, folder], check=True, cwd=ROOT)
        expected = json.loads(Path(folder, "ids.json").read_text())
        different = {}
        for name, ids in expected.items():
            rows = ADDED_TEXTS if name.endswith("_added") else texts()
            readers = [slow_class, fast_class] if name.startswith("fast") else [slow_class]
            for reader in readers:
                tokenizer = reader.from_pretrained(f"{folder}/{name}")
                found = [tokenizer(text)["input_ids"] for text in rows]
                different[f"{name} read by {reader.__name__}"] = [
                    text for text, a, b in zip(rows, ids, found, strict=True) if a != b
                ]
    return different


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--own-python", required=True)
    options = parser.parse_args()
    if options.train:
        train()

    import transformers
    from tokenizers import AddedToken
    from transformers import XGLMTokenizer, XGLMTokenizerFast

    assert transformers.__version__ == "4.37.2", transformers.__version__
    tokenizers = {"slow": XGLMTokenizer(str(MODEL)), "fast": XGLMTokenizerFast(str(MODEL))}
    golden: dict = {"transformers": transformers.__version__, "texts": [], "calls": []}
    for text in texts():
        row = {kind: of_text(tokenizer, text) for kind, tokenizer in tokenizers.items()}
        # Most of it is the same in both: the fast one's is written where it differs.
        row["fast"] = {k: v for k, v in row["fast"].items() if row["slow"].get(k) != v}
        golden["texts"].append({"text": text, **row})
    for call in CALLS:
        row = {
            kind: of_call(tokenizer, call)
            for kind, tokenizer in tokenizers.items()
            if call.get("only", kind) == kind
        }
        golden["calls"].append({**call, **row})
    with tempfile.TemporaryDirectory() as folder:
        tokenizers["fast"].save_pretrained(folder)
        golden["tokenizer.json"] = template(Path(folder))
        golden["tokenizer_config.json"] = json.loads(
            Path(folder, "tokenizer_config.json").read_text()
        )
        old_style(Path(folder, "tokenizer.json"), Path(folder, "old.json"))
        old = XGLMTokenizerFast(tokenizer_file=f"{folder}/old.json")
        golden["old_tokenizer_json"] = {
            row["text"]: ids
            for row in golden["texts"]
            if (ids := old(row["text"])["input_ids"]) != row["slow"]["ids"]
        }
    golden["added"] = {kind: added(tokenizer, AddedToken) for kind, tokenizer in tokenizers.items()}
    with tempfile.TemporaryDirectory() as folder:
        tokenizers["fast"].save_pretrained(folder)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            golden[f"added {name}"] = json.loads(Path(folder, name).read_text())
    golden["own files"] = check_own_files(options.own_python, XGLMTokenizer, XGLMTokenizerFast)
    path = DATA / "xglm" / "golden.json"
    path.write_text(json.dumps(golden, ensure_ascii=True, indent=None, sort_keys=True) + "\n")
    for case, different in golden["own files"].items():
        print(f"{case}: {len(different)} texts differ {different[:5]}", file=sys.stderr)
    print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
