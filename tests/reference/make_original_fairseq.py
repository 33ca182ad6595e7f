"""Tiny XGLM and X-MOD checkpoints made, saved and run by fairseq itself, for tests.

fairseq's code is not part of this project. Take a copy of facebookresearch/fairseq (these files
are of commit 3d262bb2) and an environment of its own, Python 3.11:

    pip install torch==2.13.0 'numpy<2' omegaconf==2.3.1 hydra-core==1.3.8 sacrebleu==2.6.0 \
        regex tqdm bitarray sentencepiece scikit-learn
    python make_original_fairseq.py make FAIRSEQ             # everything under tests/data/originals
    python make_original_fairseq.py check FAIRSEQ EXPORTED   # EXPORTED/<case>/model.pt, by xlmfam

``check`` loads what xlmfam wrote and holds it against the recorded numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import io
import logging
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from omegaconf import OmegaConf

DATA = Path(__file__).parents[1] / "data" / "originals" / "fairseq"
CASES = ("xglm", "xglm_args", "xmod", "xmod_prenorm", "xmod_classes")
PIECES = 40  # a multiple of eight: XGLM's dictionary is then filled with seven words
TOLERANCE = 1e-6
TEXT = """the quick brown fox jumps over the lazy dog and the dog sleeps on
a model of many languages reads what people write and says what comes next
we count the words of a text and keep those that are seen most often
""".splitlines()


def prepare(fairseq: Path) -> None:
    """Make fairseq's code run under Python 3.11 and today's hydra, without changing it."""
    process = dataclasses._process_class

    def hashable(cls, *args, **kwargs):
        for name in inspect.get_annotations(cls):
            value = cls.__dict__.get(name)
            value = value.default if isinstance(value, dataclasses.Field) else value
            if dataclasses.is_dataclass(value) and type(value).__hash__ is None:
                type(value).__hash__ = object.__hash__
        return process(cls, *args, **kwargs)

    dataclasses._process_class = hashable
    sys.path.insert(0, str(fairseq))
    import fairseq.dataclass.utils as utils

    compose = utils.compose
    utils.compose = lambda *args, strict=None, **kwargs: compose(*args, **kwargs)
    logging.disable(logging.WARNING)


# -- vocabularies -----------------------------------------------------------------------------


def make_vocabulary(folder: Path, multiple: int) -> None:
    """Write a sentencepiece model and fairseq's dictionary of its pieces."""
    from fairseq.data import Dictionary

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # a file would have its own name in it
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_writer=model,
        vocab_size=PIECES,
        model_type="unigram",
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    dictionary = Dictionary()
    for number in range(3, PIECES):
        dictionary.add_symbol(processor.id_to_piece(number), n=PIECES - number)
    dictionary.pad_to_multiple_(multiple)
    dictionary.save(str(folder / "dict.txt"))


# -- models -----------------------------------------------------------------------------------

_XGLM = {
    "decoder_embed_dim": 20,
    "decoder_input_dim": 20,
    "decoder_output_dim": 20,
    "decoder_ffn_embed_dim": 28,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_normalize_before": True,
    "activation_fn": "gelu",
    "dropout": 0.15,
    "attention_dropout": 0.05,
    "activation_dropout": 0.25,
    "decoder_layerdrop": 0.0,
    "share_decoder_input_output_embed": True,
    "max_target_positions": 33,
}
_XMOD = {
    "encoder_embed_dim": 18,
    "encoder_ffn_embed_dim": 22,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "dropout": 0.15,
    "attention_dropout": 0.05,
    "pooler_dropout": 0.35,
    "max_positions": 27,
    "languages": ["en_XX", "my_MM", "hi_IN", "de_DE"],
    "min_params_to_wrap": int(1e8),
    "checkpoint_activations": False,
    "tokens_per_sample": 27,
}


