"""facebookresearch/XLM: its checkpoints in, and back.

A file is a dict. ``model`` holds the weights of a language model, ``encoder`` and ``decoder`` those
of a translation model; beside them lie ``params``, all options of the run, and the dictionary as
``dico_word2id``. What else a training checkpoint has is the state of its training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import Kind, table_of
from xlmfam.conversion.formats.torch_file import StoredTensor, TorchFile
from xlmfam.conversion.originals.base import Original, Piece, PiecesSource
from xlmfam.conversion.originals.xlm_export import write_original
from xlmfam.conversion.originals.xlm_settings import Sizes, read_config, settings_of
from xlmfam.conversion.originals.xlm_words import tokenizer_of, words_of

LANGUAGE_MODEL, TRANSLATION = "XLMWithLMHeadModel", "XLMEncoderDecoder"
ENCODER, DECODER = "encoder", "decoder"
_PART_NAMES = ("model", ENCODER, DECODER)
_BESIDE = ("params", "dico_word2id", "dico_id2word", "dico_counts")
_PARALLEL = "module."  # what DistributedDataParallel puts before every name
_PREDICTION = "pred_layer."
_MEMORIES = "memories."

__all__ = ["matches", "open_original", "write_original"]

Tensors = dict[str, StoredTensor]


def matches(value: Any) -> bool:
    """Whether a file holds a checkpoint of this release."""
    return (
        isinstance(value, Mapping)
        and any(name in value for name in _PART_NAMES)
        and any(name in value for name in _BESIDE)
    )


def open_original(file: TorchFile) -> Original:
    """Return the checkpoint of an open file.

    Args:
        file: The file, which `matches`.

    Raises:
        CheckpointError: It is damaged, or of a model that XLM's classes cannot be.
        ConfigError: Its settings cannot describe a model.
    """
    parts = _parts(file)
    head = LANGUAGE_MODEL if "model" in parts else TRANSLATION
    first = next(iter(parts.values()))
    settings = settings_of(file.value.get("params"), file.path)
    for name, tensors in parts.items():
        _refuse_memories(name, tensors, file.path)
    notes: list[str] = []
    sizes = _sizes(first, sum(map(len, parts.values())), file)
    config = read_config(settings, sizes, head == TRANSLATION, notes)
    words = words_of(file.value, config.vocab_size, file.path, notes)
    files = tokenizer_of(words, config, file.path.parent, notes)
    pieces, dropped = _pieces(file, parts, config, head)
    return Original(
        release="xlm",
        config=config,
        head=head,
        source=PiecesSource(file.path, pieces, file.close),
        dropped={**dropped, **_training_state(file.value)},
        tokenizer_files=files,
        notes=notes,
    )


def _parts(file: TorchFile) -> dict[str, Tensors]:
    """Return the weights of each part, by their names without what training put before."""
    names = [name for name in _PART_NAMES if name in file.value]
    if names not in (["model"], [ENCODER, DECODER]):
        raise CheckpointError(
            f"{file.path}: has {' and '.join(names)}; a checkpoint of XLM has a model, or an "
            "encoder and a decoder"
        )
    return {name: _tensors(name, file.value[name], file.path) for name in names}


def _tensors(part: str, state: Any, path: Path) -> Tensors:
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: damaged: {part} holds no weights")
    for name, value in state.items():
        if not isinstance(value, StoredTensor):
            raise CheckpointError(f"{path}: {name!r} of {part} is no tensor")
    while all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return dict(state)


def _refuse_memories(part: str, tensors: Tensors, path: Path) -> None:
    found = sorted(name for name in tensors if name.startswith(_MEMORIES))
    if found:
        raise CheckpointError(
            f"{path}: {part} has product-key memories (use_memory; {found[0]}, ...), which XLM's "
            "classes do not have"
        )


def _sizes(tensors: Tensors, count: int, file: TorchFile) -> Sizes:
    """What the weights themselves say about the model."""
    tokens, positions, languages = _embeddings()
    for name in (tokens, positions):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise CheckpointError(f"{file.path}: has no table {name}, which every XLM has")
        file.require(tensors[name])  # so that sizes are no larger than the file
    return Sizes(
        vocabulary=tensors[tokens].shape[0],
        width=tensors[tokens].shape[1],
        positions=tensors[positions].shape[0],
        has_languages=languages in tensors,
        tensors=count,
    )


def _embeddings() -> tuple[str, str, str]:
    """Return the names of the tables of tokens, positions and languages: by their sizes."""
    sizes: dict[str, Any] = {"vocab_size": 11, "max_position_embeddings": 12, "n_langs": 13}
    table = table_of(XLMConfig.model_type)
    parameters = table.expand(XLMConfig(emb_dim=2, n_heads=1, n_layers=1, **sizes), table.base)
    by_rows = {p.shape[0]: name for name, p in parameters.items() if p.kind is Kind.EMBEDDING}
    tokens, positions, languages = (by_rows[rows] for rows in sizes.values())
    return tokens, positions, languages


def _pieces(
    file: TorchFile, parts: Mapping[str, Tensors], config: XLMConfig, head: str
) -> tuple[dict[str, Piece], dict[str, str]]:
    """Return the parameters by our names, and what is left out with the reason."""
    table = table_of(config.model_type)
    known = table.expand(config, head)
    pieces: dict[str, Piece] = {}
    dropped: dict[str, str] = {}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            stored_as = f"{part}.{name}"
            if part == ENCODER and name.startswith(_PREDICTION) and f"{DECODER}.{name}" in known:
                dropped[stored_as] = "the encoder's own head is not used to translate"
                continue
            inner = f"{table.prefix}.{name}" if part == "model" else stored_as
            ours = inner if inner in known or part != "model" else name
            read = partial(file.read, tensor)
            pieces[ours] = Piece(stored_as, tensor.spec, read, read if tensor.shape else None)
    return pieces, dropped


def _training_state(value: Mapping[str, Any]) -> dict[str, str]:
    """What a training checkpoint has besides a model."""
    return {
        str(name)[:80]: "state of the training"
        for name in value
        if name not in (*_PART_NAMES, *_BESIDE)
    }
