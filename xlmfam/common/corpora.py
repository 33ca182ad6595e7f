"""Long text for language models: streams, sentences and corpora, as NumPy arrays.

Transformer-XL is trained on segments that follow each other, so that the memory of one is what
stands before the next: row ``i`` of a batch goes on where row ``i`` of the batch before ended. An
iterator here yields ``(data, target, length)``, int64 arrays ``(batch, length)`` that every backend
takes. ``target`` is ``data`` one token on, for losses of one's own; the models of this package
move their ``labels`` by one themselves, and so take ``labels=data``.

    corpus = get_lm_corpus("wikitext-103", "wt103")
    for data, target, length in corpus.get_iterator("train", 4, 128):
        output = model(torch.from_numpy(data), labels=torch.from_numpy(data), mems=mems)
        mems = output.mems

Every ``for`` begins anew; the last segment may be shorter. ``fit`` of Keras wants equal lengths and
hands no memory on:

    segments = corpus.get_iterator("train", 4, 128)
    rows = np.concatenate([data for data, _, length in segments if length == 128])
    model.fit(rows, rows, batch_size=4, epochs=3)

Where it departs from transformers 4.37.2, on purpose:

- Lines end with ``<eos>``, and sentences of the One Billion Word benchmark have ``<S>`` at both
  ends, as in the original release; there they have neither.
- `get_lm_corpus` works, and reads text as the paper does.
- The training text of ``lm1b`` is found, and its words are counted.
- A corpus that is unknown or has no text is refused with a ``ValueError``.
- Sentences with nothing to predict are passed over; there an empty one fails.
- Corpora are saved as safetensors, not pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.errors import CheckpointError, XlmfamError
from xlmfam.common.tokenizers.files import prepare_folder, write_atomically
from xlmfam.common.tokenizers.transfo_xl import SENTENCE_END, TransfoXLTokenizer

Batch = tuple[np.ndarray, np.ndarray, int]

SPLITS = ("train", "valid", "test")
# Lines of some corpora get an end token, characters have none, and sentences come in any order.
_ENDED = ("wt103", "wt2", "ptb")
_ENDLESS = ("enwik8", "text8")
_SENTENCES = "lm1b"
DATASETS = (*_ENDED, *_ENDLESS, _SENTENCES)
_COUNTS_TRAIN_ONLY = ("wt103", _SENTENCES)
_LM1B_TRAIN = (
    "1-billion-word-language-modeling-benchmark-r13output/"
    "training-monolingual.tokenized.shuffled/news.en-*"
)
CORPUS_FILE = "corpus.safetensors"
_NOTHING = -1


def _check_sizes(bsz: Any, bptt: Any, ext_len: Any, device: Any) -> int:
    for name, value, least in (("bsz", bsz, 1), ("bptt", bptt, 1), ("ext_len", ext_len or 0, 0)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise XlmfamError(f"{name} is {value!r}; it may be a number from {least}")
    if device is not None and str(device) != "cpu":
        raise XlmfamError(
            f"device is {device!r}; batches are NumPy arrays, which a framework moves: "
            "torch.from_numpy(data).to(device)"
        )
    return int(ext_len or 0)


class LMOrderedIterator:
    """Cuts one long text into rows, and reads them side by side.

    Args:
        data: Ids ``(tokens,)``; those that fill no row are left out.
        bsz: Number of rows.
        bptt: Length of a segment.
        device: ``"cpu"``, as arrays are; for calls written for transformers.
        ext_len: So many tokens before a segment are repeated at the beginning of ``data``.
        generator: Draws varying lengths; NumPy's global generator where it is ``None``.
    """

    def __init__(
        self,
        data: Any,
        bsz: int,
        bptt: int,
        device: Any = None,
        ext_len: int | None = None,
        generator: Any = None,
    ):
        self.ext_len = _check_sizes(bsz, bptt, ext_len, device)
        self.bsz, self.bptt = bsz, bptt
        self.generator = np.random if generator is None else generator
        ids = np.asarray(data, np.int64)
        if ids.ndim != 1:
            raise XlmfamError(f"data has the shape {ids.shape}; it may have one axis")
        self.n_step = len(ids) // bsz
        self.data = ids[: self.n_step * bsz].reshape(bsz, self.n_step)

    def __len__(self) -> int:
        """The number of batches."""
        return -(-max(0, self.n_step - 1) // self.bptt)

    @property
    def n_batch(self) -> int:
        """The same as ``len``."""
        return len(self)

    def get_batch(self, i: int, bptt: int | None = None) -> Batch:
        """Return the segment that starts at a place.

        Args:
            i: The place in a row.
            bptt: The length of the segment; the iterator's own where it is ``None``.

        Returns:
            Data ``(batch, length)``, longer by what ``ext_len`` repeats; targets
            ``(batch, length)``; and the length.
        """
        length = min(bptt or self.bptt, self.n_step - 1 - i)
        start, end = max(0, i - self.ext_len), i + length
        return self.data[:, start:end].copy(), self.data[:, i + 1 : end + 1].copy(), length

    def get_fixlen_iter(self, start: int = 0) -> Iterator[Batch]:
        """Yield segments of the same length, the last one perhaps shorter."""
        for place in range(start, self.n_step - 1, self.bptt):
            yield self.get_batch(place)

    def get_varlen_iter(
        self, start: int = 0, std: float = 5, min_len: int = 5, max_deviation: float = 3
    ) -> Iterator[Batch]:
        """Yield segments of lengths drawn about ``bptt``, one in twenty about half of it.

        Args:
            start: Where to begin in the rows.
            std: Standard deviation of the lengths.
            min_len: The shortest.
            max_deviation: The longest is so many standard deviations above ``bptt``.
        """
        longest = self.bptt + max_deviation * std
        while start < self.n_step - 1:
            mean = self.bptt if self.generator.random() < 0.95 else self.bptt / 2
            drawn = max(min_len, int(self.generator.normal(mean, std)))
            batch = self.get_batch(start, int(min(longest, drawn)))
            start += batch[2]
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.get_fixlen_iter()


class LMShuffledIterator:
    """Fills rows with sentences, one after the other, whichever row ends first.

    The last batch, if sentences do not fill it, is left out. Sentences of less than two tokens,
    in which nothing can be predicted, are passed over.

    Args:
        data: Sentences: ids ``(tokens,)`` each.
        bsz: Number of rows.
        bptt: Length of a segment.
        device: ``"cpu"``, as arrays are; for calls written for transformers.
        ext_len: So many tokens before a segment are repeated at the beginning of ``data``.
        shuffle: Take the sentences in another order each time.
        generator: Draws the order; NumPy's global generator where it is ``None``.
    """

    def __init__(
        self,
        data: Sequence[Any],
        bsz: int,
        bptt: int,
        device: Any = None,
        ext_len: int | None = None,
        shuffle: bool = False,
        generator: Any = None,
    ):
        self.ext_len = _check_sizes(bsz, bptt, ext_len, device)
        self.data = data
        self.bsz, self.bptt, self.shuffle = bsz, bptt, shuffle
        self.generator = np.random if generator is None else generator

    def get_sent_stream(self) -> Iterator[np.ndarray]:
        """Yield the sentences in their order, or in one that is drawn."""
        order = range(len(self.data))
        for place in self.generator.permutation(len(self.data)) if self.shuffle else order:
            yield np.asarray(self.data[place], np.int64)

    def stream_iterator(self, sent_stream: Iterable[Any]) -> Iterator[Batch]:
        """Yield the batches that sentences fill.

        Args:
            sent_stream: Sentences, ids ``(tokens,)`` each.
        """
        sentences = iter(sent_stream)
        rests: list[np.ndarray] = [np.zeros(0, np.int64)] * self.bsz
        before = np.zeros((self.bsz, 0), np.int64)
        while True:
            data, target = (np.full((self.bsz, self.bptt), _NOTHING) for _ in range(2))
            for row in range(self.bsz):
                rest = self._fill(data[row], target[row], rests[row], sentences)
                if rest is None:
                    return
                rests[row] = rest
            extended = np.concatenate([before, data], axis=1)
            before = extended[:, max(0, extended.shape[1] - self.ext_len) :]
            yield extended, target, self.bptt

    @staticmethod
    def _fill(
        data: np.ndarray, target: np.ndarray, rest: np.ndarray, sentences: Iterator[Any]
    ) -> np.ndarray | None:
        """Fill one row and return the rest of its last sentence, ``None`` at the end of all."""
        filled = 0
        while filled < len(data):
            while len(rest) < 2:
                following = next(sentences, None)
                if following is None:
                    return None
                rest = np.asarray(following, np.int64)
            taken = min(len(rest) - 1, len(data) - filled)
            data[filled : filled + taken] = rest[:taken]
            target[filled : filled + taken] = rest[1 : taken + 1]
            rest, filled = rest[taken:], filled + taken
        return rest

    def __iter__(self) -> Iterator[Batch]:
        return self.stream_iterator(self.get_sent_stream())


class LMMultiFileIterator(LMShuffledIterator):
    """Reads files one after the other, each as `LMShuffledIterator` reads its sentences.

    Args:
        paths: Text files, a sentence in each line.
        vocab: The tokenizer.
        bsz: Number of rows.
        bptt: Length of a segment.
        device: ``"cpu"``, as arrays are; for calls written for transformers.
        ext_len: So many tokens before a segment are repeated at the beginning of ``data``.
        shuffle: Take files, and sentences within a file, in another order each time.
        generator: Draws the order; NumPy's global generator where it is ``None``.
        ends: What stands around a sentence, as arguments of ``encode_file``. By default ``<S>`` at
            both ends if the vocabulary has it, and otherwise the end token.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        vocab: Any,
        bsz: int,
        bptt: int,
        device: Any = None,
        ext_len: int | None = None,
        shuffle: bool = False,
        generator: Any = None,
        ends: dict[str, bool] | None = None,
    ):
        super().__init__([], bsz, bptt, device, ext_len, shuffle, generator)
        self.paths, self.vocab = list(paths), vocab
        self.ends = _sentence_ends(vocab) if ends is None else ends

    def _sentences_of(self, path: Any) -> list[np.ndarray]:
        sentences = self.vocab.encode_file(path, **self.ends)
        if not self.shuffle:
            return sentences
        return [sentences[place] for place in self.generator.permutation(len(sentences))]

    def __iter__(self) -> Iterator[Batch]:
        order = range(len(self.paths))
        for place in self.generator.permutation(len(self.paths)) if self.shuffle else order:
            yield from self.stream_iterator(self._sentences_of(self.paths[place]))


