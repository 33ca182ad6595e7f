"""kimiyoung/transformer-xl, PyTorch: its checkpoints in; and back, to both of its codes.

``model.pt`` is a whole pickled model; state dicts, and training checkpoints around them, are known
too. The names of the tensors are the canonical ones without the first part. The one difference
is in the softmax: the original counts its tail clusters from the end, so that with two of them or
more the rows of their weights and biases stand in the opposite order.

Flags that a state dict does not hold can be given in ``settings.json``; see `transfo_xl_flags`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.configs import TransfoXLConfig
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import table_of
from xlmfam.conversion.formats.torch_file import StoredTensor, TorchFile
from xlmfam.conversion.originals.base import Original, Piece, PiecesSource
from xlmfam.conversion.originals.transfo_xl_flags import Flags, divisor, given_flags, new_config
from xlmfam.conversion.originals.transfo_xl_module import Stored, stored_model
from xlmfam.conversion.originals.transfo_xl_words import find_words
from xlmfam.conversion.targets import Work

HEAD = "TransfoXLLMHeadModel"
# What `attn_type` is in models that are not the paper's.
_OTHER_ATTENTION = {
    1: "learned positions, as of Shaw et al.",
    2: "absolute sinusoids, as of Vaswani et al.",
    3: "absolute learned positions, as of Al-Rfou et al.",
}
# The tensors whose rows are tail clusters.
OF_TAILS = ("crit.cluster_weight", "crit.cluster_bias")
_BLOCK = 2**24  # values


def matches(value: Any) -> bool:
    """Whether a file holds a checkpoint of this release."""
    return stored_model(value) is not None


def open_original(file: TorchFile) -> Original:
    """Return the checkpoint of an open file.

    Args:
        file: One that `matches`.

    Raises:
        CheckpointError: It is damaged, or of a model that is not the paper's.
    """
    stored = stored_model(file.value)
    if stored is None:
        raise CheckpointError(f"{file.path}: holds no model of kimiyoung/transformer-xl")
    for tensor in stored.tensors.values():
        file.require(tensor)
    _require_the_papers(file.path, stored)
    flags = Flags(file.path, given_flags(file.path.parent), stored.flags)
    sizes = _Sizes(file.path, stored, flags)
    words = find_words(file.path.parent, sizes.vocab_size)
    config = new_config(
        file.path,
        **sizes.settings(),
        **flags.complete(sizes.settings()),
        **_ties(file, stored.tensors, sizes),
        layer_norm_epsilon=stored.flags.get("eps", 1e-5),
        eos_token_id=words.eos_token_id,
    )
    notes = [*flags.notes, *words.notes]
    if stored.flags.get("ext_len"):
        notes.append("ext_len, a context read twice, has no counterpart; mem_len has its place")
    return Original(
        release="transfo-xl",
        config=config,
        head=HEAD,
        source=PiecesSource(file.path, _pieces(file, stored.tensors), file.close),
        tokenizer_files=words.files,
        notes=notes,
    )


def _require_the_papers(path: Path, stored: Stored) -> None:
    """Raise ``CheckpointError`` for models with another attention or softmax."""
    kind = stored.flags.get("attn_type", 0)
    if "layers.0.dec_attn.q_net.weight" in stored.tensors:
        kind = 3 if "r_emb" in stored.tensors else 2
    elif "r_emb" in stored.tensors:
        kind = 1
    if kind != 0:
        name = _OTHER_ATTENTION.get(kind, "of no known kind") if type(kind) is int else "unknown"
        raise CheckpointError(
            f"{path}: attn_type is {str(kind)[:40]} ({name}); only 0, the attention of "
            "Transformer-XL, can be converted"
        )
    if "out_layer.weight" in stored.tensors:
        raise CheckpointError(
            f"{path}: was trained with a sampled softmax (sample_softmax); only the adaptive and "
            "the full one can be converted"
        )


class _Sizes:
    """What the shapes of the tensors say.

    Args:
        path: The file.
        stored: The model.
        flags: Its flags.

    Raises:
        CheckpointError: Tensors are missing, or have no sizes of a model.
    """

    def __init__(self, path: Path, stored: Stored, flags: Flags):
        self.path = path
        self._shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
        tables = self._counted(r"word_emb\.emb_layers\.(\d+)\.weight")
        shapes = [self._shape(f"word_emb.emb_layers.{i}.weight", 2) for i in range(tables)]
        self.rows, self.widths = [s[0] for s in shapes], [s[1] for s in shapes]
        self.vocab_size = sum(self.rows)
        self.d_model = self._shape("layers.0.pos_ff.CoreNet.0.weight", 2)[1]
        self.div_val = self._div_val(stored.flags.get("div_val"))
        self.cutoffs = self._cutoffs(flags)

    def _shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        shape = self._shapes.get(name)
        if shape is None or len(shape) != dimensions:
            raise CheckpointError(
                f"{self.path}: {name} has the shape {shape}, not one of {dimensions} dimensions"
                if shape is not None
                else f"{self.path}: lacks {name}"
            )
        return shape

    def _counted(self, pattern: str) -> int:
        """Return how many numbers there are in the names of a pattern."""
        found = {m[1] for m in map(re.compile(pattern).fullmatch, self._shapes) if m}
        if found != {str(number) for number in range(len(found))}:
            raise CheckpointError(
                f"{self.path}: names like {pattern} do not count up from 0: the file is not whole"
            )
        return len(found)

    def _div_val(self, said: Any) -> int:
        if type(said) is int:
            return said
        if len(self.widths) > 1:
            return divisor(self.path, self.widths)
        # One table is projected to its own width only where it is the first of such.
        own = "word_emb.emb_projs.0" in self._shapes and self.widths[0] == self.d_model
        return 2 if own else 1

    def _cutoffs(self, flags: Flags) -> list[int]:
        if len(self.rows) > 1:
            return [sum(self.rows[: place + 1]) for place in range(len(self.rows) - 1)]
        bias = self._shapes.get(OF_TAILS[1], (0,))
        return flags.cutoffs(self.vocab_size, bias[0] if len(bias) == 1 else 0)

    def settings(self) -> dict[str, Any]:
        """Return those settings of a config that are sizes."""
        heads, width = self._shape("r_w_bias", 2)
        return {
            "vocab_size": self.vocab_size,
            "cutoffs": self.cutoffs,
            "d_model": self.d_model,
            "d_embed": self.widths[0],
            "n_head": heads,
            "d_head": width,
            "d_inner": self._shape("layers.0.pos_ff.CoreNet.0.weight", 2)[0],
            "div_val": self.div_val,
            "n_layer": self._counted(r"layers\.(\d+)\.dec_attn\.qkv_net\.weight"),
            "untie_r": False,
        }


def _ties(file: TorchFile, tensors: Mapping[str, StoredTensor], sizes: _Sizes) -> dict[str, Any]:
    """Return which weights the softmax shares with the embedding."""

    def shared(place: int, kind: str, of: int) -> bool | None:
        leaf = ".weight" if kind == "layers" else ""
        one = tensors.get(f"word_emb.emb_{kind}.{of}{leaf}")
        other = tensors.get(f"crit.out_{kind}.{place}{leaf}")
        if one is None:
            return None
        return other is None or one == other or _equal(file, one, other)

    clusters = len(sizes.cutoffs) + 1
    tables = [shared(i, "layers", i) for i in range(len(sizes.rows))]
    first = 0 if sizes.div_val == 1 else None
    projs = [shared(i, "projs", i if first is None else first) for i in range(clusters)]
    # Where nothing is projected, nothing is shared; then as a new config has it.
    ties = [bool(place) if tie is None else tie for place, tie in enumerate(projs)]
    return {"tie_word_embeddings": all(tables), "tie_projs": ties}


def _equal(file: TorchFile, one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same values, as where a copy was saved of each."""
    if one.spec != other.spec or not one.shape:
        return False
    step = max(1, _BLOCK // max(1, one.shape[-1]))
    for start in range(0, one.shape[0], step):
        stop = min(start + step, one.shape[0])
        blocks = (file.read(tensor, start, stop) for tensor in (one, other))
        if len({np.ascontiguousarray(block).tobytes() for block in blocks}) > 1:
            return False
    return True


def _pieces(file: TorchFile, tensors: Mapping[str, StoredTensor]) -> dict[str, Piece]:
    """Return the parameters; those that nobody knows as well, for the table to refuse."""
    prefix, pieces = f"{table_of(TransfoXLConfig.model_type).prefix}.", {}
    for name, tensor in tensors.items():
        canonical = name if name.startswith("crit.") else prefix + name
        if name in OF_TAILS:
            pieces[canonical] = Piece(name, tensor.spec, _reversed(file, tensor))
        else:
            read = partial(file.read, tensor)
            pieces[canonical] = Piece(name, tensor.spec, read, read if tensor.shape else None)
    return pieces


def _reversed(file: TorchFile, tensor: StoredTensor) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(file.read(tensor)[::-1])


def write_original(work: Work) -> None:
    """Write what the original code reads, and the vocabulary as lines of words.

    The PyTorch code reads ``model.pt``. It has one pair of attention biases for all layers; where
    each layer has its own (``untie_r``), the TensorFlow code's ``model.ckpt-0`` is written.

    Args:
        work: A language model.

    Raises:
        CheckpointError: The original has no such model.
    """
    from xlmfam.conversion.originals.transfo_xl_export import write_model
    from xlmfam.conversion.originals.transfo_xl_tf1_export import write_checkpoint
    from xlmfam.conversion.originals.transfo_xl_words import write_words

    if work.head != HEAD:
        raise CheckpointError(f"{work.head}: the original has language models only, {HEAD}")
    config = work.config
    assert isinstance(config, TransfoXLConfig)
    (write_checkpoint if config.untie_r else write_model)(work)
    write_words(work.folder, work.tokenizer_files)
