"""ROUGE of a completion against its references, for any script."""

import unicodedata
from functools import cache


def rouge(prediction: str, *references: str) -> dict[str, float]:
    """
    F1 of `rouge1`, `rouge2` and `rougeL` with stemming, each from 0 to 100, by Google's rouge-score; of several
    references, each from the one that it is highest with. Its own tokenizer knows the letters a to z only; here words
    are of letters of any script, and where a script has no spaces between words each character is one. On plain
    English the numbers are the same.
    """
    scores = _rouge_scorer().score_multi(references, prediction)
    return {name: 100 * score.fmeasure for name, score in scores.items()}


@cache
def _rouge_scorer():
    import regex
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    no_spaces = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
    word = regex.compile(rf"(?:(?!{no_spaces})[\p{{L}}\p{{M}}\p{{N}}])+|{no_spaces}\p{{M}}*|\p{{So}}")
    of_english = DefaultTokenizer(use_stemmer=True)

    class Words(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            words = word.findall(unicodedata.normalize("NFC", text).lower())
            return [stem for word in words for stem in (of_english.tokenize(word) if word.isascii() else [word])]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
