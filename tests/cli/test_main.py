"""The command: what it does, and how it takes mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save
from tiny_tokenizer import make_tokenizer
from tiny_xlm import make_xlm, make_xlm_tokenizer

from xlmfam import AutoConfig, AutoTokenizer, __version__
from xlmfam.cli.demo_text import read_corpus, train_tokenizer
from xlmfam.cli.main import COMMANDS, main
from xlmfam.conversion import checksum
from xlmfam.conversion.runners import generate, installed_backends, load

BACKENDS = installed_backends()
needs_two = pytest.mark.skipif(len(BACKENDS) < 2, reason="needs two frameworks")


@pytest.fixture
def run(capfd):
    """Run the command in this process; return exit code, output and what went to stderr."""

    def call(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(run):
    """Run the command and assert that it says one clear line and does nothing else."""

    def call(match, *words):
        code, out, err = run(*words)
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert re.search(match, err), err
        return err

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("with_tokenizer") / "model"
    tokenizer = make_tokenizer(folder)
    return make(folder, vocab_size=len(tokenizer), max_position_embeddings=64)


@pytest.fixture(scope="module")
def xlm(tmp_path_factory):
    """Makes an XLM checkpoint of a class with a tokenizer, once."""
    made, tokenizer = {}, make_xlm_tokenizer(tmp_path_factory.mktemp("xlm_tokenizer"))

    def get(head="XLMWithLMHeadModel", **settings):
        key = (head, *settings)
        if key not in made:
            folder = tmp_path_factory.mktemp("xlm") / "model"
            # With these weights, languages and beams make a difference.
            seed = 1 if head == "XLMEncoderDecoder" else 0
            made[key] = make_xlm(folder, tokenizer, head, seed=seed, **settings)
        return made[key]

    return get


@pytest.fixture(scope="module")
def xmod(tmp_path_factory):
    """Makes an X-MOD checkpoint of a class with a tokenizer, once."""
    made = {}

    def get(head="XmodForMaskedLM", **settings):
        key = (head, *settings.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("xmod") / "model"
            lines = read_corpus(4)
            tokenizer = train_tokenizer(lines, folder, 400, "XLMRobertaTokenizer", "bpe")
            sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
            sizes["num_hidden_layers"] = 1
            # No end of a text: whatever is written goes on.
            made[key] = make(folder, head, **sizes, **settings, eos_token_id=None)
            (folder / "generation_config.json").unlink()
        return made[key]

    return get


# ---- help ---------------------------------------------------------------------------------


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"xlmfam {__version__}\n")
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    for command in COMMANDS:
        code, out, _ = run(command, "--help")
        assert code == 0
        assert "examples:" in out
        assert f"xlmfam {command}" in out


def test_mistakes_in_the_words(refused):
    refused("COMMAND", *[])
    refused("invalid choice: 'fly'", "fly")
    refused("DST", "convert", "somewhere")
    refused("'gguf'", "convert", "a", "b", "--to", "gguf")
    refused("unrecognized arguments: --fast", "inspect", "a", "--fast")
    refused("--tolerance", "verify", "a", "--tolerance", "little")
    refused("at least 1", "generate", "a", "b", "--max-new-tokens", "0")


# ---- convert ------------------------------------------------------------------------------


def test_convert(run, tmp_path):
    source = make(tmp_path / "source")
    code, out, err = run(
        "convert", source, tmp_path / "target", "--to", "flax", "--dtype", "float16"
    )
    assert (code, err) == (0, "")
    assert "safetensors -> flax" in out
    assert "float16" in out
    assert (tmp_path / "target/flax_model.msgpack").is_file()
    code, out, _ = run("convert", source, tmp_path / "split", "--max-shard-size", "2KB")
    assert code == 0
    assert checksum(tmp_path / "split") == checksum(source)
    assert (tmp_path / "split/model.safetensors.index.json").is_file()


@needs_two
def test_convert_and_verify(run, tmp_path):
    code, out, _ = run(
        "convert", make(tmp_path / "source"), tmp_path / "target", "--to", "tf", "--verify"
    )
    assert code == 0
    assert "the backends agree" in out


def test_convert_refuses(refused, run, tmp_path):
    source, target = make(tmp_path / "source"), tmp_path / "target"
    refused("no such file or folder", "convert", tmp_path / "nowhere", target)
    refused("no such folder", "convert", "nowhere", target, "--local-files-only")
    refused("float33", "convert", source, target, "--dtype", "float33")
    refused("max_shard_size", "convert", source, target, "--max-shard-size", "many")
    refused("overlap", "convert", source, source / "inside")
    refused("own folder", "convert", source, source, "--overwrite")
    assert run("convert", source, target)[0] == 0
    refused("--overwrite", "convert", source, target)
    assert run("convert", source, target, "--to", "flax", "--overwrite")[0] == 0
    change_json(source / "config.json", model_type="bert")
    refused("'bert'", "convert", source, tmp_path / "other")
    (tmp_path / "file").write_text("x")
    change_json(source / "config.json", model_type="xglm")
    refused("is a file", "convert", source, tmp_path / "file")


def test_convert_warns_of_lost_weights(run, tmp_path):
    source = make(tmp_path / "source", format="tf", tie_word_embeddings=False)
    change_json(source / "config.json", tie_word_embeddings=True)
    code, _, err = run("convert", source, tmp_path / "target")
    assert code == 0
    assert "warning: lm_head" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_convert_into_a_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused("ermission", "convert", make(tmp_path / "source"), tmp_path / "locked/target")


def test_convert_some_languages(run, refused, xmod, model, tmp_path):
    words = ("convert", xmod(), tmp_path / "some", "--to", "flax")
    code, out, err = run(*words, "--languages", "sw_KE", "en_XX")
    assert (code, err) == (0, "")
    assert "not asked for" in out
    assert AutoConfig.from_pretrained(tmp_path / "some").languages == ["sw_KE", "en_XX"]
    assert (tmp_path / "some/sentencepiece.bpe.model").is_file()
    refused(
        "unknown language 'xx'; this model knows en_XX", *words, "--overwrite", "--languages=xx"
    )
    refused("this checkpoint is xglm", "convert", model, tmp_path / "new", "--languages", "en_XX")


# ---- inspect ------------------------------------------------------------------------------


def test_inspect(run, tmp_path):
    source = make(tmp_path / "source")
    code, out, _ = run("inspect", source)
    assert code == 0
    assert "XGLMForCausalLM" in out
    assert "model.layers.1.fc1.weight" in out
    assert "20 x 12" in out
    code, out, _ = run("inspect", source / "model.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["parameters"] == 3124


def test_inspect_problems(run, refused, tmp_path):
    source = make(tmp_path / "source")
    change_json(source / "config.json", num_layers=3)
    code, out, err = run("inspect", source)
    assert (code, err) == (1, "")
    assert "missing: model.layers.2" in out
    (source / "model.safetensors").write_bytes(b"not a checkpoint")
    refused("model.safetensors", "inspect", source)
    (source / "config.json").write_text("{")
    refused("not valid JSON", "inspect", source)
    refused("no such file", "inspect", tmp_path / "nowhere")


# ---- verify -------------------------------------------------------------------------------


@needs_two
def test_verify(run, tmp_path):
    code, out, err = run("verify", make(tmp_path / "source"), "--backends", ",".join(BACKENDS))
    assert code == 0, out
    assert "the backends agree" in out
    assert "gradients, layer 1" in out
    assert "Traceback" not in err


@needs_two
def test_verify_fails_on_nan(run, tmp_path):
    arrays = make_arrays(make_config())
    arrays["model.layers.0.fc2.bias"][:] = float("nan")
    source = save(tmp_path / "source", arrays, make_config())
    pair = ",".join(BACKENDS[:2])
    code, out, _ = run("verify", source, "--backends", pair, "--no-gradients")
    assert code == 1
    assert "NOT VERIFIED" in out
    assert "nan" in out


def test_verify_refuses(refused, tmp_path):
    source = make(tmp_path / "source")
    refused("'jaxx'", "verify", source, "--backends", "pt,jaxx")
    refused("nothing to compare", "verify", source, "--backends", BACKENDS[0])
    refused("no such file", "verify", tmp_path / "nowhere")
    change_json(source / "config.json", num_layers=3)
    refused("missing: model.layers.2", "verify", source)


# ---- generate -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_generate(run, model, backend):
    words = ("generate", model, "Good morning", "--backend", backend, "--max-new-tokens", 5)
    code, greedy, err = run(*words)
    assert code == 0, err
    assert greedy.startswith("Good morning")
    assert run(*words)[1] == greedy
    code, out, _ = run(*words, "--num-beams", 3)
    assert code == 0
    assert out.startswith("Good morning")
    sampling = (*words, "--do-sample", "--temperature", 2, "--top-k", 50, "--top-p", 0.99)
    assert run(*sampling, "--seed", 1)[1] == run(*sampling, "--seed", 1)[1]
    assert len({run(*sampling, "--seed", seed)[1] for seed in range(4)}) > 1


def test_generate_says_the_same_in_all(run, model):
    texts = {
        run("generate", model, "Guten Morgen", "--backend", b, "--max-new-tokens", 6)[1]
        for b in BACKENDS
    }
    assert len(texts) == 1


def test_generate_streams(run, model):
    pytest.importorskip("torch")
    words = ("generate", model, "Good morning", "--backend", "pt", "--max-new-tokens", 6)
    code, out, _ = run(*words, "--stream")
    assert code == 0
    assert out == run(*words)[1]


def test_generate_refuses(refused, model, tmp_path):
    refused("--backend pt only", "generate", model, "a", "--stream", "--backend", "flax")
    refused("--num-beams", "generate", model, "a", "--stream", "--backend", "pt", "--num-beams", 2)
    refused("--top-k needs --do-sample", "generate", model, "a", "--top-k", 3)
    refused("PROMPT is empty", "generate", model, "  ")
    refused("'numpy'", "generate", model, "a", "--backend", "numpy")
    refused("no tokenizer", "generate", make(tmp_path / "bare"), "a")
    refused("temperature", "generate", model, "a", "--do-sample", "--temperature", -1)
    refused("no such folder", "generate", tmp_path / "nowhere", "a")


@pytest.mark.parametrize("backend", BACKENDS)
def test_generate_with_a_language(run, refused, model, xlm, backend):
    words = ("generate", xlm(causal=True), "Der Hund", "--backend", backend, "--max-new-tokens", 6)
    # What the model itself writes, with no special tokens around the prompt.
    tokenizer, loaded = AutoTokenizer.from_pretrained(xlm(causal=True)), load(backend, words[1])
    prompt = dict(tokenizer(["Der Hund"], add_special_tokens=False, return_tensors="np"))
    texts = {}
    for lang in ("de", "en", "fr"):
        ids = generate(backend, loaded, prompt, max_new_tokens=6, langs=lang)
        texts[lang] = tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
        assert run(*words, "--lang", lang)[1] == texts[lang] + "\n"
    assert len(set(texts.values())) == 3
    refused(r"--lang xx: .* knows ar, de, el", *words, "--lang", "xx")
    refused("does not go by languages", "generate", model, "a", "--lang", "de")


def test_generate_needs_a_model_that_continues(refused, xlm):
    refused("this is XLMModel", "generate", xlm("XLMModel"), "Der")
    refused("use `xlmfam translate`", "generate", xlm("XLMEncoderDecoder"), "Der")


@pytest.mark.parametrize("backend", BACKENDS)
def test_generate_in_several_languages(run, xmod, backend):
    source = xmod("XmodForCausalLM", default_language="de_DE")
    words = ("generate", source, "--backend", backend, "--max-new-tokens", 3)
    texts = ["Der Hund", "The dog sleeps in"]
    tokenizer, loaded = AutoTokenizer.from_pretrained(source), load(backend, source)
    alone = {}
    for text, lang in ((texts[0], "de_DE"), (texts[1], "de_DE"), (texts[1], "sw_KE")):
        # No end behind the prompt: it would be the end of the text.
        ids = np.array([tokenizer(text)["input_ids"][:-1]])
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found = generate(backend, loaded, inputs, max_new_tokens=3, lang_ids=lang)
        alone[text, lang] = tokenizer.decode(found[0].tolist(), skip_special_tokens=True)
    assert len(set(alone.values())) == 3
    code, out, err = run(*words, *texts, "--lang", "de_DE,sw_KE")
    assert (code, err) == (0, "")
    assert out.splitlines() == [alone[texts[0], "de_DE"], alone[texts[1], "sw_KE"]]
    both = [alone[text, "de_DE"] for text in texts]
    assert run(*words, *texts)[1].splitlines() == both  # the default


def test_generate_refuses_languages(refused, xmod):
    words = ("generate", xmod("XmodForCausalLM"), "a", "b")
    refused("no default language: say --lang, one of en_XX, de_DE, sw_KE", *words)
    refused("--lang xx: .* knows en_XX, de_DE, sw_KE", *words, "--lang", "en_XX,xx")
    refused("3 languages for 2 texts", *words, "--lang", "en_XX,en_XX,de_DE")
    refused("this is XmodForMaskedLM", "generate", xmod(), "a", "--lang", "en_XX")
    refused("one PROMPT, got 2", *words, "--stream", "--backend", "pt")


# ---- fill ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_fill(run, xlm, backend):
    words = ("fill", xlm(), "Der <mask> schläft.", "--backend", backend, "--lang")
    code, out, err = run(*words, "de", "--top-k", 3)
    assert (code, err) == (0, "")
    tokenizer = AutoTokenizer.from_pretrained(xlm())
    text = f"Der {tokenizer.mask_token} schläft."
    guesses = load(backend, xlm()).fill_mask(text, tokenizer, top_k=3, lang="de")
    assert len(guesses) == 3
    assert out.splitlines() == [
        f"{guess['score']:7.2%}  {guess['token_str']}  |  {guess['sequence']}" for guess in guesses
    ]
    assert len(run(*words, "de")[1].splitlines()) == 5
    assert run(*words, "fr")[1] != run(*words, "de")[1]
    own = ("fill", xlm(), text, "--backend", backend, "--lang", "de", "--top-k", 3)
    assert run(*own)[1] == out


def test_fill_several_words(run, xlm):
    code, out, _ = run("fill", xlm(), "Der <mask> schläft im <mask>.", "--top-k", 2)
    assert code == 0
    lines = out.splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("<mask>")] == [0, 3]
    assert len(lines) == 6


def test_fill_refuses(refused, model, xlm):
    refused("put <mask>", "fill", xlm(), "Der Hund")
    refused("top_k must lie", "fill", xlm(), "Der <mask>", "--top-k", 5000)
    refused("causal", "fill", xlm(causal=True), "Der <mask>")
    refused("this is XLMModel", "fill", xlm("XLMModel"), "Der <mask>")
    refused("no mask token|has none", "fill", model, "Der <mask>")
    refused("--lang tlh", "fill", xlm(), "Der <mask>", "--lang", "tlh")
    refused("'numpy'", "fill", xlm(), "Der <mask>", "--backend", "numpy")


@pytest.mark.parametrize("backend", BACKENDS)
def test_fill_in_several_languages(run, xmod, backend):
    words = ("fill", xmod(), "--backend", backend, "--top-k", 2)
    texts = ["Der <mask> schläft.", "The <mask> sleeps in the <mask>."]
    code, out, err = run(*words, *texts, "--lang", "de_DE,en_XX")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [lines[0], *lines[3:5], lines[7]] == [*texts, "<mask> 1", "<mask> 2"]
    assert len(lines) == 10
    assert run(*words, texts[1], "--lang", "en_XX")[1].splitlines() == lines[4:]
    assert run(*words, texts[0], "--lang", "sw_KE")[1].splitlines() != lines[1:3]


def test_fill_refuses_languages(refused, xmod):
    refused("no default language: say --lang", "fill", xmod(), "Der <mask>")
    refused("--lang xx: .* knows en_XX", "fill", xmod(), "Der <mask>", "--lang", "xx")
    refused("2 languages for 1 text;", "fill", xmod(), "Der <mask>", "--lang", "en_XX,de_DE")


# ---- languages ----------------------------------------------------------------------------


def test_languages_of_a_checkpoint(run, refused, xmod, xlm, model):
    source = xmod(default_language="de_DE")
    code, out, err = run("languages", source)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{source}: 3 languages"
    assert [line.split() for line in lines[1:4]] == [
        ["0", "en_XX"],
        ["1", "de_DE", "(default)"],
        ["2", "sw_KE"],
    ]
    assert lines[4] == "Each has adapters of 430 parameters."
    assert json.loads(run("languages", source, "--json")[1]) == {
        "source": str(source),
        "family": "xmod",
        "languages": {"en_XX": 0, "de_DE": 1, "sw_KE": 2},
        "default": "de_DE",
    }
    lines = run("languages", xlm())[1].splitlines()
    known = AutoTokenizer.from_pretrained(xlm()).lang2id
    known = dict(sorted(known.items(), key=lambda pair: pair[1]))
    assert lines[0] == f"{xlm()}: {len(known)} languages"
    assert [line.split() for line in lines[1:]] == [[str(n), code] for code, n in known.items()]
    refused(r"\(xglm\) does not go by languages", "languages", model)


def test_languages_without_names(run, tmp_path):
    plain = make(tmp_path / "plain", "XLMWithLMHeadModel")
    assert "3 languages\nThey have no names; their ids are 0 to 2." in run("languages", plain)[1]
    one = make(tmp_path / "one", "XLMWithLMHeadModel", n_langs=1, lang2id={"en": 0})
    out = run("languages", one)[1]
    assert "1 language\n   0  en\nThe tokenizer goes by them, the model does not." in out


def test_languages_come_and_go(run, xmod, tmp_path):
    source, target = xmod(default_language="de_DE"), tmp_path / "target"
    words = ("languages", source, target, "--add", "zh_CN", "fr_XX", "--init-from", "sw_KE")
    code, out, err = run(*words, "--remove", "de_DE", "--default", "fr_XX")
    assert (code, err) == (0, "")
    config = AutoConfig.from_pretrained(target)
    assert config.languages == ["en_XX", "sw_KE", "zh_CN", "fr_XX"]
    assert config.default_language == "fr_XX"
    said = ("kept     en_XX, sw_KE", "new      zh_CN, fr_XX, as sw_KE", "removed  de_DE")
    assert [text for text in (*said, "default  fr_XX") if text not in out] == []
    assert (target / "sentencepiece.bpe.model").is_file()
    # The copy says the same in the languages that it has, new ones included.
    for lang in ("en_XX", "sw_KE"):
        words = ("fill", "Der <mask>.", "--lang", lang)
        assert run(words[0], target, *words[1:])[1] == run(words[0], source, *words[1:])[1]
    text = run("fill", target, "Der <mask>.")[1]
    assert text == run("fill", source, "Der <mask>.", "--lang", "sw_KE")[1]
    commas = ("languages", source, target, "--add", "zh_CN,fr_XX", "it_IT", "--overwrite")
    code, out, _ = run(*commas)
    assert code == 0
    assert "zh_CN, fr_XX, it_IT, to be trained" in out
    first = checksum(target)
    assert run(*commas, "--seed", 1)[0] == 0
    assert checksum(target) != first
    code, out, _ = run("languages", source, tmp_path / "none", "--remove", "de_DE")
    assert "default  none" in out


def test_languages_refuses(refused, xmod, model, tmp_path):
    source, target = xmod(), tmp_path / "target"
    words = ("languages", source, target)
    refused("nothing changes: say --add", *words)
    refused("--add needs DST", "languages", source, "--add", "fr_XX")
    refused("--overwrite needs DST", "languages", source, "--overwrite")
    refused("--init-from needs --add", *words, "--remove", "de_DE", "--init-from", "mean")
    refused("--json lists", *words, "--remove", "de_DE", "--json")
    refused("unknown language 'xx'; this model knows en_XX, de_DE", *words, "--remove", "xx")
    refused("a language 'de_DE' already", *words, "--add", "de_DE")
    refused("en_XX, de_DE, sw_KE; got 'xx'", *words, "--add", "fr_XX", "--init-from", "xx")
    refused("one of en_XX, de_DE, sw_KE; got 'xx'", *words, "--default", "xx")
    refused("at least must stay", *words, "--remove", "en_XX", "de_DE", "sw_KE")
    refused("no X-MOD checkpoint but xglm", "languages", model, target, "--add", "fr_XX")
    refused("own folder", "languages", source, source, "--add", "fr_XX")
    refused("no such folder", "languages", tmp_path / "nowhere")
    assert not target.exists()


# ---- translate ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_translate(run, xlm, backend):
    source = xlm("XLMEncoderDecoder")
    words = ("translate", source, "Der Hund schläft.", "--backend", backend, "--from", "de", "--to")
    tokenizer, translator = AutoTokenizer.from_pretrained(source), load(backend, source)

    def expected(target, **options):
        text = "Der Hund schläft."
        return translator.translate(
            text, tokenizer, source_lang="de", target_lang=target, max_length=9, **options
        )

    code, greedy, err = run(*words, "en", "--max-length", 9)
    assert (code, err) == (0, "")
    assert greedy == expected("en") + "\n"
    assert run(*words, "fr", "--max-length", 9)[1] == expected("fr") + "\n" != greedy
    beams = (*words, "en", "--max-length", 9, "--num-beams", 4, "--length-penalty", 2)
    assert run(*beams)[1] == expected("en", num_beams=4, length_penalty=2.0) + "\n" != greedy


def test_translate_says_the_same_in_all(run, xlm):
    source = xlm("XLMEncoderDecoder")
    words = ("translate", source, "The dog", "--from", "en", "--to", "de", "--num-beams", 3)
    assert len({run(*words, "--max-length", 8, "--backend", b)[1] for b in BACKENDS}) == 1


def test_translate_refuses(refused, xlm):
    source = xlm("XLMEncoderDecoder")
    refused("--to", "translate", source, "Der Hund", "--from", "de")
    refused("--to xx: .* knows ar, de", "translate", source, "a", "--from", "de", "--to", "xx")
    refused("--from xx: .* knows ar", "translate", source, "a", "--from", "xx", "--to", "de")
    refused("TEXT is empty", "translate", source, " ", "--from", "de", "--to", "en")
    refused("max_length", "translate", source, "a", "--from=de", "--to=en", "--max-length", 99)
    refused("this is XLMWithLMHeadModel", "translate", xlm(), "a", "--from", "de", "--to", "en")


def test_missing_framework(refused, model, monkeypatch):
    monkeypatch.setitem(sys.modules["xlmfam.conversion.runners"].PACKAGES, "tf", "no_such_package")
    refused(r"pip install \"xlmfam\[tf\]\"", "generate", model, "a", "--backend", "tf")


# ---- manners ------------------------------------------------------------------------------


def test_interrupted(run, tmp_path, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("xlmfam.cli.inspect.run", interrupt)
    code, _, err = run("inspect", tmp_path)
    assert code == 130
    assert "Traceback" not in err


def test_debug_shows_tracebacks_and_faults_of_ours_are_not_hidden(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        main(["inspect", str(tmp_path / "nowhere"), "--debug"])

    def fault(args):
        raise ZeroDivisionError

    monkeypatch.setattr("xlmfam.cli.inspect.run", fault)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "x"])


def test_as_a_process(tmp_path):
    """Clean output, no words of frameworks, an exit code; nothing heavy imported for help."""
    source = make(tmp_path / "source")
    command = [sys.executable, "-m", "xlmfam.cli.main"]
    done = subprocess.run([*command, "inspect", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3,124" in done.stdout
    done = subprocess.run([*command, "inspect", "nowhere/at/all"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere/at/all: there is no such file or folder\n"
    code = (
        "import sys; from xlmfam.cli.main import main; main(['--help']); "
        "heavy = {'torch', 'tensorflow', 'jax', 'numpy', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_two
def test_frameworks_keep_quiet(tmp_path):
    source = make(tmp_path / "source")
    words = ["verify", source, "--no-gradients"]
    command = [sys.executable, "-m", "xlmfam.cli.main", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "JAX_"))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_reader_that_leaves(tmp_path):
    source = make(tmp_path / "source")
    command = f"{sys.executable} -m xlmfam.cli.main inspect {source} --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
