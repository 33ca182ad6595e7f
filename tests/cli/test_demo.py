"""The demo, small: what it promises holds, and it says so when it does not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from xlmfam import AutoConfig, AutoTokenizer
from xlmfam.cli import (
    demo_checks,
    demo_masked,
    demo_text,
    demo_training,
    demo_transfo_xl,
    demo_xlm,
    demo_xlm_text,
    demo_xmod,
)
from xlmfam.cli.main import main
from xlmfam.cli.report_data import Score
from xlmfam.common.parameters.xmod import XMOD
from xlmfam.conversion import checksum, inspect
from xlmfam.conversion.runners import BACKENDS, installed_backends

needs_all = pytest.mark.skipif(
    installed_backends() != BACKENDS, reason="needs the three frameworks"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return demo_text.train_tokenizer(demo_text.read_corpus(10), folder, 600)


@pytest.fixture(scope="module")
def xlm_sentences():
    return demo_xlm_text.with_languages(demo_text.read_corpus(10))


@pytest.fixture(scope="module")
def xlm_tokenizer(tmp_path_factory, xlm_sentences):
    folder = tmp_path_factory.mktemp("xlm_tokenizer")
    return demo_xlm_text.train_tokenizer(xlm_sentences, folder, 1500)


@needs_all
@pytest.mark.slow
def test_quick_demo(tmp_path, monkeypatch, capfd):
    sections = []
    from xlmfam.cli import demo

    run_families = demo.run_families
    monkeypatch.setattr(
        demo, "run_families", lambda *a: sections.extend(run_families(*a)) or sections
    )
    assert main(["demo", "--quick", "--output", str(tmp_path / "out")]) == 0
    xglm, xlm, xmod, transfo_xl = sections
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    names = ("xglm", "xlm", "xmod", "transformerxl")
    for section, name in zip(sections, names, strict=True):
        check_section(section, tmp_path / "out" / name, page)
    check_continuations(xglm, page, demo_text.SHOWN)
    check_continuations(transfo_xl, page, demo_transfo_xl.LANGUAGES[1:])
    check_readings(transfo_xl.readings, page)
    check_fillings(xlm, page, list(demo_xlm_text.CODES), 40)
    few = list(demo_xmod.codes_of(demo_xmod.QUICK))
    # Chinese has no spaces: what follows a hidden word would be another token.
    check_fillings(xmod, page, few, 20, [name for name in few if name != "Chinese"])
    check_addition(xmod.addition, tmp_path / "out/xmod", page)
    assert "Everything agrees" in page
    out, err = capfd.readouterr()
    assert out.count("  ok ") == 5 + 6 + 7 + 7
    assert "FAILED" not in out
    assert "Traceback" not in err
    model = tmp_path / "out/xglm/model"
    assert AutoTokenizer.from_pretrained(model)("Guten Morgen")["input_ids"]


def check_section(section, folder, page):
    """What holds for every family."""
    # learned
    assert section.loss.final < section.loss.goal < section.loss.guessing / 2
    assert section.loss.losses[0] > 0.8 * section.loss.guessing
    assert all(score.right >= score.goal * score.asked > 0 for score in section.scores)
    # bit-exact, in memory and in the files
    assert len({step.checksum for step in section.chain}) == 1
    files = [folder / "checkpoints" / step.file for step in section.chain]
    assert {path.name for path in files} == {
        "tf_model.h5",
        "pytorch_model.bin",
        "flax_model.msgpack",
        "model.safetensors",
    }
    expected = section.chain[0].checksum
    assert {checksum(path.parent) for path in files} == {expected}
    assert checksum(folder / "model") == expected
    assert expected in page
    assert inspect(folder / "model").ok
    # equal
    assert 0 < section.heatmap.largest < 5e-5
    rows = set(section.heatmap.rows)
    assert {"loss", "layer 0", "gradients, layer 1"} <= rows
    assert rows & {"logits", "prediction_scores"}
    assert len(section.heatmap.columns) == 3


def check_continuations(section, page, languages):
    """XGLM and Transformer-XL write on."""
    assert [generation.language for generation in section.generations] == list(languages)
    for generation in section.generations:
        assert set(generation.outputs) == {"PyTorch", "TensorFlow", "Flax"}
        assert generation.equal
        assert all(len(text) > len(generation.prompt) for text in generation.outputs.values())
        assert generation.prompt in page


def check_fillings(section, page, languages, most, in_sentences=None):
    """Words are filled in, in every language, with and without a sentence around them."""
    in_sentences = in_sentences or languages
    assert [f.language for f in section.fillings] == [*in_sentences, *languages]
    for number, filling in enumerate(section.fillings):
        assert set(filling.guesses) == {"PyTorch", "TensorFlow", "Flax"}
        assert filling.equal
        assert bool(filling.answer) == (number < len(in_sentences))
        assert filling.text.count("____") == (1 if filling.answer else demo_xlm.LENGTH)
        assert all(len(guesses) == demo_masked.GUESSES for guesses in filling.guesses.values())
        assert filling.guesses["Flax"][0].word in page
    hidden, languages_alone = section.scores
    assert hidden.asked > most
    assert languages_alone.asked == len(languages)
    first = {f.guesses["PyTorch"][0].word for f in section.fillings[len(in_sentences) :]}
    assert len(first) > 0.7 * len(languages)  # they differ in what they begin with


def check_readings(readings, page):
    """Memory makes a text easier, the learned one and the unseen one, alike in the three."""
    learned, unseen = readings
    for reading in readings:
        assert list(reading.remembering) == ["PyTorch", "TensorFlow", "Flax"]
        assert reading.equal
        assert 0 < reading.difference < 1e-5
        assert 1 < reading.with_memory < 0.9 * reading.without
        assert f"{reading.tokens:,} tokens" in page
    assert learned.tokens > 5 * unseen.tokens
    assert learned.with_memory < unseen.with_memory


def check_addition(addition, folder, page):
    """A language came when the others had been learned, and touched nothing of theirs."""
    assert addition.language == demo_xmod.LATER
    assert addition.passed
    assert addition.after < 0.6 * addition.before
    config = AutoConfig.from_pretrained(folder / "model")
    code = demo_xmod.CODES[demo_xmod.LATER]
    assert config.languages[-1] == code
    parameters = XMOD.expand(config, "XmodForMaskedLM").values()
    assert addition.learned == sum(p.size for p in parameters if p.language == code)
    assert addition.parameters == sum(p.size for p in parameters if p.tied_to is None)
    assert f"{addition.learned:,} of {addition.parameters:,} values" in page


def test_tokenizer_is_the_same_every_time(tmp_path):
    sentences = demo_text.read_corpus(5)
    for name in ("one", "two"):
        demo_text.train_tokenizer(sentences, tmp_path / name, 500)
    files = [tmp_path / name / "sentencepiece.bpe.model" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_corpus_is_in_thirteen_languages():
    sentences = demo_text.read_corpus()
    assert len(sentences) % len(demo_text.LANGUAGES) == 0
    assert demo_text.read_corpus(2) == sentences[:26]


def test_halves_are_beginnings_in_text_and_tokens(tokenizer):
    sentences = demo_text.read_corpus(10)
    prompts = demo_text.sampled_prompts(tokenizer, sentences, 40, seed=1)
    assert len(prompts) == 40
    for prompt in prompts:
        assert prompt.sentence.startswith(prompt.text)
        assert 0 < len(prompt.text) < len(prompt.sentence)
        ids = tokenizer(prompt.text)["input_ids"]
        assert tokenizer(prompt.sentence)["input_ids"][: len(ids)] == ids
        assert [s.startswith(prompt.text) for s in sentences].count(True) == 1
    assert demo_text.sampled_prompts(tokenizer, sentences, 40, seed=2) != prompts
    shown = demo_text.shown_prompts(tokenizer, sentences, 4)
    assert [prompt.language for prompt in shown] == list(demo_text.SHOWN)


def test_rows_and_batches(tokenizer):
    rows = demo_text.training_rows(tokenizer, demo_text.read_corpus(2))
    assert all(row[0] == row[-1] == tokenizer.eos_token_id for row in rows)
    batch = demo_checks.sentences_batch(rows, tokenizer)
    mask = batch["attention_mask"]
    assert mask[0, 0] == 0 or mask.all(1)[0]
    assert (batch["labels"][mask == 0] == -100).all()
    kept = (batch["labels"] != -100) & (batch["labels"] != batch["input_ids"])
    assert not kept.any()
    assert np.array_equal(batch["input_ids"][1][mask[1] == 1], rows[len(rows) // 6])


@needs_all
@pytest.mark.parametrize("broken", [False, True])
def test_a_chain_that_changes_a_bit_is_not_exact(tmp_path, tokenizer, monkeypatch, broken):
    from xlmfam import XGLMConfig
    from xlmfam.conversion import runners
    from xlmfam.tf import XGLMForCausalLM

    config = XGLMConfig(
        vocab_size=31, d_model=12, ffn_dim=20, num_layers=1, attention_heads=3, num_labels=2
    )
    load = runners.load

    def disturbed(backend, folder):
        model = load(backend, folder)
        if backend == "pt" and broken:
            weight = next(model.parameters())
            weight.data[0, 0] = float(np.nextafter(np.float32(weight[0, 0].item()), np.float32(9)))
        return model

    monkeypatch.setattr(runners, "load", disturbed)
    model = XGLMForCausalLM.from_config(config)
    steps, last = demo_checks.run_chain(model, tmp_path, tokenizer)
    assert [step.exact for step in steps] == [True] + [not broken] * 3
    assert last == tmp_path / "4-tf"


def test_recall():
    prompts = [demo_text.Prompt("English", "a", text) for text in ("ab", "ac", "ad")]
    outputs = {"PyTorch": ["x", "ab", "ac", "ad"], "Flax": ["x", "ab", "ac", "a!"]}
    recall = demo_checks.recall(prompts, outputs, skipped=1)
    assert (recall.right, recall.asked) == (2, 3)
    assert not recall.passed
    assert Score("", "", 8, 10).passed
    assert not Score("", "", 7, 10).passed
    assert not Score("", "", 0, 0).passed


@needs_all
def test_output_must_be_a_folder(tmp_path, capfd):
    (tmp_path / "file").write_text("x")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert "is a file" in capfd.readouterr().err


@needs_all
def test_missing_framework(monkeypatch, capfd):
    from xlmfam.conversion import runners

    monkeypatch.setitem(runners.PACKAGES, "flax", "no_such_package")
    assert main(["demo"]) == 2
    assert 'pip install "xlmfam[flax]"' in capfd.readouterr().err


def test_halves_are_not_cut_where_tokens_would_change():
    class Tokenizer:
        """One token per letter, but for a ``b`` at the end, which is another token there."""

        def __call__(self, text):
            ids = [2, *map(ord, text)]
            return {"input_ids": [*ids[:-1], 999] if text.endswith("b") else ids}

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids[1:]))

    assert demo_text.first_half(Tokenizer(), "abab") == "a"
    assert demo_text.first_half(Tokenizer(), "aaaa") == "aa"
    assert demo_text.first_half(Tokenizer(), "aa aa") == "aa"  # rather than "aa "
    assert demo_text.first_half(Tokenizer(), "a") is None


# ---- XLM ----------------------------------------------------------------------------------


def test_byte_pairs_are_the_same_every_time(tmp_path, xlm_sentences):
    for name in ("one", "two"):
        demo_xlm_text.train_tokenizer(xlm_sentences, tmp_path / name, 500)
    for file in ("vocab.json", "merges.txt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_merges_are_the_most_frequent_pairs():
    words = {("a", "b", "c</w>"): 3, ("a", "b</w>"): 2, ("b", "c</w>"): 4, ("x", "y</w>"): 1}
    # b c</w> 7 times; then a bc</w> 3 times (a b no longer); a b</w> twice; x y</w> once: never.
    expected = [("b", "c</w>"), ("a", "bc</w>"), ("a", "b</w>")]
    assert demo_xlm_text.learn_merges(words, 9) == expected
    assert demo_xlm_text.learn_merges(words, 2) == expected[:2]
    assert demo_xlm_text.learn_merges({("a", "a", "a", "a</w>"): 2}, 9)[0] == ("a", "a")


def test_byte_pairs_spell_the_text(xlm_tokenizer, xlm_sentences):
    assert {s.lang for s in xlm_sentences} == set(demo_xlm_text.CODES.values())
    assert len(xlm_sentences) == 10 * len(demo_xlm_text.CODES)
    loaded = AutoTokenizer.from_pretrained(xlm_tokenizer.vocab_file.rsplit("/", 1)[0])
    rows = demo_masked.training_rows(loaded, xlm_sentences)
    assert rows == demo_masked.training_rows(xlm_tokenizer, xlm_sentences)
    assert all((row[0], row[-1]) == (0, 1) for row in rows)
    assert not any(xlm_tokenizer.unk_token_id in row for row in rows)
    german = next(s for s in xlm_sentences if s.text == "Der Hund schläft im Garten.")
    assert german.lang == "de"
    assert loaded.decode(loaded(german.text, lang="de")["input_ids"][1:-1]) == german.text
    # Frequent words are one piece each.
    assert len(loaded("Der Hund", lang="de")["input_ids"]) == 4


def test_hidden_words_and_their_labels(xlm_tokenizer, xlm_sentences):
    rows = demo_masked.training_rows(xlm_tokenizer, xlm_sentences)
    langs = [xlm_tokenizer.lang2id[s.lang] for s in xlm_sentences]
    rng = np.random.default_rng(0)
    batch = demo_xlm.batch_of(rows, langs, xlm_tokenizer, rng)
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    chosen = labels != -100
    assert (ids[chosen] == xlm_tokenizer.mask_token_id).all()
    assert (ids[~chosen] != xlm_tokenizer.mask_token_id).all()
    for number, row in enumerate(rows):
        whole = np.where(chosen, labels, ids)[number]
        assert whole[: len(row)].tolist() == row
        assert mask[number].sum() == len(row)
        assert not chosen[number, [0, len(row) - 1]].any()  # <s> and </s> stay
        assert set(batch["langs"][number]) == {langs[number]}
    share = chosen.sum() / mask.sum()
    assert 0.2 < share < 0.5
    assert (chosen.sum(1) == mask.sum(1) - 2).any()  # all words of a sentence
    again = demo_xlm.batch_of(rows, langs, xlm_tokenizer, rng)
    assert not np.array_equal(again["input_ids"], ids)


def test_riddles_hide_one_word(xlm_tokenizer, xlm_sentences):
    riddles = demo_masked.riddles(xlm_tokenizer, xlm_sentences, 50, seed=1)
    assert len(riddles) == 50
    by_text = {s.text: s for s in xlm_sentences}
    for riddle in riddles:
        whole = riddle.text.replace(xlm_tokenizer.mask_token, riddle.word)
        assert by_text[whole].lang == riddle.lang
        assert xlm_tokenizer(whole, lang=riddle.lang)["input_ids"] == list(riddle.ids)
        hidden = xlm_tokenizer(riddle.text, lang=riddle.lang)["input_ids"]
        assert riddle.filled(xlm_tokenizer.mask_token_id) == tuple(hidden)
        assert riddle.filled(riddle.ids[riddle.place]) == riddle.ids
    assert demo_masked.riddles(xlm_tokenizer, xlm_sentences, 50, seed=2) != riddles
    shown = demo_masked.shown_riddles(xlm_tokenizer, xlm_sentences, 4)
    assert [riddle.lang for riddle in shown] == list(demo_xlm_text.CODES.values())
    # The last word that is one piece: "tree" is several here.
    assert shown[0].text == f"The dog sits under {xlm_tokenizer.mask_token} tree."


def guessed(*tokens):
    return [[{"token": token, "token_str": str(token), "score": 0.5}] for token in tokens]


def test_scores_of_xlm_count_what_all_frameworks_guess():
    riddles = [demo_masked.Riddle("en", "", "", (0, word, 1), 1) for word in (7, 8, 9)]
    known = {(0, 7, 1), (0, 9, 1), (0, 11, 1)}
    found = {"PyTorch": guessed(7, 8, 11), "Flax": guessed(7, 8, 11)}
    score = demo_masked.filled_right(riddles, found, known)
    assert (score.right, score.asked, score.passed) == (2, 3, True)
    found["Flax"] = guessed(7, 8, 9)  # right as well, but 10 would not be
    assert demo_masked.filled_right(riddles, found, known).right == 2
    found["Flax"] = guessed(10, 8, 9)
    score = demo_masked.filled_right(riddles, found, known)
    assert (score.right, score.passed) == (1, False)
    words = {"en": {7}, "de": {8}}
    found = {"PyTorch": guessed(1, 7, 8), "Flax": guessed(1, 7, 7)}
    assert demo_masked.in_language(["en", "de"], found, 1, words, "number").right == 1


# ---- X-MOD --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xmod_text(tmp_path_factory):
    sentences = demo_masked.with_languages(demo_text.read_corpus(10), demo_xmod.CODES)
    lines = [sentence.text for sentence in sentences]
    folder = tmp_path_factory.mktemp("xmod_tokenizer")
    made = demo_text.train_tokenizer(lines, folder, 900, "XLMRobertaTokenizer", "bpe")
    rows = demo_masked.training_rows(made, sentences)
    return sentences, demo_xmod.Text(rows, [sentence.lang for sentence in sentences], made)


def xmod_config(text, **sizes):
    size = replace(demo_xmod.QUICK, width=12, layers=1, heads=2, **sizes)
    return demo_xmod.make_config(size, text.tokenizer, max(map(len, text.rows)))


def test_sentences_keep_their_languages(xmod_text):
    sentences, text = xmod_text
    assert list(dict.fromkeys(text.langs)) == list(demo_xmod.CODES.values())
    german = text.of(["de_DE"])
    assert len(german.rows) == 10
    assert {*german.langs} == {"de_DE"}
    texts = [s.text for s in sentences if s.lang == "de_DE"]
    decoded = [text.tokenizer.decode(row, skip_special_tokens=True) for row in german.rows]
    assert decoded == texts
    config = xmod_config(text)
    assert demo_xmod.CODES[demo_xmod.LATER] not in config.languages
    batch = text.of(config.languages).example(config)
    assert batch["lang_ids"].tolist() == list(range(len(config.languages)))
    assert ((batch["labels"] != -100) == (batch["input_ids"] == text.tokenizer.mask_token_id)).all()
    russian = [rows for rows, lang in zip(text.rows, text.langs, strict=True) if lang == "ru_RU"]
    row = config.languages.index("ru_RU")
    length = len(russian[0])
    whole = np.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    assert whole[row, :length].tolist() == russian[0]


def test_riddles_hide_a_word_whatever_the_tokenizer(xmod_text):
    sentences, text = xmod_text
    found = demo_masked.shown_riddles(text.tokenizer, sentences, 4)
    assert [riddle.lang for riddle in found][:3] == ["en_XX", "de_DE", "fr_XX"]
    assert not {"zh_CN", "ja_XX"} & {riddle.lang for riddle in found}
    for riddle in found:
        hidden = text.tokenizer(riddle.text)["input_ids"]
        assert riddle.filled(text.tokenizer.mask_token_id) == tuple(hidden)


@needs_all
@pytest.mark.parametrize("broken", [False, True])
def test_an_addition_that_touches_others_is_seen(xmod_text, monkeypatch, broken):
    from xlmfam.tf import XmodForMaskedLM

    _, text = xmod_text
    few = text.of(["en_XX", "de_DE", "sw_KE"])
    config = xmod_config(few)
    model = XmodForMaskedLM.from_config(config)
    train = demo_training.train

    def disturbed(model, *args, **kwargs):
        trained = train(model, *args, **kwargs)
        if broken:
            bias = model.lm_head.bias
            bias.assign(np.nextafter(bias.numpy(), np.float32(1)))
        return trained

    monkeypatch.setattr(demo_training, "train", disturbed)
    trained = demo_training.Trained(model, [], 1.25)
    size = replace(demo_xmod.QUICK, epochs=1, goal=50.0)
    addition = demo_xmod.add_language(trained, few.of(["sw_KE"]), size, 0)
    assert addition.untouched is not broken
    assert addition.passed is not broken
    assert addition.others == 1.25
    assert addition.learned == 2 * 12 * 6 + 12 + 6
    assert model.config.languages[-1] == "sw_KE"


# ---- Transformer-XL -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    groups = demo_transfo_xl.read_groups(20)
    folder = tmp_path_factory.mktemp("transfo_xl")
    tokenizer = demo_transfo_xl.make_tokenizer(groups, folder, 1000)
    return groups, AutoTokenizer.from_pretrained(folder), tokenizer


def test_sentences_are_followed_by_their_translations(story):
    groups, loaded, tokenizer = story
    assert groups[1][:2] == ["The dog sleeps in the garden.", "Der Hund schläft im Garten."]
    assert [len(group) for group in groups] == [len(demo_transfo_xl.LANGUAGES)] * 20
    made = demo_transfo_xl.make_text(tokenizer, groups, seed=1)
    again = demo_transfo_xl.make_text(loaded, groups, seed=1)
    assert made.sentences == again.sentences
    ends = len(demo_transfo_xl.LANGUAGES)
    for ids in made.groups:
        assert ids[-1] == tokenizer.eos_token_id
        assert (ids == tokenizer.eos_token_id).sum() == ends
        assert tokenizer.unk_token_id not in ids
    lines = [line for group in groups for line in group]
    assert len(set(made.sentences) & set(lines)) > 0.9 * len(made.sentences)


def test_unseen_sentences_are_not_learned(story):
    groups, _, tokenizer = story
    made = demo_transfo_xl.make_text(tokenizer, groups, seed=1)
    assert (len(made.groups), len(made.sentences)) == (18, 18 * len(groups[0]))
    unseen = [
        line
        for group in groups
        for line in group
        if tokenizer.decode(tokenizer(line)["input_ids"]) not in made.sentences
    ]
    rows = [tokenizer(line, add_eos=True)["input_ids"] for line in unseen]
    assert made.unseen.tolist() == [number for row in rows for number in row]
    other = demo_transfo_xl.make_text(tokenizer, groups, seed=2)
    assert other.unseen.tolist() != made.unseen.tolist()


def test_groups_are_shuffled_whole(story):
    groups, _, tokenizer = story
    made = demo_transfo_xl.make_text(tokenizer, groups, seed=1)
    shuffled = made.shuffled(np.random.default_rng(0)).tolist()
    assert shuffled != made.learned.tolist()
    assert sorted(shuffled) == sorted(made.learned.tolist())
    for ids in made.groups:
        row = ids.tolist()
        assert any(shuffled[at : at + len(row)] == row for at in range(len(shuffled)))


def test_prompts_stand_behind_a_translation(story):
    groups, _, tokenizer = story
    made = demo_transfo_xl.make_text(tokenizer, groups, seed=1)
    shown = demo_transfo_xl.shown_prompts(tokenizer, made)
    assert [prompt.language for prompt in shown] == list(demo_transfo_xl.LANGUAGES[1:])
    sampled = demo_transfo_xl.sampled_prompts(tokenizer, made, 12, seed=1)
    assert len(sampled) == 12
    for prompt in [*shown, *sampled]:
        before, half = prompt.text.split(" <eos> ")
        place = made.sentences.index(before)
        whole = made.sentences[place + 1]
        assert prompt.sentence == f"{before} <eos> {whole}"
        assert whole.startswith(half)
        assert demo_transfo_xl.LANGUAGES[(place + 1) % 9] == prompt.language
        assert place // 9 == (place + 1) // 9  # of one group
    (read,) = demo_transfo_xl.without_ends(shown[:1])
    assert "<eos>" not in read.text + read.sentence
    ids = tokenizer(shown[0].text)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == read.text


def test_batch_for_the_comparison_is_padded_on_the_left():
    batch = demo_transfo_xl.left_padded([[5, 6, 0], [7, 8, 9, 4, 0]], pad=0)
    assert batch["input_ids"].tolist() == [[0, 0, 5, 6, 0], [7, 8, 9, 4, 0]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert batch["labels"].tolist() == [[-100, -100, -100, 6, 0], [-100, 8, 9, 4, 0]]


@needs_all
def test_training_hands_on_memories(story, monkeypatch):
    groups, _, tokenizer = story
    made = demo_transfo_xl.make_text(tokenizer, groups[:3], seed=1)
    size = replace(demo_transfo_xl.QUICK, width=12, layers=1, heads=2, batch=2, epochs=2)
    config = demo_transfo_xl.make_config(size, tokenizer)
    seen = []

    def spied(model, optimizer):
        def step(ids, targets, mems):
            losses, kept = model.token_losses(ids, targets, mems)
            seen.append((ids.numpy(), mems[0].numpy(), kept[0].numpy()))
            return losses.numpy().mean(), kept

        return step

    monkeypatch.setattr(demo_transfo_xl, "training_step", spied)
    monkeypatch.setattr(demo_transfo_xl, "FORGETS", 0.0)
    trained = demo_transfo_xl.train(config, made, size, seed=0)
    count = len(seen) // 2
    assert count == (len(made.learned) // 2 - 1) // demo_transfo_xl.SEGMENT > 1
    assert len(trained.losses) == 2 * count
    for epoch in (seen[:count], seen[count:]):
        assert not epoch[0][1].any()  # nothing has been read yet
        for before, after in itertools.pairwise(epoch):
            assert np.array_equal(before[2], after[1])


@needs_all
def test_a_training_step_makes_the_loss_smaller(story):
    import tensorflow as tf

    from xlmfam.tf import TransfoXLLMHeadModel

    _, _, tokenizer = story
    size = replace(demo_transfo_xl.QUICK, width=12, layers=1, heads=2)
    model = TransfoXLLMHeadModel.from_config(demo_transfo_xl.make_config(size, tokenizer))
    step = demo_transfo_xl.training_step(model, demo_training.optimizer_of(size, 40, lean=True))
    ids = tf.constant(np.arange(2, 14).reshape(2, 6))
    losses = [float(step(ids, ids + 1, model.init_mems(2))[0]) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
