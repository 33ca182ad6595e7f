"""Reading and writing the public tokenizer files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken

from xlmfam.common.errors import CheckpointError, XlmfamError

from .special_tokens import ADDITIONAL, ROLES, added_token_fields, as_added_token

# The largest public tokenizer.json has 20 MB.
_LARGEST_JSON = 2**27
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
TOKENIZER_FILE = "tokenizer.json"

# Arguments of from_pretrained that say where files are, and are no setting of the tokenizer.
_LOCATION = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
_OTHER_ARGUMENTS = (
    "force_download",
    "from_slow",
    "proxies",
    "resume_download",
    "trust_remote_code",
    "use_auth_token",
    "use_fast",
)
# Keys of tokenizer_config.json that from_pretrained deals with itself.
_NOT_SETTINGS = ("tokenizer_class", "added_tokens_decoder", "init_inputs")


class Locator:
    """Finds the files of one tokenizer, in a folder or on the hub.

    Args:
        name_or_path: A folder or the id of a hub repository.
        **location: Arguments of `resolve_file`.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], **location: Any):
        self.name_or_path = os.fspath(name_or_path)
        self.location = location

    def find(self, filename: str) -> Path | None:
        """Return the path of a file, ``None`` where the folder or repository has none."""
        from xlmfam.common.checkpoints.locate import resolve_file

        return resolve_file(self.name_or_path, filename, **self.location)

    def read_json(self, filename: str) -> dict[str, Any]:
        """Return the content of a JSON file, empty where there is none."""
        path = self.find(filename)
        return {} if path is None else read_json(path)


