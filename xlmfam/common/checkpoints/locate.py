"""Finding a file of a model: in a local folder, or in a repository on the Hugging Face hub."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.shards import is_plain_name
from xlmfam.common.errors import CheckpointError

# The arguments of `resolve_file` that a `from_pretrained` passes on.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")

# Each attempt to reach a hub that is down takes half a minute of retries, and looking for a
# checkpoint asks for up to eight files: after a failure the cache alone is asked for a while.
_QUIET_SECONDS = 30.0
_unreachable_since: dict[str, float] = {}


def resolve_file(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
) -> Path | None:
    """Find one file of a model, downloading it from the hub when it is not in a folder.

    The environment variables of ``huggingface_hub`` hold: ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``,
    ``HF_HOME``, ``HF_TOKEN``.

    Args:
        name_or_path: A folder, or the name of a repository such as ``facebook/xglm-564M``.
        filename: The name of the file.
        revision: Branch, tag or commit of the repository.
        token: Access token; True takes the one that ``hf auth login`` has stored.
        cache_dir: Where downloads are kept.
        local_files_only: Use only what is already in the cache.
        subfolder: Folder inside the folder or repository.

    Returns:
        The path, or None when the folder or repository exists and lacks the file.

    Raises:
        CheckpointError: There is no such folder or repository, or it cannot be reached; the
            message says what to do.
    """
    if not is_plain_name(filename):
        raise CheckpointError(f"filename is {filename!r}; it must be a file name without a path")
    parts = _subfolder_parts(subfolder)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        path = folder.joinpath(*parts, filename)
        return path if path.is_file() else None
    name = os.fspath(name_or_path)
    _require_repository_name(name)
    return _download(
        name,
        filename,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder="/".join(parts) or None,
    )


def _subfolder_parts(subfolder: str | None) -> list[str]:
    parts = [part for part in (subfolder or "").split("/") if part not in ("", ".")]
    if (subfolder or "").startswith("/") or not all(map(is_plain_name, parts)):
        raise CheckpointError(
            f"subfolder is {subfolder!r}; it must be a relative path inside the model's folder"
        )
    return parts


def _require_repository_name(name: str) -> None:
    """Refuse what can only be meant as a path before anyone asks the hub for it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if Path(name).is_file():
        raise CheckpointError(f"{name}: is a file; give the folder that holds it")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r}: there is no such folder, and it cannot be the name of a repository on "
            f'the hub ("name" or "owner/name")'
        ) from error


def _download(name: str, filename: str, **options: Any) -> Path | None:
    from huggingface_hub import constants, errors, hf_hub_download

    failed = _unreachable_since.get(constants.ENDPOINT, -_QUIET_SECONDS)
    only_cache = options["local_files_only"] or time.monotonic() - failed < _QUIET_SECONDS
    where = f"{name!r} (revision {options['revision'] or 'main'})"
    try:
        return Path(hf_hub_download(name, filename, **{**options, "local_files_only": only_cache}))
    except errors.LocalEntryNotFoundError as error:
        # Either nobody could be asked, or only the cache was to be looked at.
        if not only_cache:
            _unreachable_since[constants.ENDPOINT] = time.monotonic()
        if _is_cached(name, options):
            return None
        raise CheckpointError(_unreachable(where, filename, error, options)) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: the repository is gated; ask for access on its page on the hub, then pass "
            "token=... or run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: there is no such folder here and no such repository on the hub, or it is "
            "private; check the name, and pass token=... or run `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{where}: the repository has no such revision; give a branch, a tag or a commit"
        ) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        # OSError: no connection, no room or no rights in the cache; ValueError: a bad token or
        # a download that came out with the wrong size.
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{where}: {filename} could not be downloaded: {reason}") from error


def _is_cached(name: str, options: dict[str, Any]) -> bool:
    """Whether the cache holds a snapshot of this revision, so that a file can be said to lack."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(options["cache_dir"] or constants.HF_HUB_CACHE).expanduser()
    folder = cache / repo_folder_name(repo_id=name, repo_type="model")
    revision = options["revision"] or constants.DEFAULT_REVISION
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    return is_plain_name(commit) and (folder / "snapshots" / commit).is_dir()


def _unreachable(where: str, filename: str, error: Exception, options: dict[str, Any]) -> str:
    from huggingface_hub import constants

    if options["local_files_only"] or constants.HF_HUB_OFFLINE:
        why = "local_files_only=True" if options["local_files_only"] else "HF_HUB_OFFLINE is set"
        return (
            f"{where}: there is no such folder, and {filename} is not in the cache ({why}); "
            "download it once while online, or give a folder"
        )
    return (
        f"{where}: there is no such folder, and the hub at {constants.ENDPOINT} could not be "
        f"reached for {filename} ({type(error.__cause__ or error).__name__}); check the "
        "connection, HF_ENDPOINT and the proxy, or give a folder"
    )
