"""What checkpoints of fairseq have in common: settings, names, dictionaries, and writing them.

A file holds its tensors under ``model`` and its settings under ``cfg``, or ``args`` in older
ones. The settings are a dict, omegaconf's objects or a namespace, one inside the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.configs import PretrainedConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import table_of
from xlmfam.common.pickles import Placeholder
from xlmfam.common.tokenizers.fairseq import FAIRSEQ_TOKENS, VOCAB_FILES_NAMES
from xlmfam.common.tokenizers.sentencepiece_model import SentencePieceModel
from xlmfam.conversion.formats.torch_file import StoredTensor, TorchFile, tensors_of
from xlmfam.conversion.formats.torch_writer import Namespace, Tensor, write_torch_file
from xlmfam.conversion.originals.base import Original, Piece, PiecesSource
from xlmfam.conversion.streaming import Reading
from xlmfam.conversion.targets import Work

# What fairseq calls a parameter of ours; ``None`` where it has none.
OriginalName = Callable[[str], str | None]

DICTIONARY = "dict.txt"
SENTENCEPIECE = VOCAB_FILES_NAMES["vocab_file"]
WEIGHTS = "model.pt"
# Fills a dictionary up to the size that its model has.
FILLING = "madeupword"
# The pieces that sentencepiece itself puts first; fairseq has its own tokens instead.
_OWN_PIECES = 3
_LARGEST_FILE = 2**28  # of a vocabulary; the public ones have 5 MB
_MOST_STEPS = 8  # from a setting to the one it refers to
_MOST_SHOWN = 20
_LARGEST = 2**24  # number of anything that settings count


def _value(node: Any) -> Any:
    """What omegaconf's wrapping of one setting holds."""
    if isinstance(node, Placeholder) and isinstance(node.state, Mapping) and "_val" in node.state:
        return node.state["_val"]
    return node


def _fields(node: Any) -> Mapping[str, Any]:
    """What a group of settings holds, whichever way it was stored."""
    node = _value(node)
    if isinstance(node, Placeholder):
        node = node.state
        if isinstance(node, Mapping) and isinstance(node.get("_content"), Mapping):
            node = node["_content"]
    return node if isinstance(node, Mapping) else {}


class Settings:
    """The settings of the model in a file.

    Args:
        path: The file, for messages.
        value: What it holds.
    """

    def __init__(self, path: Path, value: Mapping[str, Any]):
        self._path = path
        args = value.get("args")
        self._root = value.get("cfg") if args is None else args
        # Older files have one flat namespace for everything.
        self._model = _fields(self._root if args is not None else _fields(self._root).get("model"))
        if not self._model:
            raise CheckpointError(f"{path}: has no settings of a model (cfg or args)")

    def get(self, name: str) -> Any:
        """Return a setting, ``None`` where there is none."""
        value = _value(self._model.get(name))
        for _ in range(_MOST_STEPS):
            if not (isinstance(value, str) and value.startswith("${") and value.endswith("}")):
                return value
            node = self._root
            for step in value[2:-1].split("."):
                node = _fields(node).get(step)
            value = _value(node)
        return None

    def _wrong(self, name: str, wanted: str) -> CheckpointError:
        came = self.get(name)
        shown = (
            repr(came)[:80] if isinstance(came, str | int | float | None) else type(came).__name__
        )
        return CheckpointError(f"{self._path}: the setting {name} must be {wanted}, got {shown}")

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number that is not negative."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise self._wrong(name, "a number")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """Return a whole number above zero, of a size that models have."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise self._wrong(name, f"a whole number from 1 to {_LARGEST}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return whether something is switched on."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool | int):
            raise self._wrong(name, "true or false")
        return bool(value)

    def one_of(self, name: str, known: Mapping[str, str], default: str) -> str:
        """Return what a word means, of those that are known."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, str) or value not in known:
            raise self._wrong(name, f"one of {', '.join(known)}")
        return known[value]

    def architecture(self) -> str:
        """Return the name of the architecture, which says what settings are by default."""
        for name in ("_name", "arch"):
            if isinstance(self.get(name), str):
                return self.get(name)
        return ""


def weights_of(value: Any) -> dict[str, StoredTensor]:
    """Return the tensors of the model in a file by their names; none of anything else's."""
    return tensors_of(value.get("model")) if isinstance(value, Mapping) else {}


