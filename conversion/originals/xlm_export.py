"""Our XLM as a file that facebookresearch/XLM reads."""

from __future__ import annotations

from xlmfam.common.checkpoints.models import ParameterReader
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.logging import get_logger
from xlmfam.common.parameters import Parameter, table_of
from xlmfam.conversion.formats.torch_writer import Tensor, write_torch_file
from xlmfam.conversion.originals.xlm_settings import why_not_original, write_settings
from xlmfam.conversion.originals.xlm_words import (
    CODES,
    MERGES,
    VOCABULARY,
    WORDS,
    codes_file,
    counts_of,
    unnamed_words,
    vocab_file,
    words_of_vocabulary,
)
from xlmfam.conversion.streaming import Reading
from xlmfam.conversion.targets import Work

FILE_NAME = "model.pth"
_HEADS = {"XLMWithLMHeadModel": ("model",), "XLMEncoderDecoder": ("encoder", "decoder")}
_POSITIONS = 512  # the original has this number in its code
_FEWEST_WORDS = 14  # the special ones

logger = get_logger(__name__)


def write_original(work: Work) -> None:
    """Write ``model.pth``, and ``codes`` and ``vocab`` where there is a tokenizer.

    The original reads the file with PyTorch 1.6 or later; nothing of it is needed to write it.

    Args:
        work: What to write and where.

    Raises:
        CheckpointError: The original has no such model or dictionary.
    """
    config, head = work.config, work.head.partition("(")[0]
    if head not in _HEADS:
        raise CheckpointError(f"the original code has no {head}; it reads {', '.join(_HEADS)}")
    assert isinstance(config, XLMConfig)
    reason = why_not_original(config)
    if reason is None and config.vocab_size < _FEWEST_WORDS:
        reason = f"vocab_size is {config.vocab_size}; it has {_FEWEST_WORDS} special words alone"
    if reason is not None:
        raise CheckpointError(f"the original code cannot have this model: {reason}")
    words = _words(work)
    content = {
        **_weights(work, _HEADS[head]),
        "dico_id2word": dict(enumerate(words)),
        "dico_word2id": {word: number for number, word in enumerate(words)},
        "dico_counts": counts_of(words),
        "params": write_settings(config, head == "XLMEncoderDecoder"),
    }
    if config.max_position_embeddings != _POSITIONS:
        logger.warning(
            "%s positions: set N_MAX_POSITIONS, %s in the original's code, to as many to read "
            "this file",
            config.max_position_embeddings,
            _POSITIONS,
        )
    write_torch_file(work.folder / FILE_NAME, content, work.progress)


def _words(work: Work) -> list[str]:
    """Return the dictionary, and write the files of the tokenizer."""
    rows = work.config.vocab_size
    if VOCABULARY not in work.tokenizer_files:
        logger.warning("no tokenizer: the words of the dictionary are made up")
        return unnamed_words(rows)
    words = words_of_vocabulary(work.tokenizer_files[VOCABULARY], rows)
    (work.folder / WORDS).write_bytes(vocab_file(words))
    if MERGES in work.tokenizer_files:
        (work.folder / CODES).write_bytes(codes_file(work.tokenizer_files[MERGES]))
    return words


def _weights(work: Work, parts: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each part by the original's names; shared ones are one tensor."""
    prefix = table_of(work.config.model_type).prefix + "."
    tensors: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    full = {p.full_name: p for p in work.reader.parameters.values()}
    for parameter in work.reader.parameters.values():
        origin = full[parameter.tied_to] if parameter.tied_to else parameter
        if origin.name not in tensors:
            tensors[origin.name] = _tensor(work.reader, origin)
        part, _, rest = parameter.full_name.partition(".")
        if parts == ("model",):
            part, rest = "model", parameter.full_name.removeprefix(prefix)
        states[part][rest] = tensors[origin.name]
    if "encoder" in states:
        _add_unused_head(states["encoder"], states["decoder"])
    return states


def _tensor(reader: ParameterReader, parameter: Parameter) -> Tensor:
    stored = reader.plan.sources[parameter.name]
    reading = Reading(reader.source, stored, parameter, reader.dtype)
    return Tensor(reading.spec(reading.is_turned), reading.canonical)


def _add_unused_head(encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> None:
    """Give the encoder the prediction layer that the original builds and does not use.

    Where it shares its weight with the embedding, that is the encoder's own.
    """
    shared = table_of("xlm").tokens.partition(".")[2]
    for name, tensor in decoder.items():
        if name.startswith("pred_layer."):
            encoder[name] = encoder[shared] if tensor is decoder[shared] else tensor
