"""Small models of facebookresearch/XLM, saved and run by its own code.

Written are the files of tests/data/originals/xlm. The code stays outside. Needed are a checkout of
facebookresearch/XLM, the program of a checkout of glample/fastBPE (``g++ -std=c++11 -pthread -O2
fastBPE/main.cc -IfastBPE -o fast``), and torch and numpy of ``requirements.txt``:

    python tests/reference/make_original_xlm.py --original XLM --fastbpe fast
    python tests/reference/make_original_xlm.py --original XLM --check FOLDER

The second line is the way back: FOLDER holds, for each model, a folder of its name with the
``model.pth`` that xlmfam wrote. The original reads them, and its outputs must be equal to the last
bit to those of the file that xlmfam read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2] / "tests" / "data" / "originals" / "xlm"
POSITIONS = 23  # the original's 512 would be most of the file
CORPUS = """\
the dog sees the small house .
the houses are small , and the dogs are smaller .
a bird sang in the old garden by the house .
der hund sieht das kleine haus .
die hunde sind klein , und das haus ist kleiner .
ein vogel sang im alten garten hinter dem haus .
le chien voit la petite maison .
les chiens sont petits , et les maisons sont petites .
un oiseau chantait dans le jardin de la maison .
"""
SENTENCES = {
    "en": ["the smaller dogs sang in the houses .", "Small Birds , Old GARDENS ."],
    "de": ["der kleinere Hund sieht den Garten .", "Größere Vögel sangen ."],
    "fr": ["les petits oiseaux chantaient , là .", "xylophone"],
}
COMMON = ["--exp_name", "tiny", "--dump_path", ".", "--emb_dim", "10", "--n_heads", "5"]
THREE = ["--lgs", "de-en-fr"]
MODELS = {
    "mlm": [
        *("--n_layers", "2", *THREE, "--mlm_steps", "de,en,fr,de-en"),
        *("--gelu_activation", "true", "--dropout", "0.1", "--attention_dropout", "0.2"),
    ],
    "clm": [
        *("--n_layers", "1", "--lgs", "en", "--clm_steps", "en", "--dropout", "0.3"),
        *("--sinusoidal_embeddings", "true", "--share_inout_emb", "false"),
    ],
    "asm": [
        *("--n_layers", "1", *THREE, "--clm_steps", "de,en,fr", "--gelu_activation", "true"),
        *("--asm", "true", "--asm_cutoffs", "19,31", "--asm_div_value", "2"),
        *("--share_inout_emb", "false", "--use_lang_emb", "false"),
    ],
    "mt": [
        *("--n_layers", "1", *THREE, "--encoder_only", "false", "--mt_steps", "de-en,en-de"),
        *("--gelu_activation", "true"),
    ],
}
ZIPPED = {"clm"}  # the layout of later PyTorch; the others have that of 2019
TRAINING = {"asm"}  # with an optimizer, and saved from within DistributedDataParallel


def import_original(checkout: Path) -> SimpleNamespace:
    """The original's modules, with what is missing here or refused today patched from outside."""
    sys.path.insert(0, str(checkout))
    sys.modules["apex"] = ModuleType("apex")
    import train
    from xlm.data import dictionary, loader
    from xlm.model import build_model, check_model_params, transformer
    from xlm.trainer import Trainer

    transformer.N_MAX_POSITIONS = POSITIONS
    torch.nn.Module.cuda = lambda self, *_: self
    plain = torch.load
    torch.load = lambda path, **_: plain(path, map_location="cpu", weights_only=False)
    return SimpleNamespace(
        parser=train.get_parser,
        Dictionary=dictionary.Dictionary,
        set_dico=loader.set_dico_parameters,
        check_data=loader.check_data_params,
        check_model=check_model_params,
        build=build_model,
        Transformer=transformer.TransformerModel,
        save=Trainer.save_checkpoint,
        tools=checkout / "tools",
    )


