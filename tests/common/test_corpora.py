"""Iterators over long text, and corpora, against what transformers 4.37.2 does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xlmfam import TransfoXLCorpus, TransfoXLTokenizer
from xlmfam.common.corpora import (
    DATASETS,
    SPLITS,
    LMMultiFileIterator,
    LMOrderedIterator,
    LMShuffledIterator,
    get_lm_corpus,
)
from xlmfam.common.errors import CheckpointError, XlmfamError

DATA = Path(__file__).resolve().parents[1] / "data" / "tokenizers" / "transfo_xl"
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))


def rows(kind, *absent):
    """The golden rows of a class; those that have one of some keys are left out."""
    found = [row for row in GOLDEN["iterators"] if row["class"] == kind]
    return [row for row in found if not set(absent) & set(row)]


def plain(batches):
    result = []
    for data, target, length in batches:
        assert (data.dtype, target.dtype) == (np.int64, np.int64)
        result.append([data.tolist(), target.tolist(), length])
    return result


def folder_with(folder, files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


# -- iterators -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", rows("LMOrderedIterator", "varlen"))
def test_ordered(row):
    iterator = LMOrderedIterator(np.arange(row["data"]), **row["arguments"])
    assert plain(iterator.get_fixlen_iter(row.get("start", 0))) == row["batches"]
    if "start" not in row:
        # Twice: every loop begins anew.
        assert plain(iterator) == plain(iterator) == row["batches"]
        assert len(iterator) == len(row["batches"])


@pytest.mark.parametrize("row", [r for r in rows("LMOrderedIterator") if "varlen" in r])
@pytest.mark.parametrize("own", [False, True])
def test_varying_lengths(row, own):
    generator = np.random.RandomState(row["seed"]) if own else None
    np.random.seed(row["seed"])
    iterator = LMOrderedIterator(np.arange(row["data"]), generator=generator, **row["arguments"])
    batches = list(iterator.get_varlen_iter(**row["varlen"]))
    assert [[batch[0].shape[1], batch[2]] for batch in batches] == row["lengths"]
    # Nothing of the rows is left out, and nothing stands twice.
    assert np.concatenate([b[1] for b in batches], 1).tolist() == iterator.data[:, 1:].tolist()


def test_varying_lengths_go_on_to_the_last_token():
    for size in range(2, 40):
        iterator = LMOrderedIterator(np.arange(size), 1, 3, generator=np.random.default_rng(size))
        batches = iterator.get_varlen_iter(std=1, min_len=1)
        assert np.concatenate([b[1] for b in batches], 1)[0].tolist() == list(range(1, size))


@pytest.mark.parametrize("row", rows("LMShuffledIterator"))
def test_shuffled(row):
    arguments = row["arguments"]
    np.random.seed(row.get("seed", 0))
    assert plain(LMShuffledIterator(row["data"], **arguments)) == row["batches"]
    own = np.random.RandomState(row.get("seed", 0))
    assert plain(LMShuffledIterator(row["data"], generator=own, **arguments)) == row["batches"]


def test_shuffled_anew_each_time():
    sentences = [np.arange(3) + 10 * number for number in range(20)]
    generator = np.random.default_rng(0)
    iterator = LMShuffledIterator(sentences, 2, 4, shuffle=True, generator=generator)
    first, second = plain(iterator), plain(iterator)
    assert len(first) == len(second) == 5
    assert first != second


def test_sentences_with_nothing_to_predict_are_passed_over():
    """The reference fails for empty ones."""
    sentences = [[], [1, 2, 3], [9], [], [4, 5, 6]]
    assert plain(LMShuffledIterator(sentences, 1, 4)) == [[[[1, 2, 4, 5]], [[2, 3, 5, 6]], 4]]


def test_batches_stay_as_they_were():
    iterator = LMShuffledIterator([np.arange(20)], 1, 4, ext_len=2)
    batches = list(iterator)
    assert [batch[0][0].tolist() for batch in batches[1:3]] == [
        [2, 3, 4, 5, 6, 7],
        [6, *range(7, 12)],
    ]
    ordered = LMOrderedIterator(np.arange(20), 2, 4)
    for data, target, _ in ordered:
        data[:] = target[:] = -1
    assert ordered.data.min() == 0


@pytest.mark.parametrize("row", rows("LMMultiFileIterator"))
def test_several_files(row, tmp_path):
    folder_with(tmp_path, {"a": row["data"][0], "b": row["data"][1]})
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    vocab = TransfoXLTokenizer(vocab_file=DATA / "vocab.txt")
    # differs: the reference loses the ends that it asks for.
    made = LMMultiFileIterator(paths, vocab, ends={"add_eos": False}, **row["arguments"])
    assert plain(made) == row["batches"]
    ended = plain(LMMultiFileIterator(paths, vocab, **row["arguments"]))
    # An end is predicted, and nothing is predicted of it: sentences come in any order.
    assert any(0 in np.ravel(target) for _, target, _ in ended)
    assert not any(0 in np.ravel(data) for data, _, _ in ended)


def test_ends_of_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("a b\nb a\n")
    for special, rows in (
        (["<eos>", "a", "b"], [[1, 2, 2, 1], [2, 0, 1, 0]]),
        (["<S>", "a", "b"], [[0, 1, 2, 0, 2, 1], [1, 2, 0, 2, 1, 0]]),
    ):
        vocab = TransfoXLTokenizer(special=special)
        vocab.build_vocab()
        (batch,) = LMMultiFileIterator([tmp_path / "a.txt"], vocab, 1, len(rows[0]))
        assert [batch[0][0].tolist(), batch[1][0].tolist()] == rows


def test_files_are_shuffled(tmp_path):
    names = [str(number) for number in range(8)]
    folder_with(tmp_path, {name: f"{name} {name}\n" for name in names})
    vocab = TransfoXLTokenizer(special=["<eos>", *names])
    vocab.build_vocab()
    paths = [tmp_path / f"{name}.txt" for name in names]

    def order(**kwargs):
        iterator = LMMultiFileIterator(paths, vocab, 1, 2, **kwargs)
        return [data[0, 0] - 1 for data, _, _ in iterator]

    assert order() == list(range(8))
    drawn = order(shuffle=True, generator=np.random.default_rng(1))
    assert sorted(drawn) == list(range(8)) != drawn


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bsz": 0, "bptt": 2}, "bsz"),
        ({"bsz": 1, "bptt": 0}, "bptt"),
        ({"bsz": 1, "bptt": 1.5}, "bptt"),
        ({"bsz": 1, "bptt": 1, "ext_len": -1}, "ext_len"),
        ({"bsz": 1, "bptt": 1, "device": "cuda"}, "device"),
    ],
)
def test_wrong_sizes_are_named(arguments, named):
    for make in (LMOrderedIterator, LMShuffledIterator):
        with pytest.raises(XlmfamError, match=f"^{named} is"):
            make([1, 2, 3], **arguments)
    with pytest.raises(XlmfamError, match="data has the shape"):
        LMOrderedIterator([[1, 2]], 1, 1)
    assert len(LMOrderedIterator([1, 2, 3], 1, 1, "cpu")) == 2


# -- corpora ---------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOLDEN["corpora"], ids=lambda row: row["kind"])
def test_corpus(row, tmp_path):
    folder_with(tmp_path, row["files"])
    corpus = TransfoXLCorpus(**row["options"])
    if row["kind"] == "other":
        with pytest.raises(XlmfamError, match="dataset is 'other'; it may be wt103"):
            corpus.build_corpus(tmp_path, row["kind"])
        return
    corpus.build_corpus(tmp_path, row["kind"])
    if row["kind"] == "lm1b":  # which the reference does not find
        assert corpus.vocab.idx2sym[:3] == [*row["options"]["special"], "the", "a"][:3]
        return
    assert corpus.vocab.idx2sym == row["symbols"]
    ended = row["kind"] in ("wt103", "wt2", "ptb")
    end = corpus.vocab.eos_token_id
    for split in SPLITS:
        ids = getattr(corpus, split)
        lines = row["files"][split].count("\n")
        # differs: the reference has no end tokens.
        assert (ids == end).sum() == (lines if ended else 0)
        assert ids[ids != end].tolist() == row[split]
        iterator = corpus.get_iterator(split, 2, 4)
        assert type(iterator).__name__ == row["iterators"][split]
        if not ended:
            assert len(list(iterator)) == row["batches"][split]


def lm1b(folder):
    folder_with(folder, {"valid": "a b\n", "test": "b a\n"})
    parts = folder / "1-billion-word-language-modeling-benchmark-r13output"
    (parts / "training-monolingual.tokenized.shuffled").mkdir(parents=True)
    names = {"news.en-00001-of-00100": "a b a\n", "news.en-00002-of-00100": "c a b\nb\n"}
    for name, text in names.items():
        (parts / "training-monolingual.tokenized.shuffled" / name).write_text(text)
    return folder


def test_one_billion_words(tmp_path):
    corpus = get_lm_corpus(lm1b(tmp_path), "lm1b")
    assert corpus.vocab.idx2sym == ["<S>", "<UNK>", "a", "b", "c"]
    assert [Path(path).name[:13] for path in corpus.train] == ["news.en-00001", "news.en-00002"]
    assert [row.tolist() for row in corpus.valid] == [[0, 2, 3, 0]]
    train = corpus.get_iterator("train", 1, 4)
    assert (type(train), train.shuffle) == (LMMultiFileIterator, True)
    batches = plain(corpus.get_iterator("train", 1, 4, shuffle=False))
    assert [batch[0] for batch in batches] == [[[0, 2, 3, 2]], [[0, 4, 2, 3]]]
    assert type(corpus.get_iterator("test", 1, 2)) is LMShuffledIterator
    (tmp_path / "1b_word_vocab.txt").write_text("<S> 9\nb 8\n<UNK> 0\n")
    corpus = get_lm_corpus(tmp_path, "lm1b")
    assert corpus.valid[0].tolist() == [0, 2, 1, 0]


def test_paper_corpora_are_tokenised_already(tmp_path):
    text = " = A = \n\n 1 @,@ 000 <unk> b , a \n"
    folder_with(tmp_path, dict.fromkeys(SPLITS, text))
    corpus = get_lm_corpus(tmp_path, "wt103")
    symbols = ["<eos>", "=", "A", "1", "@,@", "000", "<unk>", "b", ",", "a"]
    assert corpus.vocab.idx2sym == symbols
    assert corpus.train.tolist() == [1, 2, 1, 0, 0, 3, 4, 5, 6, 7, 8, 9, 0]
    assert get_lm_corpus(tmp_path, "ptb").vocab.idx2sym[2] == "a"
    # enwik8, as it is prepared: numbers of bytes, and no ends.
    folder_with(tmp_path, dict.fromkeys(SPLITS, "60 109 60\n109\n"))
    assert get_lm_corpus(tmp_path, "enwik8").train.tolist() == [0, 1, 0, 1]
    assert get_lm_corpus(tmp_path, "wt2", original_steps=False).vocab.original_steps is False


def test_with_a_vocabulary_of_another_text(tmp_path):
    folder_with(tmp_path, dict.fromkeys(SPLITS, "the zebra\n"))
    vocab = TransfoXLTokenizer(vocab_file=DATA / "vocab.txt")
    corpus = TransfoXLCorpus(vocab=vocab)
    corpus.build_corpus(tmp_path, "wt103")
    assert corpus.train.tolist() == [1, 50, 0]
    assert corpus.vocab is vocab
    counted = TransfoXLTokenizer(special=["<eos>", "<unk>"])
    counted.count_sents([["the"]])
    counted.build_vocab()
    corpus = TransfoXLCorpus(vocab=counted)
    corpus.build_corpus(tmp_path, "wt103")
    assert (corpus.train.tolist(), counted.vocab_size) == ([2, 1, 0], 3)
    with pytest.raises(XlmfamError, match="vocab is given"):
        TransfoXLCorpus(special=["a"], vocab=vocab)


@pytest.mark.parametrize("dataset", ["wt103", "lm1b"])
def test_saved_and_read_back(tmp_path, dataset):
    corpus = get_lm_corpus(lm1b(tmp_path), dataset) if dataset == "lm1b" else TransfoXLCorpus()
    if dataset == "wt103":
        with pytest.raises(XlmfamError, match="build_corpus"):
            corpus.save_pretrained(tmp_path)
        with pytest.raises(XlmfamError, match="build_corpus"):
            corpus.get_iterator("train", 1, 1)
        corpus.build_corpus(folder_with(tmp_path, dict.fromkeys(SPLITS, "a b\nc\n")), dataset)
    corpus.save_pretrained(tmp_path / "new")
    again = TransfoXLCorpus.from_pretrained(tmp_path / "new")
    assert again.vocab.get_vocab() == corpus.vocab.get_vocab()
    assert (again.dataset, again.vocab.original_steps) == (dataset, dataset == "lm1b")
    for split in SPLITS:
        saved, read = getattr(corpus, split), getattr(again, split)
        assert type(saved) is type(read)
        for one, other in zip(saved, read, strict=True):
            assert np.array_equal(one, other)
        args = (split, 1, 2)
        kwargs = {"shuffle": False} if dataset == "lm1b" else {}
        assert plain(again.get_iterator(*args, **kwargs)) == plain(
            corpus.get_iterator(*args, **kwargs)
        )
    path = tmp_path / "new" / "corpus.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:-5], b"no" * 50):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            TransfoXLCorpus.from_pretrained(tmp_path / "new")
    path.unlink()
    with pytest.raises(CheckpointError, match="has no corpus"):
        TransfoXLCorpus.from_pretrained(tmp_path / "new")


def test_texts_that_are_missing(tmp_path):
    folder_with(tmp_path, {"train": "a\n", "valid": "a\n"})
    for dataset in DATASETS:
        with pytest.raises(XlmfamError, match=r"has no .*test\.txt"):
            get_lm_corpus(tmp_path, dataset)
    folder_with(tmp_path, {"test": "a\n"})
    with pytest.raises(XlmfamError, match="split is 'dev'; it may be train, valid, test"):
        get_lm_corpus(tmp_path, "wt2").get_iterator("dev", 1, 1)


# -- frameworks ------------------------------------------------------------------------------


def test_batches_feed_torch():
    torch = pytest.importorskip("torch")
    for data, target, _ in LMOrderedIterator(np.arange(23), 3, 4):
        data, target = torch.from_numpy(data), torch.from_numpy(target)
        assert data.dtype == torch.int64
        assert torch.equal(data + 1, target)


def test_batches_feed_jax():
    jax = pytest.importorskip("jax")
    for data, target, _ in LMOrderedIterator(np.arange(23), 3, 4):
        assert bool((jax.numpy.asarray(data) + 1 == jax.numpy.asarray(target)).all())


def test_batches_feed_fit_of_keras():
    pytest.importorskip("torch")  # before TensorFlow: the other order clashes
    pytest.importorskip("tensorflow")
    import keras

    model = keras.Sequential([keras.layers.Embedding(23, 5), keras.layers.Dense(23)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    iterator = LMOrderedIterator(np.arange(23), 3, 4)

    def batches():
        while True:
            for data, target, _ in iterator:
                yield data, target

    fitted = model.fit(batches(), steps_per_epoch=len(iterator), epochs=2, verbose=0)
    assert fitted.history["loss"][1] < fitted.history["loss"][0]
