"""Configs: the defaults and files of transformers 4.37.2, and what is refused."""

import copy
import json
import pickle
from pathlib import Path

import pytest

from xlmfam import AutoConfig, PretrainedConfig, XGLMConfig
from xlmfam.common.configs.auto import CONFIGS
from xlmfam.common.configs.base import COMMON_DEFAULTS, MAX_CONFIG_BYTES
from xlmfam.common.errors import CheckpointError, ConfigError

DATA = Path(__file__).parents[1] / "data"
# Families whose numbers are made before their code exist are left out.
MANIFESTS = {
    name: json.loads((DATA / "manifests" / f"{name.replace('-', '_')}.json").read_text())
    for name in CONFIGS
}
CONFIG_FILES = sorted(p for name in CONFIGS for p in (DATA / "golden" / name).glob("*/config.json"))
# What transformers says about itself rather than about the model.
THEIRS = {"transformers_version", "return_dict_in_generate_config"}


def as_json(data):
    """Data as a file would give it back: keys of id2label become strings."""
    return {k: v for k, v in json.loads(json.dumps(data)).items() if k not in THEIRS}


@pytest.fixture(params=MANIFESTS)
def family(request):
    return request.param


def test_defaults_are_the_reference_s(family):
    expected = as_json(MANIFESTS[family]["default_config"]["to_dict"])
    came = as_json(AutoConfig.for_model(family).to_dict())
    assert {name: came.get(name, "absent") for name in expected} == expected
    assert set(came) - set(expected) <= {"_name_or_path"}


def test_the_file_of_the_defaults_is_the_reference_s(family):
    expected = as_json(MANIFESTS[family]["default_config"]["to_diff_dict"])
    assert as_json(AutoConfig.for_model(family).to_diff_dict()) == expected


def test_variants_are_the_reference_s(family):
    for name, entry in MANIFESTS[family]["variants"].items():
        if (family, name) == ("transfo-xl", "sampled"):
            with pytest.raises(ConfigError, match="sample_softmax is not supported"):
                AutoConfig.for_model(family, **entry["options"])
            continue
        expected = as_json(entry["config"])
        came = as_json(AutoConfig.for_model(family, **entry["options"]).to_dict())
        skipped = {"architectures", "_name_or_path"}
        assert {k: came[k] for k in expected if k not in skipped} == {
            k: v for k, v in expected.items() if k not in skipped
        }


def test_signature_is_the_reference_s(family):
    import inspect

    config_class = type(AutoConfig.for_model(family))
    manifest = MANIFESTS[family]["signatures"][f"{config_class.__name__}.__init__"]
    expected = dict(item for item in manifest if not item[0].startswith("**"))
    if expected.get("languages") == "<tuple>":  # X-MOD's default, which JSON cannot hold
        expected["languages"] = ("en_XX",)
    if expected.get("cutoffs") == "<list>":
        expected["cutoffs"] = (20000, 40000, 200000)
    parameters = inspect.signature(config_class).parameters
    assert {name: parameters[name].default for name in expected} == expected


def test_attribute_map_is_the_reference_s(family):
    config_class = type(AutoConfig.for_model(family))
    assert config_class.attribute_map == MANIFESTS[family]["default_config"]["attribute_map"]


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.parent.name)
def test_a_file_comes_back_as_it_was(path):
    data = json.loads(path.read_text())
    written = json.loads(AutoConfig.from_pretrained(path.parent).to_json_string())
    assert written == data


# ---- aliases, unknown keys ------------------------------------------------------------------


def test_aliases_read_and_write_what_they_stand_for():
    config = XGLMConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=5)
    assert (config.d_model, config.attention_heads, config.num_layers) == (32, 4, 5)
    config.hidden_size = 64
    assert config.d_model == config.hidden_size == 64
    assert "hidden_size" not in config.to_dict()


def test_unknown_keys_are_kept_and_written_back_and_shadow_nothing(tmp_path):
    unknown = {"to_dict": 1, "validate": {"a": 2}, "my_key": [1, 2], "from_dict": None}
    config = XGLMConfig(**unknown)
    assert callable(config.to_dict)
    assert callable(config.validate)
    assert config.my_key == [1, 2]
    config.save_pretrained(tmp_path)
    again = XGLMConfig.from_pretrained(tmp_path)
    assert callable(again.from_dict)
    assert {k: again.to_dict()[k] for k in unknown} == unknown
    again.save_pretrained(tmp_path / "second")
    first, second = tmp_path / "config.json", tmp_path / "second" / "config.json"
    assert first.read_text() == second.read_text()


@pytest.mark.parametrize(
    "key", ["num_labels", "use_return_dict", "__class__", "__dict__", "_extra"]
)
def test_keys_that_name_inner_things_do_no_harm(key):
    if key == "num_labels":
        assert XGLMConfig(num_labels=3).num_labels == 3
        return
    config = XGLMConfig(**{key: {"x": 1}})
    assert type(config) is XGLMConfig
    assert config.to_dict()["vocab_size"] == 256008
    assert config.use_return_dict is True


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = XGLMConfig().nothing


