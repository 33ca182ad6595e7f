"""facebookresearch/XLM: files and outputs of its own code (reference/make_original_xlm.py)."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest
from backends import BACKENDS, get_backend
from comparing import assert_close, assert_same_bits
from original_xlm import DATA, MODELS, arrays_of, original_of, unpack
from tolerances import MODEL

from xlmfam import AutoConfig, XLMTokenizer
from xlmfam.cli.main import main
from xlmfam.common.errors import CheckpointError
from xlmfam.common.tokenizers.xlm_bpe import read_merges
from xlmfam.common.tokenizers.xlm_originals import SPECIAL_WORDS, read_original_words
from xlmfam.conversion import convert
from xlmfam.conversion.formats.torch_file import TorchFile

LM, BOTH = "XLMWithLMHeadModel", "XLMEncoderDecoder"
OUTPUTS = dict(np.load(DATA / "outputs.npz"))
SENTENCES = json.loads((DATA / "sentences.json").read_text())
THREE = {"de": 0, "en": 1, "fr": 2}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The folder of the original files."""
    return unpack(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def converted(originals, tmp_path_factory):
    """A folder with a converted folder of each name."""
    folder = tmp_path_factory.mktemp("converted")
    for name in MODELS:
        convert(originals / f"{name}.pth", folder / name)
    return folder


def head_of(name):
    return BOTH if name == "mt" else LM


# ---- the same outputs -----------------------------------------------------------------------


def recorded(name):
    return {k.partition(".")[2]: v for k, v in OUTPUTS.items() if k.startswith(f"{name}.")}


def inputs_of(case, prefix=""):
    ids, lengths = case[f"{prefix}ids"], case[f"{prefix}lengths"]
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "langs": case[f"{prefix}langs"]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_original(converted, name, backend):
    backend = get_backend(backend)
    case = recorded(name)
    if name == "mt":
        inputs, target = inputs_of(case, "source_"), inputs_of(case, "target_")
        inputs |= {f"decoder_{key}": value for key, value in target.items()}
        real = target["attention_mask"] == 1
    else:
        inputs = inputs_of(case)
        if name == "clm":  # one language has no embedding
            del inputs["langs"]
        real = inputs["attention_mask"] == 1
    model = backend.load(head_of(name), converted / name)
    output = backend.call(model, inputs, output_hidden_states=True)
    states = "decoder_hidden_states" if name == "mt" else "hidden_states"
    found = {"states": output[states][-1], "scores": output["logits"][real]}
    wanted = {"states": case["states"], "scores": case["scores"]}
    if name == "mt":
        found["encoded"], wanted["encoded"] = output["encoder_last_hidden_state"], case["encoded"]
    assert_close(found, wanted, MODEL, f"{name} in {backend}")


@pytest.mark.parametrize("name", ["mlm", "mt"])
def test_the_command_converts_and_verifies(originals, tmp_path, name, monkeypatch, capsys):
    for package in ("torch", "tensorflow"):
        pytest.importorskip(package)
    # Flax has just been held against the original, and compiles for long.
    module = importlib.import_module("xlmfam.conversion.verify")
    monkeypatch.setattr(module, "installed_backends", lambda: ("pt", "tf"))
    target = tmp_path / "out"
    assert main(["convert", str(originals / f"{name}.pth"), str(target), "--verify"]) == 0
    assert "the backends agree" in capsys.readouterr().out


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "mlm",
            {
                **{"n_layers": 2, "n_heads": 5, "emb_dim": 10, "vocab_size": 73},
                **{"dropout": 0.1, "attention_dropout": 0.2, "gelu_activation": True},
                **{"causal": False, "sinusoidal_embeddings": False, "asm": False},
                **{"n_langs": 3, "lang2id": THREE, "use_lang_emb": True},
                **{"tie_word_embeddings": True, "max_position_embeddings": 23},
                **{"pad_index": 2, "mask_index": 5, "mask_token_id": 5, "pad_token_id": 2},
            },
        ),
        (
            "clm",
            {
                **{"n_layers": 1, "dropout": 0.3, "gelu_activation": False, "causal": True},
                **{"sinusoidal_embeddings": True, "n_langs": 1, "lang2id": {"en": 0}},
                **{"tie_word_embeddings": False},
            },
        ),
        (
            "asm",
            {
                **{"asm": True, "asm_cutoffs": [19, 31], "asm_div_value": 2.0, "causal": True},
                **{"use_lang_emb": False, "n_langs": 3, "tie_word_embeddings": False},
            },
        ),
        ("mt", {"causal": False, "tie_word_embeddings": True, "id2lang": {0: "de", 1: "en"}}),
    ],
)
def test_settings(converted, name, wanted):
    config = AutoConfig.from_pretrained(converted / name)
    assert config.architectures == [head_of(name)]
    wanted = {**wanted, **({"id2lang": {0: "de", 1: "en", 2: "fr"}} if name == "mt" else {})}
    assert {key: getattr(config, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("mlm", {"epoch", "n_total_iter", "best_metrics", "best_stopping_criterion"}),
        (
            "asm",
            {"epoch", "n_total_iter", "best_metrics", "best_stopping_criterion", "model_optimizer"},
        ),
        (
            "mt",
            {
                *("epoch", "n_total_iter", "best_metrics", "best_stopping_criterion"),
                *("encoder.pred_layer.proj.weight", "encoder.pred_layer.proj.bias"),
            },
        ),
    ],
)
def test_what_no_model_needs_is_named(originals, name, dropped):
    original = original_of(originals / f"{name}.pth")
    assert original.release == "xlm"
    assert set(original.dropped) == dropped


