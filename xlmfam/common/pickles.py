"""What a pickle holds, read without executing any of it.

An old ``vocab.pkl`` is a pickle and ``vocab.bin`` what ``torch.save`` makes of one: programs for a
small machine, some of whose instructions import and call whatever they name. The machine here has
no such instruction. Names become placeholders, and calls of them become placeholders too, but for
the containers of the standard library, which are empty or are what they are made of. Nothing in
this module imports, calls, hashes or compares what the file asks for, so the work is in proportion
to the size of the file; there is a limit to it and to the memory that it takes.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from xlmfam.common.errors import CheckpointError

# The public vocabularies have 10 MB, that of the One Billion Word corpus has 100.
LARGEST = 2**28
# That one takes 12 million instructions and not quite 1 GB.
_MOST_INSTRUCTIONS = 16_000_000
_MOST_MEMORY = 3 * 2**29
# About what an instruction makes us keep, besides its argument.
_CONTAINER, _NOTE, _PUSH = 160, 130, 40
# The list of an archive's entries; every tensor of a model has one of about 100 bytes.
_LARGEST_DIRECTORY = 2**24
# Older torch.save: a file of several pickles, this number the first and the object the fourth.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_MAPPINGS = ("OrderedDict", "Counter", "defaultdict", "dict")
_LISTS = ("list", "set", "frozenset", "tuple")
_MODULES = ("builtins", "__builtin__", "collections")


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, count: int = -1, /) -> bytes:
        """Return up to ``count`` bytes."""

    def readline(self) -> bytes:
        """Return a line."""


class Placeholder:
    """Stands for an object that is not made: an imported name, or what a call would give.

    Attributes:
        name: Module and name, for what the file imports.
        state: What the object would be filled with.
        made_by: What would be called to make it, itself a placeholder.
        arguments: What that would be called with.
    """

    __slots__ = ("arguments", "made_by", "name", "state")

    def __init__(
        self, name: tuple[Any, Any] | None = None, made_by: Any = None, arguments: Any = None
    ):
        self.name = name
        self.state: Any = None
        self.made_by = made_by
        self.arguments = arguments


def _made(function: Any, arguments: Any) -> Any:
    """Return what stands for the result of a call."""
    if not isinstance(function, Placeholder) or function.name is None:
        return Placeholder(None, function, arguments)
    module, name = function.name
    if not isinstance(module, str) or not isinstance(name, str) or module not in _MODULES:
        return Placeholder(None, function, arguments)
    if name not in _MAPPINGS and name not in _LISTS:
        return Placeholder(None, function, arguments)
    # Not a copy: many calls for one list would otherwise ask for any amount of memory.
    filled = isinstance(arguments, tuple) and arguments and isinstance(arguments[-1], (list, dict))
    if filled:
        return arguments[-1]
    return {} if name in _MAPPINGS else []


class _Instructions:
    """What the instructions of a pickle do here."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def made(self, function: Any, arguments: Any) -> Any:
        """Return what stands for the result of a call, which does not happen."""
        return _made(function, arguments)

    def kept_outside(self, key: Any) -> Any:
        """Return what stands for an object that the pickle does not hold itself."""
        return Placeholder(None, None, key)

    # -- the stack ----------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def pop_all(self, _: Any) -> None:
        self.since_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, number: Any) -> None:
        self.memo[len(self.memo) if number is None else int(number)] = self.stack[-1]

    def get(self, number: Any) -> None:
        self.stack.append(self.memo[int(number)])

    # -- containers ---------------------------------------------------------------------------

    def new_tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:]) if size else ()
        if len(items) < size:
            raise IndexError("a tuple of more than there is")
        del self.stack[len(self.stack) - size :]
        self.stack.append(items)

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def fill_pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            return
        for name, value in zip(items[::2], items[1::2], strict=True):
            # Words and settings are strings. Other keys could be made slow to hash or compare.
            if isinstance(name, str):
                target[name] = value

    def new_dict(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.fill_pairs(items)

    def set_item(self, _: Any) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        self.fill_pairs([name, value])

    # -- what would run code ------------------------------------------------------------------

    def named(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.stack.append(Placeholder((module, name)))

    def named_on_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        # Tuples within tuples take as long as the file likes to be compared or shown.
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        self.stack.append(Placeholder((module, name)))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.made(function, arguments))

    def call_with_names(self, _: Any) -> None:
        self.stack.pop()
        self.call(None)

    def call_since_mark(self, _: Any) -> None:
        self.since_mark()
        self.stack.append(Placeholder())

    def set_state(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Placeholder):
            target.state = state[0] if isinstance(state, tuple) and state else state

    def unknown(self, _: Any) -> None:
        self.stack.append(Placeholder())

    def outside(self, _: Any) -> None:
        self.stack.append(self.kept_outside(self.stack.pop()))

    def nothing(self, _: Any) -> None:
        pass


def _pushes(make: Callable[[], Any]) -> Callable[[_Instructions, Any], None]:
    return lambda machine, _: machine.push(make())


# By the names of pickletools. What is not here pushes its argument: numbers, strings and bytes.
_STEPS: dict[str, Callable[[_Instructions, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), _Instructions.nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Instructions.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Instructions.get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Instructions.call),
    **dict.fromkeys(("INST", "OBJ"), _Instructions.call_since_mark),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER"), _Instructions.unknown),
    "NONE": _pushes(lambda: None),
    "NEWTRUE": _pushes(lambda: True),
    "NEWFALSE": _pushes(lambda: False),
    "EMPTY_LIST": _pushes(list),
    "EMPTY_SET": _pushes(list),
    "EMPTY_DICT": _pushes(dict),
    "EMPTY_TUPLE": _pushes(tuple),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.new_tuple(1),
    "TUPLE2": lambda machine, _: machine.new_tuple(2),
    "TUPLE3": lambda machine, _: machine.new_tuple(3),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": _Instructions.new_dict,
    "APPEND": lambda machine, _: machine.fill([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.fill(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.fill(machine.since_mark()),
    "SETITEM": _Instructions.set_item,
    "SETITEMS": lambda machine, _: machine.fill_pairs(machine.since_mark()),
    "MARK": _Instructions.mark,
    "POP": _Instructions.pop,
    "POP_MARK": _Instructions.pop_all,
    "DUP": _Instructions.duplicate,
    "GLOBAL": _Instructions.named,
    "STACK_GLOBAL": _Instructions.named_on_stack,
    "NEWOBJ_EX": _Instructions.call_with_names,
    "BINPERSID": _Instructions.outside,
    "BUILD": _Instructions.set_state,
}


# What an instruction costs in memory, by its name.
_COSTS = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "MARK"), _NOTE),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET", "EMPTY_DICT", "LIST", "DICT"), _CONTAINER),
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"), _CONTAINER),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX"), _CONTAINER),
    **dict.fromkeys(("INST", "OBJ", "EXT1", "EXT2", "EXT4"), _CONTAINER),
    **dict.fromkeys(("PERSID", "BINPERSID", "NEXT_BUFFER"), _CONTAINER),
}