@dataclass
class Names:
    """The tensors of a file by the names of today's fairseq, and what becomes of them.

    Attributes:
        file: The file.
        tensors: Where each lies, and what the file calls it.
        dropped: Names in the file that no model needs, with the reason.
    """

    file: TorchFile
    tensors: dict[str, tuple[StoredTensor, str]]
    dropped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Sizes are taken from shapes, which must not promise more than the file has.
        for tensor, _ in self.tensors.values():
            self.file.require(tensor)

    def drop(self, matches: Callable[[str], bool], reason: str) -> None:
        """Leave out the names that match."""
        for name in [name for name in self.tensors if matches(name)]:
            self.dropped[self.tensors.pop(name)[1]] = reason

    def shape(self, name: str, dimensions: int = 2) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            CheckpointError: It is missing, or has other dimensions.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.file.path}: lacks {name}")
        shape = self.tensors[name][0].shape
        if len(shape) != dimensions:
            raise CheckpointError(f"{self.file.path}: {name} has the shape {shape}")
        return shape

    def layers(self, prefix: str) -> int:
        """Return how many layers there are: one more than the largest number in a name."""
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in self.tensors}
        found = [int(n) for n in numbers if n.isascii() and n.isdigit() and len(n) < 6]
        if not found or max(found) >= len(self.tensors):
            raise CheckpointError(f"{self.file.path}: lacks the layers {prefix}0 and so on")
        return max(found) + 1

    def pieces(
        self,
        config: PretrainedConfig,
        heads: Sequence[str],
        original: OriginalName,
        invented: Mapping[str, TensorSpec] | None = None,
    ) -> dict[str, Piece]:
        """Return the parameters of a class, and those of other classes that the file has.

        Args:
            config: The config.
            heads: The class, and others whose parameters may be there too.
            original: Says what fairseq calls a parameter, ``None`` where it has none.
            invented: Parameters of zeros, which fairseq does not have.

        Raises:
            CheckpointError: Listing all names that are missing and all that nobody knows.
        """
        pieces = {name: zeros(spec) for name, spec in (invented or {}).items()}
        table, missing = table_of(config.model_type), []
        left = dict(self.tensors)
        for head in heads:
            for parameter in table.expand(config, head).values():
                name = original(parameter.full_name)
                if name is None or parameter.full_name in pieces:
                    continue
                if name in left:
                    pieces[parameter.full_name] = _piece(self.file, *left.pop(name))
                elif parameter.tied_to is None and head == heads[0]:
                    missing.append(name)
        if missing or left:
            raise CheckpointError(self._describe(missing, left))
        return pieces

    def _describe(self, missing: list[str], left: Mapping[str, tuple[StoredTensor, str]]) -> str:
        lines = [f"missing: {name}" for name in missing]
        lines += [f"unexpected: {stored}" for _, stored in left.values()]
        more = len(lines) - _MOST_SHOWN
        shown = lines[:_MOST_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
        return f"{self.file.path}: not the names of this model:\n  " + "\n  ".join(shown)


def _piece(file: TorchFile, tensor: StoredTensor, stored_as: str) -> Piece:
    read = partial(file.read, tensor)
    return Piece(stored_as, tensor.spec, read, read if tensor.shape else None)


def zeros(spec: TensorSpec) -> Piece:
    """Return a parameter that fairseq does not have, and that is as if it were not there."""
    return Piece("(zeros)", spec, lambda: np.zeros(spec.shape, spec.dtype))


def finished(
    release: str,
    names: Names,
    config: PretrainedConfig,
    head: str,
    pieces: Mapping[str, Piece],
    tokenizer: str,
    notes: list[str],
) -> Original:
    """Put together what an importer gives, with the tokenizer from the files beside.

    Args:
        release: Which release it is.
        names: The names of the file.
        config: The config.
        head: The class.
        pieces: The parameters.
        tokenizer: Name of the tokenizer's class.
        notes: What the user should know; what there is to say about the tokenizer is added.
    """
    path = names.file.path
    return Original(
        release,
        config,
        head,
        PiecesSource(path, pieces, names.file.close),
        names.dropped,
        tokenizer_files(path.parent, tokenizer, config.vocab_size, notes),
        tuple(notes),
    )


# -- the vocabulary ---------------------------------------------------------------------------


def tokenizer_files(
    folder: Path, class_name: str, vocab_size: int, notes: list[str]
) -> dict[str, bytes]:
    """Return a tokenizer's files by name, made from the sentencepiece model beside a checkpoint.

    Args:
        folder: Where it lies, and ``dict.txt`` with the order of the ids.
        class_name: The tokenizer's class.
        vocab_size: How many ids the model has.
        notes: Why there is none is added here.

    Raises:
        CheckpointError: One of the files cannot be read.
    """
    model, dictionary = folder / SENTENCEPIECE, folder / DICTIONARY
    if not model.is_file():
        notes.append(f"no {SENTENCEPIECE} lies beside the checkpoint: there is no tokenizer")
        return {}
    _require_small(model)
    pieces = _pieces(model.read_bytes(), str(model))
    if dictionary.is_file():
        _require_small(dictionary)
        different = _first_difference(pieces, read_dictionary(dictionary))
        if different is not None:
            notes.append(f"{DICTIONARY} is not in the order of {SENTENCEPIECE}: {different}; a "
                         "tokenizer would give wrong ids and is left out")  # fmt: skip
            return {}
    if len(pieces) + len(FAIRSEQ_TOKENS) > vocab_size:
        notes.append(f"{SENTENCEPIECE} has more pieces than the model has words; a tokenizer "
                     "would give ids that it does not know and is left out")  # fmt: skip
        return {}
    import xlmfam

    with tempfile.TemporaryDirectory() as temporary:
        getattr(xlmfam, class_name)(model).save_pretrained(temporary)
        return {file.name: file.read_bytes() for file in sorted(Path(temporary).iterdir())}


def _require_small(path: Path) -> None:
    if path.stat().st_size > _LARGEST_FILE:
        raise CheckpointError(f"{path}: larger than any vocabulary")


def _pieces(content: bytes, name: str) -> list[str]:
    """The pieces that have ids of their own in fairseq, in their order."""
    model = SentencePieceModel.parse(content, name)
    return [piece.text for piece in model.pieces[_OWN_PIECES:]]


def read_dictionary(path: Path) -> list[str]:
    """Return the words of a ``dict.txt`` in their order, without fairseq's four.

    Raises:
        CheckpointError: It is not such a file.
    """
    words = []
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip().removesuffix(" #fairseq:overwrite")
                word, space, count = line.rpartition(" ")
                if not space or not count.isascii() or not count.isdigit():
                    raise CheckpointError(
                        f"{path}: line {number} is {line[:80]!r}, not a word and its count"
                    )
                words.append(word)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8: {error}") from error
    return words


def _first_difference(pieces: list[str], words: list[str]) -> str | None:
    """Say where words are not the pieces; what fills the dictionary up may follow them."""
    for number, (piece, word) in enumerate(zip(pieces, words, strict=False)):
        if piece != word:
            return f"the id {number + len(FAIRSEQ_TOKENS)} is {word[:40]!r} and {piece[:40]!r}"
    if len(words) < len(pieces):
        return f"it has {len(words)} words for {len(pieces)} pieces"
    for word in words[len(pieces) :]:
        if not word.lstrip("<").startswith((FILLING, "mask>")):
            return f"{word[:40]!r} is behind the pieces"
    return None


def dictionary_of(work: Work, size: int) -> Iterator[str]:
    """Yield the words of a ``dict.txt``: the tokenizer's pieces, filled up to a size.

    Args:
        work: May have a sentencepiece model.
        size: How many words.

    Raises:
        CheckpointError: The sentencepiece model cannot be read.
    """
    content = work.tokenizer_files.get(SENTENCEPIECE)
    pieces = [] if content is None else _pieces(content, SENTENCEPIECE)[:size]
    yield from pieces
    for number in range(size - len(pieces)):
        yield f"<{FILLING}{number}>"


# -- writing ----------------------------------------------------------------------------------


def require(config: PretrainedConfig, **wanted: Any) -> None:
    """Raise ``CheckpointError`` unless settings are the only ones that fairseq's models know."""
    for name, value in wanted.items():
        known = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in known:
            allowed = " or ".join(map(repr, known))
            raise CheckpointError(
                f"the config's {name} is {getattr(config, name)!r}; fairseq's model of this family "
                f"knows only {allowed}, so that it cannot be written for it"
            )


def parameters_to_write(work: Work) -> dict[str, Tensor]:
    """Return the parameters of a model by their full canonical names, shared ones once."""
    reader = work.reader
    found = {}
    for name, stored in reader.plan.sources.items():
        parameter = reader.parameters[name]
        reading = Reading(reader.source, stored, parameter, reader.dtype)
        found[parameter.full_name] = Tensor(reading.spec(reading.is_turned), reading.canonical)
    return found


def write_checkpoint(
    work: Work,
    model: dict[str, Any] | Namespace,
    task: dict[str, Any],
    tensors: dict[str, Tensor],
    words: int,
) -> None:
    """Write ``model.pt`` and ``dict.txt``.

    Args:
        work: Where to, and the tokenizer.
        model: The settings of the model.
        task: The settings of the task, which reads the dictionary.
        tensors: The tensors by fairseq's names.
        words: How many words the dictionary has.

    Raises:
        CheckpointError: There are no words, or the sentencepiece model cannot be read.
    """
    if words < 1:
        raise CheckpointError(f"vocab_size {work.config.vocab_size} leaves no room for a word")
    config = {**_SECTIONS, "model": model, "task": {"data": ".", **task}}
    value = {"args": None, "cfg": config, "model": tensors, **_BESIDE_THE_MODEL}
    write_torch_file(work.folder / WEIGHTS, value, work.progress)
    with open(work.folder / DICTIONARY, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{word} 1\n" for word in dictionary_of(work, words))


# fairseq asks for these too; nothing of them bears on what a model computes.
_BESIDE_THE_MODEL: dict[str, Any] = {
    "optimizer_history": [
        {
            "criterion_name": "CrossEntropyCriterion",
            "optimizer_name": "FairseqAdam",
            "lr_scheduler_state": {},
            "num_updates": 0,
        }
    ],
    "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    "task_state": {},
    "last_optimizer_state": None,
}


# Sections that must be there, if only for their defaults.
_SECTIONS: dict[str, Any] = {
    "common": {"tpu": False},
    "bpe": None,
    "tokenizer": None,
    "generation": {"beam": 5, "replace_unk": None, "print_alignment": None},
    "dataset": {"max_tokens": None, "batch_size": 1},
}
