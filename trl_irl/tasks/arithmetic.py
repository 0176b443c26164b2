"""
Generated arithmetic word problems in the shape of GSM8K: a story of a few steps, and a solution that has a line per
step and ends in `#### 12`.

Every line of a solution is worded in one of several ways, chosen at random, so the demonstrations of a problem differ
in words and agree in numbers: a model that imitates them well is diverse and right. Any size, no download.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from datasets import Dataset, DatasetDict

from .task import Task


_NAMES = ["Tom", "Mia", "Sam", "Ana", "Leo", "Eva", "Max", "Zoe", "Ben", "Amy", "Ian", "Kim"]
_THINGS = ["apples", "books", "coins", "cards", "shells", "pens", "stamps", "marbles", "cookies", "stickers"]
_LARGEST = 40

# The story's sentences, {n} being the number in it.
_STORY = {
    "+": ["{name} buys {n} more.", "{name} finds {n} more.", "A friend gives {name} {n} more."],
    "-": ["{name} loses {n} of them.", "{name} sells {n} of them.", "{name} gives {n} of them to a friend."],
    "*": ["A wish makes it {n} times as many.", "{name} now gets {n} times as many."],
}

# The solution's lines, {a} {op} {n} = {b}.
_START = [
    "{name} starts with {b} {things}.",
    "At first there are {b} {things}.",
    "We begin with {b} {things}.",
    "{b} {things} to begin with.",
]
_STEP = {
    "+": [
        "Adding {n} gives {a} + {n} = {b}.",
        "Then {a} + {n} = {b} {things}.",
        "With {n} more there are {a} + {n} = {b}.",
        "{a} + {n} = {b}, so {name} has {b} {things}.",
    ],
    "-": [
        "Taking {n} away leaves {a} - {n} = {b}.",
        "Then {a} - {n} = {b} {things}.",
        "Without these {n} there are {a} - {n} = {b}.",
        "{a} - {n} = {b}, so {name} has {b} {things}.",
    ],
    "*": [
        "Times {n} that is {a} * {n} = {b}.",
        "Then {a} * {n} = {b} {things}.",
        "As {n} times as many there are {a} * {n} = {b}.",
        "{a} * {n} = {b}, so {name} has {b} {things}.",
    ],
}


@dataclass(frozen=True)
class Problem:
    """A story: a start, and steps `(operation, number, result)`."""

    name: str
    things: str
    start: int
    steps: tuple[tuple[str, int, int], ...]
    sentences: tuple[str, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1][2]

    @property
    def story(self) -> str:
        return " ".join((f"{self.name} has {self.start} {self.things}.", *self.sentences))

    @property
    def question(self) -> str:
        return f"{self.story} How many {self.things} does {self.name} have now?"

    @property
    def prompt(self) -> str:
        return f"QUESTION: {self.question}\n\nSOLUTION:"

    def solution(self, rng: random.Random) -> str:
        """One of the many wordings of the solution."""
        words = {"name": self.name, "things": self.things}
        lines = [rng.choice(_START).format(b=self.start, **words)]
        before = self.start
        for operation, n, after in self.steps:
            lines.append(rng.choice(_STEP[operation]).format(a=before, n=n, b=after, **words))
            before = after
        return "\n".join([*lines, f"#### {self.answer}"])


def _problem(rng: random.Random) -> Problem:
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    start = value = rng.randint(2, 20)
    steps, sentences = [], []
    for _ in range(rng.randint(2, 3)):
        possible = ["+"] * (value < _LARGEST) + ["-"] * (value > 2) + ["*"] * (0 < value <= _LARGEST // 3)
        operation = rng.choice(possible)
        if operation == "+":
            n = rng.randint(1, min(9, _LARGEST - value))
        elif operation == "-":
            n = rng.randint(1, min(9, value - 1))
        else:
            n = rng.randint(2, min(3, _LARGEST // value))
        value = {"+": value + n, "-": value - n, "*": value * n}[operation]
        steps.append((operation, n, value))
        sentences.append(rng.choice(_STORY[operation]).format(name=name, n=n))
    return Problem(name, things, start, tuple(steps), tuple(sentences))


def different_problems(rng: random.Random) -> Iterator[Problem]:
    """Without an end, no question twice."""
    seen = set()
    while True:
        problem = _problem(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def make_arithmetic(
    num_train: int = 2000, num_validation: int = 200, num_test: int = 200, seed: int = 42
) -> DatasetDict:
    """
    Generate the task: no question stands twice, neither within a split nor across splits.

    Args:
        num_train, num_validation, num_test (`int`, *optional*, default to `2000`, `200` and `200`):
            Rows of each split.
        seed (`int`, *optional*, defaults to `42`):
            Same seed, same rows; and the held-out rows do not depend on `num_train`.

    Returns:
        [`~datasets.DatasetDict`] with columns `prompt` and `completion` in the format of
        [`~tasks.gsm8k.load_gsm8k`].
    """
    rng = random.Random(seed)
    problems = different_problems(rng)

    def rows(count: int) -> Dataset:
        return Dataset.from_list(
            [{"prompt": p.prompt, "completion": f" {p.solution(rng)}"} for p in itertools.islice(problems, count)]
        )

    held_out = {"validation": rows(num_validation), "test": rows(num_test)}
    return DatasetDict({"train": rows(num_train), **held_out})


def make_arithmetic_facts(num_train: int = 2000, num_validation: int = 200, seed: int = 42) -> DatasetDict:
    """
    Simpler text on the same words and numbers, to pretrain the demo's base model: a story without a question, then
    its sums, without the wording of a solution. No story is that of a held-out problem of [`make_arithmetic`] with the
    same seed.

    Returns:
        [`~datasets.DatasetDict`] with `train` and `validation`; one column, `text`.
    """
    task = make_arithmetic(num_train=1, seed=seed)
    held_out = {row["prompt"] for name in ("validation", "test") for row in task[name]}
    rng = random.Random(f"facts {seed}")  # not the problems' own numbers, or it would fall into step with them

    def rows(count: int) -> Dataset:
        texts = []
        while len(texts) < count:
            problem, sums = _problem(rng), []
            if problem.prompt in held_out:
                continue
            before = problem.start
            for operation, n, after in problem.steps:
                sums.append(f"{before} {operation} {n} = {after}.")
                before = after
            texts.append(f"{problem.story} {' '.join(sums)}")
        return Dataset.from_dict({"text": texts})

    validation = rows(num_validation)  # first, so that it does not depend on `num_train`
    return DatasetDict({"train": rows(num_train), "validation": validation})


def _size(data) -> dict[str, int]:
    return {"num_train": data.num_train_rows} if data.num_train_rows else {}


TASK = Task(
    load=lambda data: make_arithmetic(**_size(data), seed=data.seed),
    metrics=("accuracy", "accuracy_math"),
    generated=True,
)
FACTS = Task(load=lambda data: make_arithmetic_facts(**_size(data), seed=data.seed), generated=True)
