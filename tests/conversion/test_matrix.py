"""Every source format into every target format, for every family: the table in the README.

Each source is made once of one small checkpoint; what is written has to have its parameters, bit
for bit. What cannot be read back (SavedModel, ONNX) is made of each source too, by way of the
arrays that its exporter gets; that the exported models compute the same is tested beside their
exporters.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import make_arrays, make_config, save

from xlmfam.conversion import checksum, convert
from xlmfam.conversion import targets as all_targets

README = Path(__file__).parents[2] / "README.md"
HEADS = {
    "XGLM": ("XGLMForCausalLM", {}),
    "XLM": ("XLMWithLMHeadModel", {}),
    "X-MOD": ("XmodForMaskedLM", {"layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    "Transformer-XL": ("TransfoXLLMHeadModel", {"untie_r": False}),
}
# Name in the table, what ``to`` is called, and further arguments.
FORMATS = {
    "safetensors": ("safetensors", {}),
    "safetensors, sharded": ("safetensors", {"max_shard_size": "4KB"}),
    "pytorch_model.bin": ("pt", {}),
    "pytorch_model.bin, sharded": ("pt", {"max_shard_size": "4KB"}),
    "tf_model.h5": ("tf", {}),
    "tf_model.h5, sharded": ("tf", {"max_shard_size": "4KB"}),
    "flax_model.msgpack": ("flax", {}),
    "flax_model.msgpack, sharded": ("flax", {"max_shard_size": "4KB"}),
    "Orbax": ("orbax", {}),
    "Keras .weights.h5 / .keras": ("keras", {}),
    "original": ("original", {}),
    "TensorFlow SavedModel": ("savedmodel", {}),
    "ONNX": ("onnx", {}),
}
WRITTEN_ONLY = ("TensorFlow SavedModel", "ONNX")
SOURCES = [name for name in FORMATS if name not in WRITTEN_ONLY]
# What each release is called, and what of it is read besides what we write ourselves.
RELEASES = {
    "XGLM": "fairseq `.pt`",
    "XLM": "facebookresearch/XLM `.pth`",
    "X-MOD": "fairseq `.pt`",
    "Transformer-XL": "kimiyoung PyTorch `.pt`; TensorFlow 1 (read)",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint of a family in a format, made once."""
    root = tmp_path_factory.mktemp("matrix")

    @cache
    def first(family):
        head, settings = HEADS[family]
        config = make_config(head, **settings)
        arrays = make_arrays(config, head)
        # fairseq's X-MOD has no token types; what ours adds would go into its positions.
        types = [name for name in arrays if "token_type" in name]
        arrays |= {name: np.zeros_like(arrays[name]) for name in types}
        return save(root / f"{head}-first", arrays, config, head, "safetensors")

    @cache
    def source(family, name):
        to, options = FORMATS[name]
        target = root / f"{family}-{name}".replace("/", " ")
        convert(first(family), target, to, **options)
        return target

    source.checksum = cache(lambda family: checksum(first(family)))
    return source


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", SOURCES)
def test_every_pair(made, family, source, target, tmp_path):
    to, options = FORMATS[target]
    came = convert(made(family, source), tmp_path / "out", to, **options)
    assert came.checksum == made.checksum(family)
    assert checksum(tmp_path / "out") == made.checksum(family)
    if options:
        assert sum("-of-" in name for name in came.files) > 1


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", WRITTEN_ONLY)
def test_what_exporters_get(made, family, source, target, tmp_path, monkeypatch):
    class Exporter:
        @staticmethod
        def write(work):
            arrays = {name: work.reader.read(name) for name in work.reader.plan.sources}
            assert checksum(arrays) == made.checksum(family)
            assert work.head == HEADS[family][0]
            np.savez(work.folder / "model.npz", **arrays)

    real = all_targets.target_module(FORMATS[target][0])
    assert callable(real.write)
    monkeypatch.setattr("xlmfam.conversion.writing.target_module", lambda name: Exporter)
    came = convert(made(family, source), tmp_path / "out", FORMATS[target][0])
    assert came.checksum == made.checksum(family)


def matrix():
    """The table, of what the tests above run over."""
    lines = ["| | read | written | " + " | ".join(HEADS) + " |"]
    lines.append("|---|:---:|:---:|" + "---|" * len(HEADS))
    for name in FORMATS:
        if name.endswith(", sharded"):
            continue
        sharded = f"{name}, sharded" in FORMATS
        read = "" if name in WRITTEN_ONLY else "yes"
        cells = [RELEASES[family] if name == "original" else "yes" for family in HEADS]
        shown = "the original code's files" if name == "original" else f"`{name}`"
        shown = name if name in ("Orbax", *WRITTEN_ONLY) else shown
        shown += ", sharded too" if sharded else ""
        lines.append(f"| {shown} | {read} | yes | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_readme_has_the_table():
    text = README.read_text(encoding="utf-8")
    assert matrix() in text, f"put this into the README:\n\n{matrix()}"
    # ... and every word that the table has for ``--to`` is one.
    named = re.search(r"`--to` takes ([^.]+)\.", text)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == {to for to, _ in FORMATS.values()}
