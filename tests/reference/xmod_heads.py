"""Forward passes of the base model with its pooling layer, and of the heads."""

from __future__ import annotations

import torch
from golden_tools import padded, right
from xmod_recorder import ALL, PAD, WITHOUT_POOLER, Inputs, Recorder


def padded_inputs(make: Inputs, *shape: int) -> dict:
    """Padded ids, their mask, and a language for each sample."""
    mask = right([4, 6, 5], 6)[: shape[0]]
    if len(shape) == 3:
        mask = torch.stack([right([4, 6, 5], 6), right([6, 3, 6], 6)])
    return {
        "input_ids": padded(make.ids(*shape), mask, PAD),
        "attention_mask": mask,
        "lang_ids": make.langs(*shape[:-1]),
    }


def _every_input(make: Inputs, inputs: dict) -> dict:
    shape = inputs["input_ids"].shape
    return {
        **inputs,
        "token_type_ids": make.types(*shape),
        "position_ids": make.below(0, 19, *shape),
        "head_mask": make.heads(),
    }


def _base(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)
    call("default_language", {"input_ids": make.ids(2, 6)})
    call("without_pooler", inputs, overrides=WITHOUT_POOLER)
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "lang_ids": make.langs(3)})
    tokens = make.langs(3, 6)
    call("languages_per_token", {**inputs, "lang_ids": tokens}, langs=tokens)
    text = make.ids(3, 6)
    call(
        "as_decoder",
        steps=[{"inputs": {"input_ids": text[:, :4]}}, {"inputs": {"input_ids": text[:, 4:]}}],
        overrides={"is_decoder": True},
        notes="The pooling layer reads the first of the new tokens.",
    )


def _sequence(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)
    call("default_language", {"input_ids": make.ids(2, 6)})
    call(
        "dropouts",
        inputs,
        overrides={"classifier_dropout": 0.3, "hidden_dropout_prob": 0.2},
        notes="Evaluation mode: no dropout acts.",
    )
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "lang_ids": make.langs(3)})
    tokens = make.langs(3, 6)
    call("languages_per_token", {**inputs, "lang_ids": tokens}, langs=tokens)
    labels, several = make.labels(3), make.below(0, 2, 3, 7).float()
    call("labels", {**inputs, "labels": labels}, notes="Integers: one label each.")
    call("labels_several", {**inputs, "labels": several}, notes="Floats: several labels.")
    for kind, wanted in (
        ("single_label_classification", labels),
        ("multi_label_classification", several),
        ("regression", make.numbers(3, 7)),
    ):
        call(kind, {**inputs, "labels": wanted}, overrides={"problem_type": kind})


def _sequence_one(recorder: Recorder) -> None:
    inputs = padded_inputs(recorder.make, 3, 6)
    recorder.call("labels", {**inputs, "labels": recorder.make.numbers(3)}, notes="Regression.")
    recorder.call("labels_column", {**inputs, "labels": recorder.make.numbers(3, 1)})


def _choice(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = padded_inputs(make, 2, 3, 6)
    plain = {k: v for k, v in inputs.items() if k != "lang_ids"}
    call("default_language", plain)
    call("everything", _every_input(make, plain), ALL)
    call("labels", {**plain, "labels": torch.tensor([2, 0])})
    call("inputs_embeds", {"inputs_embeds": make.vectors(2, 3, 6)})
    samples, choices, tokens = make.langs(2), inputs["lang_ids"], make.langs(2, 3, 6)
    notes = "The reference crashes; its layers were run for each language, see NOTES.md."
    for name, langs, rows in (
        ("per_sample", samples, samples[:, None, None].expand(2, 3, 6)),
        ("per_choice", choices, choices[..., None].expand(2, 3, 6)),
        ("per_token", tokens, tokens),
    ):
        given = {**plain, "lang_ids": langs, "labels": torch.tensor([1, 2])}
        call(f"languages_{name}", given, langs=rows.reshape(6, 6), notes=notes)
    call(
        "inputs_embeds_languages",
        {"inputs_embeds": make.vectors(2, 3, 6), "lang_ids": choices},
        langs=choices.reshape(6, 1),
        notes=notes,
    )


def _token(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)
    labels = make.labels(3, 6)
    labels[0, 0] = labels[1, 4] = -100
    labels[inputs["attention_mask"] == 0] = -100
    call("labels", {**inputs, "labels": labels})
    call(
        "labels_at_padding",
        {**inputs, "labels": make.labels(3, 6)},
        notes="Labels at padding count: only -100 does not.",
    )
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "lang_ids": make.langs(3)})
    tokens = make.langs(3, 6)
    given = {**inputs, "lang_ids": tokens, "labels": labels}
    call("languages_per_token", given, langs=tokens)


def _span(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    inputs = padded_inputs(make, 3, 6)
    call("everything", _every_input(make, inputs), ALL)

    def spans(start: list, end: list) -> dict:
        return {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}

    call("positions", {**inputs, **spans([0, 2, 1], [3, 2, 4])})
    call(
        "positions_outside",
        {**inputs, **spans([0, 6, 1], [3, 40, 17])},
        notes="Positions at or beyond the width are left out of the mean.",
    )
    call(
        "positions_below",
        {**inputs, **spans([-1, 2, 1], [3, -7, 4])},
        notes="Negative positions count as 0.",
    )
    call("positions_column", {**inputs, **spans([[0], [2], [1]], [[3], [2], [4]])})
    call(
        "start_only",
        {**inputs, "start_positions": torch.tensor([0, 2, 1])},
        notes="One of the two alone gives no loss.",
    )
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "lang_ids": make.langs(3)})
    tokens = make.langs(3, 6)
    call("languages_per_token", {**inputs, "lang_ids": tokens}, langs=tokens)


HEADS = {
    "base": _base,
    "sequence": _sequence,
    "sequence_one": _sequence_one,
    "choice": _choice,
    "token": _token,
    "span": _span,
}
