"""Checkpoints of kimiyoung/transformer-xl: what the original computes, ours computes too."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from comparing import assert_close
from original_transfo_xl import PYTORCH, TF1, record, recorded, unpack
from tolerances import MODEL

from xlmfam import TransfoXLConfig, TransfoXLTokenizer
from xlmfam.cli.main import main
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion import convert
from xlmfam.conversion.formats.torch_file import TorchFile
from xlmfam.conversion.formats.torch_writer import Made, tensor_of, write_torch_file
from xlmfam.conversion.originals import (
    open_original,
    transfo_xl,
    transfo_xl_crc,
    transfo_xl_export,
    transfo_xl_tf1_export,
)
from xlmfam.conversion.originals.transfo_xl_bundle import Bundle
from xlmfam.conversion.originals.transfo_xl_crc import masked_crc
from xlmfam.conversion.originals.transfo_xl_flags import Flags
from xlmfam.conversion.originals.transfo_xl_module import stored_model
from xlmfam.conversion.originals.transfo_xl_words import find_words

HEAD = "TransfoXLLMHeadModel"
SIZES = ("vocab_size", "n_layer", "n_head", "d_model", "d_head", "d_inner", "d_embed")
FLAGS = ("clamp_len", "same_length", "div_val", "cutoffs", "pre_lnorm", "untie_r")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Return a function giving the converted checkpoint of a case."""
    root = tmp_path_factory.mktemp("originals")

    def get(case):
        if not (root / case).exists():
            convert(unpack(case, root / "source" / case), root / case)
        return root / case

    return get


def arrays(source):
    return {name: source.read(name) for name in source.specs()}


def opened(path):
    """Return config and arrays of an original checkpoint."""
    original = open_original(path)
    with original.source as source:
        return original, arrays(source)


# -- the proof --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*PYTORCH, *TF1])
def test_computes_what_the_original_does(backend, case, converted):
    model, wanted = backend.load(HEAD, converted(case)), recorded(case)
    config, batch = model.config, wanted["inputs"].shape[1]
    # The original's PyTorch code begins with no memory, its TensorFlow code with one of zeros.
    length = config.mem_len if case in TF1 else 0
    mems = [np.zeros((length, batch, config.d_model), np.float32)] * config.n_layer
    losses, hidden = [], []
    for ids, targets in zip(wanted["inputs"], wanted["targets"], strict=True):
        inputs = {"input_ids": ids.astype(np.int64), "mems": mems}
        output = backend.call(model, inputs, output_hidden_states=True)
        scores, mems = output["prediction_scores"], output["mems"]
        chosen = np.take_along_axis(scores, targets.astype(np.int64)[..., None], -1)
        losses.append(-chosen[..., 0])
        hidden.append(output["hidden_states"][-1])
    kept = wanted["mems"].shape[1]
    found = {"losses": losses, "hidden": hidden, "mems": [memory[-kept:] for memory in mems]}
    for name, values in found.items():
        assert_close(np.stack(values), wanted[name], MODEL)


@pytest.mark.parametrize("case", [*PYTORCH, *TF1])
def test_config_is_what_the_model_was_made_with(case, converted):
    config = TransfoXLConfig.from_pretrained(converted(case))
    flags = {
        "same_length": False,
        "clamp_len": -1,
        "div_val": 1,
        "cutoffs": [],
        **record(case, "flags"),
    }
    flags = {"pre_lnorm": False, "untie_r": False, "tie_weight": True, **flags}
    assert {n: getattr(config, n) for n in SIZES + FLAGS} == {n: flags[n] for n in SIZES + FLAGS}
    sees_itself = case in TF1 and flags["same_length"]
    assert config.mem_len == flags["mem_len"] + sees_itself
    assert config.tie_word_embeddings == flags["tie_weight"]
    assert config.layer_norm_epsilon == (1e-12 if case in TF1 else 1e-5)
    assert config.architectures == [HEAD]
    if case in ("tails", "untied", "half"):  # a state dict has no dropout
        assert (config.dropout, config.dropatt) == (0.2, 0.1)
    if case in ("tails", "tf1_tails", "state"):
        assert config.tie_projs == flags["tie_projs"]


def test_each_tensor_keeps_its_dtype(converted):
    from xlmfam.conversion.sources import recognise

    with recognise(converted("half")) as checkpoint:
        assert {spec.dtype.name for spec in checkpoint.source.specs().values()} == {"float16"}


