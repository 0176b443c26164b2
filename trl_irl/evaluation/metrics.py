"""Metrics of sampled completions."""

from collections.abc import Sequence


def self_bleu(samples: Sequence[Sequence[str]]) -> float:
    """
    Mean BLEU of each sample against the other samples of its prompt, from 0 (nothing in common) to 100 (all the same):
    lower is more diverse. sacrebleu's sentence BLEU, averaged over samples, then over prompts.

    Args:
        samples (`Sequence[Sequence[str]]`):
            For each prompt at least two completions.

    Paper: "Texygen" (arXiv 1802.01886).
    """
    from sacrebleu.metrics import BLEU

    if not samples or any(len(group) < 2 for group in samples):
        raise ValueError("self-BLEU compares the samples of a prompt with each other: it needs two or more of each.")
    bleu = BLEU(effective_order=True)
    return _mean(
        _mean(
            bleu.sentence_score(sample, [other for j, other in enumerate(group) if j != i]).score
            for i, sample in enumerate(group)
        )
        for group in samples
    )


def distinct_share(samples: Sequence[Sequence[str]]) -> float:
    """Share of a prompt's samples that differ from all earlier ones, averaged over prompts; 1 is all different."""
    return _mean(len(set(group)) / len(group) for group in samples)


def mean_score(samples: Sequence[Sequence[str]], rows: Sequence[dict], score) -> float:
    """Mean of `score(completion, row)` over a prompt's samples, then over prompts."""
    pairs = zip(samples, rows, strict=True)
    return _mean(_mean(score(sample, row) for sample in group) for group, row in pairs)


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
