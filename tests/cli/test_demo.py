"""The demo, small: what it promises holds, and it says so when it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xlmfam import AutoTokenizer
from xlmfam.cli import demo_checks, demo_text
from xlmfam.cli.main import main
from xlmfam.cli.report import Recall
from xlmfam.conversion import checksum, inspect
from xlmfam.conversion.runners import BACKENDS, installed_backends

needs_all = pytest.mark.skipif(
    installed_backends() != BACKENDS, reason="needs the three frameworks"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return demo_text.train_tokenizer(demo_text.read_corpus(10), folder, 600)


@needs_all
@pytest.mark.slow
def test_quick_demo(tmp_path, monkeypatch, capfd):
    sections = []
    from xlmfam.cli import demo

    run_family = demo.run_family
    monkeypatch.setattr(
        demo, "run_family", lambda *a: sections.append(run_family(*a)) or sections[0]
    )
    assert main(["demo", "--quick", "--output", str(tmp_path / "out")]) == 0
    (section,) = sections
    # learned
    assert section.loss.final < 1.0 < math.log(section.loss.vocab_size) / 3
    assert section.loss.losses[0] > 0.8 * section.loss.guessing
    assert section.recall.completed >= 0.8 * section.recall.asked
    # bit-exact, in memory and in the files
    assert len({step.checksum for step in section.chain}) == 1
    files = [tmp_path / "out/checkpoints" / step.file for step in section.chain]
    assert {path.name for path in files} == {
        "tf_model.h5",
        "pytorch_model.bin",
        "flax_model.msgpack",
        "model.safetensors",
    }
    expected = section.chain[0].checksum
    assert {checksum(path.parent) for path in files} == {expected}
    assert checksum(tmp_path / "out/model") == expected
    # equal
    assert 0 < section.heatmap.largest < 5e-5
    assert {"logits", "loss", "layer 0", "gradients, layer 1"} <= set(section.heatmap.rows)
    assert len(section.heatmap.columns) == 3
    assert len(section.generations) == len(demo_text.SHOWN)
    for generation in section.generations:
        assert set(generation.outputs) == {"PyTorch", "TensorFlow", "Flax"}
        assert generation.equal
        assert all(len(text) > len(generation.prompt) for text in generation.outputs.values())
    # and said
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Everything agrees" in page
    assert expected in page
    assert all(generation.prompt in page for generation in section.generations)
    out, err = capfd.readouterr()
    assert "ok" in out
    assert "FAILED" not in out
    assert "Traceback" not in err
    assert inspect(tmp_path / "out/model").ok
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model")("Guten Morgen")["input_ids"]


def test_tokenizer_is_the_same_every_time(tmp_path):
    sentences = demo_text.read_corpus(5)
    for name in ("one", "two"):
        demo_text.train_tokenizer(sentences, tmp_path / name, 500)
    files = [tmp_path / name / "sentencepiece.bpe.model" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_corpus_is_in_thirteen_languages():
    sentences = demo_text.read_corpus()
    assert len(sentences) % len(demo_text.LANGUAGES) == 0
    assert demo_text.read_corpus(2) == sentences[:26]


def test_halves_are_beginnings_in_text_and_tokens(tokenizer):
    sentences = demo_text.read_corpus(10)
    prompts = demo_text.sampled_prompts(tokenizer, sentences, 40, seed=1)
    assert len(prompts) == 40
    for prompt in prompts:
        assert prompt.sentence.startswith(prompt.text)
        assert 0 < len(prompt.text) < len(prompt.sentence)
        ids = tokenizer(prompt.text)["input_ids"]
        assert tokenizer(prompt.sentence)["input_ids"][: len(ids)] == ids
        assert [s.startswith(prompt.text) for s in sentences].count(True) == 1
    assert demo_text.sampled_prompts(tokenizer, sentences, 40, seed=2) != prompts
    shown = demo_text.shown_prompts(tokenizer, sentences, 4)
    assert [prompt.language for prompt in shown] == list(demo_text.SHOWN)


def test_rows_and_batches(tokenizer):
    rows = demo_text.training_rows(tokenizer, demo_text.read_corpus(2))
    assert all(row[0] == row[-1] == tokenizer.eos_token_id for row in rows)
    batch = demo_checks.sentences_batch(rows, tokenizer)
    mask = batch["attention_mask"]
    assert mask[0, 0] == 0 or mask.all(1)[0]
    assert (batch["labels"][mask == 0] == -100).all()
    kept = (batch["labels"] != -100) & (batch["labels"] != batch["input_ids"])
    assert not kept.any()
    assert np.array_equal(batch["input_ids"][1][mask[1] == 1], rows[len(rows) // 6])


@needs_all
@pytest.mark.parametrize("broken", [False, True])
def test_a_chain_that_changes_a_bit_is_not_exact(tmp_path, tokenizer, monkeypatch, broken):
    from xlmfam import XGLMConfig
    from xlmfam.conversion import runners
    from xlmfam.tf import XGLMForCausalLM

    config = XGLMConfig(
        vocab_size=31, d_model=12, ffn_dim=20, num_layers=1, attention_heads=3, num_labels=2
    )
    load = runners.load

    def disturbed(backend, folder):
        model = load(backend, folder)
        if backend == "pt" and broken:
            weight = next(model.parameters())
            weight.data[0, 0] = float(np.nextafter(np.float32(weight[0, 0].item()), np.float32(9)))
        return model

    monkeypatch.setattr(runners, "load", disturbed)
    model = XGLMForCausalLM.from_config(config)
    steps, last = demo_checks.run_chain(model, tmp_path, tokenizer)
    assert [step.exact for step in steps] == [True] + [not broken] * 3
    assert last == tmp_path / "4-tf"


def test_recall():
    prompts = [demo_text.Prompt("English", "a", text) for text in ("ab", "ac", "ad")]
    outputs = {"PyTorch": ["x", "ab", "ac", "ad"], "Flax": ["x", "ab", "ac", "a!"]}
    recall = demo_checks.recall(prompts, outputs, skipped=1)
    assert recall == Recall(2, 3)
    assert not recall.passed
    assert Recall(8, 10).passed
    assert not Recall(0, 0).passed


@needs_all
def test_output_must_be_a_folder(tmp_path, capfd):
    (tmp_path / "file").write_text("x")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert "is a file" in capfd.readouterr().err


@needs_all
def test_missing_framework(monkeypatch, capfd):
    from xlmfam.conversion import runners

    monkeypatch.setitem(runners.PACKAGES, "flax", "no_such_package")
    assert main(["demo"]) == 2
    assert 'pip install "xlmfam[flax]"' in capfd.readouterr().err


def test_halves_are_not_cut_where_tokens_would_change():
    class Tokenizer:
        """One token per letter, but for a ``b`` at the end, which is another token there."""

        def __call__(self, text):
            ids = [2, *map(ord, text)]
            return {"input_ids": [*ids[:-1], 999] if text.endswith("b") else ids}

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids[1:]))

    assert demo_text.first_half(Tokenizer(), "abab") == "a"
    assert demo_text.first_half(Tokenizer(), "aaaa") == "aa"
    assert demo_text.first_half(Tokenizer(), "aa aa") == "aa"  # rather than "aa "
    assert demo_text.first_half(Tokenizer(), "a") is None