# ---- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SENTENCES, ids=lambda case: case["text"])
def test_ids_are_those_of_the_original(converted, case):
    tokenizer = XLMTokenizer.from_pretrained(converted / "mlm")
    assert tokenizer(case["text"], lang=case["lang"])["input_ids"] == case["ids"]


def test_the_tokenizer_knows_its_model(converted):
    tokenizer = XLMTokenizer.from_pretrained(converted / "mlm")
    assert tokenizer.lang2id == THREE
    assert tokenizer.model_max_length == 23
    assert tokenizer.vocab_size == 73
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (5, 2)
    assert tokenizer.do_lowercase_and_remove_accent
    assert tokenizer.original_steps


# ---- and back -------------------------------------------------------------------------------


def structure_of(path):
    """Names, shapes and dtypes of everything but settings and the state of training."""
    file = TorchFile(path)
    value = file.value
    parts = {key: value[key] for key in ("model", "encoder", "decoder") if key in value}
    specs = {
        key: {name.removeprefix("module."): t.spec for name, t in part.items()}
        for key, part in parts.items()
    }
    shared = {
        key: sorted(
            name.removeprefix("module.")
            for name, t in part.items()
            if sum(t.storage == other.storage for other in part.values()) > 1
        )
        for key, part in parts.items()
    }
    file.close()
    words, counts = value["dico_word2id"], value["dico_counts"]
    falling = [counts[word] for word in sorted(words, key=words.get)[14:]]
    assert falling == sorted(falling, reverse=True)
    return specs, shared, words, set(counts)


@pytest.mark.parametrize("name", MODELS)
def test_back_to_the_original(originals, converted, tmp_path, name):
    report = convert(converted / name, tmp_path / "back", "original")
    assert {"model.pth", "codes", "vocab"} <= set(report.files)
    written, source = tmp_path / "back" / "model.pth", originals / f"{name}.pth"
    assert structure_of(written) == structure_of(source)
    assert_same_bits(arrays_of(written), arrays_of(source))
    words = read_original_words(tmp_path / "back" / "vocab")
    assert words == read_original_words(originals / "vocab")
    assert read_merges(tmp_path / "back" / "codes") == read_merges(originals / "codes")
    settings, params = (TorchFile(path).value["params"] for path in (written, source))
    # A causal model is one again; the steps themselves are not all kept.
    unlike = {key for key, value in settings.items() if params[key] != value}
    assert unlike <= {"mlm_steps", "mt_steps", "use_memory"}
    convert(written, tmp_path / "again")
    for file in ("config.json", "vocab.json", "merges.txt", "model.safetensors"):
        first, second = (folder / file for folder in (converted / name, tmp_path / "again"))
        assert second.read_bytes() == first.read_bytes(), file


@pytest.mark.parametrize("name", ["mt", "clm"])
def test_back_from_a_format_with_other_layouts(originals, converted, tmp_path, name):
    convert(converted / name, tmp_path / "flax", "flax")
    convert(tmp_path / "flax", tmp_path / "back", "original")
    written = tmp_path / "back" / "model.pth"
    assert_same_bits(arrays_of(written), arrays_of(originals / f"{name}.pth"))


def test_the_original_reads_dtypes_as_they_are(converted, tmp_path):
    torch = pytest.importorskip("torch")
    convert(converted / "clm", tmp_path / "half", "original", dtype="bfloat16")
    state = torch.load(tmp_path / "half" / "model.pth", weights_only=True)
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.bfloat16}
    assert state["dico_id2word"][14] == read_original_words(DATA / "vocab")[14]
    assert state["params"]["id2lang"] == {0: "en"}


def test_without_a_tokenizer_words_are_made_up(converted, tmp_path):
    copy = shutil.copytree(converted / "mlm", tmp_path / "copy")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (copy / name).unlink()
    report = convert(copy, tmp_path / "back", "original")
    assert not {"codes", "vocab"} & set(report.files)
    value = TorchFile(tmp_path / "back" / "model.pth").value
    assert tuple(value["dico_word2id"])[:14] == SPECIAL_WORDS
    assert len(value["dico_word2id"]) == 73
    convert(tmp_path / "back" / "model.pth", tmp_path / "again")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"pad_index": 3}, "pad_index is 3, and the original's is 2"),
    ],
)
def test_what_the_original_cannot_have_is_refused(converted, tmp_path, settings, message):
    copy = shutil.copytree(converted / "mlm", tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, **settings}))
    with pytest.raises(CheckpointError, match=message):
        convert(copy, tmp_path / "back", "original")
    assert not (tmp_path / "back").exists()


def test_heads_that_the_original_does_not_have_are_refused(converted, tmp_path):
    with pytest.raises(CheckpointError, match="the original code has no XLMModel"):
        convert(converted / "mlm", tmp_path / "back", "original", head="XLMModel")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("x@@</w>", "x"), "one word in the original"),
        (("x y</w>", "z"), "the original has no spaces"),
        (("</w>", "z"), "the original has no spaces"),
        (("x\u2028</w>", "z"), "the original has no spaces"),
    ],
)
def test_words_that_the_original_cannot_have_are_refused(converted, tmp_path, tokens, message):
    copy = shutil.copytree(converted / "mlm", tmp_path / "copy")
    vocabulary = json.loads((copy / "vocab.json").read_text())
    others = {token: number for token, number in vocabulary.items() if number not in (20, 21)}
    new = dict(zip(tokens, (20, 21), strict=True))
    (copy / "vocab.json").write_text(json.dumps({**others, **new}))
    with pytest.raises(CheckpointError, match=message):
        convert(copy, tmp_path / "back", "original")
    assert not (tmp_path / "back").exists()
