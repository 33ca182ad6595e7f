"""Files of facebookresearch/XLM that are damaged, hostile, or not like the others."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_same_bits
from original_xlm import arrays_of, original_of, rebuilt, unpack

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.conversion import convert
from xlmfam.conversion.formats.torch_file import TorchFile
from xlmfam.conversion.formats.torch_writer import tensor_of, write_torch_file
from xlmfam.conversion.originals import open_original
from xlmfam.conversion.originals.xlm import matches

BOTH = "XLMEncoderDecoder"
THREE = {"de": 0, "en": 1, "fr": 2}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The folder of the original files."""
    return unpack(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def converted(originals, tmp_path_factory):
    """A folder with one converted folder."""
    folder = tmp_path_factory.mktemp("converted")
    convert(originals / "mlm.pth", folder / "mlm")
    return folder


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
