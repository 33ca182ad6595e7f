"""XLM's tokenizer against that of transformers 4.37.2, side by side in one run.

    python benchmarks/tokenizer_xlm.py --ours .venv/bin/python --peer .venv/peers/transformers4/bin/python

Each side is a process of its own that is asked for one round at a time, so that a slow minute of
the machine hits both. Both read tests/data/tokenizers/xlm and have to return the same ids.

- ``page, new``: a page of text with no word known from before,
- ``page, again``: the same page with its words in both sides' caches,
- ``words, new``: byte pairs alone, of the words of that page.

Chinese, Thai and Japanese are left out: there the segmenter, the same on both sides, takes the
time.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "tokenizers" / "xlm"
PAGE = 3000  # characters
TASKS = ("page, new", "page, again", "words, new")


def pages() -> dict[str, tuple[str, str]]:
    """Language and text of each page."""
    text = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    corpus = json.loads((DATA / "corpus.json").read_text(encoding="utf-8"))
    found = {"English prose": ("en", text[:PAGE])}
    for lang in ("fr", "de", "ru", "hi"):
        line = " ".join(corpus[lang])
        found[f"{lang}, few words"] = (lang, (f"{line} " * (PAGE // len(line) + 1))[:PAGE])
    other = " ".join(
        line for lang, lines in corpus.items() if lang not in _SEGMENTED for line in lines
    )
    found["19 languages as en"] = ("en", other[:PAGE])
    return found


_SEGMENTED = ("zh", "th", "ja")


class Side:
    """The work of one side; made in the interpreter of that side."""

    def __init__(self, name: str):
        if name == "ours":
            from xlmfam.common.tokenizers.xlm import XLMTokenizer
        else:
            import transformers
            from transformers import XLMTokenizer

            transformers.logging.set_verbosity_error()
        files = (str(DATA / "vocab.json"), str(DATA / "merges.txt"))
        self.tokenizer = XLMTokenizer(*files)
        self.ours = name == "ours"

    def forget(self) -> None:
        """Empty what is remembered of words."""
        if self.ours:
            self.tokenizer._forget()
            self.tokenizer.byte_pairs._found.clear()
        else:
            self.tokenizer.cache.clear()

    def encode(self, lang: str, text: str) -> list[int]:
        """Return the ids of a text."""
        # The reference ignores lang in a call, so its side of the comparison is set by hand.
        if self.ours:
            return self.tokenizer(text, lang=lang)["input_ids"]
        plain = type(self.tokenizer)._tokenize
        self.tokenizer._tokenize = lambda part: plain(self.tokenizer, part, lang=lang)
        try:
            return self.tokenizer(text)["input_ids"]
        finally:
            del self.tokenizer._tokenize

    def round(self, task: str, lang: str, text: str) -> tuple[float, object]:
        """Return the shortest of several times, and what came out."""
        work = lambda: self.encode(lang, text)  # noqa: E731
        if task == "words, new":
            pieces = self.tokenizer._tokenize(text, lang=lang)
            words = "".join(pieces).split("</w>")[:-1]
            work = lambda: [self.tokenizer.bpe(word) for word in words]  # noqa: E731
        times = []
        for _ in range(7):
            if task != "page, again":
                self.forget()
            start = time.perf_counter()
            result = work()
            times.append(time.perf_counter() - start)
        return min(times), result


def serve(name: str) -> None:
    """Answer requests, a line each, until there are no more."""
    side = Side(name)
    for line in sys.stdin:
        print(json.dumps(side.round(*json.loads(line))), flush=True)


def ask(process: subprocess.Popen, *request: str) -> tuple[float, object]:
    """Send one request to a side."""
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("a side ended early; its error stands above")
    return tuple(json.loads(answer))


def main() -> int:
    """Run both sides and print the table; the status is 1 where ids differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ours", default=sys.executable, help="interpreter that has xlmfam")
    parser.add_argument("--peer", help="interpreter that has transformers 4.37.2 and sacremoses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    if not options.peer:
        parser.error("--peer is needed: the interpreter of the comparison")
    interpreters = {"ours": options.ours, "peer": options.peer}
    processes = {
        name: subprocess.Popen(
            [python, __file__, "--serve", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for name, python in interpreters.items()
    }  # fmt: skip
    print(f"{'page':22} {'task':12} {'ours ms':>9} {'4.37.2 ms':>10} {'ratio':>6}")
    unequal = 0
    for page, (lang, text) in pages().items():
        for task in TASKS:
            times: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(options.rounds):
                results = {}
                for name, process in processes.items():
                    seconds, results[name] = ask(process, task, lang, text)
                    times[name].append(seconds * 1e3)
                unequal += results["ours"] != results["peer"]
            ours, peer = (statistics.median(times[name]) for name in ("ours", "peer"))
            print(f"{page:22} {task:12} {ours:9.3f} {peer:10.3f} {peer / ours:6.1f}", flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    print("ids are equal" if not unequal else f"DIFFERENT RESULTS in {unequal} rounds")
    return int(bool(unequal))


if __name__ == "__main__":
    sys.exit(main())
