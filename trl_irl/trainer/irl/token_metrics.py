"""Metrics of training and evaluation as means over tokens, of all micro-batches and ranks together."""

from collections.abc import Mapping
from dataclasses import fields

import torch
from accelerate import Accelerator

from ...soft_q import SoftQOutput, SoftQTerms


TOKEN_METRICS = ("loss", "nll", "td_loss", "kl", "entropy", "mean_token_accuracy", "log_pi_mean", "reward_mean")


class TokenMetrics:
    """
    Sums and counts since the last log, so that each logged metric is one mean over all tokens of all micro-batches and
    ranks, not a mean of means. They stay on the device until then: no synchronisation per step.

    Names are those of [`IRLTrainer`]'s log; see [`TokenMetrics.pop`].
    """

    _SUMS = (
        "tokens",
        "nll",
        "q",
        "q_squared",
        "v",
        "entropy",
        "correct",
        "kl",
        "kl_tokens",
        "lambda_td",
        "rewards",
        "reward",
        "reward_squared",
        "terminal_reward_squared",
        "input_tokens",
        "aux_loss",
        "aux_loss_count",
    )

    def __init__(self):
        self._sums: torch.Tensor | None = None
        self._step: torch.Tensor | None = None  # of the optimiser step under way
        self._own: tuple[str, ...] = ()  # names of the objective's own metrics

    @torch.no_grad()
    def add(
        self,
        output: SoftQOutput,
        terms: SoftQTerms,
        lambda_td: float,
        input_tokens: torch.Tensor | int,
        rows: torch.Tensor | None = None,
        own: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        """
        Add a micro-batch on this rank, or those of its rows that `rows`, a bool per row or per position, names.
        `input_tokens` counts what went into the model, prompts included; `own` are the objective's metrics, the same
        ones each time: [`~soft_q.objectives.Objective.metrics`].
        """
        if rows is not None:
            grids = ("q", "v", "entropy", "is_top1", "kl")
            output = SoftQOutput(
                **{name: grid[rows] for name in grids if (grid := getattr(output, name)) is not None},
                aux_loss=output.aux_loss,
            )
            terms = SoftQTerms(*(getattr(terms, field.name)[rows] for field in fields(SoftQTerms)))
        # Squares of q are sums of many thousands of large numbers: float64, where the device has it.
        dtype = torch.float32 if output.q.device.type == "mps" else torch.float64
        q, v, reward = output.q.to(dtype), output.v.to(dtype), terms.reward.to(dtype)
        tokens = terms.scored.sum()
        sums = {
            "tokens": tokens,
            "nll": terms.nll.sum(dtype=dtype),
            "q": q.sum(),
            "q_squared": q.square().sum(),
            "v": v.sum(),
            "entropy": output.entropy.sum(dtype=dtype),
            "correct": output.is_top1.sum(),
            "lambda_td": lambda_td * tokens,
            "rewards": terms.has_reward.sum(),
            "reward": reward.sum(),
            "reward_squared": reward.square().sum(),
            "terminal_reward_squared": (reward.square() * terms.is_terminal).sum(),
            "input_tokens": input_tokens,
        }
        if output.kl is not None:
            sums |= {"kl": output.kl.sum(dtype=dtype), "kl_tokens": tokens}
        if output.aux_loss is not None:
            sums |= {"aux_loss": output.aux_loss, "aux_loss_count": 1}

        def scalar(value: torch.Tensor | float) -> torch.Tensor:
            if isinstance(value, torch.Tensor):
                return value.to(q.device, dtype)
            return torch.full((), value, dtype=dtype, device=q.device)  # made on the device, not copied to it

        self._own = tuple(own or ())
        of_own = [scalar(x.sum(dtype=dtype)) for pair in (own or {}).values() for x in pair]
        new = torch.stack([scalar(sums.get(name, 0)) for name in self._SUMS] + of_own)
        self._step = new if self._step is None else self._step + new

    def end_step(self) -> None:
        """What was added since the last step stays."""
        if self._step is not None:
            self._sums = self._step if self._sums is None else self._sums + self._step
            self._step = None

    def drop_step(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics of the step under way alone, and forget them: for a step that was skipped. Every rank calls."""
        step, self._step = self._step, None
        return self._reduced(step, accelerator)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """
        The metrics since the last call, and forget them. Every rank must call, since sums are reduced over ranks.

        Returns:
            `nll`, `log_pi_mean`, `q_mean`, `q_std`, `v_mean`, `entropy` (in nats per scored token),
            `mean_token_accuracy`, `lambda_td` (mean over tokens), `td_loss`, `reward_mean`, `reward_std` (over tokens
            whose next state is known), `td_loss_terminal_share` (part of the summed squared reward that lies on stop
            tokens), `kl` and `aux_loss` if they were computed, the objective's own, and `input_tokens`, a count. It is
            empty if nothing was added.
        """
        self.end_step()
        sums, self._sums = self._sums, None
        return self._reduced(sums, accelerator)

    def _reduced(self, sums: torch.Tensor | None, accelerator: Accelerator) -> dict[str, float]:
        if sums is None:
            return {}
        totals = accelerator.reduce(sums, reduction="sum").tolist()
        own, sums = totals[len(self._SUMS) :], dict(zip(self._SUMS, totals, strict=False))
        tokens, rewards = max(sums["tokens"], 1), max(sums["rewards"], 1)
        q_mean, reward_mean = sums["q"] / tokens, sums["reward"] / rewards
        metrics = {
            "nll": sums["nll"] / tokens,
            "td_loss": sums["reward_squared"] / rewards,
            "td_loss_terminal_share": sums["terminal_reward_squared"] / (sums["reward_squared"] or 1),
            "q_mean": q_mean,
            "q_std": max(sums["q_squared"] / tokens - q_mean**2, 0) ** 0.5,
            "v_mean": sums["v"] / tokens,
            "log_pi_mean": -sums["nll"] / tokens,
            "reward_mean": reward_mean,
            "reward_std": max(sums["reward_squared"] / rewards - reward_mean**2, 0) ** 0.5,
            "lambda_td": sums["lambda_td"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "mean_token_accuracy": sums["correct"] / tokens,
            "input_tokens": sums["input_tokens"],
        }
        if sums["kl_tokens"]:
            metrics["kl"] = sums["kl"] / sums["kl_tokens"]
        if sums["aux_loss_count"]:
            metrics["aux_loss"] = sums["aux_loss"] / sums["aux_loss_count"]
        for name, total, count in zip(self._own, own[::2], own[1::2], strict=True):
            metrics[name] = total / max(count, 1)
        return metrics
