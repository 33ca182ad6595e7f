"""X-MOD's files: every class in every format, some languages of them, and what is wrong in them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam import AutoConfig
from xlmfam.common.checkpoints.files import FORMATS, open_checkpoint
from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.parameters import table_of
from xlmfam.conversion import change_languages, checksum, convert, inspect
from xlmfam.conversion.runners import installed_backends, load

LM, CAUSAL = "XmodForMaskedLM", "XmodForCausalLM"
TABLE = table_of("xmod")
# Codes of the public checkpoints and of fairseq's; one begins with another.
CODES = {"languages": ["zh_CN", "hy_AM", "zh", "en_XX", "en_XX_rom"]}
OWN_NORM = {"adapter_layer_norm": True, "adapter_reuse_layer_norm": False}
# Every class as it comes, and what adds, takes away or renames parameters.
CASES = {
    **{head: (head, {}) for head in (TABLE.base, *TABLE.heads)},
    "untied": (LM, {"tie_word_embeddings": False}),
    "pre_norm": (LM, {"pre_norm": True}),
    "own_norm": ("XmodModel", {**OWN_NORM, "ln_before_adapter": False}),
    "reused_norm": (LM, {"adapter_reuse_layer_norm": True, "pre_norm": True}),
    "cross": (CAUSAL, {"is_decoder": True, "add_cross_attention": True}),
    "relative": (LM, {"position_embedding_type": "relative_key"}),
    "codes": (LM, CODES),
    "one_language": (LM, {"languages": ["en_XX"]}),
    "odd_width": (LM, {"adapter_reduction_factor": 2.5}),
}
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "xmod"
ADAPTER = "roberta.encoder.layer.1.output.adapter_modules"


def skip_without_torch(format):
    if format == "pt":
        pytest.importorskip("torch")


def arrays_of(head, **settings):
    return make_arrays(make_config(head, **settings), head)


def without(arrays, *codes):
    return {n: a for n, a in arrays.items() if not any(f".{code}." in n for code in codes)}


# ---- every class in every format ------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("start", "end"), itertools.pairwise([*FORMATS, *FORMATS][:5]))
def test_from_each_format_to_the_next(tmp_path, case, start, end):
    skip_without_torch(start)
    skip_without_torch(end)
    head, settings = CASES[case]
    source = make(tmp_path / "source", head, start, **settings)
    arrays = arrays_of(head, **settings)
    assert checksum(source) == checksum(arrays)
    report = convert(source, tmp_path / "target", end)
    assert (report.head, report.tensors) == (head, len(arrays))
    assert checksum(tmp_path / "target") == checksum(arrays)
    assert not report.warnings


@pytest.mark.parametrize("format", FORMATS)
def test_shards(tmp_path, format):
    skip_without_torch(format)
    plain = make(tmp_path / "plain", LM)
    report = convert(plain, tmp_path / "split", format, max_shard_size="9KB")
    assert FORMATS[format].index in report.files
    convert(tmp_path / "split", tmp_path / "again")
    assert checksum(tmp_path / "again") == checksum(plain)
    convert(tmp_path / "split", tmp_path / "some", languages=["sw_KE"])
    assert checksum(tmp_path / "some") == checksum(without(arrays_of(LM), "en_XX", "de_DE"))


@pytest.mark.parametrize("format", FORMATS)
def test_inspect_says_the_same_of_all_formats(tmp_path, format):
    skip_without_torch(format)
    contents = inspect(make(tmp_path, LM, format))
    arrays = arrays_of(LM)
    assert (contents.ok, contents.family, contents.head) == (True, "xmod", LM)
    assert {t.name: t.shape for t in contents.tensors} == {n: a.shape for n, a in arrays.items()}


@pytest.mark.parametrize("name", ["pt", "sharded_safetensors"])
def test_what_transformers_wrote(name):
    skip_without_torch(name)
    folder = GOLDEN / "plain_formats" / name
    assert inspect(folder).ok
    expected = checksum(GOLDEN / "plain")
    model = load(installed_backends()[0], folder)
    assert checksum(folder) == checksum(model.to_canonical()) == expected


# ---- some languages -------------------------------------------------------------------------


@pytest.fixture
def names_read(monkeypatch):
    """Collects the names of all tensors that are read from a folder."""

    def watch(folder):
        names = []
        with open_checkpoint(folder) as source:
            kind = type(source)

        def noting(read):
            def noted(self, name, *rows):
                if name not in names:
                    names.append(name)
                return read(self, name, *rows)

            return noted

        for method in ("read", "read_rows"):
            monkeypatch.setattr(kind, method, noting(getattr(kind, method)))
        return names

    return watch


@pytest.mark.parametrize("format", FORMATS)
def test_converting_some_languages_reads_only_these(tmp_path, names_read, format):
    skip_without_torch(format)
    source = make(tmp_path / "source", LM, format, **CODES, default_language="hy_AM")
    names = names_read(source)
    report = convert(source, tmp_path / "target", languages=["zh", "hy_AM"])
    assert not any(code in name for name in names for code in ("zh_CN", "en_XX"))
    assert sum("hy_AM" in name for name in names) == 2 * 4
    config = AutoConfig.from_pretrained(tmp_path / "target")
    assert (config.languages, config.default_language) == (["zh", "hy_AM"], "hy_AM")
    kept = without(arrays_of(LM, **CODES), "zh_CN", "en_XX", "en_XX_rom")
    assert checksum(tmp_path / "target") == checksum(kept)
    # What is left out is one line, not one for each tensor.
    adapters = [r for r in report.dropped.values() if "language" in r]
    assert len(adapters) == 3 * 2 * 4
    assert str(report).count("adapter_modules") == 1
    assert "24 tensors such as" in str(report)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("backend", installed_backends())
def test_models_of_some_languages(tmp_path, names_read, backend, format):
    skip_without_torch(format)
    source = make(tmp_path, LM, format, **CODES, num_hidden_layers=1)
    names = names_read(source)
    model = load(backend, source, languages=["en_XX", "zh_CN"])
    assert not any(code in name for name in names for code in ("hy_AM", "en_XX_rom", "zh."))
    assert sum("zh_CN" in name for name in names) == 4
    kept = without(arrays_of(LM, **CODES, num_hidden_layers=1), "zh", "hy_AM", "en_XX_rom")
    assert checksum(model.to_canonical()) == checksum(kept)


@pytest.mark.parametrize("format", FORMATS)
def test_languages_change_from_every_format(tmp_path, format):
    skip_without_torch(format)
    make(tmp_path / "source", LM, format, default_language="de_DE")
    change_languages(
        tmp_path / "source",
        tmp_path / "target",
        add=["zh_CN"],
        remove=["de_DE"],
        init_from="sw_KE",
        default_language="zh_CN",
    )
    arrays = arrays_of(LM)
    copied = {n.replace("sw_KE", "zh_CN"): a for n, a in arrays.items() if ".sw_KE." in n}
    assert checksum(tmp_path / "target") == checksum({**without(arrays, "de_DE"), **copied})
    assert AutoConfig.from_pretrained(tmp_path / "target").default_language == "zh_CN"


def test_a_default_that_is_left_out_is_none(tmp_path):
    source = make(tmp_path / "source", LM, default_language="de_DE")
    convert(source, tmp_path / "target", languages=["en_XX", "en_XX"])
    config = AutoConfig.from_pretrained(tmp_path / "target")
    assert (config.languages, config.default_language) == (["en_XX"], None)


def test_what_lies_beside_the_weights_follows_them(tmp_path):
    source = make(tmp_path / "source", LM)
    (source / "tokenizer.json").write_text("new")
    target = make(tmp_path / "target", LM, "flax")
    for name in ("special_tokens_map.json", "notes.txt"):
        (target / name).write_text("old")
    change_languages(source, target, remove=["sw_KE"], overwrite=True)
    assert {path.name for path in target.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        "notes.txt",
    }
    (source / "generation_config.json").unlink()
    change_languages(source, target, remove=["sw_KE"], overwrite=True)
    assert not (target / "generation_config.json").exists()


# ---- what is wrong --------------------------------------------------------------------------


def test_languages_that_cannot_be_chosen(tmp_path):
    source, target = make(tmp_path / "source", LM), tmp_path / "target"
    with pytest.raises(XlmfamError, match="unknown language 'xx'; this model knows en_XX, de_DE"):
        convert(source, target, languages=["en_XX", "xx"])
    with pytest.raises(XlmfamError, match="at least one"):
        convert(source, target, languages=[])
    with pytest.raises(XlmfamError, match="default language must be one of en_XX, sw_KE; got 'de"):
        change_languages(source, target, remove=["de_DE"], default_language="de_DE")
    with pytest.raises(XlmfamError, match="this checkpoint is xglm"):
        convert(make(tmp_path / "xglm"), target, languages=["en_XX"])
    assert not target.exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ["en_XX", "de_DE", "sw_KE", "fr_XX"]}, r"missing: \S*\Wfr_XX\Wdense1"),
        ({"languages": ["en_XX", "sw_KE"]}, r"unexpected: \S*\Wde_DE\Wdense1"),
        ({"adapter_reduction_factor": 4}, r"misshapen: \S*\Wen_XX\Wdense1.*asks for \(.*5"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_adapters_that_do_not_fit_are_named(tmp_path, format, settings, message):
    skip_without_torch(format)
    source = make(tmp_path / "source", LM, format)
    change_json(source / "config.json", **settings)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert not inspect(source).ok


def test_one_tensor_of_one_language_is_missing(tmp_path):
    """It is named, and whoever does without the language can load the rest."""
    safetensors = pytest.importorskip("safetensors.numpy")
    source = make(tmp_path / "source", LM)
    name = f"{ADAPTER}.sw_KE.dense2.bias"
    arrays = safetensors.load_file(source / "model.safetensors")
    del arrays[name]
    safetensors.save_file(arrays, source / "model.safetensors")
    backend = installed_backends()[0]
    with pytest.raises(CheckpointError, match=rf"1 problem\(s\)\n  missing: {name}$"):
        load(backend, source)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load(backend, source, languages=["sw_KE"])
    model = load(backend, source, languages=["en_XX", "de_DE"])
    assert checksum(model.to_canonical()) == checksum(without(arrays_of(LM), "sw_KE"))


def test_adapters_that_hold_no_numbers_of_the_right_kind(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    source = make(tmp_path / "source", LM)
    name = f"{ADAPTER}.de_DE.dense1.weight"
    arrays = safetensors.load_file(source / "model.safetensors")
    arrays[name] = arrays[name].astype(np.int32)
    safetensors.save_file(arrays, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} holds int32"):
        convert(source, tmp_path / "target")


def test_a_swap_is_another_checkpoint(tmp_path):
    arrays, config = arrays_of(LM), make_config(LM)
    one, other = (f"{ADAPTER}.{code}.dense1.weight" for code in ("en_XX", "de_DE"))
    swapped = {**arrays, one: arrays[other], other: arrays[one]}
    folders = [save(tmp_path / n, a, config, LM) for n, a in (("a", arrays), ("b", swapped))]
    assert checksum(folders[0]) != checksum(folders[1])
    assert json.loads((folders[0] / "config.json").read_text())["languages"] == config.languages