# ---- round trips ----------------------------------------------------------------------------


def test_json_round_trip_of_everything(tmp_path):
    config = XGLMConfig(
        d_model=20,
        attention_heads=5,
        num_labels=4,
        torch_dtype="bfloat16",
        eos_token_id=[2, 3],
        tie_word_embeddings=False,
        problem_type="regression",
        task_specific_params={"a": {"b": 1}},
        pruned_heads={},
    )
    config.save_pretrained(tmp_path / "a" / "b")
    again = XGLMConfig.from_pretrained(tmp_path / "a" / "b")
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again == XGLMConfig.from_json_file(tmp_path / "a/b/config.json") or again.name_or_path
    assert again.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3"}
    assert not list((tmp_path / "a" / "b").glob(".*"))


def test_a_full_listing_says_the_defaults_too():
    data = json.loads(XGLMConfig().to_json_string(use_diff=False))
    assert set(COMMON_DEFAULTS) <= set(data)


def test_copies_and_pickles():
    config = XGLMConfig(my_key=[1])
    for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), copy.copy(config)):
        assert again == config
        assert again is not config
    changed = copy.deepcopy(config)
    changed.my_key.append(2)
    assert config.my_key == [1]
    assert changed != config


def test_defaults_are_not_shared_between_configs():
    XGLMConfig().pruned_heads[0] = [1]
    XGLMConfig().id2label[7] = "x"
    assert XGLMConfig().pruned_heads == {}
    assert XGLMConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
def test_dtype_spellings(spelling):
    torch = pytest.importorskip("torch")
    for value in ("float16", "torch.float16", torch.float16):
        assert XGLMConfig(**{spelling: value}).torch_dtype == "float16"


def test_labels_from_overrides(tmp_path):
    XGLMConfig(id2label={"0": "no", "1": "yes", "2": "maybe"}).save_pretrained(tmp_path)
    assert XGLMConfig.from_pretrained(tmp_path).id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert XGLMConfig.from_pretrained(tmp_path).num_labels == 3
    assert XGLMConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5
    assert XGLMConfig.from_pretrained(tmp_path, d_model=512).d_model == 512


# ---- what is refused ------------------------------------------------------------------------

WRONG = {
    "vocab_size": ({"vocab_size": 0}, "vocab_size must be a positive integer, got 0"),
    "float_width": ({"d_model": 2.5}, "d_model must be a positive integer"),
    "text_width": ({"d_model": "8"}, "d_model must be a positive integer"),
    "true_layers": ({"num_layers": True}, "num_layers must be a positive integer"),
    "divisible": (
        {"d_model": 10, "attention_heads": 4},
        r"d_model \(10\) must be divisible by attention_heads \(4\)",
    ),
    "dropout": ({"dropout": 1.5}, "dropout must be a probability"),
    "layerdrop": ({"layerdrop": -0.1}, "layerdrop must be a probability"),
    "activation": ({"activation_function": "gelo"}, "activation_function must be one of .*gelu"),
    "pad": ({"pad_token_id": 300000}, r"pad_token_id must lie in \[0, 256008\)"),
    "problem": ({"problem_type": "guess"}, "problem_type must be one of"),
    "labels": ({"num_labels": 0}, "num_labels must be a positive integer"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=list(WRONG))
def test_values_that_describe_no_model(options, message):
    with pytest.raises(ConfigError, match=message):
        XGLMConfig(**options)


@pytest.mark.parametrize("labels", [{"id2label": 3}, {"id2label": ["a", "b"]}, {"id2label": None}])
def test_wrong_types_in_a_file_are_config_errors(labels):
    with pytest.raises(ConfigError):
        XGLMConfig.from_dict(labels)


def test_another_family(tmp_path):
    with pytest.raises(ConfigError, match="'xglm', this one is 'bert'; use AutoConfig"):
        XGLMConfig.from_dict({"model_type": "bert"})
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"'bert' is not one of xlmfam's: .*xglm"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="None is not one of"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "holds a list, not a JSON object"),
        ("[" * 100000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ],
    ids=["cut", "empty", "list", "deep", "bytes"],
)
def test_files_that_are_no_config(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        XGLMConfig.from_pretrained(tmp_path)


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(ConfigError, match="too large for a config"):
        XGLMConfig.from_pretrained(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises((ConfigError, CheckpointError), match=r"config\.json"):
        XGLMConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        XGLMConfig.from_json_file(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be a folder"):
        XGLMConfig().save_pretrained(tmp_path / "file")


def test_a_base_config_takes_any_family():
    assert PretrainedConfig.from_dict({"model_type": "bert", "x": 1}).x == 1
