"""Beam search of the original XLM release, one text at a time and nothing fast.

The rules are those written down in tests/reference/NOTES.md: what xlmfam does for a whole batch at
once is held against them.
"""

import numpy as np


def search(log_probabilities, eos, max_length, beams, penalty, early_stopping):
    """Return the ids of the best text, end tokens at both ends.

    Args:
        log_probabilities: Function of running texts (n, length) that returns (n, vocabulary).
        eos: Begins and ends a text.
        max_length: Most tokens, both ends counted.
        beams: Width.
        penalty: Scores are divided by ``length ** penalty``.
        early_stopping: Stop at the first ``beams`` finished texts.
    """
    running, scores = [[eos]], np.zeros(1)
    finished = []  # (score, ids without the last end token), best first
    for length in range(1, max_length):
        totals = log_probabilities(np.array(running)) + scores[:, None]
        ranking = np.argsort(-totals, axis=None)[: 2 * beams]
        candidates = [(*divmod(int(i), totals.shape[1]), totals.flat[i]) for i in ranking]
        best = candidates[0][2]
        if len(finished) == beams:
            attainable = best / (max_length - 1) ** penalty
            if early_stopping or finished[-1][0] >= attainable:
                break
        following = []
        for row, token, total in candidates:
            if token == eos or length == max_length - 1:
                finished.append((total / length**penalty, running[row]))
                finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
            else:
                following.append((total, [*running[row], token]))
            if len(following) == beams:
                break
        if length < max_length - 1:
            scores = np.array([total for total, _ in following])
            running = [ids for _, ids in following]
    return [*finished[0][1], eos]
