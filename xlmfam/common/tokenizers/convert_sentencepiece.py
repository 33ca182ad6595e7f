"""Building the tokenizer of the ``tokenizers`` library from a sentencepiece model."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from .exact_normalizer import ExactNormalizer
from .sentencepiece_model import SPACE, CharsMap, Piece, PieceType, SentencePieceModel


def unigram_or_bpe(
    model: SentencePieceModel,
    vocabulary: Sequence[tuple[str, float]],
    unk_id: int,
) -> Tokenizer:
    """Return a tokenizer that splits as ``model`` does, with the ids of ``vocabulary``.

    It has no added tokens yet and no post-processor.

    Args:
        model: The sentencepiece model.
        vocabulary: Token and score in the order of ids; a family puts its own tokens around the
            pieces of the model.
        unk_id: The id of the unknown token in ``vocabulary``.
    """
    if model.is_bpe:
        numbers = {token: number for number, (token, _) in enumerate(vocabulary)}
        core: Any = models.BPE(
            vocab=numbers,
            merges=bpe_merges(model.pieces),
            unk_token=vocabulary[unk_id][0],
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    else:
        core = models.Unigram(list(vocabulary), unk_id=unk_id, byte_fallback=model.byte_fallback)
    tokenizer = Tokenizer(core)
    tokenizer.normalizer = _normalizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(model.remove_extra_whitespaces, model.add_dummy_prefix)
    tokenizer.decoder = decoders.Metaspace(SPACE, "always" if model.add_dummy_prefix else "never")
    user_defined = [p.text for p in model.pieces if p.type is PieceType.USER_DEFINED]
    if user_defined:
        tokenizer.add_tokens([AddedToken(text, normalized=True) for text in user_defined])
    return tokenizer


def bpe_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return the merges that a BPE model of sentencepiece stands for, best first.

    Such a model ranks results and not pairs: any two pieces that make up a third may merge.
    """
    usable = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
    scores = {piece.text: piece.score for piece in pieces if piece.type in usable}
    ranked = [
        (-scores[text], number, (text[:cut], text[cut:]))
        for number, text in enumerate(scores)
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [pair for _, _, pair in sorted(ranked)]


def _normalizer(model: SentencePieceModel) -> Any:
    steps: list[Any] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return normalizers.Sequence(steps)


def _pre_tokenizer(remove_extra_whitespaces: bool, add_dummy_prefix: bool) -> Any:
    space = pre_tokenizers.Metaspace(SPACE, "always" if add_dummy_prefix else "never")
    if not remove_extra_whitespaces:
        return space
    # Here and not in the normaliser: text that ends at an added token has an end there, too.
    trailing = pre_tokenizers.Split(Regex(r" +\z"), "removed")
    return pre_tokenizers.Sequence([trailing, space])


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a normaliser or pre-tokenizer of ``tokenizer.json``, sequences opened."""
    if not part:
        return []
    if part["type"] == "Sequence":
        inner = part.get("normalizers") or part.get("pretokenizers") or []
        return [step for item in inner for step in steps_of(item)]
    return [part]


def repair_trailing_space(tokenizer: Tokenizer) -> None:
    """Make a tokenizer read from a file treat space at the end of a text as sentencepiece does.

    Only the tokenizer of a sentencepiece model that ends in a Metaspace step is changed.
    """
    content = json.loads(_without_vocabulary(tokenizer))
    steps = steps_of(content.get("pre_tokenizer"))
    removes = any(
        step.get("pattern") == {"Regex": " {2,}"} or step["type"] == "Precompiled"
        for step in steps_of(content.get("normalizer"))
    )
    if not removes or not steps or steps[-1]["type"] != "Metaspace":
        return
    if any(step["type"] == "Split" and step["pattern"] == {"Regex": r" +\z"} for step in steps):
        return
    # Earlier releases ended the normaliser with a Strip, which takes more than spaces: U+0085 too.
    kept = [s for s in steps_of(content.get("normalizer")) if not _handles_space(s)]
    content["normalizer"] = {"type": "Sequence", "normalizers": kept}
    tokenizer.normalizer = normalizers.Sequence(
        [
            Tokenizer.from_str(json.dumps(content)).normalizer,
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(True, steps[-1].get("prepend_scheme") != "never")


def _handles_space(step: dict[str, Any]) -> bool:
    """Say whether a step strips the end or joins spaces, as ours will in its place."""
    if step["type"] == "Strip":
        return step["strip_right"] and not step["strip_left"]
    return step.get("pattern") == {"Regex": " {2,}"}


def join_spaces_to_space(tokenizer: Tokenizer) -> None:
    """Make a normaliser that turns several spaces into a U+2581 turn them into one space.

    It comes to the same in text, and a token that takes the space before it finds one there.
    """
    content = json.loads(_without_vocabulary(tokenizer))
    steps = steps_of(content.get("normalizer"))
    joining = [s for s in steps if s.get("pattern") == {"Regex": " {2,}"} and s["content"] == SPACE]
    for step in joining:
        step["content"] = " "
    if joining:
        tokenizer.normalizer = Tokenizer.from_str(json.dumps(content)).normalizer


def _without_vocabulary(tokenizer: Tokenizer) -> str:
    """Return the tokenizer as JSON with a model of nothing; a vocabulary is long."""
    small = Tokenizer(models.BPE())
    if tokenizer.normalizer is not None:
        small.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        small.pre_tokenizer = tokenizer.pre_tokenizer
    return small.to_str()


def exact_normalizer_of(tokenizer: Tokenizer) -> ExactNormalizer | None:
    """Return the exact normaliser that fits a tokenizer, ``None`` if it is of another kind."""
    content = json.loads(_without_vocabulary(tokenizer))
    steps = steps_of(content.get("normalizer"))
    spaces = steps_of(content.get("pre_tokenizer"))
    if not spaces or spaces[-1]["type"] != "Metaspace":
        return None
    charsmap: CharsMap | None = None
    removes = False
    for step in steps:
        if step["type"] == "Precompiled":
            charsmap = CharsMap(base64.b64decode(step["precompiled_charsmap"]))
        elif step.get("pattern") == {"Regex": " {2,}"}:
            removes = True
        elif step["type"] != "Strip":
            # A normaliser that does more than a sentencepiece model's: nothing to repair.
            return None
    return ExactNormalizer(charsmap, removes, spaces[-1].get("prepend_scheme") != "never")


def with_exact_normalizer(tokenizer: Tokenizer, guarded: Sequence[str]) -> Tokenizer | None:
    """Return a copy that normalises exactly, ``None`` if ``tokenizer`` is of another kind.

    Args:
        tokenizer: The tokenizer; it is not changed.
        guarded: Special tokens that text can turn into by normalisation, and that such text must
            not become.
    """
    exact = exact_normalizer_of(tokenizer)
    if exact is None:
        return None
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.normalizer = normalizers.Normalizer.custom(exact)
    cuts = [_cut_between(tokenizer, token) for token in guarded if len(token) > 1]
    if cuts:
        # The unigram model has the special tokens in its vocabulary, where the one of
        # sentencepiece never finds them in text; cut in two they are not found either.
        cut = pre_tokenizers.Split(Regex("|".join(cuts)), "isolated")
        copied.pre_tokenizer = pre_tokenizers.Sequence([copied.pre_tokenizer, cut])
    return copied


def with_raw_tokens(tokenizer: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    """Return a copy that looks for added ``tokens`` in the text as it came."""
    content = json.loads(tokenizer.to_str())
    for added in content["added_tokens"]:
        added["normalized"] = added["normalized"] and added["content"] not in tokens
    return Tokenizer.from_str(json.dumps(content))


def _cut_between(tokenizer: Tokenizer, token: str) -> str:
    """Return a pattern for a place inside ``token``, if possible not between two unknowns.

    Neighbouring unknown characters make one unknown token, and would make two when cut.
    """
    known = [tokenizer.token_to_id(char) is not None for char in token]
    places = range(len(token) - 1, 0, -1)
    place = next((at for at in places if known[at - 1] or known[at]), 1)
    return f"(?<={re.escape(token[:place])})(?={re.escape(token[place:])})"


def with_newline_token(tokenizer: Tokenizer, token: str, exact: bool) -> Tokenizer | None:
    """Return a copy that turns newlines into ``token``, with offsets kept.

    Args:
        tokenizer: The tokenizer; it is not changed.
        token: One of its added tokens.
        exact: Normalise exactly as well.
    """
    content = json.loads(tokenizer.to_str())
    for added in content["added_tokens"]:
        if added["content"] == token or added["lstrip"] or added["rstrip"]:
            # Looked for after normalisation, which is where newlines become the token; tokens
            # that take the space beside them would take newlines before that.
            added["normalized"] = True
    copied: Tokenizer | None = Tokenizer.from_str(json.dumps(content))
    if exact and copied is not None:
        guarded = [t["content"] for t in content["added_tokens"] if not t["normalized"]]
        copied = with_exact_normalizer(copied, guarded)
    if copied is not None:
        steps: list[Any] = [normalizers.Replace(Regex(r"\r\n|\r|\n"), token)]
        steps += [copied.normalizer] if copied.normalizer is not None else []
        steps += [normalizers.Replace(Regex(f" *{re.escape(token)} *"), token)]
        copied.normalizer = normalizers.Sequence(steps)
    return copied


def readable_by_older(text: str) -> str:
    """Return ``tokenizer.json`` in the spelling that tokenizers 0.15 reads.

    It wants ``add_prefix_space`` beside the newer ``prepend_scheme``, and merges as one string;
    newer releases read both.
    """
    content = json.loads(text)

    def visit(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("type") == "Metaspace":
                part.setdefault("add_prefix_space", part.get("prepend_scheme") != "never")
            for value in part.values():
                visit(value)
        elif isinstance(part, list):
            for value in part:
                visit(value)

    for name in ("normalizer", "pre_tokenizer", "decoder"):
        visit(content.get(name))
    merges = content["model"].get("merges")
    if merges and not any(" " in part for pair in merges for part in pair if len(pair) == 2):
        content["model"]["merges"] = [p if isinstance(p, str) else " ".join(p) for p in merges]
    return json.dumps(content, ensure_ascii=False, indent=2)
