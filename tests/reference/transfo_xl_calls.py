"""Forward passes of the reference: inputs, flags and expected outputs, one .npz per case."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import torch
from transfo_xl_checkpoints import CHECKPOINTS, load
from transfo_xl_recorder import ALL, PAD, Recorder

_BASE = "TransfoXLModel"
_WITHOUT_MEMORY = "No mems: zeros as long as the memory stand before the text, and are attended to."

_NO_MEMORY = (
    "With same_length and no memory the reference has no mask at all and sees the text to come; "
    "expected is what it gives without same_length."
)


def _cuts(*lengths: int) -> list[slice]:
    return [slice(begin, end) for begin, end in pairwise((0, *accumulate(lengths)))]


def _segments(ids: torch.Tensor, *lengths: int, **more: object) -> list[dict]:
    """One step for each piece of the text."""
    return [{"inputs": {"input_ids": ids[:, cut]}, **more} for cut in _cuts(*lengths)]


# ---- the language model ----------------------------------------------------------------------


def _plain(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids = make.ids(2, 6)
    call("input_ids", {"input_ids": ids}, notes=_WITHOUT_MEMORY)
    call("everything", {"input_ids": ids}, ALL)
    call("base", {"input_ids": ids}, ALL, cls=_BASE)
    call("inputs_embeds", {"inputs_embeds": make.vectors(2, 6)}, ALL, light=True)
    call("head_mask", {"input_ids": ids, "head_mask": make.heads()}, ALL)
    call("head_mask_one_row", {"input_ids": ids, "head_mask": make.heads()[0]}, ALL)
    call("one_token", {"input_ids": make.ids(3, 1)})
    call("longer_than_the_memory", {"input_ids": make.ids(2, 13)}, light=False)
    _labels(recorder)
    _memories(recorder)
    _lengths(recorder)


def _labels(recorder: Recorder) -> None:
    make, call, cutoffs = recorder.make, recorder.call, recorder.make.options["cutoffs"]
    ids, labels = make.ids(3, 7), make.ids(3, 7)
    in_order = "The reference has the losses by cluster; expected is the order of the text."
    call("labels", {"input_ids": ids, "labels": labels}, notes=in_order, light=True)
    # The first and the last token of each cluster.
    edges = [edge for cut in cutoffs for edge in (cut - 1, cut)]
    edges = torch.tensor([0, *edges, make.options["vocab_size"] - 1])
    places = torch.stack([edges, edges.flip(0), edges.roll(3)])
    call("labels_at_cluster_edges", {"input_ids": places, "labels": places}, light=True)
    head = make.below(0, cutoffs[0], 2, 6)
    call("labels_of_the_first_cluster", {"input_ids": ids[:2, :6], "labels": head}, light=True)
    tail = make.below(cutoffs[-1], make.options["vocab_size"], 2, 6)
    call("labels_of_the_last_cluster", {"input_ids": ids[:2, :6], "labels": tail}, light=True)
    ignored = labels.clone()
    ignored[0, :3] = ignored[1, 4] = ignored[2, 6] = -100
    call("labels_ignored", {"input_ids": ids, "labels": ignored}, light=True)
    ignored = labels.clone()
    ignored[0] = -100
    call(
        "labels_ignored_in_a_row",
        {"input_ids": ids, "labels": ignored},
        light=True,
        notes="The reference writes the end token into the labels, and counts it.",
    )
    call("labels_one", {"input_ids": ids[:1, :2], "labels": labels[:1, :2]}, light=True)
    call("labels_everything", {"input_ids": ids, "labels": labels}, ALL, light=True)
    call(
        "labels_inputs_embeds",
        {"inputs_embeds": make.vectors(2, 6), "labels": labels[:2, :6]},
        light=True,
    )
    cuts = _cuts(5, 2, 6)
    ids, labels = make.ids(2, 13), make.ids(2, 13)
    call(
        "labels_in_segments",
        steps=[
            {"inputs": {"input_ids": ids[:, c], "labels": labels[:, c]}, "light": True}
            for c in cuts
        ],
        notes="The first label of each segment has no score: labels are shifted in the segment.",
    )


def _memories(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    text = make.ids(2, 20)
    rows = _segments(text, 5, 3, 9)
    rows[1]["flags"] = ALL
    call("segments", steps=rows)
    call("segments_one_by_one", steps=_segments(text, 4, 1, 1, 1, light=False))
    call("segments_base", steps=_segments(text, 4, 2, 11), cls=_BASE)
    rows = _segments(text, 5, 6, 2)
    rows[1]["inputs"]["head_mask"] = make.heads()
    call("segments_head_mask", steps=rows)
    rows = [
        {"inputs": {"inputs_embeds": make.vectors(2, length)}, "light": True}
        for length in (4, 6, 3)
    ]
    call("segments_inputs_embeds", steps=rows)
    for name, length in (("shorter", 3), ("longer", 20)):
        call(f"memory_{name}", steps=_segments(text, 5, 3, 9), overrides={"mem_len": length})
    call(
        "memory_none",
        {"input_ids": text[:, :6]},
        ALL,
        overrides={"mem_len": 0},
        right={"same_length": False},
        light=True,
        notes=_NO_MEMORY,
    )
    for name, length in (("shorter", 3), ("longer", 19)):
        call(
            f"mems_{name}_than_the_memory",
            {"input_ids": text[:, :6], "mems": make.mems(length, 2)},
            ALL,
            notes="Mems of another length than mem_len are taken as they are.",
        )
    rows = _segments(text, 6, 4, 5, 5, light=False)
    rows[1]["memory"], rows[3]["memory"] = 3, 11
    call("reset_memory_length", steps=rows, notes="The length holds for the mems to come.")


def _lengths(recorder: Recorder) -> None:
    """Clamped positions, and queries that look back equally far, with all sorts of memories."""
    make, call = recorder.make, recorder.call
    text = make.ids(2, 16)
    for same in (True, False):
        for clamp in (-1, 0, 2, 5, 30):
            for memory in (0, 4, 11):
                if clamp in (0, 30) and memory != 11:  # both come to no clamping
                    continue
                wrong = same and not memory
                name = f"clamp_{clamp}_memory_{memory}_{'same' if same else 'growing'}"
                call(
                    name.replace("-1", "none"),
                    steps=_segments(text, 5, 8, light=True, fresh=not memory),
                    cls=_BASE,
                    overrides={"clamp_len": clamp, "mem_len": memory, "same_length": same},
                    **({"right": {"same_length": False}, "notes": _NO_MEMORY} if wrong else {}),
                )


def _language_model(recorder: Recorder) -> None:
    """What all other language models have recorded."""
    make, call = recorder.make, recorder.call
    text = make.ids(2, 17)
    call("everything", {"input_ids": text[:, :6]}, ALL)
    call("segments", steps=_segments(text, 5, 3, 9))
    cutoffs = make.options["cutoffs"]
    edges = [edge for cut in cutoffs for edge in (cut - 1, cut)]
    edges = torch.tensor([0, *edges, make.options["vocab_size"] - 1])
    labels = torch.stack([edges, edges.roll(2), edges.flip(0)])
    ids = make.ids(*labels.shape)
    labels[1, 2] = -100
    call("labels", {"input_ids": ids, "labels": labels}, light=True)
    call("inputs_embeds", {"inputs_embeds": make.vectors(2, 5)}, light=True)
    call("head_mask", {"input_ids": text[:, :5], "head_mask": make.heads()}, ALL, light=True)
    call("base", {"input_ids": text[:, 2:9]}, cls=_BASE, light=True)
    other = not make.options["same_length"]
    call(
        "other_length",
        steps=_segments(text, 4, 7, light=True),
        overrides={"same_length": other, "clamp_len": 3},
    )


# ---- sequence classification -----------------------------------------------------------------


def _sequence(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids = make.ids(3, 6)
    call("no_padding", {"input_ids": ids}, ALL)
    padded = ids.clone()
    padded[0, 4:] = padded[2, 2:] = PAD
    call("right_padding", {"input_ids": padded}, notes="Read before the first padding.")
    inside = ids.clone()
    inside[0, 2] = inside[1, 3] = inside[1, 5] = PAD
    call("padding_inside", {"input_ids": inside})
    call("segments", steps=[{"inputs": {"input_ids": ids[:, c]}} for c in _cuts(4, 2)])
    call("one_text_without_padding_id", {"input_ids": ids[:1]}, overrides={"pad_token_id": None})
    call("head_mask", {"input_ids": padded, "head_mask": make.heads()}, ALL, light=True)
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6)}, light=True)
    labels, several = make.labels(3), make.below(0, 2, 3, 7).float()
    targets = make.numbers(3, 7)
    call("labels", {"input_ids": padded, "labels": labels}, light=True)
    call("labels_several", {"input_ids": padded, "labels": several}, light=True)
    for kind, wanted in (
        ("single_label_classification", labels),
        ("multi_label_classification", several),
        ("regression", targets),
    ):
        call(
            kind,
            {"input_ids": padded, "labels": wanted},
            overrides={"problem_type": kind},
            light=True,
        )


def _sequence_one(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids = make.ids(3, 6)
    ids[1, 4:] = PAD
    call("labels", {"input_ids": ids, "labels": make.numbers(3)}, notes="Regression.", light=True)
    call("labels_column", {"input_ids": ids, "labels": make.numbers(3, 1)}, light=True)


_HEADS = {"plain": _plain, "sequence": _sequence, "sequence_one": _sequence_one}


def call_cases(root: Path) -> list[dict]:
    cases = []
    for checkpoint in CHECKPOINTS:
        if checkpoint == "text":  # it is there to generate
            continue
        recorder = Recorder(root, checkpoint)
        _HEADS.get(checkpoint, _language_model)(recorder)
        cases += recorder.cases
    _losses_are_known(root)
    return cases


def _losses_are_known(root: Path) -> None:
    """The reference's losses are those expected here, in another order."""
    model = load(root, "plain")
    ids = torch.randint(0, 53, (3, 9), generator=torch.manual_seed(5))
    with torch.no_grad():
        own, scores = model(ids, labels=ids).losses, model(ids).prediction_scores
    expected = -scores[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(own.flatten().sort()[0], expected.flatten().sort()[0])
