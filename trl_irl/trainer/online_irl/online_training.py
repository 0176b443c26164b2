"""What every online trainer does: sample before a step, and learn from the policy's rows beside the expert's."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ...soft_q.objectives import OnlineInverseSoftQ
from ...text.generation import generate, unwrapped
from ...text.random_states import own_random_numbers
from ..irl.token_metrics import TokenMetrics
from ..runtime.generation_watch import GenerationWatch, check_context, check_prompt
from ..runtime.step_clock import StepClock
from ..runtime.vllm_arguments import make_vllm
from .policy_samples import (
    PolicySample,
    ReplayBuffer,
    prompt_lengths,
    prompts_of,
    same_number,
    sample_with_vllm,
    scored_to_the_stop,
    with_policy_rows,
)


class OnlineTraining:
    """
    For a trainer of [`~trainer.irl.soft_q_training.SoftQTraining`], before it among the bases. A decoder-only model's
    rows are prompt and completion together; [`~trainer.seq2seq.online`] says where another kind differs.
    """

    def _begin_online(self) -> None:
        """After the trainer is made."""
        args = self.args
        if self._tensor_parallel > 1:
            raise ValueError(
                f"The model is split over {self._tensor_parallel} processes (tensor parallelism), and each would "
                "sample completions of its own for one prompt. Online IRL knows DDP, ZeRO and FSDP; offline IRL "
                "knows tensor parallelism too."
            )
        world = self.accelerator.num_processes
        identity = {"vocabulary": len(self._tokenizer), "processes": world}
        self._replay = ReplayBuffer(-(-args.replay_size // world), identity)
        self._policy_metrics = TokenMetrics()
        # Of the expert and of the policy's fresh samples: completions, their tokens, those that ended.
        self._seen = torch.zeros(2, 3, dtype=torch.float64)
        self._clock = StepClock()
        self.add_callback(self._clock)
        self._watch = GenerationWatch(self.accelerator, args.max_completion_length, "`lambda_td`")
        self._prompts: list[list[list[int]]] = []  # of each micro-batch of the step
        self._groups: list[list[PolicySample]] = []  # the policy's rows of those still to come
        self._policy_tokens: torch.Tensor | None = None  # of the step
        self._completions: torch.Tensor | None = None  # of the step: how many are the expert's, and the policy's
        self._is_policy: torch.Tensor | None = None
        self._check_room()
        self._vllm = None
        if args.use_vllm:
            count = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.num_generations
            stop_tokens = self.stop_token_ids
            self._vllm = make_vllm(args, self.model, self.accelerator, self._tokenizer, count, stop_tokens)

    def _forget_metrics(self) -> None:
        super()._forget_metrics()
        self._policy_metrics = TokenMetrics()
        self._seen.zero_()

    def _prompts_of(self, batch: dict[str, Any]) -> list[list[int]]:
        """Token ids of each row's prompt; rows with nothing to learn are left out."""
        return prompts_of(batch)

    def _with_policy_rows(self, batch: dict[str, Any], samples: list[PolicySample]) -> dict[str, Any]:
        """The batch with the policy's rows behind its own, and `is_policy`, a bool per row."""
        return with_policy_rows(batch, samples, self._tokenizer.pad_token_id, self.args.pad_to_multiple_of)

    def _check_room(self) -> None:
        if isinstance(self.train_dataset, Dataset):
            lengths = prompt_lengths(self.train_dataset)
            check_prompt(lengths.min(), f"Row {lengths.argmin()} of the train dataset")
            check_context(self._causal_lm.config, lengths.max(), self.args.max_completion_length)

    def _check_streamed(self, lengths: list[int]) -> None:
        """The same of the prompts of a step, where rows come one after the other."""
        if lengths:
            check_prompt(min(lengths), "A row of the stream")
            check_context(self._causal_lm.config, max(lengths), self.args.max_completion_length)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        own = (scored_to_the_stop(batch, self.stop_token_ids) for batch in epoch_iterator)
        batches, num_items_in_batch = super().get_batch_samples(own, num_batches, device)
        # A resumed run gets its random states back between here and the first micro-batch: nothing is drawn yet.
        self._prompts = [self._prompts_of(batch) for batch in batches]
        if not isinstance(self.train_dataset, Dataset):
            self._check_streamed([len(prompt) for of_batch in self._prompts for prompt in of_batch])
        self._groups = []
        for labels in (row[row != -100].tolist() for batch in batches for row in batch["labels"]):
            self._seen[0] += torch.tensor([bool(labels), len(labels), not self.stop_token_ids.isdisjoint(labels)])
        return batches, num_items_in_batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._groups:
            self._groups = self._policy_rows()
        inputs = self._with_policy_rows(inputs, self._groups.pop(0))
        return super().training_step(model, inputs, num_items_in_batch)

    def _policy_rows(self) -> list[list[PolicySample]]:
        """What the policy adds to each micro-batch of the step that begins."""
        prompts = [
            prompt for of_batch in self._prompts for prompt in of_batch for _ in range(self.args.num_generations)
        ]
        # Of the step alone, so that all ranks decide alike, and a resumed run as the one it goes on from.
        online = random.Random(f"{self.args.seed} {self.state.global_step}").random() < self.args.online_fraction
        rows = []
        if online:
            rows = self._replay.draw(len(prompts))
            with self._clock.part("generation"):
                fresh = self._sample(prompts)
            ended = [sample.completion[-1] in self.stop_token_ids for sample in fresh]
            counts = [len(fresh), sum(len(sample.completion) for sample in fresh), sum(ended)]
            self._seen[1] += torch.tensor(counts)
            self._watch.see([sample.completion for sample in fresh], ended)
            self._replay.add(fresh)
            rows = [*fresh, *rows]
        share = -(-len(rows) // len(self._prompts))
        counts = [sum(len(row.completion) for row in rows), sum(map(len, self._prompts)), len(rows)]
        counts = torch.tensor(counts, device=self.accelerator.device)
        if self.args.average_tokens_across_devices:  # as `num_items_in_batch` is counted
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._policy_tokens, self._completions = counts[0], counts[1:].float()
        return [rows[i * share : (i + 1) * share] for i in range(len(self._prompts))]

    def _sample(self, prompts: list[list[int]]) -> list[PolicySample]:
        if self._vllm is not None:
            return sample_with_vllm(self._vllm, prompts, self.stop_token_ids, self.accelerator)
        gather = self.args.ds3_gather_for_generation
        asked = same_number(prompts, self.stop_token_ids)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        # All ranks start from one seed: ranks with the same prompt would say the same.
        noise = own_random_numbers(self.args.seed, self.state.global_step, rank) if world > 1 else nullcontext()
        with unwrapped(self.model_wrapped, self.accelerator, self.args, gather) as model, noise:
            completions = generate(
                model,
                asked,
                self.stop_token_ids,
                self._tokenizer.pad_token_id,
                self.args.max_completion_length,
                self.args.temperature,
                self.args.per_device_train_batch_size * self.args.num_generations,
                synced_gpus=world > 1,
            )
        return [PolicySample(*pair) for pair in zip(prompts, completions, strict=False)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._is_policy = inputs.pop("is_policy", None)
        # What is evaluated too; of a training batch, whose tokens are counted before, it has been done.
        inputs = scored_to_the_stop(inputs, self.stop_token_ids)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _make_objective(self):
        args = self.args
        return OnlineInverseSoftQ(args.policy_weight, args.gamma, args.chi2_on, args.lambda_kl)

    def _tokens_of(self, terms):
        scored = terms.scored if self._is_policy is None else terms.scored & ~self._is_policy[:, None]
        return scored.sum()

    def _rows_of(self, tokens):
        if self._is_policy is None:
            return {}
        if not self._policy_tokens > 0:
            return {"is_policy": self._is_policy}
        ratios = {"expert_per_policy": tokens / self._policy_tokens}
        ratios["expert_rows_per_policy_row"] = self._completions[0] / self._completions[1]
        return {"is_policy": self._is_policy, **ratios}

    def _measure(self, mode, output, terms, lambda_td, inputs):
        if self._is_policy is None:
            return super()._measure(mode, output, terms, lambda_td, inputs)
        seen = self._tokens_seen(inputs)
        self._token_metrics[mode].add(output, terms, lambda_td, seen, rows=~self._is_policy)
        # Even of none: a rank that had none reduces its sums with those that had some. Rows count as `input_tokens`.
        self._policy_metrics.add(output, terms, lambda_td, self._is_policy.sum(), rows=self._is_policy)
        return None

    def _get_grad_norm(self, model, grad_norm=None):
        skipped = self._step_guard.skipped
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if self._step_guard.skipped == skipped:
            self._policy_metrics.end_step()
        else:
            self._policy_metrics.drop_step(self.accelerator)
        return grad_norm

    def _pop_token_metrics(self, mode):
        metrics = super()._pop_token_metrics(mode)
        if mode == "train":
            metrics |= self._pop_policy_metrics(metrics)
        return metrics

    def _pop_policy_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        device = self.accelerator.device
        seen = self.accelerator.reduce(self._seen.float().to(device), reduction="sum").tolist()
        self._seen.zero_()
        metrics_of_sides = {}
        for side, (count, tokens, ended) in zip(("expert", "policy"), seen, strict=True):
            if count:
                metrics_of_sides |= {f"{side}_length": tokens / count, f"{side}_ended": ended / count}
        # Every rank pops, whether it has anything: sums are reduced over ranks.
        policy = self._policy_metrics.pop(self.accelerator)
        if policy and policy["input_tokens"]:
            names = ("reward_mean", "v_mean", "td_loss", "nll")
            metrics_of_sides |= {f"policy_{name}": policy[name] for name in names}
            metrics_of_sides["reward_gap"] = metrics["reward_mean"] - policy["reward_mean"]
        return metrics_of_sides | self._clock.pop()

    def _replay_file(self, folder: str | Path) -> Path:
        return Path(folder) / f"replay-{self.accelerator.process_index}.json"

    def _save_rng_state(self, output_dir):
        if self.args.replay_size:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self._replay.save(self._replay_file(output_dir))
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.args.replay_size:
            self._replay.load(self._replay_file(checkpoint))