def test_tail_clusters_are_counted_from_the_end(tmp_path):
    file = TorchFile(unpack("tails", tmp_path) / "model.pt")
    stored = stored_model(file.value)
    assert stored.is_whole
    original, found = opened(tmp_path)
    for name in ("crit.cluster_weight", "crit.cluster_bias"):
        assert np.array_equal(found[name], file.read(stored.tensors[name])[::-1])
        assert original.source.stored_as(name) == name
    file.close()


@pytest.mark.parametrize("case", TF1)
def test_bundles_are_read_as_tensorflow_does(case, tmp_path, tf):
    prefix = unpack(case, tmp_path) / "model.ckpt-0"
    reader, bundle = tf.tf.train.load_checkpoint(str(prefix)), Bundle(prefix)
    shapes = reader.get_variable_to_shape_map()
    assert bundle.variables.keys() == shapes.keys()
    for name in shapes:
        wanted = reader.get_tensor(name)
        assert bundle.variables[name].spec.dtype == wanted.dtype
        assert np.array_equal(bundle.read(name), wanted), name
    bundle.close()


def test_the_optimizer_stays_behind(tmp_path):
    original, _ = opened(unpack("tf1_letters", tmp_path))
    assert "transformer/layer_0/ff/layer_1/kernel/Adam_1" in original.dropped
    assert {"beta1_power", "global_step"} <= original.dropped.keys()
    assert set(original.dropped.values()) == {"the optimizer's"}


# -- where it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".", "model.ckpt-0", "model.ckpt-0.index", "model.ckpt-0.data-00000-of-00001", "checkpoint"],
)
def test_a_tensorflow_checkpoint_is_found_by(name, tmp_path, capsys):
    folder = unpack("tf1_same_dim", tmp_path / "in")
    assert main(["convert", str(folder / name), str(tmp_path / "out")]) == 0
    assert f"{HEAD}: transfo-xl -> safetensors" in capsys.readouterr().out
    assert TransfoXLConfig.from_pretrained(tmp_path / "out").cutoffs == [9, 14]


def test_folders_of_the_public_release(tmp_path):
    folder = unpack("tf1_tails", tmp_path / "model")
    (tmp_path / "data").mkdir()
    (folder / "cache.pkl").rename(tmp_path / "data" / "cache.pkl")
    (folder / "checkpoint").write_text('model_checkpoint_path: "gs://there/model.ckpt-0"\n')
    original = open_original(tmp_path)
    original.source.close()
    assert "vocab.json" in original.tokenizer_files
    assert original.config.eos_token_id == 0


def test_the_last_of_several_checkpoints(tmp_path):
    folder = unpack("tf1_same_dim", tmp_path)
    for path in folder.glob("model.ckpt-0*"):
        shutil.copy(path, folder / path.name.replace("ckpt-0", "ckpt-7"))
    pointer = folder / "checkpoint"
    pointer.write_text('model_checkpoint_path: "model.ckpt-7"\n')
    original = open_original(folder)
    original.source.close()
    assert original.source.path.name == "model.ckpt-7.index"
    pointer.unlink()
    assert open_original(folder) is None  # which of the two nobody says


def test_other_checkpoints_of_tensorflow_are_none_of_ours(tmp_path, tf):
    variable = tf.tf.Variable([1.0, 2.0])
    prefix = tf.tf.train.Checkpoint(x=variable).write(str(tmp_path / "other"))
    assert open_original(tmp_path) is None
    with pytest.raises(CheckpointError, match="lacks transformer/r_w_bias and has"):
        open_original(prefix)


def test_a_model_for_several_devices(tmp_path):
    with TorchFileOf(unpack("state", tmp_path / "in") / "checkpoint.pt") as (file, stored):
        state = {f"module.{n}": tensor_of(file.read(t)) for n, t in stored.tensors.items()}
    arguments = Made(("argparse", "Namespace"), (), {"clamp_len": 5, "same_length": True})
    write_torch_file(tmp_path / "other.pt", {"args": arguments, "model_state_dict": state})
    (tmp_path / "settings.json").write_text('{"cutoffs": [6, 13], "mem_len": 3}')
    one, found = opened(tmp_path / "other.pt")
    other, wanted = opened(tmp_path / "in")
    assert one.config.same_length
    assert one.config.tie_projs == other.config.tie_projs
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


