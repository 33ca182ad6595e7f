"""Golden numbers of the XLM-R tokenizers, which X-MOD uses, from transformers 4.37.2.

Run in the reference environment (see README.md) from the repository's root:

    reference-env/bin/python tests/reference/make_xlm_roberta_tokenizer_golden.py \
        --own-python .venv/bin/python

It trains the small sentencepiece model of the tests (only with ``--train``: another sentencepiece
release may train another model) and records what the reference makes of the texts and calls of
`make_tokenizer_golden.py`, and of some of its own. With ``--own-python`` it also checks that the
reference reads what xlmfam writes, with equal ids.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from make_tokenizer_golden import (
    ADDED_TEXTS,
    CALLS,
    ROOT,
    A,
    B,
    added,
    of_call,
    of_text,
    old_style,
    template,
    texts,
)
from make_tokenizer_golden import DATA as ALL_DATA

DATA = ALL_DATA / "xlm_roberta"
MODEL = DATA / "sentencepiece.bpe.model"
PIECES = 1600
# <mask> takes the space before it, not the one behind it.
MASK_TEXTS = [
    "the <mask> river",
    "the<mask>river",
    "the  <mask>  river",
    "<mask><mask> <mask>",
    " <mask> ",
    "<mask>.",
    "The <mask> runs past the </s> mill <pad>.",
    "<s> the </s></s> river </s>",
    "the <MASK> [mask] <mask >",
]
_MASK = ["The <mask> river.", "A <mask> and a<mask>"]
OWN_CALLS: list[dict] = [
    {"args": [_MASK], "kwargs": {"padding": True, "return_special_tokens_mask": True}},
    {"args": [_MASK[0], B], "kwargs": {"truncation": "only_second", "max_length": 14}},
    {"args": [A, B], "kwargs": {"truncation": True, "max_length": 4}},
    {"args": [A, B], "kwargs": {"truncation": True, "max_length": 5}},
    {"args": [A], "kwargs": {"truncation": True, "max_length": 2}},
    {
        "args": [A, B],
        "kwargs": {
            "truncation": "only_second",
            "max_length": 40,
            "stride": 3,
            "return_overflowing_tokens": True,
            "padding": "max_length",
        },
    },
    {"args": [[[A, B], ["", ""], [B, ""]]], "kwargs": {"padding": True}},
    {
        "args": [[[A, "mill"], ["", "river"]]],
        "kwargs": {"padding": True, "return_special_tokens_mask": True},
        "set": {"padding_side": "left"},
    },
    {"method": "build_inputs_with_special_tokens", "args": [[5, 6], []]},
    {"method": "create_token_type_ids_from_sequences", "args": [[5, 6]]},
    {"method": "get_special_tokens_mask", "args": [[5, 6]]},
    {
        "method": "get_special_tokens_mask",
        "args": [[0, 5, 2, 2, 6, 2]],
        "kwargs": {"already_has_special_tokens": True},
    },
    {"method": "convert_tokens_to_ids", "args": [["<s>", "<unk>", "<mask>", "\u2581", "<x>"]]},
    {"method": "decode", "args": [[0, 5, 6, 2, 2, 7, 2]]},
    {
        "method": "decode",
        "args": [[0, 5, 6, 2, 2, 7, 2]],
        "kwargs": {"skip_special_tokens": True},
    },
]
_FIELDS = (
    "bos_token_id",
    "cls_token_id",
    "pad_token_id",
    "eos_token_id",
    "sep_token_id",
    "unk_token_id",
    "mask_token_id",
    "vocab_size",
    "model_max_length",
    "padding_side",
    "model_input_names",
    "all_special_tokens",
    "all_special_ids",
)


def train() -> None:
    """Train the unigram model, with the pieces in the order that fairseq has."""
    import sentencepiece

    text = (ALL_DATA / "corpus.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line]
    model = io.BytesIO()  # a file's name would be written into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=0.99,  # some characters are unknown
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(model.getvalue())


def _calls(tokenizer) -> list[dict]:
    """Return the calls, with the last ids of XGLM's vocabulary exchanged for the mask's."""
    mask = tokenizer.mask_token_id

    def exchange(value):
        if isinstance(value, list):
            return [exchange(item) for item in value]
        return mask if isinstance(value, int) and value in (1304, 1310) else value

    return [*({**call, "args": exchange(call["args"])} for call in CALLS), *OWN_CALLS]


WRITE_OWN = """
import json, sys
from tokenizers import AddedToken
from xlmfam.common.tokenizers import XLMRobertaTokenizer, XLMRobertaTokenizerFast
sys.path.insert(0, "tests/reference")
from make_tokenizer_golden import ADDED_TEXTS, added, texts
from make_xlm_roberta_tokenizer_golden import MASK_TEXTS, MODEL
out = {}
for kind, cls in (("slow", XLMRobertaTokenizer), ("fast", XLMRobertaTokenizerFast)):
    tokenizer = cls(MODEL)
    tokenizer.save_pretrained(f"{sys.argv[1]}/{kind}")
    out[kind] = [tokenizer(text)["input_ids"] for text in [*texts(), *MASK_TEXTS]]
    added(tokenizer, AddedToken)
    tokenizer.save_pretrained(f"{sys.argv[1]}/{kind}_added")
    out[f"{kind}_added"] = [tokenizer(text)["input_ids"] for text in ADDED_TEXTS]
