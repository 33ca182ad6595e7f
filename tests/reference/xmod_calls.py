"""Forward passes of the reference: inputs, flags and expected outputs, one .npz per case."""

from __future__ import annotations

from pathlib import Path

import torch
from golden_tools import left, padded, right
from xmod_checkpoints import NORMS, load
from xmod_heads import HEADS
from xmod_languages import check
from xmod_recorder import ALL, NO_CACHE, PAD, WITHOUT_POOLER, Recorder

_BASE, _NEXT, _MASKED = "XmodModel", "XmodForCausalLM", "XmodForMaskedLM"


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Positions counted over the tokens that are not padding."""
    return mask.cumsum(-1) * mask + PAD


# ---- the masked language model and what every class shares --------------------------------


def _plain(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids = make.ids(2, 7)
    call("input_ids", {"input_ids": ids}, notes="No lang_ids: the default language, number 1.")
    call("everything", {"input_ids": ids}, ALL)
    call("default_language", {"input_ids": ids}, overrides={"default_language": "sw_KE"})
    call("one_language", {"input_ids": ids, "lang_ids": torch.tensor([2, 2])})
    several = torch.tensor([2, 0, 2, 1])
    four = make.ids(4, 6)
    call("several_languages", {"input_ids": four, "lang_ids": several}, ALL)
    call(
        "several_languages_no_default",
        {"input_ids": four, "lang_ids": several},
        overrides={"default_language": None},
    )
    tokens = make.langs(2, 7)
    call(
        "languages_per_token",
        {"input_ids": ids, "lang_ids": tokens},
        ALL,
        langs=tokens,
        notes="The reference crashes; its layers were run for each language, see NOTES.md.",
    )
    call("token_type_ids", {"input_ids": ids, "token_type_ids": make.types(2, 7)})
    places = torch.tensor([[5, 4, 3, 9, 0, 30, 1], [2, 3, 4, 5, 6, 7, 8]])
    call("position_ids", {"input_ids": ids, "position_ids": places})
    _padding(recorder)
    call("head_mask", {"input_ids": ids, "head_mask": make.heads()}, ALL)
    call("head_mask_one_row", {"input_ids": ids, "head_mask": make.heads()[0]}, ALL, light=True)
    _vectors(recorder)
    labels = make.ids(3, 7)
    labels[0, :2] = labels[2, 5:] = labels[1, 3] = -100
    call("labels", {"input_ids": make.ids(3, 7), "lang_ids": make.langs(3), "labels": labels})
    mask = right([7, 3, 5], 7)
    call(
        "all_inputs",
        {
            "input_ids": padded(make.ids(3, 7), mask, PAD),
            "lang_ids": torch.tensor([0, 2, 0]),
            "attention_mask": mask,
            "token_type_ids": make.types(3, 7),
            "position_ids": make.below(0, 31, 3, 7),
            "head_mask": make.heads(),
            "labels": torch.where(mask.bool(), labels, -100),
        },
        ALL,
    )
    call(
        "encoder_states_ignored",
        {"input_ids": ids, "encoder_hidden_states": make.vectors(2, 5)},
        notes="Not a decoder: the states of another encoder change nothing.",
    )
    for name in ("relu", "silu", "gelu_new", "tanh"):
        call(
            f"activation_{name}",
            {"input_ids": ids, "lang_ids": torch.tensor([0, 2])},
            overrides={"hidden_act": name},
            notes="The same in the feed-forward block, the adapters and not in the head.",
        )
    call(
        "chunks",
        {"input_ids": four, "lang_ids": several},
        overrides={"chunk_size_feed_forward": 2},
        notes="Computed in pieces along the text; only the memory differs.",
    )
    call("to_the_last_position", {"input_ids": make.ids(1, 29)})
    decoder = {"is_decoder": True}
    call(
        "as_decoder",
        {"input_ids": ids, "lang_ids": torch.tensor([0, 2]), "labels": ids},
        overrides=decoder,
        notes="Causal attention; the labels of a masked model stay unshifted, and it has no cache.",
    )
    call(
        "as_next_word",
        {"input_ids": ids, "lang_ids": torch.tensor([0, 2]), "labels": ids},
        cls=_NEXT,
        notes="XmodForCausalLM that is not a decoder: attention both ways, labels shifted.",
    )
    call("base", {"input_ids": ids}, ALL, cls=_BASE, overrides=WITHOUT_POOLER)
    mask = left([4, 7], 7)
    call(
        "base_left_padding",
        {
            "input_ids": padded(ids, mask, PAD),
            "attention_mask": mask,
            "lang_ids": torch.tensor([0, 2]),
        },
        cls=_BASE,
        overrides=WITHOUT_POOLER,
    )


def _padding(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids = make.ids(3, 7)
    for name, mask in (("right", right([7, 3, 5], 7)), ("left", left([4, 7, 6], 7))):
        call(
            f"{name}_padding",
            {
                "input_ids": padded(ids, mask, PAD),
                "attention_mask": mask,
                "lang_ids": make.langs(3),
            },
            ALL,
            notes="Positions count the ids that are not padding; padding itself has position 1.",
        )
    inside = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0]])
    text = padded(ids, inside, PAD)
    call("padding_inside", {"input_ids": text, "attention_mask": inside})
    call(
        "padding_without_mask",
        {"input_ids": text},
        notes="No mask: padding is attended to; positions still leave it out.",
    )
    call(
        "mask_with_holes",
        {"input_ids": ids, "attention_mask": inside},
        notes="Positions follow the ids, not the mask: here there is no padding.",
    )
    rows = make.below(0, 2, 3, 7, 7)
    rows[:, range(7), range(7)] = 1
    call("mask_of_pairs", {"input_ids": ids, "attention_mask": rows}, ALL, light=True)
    mask = right([4, 7, 5], 7)
    tokens = make.langs(3, 7)
    call(
        "languages_per_token_padded",
        {"input_ids": padded(ids, mask, PAD), "attention_mask": mask, "lang_ids": tokens},
        langs=tokens,
    )


def _vectors(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    vectors = make.vectors(3, 6)
    call(
        "inputs_embeds",
        {"inputs_embeds": vectors, "lang_ids": torch.tensor([1, 0, 2])},
        ALL,
        light=True,
        notes="Positions 2, 3, ... in every row.",
    )
    mask = right([6, 2, 4], 6)
    call(
        "inputs_embeds_right_padding",
        {"inputs_embeds": vectors, "attention_mask": mask, "token_type_ids": make.types(3, 6)},
        valid=mask,
    )
    mask = left([3, 6, 5], 6)
    call(
        "inputs_embeds_position_ids",
        {"inputs_embeds": vectors, "attention_mask": mask, "position_ids": _places(mask)},
    )


# ---- decoders ------------------------------------------------------------------------------


def _causal(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(3, 7), torch.tensor([4, 0, 4])
    call("input_ids", {"input_ids": ids}, ALL, notes="use_cache comes from the config.")
    call("lang_ids", {"input_ids": ids, "lang_ids": langs}, {**ALL, **NO_CACHE})
    tokens = make.langs(3, 7)
    call("languages_per_token", {"input_ids": ids, "lang_ids": tokens}, langs=tokens)
    labels = make.ids(3, 7)
    labels[0, :2] = labels[1, 5] = -100
    call("labels", {"input_ids": ids, "lang_ids": langs, "labels": labels}, NO_CACHE)
    call("position_ids", {"input_ids": ids, "position_ids": make.below(0, 37, 3, 7)}, NO_CACHE)
    call("head_mask", {"input_ids": ids, "head_mask": make.heads()}, {**ALL, **NO_CACHE})
    call("inputs_embeds", {"inputs_embeds": make.vectors(2, 6)}, NO_CACHE)
    mask = right([7, 3, 5], 7)
    call(
        "right_padding",
        {"input_ids": padded(ids, mask, PAD), "attention_mask": mask, "lang_ids": langs},
        {**ALL, **NO_CACHE},
        valid=mask,
    )
    mask = left([4, 7, 6], 7)
    text = padded(ids, mask, PAD)
    call(
        "left_padding",
        {"input_ids": text, "attention_mask": mask, "lang_ids": langs},
        ALL,
        valid=mask,
    )
    call(
        "left_padding_without_mask",
        {"input_ids": text, "lang_ids": langs},
        NO_CACHE,
        notes="No mask: padding is attended to; positions still leave it out.",
    )
    labels = torch.where(mask.bool(), text, -100)
    labels[0, 3] = labels[2, 1] = -100
    call(
        "labels_left_padding",
        {"input_ids": text, "attention_mask": mask, "lang_ids": langs, "labels": labels},
        NO_CACHE,
        valid=mask,
        notes="Each padded row's first token has the label -100: only padding stands before it.",
    )
    rows = make.below(0, 2, 3, 7, 7)
    rows[:, range(7), range(7)] = 1
    call(
        "mask_of_pairs",
        {"input_ids": ids, "attention_mask": rows},
        {**ALL, **NO_CACHE},
        light=True,
        notes="It replaces the causal mask: what it allows of the future is seen.",
    )
    call("to_the_last_position", {"input_ids": make.ids(1, 35)}, NO_CACHE)
    call(
        "as_encoder",
        {"input_ids": ids, "lang_ids": langs},
        overrides={"is_decoder": False},
        notes="Attention both ways, and no cache.",
    )
    call("as_masked", {"input_ids": ids, "lang_ids": langs}, cls=_MASKED)
    call("base", {"input_ids": ids}, ALL, cls=_BASE, overrides=WITHOUT_POOLER, light=True)
    _caches(recorder)


def _cuts(width: int, *ends: int) -> list[slice]:
    ends = ends or tuple(range(4, width + 1))
    return [slice(begin, end) for begin, end in zip((0, *ends[:-1]), ends, strict=True)]


def _caches(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(3, 8), torch.tensor([0, 3, 0])
    cache = {"use_cache": True}

    def steps(cuts: list[slice], **more: object) -> list[dict]:
        return [
            {"inputs": {"input_ids": ids[:, cut], "lang_ids": langs}, "flags": cache, **more}
            for cut in cuts
        ]

    two, single = _cuts(8, 5, 8), _cuts(8, 4, 5, 6, 7)
    rows = steps(two)
    rows[0]["light"] = True
    rows[1]["flags"] = {**cache, **ALL}
    call("past", steps=rows)
    call("past_one_by_one", steps=steps(single, light=True))
    call(
        "past_default_language",
        steps=[{"inputs": {"input_ids": ids[:, cut]}, "light": True} for cut in two],
    )
    tokens = make.langs(3, 8)
    call(
        "past_languages_per_token",
        steps=[
            {
                "inputs": {"input_ids": ids[:, cut], "lang_ids": tokens[:, cut]},
                "langs": tokens[:, cut],
                "light": True,
            }
            for cut in two
        ],
        notes="lang_ids are those of the new tokens.",
    )
    call(
        "past_without_new_cache",
        steps=[
            {"inputs": {"input_ids": ids[:, :5]}, "light": True},
            {"inputs": {"input_ids": ids[:, 5:]}, "flags": NO_CACHE},
        ],
    )
    mask = left([6, 8, 7], 8)
    text = padded(ids, mask, PAD)
    for name, cuts in (("past_left_padding", two), ("past_left_padding_one_by_one", single)):
        call(
            name,
            steps=[
                {
                    "inputs": {
                        "input_ids": text[:, cut],
                        "attention_mask": mask[:, : cut.stop],
                        "lang_ids": langs,
                    },
                    "hidden": {"position_ids": _places(mask)[:, cut]},
                    "valid": mask[:, cut],
                    "valid_keys": mask[:, : cut.stop],
                    "raw": cut.start > 0,
                    "light": "one" in name or cut.start == 0,
                }
                for cut in cuts
            ],
            notes="Positions count the tokens that the mask shows in the past. The reference "
            "counts the padding too, and was given the positions.",
        )
    places = make.below(2, 37, 3, 8)
    call(
        "past_position_ids",
        steps=[
            {
                "inputs": {"input_ids": ids[:, cut], "position_ids": places[:, cut]},
                "flags": cache,
                "light": True,
            }
            for cut in two
        ],
    )
    vectors = make.vectors(2, 8)
    call(
        "past_inputs_embeds",
        steps=[
            {
                "inputs": {"inputs_embeds": vectors[:, cut]},
                "whole": {"inputs_embeds": vectors[:, : cut.stop]},
                "flags": cache,
                "raw": cut.start > 0,
            }
            for cut in two
        ],
        notes="Positions go on after the past. In the reference they start again.",
    )
    call(
        "base_past",
        steps=[{"inputs": {"input_ids": ids[:, cut], "lang_ids": langs}} for cut in two],
        cls=_BASE,
        overrides=WITHOUT_POOLER,
    )


def _cross(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs, states = make.ids(3, 6), torch.tensor([1, 0, 1]), make.vectors(3, 5)
    seen = right([5, 2, 4], 5)
    encoder = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    call(
        "without_encoder",
        {"input_ids": ids},
        {**ALL, **NO_CACHE},
        notes="No encoder_hidden_states: the cross-attention blocks are skipped.",
    )
    call(
        "encoder",
        {"input_ids": ids, "encoder_hidden_states": states},
        {**ALL, **NO_CACHE},
    )
    call("encoder_mask", {"input_ids": ids, "lang_ids": langs, **encoder}, ALL)
    rows = make.below(0, 2, 3, 6, 5)
    rows[:, :, 2] = 1
    call(
        "encoder_mask_of_pairs",
        {"input_ids": ids, "encoder_hidden_states": states, "encoder_attention_mask": rows},
        {**ALL, **NO_CACHE},
        light=True,
    )
    call(
        "head_mask",
        {"input_ids": ids, "head_mask": make.heads(), **encoder},
        {**ALL, **NO_CACHE},
        notes="The head mask acts on both kinds of attention.",
    )
    tokens = make.langs(3, 6)
    call(
        "languages_per_token",
        {"input_ids": ids, "lang_ids": tokens, **encoder},
        NO_CACHE,
        langs=tokens,
    )
    mask = left([3, 6, 5], 6)
    text = padded(ids, mask, PAD)
    call(
        "left_padding",
        {"input_ids": text, "attention_mask": mask, "lang_ids": langs, **encoder},
        {"output_attentions": True, **NO_CACHE},
        valid=mask,
    )
    labels = make.ids(3, 6)
    labels[1, 2:4] = -100
    call("labels", {"input_ids": ids, "labels": labels, **encoder}, NO_CACHE)
    two = _cuts(6, 4, 6)
    call(
        "past",
        steps=[
            {
                "inputs": {"input_ids": ids[:, cut], "lang_ids": langs, **encoder},
                "flags": {"use_cache": True, "output_attentions": cut.start > 0},
            }
            for cut in two
        ],
        notes="A layer's past is four tensors: own keys, own values, cross keys, cross values.",
    )
    call(
        "past_left_padding",
        steps=[
            {
                "inputs": {
                    "input_ids": text[:, cut],
                    "attention_mask": mask[:, : cut.stop],
                    **encoder,
                },
                "hidden": {"position_ids": _places(mask)[:, cut]},
                "valid": mask[:, cut],
                "valid_keys": mask[:, : cut.stop],
                "raw": cut.start > 0,
                "light": True,
            }
            for cut in _cuts(6, 4, 5, 6)
        ],
    )
    call("masked", {"input_ids": ids, "lang_ids": langs, **encoder}, ALL, cls=_MASKED, light=True)
    call(
        "base",
        {"input_ids": ids, **encoder},
        ALL,
        cls=_BASE,
        overrides=WITHOUT_POOLER,
        light=True,
    )


# ---- relative positions --------------------------------------------------------------------


def _relative(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(3, 7), torch.tensor([2, 0, 2])
    text = {"input_ids": ids, "lang_ids": langs}
    call("input_ids", text, ALL)
    call(
        "position_ids",
        {**text, "position_ids": make.below(0, 19, 3, 7)},
        notes="Distances are those of the places in the row: position_ids change nothing.",
    )
    call("head_mask", {**text, "head_mask": make.heads()}, ALL, light=True)
    for name, mask in (("right", right([7, 3, 5], 7)), ("left", left([4, 7, 6], 7))):
        inputs = {"input_ids": padded(ids, mask, PAD), "attention_mask": mask, "lang_ids": langs}
        call(f"{name}_padding", inputs, ALL, light=True)
    call("inputs_embeds", {"inputs_embeds": make.vectors(3, 6), "lang_ids": langs})
    call("to_the_last_position", {"input_ids": make.ids(1, 17), "lang_ids": langs[:1]})
    tokens = make.langs(3, 7)
    call("languages_per_token", {"input_ids": ids, "lang_ids": tokens}, langs=tokens)
    _relative_past(recorder, overrides={"is_decoder": True})


def _relative_cross(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    ids, langs = make.ids(3, 7), torch.tensor([1, 0, 1])
    call("input_ids", {"input_ids": ids, "lang_ids": langs}, {**ALL, **NO_CACHE})
    encoder = {
        "encoder_hidden_states": make.vectors(3, 5),
        "encoder_attention_mask": right([5, 2, 4], 5),
    }
    call(
        "encoder",
        {"input_ids": ids, **encoder},
        {**ALL, **NO_CACHE},
        notes="Cross attention has no distances.",
    )
    mask = left([4, 7, 6], 7)
    call(
        "left_padding",
        {"input_ids": padded(ids, mask, PAD), "attention_mask": mask, **encoder},
        NO_CACHE,
        valid=mask,
    )
    labels = make.ids(3, 7)
    call("labels", {"input_ids": ids, "lang_ids": langs, "labels": labels, **encoder}, NO_CACHE)
    _relative_past(recorder, encoder=encoder)


def _relative_past(recorder: Recorder, encoder: dict | None = None, **options: object) -> None:
    make, call = recorder.make, recorder.call
    ids, encoder = make.ids(3, 8), encoder or {}
    mask = left([6, 8, 7], 8)
    more = {"lang_ids": torch.tensor([1, 0, 1]), **encoder}
    several = "With several new tokens at once the reference gives all of them the last one's place"
    for name, cuts in (("past", _cuts(8, 5, 8)), ("past_one_by_one", _cuts(8, 5, 6, 7))):
        for padding in ("", "_left_padding"):
            text = padded(ids, mask, PAD) if padding else ids
            steps = []
            for cut in cuts:
                inputs = {"input_ids": text[:, cut], **more}
                whole = {"input_ids": text[:, : cut.stop], **more}
                step: dict = {"inputs": inputs, "whole": whole, "light": bool(padding)}
                if padding:
                    inputs["attention_mask"] = whole["attention_mask"] = mask[:, : cut.stop]
                    step |= {"valid": mask[:, cut], "valid_keys": mask[:, : cut.stop]}
                step["raw"] = cut.start > 0 and name == "past"
                steps.append({**step, "flags": {"use_cache": True}})
            notes = f"{several}; expected are the numbers without a cache."
            notes = notes if name == "past" else ""
            call(name + padding, steps=steps, cls=_NEXT, notes=notes, **options)


# ---- the order of norm, residual and adapter -----------------------------------------------


def _norms(recorder: Recorder) -> None:
    make, call = recorder.make, recorder.call
    mask = right([6, 3, 5], 6)
    inputs = {
        "input_ids": padded(make.ids(3, 6), mask, PAD),
        "attention_mask": mask,
        "lang_ids": torch.tensor([2, 0, 2]),
    }
    for overrides in norm_options():
        call(norm_name(overrides), inputs, {"output_hidden_states": True}, overrides=overrides)
    tokens = make.langs(3, 6)
    call("languages_per_token", {**inputs, "lang_ids": tokens}, langs=tokens)
    overrides = {"default_language": "sw_KE"}
    call("default_language", {"input_ids": make.ids(2, 6)}, overrides=overrides)


def norm_options() -> list[dict]:
    """The options beside those that a folder has."""
    return [
        {"adapter_reuse_layer_norm": reuse, "ln_before_adapter": before}
        for reuse in (True, False)
        for before in (True, False)
    ]


def norm_name(options: dict) -> str:
    reuse, before = options["adapter_reuse_layer_norm"], options["ln_before_adapter"]
    return f"{'' if reuse else 'no_'}reuse_{'before' if before else 'after'}"


def call_cases(root: Path) -> list[dict]:
    makers = {
        "plain": _plain,
        "causal": _causal,
        "cross": _cross,
        "relative_key": _relative,
        "relative_key_query": _relative_cross,
        **dict.fromkeys(NORMS, _norms),
        **HEADS,
    }
    cases = []
    for checkpoint, make in makers.items():
        recorder = Recorder(root, checkpoint)
        if checkpoint != "choice":
            check(load(root, checkpoint), recorder.make.ids(4, 5))
        make(recorder)
        cases += recorder.cases
    return cases