class Machine(_Instructions):
    """Runs pickles; a subclass may know more than containers (`made`, `kept_outside`)."""

    def run(self, stream: Stream) -> Any:
        """Return what the pickle at the stream's position holds; the position moves behind it."""
        steps, costs = _STEPS, _COSTS
        count, memory = _MOST_INSTRUCTIONS, _MOST_MEMORY
        for opcode, argument, _ in pickletools.genops(cast(Any, stream)):
            step = steps.get(opcode.name)
            memory -= costs.get(opcode.name, _PUSH)
            if argument is not None:
                memory -= sys.getsizeof(argument)
            count -= 1
            if count < 0 or memory < 0:
                raise ValueError("it has more in it than any vocabulary or model")
            if step is None:
                self.stack.append(argument)
            else:
                step(self, argument)
        return self.stack.pop()


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Return what a pickle, or a file of ``torch.save``, holds; nothing of it is executed.

    Args:
        path: The file.

    Returns:
        Numbers, strings, lists, tuples and dicts with strings as keys (other keys are left out);
        `Placeholder` for everything else.

    Raises:
        CheckpointError: The file is missing, damaged or larger than any vocabulary.
    """
    try:
        content = _content(Path(path))
    except (OSError, RuntimeError, *NO_ARCHIVE) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {str(error)[:200]}") from error
    stream = io.BytesIO(content)
    try:
        value = Machine().run(stream)
        if type(value) is int and value == TORCH_MAGIC:
            for _ in range(3):
                value = Machine().run(stream)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        # What is wrong may quote the file at any length.
        raise CheckpointError(f"{path} is damaged, or no pickle: {str(error)[:200]}") from error
    return value


# What zipfile raises for damaged archives, depending on where the damage is.
NO_ARCHIVE = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error)


class _Sparing(io.FileIO):
    """A file of which nothing large can be read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = _LARGEST_DIRECTORY + 1
        data = super().read(most if size is None or size < 0 else min(size, most)) or b""
        if len(data) > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("a list of more entries than any model has tensors")
        return data


def is_archive(path: Path) -> bool:
    """Whether a file is a ZIP archive whose list of entries can be read.

    Raises:
        OSError: The file cannot be read.
        zipfile.BadZipFile: It is damaged; see `NO_ARCHIVE` for more that may be raised.
    """
    with _Sparing(path) as file:
        if not zipfile.is_zipfile(file):
            return False
        zipfile.ZipFile(file).close()
    return True


def _content(path: Path) -> bytes:
    """Return the bytes of the pickle in a file."""
    size = path.stat().st_size
    if size > LARGEST:
        raise CheckpointError(f"{path} has {size} bytes; a vocabulary has {LARGEST} at most")
    if not is_archive(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if Path(e.filename).name == "data.pkl"]
        if len(entries) != 1:
            raise CheckpointError(f"{path} is an archive without one data.pkl")
        # torch never compresses, and what is compressed can unpack to any size.
        if entries[0].compress_type != zipfile.ZIP_STORED or entries[0].file_size > size:
            raise CheckpointError(f"{path} is a compressed archive, not a file of torch.save")
        return archive.read(entries[0])
