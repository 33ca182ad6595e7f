"""fairseq's XGLM and X-MOD against numbers of fairseq itself, back to it, and what may be wrong.

The files are made by tests/reference/make_original_fairseq.py, whose ``check`` also holds what is
written for fairseq against fairseq.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_close, assert_same_bits
from tiny_checkpoints import make
from tolerances import MODEL

from xlmfam import AutoConfig, AutoTokenizer
from xlmfam.common.checkpoints.files import open_checkpoint
from xlmfam.common.errors import CheckpointError, ConfigError
from xlmfam.conversion import convert
from xlmfam.conversion.formats.torch_file import StoredTensor, TorchFile
from xlmfam.conversion.formats.torch_writer import Namespace, Tensor, tensor_of, write_torch_file
from xlmfam.conversion.originals import RELEASES, module_of
from xlmfam.conversion.sources import recognise

DATA = Path(__file__).parents[1] / "data" / "originals" / "fairseq"
HEADS = {
    "xglm": "XGLMForCausalLM",
    "xglm_args": "XGLMForCausalLM",
    "xmod": "XmodForMaskedLM",
    "xmod_prenorm": "XmodForMaskedLM",
    "xmod_classes": "XmodForSequenceClassification",
}
# fairseq was given my_MM_zaw and hi_IN_rom for the second and the third.
LANGUAGES = ["de_DE", "my_MM", "hi_IN", "en_XX"]
XMOD = {"layer_norm_eps": 1e-5, "type_vocab_size": 1}
ENCODER = "encoder.sentence_encoder"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Folder of each case, converted."""
    root = tmp_path_factory.mktemp("converted")
    for case in HEADS:
        convert(DATA / case / "model.pt", root / case)
    return root


def recorded(case):
    return dict(np.load(DATA / case / "expected.npz"))


def outputs(backend, folder, case, head, expected):
    model = backend.load(head, folder)
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask")}
    if case.startswith("xmod"):
        inputs["lang_ids"] = np.array([model.config.languages.index(c) for c in LANGUAGES])
    return backend.call(model, inputs, output_hidden_states=True)


@pytest.mark.parametrize("case", HEADS)
def test_is_what_fairseq_computes(case, converted, backend):
    expected = recorded(case)
    output = outputs(backend, converted / case, case, HEADS[case], expected)
    real = expected["attention_mask"] == 1
    states = {f"state{i}": s[real] for i, s in enumerate(output["hidden_states"][:-1])}
    if case != "xmod_prenorm":  # whose last norm is not among the states
        states["features"] = output["hidden_states"][-1][real]
    if case == "xmod_classes":
        found = {**states, "classes": output["logits"]}
    else:
        found = {**states, "logits": output["logits"][real]}
    assert len(states) >= 2
    assert_close(found, {name: expected[name] for name in found}, MODEL, case)


def test_words_of_a_model_for_classes(tmp_path, pt):
    """A checkpoint with both heads gives either."""
    convert(DATA / "xmod_classes" / "model.pt", tmp_path / "out", head="XmodForMaskedLM")
    expected = recorded("xmod_classes")
    output = outputs(pt, tmp_path / "out", "xmod_classes", "XmodForMaskedLM", expected)
    real = expected["attention_mask"] == 1
    assert_close({"logits": output["logits"][real]}, {"logits": expected["logits"]}, MODEL, "words")


@pytest.mark.parametrize("case", ["xglm", "xmod"])
def test_tokenizer_has_the_ids_of_fairseq(case, converted):
    tokenizer = AutoTokenizer.from_pretrained(converted / case)
    expected = recorded(case)
    for number, text in enumerate(expected["texts"]):
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        assert [*ids, tokenizer.eos_token_id] == expected[f"coded{number}"].tolist()
    assert len(tokenizer) == AutoConfig.from_pretrained(converted / case).vocab_size


def test_settings(converted):
    xglm = AutoConfig.from_pretrained(converted / "xglm")
    # Written as a reference to another setting.
    assert (xglm.max_position_embeddings, xglm.attention_heads, xglm.scale_embedding) == (33, 4, 1)
    assert (xglm.dropout, xglm.attention_dropout, xglm.activation_dropout) == (0.15, 0.05, 0.25)
    older = AutoConfig.from_pretrained(converted / "xglm_args")
    assert (older.activation_function, older.scale_embedding) == ("relu", False)
    assert (older.tie_word_embeddings, older.max_position_embeddings) == (False, 33)
    base = AutoConfig.from_pretrained(converted / "xmod")
    assert (base.pre_norm, base.adapter_size, base.max_position_embeddings) == (False, 9, 29)
    assert (base.layer_norm_eps, base.type_vocab_size, base.default_language) == (1e-5, 1, "en_XX")
    assert base.languages == ["en_XX", "my_MM", "hi_IN", "de_DE"]
    prenorm = AutoConfig.from_pretrained(converted / "xmod_prenorm")
    flags = ("pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter")
    assert [getattr(base, name) for name in flags] == [False, False, True, True]
    assert [getattr(prenorm, name) for name in flags] == [True, True, False, False]
    assert (prenorm.adapter_size, prenorm.classifier_dropout) == (6, 0.35)
    assert AutoConfig.from_pretrained(converted / "xmod_classes").num_labels == 5