def take_location(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Remove from ``kwargs`` what says where files are, and return the part that locates them."""
    location = {name: kwargs.pop(name) for name in _LOCATION if name in kwargs}
    for name in _OTHER_ARGUMENTS:
        kwargs.pop(name, None)
    if isinstance(location.get("subfolder"), str) and not location["subfolder"]:
        del location["subfolder"]
    return location


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: the file is damaged, or holds no object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, and should hold an object")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or as it was before, whatever happens meanwhile."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private, and a checkpoint is to be read like any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON with sorted keys, atomically."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8"))


def prepare_folder(save_directory: str | os.PathLike[str]) -> Path:
    """Create the folder to save into.

    Raises:
        XlmfamError: the path is a file.
    """
    folder = Path(save_directory)
    if folder.is_file():
        raise XlmfamError(f"save_directory is the file {folder}; it may be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _thaw(value: Any) -> Any:
    """Turn what a file says of a token, anywhere in it, into an ``AddedToken``."""
    if isinstance(value, Mapping):
        if value.get("__type") == "AddedToken" and isinstance(value.get("content"), str):
            return as_added_token(value, special=True)
        return {name: _thaw(item) for name, item in value.items()}
    return [_thaw(item) for item in value] if isinstance(value, list) else value


def _freeze(value: Any) -> Any:
    """Turn tokens, anywhere in a setting, into what a file says of them."""
    if isinstance(value, AddedToken):
        return {**added_token_fields(value), "__type": "AddedToken"}
    if isinstance(value, Mapping):
        return {str(name): _freeze(item) for name, item in value.items()}
    return [_freeze(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_settings(locator: Locator) -> dict[str, Any]:
    """Return the keyword arguments that the files of a tokenizer give.

    ``tokenizer_config.json`` of newer releases tells everything; older ones spread it over
    ``special_tokens_map.json`` and ``added_tokens.json``.
    """
    config = locator.read_json(CONFIG_FILE)
    decoder = config.get("added_tokens_decoder")
    settings = {name: _thaw(value) for name, value in config.items() if name not in _NOT_SETTINGS}
    # transformers 5 renamed the list; with a mapping instead, it means something else.
    if isinstance(settings.get("extra_special_tokens"), list) and ADDITIONAL not in settings:
        settings[ADDITIONAL] = settings.pop("extra_special_tokens")
    if isinstance(decoder, Mapping):
        tokens = {int(number): as_added_token(token) for number, token in decoder.items()}
    else:
        for name, value in locator.read_json(SPECIAL_TOKENS_FILE).items():
            settings[name] = _special(value)
        roles = {str(settings[name]) for name in ROLES if settings.get(name) is not None}
        roles |= {str(token) for token in settings.get(ADDITIONAL) or []}
        added = locator.read_json(ADDED_TOKENS_FILE)
        tokens = {
            int(number): AddedToken(token, normalized=token not in roles, special=token in roles)
            for token, number in sorted(added.items(), key=lambda item: item[1])
        }
    by_content = {token.content: token for token in tokens.values()}
    for name in ROLES:
        if isinstance(settings.get(name), str):
            settings[name] = by_content.get(settings[name], settings[name])
    if settings.get(ADDITIONAL):
        settings[ADDITIONAL] = [
            by_content.get(token, token) if isinstance(token, str) else token
            for token in settings[ADDITIONAL]
        ]
    settings["added_tokens_decoder"] = tokens
    return settings


def _special(value: Any) -> Any:
    if isinstance(value, Mapping):
        return as_added_token(value, special=True)
    return [_special(item) for item in value] if isinstance(value, list) else value


class TokenizerFiles:
    """``from_pretrained`` and ``save_pretrained`` of every tokenizer."""

    vocab_files_names: ClassVar[dict[str, str]]
    # Files that need not be there, though vocab_files_names lists them.
    optional_vocab_files: ClassVar[tuple[str, ...]] = ()

    init_kwargs: dict[str, Any]
    added_tokens_decoder: Any
    vocab_size: Any
    special_tokens_map_extended: Any
    _settings_to_save: Callable[[], dict[str, Any]]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *init_inputs: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a tokenizer from a folder, from the hub, or from its vocabulary file alone.

        Args:
            pretrained_model_name_or_path: A folder, the id of a hub repository, or the one
                vocabulary file of tokenizers that need no other.
            *init_inputs: Positional arguments of the tokenizer.
            **kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and
                ``subfolder`` say where files are; everything else replaces a setting that the
                files give, such as ``padding_side`` or ``pad_token``.

        Returns:
            The tokenizer.

        Raises:
            CheckpointError: there is no such folder or repository, or a file is missing or
                damaged.
        """
        location = take_location(kwargs)
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            settings: dict[str, Any] = {cls._argument_of_single_file(path): str(path)}
        else:
            locator = Locator(pretrained_model_name_or_path, **location)
            settings = read_settings(locator)
            settings.update(cls._vocabulary_files(locator))
        settings["name_or_path"] = os.fspath(pretrained_model_name_or_path)
        settings.update(kwargs)
        return cls(*init_inputs, **settings)

    @classmethod
    def _argument_of_single_file(cls, path: Path) -> str:
        if path.suffix == ".json" and "tokenizer_file" in cls.vocab_files_names:
            return "tokenizer_file"
        names = [name for name in cls.vocab_files_names if name != "tokenizer_file"]
        if len(names) != 1:
            raise CheckpointError(
                f"{path} is one file, and {cls.__name__} needs {list(names)}: pass their folder"
            )
        return names[0]

    @classmethod
    def _vocabulary_files(cls, locator: Locator) -> dict[str, str | None]:
        """Return the path of each vocabulary file as a keyword argument."""
        found: dict[str, str | None] = {}
        for argument, filename in cls.vocab_files_names.items():
            path = locator.find(filename)
            found[argument] = None if path is None else str(path)
        missing = [
            filename
            for argument, filename in cls.vocab_files_names.items()
            if found[argument] is None and argument not in cls.optional_vocab_files
        ]
        if missing or not any(found.values()):
            wanted = missing or list(cls.vocab_files_names.values())
            raise CheckpointError(
                f"{locator.name_or_path} has no {' and no '.join(wanted)}, which "
                f"{cls.__name__} reads"
            )
        return found

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write only the vocabulary files, and return their paths."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Write all files that `from_pretrained` reads, here and in transformers.

        Args:
            save_directory: The folder; it is created where it is missing.
            legacy_format: ``False`` leaves out what only slow tokenizers read, ``True`` what
                only fast ones do; ``None`` writes both.
            filename_prefix: Put before each file name, with a hyphen.
            push_to_hub: Not supported; upload the folder with ``huggingface_hub``.
            **kwargs: Nothing else is supported.

        Returns:
            The paths of the files written.

        Raises:
            XlmfamError: an argument is not supported, or ``save_directory`` is a file.
        """
        if push_to_hub or kwargs:
            names = [*(["push_to_hub"] if push_to_hub else []), *kwargs]
            raise XlmfamError(
                f"save_pretrained does not know {', '.join(names)}; to upload a saved folder, "
                "see huggingface_hub.HfApi().upload_folder"
            )
        folder = prepare_folder(save_directory)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        # The vocabulary first: a folder with a new config and an old vocabulary would be worse.
        written = list(self._save_vocabularies(folder, legacy_format, filename_prefix))
        added = {
            token.content: number
            for number, token in self.added_tokens_decoder.items()
            if number >= self.vocab_size
        }
        added_path = folder / f"{prefix}{ADDED_TOKENS_FILE}"
        if added:
            write_json(added_path, added)
            written.append(str(added_path))
        else:
            # One from an earlier save into this folder would add its tokens to this tokenizer.
            added_path.unlink(missing_ok=True)
        path = folder / f"{prefix}{SPECIAL_TOKENS_FILE}"
        write_json(path, self._special_tokens_for_file())
        written.append(str(path))
        path = folder / f"{prefix}{CONFIG_FILE}"
        write_json(path, self._config_for_file())
        written.append(str(path))
        return tuple(written)

    def _save_vocabularies(
        self,
        folder: Path,
        legacy_format: bool | None,  # noqa: ARG002
        filename_prefix: str | None,
    ) -> tuple[str, ...]:
        return self.save_vocabulary(folder, filename_prefix)

    def _special_tokens_for_file(self) -> dict[str, Any]:
        def fields(token: Any) -> Any:
            if isinstance(token, list):
                return [fields(item) for item in token]
            if not isinstance(token, AddedToken):
                return token
            return {k: v for k, v in added_token_fields(token).items() if k != "special"}

        return {name: fields(token) for name, token in self.special_tokens_map_extended.items()}

    def _config_for_file(self) -> dict[str, Any]:
        dropped = {*self.vocab_files_names, "tokenizer_file", "tokenizer_object", *_NOT_SETTINGS}
        config: dict[str, Any] = {}
        for name, value in self._settings_to_save().items():
            if name in dropped:
                continue
            if name in (*ROLES, ADDITIONAL):
                # How a special token is matched stands in added_tokens_decoder.
                config[name] = (
                    [*map(str, value)] if isinstance(value, list) else value and str(value)
                )
            else:
                config[name] = _freeze(value)
        config["added_tokens_decoder"] = {
            str(number): added_token_fields(token)
            for number, token in sorted(self.added_tokens_decoder.items())
        }
        config["tokenizer_class"] = type(self).__name__.removesuffix("Fast")
        return config