def settings_of(case: str, folder: Path):
    """The settings of a case as fairseq saves them: omegaconf's objects, or a namespace."""
    if case == "xglm":
        model = {"_name": "transformer_lm", **_XGLM}
        # As a training run has it: one setting refers to another.
        model["max_target_positions"] = "${task.max_target_positions}"
        task = {"_name": "multilingual_language_modeling", "max_target_positions": 33}
    elif case == "xglm_args":
        model = {**_XGLM, "decoder_layers": 2, "activation_fn": "relu", "no_scale_embedding": True}
        model |= {"share_decoder_input_output_embed": False, "tokens_per_sample": 33}
        model |= {"arch": "transformer_lm_gpt", "task": "language_modeling", "data": str(folder)}
        return argparse.Namespace(**model)
    else:
        prenorm = {"bottleneck": 3} if case == "xmod_prenorm" else {}
        name = "xmod_large_prenorm" if case == "xmod_prenorm" else "xmod_base"
        model = argparse.Namespace(_name=name, arch=name, **_XMOD, **prenorm)
        task = {"_name": "masked_lm", "tokens_per_sample": 27}
    config = {"common": {"tpu": False}, "task": {"data": str(folder), **task}, "model": model}
    return OmegaConf.create(config, flags={"allow_objects": True})


def build(case: str, config):
    """Return a model with random values everywhere, and its settings as they were then."""
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if isinstance(config, argparse.Namespace):
        config = convert_namespace_to_omegaconf(config)
    task = tasks.setup_task(config.task, from_checkpoint=True)
    model = task.build_model(config.model)
    if case == "xmod_classes":
        model.register_classification_head("topics", num_classes=4)
        model.register_classification_head("sentence_classification_head", num_classes=5)
    generator = torch.Generator().manual_seed(CASES.index(case))
    with torch.no_grad():
        for name, value in model.named_parameters():
            one = name.endswith("norm.weight") or "layernorm_embedding.weight" in name
            value.copy_(0.3 * torch.randn(value.shape, generator=generator) + float(one))
    return model.eval()


def aged(case: str, state: dict) -> dict:
    """Give a state dict the names that older releases had, and extras of the public ones."""
    if case == "xglm_args":
        state["decoder.embed_positions._float_tensor"] = torch.zeros(1)
        state["decoder.mevo_layer.proj_weight"] = torch.randn(7, 5)
    if case != "xmod_classes":
        return state
    for prefix in [name.removesuffix("q_proj.weight") for name in state if "q_proj.weight" in name]:
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{prefix}{projection}_proj.{kind}") for projection in "qkv"]
            state[f"{prefix}in_proj_{kind}"] = torch.cat(parts)
    older = {".layernorm_embedding.": ".emb_layer_norm.", "encoder.sentence_": "decoder.sentence_"}
    older["encoder.lm_head"] = "decoder.lm_head"
    renamed = {}
    for name, value in state.items():
        for new, old in older.items():
            name = name.replace(new, old)
        renamed[name] = value
    return renamed


def save(path: Path, case: str, config, model) -> None:
    """Save as fairseq's trainer does, with what it keeps beside the model."""
    from fairseq import checkpoint_utils

    state = aged(case, model.state_dict())
    is_args = isinstance(config, argparse.Namespace)
    if is_args:
        config.data = "."
    else:
        config.task.data = "."
    value = {
        "args": config if is_args else None,
        "cfg": None if is_args else config,
        "model": state,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 5,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 5}},
        "last_optimizer_state": {"state": {}, "param_groups": []},
    }
    if case in ("xglm_args", "xmod_classes"):  # as before PyTorch 1.6
        torch.save(value, path, _use_new_zipfile_serialization=False)
    else:
        checkpoint_utils.torch_persistent_save(value, str(path))


# -- running ----------------------------------------------------------------------------------


def load(folder: Path, extras: bool = False):
    """Load a checkpoint with fairseq's own loader, from its own folder."""
    from fairseq import checkpoint_utils

    path = str(folder / "model.pt")
    overrides = {"data": str(folder), "load_checkpoint_heads": True}
    state = checkpoint_utils.load_checkpoint_to_cpu(path, overrides)
    if extras:  # today's fairseq would refuse the file for what it does not know
        for name in [name for name in state["model"] if ".mevo_layer." in name]:
            del state["model"][name]
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([path], overrides, state=state)
    return models[0].eval(), task


