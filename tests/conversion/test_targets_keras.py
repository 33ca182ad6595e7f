"""Keras files: what we write, Keras loads; what users saved with Keras, we read without it."""

import io
import json
import sys
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config, save

from xlmfam.common.errors import CheckpointError, ConfigError, MissingPackageError
from xlmfam.common.parameters import TABLES, table_of
from xlmfam.conversion import checksum, convert, inspect
from xlmfam.conversion.formats.keras_files import KerasSource
from xlmfam.conversion.sources import recognise

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

CLASSES = [head for family in TABLES for head in (table_of(family).base, *table_of(family).heads)]
SETTINGS = {
    "XmodModel": {"pre_norm": True, "adapter_layer_norm": True},
    "XLMWithLMHeadModel": {"sinusoidal_embeddings": True},
    "TransfoXLModel": {"untie_r": False},
}
FILES = ("model.weights.h5", "model.keras")


def tensorflow_class(head):
    import xlmfam.tf

    return getattr(xlmfam.tf, head)


def first(tmp_path, head, **settings):
    config = make_config(head, **{**SETTINGS.get(head, {}), **settings})
    arrays = make_arrays(config, head)
    return save(tmp_path / "first", arrays, config, head), arrays


@pytest.mark.parametrize("head", CLASSES)
def test_keras_loads_what_is_written_and_we_read_what_it_saves(head, tmp_path, checks):
    folder, arrays = first(tmp_path, head)
    out = tmp_path / "out"
    convert(folder, out, "keras")
    model = keras.saving.load_model(out / "model.keras")
    checks.assert_same(model.to_canonical(), arrays)
    for variable in model.weights:
        variable.assign(0 * variable)
    model.load_weights(out / "model.weights.h5")
    checks.assert_same(model.to_canonical(), arrays)
    # The other way: the files are Keras's now.
    model.config.save_pretrained(tmp_path / "saved")
    model.save_weights(tmp_path / "saved" / "a.weights.h5")
    model.save(tmp_path / "saved" / "a.keras")
    expected = checksum(folder)
    for name in ("a.weights.h5", "a.keras"):
        assert checksum(tmp_path / "saved" / name, head=head) == expected


def test_what_was_trained_is_read_without_its_optimizer(tmp_path):
    folder, _ = first(tmp_path, "XGLMForCausalLM")
    model = tensorflow_class("XGLMForCausalLM").from_pretrained(folder)
    model.compile(optimizer="adam", run_eagerly=True)
    ids = np.arange(4, 24).reshape(2, 10)
    model.fit({"input_ids": ids, "labels": ids}, epochs=1, verbose=0)
    run = tmp_path / "run"
    model.config.save_pretrained(run)
    model.save_weights(run / "last.weights.h5")
    came = convert(run, tmp_path / "out")
    assert came.checksum == checksum(model.to_canonical()) != checksum(folder)
    assert came.source_format == "keras"
    model.generation_config.num_beams = 3
    model.save(run / "last.keras")
    came = convert(run / "last.keras", tmp_path / "again")
    assert came.checksum == checksum(model.to_canonical())
    options = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert options["num_beams"] == 3
    assert set(came.dropped.values()) == {"is the optimizer's, not the model's"}
    assert len(came.dropped) > 2 * came.tensors  # moments, step and learning rate


def test_a_model_without_its_pooling_layer(tmp_path):
    model = tensorflow_class("XmodModel").from_config(make_config("XmodModel"))
    cut = type(model)(model.config, add_pooling_layer=False)
    file = tmp_path / "cut" / "cut.keras"
    file.parent.mkdir()
    cut.save(file)
    with recognise(file) as checkpoint:
        assert checkpoint.head == "XmodModel(add_pooling_layer=False)"
    convert(file, tmp_path / "out", "keras")
    again = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert checksum(again.to_canonical()) == checksum(cut.to_canonical())


def test_bfloat16_is_kept(tmp_path):
    config = make_config()
    arrays = {name: a.astype(ml_dtypes.bfloat16) for name, a in make_arrays(config).items()}
    folder = save(tmp_path / "first", arrays, config)
    for to in ("keras", "safetensors"):
        convert(folder, tmp_path / to, to)
        folder = tmp_path / to
        assert checksum(folder) == checksum(arrays)


def test_rows(tmp_path):
    folder, arrays = first(tmp_path, "XGLMForCausalLM")
    convert(folder, tmp_path / "out", "keras")
    with recognise(tmp_path / "out") as checkpoint:
        name = checkpoint.plan().sources["model.embed_tokens.weight"]
        rows = checkpoint.source.read_rows(name, 3, 9)
    assert (rows == arrays["model.embed_tokens.weight"][3:9]).all()


def test_the_class_is_found_where_nothing_says_it(tmp_path):
    folder, _ = first(tmp_path, "XLMForTokenClassification")
    convert(folder, tmp_path / "out", "keras")
    change_json(tmp_path / "out" / "config.json", architectures=None)
    weights = tmp_path / "out" / "model.weights.h5"
    assert inspect(weights).head == "XLMForTokenClassification"
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"put the model's config\.json beside it"):
        recognise(weights)
    assert inspect(tmp_path / "out" / "model.keras").head == "XLMForTokenClassification"


