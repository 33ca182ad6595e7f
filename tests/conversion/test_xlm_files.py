"""XLM's files: every class in every format, and what transformers 4.37.2 wrote."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam.cli.main import main
from xlmfam.common.checkpoints.files import FORMATS, open_checkpoint
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import table_of
from xlmfam.conversion import checksum, convert, inspect
from xlmfam.conversion.runners import installed_backends, load

LM, BOTH = "XLMWithLMHeadModel", "XLMEncoderDecoder"
TABLE = table_of("xlm")
ADAPTIVE = {"asm": True, "asm_cutoffs": [11, 29], "asm_div_value": 2.0}
# Every class as it comes, and what adds, takes away or renames parameters.
CASES = {
    **{head: (head, {}) for head in (TABLE.base, *TABLE.heads)},
    "untied": (LM, {"tie_word_embeddings": False}),
    "adaptive": (LM, ADAPTIVE),
    "adaptive_untied": (LM, {**ADAPTIVE, "tie_word_embeddings": False}),
    "untied_translation": (BOTH, {"tie_word_embeddings": False}),
    "one_language": (LM, {"n_langs": 1}),
    "sinusoids": (LM, {"sinusoidal_embeddings": True}),
    "decoder": (LM, {"is_encoder": False}),
    "pruned": (LM, {"pruned_heads": {"1": [0, 3]}}),
    "bare": ("XLMForSequenceClassification", {"summary_use_proj": False}),
    "hidden": ("XLMForSequenceClassification", {"summary_proj_to_labels": False}),
}
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "xlm"
MANIFEST = Path(__file__).parents[1] / "data" / "manifests" / "xlm.json"
WRITTEN = sorted(path.name for path in (GOLDEN / "plain_formats").iterdir())


def skip_without_torch(format):
    if format == "pt":
        pytest.importorskip("torch")


# ---- every class in every format ------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("start", "end"), itertools.pairwise([*FORMATS, *FORMATS][:5]))
def test_from_each_format_to_the_next(tmp_path, case, start, end):
    skip_without_torch(start)
    skip_without_torch(end)
    head, settings = CASES[case]
    source = make(tmp_path / "source", head, start, **settings)
    arrays = make_arrays(make_config(head, **settings), head)
    assert checksum(source) == checksum(arrays)
    report = convert(source, tmp_path / "target", end)
    assert (report.head, report.tensors) == (head, len(arrays))
    assert checksum(tmp_path / "target") == checksum(arrays)
    assert not report.warnings


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head", [LM, BOTH, "XLMForQuestionAnswering"])
def test_shards(tmp_path, head, format):
    skip_without_torch(format)
    plain = make(tmp_path / "plain", head)
    report = convert(plain, tmp_path / "split", format, max_shard_size="9KB")
    assert FORMATS[format].index in report.files
    convert(tmp_path / "split", tmp_path / "again")
    assert checksum(tmp_path / "again") == checksum(plain)


@pytest.mark.parametrize("case", [name for name in CASES if name != "bare"])
def test_class_is_found_without_architectures(tmp_path, case):
    head, settings = CASES[case]
    source = make(tmp_path / "source", head, **settings)
    change_json(source / "config.json", architectures=None)
    assert inspect(source).head == head


def h5_cases():
    for variant in json.loads(MANIFEST.read_text())["variants"].values():
        for head, entry in variant["classes"].items():
            if entry["h5"]:
                yield head, {**variant["options"], **entry.get("options", {})}, entry["h5"]


@pytest.mark.parametrize(("head", "settings", "manifest"), h5_cases())
def test_groups_in_tf_model_h5_are_those_of_transformers(tmp_path, head, settings, manifest):
    # Tied, whatever the config says: see below for the head that is lost.
    make(tmp_path, head, "tf", **{**settings, "tie_word_embeddings": True})
    with h5py.File(tmp_path / "tf_model.h5") as file:
        layers = [name.decode() for name in file.attrs["layer_names"]]
        names = [n.decode() for layer in layers for n in file[layer].attrs["weight_names"]]
    instance = re.sub(r"_\d+$", "", manifest["instance"])  # counted in one process
    assert sorted(names) == sorted(f"{instance}/{name}:0" for name in manifest["shapes"])
    # Layers that have no weights need no group.
    assert layers == [
        name for name in manifest["layer_names"] if any(f"/{name}/" in n for n in names)
    ]


# ---- what transformers wrote ----------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_reading_what_transformers_wrote(name):
    skip_without_torch(name)
    folder = GOLDEN / "plain_formats" / name
    contents = inspect(folder)
    assert contents.ok, str(contents)
    if contents.head == LM:
        assert checksum(folder) == checksum(GOLDEN / "plain")
    else:
        assert contents.head == "XLMModel"
        assert checksum(folder) == _base_of(GOLDEN / "plain")


def _base_of(folder):
    with open_checkpoint(folder) as source:
        prefix = f"{TABLE.prefix}."
        names = [name for name in source.specs() if name.startswith(prefix)]
        return checksum({name.removeprefix(prefix): source.read(name) for name in names})


@pytest.mark.parametrize("backend", installed_backends())
@pytest.mark.parametrize("name", WRITTEN)
def test_models_from_what_transformers_wrote(backend, name):
    skip_without_torch(name)
    folder = GOLDEN / "plain_formats" / name
    assert checksum(load(backend, folder).to_canonical()) == checksum(folder)
    assert checksum(load(backend, folder, "XLMModel").to_canonical()) == _base_of(GOLDEN / "plain")


@pytest.mark.parametrize("end", FORMATS)
def test_the_head_of_tensorflow_goes_along(tmp_path, end):
    skip_without_torch(end)
    convert(GOLDEN / "plain_formats" / "tf", tmp_path / "target", end)
    assert checksum(tmp_path / "target") == checksum(GOLDEN / "plain")


def test_an_untied_head_that_tensorflow_lost(tmp_path):
    source = shutil.copytree(GOLDEN / "plain_formats" / "tf", tmp_path / "source")
    change_json(source / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="no untied projection: take another format"):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert any("tie_word_embeddings=True" in problem for problem in inspect(source).problems)
    backend = installed_backends()[0]
    model = load(backend, source, tie_word_embeddings=True)
    assert checksum(model.to_canonical()) == checksum(GOLDEN / "plain")


def test_a_format_that_holds_an_untied_head_lacks_it_without_excuse(tmp_path):
    source = make(tmp_path / "source", LM)
    change_json(source / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: pred_layer\.proj\.weight$"):
        convert(source, tmp_path / "target")


def test_our_own_untied_head_is_in_the_file(tmp_path):
    make(tmp_path, LM, "tf", tie_word_embeddings=False)
    with open_checkpoint(tmp_path) as source:
        assert source.specs()["pred_layer_._proj/kernel"] == TensorSpec((20, 53), np.dtype("f4"))


def test_names_of_older_files(tmp_path):
    """Counted positions, and the weight that a tied adaptive softmax lists beside its own."""
    torch = pytest.importorskip("torch")
    source = make(tmp_path / "source", LM, "pt", **ADAPTIVE)
    state = torch.load(source / "pytorch_model.bin")
    embedding = state["transformer.embeddings.weight"]
    assert torch.equal(state["pred_layer.proj.weight"], embedding)
    state["transformer.position_ids"] = torch.arange(31)[None]
    torch.save(state, source / "pytorch_model.bin")
    report = convert(source, tmp_path / "target")
    assert sorted(report.dropped) == ["pred_layer.proj.weight", "transformer.position_ids"]
    assert not report.warnings
    assert checksum(tmp_path / "target") == checksum(make_arrays(make_config(LM, **ADAPTIVE), LM))


# ---- inspect and the command ----------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head", [LM, BOTH, "XLMForMultipleChoice"])
def test_inspect_says_the_same_of_all_formats(tmp_path, head, format):
    skip_without_torch(format)
    contents = inspect(make(tmp_path, head, format))
    arrays = make_arrays(make_config(head), head)
    assert (contents.ok, contents.family, contents.head) == (True, "xlm", head)
    assert {t.name: t.shape for t in contents.tensors} == {n: a.shape for n, a in arrays.items()}
    assert contents.parameters == sum(a.size for a in arrays.values())


def test_inspect_goes_layer_after_layer(tmp_path):
    names = [tensor.name for tensor in inspect(make(tmp_path, LM, **ADAPTIVE)).tensors]
    assert names[0] == "transformer.position_embeddings.weight"
    layers = [int(name.split(".")[2]) for name in names if name.split(".")[2] in "01"]
    assert layers == [0] * 16 + [1] * 16
    # The clusters of an adaptive softmax are numbered too, and are no layers.
    assert names[-6:] == [
        "pred_layer.proj.head.weight",
        "pred_layer.proj.head.bias",
        *(f"pred_layer.proj.tail.{tail}.{part}.weight" for part in (0, 1) for tail in (0, 1)),
    ]


def test_config_and_tokenizer_go_along(tmp_path):
    languages = {"de": 0, "en": 1, "ro": 2}
    source = make(tmp_path / "source", LM, lang2id=languages)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (source / name).write_text(name)
    report = convert(source, tmp_path / "target", "flax")
    assert report.copied == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    config = json.loads((tmp_path / "target/config.json").read_text())
    assert config["lang2id"] == languages
    assert config["architectures"] == [LM]


def test_the_command(tmp_path, capfd):
    source = make(tmp_path / "source", "XLMForTokenClassification")
    assert main(["convert", str(source), str(tmp_path / "target"), "--to", "tf"]) == 0
    assert "XLMForTokenClassification: safetensors -> tf" in capfd.readouterr().out
    assert main(["inspect", str(tmp_path / "target"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["head"] == "XLMForTokenClassification"
    lost = make(tmp_path / "lost", LM, "tf")
    change_json(lost / "config.json", tie_word_embeddings=False)
    assert main(["inspect", str(lost)]) == 1
    assert "no untied projection" in capfd.readouterr().out


def test_save_gives_arrays_back(tmp_path):
    """What the tests above take for granted of their own helper."""
    config = make_config(LM)
    arrays = make_arrays(config, LM)
    assert checksum(save(tmp_path, arrays, config, LM)) == checksum(arrays)
    arrays["pred_layer.proj.bias"] = arrays["pred_layer.proj.bias"] + 1
    assert checksum(tmp_path) != checksum(arrays)