def inputs_of(case: str, words: int) -> dict[str, np.ndarray]:
    """Rows without padding, with it on the left, and on the right."""
    rng = np.random.default_rng(7)
    ids = rng.integers(4, words, (4, 11))
    mask = np.ones_like(ids)
    if case.startswith("xglm"):
        mask[1, :3] = 0
    mask[2, 7:] = 0
    ids[mask == 0] = 1
    return {"input_ids": ids, "attention_mask": mask}


LANGUAGES = ["de_DE", "my_MM_zaw", "hi_IN_rom", "en_XX"]


def outputs_of(case: str, model, task, inputs) -> dict[str, np.ndarray]:
    """What fairseq computes: states before every layer and at the end, logits, and the loss."""
    ids = torch.from_numpy(inputs["input_ids"])
    with torch.no_grad():
        if case.startswith("xglm"):
            features, extra = model.decoder.extract_features(ids, None)
            logits, states = model.decoder.output_layer(features), extra["inner_states"]
        else:
            features, extra = model(
                ids, features_only=True, return_all_hiddens=True, lang_id=LANGUAGES
            )
            logits, states = model.encoder.output_layer(features), extra["inner_states"]
    found = {f"state{i}": s.transpose(0, 1) for i, s in enumerate(states[:-1])}
    found |= {"features": features, "logits": logits}
    if case == "xmod_classes":
        head = model.classification_heads["sentence_classification_head"]
        found["classes"] = head(features).detach()
    real = torch.from_numpy(inputs["attention_mask"]) == 1
    return {k: v[real].numpy() if v.dim() == 3 else v.numpy() for k, v in found.items()}


def make(case: str) -> None:
    """Make everything of one case."""
    folder = DATA / case
    make_vocabulary(folder, multiple=8 if case.startswith("xglm") else 1)
    model = build(case, settings_of(case, folder))
    save(folder / "model.pt", case, settings_of(case, folder), model)
    loaded, task = load(folder, extras=True)
    inputs = inputs_of(case, len(task.source_dictionary))
    expected = outputs_of(case, loaded, task, inputs)
    for name, value in outputs_of(case, model, task, inputs).items():
        assert np.array_equal(value, expected[name]), f"{case}: {name} changed in the file"
    texts = [TEXT[0], TEXT[2][:31]]
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "sentencepiece.bpe.model")
    )
    coded = [
        task.source_dictionary.encode_line(
            " ".join(processor.encode(text, out_type=str)), add_if_not_exist=False
        ).tolist()
        for text in texts
    ]
    for number, ids in enumerate(coded):
        expected[f"coded{number}"] = np.array(ids)
    expected["texts"] = np.array(texts)
    np.savez_compressed(folder / "expected.npz", **inputs, **expected)
    print(case, {file.name: file.stat().st_size for file in sorted(folder.iterdir())})


def check(case: str, folder: Path) -> float:
    """Return the largest difference between what xlmfam wrote and what was recorded."""
    recorded = np.load(DATA / case / "expected.npz")
    model, task = load(folder)
    inputs = {name: recorded[name] for name in ("input_ids", "attention_mask")}
    came = outputs_of(case, model, task, inputs)
    if case == "xmod_classes":
        del came["logits"]  # the class for classification has no head for words
    return max(float(np.abs(value - recorded[name]).max()) for name, value in came.items())


def main() -> None:
    """Make the files, or check others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("fairseq", type=Path)
    parser.add_argument("exported", type=Path, nargs="?")
    args = parser.parse_args()
    prepare(args.fairseq.resolve())
    if args.what == "make":
        for case in CASES:
            make(case)
        return
    wrong = False
    for case in CASES:
        error = check(case, args.exported.resolve() / case)
        wrong = wrong or not error <= TOLERANCE
        print(f"{case}: {error:.1e}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
