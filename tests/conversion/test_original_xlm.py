"""facebookresearch/XLM: files and outputs of its own code (reference/make_original_xlm.py)."""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS, get_backend
from comparing import assert_close, assert_same_bits
from tolerances import MODEL

from xlmfam import AutoConfig, XLMTokenizer
from xlmfam.cli.main import main
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.tokenizers.xlm_bpe import read_merges
from xlmfam.common.tokenizers.xlm_originals import SPECIAL_WORDS, read_original_words
from xlmfam.conversion import convert
from xlmfam.conversion.formats.torch_file import StoredTensor, TorchFile
from xlmfam.conversion.formats.torch_writer import tensor_of, write_torch_file
from xlmfam.conversion.originals import open_original
from xlmfam.conversion.originals.xlm import matches

DATA = Path(__file__).parents[1] / "data" / "originals" / "xlm"
MODELS = ("mlm", "clm", "asm", "mt")
LM, BOTH = "XLMWithLMHeadModel", "XLMEncoderDecoder"
OUTPUTS = dict(np.load(DATA / "outputs.npz"))
SENTENCES = json.loads((DATA / "sentences.json").read_text())
THREE = {"de": 0, "en": 1, "fr": 2}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The folder of the original files."""
    folder = tmp_path_factory.mktemp("originals")
    for name in MODELS:
        packed = (DATA / f"{name}.pth.gz").read_bytes()
        (folder / f"{name}.pth").write_bytes(gzip.decompress(packed))
    for name in ("codes", "vocab"):
        shutil.copy(DATA / name, folder)
    return folder


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


def arrays_of(path):
    original = open_original(path)
    with original.source as source:
        return {name: source.read(name) for name in source.specs()}


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


# ---- other files ----------------------------------------------------------------------------


def rebuilt(nested, file):
    """What `write_torch_file` writes as the same again."""
    if isinstance(nested, StoredTensor):
        return tensor_of(file.read(nested))
    if isinstance(nested, dict):
        return {key: rebuilt(value, file) for key, value in nested.items()}
    if isinstance(nested, list | tuple):
        return type(nested)(rebuilt(value, file) for value in nested)
    return nested if isinstance(nested, str | int | float | None) else None


@pytest.fixture
def edited(originals, tmp_path):
    """Writes a copy of an original file with something changed, and its words beside it."""

    def write(change, name="mlm", beside=("codes",)):
        folder = tmp_path / "edited"
        folder.mkdir()
        for file in beside:
            shutil.copy(originals / file, folder)
        file = TorchFile(originals / f"{name}.pth")
        value = rebuilt(file.value, file)
        change(value)
        write_torch_file(folder / f"{name}.pth", value)
        return folder / f"{name}.pth"

    return write


def set_params(**settings):
    def change(value):
        value["params"] |= settings
        value["params"] = {k: v for k, v in value["params"].items() if v is not None}

    return change


def rename(old, new):
    def change(value):
        value["model"][new] = value["model"].pop(old)

    return change


def drop(*names):
    return lambda value: [value.pop(name) for name in names]


def twist(value):
    value["dico_word2id"]["<pad>"], value["dico_word2id"]["<unk>"] = 3, 2


def without_a_word(value):
    value["dico_word2id"] = {k: v for k, v in value["dico_word2id"].items() if v != 20}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("params"), "has no params"),
        (set_params(n_heads=None), "params lacks n_heads"),
        (set_params(n_heads="5"), "n_heads in params is '5'; it must be int"),
        (set_params(n_heads=3), "n_heads"),
        (set_params(n_layers=True), "n_layers in params is True; it must be int"),
        (set_params(n_layers=10**12), "n_layers in params is 1000000000000; it must be between"),
        (set_params(n_layers=3), "missing: transformer.attentions.2.q_lin.weight"),
        (set_params(n_layers=1), "unexpected: attentions.1.q_lin.weight"),
        (set_params(emb_dim=15), "emb_dim in params is 15; it must be 10"),
        (set_params(emb_dim=10**600), "emb_dim in params is a huge number"),
        (set_params(dropout=float("nan")), "dropout in params is nan"),
        (set_params(dropout=10**400), "dropout in params is a huge number"),
        (set_params(n_words=99), "n_words in params is 99; it must be 73"),
        (set_params(gelu_activation=None), "params lacks gelu_activation"),
        (set_params(use_memory=True, mem_enc_positions="4"), r"product-key memories \(use_memory"),
        (rename("layer_norm_emb.bias", "memories.0_in.keys"), r"memories.0_in.keys"),
        (rename("layer_norm_emb.bias", "layer_norm_emb.shift"), "unexpected: layer_norm_emb.shift"),
        (rename("position_embeddings.weight", "other"), "has no table position_embeddings.weight"),
        (set_params(lang2id={"de": 0, "en": 1}), "the 3 languages of n_langs"),
        (set_params(lang2id={"de": "x"}), "numbers by language"),
        (set_params(n_langs=4, lang2id={"a": 0, "b": 1, "c": 2, "d": 3}), "misshapen"),
        (set_params(use_lang_emb=False), "unexpected: lang_embeddings.weight"),
        (set_params(dropout=1.5), "dropout"),
        (set_params(asm=True), "params lacks asm_cutoffs"),
        (set_params(asm=True, asm_cutoffs="8,x"), "asm_cutoffs in params"),
        (set_params(asm=True, asm_cutoffs="8,20", asm_div_value=1e-300), "asm_div_value in params"),
        (set_params(asm=True, asm_cutoffs=f"8,{'9' * 5000}"), "asm_cutoffs in params"),
        (set_params(asm=True, asm_cutoffs=[8, 10**600]), "asm_cutoffs in params"),
        (set_params(n_langs=2**39), "the 549755813888 languages of n_langs"),
        (set_params(lang2id={}, lgs=None, n_langs=2**39), "misshapen"),
        (set_params(asm=True, asm_cutoffs=list(range(10**4))), "asm_cutoffs in params"),
        (twist, "the dictionary must begin with <s>, </s>"),
        (without_a_word, "has 72 words and must number the 73 rows"),
        (lambda value: value["dico_word2id"].update({"the": 1.5}), "gives no numbers to words"),
        (lambda value: value.update(encoder=value["model"]), "has model and encoder"),
        (lambda value: value.update(model={}), "model holds no weights"),
        (lambda value: value["model"].update(step=3), "'step' of model is no tensor"),
        (
            lambda value: value["dico_word2id"].update({"\ud800": 14}) or drop_word(value, 14),
            "text",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused(edited, tmp_path, change, message):
    path = edited(change)
    with pytest.raises(XlmfamError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert len(str(caught.value)) < 3000
    assert not (tmp_path / "out").exists()


def drop_word(value, number):
    words = value["dico_word2id"]
    del words[next(word for word in words if words[word] == number)]


def test_a_truncated_file_is_refused(originals, tmp_path):
    content = (originals / "mt.pth").read_bytes()
    for size in (200, len(content) // 2, len(content) - 3):
        (tmp_path / "mt.pth").write_bytes(content[:size])
        with pytest.raises(XlmfamError):
            convert(tmp_path / "mt.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "it ran")


@pytest.mark.parametrize("is_zipped", [True, False])
def test_nothing_in_a_file_is_run(originals, tmp_path, is_zipped):
    torch = pytest.importorskip("torch")
    value = torch.load(originals / "mlm.pth", weights_only=False)
    trap = tmp_path / "trap"
    value["params"] |= {"command": Hostile(trap), "langs": [Hostile(trap)]}
    value["params"] = argparse.Namespace(**value["params"])
    value["model"].surprise = Hostile(trap)
    path = tmp_path / "there" / "checkpoint.pth"
    path.parent.mkdir()
    torch.save(value, path, _use_new_zipfile_serialization=is_zipped)
    convert(path, tmp_path / "out")
    assert_same_bits(arrays_of(path), arrays_of(originals / "mlm.pth"))
    value["params"].n_heads = Hostile(trap)
    torch.save(value, path, _use_new_zipfile_serialization=is_zipped)
    with pytest.raises(CheckpointError, match="n_heads in params is an object"):
        convert(path, tmp_path / "other")
    assert not trap.exists()


def original_of(path):
    original = open_original(path)
    original.source.close()
    return original


def notes_of(path):
    return " ".join(original_of(path).notes)


@pytest.mark.parametrize(
    ("steps", "causal", "note"),
    [
        ({"clm_steps": [], "mlm_steps": [("en", None)]}, False, None),
        ({"clm_steps": [("en", None)], "mlm_steps": []}, True, None),
        ({"clm_steps": "en,de", "mlm_steps": ""}, True, None),
        ({"clm_steps": [("en", None)], "mlm_steps": [("en", None)]}, False, "names both"),
        ({"clm_steps": [], "mlm_steps": []}, False, "names no clm_steps or mlm_steps"),
    ],
)
def test_causal_or_masked(edited, steps, causal, note):
    original = original_of(edited(set_params(**steps)))
    assert original.config.causal is causal
    assert [note in text for text in original.notes if "clm_steps" in text] == [True] * bool(note)


def test_languages_are_numbered_by_alphabet_where_they_have_no_numbers(edited):
    path = edited(set_params(lang2id=None, lgs="fr-de-en"))
    assert original_of(path).config.lang2id == THREE


def test_a_model_without_names_of_languages(edited):
    path = edited(set_params(lang2id=None, lgs=None))
    assert original_of(path).config.n_langs == 3
    assert "does not name the languages" in notes_of(path)


def test_options_that_are_younger_than_the_file(edited):
    path = edited(set_params(use_lang_emb=None, share_inout_emb=None, asm=None, use_memory=None))
    config = original_of(path).config
    assert (config.use_lang_emb, config.tie_word_embeddings, config.asm) == (True, True, False)


def test_a_cased_dictionary(edited):
    def change(value):
        words = value["dico_word2id"]
        value["dico_word2id"] = {w if n < 14 else w.title(): n for w, n in words.items()}

    original = original_of(edited(change))
    settings = json.loads(original.tokenizer_files["tokenizer_config.json"])
    assert settings["do_lowercase_and_remove_accent"] is False
    assert any("the dictionary is cased" in note for note in original.notes)


def test_without_codes_there_are_no_merges(edited):
    path = edited(lambda value: None, beside=())
    assert sorted(original_of(path).tokenizer_files) == ["tokenizer_config.json", "vocab.json"]
    assert "put the model's BPE codes" in notes_of(path)


def test_of_several_codes_those_of_the_words_are_taken(edited, originals, converted):
    path = edited(lambda value: None, beside=())
    (path.parent / "codes_other").write_text("q z 9\nqz x</w> 3\n")
    assert "is it another model's?" in notes_of(path)
    shutil.copy(originals / "codes", path.parent / "codes_right")
    (path.parent / "codes_third").write_text("q z 9\nqz x</w> 3\n")
    original = original_of(path)
    merges = (converted / "mlm" / "merges.txt").read_bytes()
    assert original.tokenizer_files["merges.txt"] == merges
    assert any("codes_right, which fits the words best" in note for note in original.notes)


def test_a_vocabulary_beside_the_file_stands_in_for_its_dictionary(edited, converted):
    path = edited(drop("dico_word2id", "dico_counts", "dico_id2word"), beside=("codes", "vocab"))
    vocab = original_of(path).tokenizer_files["vocab.json"]
    assert vocab == (converted / "mlm" / "vocab.json").read_bytes()
    shutil.copy(path.parent / "vocab", path.parent / "vocab_2")
    assert original_of(path).tokenizer_files == {}
    assert "2 vocab files lie beside it" in notes_of(path)


def test_codes_that_are_no_text_are_refused(edited):
    path = edited(lambda value: None, beside=())
    (path.parent / "codes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        open_original(path)


def test_other_files_are_not_of_this_release(tmp_path):
    weights = {"weight": tensor_of(np.zeros((2, 3), np.float32))}
    for content in ({"model": weights, "args": {}}, weights, {"params": {}}, [1]):
        assert not matches(content)
    write_torch_file(tmp_path / "other.pt", weights)
    assert open_original(tmp_path / "other.pt") is None


def test_a_folder_is_taken_for_its_one_checkpoint(originals, converted, tmp_path):
    shutil.copy(originals / "mt.pth", tmp_path)
    (tmp_path / "notes.bin").write_bytes(b"nothing")
    assert original_of(tmp_path).head == BOTH
    shutil.copy(originals / "mlm.pth", tmp_path)
    with pytest.raises(CheckpointError, match=r"several checkpoints: mlm.pth, mt.pth"):
        open_original(tmp_path)
    assert open_original(converted / "mlm") is None
