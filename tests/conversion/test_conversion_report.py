"""The report of a conversion: nothing missing from it, nothing needed for it, and proof in it."""

from __future__ import annotations

import html.parser
import importlib
import json
import re

import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam.cli.main import main
from xlmfam.common.checkpoints.files import FORMATS, REPORT_FILES, open_checkpoint, save_checkpoint
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.conversion import checksum, convert
from xlmfam.conversion.runners import installed_backends
from xlmfam.conversion.streaming import sum_of
from xlmfam.conversion.verify import verify_conversion


def skip_without_torch(*formats):
    if "pt" in formats:
        pytest.importorskip("torch")


def data_of(folder):
    return json.loads((folder / "conversion_report.json").read_text())


def page_of(folder):
    return (folder / "conversion_report.html").read_text()


@pytest.mark.parametrize("end", FORMATS)
def test_every_name_of_the_source_is_accounted_for(tmp_path, end):
    skip_without_torch("pt", end)
    source = make(tmp_path / "source", format="pt")
    report = convert(source, tmp_path / "target", end, max_shard_size="4KB")
    data = data_of(tmp_path / "target")
    with open_checkpoint(source) as opened:
        stored = set(opened.specs())
    assert {t["stored_as"] for t in data["carried"]} | set(data["dropped"]) == stored
    assert data["dropped"] == {"lm_head.weight": "tied to model.embed_tokens.weight"}
    assert data["ties"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert len(data["carried"]) == data["tensors"] == report.tensors == 35
    arrays = make_arrays(make_config())
    for tensor in data["carried"]:
        array = arrays[tensor["name"]]
        assert tuple(tensor["shape"]) == array.shape
        assert tensor["sha256"] == sum_of([array])
        assert tensor["source_dtype"] == tensor["dtype"] == "float32"
    assert data["checksum"] == report.checksum == checksum(tmp_path / "target")


@pytest.mark.parametrize("end", FORMATS)
def test_every_tensor_is_where_the_report_says(tmp_path, end):
    skip_without_torch(end)
    convert(make(tmp_path / "source"), tmp_path / "target", end, max_shard_size="4KB")
    data = data_of(tmp_path / "target")
    arrays = make_arrays(make_config())
    assert sum(t["transposed"] for t in data["carried"]) == (
        0 if end in ("pt", "safetensors") else 12
    )
    for tensor in data["carried"]:
        twice = tensor["name"] == "model.embed_tokens.weight" and end in ("pt", "tf")
        assert len(tensor["written_as"]) == len(tensor["files"]) == (2 if twice else 1)
        expected = arrays[tensor["name"]]
        for number, (name, file) in enumerate(
            zip(tensor["written_as"], tensor["files"], strict=True)
        ):
            # A head's kernel lies the other way round, and the report speaks of the first.
            turned = tensor["transposed"] or (number and end == "tf")
            with open_checkpoint(tmp_path / "target" / file) as shard:
                found = shard.read(name)
                np.testing.assert_array_equal(found, expected.T if turned else expected)


def test_what_was_read_asked_for_and_used(tmp_path):
    source = make(tmp_path / "source")
    report = convert(source, tmp_path / "target", dtype="bfloat16", max_shard_size="4KB")
    data = data_of(tmp_path / "target")
    status = (source / "model.safetensors").stat()
    assert data["source_files"] == [
        {
            "name": "model.safetensors",
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "inode": status.st_ino,
        }
    ]
    assert data["options"]["dtype"] == "bfloat16"
    assert data["options"]["max_shard_size"] == "4KB"
    assert {"xlmfam", "python", "numpy", "safetensors"} <= set(data["versions"])
    assert data["cast"] == 35
    assert {(t["source_dtype"], t["dtype"]) for t in data["carried"]} == {("float32", "bfloat16")}
    assert data["seconds"] > 0
    for name, size in data["files"].items():
        assert (tmp_path / "target" / name).stat().st_size == size
    assert {*data["files"], *REPORT_FILES} == set(report.files)
    assert {path.name for path in (tmp_path / "target").iterdir()} == set(report.files)


def test_values_that_are_no_number_are_told(tmp_path):
    arrays = make_arrays(make_config())
    arrays["model.layers.1.fc2.bias"][[2, 5]] = np.nan, -np.inf
    report = convert(save(tmp_path / "source", arrays, make_config()), tmp_path / "target")
    (warning,) = report.warnings
    assert "model.layers.1.fc2.bias: 2 of its 12 values" in warning
    assert warning in data_of(tmp_path / "target")["warnings"]


def test_a_shard_that_is_missing_from_the_table_is_an_error(tmp_path):
    arrays = make_arrays(make_config())
    specs_of = {"model.layers.0.mystery": np.ones(3, np.float32), **arrays}
    source = make(tmp_path / "source")
    from xlmfam.common.checkpoints.source import TensorSpec

    save_checkpoint(
        source,
        {name: TensorSpec(a.shape, a.dtype) for name, a in specs_of.items()},
        specs_of.__getitem__,
    )
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.0\.mystery"):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


class Page(html.parser.HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.tags, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [v for k, v in attributes if k in ("src", "href", "data", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone(tmp_path):
    source = make(tmp_path / "source <b>&amp; co")
    report = convert(source, tmp_path / "target", "flax")
    text = page_of(tmp_path / "target")
    page = Page(text)
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe", "b"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", text)
    words = "".join(page.words)
    assert "source <b>&amp; co" in words
    for tensor in report.carried:
        assert tensor.name in words
        assert tensor.sha256[:16] in words
    assert report.checksum in words
    assert "Nothing: every name of the source was carried over." in words


def test_reports_belong_to_their_checkpoint(tmp_path):
    source = make(tmp_path / "source")
    convert(source, tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "second")
    assert data_of(tmp_path / "second")["source"] == str(tmp_path / "first")
    convert(source, tmp_path / "second", "flax", overwrite=True)
    assert data_of(tmp_path / "second")["source"] == str(source)
    # A model that is trained and saved there is no longer what was converted.
    save(tmp_path / "first", make_arrays(make_config(), seed=3), make_config())
    assert not any((tmp_path / "first" / name).exists() for name in REPORT_FILES)


# ---- --verify -----------------------------------------------------------------------------

needs_backend = pytest.mark.skipif(not installed_backends(), reason="runs models")
FIRST = installed_backends()[:1]


@needs_backend
def test_the_result_is_run_against_the_source(tmp_path):
    source = make(tmp_path / "source", num_layers=1)
    report = convert(source, tmp_path / "target", "flax", dtype="bfloat16")
    found = verify_conversion(report, backends=FIRST)
    # Were the source not cast alike, this would be some 1e-3.
    assert found.ok
    assert found.pairs == [("source", FIRST[0])]
    assert found.largest < 1e-6
    assert {c.kind for c in found.comparisons} == {"state", "logits", "loss", "gradient"}


@needs_backend
def test_a_result_that_differs_is_not_verified(tmp_path):
    source = make(tmp_path / "source", num_layers=1)
    report = convert(source, tmp_path / "target")
    arrays = make_arrays(make_config(num_layers=1))
    arrays["model.layers.0.fc1.bias"][3] += 0.1
    save(tmp_path / "target", arrays, make_config(num_layers=1))
    found = verify_conversion(report, backends=FIRST)
    assert not found.ok
    assert "embeddings" not in {c.field for c in found.differing()}
    assert "layer 0" in {c.field for c in found.differing()}


@needs_backend
def test_the_command_verifies_and_writes_it_down(tmp_path, capsys, monkeypatch):
    # The package has a function of the module's name.
    module = importlib.import_module("xlmfam.conversion.verify")
    monkeypatch.setattr(module, "installed_backends", lambda: FIRST)
    source = make(tmp_path / "source", num_layers=1)
    assert main(["convert", str(source), str(tmp_path / "good"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "conversion_report.html" in said
    assert f"source - {FIRST[0]}" in said
    data = data_of(tmp_path / "good")
    assert data["verification"]["ok"] is True
    assert data["verification"]["comparisons"][0]["pair"] == ["source", FIRST[0]]
    assert "background:hsl(" in page_of(tmp_path / "good")

    observe = module.observe

    def changed(backend, name, *args, **kwargs):
        seen = observe(backend, name, *args, **kwargs)
        if str(name).endswith("bad"):
            seen.states["layer 0"] = seen.states["layer 0"] + 1
        return seen

    monkeypatch.setattr(module, "observe", changed)
    assert main(["convert", str(source), str(tmp_path / "bad"), "--verify"]) == 1
    assert data_of(tmp_path / "bad")["verification"]["ok"] is False
    assert 'class="number bad"' in page_of(tmp_path / "bad")


def test_programs_cannot_be_verified(tmp_path):
    from dataclasses import replace

    report = replace(convert(make(tmp_path / "source"), tmp_path / "target"), format="onnx")
    with pytest.raises(XlmfamError, match="program"):
        verify_conversion(report)


def test_a_config_without_a_class(tmp_path):
    source = make(tmp_path / "source")
    change_json(source / "config.json", architectures=None)
    assert convert(source, tmp_path / "target").head == "XGLMForCausalLM"