class TorchFileOf:
    """An open file, and the model in it."""

    def __init__(self, path):
        self.file = TorchFile(path)

    def __enter__(self):
        return self.file, stored_model(self.file.value)

    def __exit__(self, *error):
        self.file.close()


# -- flags ------------------------------------------------------------------------------------


def test_flags_are_known_for_the_public_models(tmp_path):
    sizes = {"n_layer": 18, "d_model": 1024, "n_head": 16, "d_inner": 4096}
    flags = Flags(tmp_path, {"clamp_len": 7}, {"dropout": 0.3})
    known = flags.complete(sizes)
    assert known["mem_len"] == 1600
    assert known["same_length"] is True
    assert known["clamp_len"] == 7
    assert known["dropout"] == 0.3
    (note,) = flags.notes
    assert "mem_len=1600" in note
    assert "WikiText-103, large" in note
    assert "clamp_len" not in note
    assert flags.cutoffs(267735, 3) == [20000, 40000, 200000]
    assert "cutoffs" in flags.notes[1]


def test_what_is_assumed_is_said(tmp_path):
    folder = unpack("tf1_same_dim", tmp_path)
    (folder / "settings.json").unlink()
    original = open_original(folder)
    original.source.close()
    assert original.config.mem_len == 0
    assert any("mem_len=0" in note and "default" in note for note in original.notes)
    assert any("no vocabulary" in note for note in original.notes)


def test_settings_come_before_the_file(tmp_path):
    folder = unpack("tails", tmp_path)
    (folder / "settings.json").write_text('{"mem_len": 64, "same_length": false}')
    original = open_original(folder / "model.pt")
    original.source.close()
    assert (original.config.mem_len, original.config.same_length) == (64, False)
    assert original.config.clamp_len == 3


# -- vocabularies -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tails", "untied", "tf1_tails"])
def test_tokenizer_gives_the_ids_of_the_original(case, converted):
    tokenizer = TransfoXLTokenizer.from_pretrained(converted(case))
    wanted, is_words = record(case, "line"), case != "untied"
    assert tokenizer.original_steps  # 1 @,@ 000 stays whole
    assert len(tokenizer) == tokenizer.vocab_size == record(case, "flags")["vocab_size"]
    assert tokenizer(wanted["line"], add_eos=is_words)["input_ids"] == wanted["ids"]
    config = TransfoXLConfig.from_pretrained(converted(case))
    assert tokenizer.eos_token == ("<eos>" if is_words else None)
    assert config.eos_token_id == tokenizer.eos_token_id == (0 if is_words else None)
    if is_words:
        assert tokenizer("strange")["input_ids"] == [tokenizer.get_vocab()["<unk>"]]
        assert "Caf\u00e9" in tokenizer.get_vocab()


def test_words_that_python_2_wrote(tmp_path):
    words = [word.encode().decode("latin-1") for word in ("<eos>", "\u00e9", "\u03b1\u03b2")]
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    assert json.loads(find_words(tmp_path, 3).files["vocab.json"]) == {
        "<eos>": 0,
        "\u00e9": 1,
        "\u03b1\u03b2": 2,
    }


def test_a_vocabulary_of_another_model_is_left(tmp_path):
    folder = unpack("tails", tmp_path)
    (folder / "cache.pt").rename(folder / "cache.pkl")  # either kind may have either name
    assert find_words(folder, 23).files
    found = find_words(folder, 24)
    assert not found.files
    assert found.eos_token_id is None
    assert "23 words, the model 24" in found.notes[0]


# -- and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PYTORCH)
def test_there_and_back(case, converted, tmp_path):
    convert(converted(case), tmp_path / "back", "original")
    back, found = opened(tmp_path / "back" / "model.pt")
    there, wanted = opened(converted(case).parent / "source" / case)
    assert back.config.to_dict() == {**there.config.to_dict(), "architectures": None}
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        # Frequencies of half a model were rounded once more before the original wrote them.
        assert name.endswith("inv_freq") or np.array_equal(found[name], array), name
    assert back.tokenizer_files == there.tokenizer_files