def run_fast(program: Path, *arguments: object) -> str:
    return subprocess.run(
        [str(program), *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def make_words(program: Path, root: Path) -> None:
    """Codes and vocabulary of the corpus, as the original's README makes them."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, split = Path(folder) / "corpus", Path(folder) / "split"
        corpus.write_text(CORPUS)
        (root / "codes").write_text(run_fast(program, "learnbpe", 40, corpus))
        run_fast(program, "applybpe", split, corpus, root / "codes")
        (root / "vocab").write_text(run_fast(program, "getvocab", split))


def encode(program: Path, original: SimpleNamespace, root: Path, dico: object) -> list[dict]:
    """Ids of sentences: lower case without accents, BPE, dictionary, an end token at both ends."""
    cases = []
    for lang, texts in SENTENCES.items():
        for text in texts:
            lower = subprocess.run(
                [sys.executable, original.tools / "lowercase_and_remove_accent.py"],
                input=text,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            with tempfile.TemporaryDirectory() as folder:
                plain, split = Path(folder) / "plain", Path(folder) / "split"
                plain.write_text(lower)
                run_fast(program, "applybpe", split, plain, root / "codes")
                pieces = split.read_text().split()
            ids = [1, *(dico.index(piece) for piece in pieces), 1]
            cases.append({"lang": lang, "text": text, "ids": ids})
    return cases


def settings_of(original: SimpleNamespace, name: str, dico: object) -> argparse.Namespace:
    arguments = [*COMMON, *MODELS[name]]
    with mock.patch.object(sys, "argv", ["train.py", *arguments]):
        params = original.parser().parse_args(arguments)
    with (
        mock.patch("os.path.isfile", return_value=True),
        mock.patch("os.path.isdir", return_value=True),
    ):
        original.check_data(params)
        original.check_model(params)
    original.set_dico(params, {}, dico)
    params.is_master, params.global_rank = True, 0
    return params


def build(original: SimpleNamespace, params: argparse.Namespace, dico: object) -> dict:
    with torch.no_grad():
        built = original.build(params, dico)
    names = ["model"] if params.encoder_only else ["encoder", "decoder"]
    return dict(zip(names, built if isinstance(built, tuple) else [built], strict=True))


def randomise(models: dict, seed: int, sinusoidal: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for model in models.values():
            for name, value in model.named_parameters():
                if sinusoidal and "position" in name:
                    continue
                is_norm = "layer_norm" in name and name.endswith("weight")
                noise = torch.randn(value.shape, generator=generator)
                # Few digits, so that the files compress.
                value.copy_((1.0 if is_norm else 0.0) + (19.0 * noise).round() / 64.0)


class Parallel(torch.nn.Module):
    """Names its parameters as DistributedDataParallel does."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def save(
    original: SimpleNamespace, name: str, params: argparse.Namespace, models: dict, dico: object
) -> None:
    """By the original's own method, into the current folder."""
    training = name in TRAINING
    optimizers = {}
    if training:
        for model in models.values():
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
            for value in model.parameters():
                value.grad = torch.ones_like(value)
            optimizer.step()
            optimizers["model"] = optimizer
    trainer = SimpleNamespace(
        params=params,
        epoch=3,
        n_total_iter=70,
        best_metrics={"valid_mlm_ppl": np.float64(12.5)},
        best_stopping_criterion=None,
        MODEL_NAMES=list(models),
        optimizers=optimizers,
        data={"dico": dico},
        **{key: Parallel(model) if training else model for key, model in models.items()},
    )
    plain = torch.save

    def older(data: object, path: str) -> None:
        plain(data, path, _use_new_zipfile_serialization=name in ZIPPED)

    with mock.patch("torch.save", older):
        original.save(trainer, name, include_optimizers=training)


def inputs_of(params: argparse.Namespace, seed: int, length: int = 4) -> dict:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length, length - 2])
    ids = torch.randint(14, params.n_words, (2, length), generator=generator)
    ids[:, 0] = params.eos_index
    ids[torch.arange(length) >= lengths[:, None]] = params.pad_index
    langs = torch.randint(0, params.n_langs, (2, length), generator=generator)
    return {"ids": ids, "lengths": lengths, "langs": langs}


def run(model: torch.nn.Module, inputs: dict, causal: bool, langs: bool, **source: object) -> tuple:
    """Hidden states (B, S, D), and scores at the real positions."""
    model.eval()
    with torch.no_grad():
        states = model(
            "fwd",
            x=inputs["ids"].T,
            lengths=inputs["lengths"],
            causal=causal,
            langs=inputs["langs"].T if langs else None,
            **source,
        ).transpose(0, 1)
        length = inputs["ids"].shape[1]
        real = torch.arange(length) < inputs["lengths"][:, None]
        scores = model.pred_layer.get_scores(states[real])
    return states, scores