def _sentence_ends(vocab: Any) -> dict[str, bool]:
    double = SENTENCE_END in vocab.get_vocab()
    return {"add_eos": not double, "add_double_eos": double}


class TransfoXLCorpus:
    """Three texts, ``train``, ``valid`` and ``test``, and the vocabulary that they have.

    Args:
        *args: Of `TransfoXLTokenizer`.
        vocab: A tokenizer to use instead; its vocabulary stays as it is.
        **kwargs: Of `TransfoXLTokenizer`.
    """

    def __init__(self, *args: Any, vocab: Any = None, **kwargs: Any):
        if vocab is not None and (args or kwargs):
            raise XlmfamError("vocab is given, and arguments for another tokenizer besides")
        self.vocab = TransfoXLTokenizer(*args, **kwargs) if vocab is None else vocab
        self.dataset: str | None = None
        # Ids (tokens,); of lm1b sentences, and for its training text the paths of files.
        self.train: Any = None
        self.valid: Any = None
        self.test: Any = None

    def build_corpus(self, path: str | os.PathLike[str], dataset: str) -> None:
        """Read the texts of a folder.

        Args:
            path: The folder, with ``train.txt``, ``valid.txt`` and ``test.txt``; ``lm1b`` has its
                training text in the folders of the original release, or in ``train.txt``.
            dataset: ``wt103``, ``wt2`` or ``ptb``, whose lines end with the end token; ``enwik8``
                or ``text8``, whose do not; or ``lm1b``, of sentences in any order.

        Raises:
            XlmfamError: The kind is another one, or a file is missing.
        """
        if dataset not in DATASETS:
            raise XlmfamError(f"dataset is {dataset!r}; it may be {', '.join(DATASETS)}")
        folder = Path(path)
        texts = {split: [folder / f"{split}.txt"] for split in SPLITS}
        if dataset == _SENTENCES:
            texts["train"] = sorted(folder.glob(_LM1B_TRAIN)) or texts["train"]
        missing = [str(path) for paths in texts.values() for path in paths if not path.is_file()]
        if missing:
            raise XlmfamError(f"path is {folder}, which has no {', no '.join(missing)}")
        if not self.vocab.vocab_size:
            counted = SPLITS[:1] if dataset in _COUNTS_TRAIN_ONLY else SPLITS
            for path in [path for split in counted for path in texts[split]]:
                self.vocab.count_sents(self.vocab.lines_of_tokens(path, verbose=True))
            self.vocab.build_vocab()
        self.dataset = dataset
        ends = {"add_eos": dataset in _ENDED}
        if dataset == _SENTENCES:
            ends = _sentence_ends(self.vocab)
            self.train = [str(path) for path in texts["train"]]
        for split in SPLITS[dataset == _SENTENCES :]:
            ids = self.vocab.encode_file(
                texts[split][0], ordered=dataset != _SENTENCES, verbose=True, **ends
            )
            setattr(self, split, ids)

    def get_iterator(self, split: str, *args: Any, **kwargs: Any) -> Any:
        """Return the iterator of a split.

        Args:
            split: ``train``, ``valid`` or ``test``.
            *args: ``bsz``, ``bptt``, and what else the iterator takes.
            **kwargs: The same.
        """
        if split not in SPLITS:
            raise XlmfamError(f"split is {split!r}; it may be {', '.join(SPLITS)}")
        data = getattr(self, split)
        if data is None:
            raise XlmfamError("the corpus has no texts: build_corpus reads them")
        if self.dataset != _SENTENCES:
            return LMOrderedIterator(data, *args, **kwargs)
        if split == "train":
            return LMMultiFileIterator(data, self.vocab, *args, **{"shuffle": True, **kwargs})
        return LMShuffledIterator(data, *args, **kwargs)

    # -- files --------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the vocabulary and the ids, so that texts need be read only once.

        Args:
            save_directory: The folder; it is created where it is missing.
        """
        from safetensors.numpy import save

        if self.dataset is None:
            raise XlmfamError("the corpus has no texts to save: build_corpus reads them")
        arrays: dict[str, np.ndarray] = {}
        facts = {"dataset": self.dataset}
        for split in SPLITS:
            data = getattr(self, split)
            if isinstance(data, np.ndarray):
                arrays[split] = data
            elif split == "train":
                facts[split] = json.dumps(data)
            else:
                arrays[split] = np.concatenate([*data, np.zeros(0, np.int64)])
                arrays[f"{split}.lengths"] = np.array([len(row) for row in data], np.int64)
        folder = prepare_folder(save_directory)
        self.vocab.save_pretrained(folder)
        write_atomically(folder / CORPUS_FILE, save(arrays, metadata=facts))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> TransfoXLCorpus:
        """Read what `save_pretrained` has written.

        Args:
            pretrained_model_name_or_path: The folder, or the id of a hub repository.
            **kwargs: Of ``TransfoXLTokenizer.from_pretrained``.

        Raises:
            CheckpointError: There is no corpus, or it is damaged.
        """
        from xlmfam.common.checkpoints.locate import resolve_file
        from xlmfam.common.tokenizers.files import take_location

        location = take_location(dict(kwargs))
        path = resolve_file(os.fspath(pretrained_model_name_or_path), CORPUS_FILE, **location)
        if path is None:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} has no {CORPUS_FILE}; a corpus.bin of "
                "transformers is not read: build_corpus makes the corpus of its texts"
            )
        vocab = TransfoXLTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        corpus = cls(vocab=vocab)
        corpus._read(path)
        return corpus

    def _read(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.dataset = facts["dataset"]
            for split in SPLITS:
                if f"{split}.lengths" in arrays:
                    ends = np.cumsum(arrays[f"{split}.lengths"])
                    setattr(self, split, np.split(arrays[split], ends)[:-1])
                else:
                    setattr(self, split, arrays[split] if split in arrays else _paths(facts[split]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged, or no corpus: {error}") from error


def _paths(text: str) -> list[str]:
    paths = json.loads(text)
    if not isinstance(paths, list):
        raise ValueError("its training files are no list")
    return paths


def get_lm_corpus(datadir: str | os.PathLike[str], dataset: str, **kwargs: Any) -> TransfoXLCorpus:
    """Return a corpus as the paper has it: text split where it has white space.

    Args:
        datadir: The folder; see `TransfoXLCorpus.build_corpus`.
        dataset: The name of the corpus.
        **kwargs: Of `TransfoXLTokenizer`, instead of the paper's.
    """
    options: dict[str, Any] = {"original_steps": True, "lower_case": dataset == "ptb"}
    if dataset in _ENDED:
        options["special"] = ["<eos>"]
    elif dataset == _SENTENCES:
        options["special"] = [SENTENCE_END, "<UNK>"]
        words = Path(datadir) / "1b_word_vocab.txt"
        if words.is_file():
            options["vocab_file"] = words
    corpus = TransfoXLCorpus(**{**options, **kwargs})
    corpus.build_corpus(datadir, dataset)
    return corpus