def test_shared_weights_are_one_object_of_the_file(converted, tmp_path):
    convert(converted("tails"), tmp_path / "back", "original")
    with TorchFileOf(tmp_path / "back" / "model.pt") as (_, stored):
        tensors = stored.tensors
        for place in range(4):
            words = tensors[f"word_emb.emb_layers.{place}.weight"]
            assert tensors[f"crit.out_layers.{place}.weight"] is words
        shared = [
            tensors[f"crit.out_projs.{i}"] is tensors[f"word_emb.emb_projs.{i}"] for i in range(4)
        ]
        assert shared == [False, True, False, True]


def test_words_go_back_as_lines(converted, tmp_path):
    convert(converted("tails"), tmp_path / "back", "original")
    lines = (tmp_path / "back" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "<eos>"
    assert len(lines) == 24


@pytest.mark.parametrize("case", ["tf1_tails", "tf1_one_table", "tf1_same_dim", "tf1_letters"])
def test_tensorflow_checkpoints_there_and_back(case, converted, tmp_path, tf, monkeypatch):
    # Where layers share their biases, the PyTorch code's file is written; here both can be shown.
    monkeypatch.setattr(transfo_xl_export, "write_model", transfo_xl_tf1_export.write_checkpoint)
    folder = tmp_path / "back"
    convert(converted(case), folder, "original")
    source = converted(case).parent / "source" / case
    there, wanted = opened(source)
    back, found = opened(folder / "model.ckpt-0")
    assert back.config.to_dict() == there.config.to_dict()
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    # TensorFlow holds all sums against what it reads.
    theirs = tf.tf.train.load_checkpoint(str(source / "model.ckpt-0"))
    ours = tf.tf.train.load_checkpoint(str(folder / "model.ckpt-0"))
    for name in ours.get_variable_to_shape_map():
        assert ours.has_tensor(name)
        if theirs.has_tensor(name):
            assert np.array_equal(ours.get_tensor(name), theirs.get_tensor(name))
    if case in ("tf1_tails", "tf1_one_table"):
        values = "model.ckpt-0.data-00000-of-00001"
        assert (folder / values).read_bytes() == (source / values).read_bytes()


def test_layers_with_biases_of_their_own_go_to_the_tensorflow_code(converted, tmp_path):
    convert(converted("tf1_tails"), tmp_path / "back", "original")
    assert not (tmp_path / "back" / "model.pt").exists()
    settings = json.loads((tmp_path / "back" / "settings.json").read_text())
    assert {name: settings[name] for name in ("mem_len", "clamp_len", "same_length")} == {
        "mem_len": 4,
        "clamp_len": 3,
        "same_length": True,
    }


def test_a_half_model_goes_to_the_tensorflow_code_as_a_whole_one(converted, tmp_path):
    convert(converted("tf1_tails"), tmp_path / "half", dtype="float16")
    convert(tmp_path / "half", tmp_path / "back", "original")
    bundle = Bundle(tmp_path / "back" / "model.ckpt-0")
    assert {v.spec.dtype.name for v in bundle.variables.values()} == {"float32"}
    bundle.close()


def test_models_that_the_original_cannot_read(converted, tmp_path):
    with pytest.raises(CheckpointError, match="TransfoXLModel: the original has language models"):
        convert(converted("tails"), tmp_path / "back", "original", head="TransfoXLModel")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pre_lnorm": True}, "pre_lnorm is True"),
        ({"tie_word_embeddings": False}, "always shares embedding and softmax"),
        ({"cutoffs": [], "tie_projs": [False]}, "without clusters, the original's TensorFlow code"),
    ],
)
def test_models_that_the_tensorflow_code_lacks(settings, message, tmp_path):
    work = SimpleNamespace(config=TransfoXLConfig(**settings), head=HEAD, folder=tmp_path)
    with pytest.raises(CheckpointError, match=message):
        transfo_xl.write_original(work)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"", 0), (b"a", 0xC1D04330)],
)
def test_check_sums(data, crc):
    turned = (masked_crc(data) - 0xA282EAD8) & 0xFFFFFFFF
    assert (turned >> 17 | turned << 15) & 0xFFFFFFFF == crc


def test_check_sums_of_much(monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 70_003, np.uint8)
    whole = masked_crc(data)
    monkeypatch.setattr(transfo_xl_crc, "_PIECE", 8000)
    assert masked_crc(data) == masked_crc(data.tobytes()) == whole
    data[77] ^= 1
    assert masked_crc(data) != whole
