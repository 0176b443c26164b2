"""Metrics of texts in scripts other than Latin: against sacrebleu, rouge-score's own numbers, and known answers."""

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from trl_irl.evaluation.metrics import bleu_tokenizer, corpus_statistics, distinct_n, self_bleu
from trl_irl.evaluation.scoring import tokenizer_of
from trl_irl.tasks.rouge import rouge


TEXTS = {  # by sacrebleu's tokenizer, one a language
    "13a": [
        "The cat sat on the mat, and it slept.",
        "Η γάτα κάθισε στο χαλί και κοιμήθηκε.",
        "Кошка села на коврик и уснула там.",
        "جلست القطة على السجادة ونامت هناك",
        "החתול ישב על השטיח ונרדם שם",
        "बिल्ली चटाई पर बैठी और वहीं सो गई",
        "Con mèo ngồi trên tấm thảm và ngủ.",
        "",
        "12 + 30 = 42",
    ],
    "zh": ["猫坐在垫子上，然后睡着了。", "Python 是一种编程语言，他每天都使用它工作。"],
    "char": [
        "猫はマットの上に座って眠った。",
        "ネコがマットで寝ている。",
        "고양이가 매트 위에 앉아 잠이 들었다.",
        "แมวนั่งบนเสื่อแล้วก็หลับไป",
        "ແມວນັ່ງເທິງເສື່ອແລ້ວນອນຫລັບ",
        "ឆ្មាអង្គុយលើកម្រាលហើយដេកលក់",
        "ကြောင်သည်ဖျာပေါ်တွင်ထိုင်သည်",
    ],
}
ALL = [(tokenizer, text) for tokenizer, texts in TEXTS.items() for text in texts if any(c.isalpha() for c in text)]


@pytest.mark.parametrize("tokenizer, text", ALL)
def test_the_same_is_100_and_a_near_copy_is_near(tokenizer, text):
    assert bleu_tokenizer([text]) == tokenizer
    assert corpus_statistics("bleu", [[text]], [[text]]).value == pytest.approx(100)
    assert rouge(text, text) == {name: pytest.approx(100) for name in ("rouge1", "rouge2", "rougeL")}
    stripped = text.rstrip(".。")
    near = stripped[:-1] if tokenizer != "13a" else stripped.rsplit(" ", 1)[0]
    assert self_bleu([stripped, near]) > 60 and rouge(near, stripped)["rougeL"] > 80
    assert rouge(near, stripped)["rougeL"] < 100 and corpus_statistics("bleu", [[near]], [stripped]).value < 100
    assert 0 < distinct_n([text, text], 2) <= 0.51


def test_bleu_is_the_librarys_by_that_tokenizer():
    for tokenizer, (reference, other, *_) in TEXTS.items():
        expected = BLEU(tokenize=tokenizer).corpus_score([other, reference], [[reference, reference]]).score
        found = corpus_statistics("bleu", [[other, reference]], [[reference]]).value
        assert found == pytest.approx(expected) and 0 < found < 100


def test_rouge_by_hand():
    # In common: 3 of 4 and of 5 characters; "我爱" of 3 and of 4 pairs.
    found = rouge("我爱吃鱼", "我爱喝鱼汤")
    assert found["rouge1"] == pytest.approx(100 * 2 * 3 / 9) and found["rouge2"] == pytest.approx(100 * 2 * 1 / 7)
    assert rouge("Добрый ВЕЧЕР", "добрый день")["rouge1"] == pytest.approx(50)
    assert rouge("cafe\u0301", "café")["rouge1"] == 100 and rouge("cafés", "caf")["rouge1"] == 0
    assert rouge("हिन्दी", "हिन")["rouge1"] == 0  # a word with its marks is one


def test_rouge_of_english_is_rouge_scores_own():
    rng = random.Random(0)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    words = "The quick_brown foxes' jumping, over-fed U.S. dogs; didn't SLEEP 3.5 times\t(really)! — “they” run".split(
        " "
    )
    for _ in range(50):
        a, b = (" ".join(rng.choices(words, k=12)) for _ in range(2))
        assert rouge(a, b) == {name: pytest.approx(100 * s.fmeasure) for name, s in scorer.score(b, a).items()}


def test_one_tokenizer_for_all_models():
    chinese, thai = TEXTS["zh"][0], TEXTS["char"][3]
    assert tokenizer_of([{"prompt": "Translate: cat " * 9, "completion": chinese}]) == "zh"
    assert tokenizer_of([{"prompt": thai, "completion": "42"}]) == "char"  # no letters in the reference
    messages = [{"role": "user", "content": chinese}]
    assert tokenizer_of([{"prompt": messages, "completion": "7"}, {"prompt": "One?", "completion": "1"}]) == "zh"
    assert tokenizer_of([{"completion": "1"}]) == "13a"
    assert self_bleu([chinese, chinese[:-3]]) > self_bleu([chinese, chinese[:-3]], "13a") == 0