def test_what_does_not_fit_is_listed(tmp_path):
    folder, _ = first(tmp_path, "XGLMForCausalLM")
    convert(folder, tmp_path / "out", "keras")
    with h5py.File(tmp_path / "out" / "model.weights.h5", "a") as file:
        file["layers/xglm_decoder/more/vars/0"] = np.ones((2, 3), np.float32)
        del file["layers/xglm_decoder/layer_norm/vars/0"]
    with pytest.raises(
        CheckpointError, match=r"(?s)missing: .*layer_norm.*unexpected: layers/xglm"
    ):
        convert(tmp_path / "out" / "model.weights.h5", tmp_path / "back")
    contents = inspect(tmp_path / "out" / "model.weights.h5")
    assert any("layers/xglm_decoder/more/vars/0" in problem for problem in contents.problems)


def test_languages_can_be_left_out(tmp_path):
    folder, _ = first(tmp_path, "XmodForMaskedLM")
    convert(folder, tmp_path / "all", "keras")
    convert(tmp_path / "all", tmp_path / "two", languages=["en_XX", "sw_KE"])
    convert(folder, tmp_path / "other", languages=["en_XX", "sw_KE"])
    assert checksum(tmp_path / "two") == checksum(tmp_path / "other")


def test_what_is_replaced_is_not_read_any_more(tmp_path):
    convert(make(tmp_path / "old", seed=1), tmp_path / "out", "keras")
    folder = make(tmp_path / "new")
    for to in ("orbax", "keras", "safetensors"):
        convert(folder, tmp_path / "out", to, overwrite=True)
        assert checksum(tmp_path / "out") == checksum(folder)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for to in ("keras", "savedmodel"):
        with pytest.raises(MissingPackageError, match=r'pip install "xlmfam\[tf\]"'):
            convert(make(tmp_path / to), tmp_path / "out", to)
        assert not (tmp_path / "out").exists()


# ---- damaged files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The content of both files of a small model."""
    root = tmp_path_factory.mktemp("good")
    convert(make(root / "first"), root / "out", "keras")
    return {name: (root / "out" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files(good, tmp_path, name, part):
    content = good[name][: int(len(good[name]) * part)]
    (tmp_path / name).write_bytes(content)
    make_config(architectures=["XGLMForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        checksum(tmp_path / name)


@pytest.mark.parametrize("kind", ["soft", "external", "cycle", "stray", "deep"])
def test_groups_that_are_no_tree(good, tmp_path, kind):
    path = tmp_path / "a.weights.h5"
    path.write_bytes(good["model.weights.h5"])
    with h5py.File(path, "a") as file:
        if kind == "soft":
            file["layers/link"] = h5py.SoftLink("/layers")
        elif kind == "external":
            file["layers/link"] = h5py.ExternalLink("other.h5", "/")
        elif kind == "cycle":
            file["layers/link"] = file["layers"]
        elif kind == "stray":
            file["layers/link"] = np.ones(3)
        else:
            file.create_group("/".join("a" * 100))
    with pytest.raises(CheckpointError, match=r"link|no tree|not where"):
        KerasSource(path)


def test_claims_beyond_the_file(good, tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_bytes(good["model.weights.h5"])
    with h5py.File(path, "a") as file:
        del file["layers/xglm_decoder/layer_norm/vars/0"]
        file.create_dataset(
            "layers/xglm_decoder/layer_norm/vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000)
        )
    with pytest.raises(CheckpointError, match="claims 4000000000000 bytes"):
        KerasSource(path)


def zipped(entries, **options):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.weights.h5": None}, r"holds no model\.weights\.h5"),
        ({"config.json": None}, r"holds no config\.json"),
        ({"config.json": "{"}, r"not a whole \.keras file"),
        ({"config.json": "[" * 100_000}, r"not a whole \.keras file"),
        ({"config.json": "[]"}, "of no model of xlmfam"),
        ({"config.json": json.dumps({"config": {"layers": []}})}, "of no model of xlmfam"),
        (
            {"config.json": json.dumps({"config": {"config": {"model_type": "x"}}})},
            "model_type 'x'",
        ),
        ({"model.weights.h5": b"no HDF5"}, "truncated or damaged"),
    ],
)
def test_models_of_other_things(good, tmp_path, change, message):
    with zipfile.ZipFile(io.BytesIO(good["model.keras"])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries |= change
    path = tmp_path / "a.keras"
    path.write_bytes(zipped({k: v for k, v in entries.items() if v is not None}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        recognise(path)


def test_compressed_weights_are_refused(good, tmp_path):
    with zipfile.ZipFile(io.BytesIO(good["model.keras"])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "a.keras"
    path.write_bytes(zipped(entries, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        recognise(path)
