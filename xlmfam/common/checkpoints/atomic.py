"""Saving a set of files so that the folder holds either all the old or all the new ones.

Everything is written into a temporary folder, forced to the disk, and then put in the place of
the target in one step. What a killed save leaves behind is hidden, locked by nobody, and swept
away by the next save.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from xlmfam.common.checkpoints.journal import JOURNAL
from xlmfam.common.errors import CheckpointError

_MARK = ".xlmfam-saving-"
_OLD_MARK = ".xlmfam-old-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# Read first by everyone who opens the folder, so written last where files go one by one.
_LAST = (".index.json", "config.json")


@contextlib.contextmanager
def atomic_folder(
    target: Path, *, replaces: Callable[[str], bool], resume: str | None = None
) -> Iterator[Path]:
    """Write files into a folder all at once.

    A folder that can be renamed changes in one step. The working directory of this process and
    a mount point cannot: there the files are renamed one by one, each of them whole.

    Args:
        target: The folder; made when missing.
        replaces: Tells which files of the folder go even if no new file has their name.
        resume: Says what is being written, in 64 letters and digits at most. What a killed
            attempt at just the same has left is then given to the body; see `Journal`.

    Yields:
        The temporary folder to write into. If the body raises, the target stays as it was.

    Raises:
        CheckpointError: The folder cannot be written: no room, no rights, not a folder.
    """
    in_place = False
    try:
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(target))
        in_place = target.is_dir() and not _can_be_renamed(target)
        _sweep(target, f"{_MARK}{resume}")
        with _temporary_folder(target, in_place, resume) as temporary:
            yield temporary
            _commit(temporary, target, replaces, in_place)
    except OSError as error:
        kept = "" if in_place else "; what was there before is unchanged"
        raise CheckpointError(
            f"{target}: could not be saved: {error.strerror or error}{kept}"
        ) from error


def _can_be_renamed(folder: Path) -> bool:
    here = Path.cwd()
    if folder == here or folder in here.parents or os.path.ismount(folder):
        return False
    return os.access(folder.parent, os.W_OK | os.X_OK)


@contextlib.contextmanager
def _temporary_folder(target: Path, in_place: bool, resume: str | None) -> Iterator[Path]:
    def named(end: str) -> Path:
        name = f"{_MARK}{end}"
        return target / name if in_place else target.parent / f".{target.name}{name}"

    # The lock dies with the process: whoever can take it knows that the owner is gone.
    temporary, lock = None, None
    if resume is not None:
        temporary = named(resume)
        temporary.mkdir(exist_ok=True)
        lock = _lock(temporary)
    if lock is None or temporary is None:  # somebody is at the same right now, or nobody can tell
        temporary = named(secrets.token_hex(4))
        temporary.mkdir()
        lock = _lock(temporary)
    try:
        yield temporary
    finally:
        # After an exchange this name is the old folder.
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None when somebody else has it or the system has no such locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it before may have moved the folder to its place meanwhile.
        if os.fstat(descriptor).st_ino == os.stat(folder).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _sweep(target: Path, kept: str) -> None:
    """Clear away what earlier, killed saves of this folder have left, but for that of a name."""
    for old in sorted(target.parent.glob(f".{_escaped(target.name)}{_OLD_MARK}*")):
        # Killed between the two renames of a system without exchange: this is the checkpoint.
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
    for leftover in leftovers(target):
        if leftover.name.endswith(kept):
            continue
        lock = _lock(leftover)
        if lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def leftovers(target: Path) -> list[Path]:
    """Return the temporary folders of saves of a folder, under way or killed."""
    beside = target.parent.glob(f".{_escaped(target.name)}{_MARK}*")
    inside = target.glob(f"{_MARK}*")
    return sorted([*beside, *inside])


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)


def _commit(temporary: Path, target: Path, replaces: Callable[[str], bool], in_place: bool) -> None:
    new = sorted(set(os.listdir(temporary)) - {JOURNAL})
    for name in new:
        _sync_all(temporary / name)
    # Only now: up to here another attempt could have gone on.
    (temporary / JOURNAL).unlink(missing_ok=True)
    if in_place:
        _replace_one_by_one(temporary, target, new, replaces)
        return
    if not target.exists():
        _sync(temporary)
        os.rename(temporary, target)
    else:
        _keep_others(temporary, target, set(new), replaces)
        shutil.copystat(target, temporary)
        _sync(temporary)
        try:
            _swap(temporary, target)
        except OSError:
            # Some folders only turn out now to be unmovable, such as those of a container image.
            _replace_one_by_one(temporary, target, new, replaces)
    _sync(target.parent)


def _keep_others(
    temporary: Path, target: Path, new: set[str], replaces: Callable[[str], bool]
) -> None:
    """Give the new folder the files of the old one that the save does not concern."""
    for entry in os.scandir(target):
        if entry.name in new or replaces(entry.name) or entry.name.startswith(_MARK):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.copytree(
                entry.path, temporary / entry.name, symlinks=True, copy_function=_link_or_copy
            )
        else:
            _link_or_copy(entry.path, temporary / entry.name)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; afterwards the old folder has the name `new`."""
    if _exchange(new, target):
        return
    # Not atomic: a kill between the renames leaves no target; `_sweep` puts it back.
    old = target.parent / f".{target.name}{_OLD_MARK}{secrets.token_hex(4)}"
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    done = renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return done == 0


def _replace_one_by_one(
    temporary: Path, target: Path, new: list[str], replaces: Callable[[str], bool]
) -> None:
    for name in sorted(new, key=lambda name: (name.endswith(_LAST), name)):
        os.replace(temporary / name, target / name)
    for entry in list(os.scandir(target)):
        if replaces(entry.name) and entry.name not in new and entry.is_file():
            os.unlink(entry.path)
    _sync(target)


def _sync_all(path: Path) -> None:
    """Force a file, or a folder with all that is in it, to the disk."""
    if path.is_dir() and not path.is_symlink():
        for name in sorted(os.listdir(path)):
            _sync_all(path / name)
    _sync(path)


def _sync(path: Path) -> None:
    """Force a file or folder to the disk; folders only where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # EINVAL: a file system without fsync for this kind of file.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
