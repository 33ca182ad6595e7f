"""The base of every config: plain data, compatible with the public ``config.json`` both ways."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from xlmfam.common.errors import ConfigError

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 8 * 2**20
# Far beyond every model, and still quickly gone through.
_MOST_LABELS = 10**6
_MOST_LAYERS_OR_HEADS = 10**4
_LARGEST_SIZE = 2**40
_MOST_LEVELS = 64

# What a config.json means when it does not say. Everything else is family specific.
COMMON_DEFAULTS: dict[str, Any] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "torch_dtype": None,
    "use_bfloat16": False,
    "tf_legacy_loss": False,
    "pruned_heads": {},
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "cross_attention_hidden_size": None,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "architectures": None,
    "finetuning_task": None,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "tokenizer_class": None,
    "prefix": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "task_specific_params": None,
    "problem_type": None,
}
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")

# What values of the wrong types lead to.
_NO_CONFIG = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RecursionError)

Config = TypeVar("Config", bound="PretrainedConfig")


class PretrainedConfig:
    """Settings of one model, with the attribute names that public ``config.json`` files use.

    Unknown keys are kept and written back and never acted on. An alias in ``attribute_map``
    reads and writes the attribute it stands for.

    Args:
        num_labels: Number of classes; makes ``id2label`` and ``label2id``.
        id2label: Class names by id (keys may be strings, as JSON has them).
        label2id: Class ids by name.
        torch_dtype: Name of the parameters' dtype, e.g. ``"float32"`` (a dtype object is named).
        **kwargs: The other common settings, see ``COMMON_DEFAULTS``, and unknown keys.

    Raises:
        ConfigError: When the values cannot describe a model.
    """

    model_type: ClassVar[str] = ""
    # The config of the files that a model is being read from, where settings were overridden.
    _stored: PretrainedConfig | None = None
    attribute_map: ClassVar[dict[str, str]] = {}
    torch_dtype: str | None
    pruned_heads: dict[int, list[int]]
    id2label: dict[int, str]
    label2id: dict[str, int]

    def __init__(self, **kwargs: Any):
        self._extra: dict[str, Any] = {}
        self.name_or_path = str(kwargs.pop("name_or_path", kwargs.pop("_name_or_path", "")))
        if "dtype" in kwargs:  # the spelling of transformers 5
            kwargs.setdefault("torch_dtype", kwargs.pop("dtype"))
        kwargs.pop("model_type", None)
        num_labels = kwargs.pop("num_labels", None)
        for key, default in COMMON_DEFAULTS.items():
            if key not in self.__dict__:
                setattr(self, key, copy.deepcopy(kwargs.pop(key, default)))
        self.torch_dtype = dtype_name(self.torch_dtype)
        self.pruned_heads = {int(key): list(heads) for key, heads in self.pruned_heads.items()}
        self.id2label = {int(key): value for key, value in dict(self.id2label).items()}
        if num_labels is not None and num_labels != len(self.id2label):
            self.num_labels = num_labels
        for key, value in kwargs.items():
            self._set_unknown(key, value)
        self.validate()

    def _set_unknown(self, key: str, value: Any) -> None:
        # A key such as "to_dict" must not replace a method.
        if hasattr(type(self), key) and key not in self.attribute_map:
            self._extra[key] = value
        else:
            setattr(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, type(self).attribute_map.get(name, name), value)

    def __getattr__(self, name: str) -> Any:
        target = type(self).attribute_map.get(name)
        if target is None:
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        return getattr(self, target)

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if not isinstance(value, int) or not 1 <= value <= _MOST_LABELS:
            raise ConfigError(
                f"num_labels must be a positive integer up to {_MOST_LABELS}, got {value!r}"
            )
        self.id2label = {index: f"LABEL_{index}" for index in range(value)}
        self.label2id = {name: index for index, name in self.id2label.items()}

    @property
    def use_return_dict(self) -> bool:
        """Whether calls return an output object rather than a tuple."""
        return bool(self.return_dict)

    def validate(self) -> None:
        """Check the values against each other; families extend this.

        Raises:
            ConfigError: Naming the setting, its value and what is allowed.
        """
        if self.problem_type not in PROBLEM_TYPES:
            raise ConfigError(
                f"problem_type must be one of {PROBLEM_TYPES}, got {self.problem_type!r}"
            )
        names = self.architectures
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise ConfigError(f"architectures must be a list of names, got {names!r}")
        for name in ("num_hidden_layers", "num_attention_heads"):
            value = getattr(self, name, None)
            if isinstance(value, int) and value > _MOST_LAYERS_OR_HEADS:
                raise ConfigError(f"{name} must be at most {_MOST_LAYERS_OR_HEADS}, got {value}")

    def require_positive(self, *names: str) -> None:
        """Raise ``ConfigError`` unless every named setting is a positive integer."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
            if value > _LARGEST_SIZE:
                raise ConfigError(f"{name} is beyond any model's: {str(value)[:40]}")

    def require_probability(self, *names: str) -> None:
        """Raise ``ConfigError`` unless every named setting lies in [0, 1]."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must be a probability between 0 and 1, got {value!r}")

    def require_divisible(self, width: str, heads: str) -> None:
        """Raise ``ConfigError`` unless setting ``heads`` divides setting ``width``."""
        if getattr(self, width) % getattr(self, heads):
            raise ConfigError(
                f"{width} ({getattr(self, width)}) must be divisible by "
                f"{heads} ({getattr(self, heads)})"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return every setting, as JSON-compatible data."""
        result = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        result.pop("name_or_path")
        result["_name_or_path"] = self.name_or_path
        result.update(self._extra)
        result["model_type"] = type(self).model_type
        return copy.deepcopy(result)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds: all but the common settings at their defaults."""
        family = type(self)().to_dict()
        data = self.to_dict()
        del data["_name_or_path"]  # where it was read from is nobody's business
        if self.id2label == COMMON_DEFAULTS["id2label"]:
            del data["id2label"], data["label2id"]
        return {
            key: value
            for key, value in data.items()
            if key not in COMMON_DEFAULTS
            or value != COMMON_DEFAULTS[key]
            or value != family.get(key)
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the text of ``config.json``; ``use_diff=False`` lists the defaults too."""
        data = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write ``config.json`` into ``save_directory``, which is made where missing."""
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError(f"save_directory must be a folder, {folder} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{CONFIG_NAME}.tmp"
        beside.write_text(self.to_json_string(), encoding="utf-8")
        beside.replace(folder / CONFIG_NAME)

    @classmethod
    def from_dict(cls: type[Config], config_dict: dict[str, Any], **overrides: Any) -> Config:
        """Build a config from the data of a ``config.json`` and ``overrides``.

        Raises:
            ConfigError: When the data is of another family or invalid.
        """
        found = config_dict.get("model_type")
        if cls.model_type and found and found != cls.model_type:
            raise ConfigError(
                f"{cls.__name__} reads configs of model_type '{cls.model_type}', this one is "
                f"'{found}'; use AutoConfig or the class of that family"
            )
        merged = {**config_dict, **overrides}
        if "num_labels" in overrides and "id2label" not in overrides:
            merged.pop("id2label", None)
            merged.pop("label2id", None)
        try:
            return cls(**merged)
        except ConfigError:
            raise
        except _NO_CONFIG as error:
            text = f"{type(error).__name__}: {error}"[:300]
            raise ConfigError(f"not a valid {cls.__name__}: {text}") from error

    @classmethod
    def from_pretrained(
        cls: type[Config], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Config:
        """Read ``config.json`` from a folder or a hub repository.

        Args:
            pretrained_model_name_or_path: Folder, path of a JSON file, or hub id.
            **kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
                ``subfolder`` say where to look; anything else overrides a setting.

        Raises:
            CheckpointError: When there is no such folder, repository or file.
            ConfigError: When the file is not a config of this family.
        """
        hub = pop_hub_arguments(kwargs)
        data = read_config_dict(pretrained_model_name_or_path, **hub)
        data["_name_or_path"] = os.fspath(pretrained_model_name_or_path)
        return cls.from_dict(data, **kwargs)

    @classmethod
    def from_json_file(cls: type[Config], json_file: str | os.PathLike) -> Config:
        """Read a config from the path of a JSON file."""
        return cls.from_dict(parse_config(Path(json_file)))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def dtype_name(dtype: Any) -> str | None:
    """Return the plain name of a dtype given as a string or as any framework's object."""
    if dtype is None or isinstance(dtype, str):
        return dtype.removeprefix("torch.") if dtype else None
    for attribute in ("__name__", "name"):
        if isinstance(getattr(dtype, attribute, None), str):
            return getattr(dtype, attribute)
    return str(dtype).removeprefix("torch.")