def record(params: argparse.Namespace, models: dict) -> dict:
    """Inputs and outputs of a model."""
    langs = params.n_langs > 1
    if "model" in models:
        inputs = inputs_of(params, 5)
        states, scores = run(models["model"], inputs, bool(params.clm_steps), langs)
        return {**inputs, "states": states, "scores": scores}
    source, target = inputs_of(params, 6), inputs_of(params, 7, 5)
    encoded, _ = run(models["encoder"], source, False, langs)
    beside = {"src_enc": encoded, "src_len": source["lengths"]}
    states, scores = run(models["decoder"], target, True, langs, **beside)
    return {
        **{f"source_{key}": value for key, value in source.items()},
        **{f"target_{key}": value for key, value in target.items()},
        "encoded": encoded,
        "states": states,
        "scores": scores,
    }


def pack(path: Path) -> None:
    """Compress a file, without its time."""
    packed = gzip.compress(path.read_bytes(), 9, mtime=0)
    path.with_name(f"{path.name}.gz").write_bytes(packed)
    path.unlink()


def make(original: SimpleNamespace, program: Path, root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    make_words(program, root)
    os.chdir(root)
    dico = original.Dictionary.read_vocab("vocab")
    arrays, cases = {}, {}
    for number, name in enumerate(MODELS):
        params = settings_of(original, name, dico)
        models = build(original, params, dico)
        randomise(models, 40 + number, params.sinusoidal_embeddings)
        save(original, name, params, models, dico)
        for key, value in record(params, models).items():
            arrays[f"{name}.{key}"] = value.numpy()
        pack(Path(f"{name}.pth"))
        cases[name] = sorted(key for key in arrays if key.startswith(f"{name}."))
    np.savez_compressed("outputs.npz", **arrays)
    sentences = encode(program, original, root, dico)
    Path("sentences.json").write_text(json.dumps(sentences, ensure_ascii=False) + "\n")
    for name, keys in cases.items():
        print(name, (root / f"{name}.pth.gz").stat().st_size, *keys)


def read_as_training(original: SimpleNamespace, name: str, path: Path, dico: object) -> dict:
    """What ``train.py --reload_model`` makes of a file."""
    params = settings_of(original, name, dico)
    params.reload_model = str(path) if params.encoder_only else f"{path},{path}"
    return build(original, params, dico)


def read_as_tools(original: SimpleNamespace, path: Path) -> dict:
    """What ``translate.py`` and the embedder do: everything is in the file."""
    content = torch.load(path)
    params = SimpleNamespace(**content["params"])
    dico = original.Dictionary(
        content["dico_id2word"], content["dico_word2id"], content["dico_counts"]
    )
    models = {}
    with torch.no_grad():
        for key in ("model", "encoder", "decoder"):
            if key in content:
                model = original.Transformer(params, dico, key != "decoder", True)
                model.load_state_dict(content[key])
                models[key] = model
    return models


def check(original: SimpleNamespace, root: Path, written: Path) -> None:
    """The original reads what xlmfam wrote, in both of its ways, and gives equal outputs."""
    expected = dict(np.load(root / "outputs.npz"))
    dico = original.Dictionary.read_vocab(str(root / "vocab"))
    for name in MODELS:
        path = written / name / "model.pth"
        params = settings_of(original, name, dico)
        again = original.Dictionary.read_vocab(str(path.parent / "vocab"))
        assert again == dico, f"{name}: another vocabulary"
        ways = (read_as_training(original, name, path, dico), read_as_tools(original, path))
        for models in ways:
            found = record(params, models)
            for key, value in found.items():
                same = np.array_equal(value.numpy(), expected[f"{name}.{key}"])
                assert same, f"{name}: {key} differs"
        print(name, "equal in", len(found), "arrays, read in two ways")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--fastbpe", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT)
    args = parser.parse_args()
    original = import_original(args.original.resolve())
    if args.check:
        check(original, args.out.resolve(), args.check.resolve())
    else:
        make(original, args.fastbpe.resolve(), args.out.resolve())


if __name__ == "__main__":
    main()
