"""The models' own rewards against the task's score: agreement over samples, corrupted references, best of n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..rewards import SoftQReward
from ..rewards.corruption import corrupt, sensitivity
from ..rewards.frozen_models import check_same_tokens
from ..rewards.soft_q_reward import CompletionReward, check_states_in_common
from ..tasks.columns import references_of
from ..tasks.final_answer import given_answer
from ..text.encode import asked
from ..text.samplers import Sampler
from . import reward_analysis
from .comparison import sampler_of
from .loaded_models import LoadedModel, Stopwatch
from .metrics import sentence_score
from .reference_judge import ReferenceJudge
from .reward_report import BestOf, Findings, Tells
from .scoring import Scorer
from .settings import EvaluationSettings


class Judge:
    """The rewards of one model, and what becomes of a completion's token rewards."""

    def __init__(self, judge: LoadedModel, settings: EvaluationSettings):
        options = {"batch_size": settings.batch_size, "dtype": settings.dtype}
        # By name, what it was trained with stands beside it.
        self.soft_q = SoftQReward(judge.path or judge.model, judge.tokenizer, **options)
        self.reference = None
        if (path := settings.reward_ref_model) is not None:
            check_same_tokens(judge.tokenizer, path, "reward_ref_model", "model", all_of_them=False)
            self.reference = SoftQReward(path, judge.tokenizer, kind="advantage", **options)
            check_states_in_common(self.soft_q.model, self.reference.model, "reward_ref_model")

    def score(self, *args, **kwargs) -> dict[str, list[CompletionReward]]:
        """By kind: see [`SoftQReward.score`]."""
        soft_q = self.soft_q.score(*args, **kwargs)
        likelihood = [one.as_advantage() for one in soft_q]
        by_kind = {"soft_q": soft_q, "likelihood": likelihood}
        if self.reference is not None:  # as SoftQReward's kind "log_ratio", without asking the model a second time
            of_ref = self.reference.score(*args, **kwargs)
            by_kind["log_ratio"] = [
                replace(one, rewards=one.rewards - ref.rewards) for one, ref in zip(likelihood, of_ref, strict=True)
            ]
        return by_kind

    def returns(self, *args, **kwargs) -> dict[str, np.ndarray]:
        """A number per completion, by kind and aggregate; NaN where no token's reward is known."""
        by_column = {}
        for kind, scored in self.score(*args, **kwargs).items():
            discounted = ["discounted"] if kind == "soft_q" and self.soft_q.gamma < 1 else []
            for name in ("sum", "mean", *discounted):
                by_column[f"{kind} {name}"] = np.array([one.number(name) for one in scored], dtype=np.float64)
        return by_column

    def settings(self) -> str:
        return f"gamma {self.soft_q.gamma:g}, terminal value {self.soft_q.terminal_value}"


@dataclass
class Sampled:
    """All completions of a model by a sampler: arrays of shape `(prompts, completions)`."""

    groups: list[list[dict]]
    scores: np.ndarray
    rewards: dict[str, np.ndarray] = field(default_factory=dict)
    score: str = ""  # the metric's name


def score_of_each(score: Callable, metrics: Sequence[str]) -> Callable[[str, dict], dict[str, float]]:
    """The scores of one completion; of metrics of a whole corpus alone, what it would have as a corpus by itself."""

    def with_sentences(text: str, row: dict) -> dict[str, float]:
        of_corpus = [name for name in ("bleu", "chrf") if name in metrics]
        return score(text, row) or {name: sentence_score(name, text, references_of(row)) for name in of_corpus}

    return with_sentences


def collect(lines: Sequence[dict], rows: Sequence[dict], score: Callable) -> dict[tuple[str, Sampler], Sampled]:
    """The sampled completions (not the greedy ones) of each model and sampler, over seeds, with their scores."""
    cells: dict[tuple[str, Sampler], list[list[dict]]] = {}
    for i, line in enumerate(lines):  # cell by cell, and in each the prompts in order
        sampler = sampler_of(line)
        if sampler.temperature != 0:
            groups = cells.setdefault((line["model"], sampler), [[] for _ in rows])
            groups[i % len(rows)].extend(line["completions"])
    scorer = Scorer(score)
    sampled = {}
    for key, groups in cells.items():
        scored = [
            [scorer.scores_of(completion["text"], row) for completion in group]
            for group, row in zip(groups, rows, strict=True)
        ]
        name = next((next(iter(one)) for group in scored for one in group if one), None)
        if name is None:
            raise ValueError(
                "`reward_analysis` and `rerank` need a score for each completion, and the metrics have none: add one "
                "of accuracy, accuracy_math, rouge, bleu and chrf, or a function of your own as `task`."
            )
        values = [[(one or {}).get(name, float("nan")) for one in group] for group in scored]
        sampled[key] = Sampled(groups, np.array(values), score=name)
    return sampled