def pop_hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments that say where on the hub to look out of ``kwargs``."""
    from xlmfam.common.checkpoints.locate import HUB_ARGUMENTS

    return {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}


def parse_config(path: Path) -> dict[str, Any]:
    """Return the data of a JSON config file.

    Raises:
        ConfigError: When it is not there, too large, or not a JSON object.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes: too large for a config")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if _is_deep(data):
        raise ConfigError(f"{path} has more than {_MOST_LEVELS} levels: no config has")
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def _is_deep(data: Any) -> bool:
    """Whether data are nested deeper than what copies and compares them can follow."""
    level = [data]
    for _ in range(_MOST_LEVELS):
        parts = (item.values() if isinstance(item, dict) else item for item in level)
        level = [part for each in parts for part in each if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def read_config_dict(name_or_path: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """Return the data of the ``config.json`` of a folder, a file, or a hub repository."""
    from xlmfam.common.checkpoints.locate import resolve_file

    path = Path(name_or_path)
    if path.is_file() and path.suffix == ".json":
        return parse_config(path)
    folder = path.parent if path.is_file() else name_or_path
    found = resolve_file(os.fspath(folder), CONFIG_NAME, **hub)
    if found is None:
        raise ConfigError(
            f"{name_or_path} has no {CONFIG_NAME}; what an original release, Orbax or Keras wrote "
            "becomes a checkpoint with one by `xlmfam convert`"
        )
    return parse_config(found)
