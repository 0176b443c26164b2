"""Metrics of sampled completions. Those over several samples take the samples of one prompt; average over prompts."""

import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest

import numpy as np

from .statistics import Statistic


def check_installed() -> None:
    """
    Raises:
        `ImportError`: a library that computes metrics is missing: better now than after hours of sampling.
    """
    missing = [name for name in ("rouge_score", "sacrebleu", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'{" and ".join(missing)} not installed. `pip install ".[eval]"` in the clone of this package '
            "brings what metrics need."
        )


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """
    The tokenizer of sacrebleu for the script that most letters of these texts are of: `"zh"` for Chinese, `"char"` for
    others that do not put spaces between words (Japanese, Thai, Lao, Khmer, Burmese, Tibetan) and for Korean, whose
    tokenizers sacrebleu does not bring along; else its default, `"13a"`, also where there is no letter.
    """
    import regex  # which sacrebleu needs too

    of_script = Counter(match.lastgroup for match in regex.finditer(_SCRIPTS, "\n".join(texts)))
    if of_script["kana"] * 10 > of_script["han"]:  # Japanese, which has Chinese characters as well
        of_script["char"] += of_script.pop("han", 0) + of_script.pop("kana", 0)
    (most, _), *_ = of_script.most_common(1) or [("other", 0)]
    return {"han": "zh", "char": "char"}.get(most, "13a")


_SCRIPTS = (
    r"(?P<han>\p{Han})|(?P<kana>[\p{Hiragana}\p{Katakana}])|"
    r"(?P<char>[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Hangul}])|(?P<other>\p{L})"
)


def self_bleu(samples: Sequence[str], tokenizer: str | None = None) -> float:
    """
    Mean BLEU of each sample against the others, from 0 (nothing in common) to 100 (all the same): lower is more
    diverse. sacrebleu's sentence BLEU. Paper: Texygen (arXiv 1802.01886).

    Args:
        samples (`Sequence[str]`)
        tokenizer (`str`, *optional*):
            sacrebleu's; that of the samples ([`bleu_tokenizer`]) if unset.

    Raises:
        `ValueError`: fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError("self-BLEU compares the samples of a prompt with each other: it needs two or more.")
    bleu = _sentence_bleu(tokenizer or bleu_tokenizer(samples))
    words = [bleu.tokenizer(sample.rstrip()).split() for sample in samples]
    grams = [_ngrams(one, bleu.max_ngram_order) for one in words]
    # What the others have most of each n-gram is the most that any has, or, for the one that has it, the second most:
    # counted once, where comparing each sample with all others would count every sample again each time.
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # the most, who has it, the second most
    for i, counts in enumerate(grams):
        for gram, count in counts.items():
            first, who, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, i, first) if count > first else (first, who, max(second, count))
    times, lengths, scores = Counter(map(tuple, words)), sorted(map(len, words)), []
    for i, of_sample in enumerate(words):
        if times[tuple(of_sample)] > 1:  # said before is 100, also where there is no word: two empty ones are alike
            scores.append(100.0)
            continue
        correct, total = [0] * bleu.max_ngram_order, [0] * bleu.max_ngram_order
        for gram, count in grams[i].items():
            first, who, second = most[gram]
            correct[len(gram) - 1] += min(count, second if who == i else first)
            total[len(gram) - 1] += count
        length = len(words[i])
        others = list(lengths)
        others.remove(length)
        closest = min(others, key=lambda other: (abs(other - length), other))
        scores.append(
            bleu.compute_bleu(
                correct,
                total,
                length,
                closest,
                bleu.smooth_method,
                bleu.smooth_value,
                bleu.effective_order,
                bleu.max_ngram_order,
            ).score
        )
    return sum(scores) / len(scores)


def _ngrams(words: Sequence[str], longest: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def distinct_share(samples: Sequence[str]) -> float:
    """Share of samples that differ from all earlier ones; 1 is all different."""
    return len(set(samples)) / len(samples)


def distinct_n(samples: Sequence[str], n: int, tokenizer: str | None = None) -> float:
    """
    Distinct n-grams of all samples together over all their n-grams, from 0 to 1; words are what white space separates
    or, where the tokenizer (see [`self_bleu`]) is not `"13a"`, what it makes. 0 if no sample has `n` words. Paper:
    arXiv 1510.03055.
    """
    tokenizer = tokenizer or bleu_tokenizer(samples)
    if tokenizer != "13a":
        samples = [_sentence_bleu(tokenizer).tokenizer(sample) for sample in samples]
    grams = [tuple(words[i : i + n]) for words in map(str.split, samples) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def vendi_score(samples: Sequence[str], tokenizer: str | None = None, longest: int = 2) -> float:
    """
    The effective number of different samples, from 1 (all the same) to their number (no n-gram in common): the
    exponential of the entropy of the eigenvalues of their similarities, cosines of counts of n-grams up to `longest`.
    Words are as for [`distinct_n`]; a sample without a word is like others without one alone. Paper: arXiv 2210.02410.
    """
    tokenizer = tokenizer or bleu_tokenizer(samples)
    if tokenizer != "13a":
        samples = [_sentence_bleu(tokenizer).tokenizer(sample) for sample in samples]
    grams = [_ngrams(sample.split(), longest) or Counter({(): 1}) for sample in samples]
    numbers = {gram: i for i, gram in enumerate(dict.fromkeys(gram for counts in grams for gram in counts))}
    counts = np.zeros((len(grams), len(numbers)))
    for row, of_sample in zip(counts, grams, strict=True):
        row[[numbers[gram] for gram in of_sample]] = list(of_sample.values())
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(counts @ counts.T / len(grams)).clip(min=1e-12)
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """
    Probability that of `k` samples drawn from these without replacement one is right: the unbiased estimate
    `1 - C(n - c, k) / C(n, k)` for `c` right ones of `n`. Paper: arXiv 2107.03374.

    Raises:
        `ValueError`: fewer than `k` samples.
    """
    n, c = len(correct), sum(map(bool, correct))
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs {k} or more samples of each prompt, and there are {n}. Raise `num_samples`.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def corpus_statistics(
    name: str, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> Statistic:
    """
    sacrebleu's corpus BLEU, with the references' [`bleu_tokenizer`], or chrF, from 0 to 100; all samples of all
    prompts are one corpus.

    Args:
        name (`str`):
            `"bleu"` or `"chrf"`.
        predictions (`Sequence[Sequence[str]]`):
            For each prompt its samples.
        references (`Sequence[Sequence[str]]`):
            For each prompt one or more; not all need have as many.
    """
    from sacrebleu.metrics import BLEU, CHRF

    metric = CHRF() if name == "chrf" else BLEU(tokenize=bleu_tokenizer([text for of in references for text in of]))
    flat = [(sample, of) for group, of in zip(predictions, references, strict=True) for sample in group]
    streams = zip_longest(*(of for _, of in flat))  # the first of each, the second of each or None, ...
    # What sacrebleu's own bootstrap is made of; its public `corpus_score` would read every text at each resample.
    counts = np.asarray(metric._extract_corpus_statistics([s for s, _ in flat], list(streams)), dtype=float)
    starts = np.cumsum([0, *map(len, predictions[:-1])])

    def score(sums: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(lambda total: metric._compute_score_from_stats(list(total)).score, -1, sums)

    return Statistic(np.add.reduceat(counts, starts, axis=0), score)


def sentence_score(name: str, prediction: str, references: Sequence[str]) -> float:
    """
    sacrebleu's BLEU of one text (with the order of n-grams that it has, and smoothing) or chrF, from 0 to 100, against
    its references: what one completion has of a corpus's score.
    """
    metric = _sentence_bleu(bleu_tokenizer(references)) if name == "bleu" else _sentence_chrf()
    return metric.sentence_score(prediction, list(references)).score


@cache
def _sentence_chrf():
    from sacrebleu.metrics import CHRF

    return CHRF()


@cache
def _sentence_bleu(tokenizer: str):
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True, tokenize=tokenizer)