def test_what_is_left_out_is_said():
    with recognise(DATA / "xglm_args" / "model.pt") as checkpoint:
        assert set(checkpoint.original.dropped) == {
            "decoder.version",
            "decoder.embed_positions._float_tensor",
            "decoder.mevo_layer.proj_weight",
        }
        assert checkpoint.format == "fairseq-xglm"
    with recognise(DATA / "xmod_classes" / "model.pt") as checkpoint:
        original = checkpoint.original
    assert sorted(original.dropped) == [
        *(f"classification_heads.topics.dense.{kind}" for kind in ("bias", "weight")),
        *(f"classification_heads.topics.out_proj.{kind}" for kind in ("bias", "weight")),
        "decoder.sentence_encoder.version",
    ]
    assert any("sentence_classification_head is taken" in note for note in original.notes)


def test_queries_keys_and_values_of_one_tensor():
    name = "roberta.encoder.layer.1.attention.self.key.weight"
    with recognise(DATA / "xmod_classes" / "model.pt") as checkpoint:
        source = checkpoint.source
        assert source.stored_as(name).endswith("layers.1.self_attn.in_proj_weight[1]")
        assert_same_bits(source.read_rows(name, 5, 9), source.read(name)[5:9], "rows")


# -- back to fairseq --------------------------------------------------------------------------


def contents(folder):
    with open_checkpoint(folder) as source:
        return {name: source.read(name) for name in source.specs()}


@pytest.mark.parametrize("case", HEADS)
def test_there_and_back(case, converted, tmp_path):
    convert(converted / case, tmp_path / "original", to="original")
    convert(tmp_path / "original" / "model.pt", tmp_path / "back")
    assert_same_bits(contents(tmp_path / "back"), contents(converted / case), case)
    mine, theirs = (tmp_path / "back" / "config.json", converted / case / "config.json")
    assert json.loads(mine.read_text()) == json.loads(theirs.read_text())
    pieces = (DATA / case / "sentencepiece.bpe.model").read_bytes()
    assert (tmp_path / "original" / "sentencepiece.bpe.model").read_bytes() == pieces
    words = [
        [line.split(" ")[0] for line in (folder / "dict.txt").read_text().splitlines()]
        for folder in (tmp_path / "original", DATA / case)
    ]
    assert words[0][:37] == words[1][:37]
    assert len(words[0]) == len(words[1])


def test_whatever_format_it_is_written_from(converted, tmp_path):
    """Files that hold weights transposed give the same file for fairseq, bit for bit."""
    written = []
    for form in ("safetensors", "flax", "tf"):
        convert(converted / "xmod_prenorm", tmp_path / form, to=form)
        convert(tmp_path / form, tmp_path / f"from_{form}", to="original")
        written.append((tmp_path / f"from_{form}" / "model.pt").read_bytes())
    assert written[1:] == written[:1] * 2


def test_bfloat16_and_a_base_model_there_and_back(tmp_path):
    make(tmp_path / "own", "XGLMModel")
    convert(tmp_path / "own", tmp_path / "original", to="original", dtype="bfloat16")
    assert len((tmp_path / "original" / "dict.txt").read_text().splitlines()) == 61 - 4
    convert(tmp_path / "original" / "model.pt", tmp_path / "back")
    came, expected = contents(tmp_path / "back"), contents(tmp_path / "own")
    for name, array in expected.items():
        assert came[f"model.{name}"].dtype.name == "bfloat16"
        assert_same_bits(came[f"model.{name}"], array.astype(came[f"model.{name}"].dtype), name)


def test_the_one_token_type_goes_into_the_positions(tmp_path, caplog):
    make(tmp_path / "own", "XmodForMaskedLM", **XMOD)
    convert(tmp_path / "own", tmp_path / "original", to="original")
    assert "goes into the positions" in caplog.text
    convert(tmp_path / "original" / "model.pt", tmp_path / "back")
    came, expected = contents(tmp_path / "back"), contents(tmp_path / "own")
    types, positions = (
        f"roberta.embeddings.{n}_embeddings.weight" for n in ("token_type", "position")
    )
    assert not came.pop(types).any()
    moved = expected[positions].copy()
    moved[2:] += expected.pop(types)[0]
    assert_same_bits(came.pop(positions), moved, "positions")
    del expected[positions]
    assert_same_bits(came, expected, "the others")


