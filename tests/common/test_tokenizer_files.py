"""Reading and writing tokenizer files, `AutoTokenizer`, and what a wrong argument gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xlmfam.common.errors import CheckpointError, MissingPackageError, XlmfamError
from xlmfam.common.tokenizers import (
    AddedToken,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerFast,
    XGLMTokenizer,
    XGLMTokenizerFast,
    auto,
    files,
    tensors,
)

DATA = Path(__file__).resolve().parents[1] / "data" / "tokenizers"
MODEL = DATA / "xglm" / "sentencepiece.bpe.model"
GOLDEN = json.loads((DATA / "xglm" / "golden.json").read_text(encoding="utf-8"))
CLASSES = [XGLMTokenizer, XGLMTokenizerFast]
TEXT = "the <new> river <left>, old <mask>"


def put(folder, **contents):
    """Write JSON files into a folder with the model."""
    folder.mkdir(exist_ok=True)
    shutil.copy(MODEL, folder / MODEL.name)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(params=CLASSES)
def cls(request):
    return request.param


def golden_ids(text_number=0):
    return GOLDEN["added"]["slow"]["texts"][text_number]["ids"]


# -- files of other releases -----------------------------------------------------------------


def test_files_of_the_reference(tmp_path, cls):
    put(
        tmp_path,
        tokenizer_config=GOLDEN["added tokenizer_config.json"],
        special_tokens_map=GOLDEN["added special_tokens_map.json"],
        added_tokens=GOLDEN["added added_tokens.json"],
    )
    tokenizer = cls.from_pretrained(tmp_path)
    assert tokenizer("the <new> river<new>")["input_ids"] == golden_ids()
    assert tokenizer.mask_token_id == GOLDEN["added"]["slow"]["mask_token_id"]
    assert len(tokenizer) == GOLDEN["added"]["slow"]["length"]


def test_files_of_old_releases(tmp_path, cls):
    """Before 4.34: no added_tokens_decoder; tokens in three files."""
    put(
        tmp_path,
        tokenizer_config={
            "tokenizer_class": "XGLMTokenizer",
            "model_max_length": 2048,
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
            "special_tokens_map_file": None,
        },
        special_tokens_map={
            "eos_token": "</s>",
            "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True},
        },
        added_tokens={"<mask>": 1312, "<new>": 1311},
    )
    tokenizer = cls.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == 2048
    assert tokenizer.mask_token_id == 1312
    assert tokenizer.convert_tokens_to_ids("<new>") == 1311
    assert 1312 in tokenizer.all_special_ids
    assert 1311 not in tokenizer.all_special_ids
    assert tokenizer.tokenize("the <new> river") == ["▁the", "<new>", "▁riv", "er"]


def test_files_of_release_5(tmp_path):
    """transformers 5: tokenizer.json alone, and extra_special_tokens for the additional ones."""
    XGLMTokenizerFast(MODEL).save_pretrained(tmp_path, legacy_format=False)
    assert not (tmp_path / MODEL.name).exists()
    config = {
        "backend": "tokenizers",
        "extra_special_tokens": ["<madeupword0>", "<madeupword1>"],
        "is_local": True,
        "tokenizer_class": "XGLMTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, XGLMTokenizerFast)
    assert len(tokenizer.additional_special_tokens) == 7
    assert tokenizer("the")["input_ids"] == [2, 48]
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model"):
        XGLMTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="alone"):
        tokenizer.save_vocabulary(tmp_path)
    with pytest.raises(XlmfamError, match="legacy_format"):
        tokenizer.save_pretrained(tmp_path, legacy_format=True)


def test_single_file_and_generic_fast(tmp_path, cls):
    assert cls.from_pretrained(MODEL)("the")["input_ids"] == [2, 48]
    XGLMTokenizerFast(MODEL).save_pretrained(tmp_path)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (
        plain("the river ", "e\u0302\u0301")["input_ids"]
        == XGLMTokenizer(MODEL)("the river ", "e\u0302\u0301")["input_ids"]
    )


# -- what is written -------------------------------------------------------------------------


def test_unknown_settings_are_kept(tmp_path, cls):
    given = {**GOLDEN["tokenizer_config.json"], "auto_map": {"x": 1}, "chat_template": "{{ x }}"}
    given |= {"padding_side": "left", "later": [1, {"a": None}]}
    put(tmp_path, tokenizer_config=given)
    cls.from_pretrained(tmp_path).save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    if cls is XGLMTokenizerFast:
        assert written["sp_model_kwargs"] == {}
    assert written == given


def test_overrides(tmp_path, cls):
    put(tmp_path)
    tokenizer = cls.from_pretrained(
        tmp_path, padding_side="left", pad_token="<madeupword0>", model_max_length=9
    )
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", 1304)
    tokenizer.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert (again.padding_side, again.pad_token_id, again.model_max_length) == ("left", 1304, 9)
    assert again.name_or_path == str(tmp_path)


def test_save_names_files(tmp_path, cls):
    tokenizer = cls(MODEL)
    tokenizer.add_tokens("<new>")
    paths = tokenizer.save_pretrained(tmp_path, filename_prefix="x")
    assert all(Path(path).name.startswith("x-") for path in paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(Path(p).name for p in paths)
    names = {Path(path).name for path in tokenizer.save_pretrained(tmp_path / "plain")}
    expected = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    expected |= {MODEL.name} | ({"tokenizer.json"} if tokenizer.is_fast else set())
    assert names == expected
    # Another tokenizer saved into the same folder does not inherit <new>.
    cls(MODEL).save_pretrained(tmp_path / "plain")
    assert len(cls.from_pretrained(tmp_path / "plain")) == 1311


def test_slow_to_fast_and_back(tmp_path):
    tokenizer = XGLMTokenizer(MODEL)
    tokenizer.add_tokens(["<new>", AddedToken("<left>", lstrip=True)])
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    expected = tokenizer(TEXT)["input_ids"]
    tokenizer.save_pretrained(tmp_path / "slow")
    fast = XGLMTokenizerFast.from_pretrained(tmp_path / "slow")
    assert fast(TEXT)["input_ids"] == expected
    fast.save_pretrained(tmp_path / "fast")
    assert XGLMTokenizer.from_pretrained(tmp_path / "fast")(TEXT)["input_ids"] == expected


def test_a_killed_save_leaves_files_whole(tmp_path, cls, monkeypatch):
    tokenizer = cls(MODEL)
    tokenizer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer.add_tokens("<new>")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- AutoTokenizer ---------------------------------------------------------------------------


def test_auto(tmp_path):
    folder = put(tmp_path, config={"model_type": "xglm"})
    assert isinstance(AutoTokenizer.from_pretrained(folder), XGLMTokenizerFast)
    slow = AutoTokenizer.from_pretrained(folder, use_fast=False, padding_side="left")
    assert isinstance(slow, XGLMTokenizer)
    assert slow.padding_side == "left"
    # tokenizer_config.json goes before config.json
    put(
        tmp_path,
        config={"model_type": "nonsense"},
        tokenizer_config={"tokenizer_class": "XGLMTokenizerFast"},
    )
    assert isinstance(AutoTokenizer.from_pretrained(folder), XGLMTokenizerFast)
    put(tmp_path, tokenizer_config={"tokenizer_class": "FooTokenizer"})
    with pytest.raises(CheckpointError, match=r"(?s)FooTokenizer.*nonsense.*xglm"):
        AutoTokenizer.from_pretrained(folder)
    assert isinstance(AutoTokenizer.from_pretrained(folder, tokenizer_type="xglm"), CLASSES[1])
    with pytest.raises(XlmfamError):
        AutoTokenizer()


def test_auto_register(tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "TOKENIZERS", dict(auto.TOKENIZERS))
    auto.register("mine", "xlmfam.common.tokenizers.xglm:XGLMTokenizer", None)
    folder = put(tmp_path, config={"model_type": "mine"})
    assert isinstance(AutoTokenizer.from_pretrained(folder), XGLMTokenizer)


# -- mistakes --------------------------------------------------------------------------------


def test_missing_and_damaged_files(tmp_path, cls):
    with pytest.raises(CheckpointError):
        cls.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model"):
        cls.from_pretrained(tmp_path / "empty")
    broken = put(tmp_path / "broken")
    content = MODEL.read_bytes()
    for damaged in (content[:-1000], content[: len(content) // 3], b"", b"nonsense" * 20):
        (broken / MODEL.name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="sentencepiece"):
            cls.from_pretrained(broken)
    put(broken)
    (broken / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        cls.from_pretrained(broken)
    (broken / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="list"):
        cls.from_pretrained(broken)
    (broken / "tokenizer_config.json").unlink()
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        XGLMTokenizerFast.from_pretrained(broken)
    with pytest.raises(XlmfamError, match="file"):
        cls(MODEL).save_pretrained(MODEL)
    with pytest.raises(XlmfamError, match="push_to_hub"):
        cls(MODEL).save_pretrained(tmp_path / "x", push_to_hub=True)
    with pytest.raises(XlmfamError, match="vocab_file"):
        XGLMTokenizerFast()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([None], {}, "text"),
        ([3], {}, "text is a int"),
        ([["a", 3]], {}, r"text\[1\] is 3"),
        ([["a"], ["b", "c"]], {}, "2 texts"),
        ([["a"], "b"], {}, "one text"),
        (["a"], {"padding": "wide"}, "padding is 'wide'"),
        (["a"], {"truncation": "some"}, "truncation is 'some'"),
        (["a"], {"return_tensors": "xx"}, "return_tensors is 'xx'"),
        (["a"], {"max_length": -1}, "max_length is -1"),
        (["a"], {"stride": 1.5}, "stride is 1.5"),
        (["a"], {"truncation": True, "max_length": 0}, "max_length=0"),
        (["a"], {"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        (
            ["a"],
            {"padding": True, "truncation": True, "max_length": 5, "pad_to_multiple_of": 8},
            "multiple",
        ),
        ([["a", "a b"]], {"return_tensors": "np"}, "padding=True"),
        (
            ["a b c", "d e f"],
            {"truncation": True, "max_length": 5, "return_overflowing_tokens": True, "stride": 9},
            "longest_first|stride",
        ),
    ],
)
def test_wrong_arguments(cls, arguments, options, message):
    with pytest.raises(XlmfamError, match=message):
        cls(MODEL)(*arguments, **options)


def test_wrong_settings(cls):
    with pytest.raises(XlmfamError, match="padding_side"):
        cls(MODEL, padding_side="middle")
    tokenizer = cls(MODEL)
    with pytest.raises(XlmfamError, match="'nose_token'"):
        tokenizer.add_special_tokens({"nose_token": "x"})
    with pytest.raises(XlmfamError, match="additional_special_tokens"):
        tokenizer.add_special_tokens({"additional_special_tokens": "<x>"})
    with pytest.raises(XlmfamError, match="a token is 3"):
        tokenizer.add_tokens([3])
    with pytest.raises(XlmfamError, match="pad_token is 3"):
        tokenizer.pad_token = 3
    with pytest.raises(XlmfamError, match="input_ids"):
        tokenizer.pad({"ids": [1]})
    with pytest.raises(XlmfamError, match="row 1"):
        tokenizer.pad([{"input_ids": [1]}, {"input_ids": [1], "x": 1}])
    with pytest.raises(XlmfamError, match="batch_decode"):
        tokenizer.decode([[1], [2]])
    with pytest.raises(XlmfamError, match="token_ids_1"):
        tokenizer.get_special_tokens_mask([1], [2], already_has_special_tokens=True)
    tokenizer.pad_token = None
    with pytest.raises(XlmfamError, match="pad_token"):
        tokenizer("a", padding=True)


def test_ids_out_of_range():
    with pytest.raises(XlmfamError, match="5000"):
        XGLMTokenizer(MODEL).decode([5000])
    with pytest.raises(XlmfamError, match="-100"):
        XGLMTokenizerFast(MODEL).decode([-100])
    with pytest.raises(NotImplementedError, match="offsets"):
        XGLMTokenizer(MODEL)("a", return_offsets_mapping=True)


def test_missing_framework(monkeypatch):
    def missing(name):
        raise ImportError(name=name)

    monkeypatch.setattr(tensors.importlib, "import_module", missing)
    for kind in ("pt", "tf", "jax"):
        with pytest.raises(MissingPackageError, match="pip install"):
            BatchEncoding({"a": [1]}, tensor_type=kind)


def test_warnings(cls, caplog):
    tokenizer = cls(MODEL, model_max_length=3)
    tokenizer("the river old mill")
    tokenizer("the river old mill")
    assert caplog.text.count("the model takes 3") == 1
    tokenizer("the", max_length=3)
    assert "without truncation" in caplog.text
    tokenizer("the", langs="en")
    assert "'langs'" in caplog.text


def test_import_is_lazy():
    code = (
        "import sys, xlmfam.common.tokenizers as t; "
        "assert not {'tokenizers', 'sentencepiece', 'numpy', 'torch'} & set(sys.modules); "
        "t.XGLMTokenizerFast; "
        "assert not {'torch', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