json.dump(out, open(f"{sys.argv[1]}/ids.json", "w"))
"""


def check_own_files(own_python: str, slow_class, fast_class) -> dict:
    """Let the reference read what xlmfam writes; return the texts whose ids differ, by case."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([own_python, "-c", WRITE_OWN, folder], check=True, cwd=ROOT)
        expected = json.loads(Path(folder, "ids.json").read_text())
        different = {}
        for name, ids in expected.items():
            rows = ADDED_TEXTS if name.endswith("_added") else [*texts(), *MASK_TEXTS]
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
    parser.add_argument("--own-python")
    options = parser.parse_args()
    if options.train:
        train()

    import transformers
    from tokenizers import AddedToken
    from transformers import XLMRobertaTokenizer, XLMRobertaTokenizerFast

    assert transformers.__version__ == "4.37.2", transformers.__version__
    kinds = {"slow": XLMRobertaTokenizer, "fast": XLMRobertaTokenizerFast}
    tokenizers = {kind: cls(str(MODEL)) for kind, cls in kinds.items()}
    golden: dict = {"transformers": transformers.__version__, "texts": [], "calls": []}
    golden["fields"] = {
        kind: {name: getattr(tokenizer, name) for name in _FIELDS} | {"length": len(tokenizer)}
        for kind, tokenizer in tokenizers.items()
    }
    for text in [*texts(), *MASK_TEXTS]:
        row = {kind: of_text(tokenizer, text) for kind, tokenizer in tokenizers.items()}
        # Most of it is the same in both: the fast one's is written where it differs.
        row["fast"] = {k: v for k, v in row["fast"].items() if row["slow"].get(k) != v}
        golden["texts"].append({"text": text, **row})
    for call in _calls(tokenizers["slow"]):
        row = {
            kind: of_call(tokenizer, call)
            for kind, tokenizer in tokenizers.items()
            if call.get("only", kind) == kind
        }
        golden["calls"].append({**call, **row})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # One that has not padded or cut anything yet: it would write down how.
        XLMRobertaTokenizerFast(str(MODEL)).save_pretrained(folder)
        (DATA / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        golden["tokenizer.json"] = template(folder)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            golden[file] = json.loads((folder / file).read_text())
        old_style(folder / "tokenizer.json", folder / "old.json")
        old = XLMRobertaTokenizerFast(tokenizer_file=f"{folder}/old.json")
        golden["old_tokenizer_json"] = {
            row["text"]: ids
            for row in golden["texts"]
            if (ids := old(row["text"])["input_ids"]) != row["slow"]["ids"]
        }
    golden["added"] = {kind: added(tokenizer, AddedToken) for kind, tokenizer in tokenizers.items()}
    with tempfile.TemporaryDirectory() as name:
        tokenizers["fast"].save_pretrained(name)
        for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            if Path(name, file).exists():
                golden[f"added {file}"] = json.loads(Path(name, file).read_text())
    path = DATA / "golden.json"
    if options.own_python:
        golden["own files"] = check_own_files(options.own_python, *kinds.values())
        for case, different in golden["own files"].items():
            print(f"{case}: {len(different)} texts differ {different[:5]}", file=sys.stderr)
    elif path.exists():
        known = json.loads(path.read_text())
        golden |= {key: known[key] for key in ("own files",) if key in known}
    path.write_text(json.dumps(golden, ensure_ascii=True, indent=None, sort_keys=True) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