@pytest.mark.parametrize(
    ("head", "settings", "words"),
    [
        ("XGLMForCausalLM", {"activation_function": "mish"}, "activation_function is 'mish'"),
        ("XGLMForCausalLM", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("XGLMForCausalLM", {"pad_token_id": 3}, "pad_token_id is 3"),
        ("XGLMForCausalLM", {"vocab_size": 4}, "vocab_size 4"),
        ("XGLMModel", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("XmodForMaskedLM", {**XMOD, "layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
        ("XmodForMaskedLM", {**XMOD, "hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("XmodForMaskedLM", {**XMOD, "type_vocab_size": 3}, "3 token types"),
        ("XmodForMaskedLM", {**XMOD, "languages": ["hi_IN_rom"]}, "adapters of hi_IN_rom"),
        ("XmodForMaskedLM", {**XMOD, "adapter_reduction_factor": 2.7}, "7 of 20"),
        ("XmodForMaskedLM", {**XMOD, "position_embedding_type": "relative_key"}, "relative_key"),
        ("XmodModel", XMOD, "XmodForMaskedLM and XmodForSequenceClassification"),
        ("XmodForCausalLM", {**XMOD, "is_decoder": True}, "XmodForCausalLM"),
    ],
)
def test_what_fairseq_does_not_have_is_refused(head, settings, words, tmp_path):
    make(tmp_path / "own", head, **settings)
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "own", tmp_path / "original", to="original")
    assert [entry.name for entry in tmp_path.iterdir()] == ["own"]


# -- what may be wrong ------------------------------------------------------------------------


def rewritten(path, case, tensors=None, beside=(), **settings):
    """Write a case anew with other tensors and settings; ``None`` takes one away."""
    with_cfg = {"xglm": "transformer_lm", "xmod": "xmod_base", "xmod_prenorm": "xmod_large_prenorm"}
    original = TorchFile(DATA / case / "model.pt")
    state = {
        name: tensor_of(original.read(tensor))
        for name, tensor in original.value["model"].items()
        if isinstance(tensor, StoredTensor)
    }
    original.close()
    for name, array in (tensors or {}).items():
        state[name] = array if array is None else tensor_of(np.asarray(array, np.float32))
    heads = "decoder" if case == "xglm" else "encoder"
    model = {"_name": with_cfg[case], f"{heads}_attention_heads": 4 if case == "xglm" else 3}
    model |= {"bottleneck": 3} if case == "xmod_prenorm" else {}
    model |= settings
    value = {
        "cfg": {"model": Namespace({k: v for k, v in model.items() if v is not None})},
        "model": {name: tensor for name, tensor in state.items() if tensor is not None},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_torch_file(path, value)
    for name in beside:
        shutil.copy(DATA / case / name, path.parent)
    return path


def error_of(path, tmp_path):
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = str(caught.value)
    assert len(text) < 3000
    assert "overlap" not in text
    return text


def test_settings_that_an_architecture_has_by_default(tmp_path):
    for case in ("xmod", "xmod_prenorm"):
        with recognise(rewritten(tmp_path / case / "model.pt", case)) as checkpoint:
            mine, _ = checkpoint.config, checkpoint.plan()
        with recognise(DATA / case / "model.pt") as checkpoint:
            theirs = checkpoint.config
        for name in ("pre_norm", "adapter_layer_norm", "ln_before_adapter", "adapter_size"):
            assert getattr(mine, name) == getattr(theirs, name), (case, name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decoder_attention_heads": None}, "decoder_attention_heads must be a whole number"),
        ({"decoder_attention_heads": "4"}, "got '4'"),
        ({"decoder_attention_heads": 10**9}, "decoder_attention_heads must be"),
        ({"decoder_attention_heads": 3}, "divisible"),
        ({"activation_fn": "swish"}, "activation_fn must be one of gelu, relu"),
        ({"dropout": [0.1]}, "dropout must be a number, got list"),
        ({"dropout": float("nan")}, "dropout must be a number"),
        ({"dropout": 3.0}, "dropout"),
        ({"no_scale_embedding": "yes"}, "no_scale_embedding must be true or false"),
        ({"no_token_positional_embeddings": True}, "no positions"),
        # A setting that refers to itself is none.
        ({"decoder_attention_heads": "${model.decoder_attention_heads}"}, "got None"),
    ],
)
def test_wrong_settings(settings, words, tmp_path):
    path = rewritten(tmp_path / "in" / "model.pt", "xglm", **settings)
    assert words in error_of(path, tmp_path)


@pytest.mark.parametrize(
    ("case", "tensors", "words"),
    [
        ("xglm", {"decoder.layers.1.fc2.bias": None}, "missing: decoder.layers.1.fc2.bias"),
        ("xglm", {"decoder.layers.0.w_resid": np.ones(3)}, "unexpected: decoder.layers.0.w_resid"),
        ("xglm", {"decoder.layers.70.fc1.bias": np.ones(3)}, "lacks the layers"),
        ("xglm", {"decoder.layers.4.fc1.bias": np.ones(3)}, "missing: decoder.layers.3."),
        ("xglm", {"decoder.embed_positions.weight": np.ones((9, 20))}, "learns its positions"),
        ("xglm", {"decoder.layer_norm.weight": None}, "lacks decoder.layer_norm.weight"),
        ("xglm", {"decoder.embed_tokens.weight": np.ones(3)}, "shape (3,)"),
        ("xglm", {"decoder.layers.1.fc1.weight": np.ones((28, 19))}, "misshapen"),
        ("xmod", {f"{ENCODER}.layernorm_embedding.bias": None}, "missing: encoder.sentence_enc"),
        ("xmod", {f"{ENCODER}.layer_norm.bias": np.ones(18)}, "unexpected: encoder.sentence_enc"),
        ("xmod", {f"{ENCODER}.layers.1.adapter_modules.de_DE.fc2.bias": None}, "de_DE.fc2.bias"),
        ("xmod", {f"{ENCODER}.layers.1.self_attn.in_proj_bias": np.ones(4)}, "shape (4,)"),
        ("xmod", {f"{ENCODER}.embed_positions.weight": None}, "lacks encoder.sentence_encoder"),
        ("xmod", {"classification_heads.x.dense.bias": np.ones(18)}, "lacks classification_heads"),
    ],
)
def test_wrong_tensors(case, tensors, words, tmp_path):
    path = rewritten(tmp_path / "in" / "model.pt", case, tensors)
    assert words in error_of(path, tmp_path)


def test_adapters_that_fairseq_never_reads(tmp_path):
    extra = {
        f"{ENCODER}.layers.{layer}.adapter_modules.hi_IN_rom.{name}": np.ones(shape)
        for layer in range(2)
        for name, shape in (
            ("fc1.weight", (9, 18)),
            ("fc1.bias", 9),
            ("fc2.weight", (18, 9)),
            ("fc2.bias", 18),
        )
    }
    path = rewritten(tmp_path / "in" / "model.pt", "xmod", extra)
    with recognise(path) as checkpoint:
        assert "hi_IN_rom" not in checkpoint.config.languages
        assert set(extra) <= set(checkpoint.original.dropped)
        assert any(
            note.startswith("hi_IN_rom is read as hi_IN") for note in checkpoint.original.notes
        )


def cut(path, tmp_path):
    """The same file without its last third."""
    content = path.read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.pt").write_bytes(content[: len(content) * 2 // 3])
    return tmp_path / "cut" / "model.pt"


@pytest.mark.parametrize("case", ["xglm", "xglm_args"])
def test_truncated(case, tmp_path):
    assert "truncated" in error_of(cut(DATA / case / "model.pt", tmp_path), tmp_path)


def test_values_that_are_missing_are_seen_before_any_is_read(tmp_path):
    """Sizes are taken from shapes, which a file may claim without the values."""
    with (
        zipfile.ZipFile(DATA / "xglm" / "model.pt") as whole,
        zipfile.ZipFile(tmp_path / "model.pt", "w") as part,
    ):
        for entry in whole.infolist():
            if not entry.filename.endswith("/data/3"):
                part.writestr(entry, whole.read(entry))
    with pytest.raises(CheckpointError, match="values of a tensor are missing"):
        recognise(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "value",
    [
        {"cfg": None},
        {"args": None, "cfg": {"model": {}}},
        {"args": {}},
        {"cfg": {"model": [1, 2]}},
        {},
    ],
)
def test_without_settings(value, tmp_path):
    state = {"decoder.embed_tokens.weight": tensor_of(np.ones((5, 3), np.float32))}
    (tmp_path / "in").mkdir()
    write_torch_file(tmp_path / "in" / "model.pt", {**value, "model": state})
    assert "no settings of a model" in error_of(tmp_path / "in" / "model.pt", tmp_path)


def test_other_models_of_fairseq_are_not_these(tmp_path):
    """Neither a translation model nor a model for masked words without adapters is taken."""
    own = "decoder.embed_tokens.weight"
    for names, matches in (
        ([own, "encoder.layers.0.fc1.bias"], []),
        ([f"{ENCODER}.layers.0.fc1.bias"], []),
        ([own], ["fairseq-xglm"]),
        ([f"{ENCODER}.layers.0.adapter_modules.en.fc1.bias"], ["fairseq-xmod"]),
    ):
        state = {name: tensor_of(np.ones(3, np.float32)) for name in names}
        write_torch_file(tmp_path / "model.pt", {"cfg": {"model": {"a": 1}}, "model": state})
        file = TorchFile(tmp_path / "model.pt")
        file.close()
        found = [r for r in RELEASES if "fairseq" in r and module_of(r).matches(file.value)]
        assert found == matches


# -- the files beside -------------------------------------------------------------------------

BESIDE = ("dict.txt", "sentencepiece.bpe.model")


def test_a_dictionary_in_another_order_gives_no_tokenizer(tmp_path):
    path = rewritten(tmp_path / "in" / "model.pt", "xglm", beside=BESIDE)
    words = (path.parent / "dict.txt").read_text().splitlines()
    for changed, reason in (
        ([*words[1::-1], *words[2:]], "the id 4 is"),
        (words[:20], "20 words for 37 pieces"),
        ([*words, "more 1"], "'more' is behind the pieces"),
    ):
        (path.parent / "dict.txt").write_text("\n".join(changed) + "\n")
        with recognise(path) as checkpoint:
            assert not checkpoint.original.tokenizer_files
            assert any(reason in note for note in checkpoint.original.notes)


def test_vocabularies_that_are_missing_or_too_large(tmp_path):
    with recognise(rewritten(tmp_path / "in" / "model.pt", "xmod")) as checkpoint:
        assert any("there is no tokenizer" in note for note in checkpoint.original.notes)
    small = {"decoder.embed_tokens.weight": np.ones((30, 20))}
    path = rewritten(tmp_path / "small" / "model.pt", "xglm", small, beside=BESIDE[1:])
    with recognise(path) as checkpoint:
        assert not checkpoint.original.tokenizer_files
        assert any("more pieces than" in note for note in checkpoint.original.notes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dict.txt", b"\xff\xfe 1\n", "not UTF-8"),
        ("dict.txt", b"word\n", "line 1 is 'word'"),
        ("dict.txt", b"word many\n", "line 1 is 'word many'"),
        ("sentencepiece.bpe.model", b"\x0a\xff\xff\xff\xff\x0fjunk", "sentencepiece"),
    ],
)
def test_damaged_files_beside(name, content, words, tmp_path):
    path = rewritten(tmp_path / "in" / "model.pt", "xglm", beside=BESIDE)
    (path.parent / name).write_bytes(content)
    assert words in error_of(path, tmp_path)


# -- files of torch.save ----------------------------------------------------------------------


def test_what_is_written_is_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared = Tensor(tensor_of(numbers).spec, lambda: [numbers[:1], numbers[1:]])
    plain = {"none": None, "yes": True, "no": False, "text": "\u00e4", "pair": (1, [2.5, -(2**40)])}
    arrays = {"scalar": np.array(7, np.int64), "none": np.zeros((0, 3), np.float16)}
    sizes = []
    value = {
        "a": shared,
        "b": shared,
        "plain": plain,
        **{k: tensor_of(v) for k, v in arrays.items()},
    }
    write_torch_file(tmp_path / "x.pt", value, sizes.append)
    came = torch.load(tmp_path / "x.pt", weights_only=True)
    assert came["plain"] == plain
    assert came["a"].data_ptr() == came["b"].data_ptr()
    assert sum(sizes) == numbers.nbytes + 8
    assert_same_bits(came["a"].numpy(), numbers, "a")
    for name, array in arrays.items():
        assert_same_bits(came[name].numpy(), array, name)
    write_torch_file(tmp_path / "y.pt", {"args": Namespace({"x": 3})})
    assert torch.load(tmp_path / "y.pt", weights_only=False)["args"].x == 3


def test_what_has_no_place_in_a_file_of_torch(tmp_path):
    short = Tensor(tensor_of(np.ones((2, 3))).spec, lambda: [np.ones(3)])
    other = Tensor(tensor_of(np.ones(2)).spec, lambda: [np.ones(2, np.float32)])
    for value, words in (({1, 2}, "set"), (short, "24 missing"), (other, "came as float32")):
        with pytest.raises(CheckpointError, match=words):
            write_torch_file(tmp_path / "x.pt", {"value": value})
