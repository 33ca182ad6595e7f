"""Converting: every pair of formats, bit for bit, and everything that can go wrong."""

from __future__ import annotations

import itertools
import json

import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam.common.checkpoints.files import FORMATS, open_checkpoint
from xlmfam.common.errors import CheckpointError, ConfigError
from xlmfam.conversion import checksum, convert, inspect

PAIRS = list(itertools.product(FORMATS, FORMATS))
needs_torch = {"pt"}


def skip_without_torch(*formats):
    if needs_torch & set(formats):
        pytest.importorskip("torch")


@pytest.mark.parametrize(("start", "end"), PAIRS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_pair_is_bit_exact(tmp_path, start, end, tied):
    skip_without_torch(start, end)
    source = make(tmp_path / "source", format=start, tie_word_embeddings=tied)
    report = convert(source, tmp_path / "target", end)
    config = make_config(tie_word_embeddings=tied)
    expected = checksum(make_arrays(config))
    assert checksum(source) == expected
    assert checksum(tmp_path / "target") == expected
    assert FORMATS[end].single in report.files
    assert (report.source_format, report.format) == (start, end)
    assert report.tensors == len(make_arrays(config))
    assert report.warnings == []


@pytest.mark.parametrize(("start", "end"), PAIRS)
def test_shards(tmp_path, start, end):
    skip_without_torch(start, end)
    plain = make(tmp_path / "plain")
    convert(plain, tmp_path / "split", start, max_shard_size="3KB")
    assert (tmp_path / "split" / FORMATS[start].index).is_file()
    report = convert(tmp_path / "split", tmp_path / "again", end, max_shard_size=3000)
    assert FORMATS[end].index in report.files
    assert len(report.files) > 4
    assert checksum(tmp_path / "again") == checksum(plain)


@pytest.mark.parametrize("end", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtype(tmp_path, end, dtype):
    skip_without_torch(end)
    source = make(tmp_path / "source")
    report = convert(source, tmp_path / "target", end, dtype=dtype)
    assert report.dtypes == {dtype: report.tensors}
    assert report.cast == report.tensors
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    cast = {name: array.astype(kind) for name, array in make_arrays(make_config()).items()}
    assert checksum(tmp_path / "target") == checksum(cast)
    assert json.loads((tmp_path / "target/config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("end", FORMATS)
def test_each_tensor_keeps_its_dtype(tmp_path, end):
    skip_without_torch(end)
    arrays = make_arrays(make_config())
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16]
    mixed = {name: a.astype(kinds[i % 3]) for i, (name, a) in enumerate(arrays.items())}
    source = save(tmp_path / "source", mixed, make_config())
    report = convert(source, tmp_path / "target", end)
    assert checksum(tmp_path / "target") == checksum(mixed)
    assert set(report.dtypes) == {"float32", "float16", "bfloat16"}
    assert report.cast == 0


def test_config_options_and_tokenizer_go_along(tmp_path):
    source = make(tmp_path / "source")
    change_json(source / "config.json", my_own_key={"deep": [1, None]})
    change_json(source / "generation_config.json", another_key=3)
    for name in ("tokenizer.json", "sentencepiece.bpe.model", "special_tokens_map.json"):
        (source / name).write_bytes(name.encode())
    (source / "notes.txt").write_text("not of the checkpoint")
    report = convert(source, tmp_path / "target", "flax")
    target = tmp_path / "target"
    assert json.loads((target / "config.json").read_text())["my_own_key"] == {"deep": [1, None]}
    options = json.loads((target / "generation_config.json").read_text())
    assert (options["another_key"], options["max_new_tokens"]) == (3, 7)
    assert (target / "tokenizer.json").read_bytes() == b"tokenizer.json"
    assert (target / "sentencepiece.bpe.model").is_file()
    assert not (target / "notes.txt").exists()
    assert report.copied == ["sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer.json"]
    assert str(report).startswith("XGLMForCausalLM: safetensors -> flax")


def test_no_options_are_invented(tmp_path):
    source = make(tmp_path / "source")
    (source / "generation_config.json").unlink()
    convert(source, tmp_path / "target")
    assert not (tmp_path / "target/generation_config.json").exists()


def test_a_single_file_and_a_base_model(tmp_path):
    source = make(tmp_path / "source", head="XGLMModel", format="flax")
    convert(source / "flax_model.msgpack", tmp_path / "target", "tf")
    assert inspect(tmp_path / "target").head == "XGLMModel"
    assert checksum(tmp_path / "target") == checksum(source)


def test_class_is_found_without_architectures(tmp_path):
    for head in ("XGLMModel", "XGLMForCausalLM"):
        for tied in (True, False):
            source = make(tmp_path / f"{head}{tied}", head=head, tie_word_embeddings=tied)
            change_json(source / "config.json", architectures=None)
            assert inspect(source).head == head


@pytest.mark.parametrize("name", ["TFXGLMForCausalLM", "FlaxXGLMForCausalLM"])
def test_class_names_of_other_frameworks(tmp_path, name):
    source = make(tmp_path / "source")
    change_json(source / "config.json", architectures=[name])
    assert convert(source, tmp_path / "target").head == "XGLMForCausalLM"


def test_reads_the_format_that_is_asked_for(tmp_path):
    source = make(tmp_path / "both", seed=0)
    make(tmp_path / "both", seed=1, format="flax")
    convert(source, tmp_path / "one", source_format="flax")
    assert checksum(tmp_path / "one") == checksum(make_arrays(make_config(), seed=1))
    convert(source, tmp_path / "two")
    assert checksum(tmp_path / "two") == checksum(make_arrays(make_config(), seed=0))


def test_dropped_names_are_reported(tmp_path):
    pytest.importorskip("torch")
    source = make(tmp_path / "source", format="pt")
    report = convert(source, tmp_path / "target")
    assert list(report.dropped) == ["lm_head.weight"]
    assert "tied" in report.dropped["lm_head.weight"]
    assert "lm_head.weight" in str(report)


@pytest.mark.parametrize("format", ["pt", "tf"])
def test_a_tie_that_is_none_is_reported(tmp_path, format):
    skip_without_torch(format)
    source = make(tmp_path / "source", format=format, tie_word_embeddings=False)
    change_json(source / "config.json", tie_word_embeddings=True)
    report = convert(source, tmp_path / "target")
    assert len(report.warnings) == 1
    assert "lm_head" in report.warnings[0]


# ---- mistakes -----------------------------------------------------------------------------


def refused(match, *args, error=CheckpointError, **kwargs):
    with pytest.raises(error, match=match):
        convert(*args, **kwargs)


def test_target_that_exists(tmp_path):
    source = make(tmp_path / "source")
    target = make(tmp_path / "target", seed=5)
    before = checksum(target)
    refused("exists and is not empty", source, target, "flax")
    assert checksum(target) == before
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty")


def test_overwriting_leaves_no_other_weights_behind(tmp_path):
    source = make(tmp_path / "source")
    target = make(tmp_path / "target", seed=5)
    (target / "tokenizer.json").write_text("of the earlier model")
    (target / "README.md").write_text("mine")
    convert(source, target, "flax", overwrite=True)
    # The earlier model.safetensors would be read before the new file.
    assert checksum(target) == checksum(source)
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md",
        "config.json",
        "conversion_report.html",
        "conversion_report.json",
        "flax_model.msgpack",
        "generation_config.json",
    ]


def test_target_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    refused("is a file", make(tmp_path / "source"), tmp_path / "file")


def test_target_and_source_overlap(tmp_path):
    source = make(tmp_path / "outer" / "source")
    refused("own folder", source, source, overwrite=True)
    refused("overlap", source, source / "inside")
    refused("overlap", source, tmp_path / "outer", overwrite=True)
    refused("own folder", source / "model.safetensors", source, overwrite=True)
    assert sorted(p.name for p in source.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_source_is_missing(tmp_path):
    refused("no such file or folder", tmp_path / "nowhere", tmp_path / "target")
    (tmp_path / "empty").mkdir()
    refused(r"no config\.json", tmp_path / "empty", tmp_path / "target", error=ConfigError)
    make_config().save_pretrained(tmp_path / "config")
    refused("found none of", tmp_path / "config", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_other_family(tmp_path):
    source = make(tmp_path / "source")
    change_json(source / "config.json", model_type="bert")
    refused("'bert' is not one of", source, tmp_path / "target", error=ConfigError)


def test_unknown_class(tmp_path):
    source = make(tmp_path / "source")
    change_json(source / "config.json", architectures=["BertModel"])
    refused("BertModel", source, tmp_path / "target")
    refused("XGLMBanana", source, tmp_path / "target", head="XGLMBanana", error=ValueError)


def test_unknown_dtype_format_and_size(tmp_path):
    source = make(tmp_path / "source")
    refused("float33", source, tmp_path / "t", dtype="float33", error=ConfigError)
    refused("int8", source, tmp_path / "t", dtype="int8", error=ConfigError)
    refused("'gguf'; possible are safetensors", source, tmp_path / "t", "gguf")
    refused("max_shard_size", source, tmp_path / "t", max_shard_size="5 apples")
    assert not (tmp_path / "t").exists()


def test_weights_that_do_not_fit(tmp_path):
    source = make(tmp_path / "source")
    change_json(source / "config.json", num_layers=3, ffn_dim=24)
    refused("missing: model.layers.2", source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_head_is_not_invented(tmp_path):
    source = make(tmp_path / "source", head="XGLMModel", tie_word_embeddings=False)
    change_json(source / "config.json", architectures=["XGLMForCausalLM"])
    refused("lack lm_head.weight", source, tmp_path / "target")
    assert convert(source, tmp_path / "target", head="XGLMModel").head == "XGLMModel"


def test_truncated_source(tmp_path):
    source = make(tmp_path / "source")
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused("model.safetensors", source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_few_tensors_are_held(tmp_path, monkeypatch):
    """Blocks are let go when they are written and summed; few wait for that."""
    import weakref

    from xlmfam.common.checkpoints.safetensors_files import SafetensorsSource

    source = make(tmp_path / "source")
    alive, most = [], 0
    read = SafetensorsSource.read_rows

    def watched(self, name, start, stop):
        nonlocal most
        array = read(self, name, start, stop)
        alive.append(weakref.ref(array))
        most = max(most, sum(ref() is not None for ref in alive))
        return array

    monkeypatch.setattr(SafetensorsSource, "read_rows", watched)
    convert(source, tmp_path / "target")
    assert most <= 8
    with open_checkpoint(tmp_path / "target") as opened:
        assert len(opened.specs()) == len(alive)
