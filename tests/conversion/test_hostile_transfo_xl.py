"""Transformer-XL's older files are pickles: those that want to run code run none of it.

`vocab.pkl` and `vocab.bin` are the tokenizer's, `pytorch_model.bin` is transformers', and
`model.pt` is a whole module as the original release saves it. A folder with one of them goes to
whatever reads folders. What is done to the unpicklers themselves is in
tests/common/test_tokenizer_transfo_xl_old.py and test_formats_pytorch_bin.py.
"""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from tiny_transfo_xl import make_transfo_xl, make_transfo_xl_tokenizer

from xlmfam import AutoTokenizer, TransfoXLTokenizer
from xlmfam.cli.main import main
from xlmfam.common.corpora import TransfoXLCorpus
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.runners import installed_backends

torch = pytest.importorskip("torch")

LM = "TransfoXLLMHeadModel"
WORDS = ["<eos>", "<unk>", "the", "dog"]


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class EvilModule(torch.nn.Module):
    """A module as it is pickled whole, with something more among its attributes."""

    def __init__(self, path):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.evil = Evil(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that is good."""
    folder = tmp_path_factory.mktemp("whole")
    return make_transfo_xl(folder, make_transfo_xl_tokenizer(folder, 2))


@pytest.fixture
def marker(tmp_path):
    """What must not be there in the end."""
    path = tmp_path / "was_here"
    yield path
    assert not path.exists(), "the file has run code"


@pytest.fixture
def folder(whole, tmp_path):
    """Copies some files of the good folder into a new one."""

    def copy(*names):
        path = tmp_path / "source"
        path.mkdir()
        for name in names:
            (path / name).write_bytes((whole / name).read_bytes())
        return path

    return copy


@pytest.fixture
def refused(tmp_path, capfd):
    """Run the command; it may say one clear line, and write nothing."""

    def call(said, *words):
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main([str(word) for word in words]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert said in err
        assert sorted(tmp_path.rglob("*")) == before

    return call


def assert_is_an_attack(path, marker):
    """A file that is harmless would show nothing."""
    if path.suffix == ".pkl":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()
    marker.rmdir()


# ---- vocabularies -------------------------------------------------------------------------


def write_vocabulary(path, value):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path)


@pytest.mark.parametrize("name", ["vocab.pkl", "vocab.bin"])
def test_a_vocabulary(folder, marker, refused, name):
    source = folder("config.json", "model.safetensors", "tokenizer_config.json")
    write_vocabulary(source / name, Evil(marker))
    assert_is_an_attack(source / name, marker)
    for load in (TransfoXLTokenizer, AutoTokenizer):
        with pytest.raises(CheckpointError, match=f"{name}.* no vocabulary"):
            load.from_pretrained(source)
    refused(name, "generate", source, "the dog")
    text = source / "text.txt"
    text.write_text("the dog\n")
    refused(name, "evaluate", source, text)


@pytest.mark.parametrize("name", ["vocab.pkl", "vocab.bin"])
def test_beside_a_vocabulary(folder, marker, tmp_path, name):
    """Hidden in a file that is good otherwise: its words are read, the rest is left."""
    source = folder()
    value = {"idx2sym": WORDS, "special": ["<eos>"], "moses_tokenizer": Evil(marker)}
    write_vocabulary(source / name, value)
    assert_is_an_attack(source / name, marker)
    tokenizer = TransfoXLTokenizer.from_pretrained(source)
    assert tokenizer.idx2sym == WORDS
    assert tokenizer("the dog")["input_ids"] == [2, 3]
    # What is saved has no pickle in it.
    tokenizer.save_pretrained(tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".txt"}
    assert TransfoXLTokenizer.from_pretrained(tmp_path / "saved").idx2sym == WORDS


def test_a_corpus(folder, marker):
    source = folder("vocab.json")
    torch.save(Evil(marker), source / "corpus.bin")
    assert_is_an_attack(source / "corpus.bin", marker)
    with pytest.raises(CheckpointError, match=r"corpus\.bin of transformers is not read"):
        TransfoXLCorpus.from_pretrained(source)


def test_a_text_of_ids(folder, marker, refused):
    source = folder("config.json", "model.safetensors")
    ids = np.empty(2, object)
    ids[:] = [Evil(marker), 1]
    np.save(source / "ids.npy", ids, allow_pickle=True)
    refused("no NumPy file of token ids", "evaluate", source, source / "ids.npy")
    np.load(source / "ids.npy", allow_pickle=True)
    assert marker.exists()
    marker.rmdir()


# ---- weights ------------------------------------------------------------------------------


def state(marker):
    """A state dict of one attack."""
    return {"transformer.word_emb.emb_projs.0": torch.ones(2), "more": Evil(marker)}


REFUSED = "holds more than tensors"
# Name of the file, what is in it, and what is said of its folder.
WEIGHTS = {
    "state": ("pytorch_model.bin", state, REFUSED),
    "module": ("pytorch_model.bin", EvilModule, REFUSED),
    "original": ("model.pt", EvilModule, "found none of model.safetensors"),
}


@pytest.fixture(params=WEIGHTS)
def weights(request, folder, marker):
    """A folder and a file in it that wants to run code, each with what is said of it."""
    name, make, said = WEIGHTS[request.param]
    source = folder("config.json", "vocab.json")
    torch.save(make(marker), source / name)
    assert_is_an_attack(source / name, marker)
    return {source: said, source / name: REFUSED}


@pytest.mark.parametrize("name", installed_backends())
def test_weights_in_a_model(weights, name):
    from backends import get_backend

    for given, said in weights.items():
        with pytest.raises(CheckpointError, match=said):
            get_backend(name).load(LM, given)


def test_weights_in_a_command(weights, tmp_path, refused):
    target = tmp_path / "target"
    for given, said in weights.items():
        refused(said, "inspect", given)
        refused(said, "convert", given, target)
        refused(said, "convert", given, target, "--to", "tf")
        refused(said, "verify", given)
    assert not target.exists()