def add_rewards(sampled: dict[tuple[str, Sampler], Sampled], rows: Sequence[dict], judge: Judge, name: str) -> None:
    """
    Every completion's returns by one model, under `name kind aggregate`. It reads the tokens that were said, or the
    text in its own tokens where those are of another tokenizer, or where there are none, as of given completions.
    """
    for one in sampled.values():
        flat = [(asked(row), c) for row, group in zip(rows, one.groups, strict=True) for c in group]
        texts, ids, ended = ([c[key] for _, c in flat] for key in ("text", "token_ids", "ended"))
        own = judge.soft_q.reads(texts, ids, ended)
        said = {"completion_ids": ids} if own else {"completions": texts, "ended": ended}
        returns = judge.returns([prompt for prompt, _ in flat], **said)
        for column, values in returns.items():
            one.rewards[f"{name} {column}"] = values.reshape(one.scores.shape)


def corruption_of_references(judge: Judge, rows: Sequence[dict]) -> dict[str, dict]:
    """By kind, what replacing one token of each reference does: see [`~rewards.corruption.sensitivity`]."""
    prompts = [asked(row) for row in rows]
    before = judge.score(prompts, [row["completion"] for row in rows])
    corrupted = corrupt([one.token_ids.tolist() for one in before["soft_q"]], judge.soft_q.stop_tokens)
    after = judge.score([prompts[i] for i in corrupted.rows], completion_ids=corrupted.token_ids)
    return {
        kind: sensitivity([before[kind][i] for i in corrupted.rows], after[kind], corrupted.positions)
        for kind in before
    }


def best_of_n(
    sampled: dict[tuple[str, Sampler], Sampled], rows: Sequence[dict], exact: bool, marker: str | None = None
) -> list[BestOf]:
    """
    The score of the best of 1, 2, 4, ... n of every prompt's completions, by every way to choose; n is the most that
    some prompt has with a score.
    """
    results = []
    for (model, sampler), one in sampled.items():
        n = int((~np.isnan(one.scores)).sum(axis=1).max())
        if not n:
            continue
        numbers = sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})
        of = reward_analysis.best_of
        ways = {"random": [of(np.zeros_like(one.scores), one.scores, k) for k in numbers]}
        if exact:
            pairs = zip(one.groups, rows, strict=True)
            answers = [[given_answer(c["text"], row, marker) for c in group] for group, row in pairs]
            ways["majority vote"] = [reward_analysis.majority_of(answers, one.scores, k) for k in numbers]
        ways |= {name: [of(rewards, one.scores, k) for k in numbers] for name, rewards in one.rewards.items()}
        ways["oracle"] = [of(one.scores, one.scores, k) for k in numbers]
        for way, statistics in ways.items():
            results.append(BestOf(model, sampler, way, dict(zip(numbers, statistics, strict=True))))
    return results


def agreement(sampled: dict[tuple[str, Sampler], Sampled]) -> list[Tells]:
    """Each reward, and the length, against the score: all temperatures of a model together."""
    results = []
    known = [one.scores[~np.isnan(one.scores)] for one in sampled.values()]
    binary = all(np.isin(scores, (0, 1)).all() for scores in known)  # of all models, or a table would have holes
    for model in dict.fromkeys(model for model, _ in sampled):
        parts = [one for (name, _), one in sampled.items() if name == model]
        scores = np.concatenate([one.scores for one in parts], axis=1)
        lengths = [[[c["length"] for c in group] for group in one.groups] for one in parts]
        rewards = {"length": np.concatenate([np.array(x, dtype=np.float64) for x in lengths], axis=1)}
        rewards |= {name: np.concatenate([one.rewards[name] for one in parts], axis=1) for name in parts[0].rewards}
        results += [Tells.of(model, name, values, scores, binary) for name, values in rewards.items()]
    return results


def analyse(
    judges: Mapping[str, LoadedModel],
    settings: EvaluationSettings,
    metrics: Sequence[str],
    lines: Sequence[dict],
    rows: Sequence[dict],
    score: Callable,
    stopwatch: Stopwatch,
    judge: ReferenceJudge | None,
) -> Findings:
    """Judge every sampled completion by the rewards of these models and, if there is one, by the reward model."""
    sampled = collect(lines, rows, score_of_each(score, metrics))
    findings = Findings(score=next((one.score for one in sampled.values()), ""))
    if judge is not None:
        with stopwatch:
            for one in sampled.values():
                one.rewards["preference"] = np.array(judge.returns(one.groups))
    for name, model in judges.items():
        with stopwatch:
            of_model = Judge(model, settings)
            findings.judges[name] = of_model.settings()
            add_rewards(sampled, rows, of_model, name)
            if settings.reward_analysis and "completion" in rows[0]:
                corrupted = corruption_of_references(of_model, rows)
                findings.corruption |= {f"{name} {kind}": values for kind, values in corrupted.items()}
    if settings.reward_analysis:
        findings.agreement = agreement(sampled)
    if settings.rerank:
        findings.best_of_n = best_of_n(sampled, rows, "accuracy" in metrics, settings.answer_marker)
    return findings
