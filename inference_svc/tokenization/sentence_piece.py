"""SentencePiece's BPE, as `tokenizer.ggml.model = llama` means it: pieces with scores, no merges.

SentencePiece joins the two neighbours whose union is the piece of the highest score, leftmost first, until no union is
a piece; a character that is no piece becomes bytes (google/sentencepiece, `bpe_model.cc`; the same in llama.cpp,
`llm_tokenizer_spm`). `tokenizers` joins by a list of pairs, the earliest pair first. The list is what
transformers' `generate_merges` makes of the scores: every way to cut a piece into two pieces, by falling score of the
piece; of equal scores the one with the longer left part first, so that a run of spaces grows from the left. Scores
make no difference between merges of the same piece, and need none: two of them compete for a character only if the
piece overlaps itself, and then the merges of higher score have decided already.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from tokenizers import Regex, models, normalizers

from inference_svc.tokenization.token_text import SPACE_MARK


def merges_of_scores(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs to join, first to last, of pieces with their scores.

    Pieces that all have the same score say nothing by it (converters write that where they know no scores); then their
    order is that of the merges, as it is in vocabularies trained by merging.
    """
    ranked = list(pieces)
    if len(set(pieces.values())) > 1:
        ranked.sort(key=pieces.__getitem__, reverse=True)
        groups = [list(group) for _, group in groupby(ranked, key=pieces.__getitem__)]
    else:
        groups = [[piece] for piece in ranked]
    merges: list[tuple[str, str]] = []
    for group in groups:
        if len(group) == 1:
            merges += _cuts(group[0], pieces)
        else:
            pairs = [pair for piece in group for pair in _cuts(piece, pieces)]
            merges += sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
    return merges


def _cuts(piece: str, pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """The ways to cut a piece into two others, the longest left part first."""
    pairs = []
    # A vocabulary has up to 262,144 pieces: this is most of the time that a tokenizer takes to start.
    for cut in range(len(piece) - 1, 0, -1):
        left = piece[:cut]
        if left in pieces and (right := piece[cut:]) in pieces:
            pairs.append((left, right))
    return pairs


def sentence_piece_model(
    vocabulary: dict[str, int], pieces: Mapping[str, float], *, unknown: str | None, falls_back_to_bytes: bool
) -> models.BPE:
    """The model of a tokenizers.Tokenizer.

    Args:
        vocabulary: all tokens and their ids.
        pieces: those that text is made of, with their scores; neither control nor byte tokens are.
        unknown: the token of characters that are not in the vocabulary; consecutive ones make one token.
        falls_back_to_bytes: such characters become `<0x..>` tokens instead, all 256 of which are in the vocabulary.
    """
    return models.BPE(
        vocab=vocabulary,
        merges=merges_of_scores(pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=falls_back_to_bytes,
    )


def normalizer(*, adds_space_prefix: bool, removes_extra_spaces: bool) -> normalizers.Sequence:
    """What SentencePiece does to a text first, each part between added tokens by itself.

    Args:
        adds_space_prefix: a space is put before the text.
        removes_extra_spaces: spaces at its ends are dropped, and runs of them become one.
    """
    steps: list[normalizers.Normalizer] = []
    if removes_extra_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if adds_space_prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))
    steps.append(normalizers.Replace(" ", SPACE_MARK))
    return normalizers.Sequence(steps)
