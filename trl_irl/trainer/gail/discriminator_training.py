"""The discriminator's side of adversarial imitation: its updates between generations, alike on every rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from .config import GAILConfig
from .discriminator import Discriminator, Row


class Adversary:
    """
    Trains a [`~trainer.gail.discriminator.Discriminator`] on the expert's and the policy's completions of the same
    prompts.

    Every rank holds the whole discriminator and sums up gradients with the others, so that it needs nothing of the
    policy's wrapper (DDP, DeepSpeed, FSDP), and the ranks' weights stay equal. Both sides weigh the same, whatever
    their numbers of rows.

    Args:
        discriminator ([`~trainer.gail.discriminator.Discriminator`])
        args ([`GAILConfig`])
        accelerator ([`~accelerate.Accelerator`])
    """

    def __init__(self, discriminator: Discriminator, args: GAILConfig, accelerator: Accelerator):
        self.discriminator, self.args, self.accelerator = discriminator, args, accelerator
        discriminator.to(accelerator.device)
        self.weights = discriminator.parameters
        self._dtypes = {name: weight.dtype for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=args.discriminator_learning_rate, weight_decay=args.discriminator_weight_decay
        )
        # In float16 gradients are lost that are below 6e-8; a step whose scaled gradients overflow is left out.
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.mixed_precision == "fp16")
        self.batch_size = args.discriminator_batch_size or args.per_device_train_batch_size
        self.generations = 0  # seen so far

    @property
    def is_warming_up(self) -> bool:
        """Whether the policy still gets no reward."""
        return self.generations <= self.args.discriminator_warmup_steps

    def keep_dtypes(self) -> None:
        """
        Give the weights back the dtypes that they were made with, before anything else of a step. When training
        begins, DeepSpeed casts all that hangs on the policy to 16 bits, an adapter that shares its base as well; in
        bfloat16 an update is lost that is below 1/256 of its weight.
        """
        for name, weight in self.weights.items():
            weight.data = weight.data.to(self._dtypes[name])

    def update(self, expert: Sequence[Row], policy: Sequence[Row]) -> dict[str, float]:
        """
        The updates that a generation brings, over equal shares of the rows; all ranks take part.

        Args:
            expert (`Sequence[Row]`), policy (`Sequence[Row]`):
                This rank's. What the expert said several times is read once and weighs as often: a prompt's
                completions may lie on several ranks, and its demonstration on each of them.

        Returns:
            `dict[str, float]`: `discriminator_loss` (nats), `discriminator_accuracy_expert` and
            `discriminator_accuracy_policy` over all ranks, on rows that the discriminator has not been updated with
            yet, and `discriminator_grad_norm`; empty if this generation brings no update.

        Raises:
            `FloatingPointError`: gradients are not finite.
        """
        ratio, done = self.args.discriminator_update_ratio, self.generations
        self.generations += 1
        count = math.floor((done + 1) * ratio) - math.floor(done * ratio)
        count = min(count, max(len(expert), len(policy)))  # as many on every rank
        said = [(tuple(prompt), tuple(completion)) for prompt, completion in expert]
        if len(distinct := list(Counter(said).items())) >= count:
            shares = [distinct[i::count] for i in range(count)]
        else:  # then an update has its part of what was said several times, and not the policy's rows alone
            shares = [list(Counter(said[i::count]).items()) for i in range(count)]
        steps = [self._step(share, policy[i::count]) for i, share in enumerate(shares)]
        return {name: sum(step[name] for step in steps) / count for name in steps[0]} if steps else {}

    def _step(self, expert: Sequence[tuple[Row, int]], policy: Sequence[Row]) -> dict[str, float]:
        rows = [(row, times, True) for row, times in expert] + [(row, 1, False) for row in policy]
        rows.sort(key=lambda row: len(row[0][0]) + len(row[0][1]))  # little padding
        device = self.accelerator.device
        said = sum(times for _, times in expert)
        numbers = torch.tensor([len(policy), said], dtype=torch.float32, device=device)
        numbers = self.accelerator.reduce(numbers, reduction="sum").clamp(min=1)
        sums = torch.zeros(3, device=device)  # loss, share right of the policy's rows, and of the expert's
        self.discriminator.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(rows), self.batch_size):
            chosen, times, is_expert = zip(*rows[start : start + self.batch_size], strict=True)
            side = torch.tensor(is_expert, device=device).long()
            shares = torch.tensor(times, device=device) / numbers[side]
            with self.discriminator.active():
                with self.accelerator.autocast():
                    losses, right = self.discriminator.losses(chosen, is_expert, self.args.label_smoothing)
                loss = (losses * shares).sum() / 2
                self.scaler.scale(loss).backward()
            sums[0] += loss.detach()
            sums[1:] += torch.zeros(2, device=device).index_add(0, side, right * shares)
        sums = self.accelerator.reduce(sums, reduction="sum").tolist()
        grad_norm = self._sum_and_clip_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        names = ("loss", "accuracy_policy", "accuracy_expert", "grad_norm")
        return {f"discriminator_{name}": value for name, value in zip(names, [*sums, grad_norm], strict=True)}

    def _sum_and_clip_gradients(self) -> float:
        weights = list(self.weights.values())
        for weight in weights:
            if weight.grad is None:  # a rank without rows
                weight.grad = torch.zeros_like(weight)
        if self.accelerator.num_processes > 1:
            gradients = torch.cat([weight.grad.float().flatten() for weight in weights])
            gradients = self.accelerator.reduce(gradients, reduction="sum")
            for weight, part in zip(weights, gradients.split([w.numel() for w in weights]), strict=True):
                weight.grad.copy_(part.view_as(weight))
        self.scaler.unscale_(self.optimizer)  # all ranks have the same gradients, so that all of them leave a step out
        limit = self.args.discriminator_max_grad_norm or math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_(weights, limit).item()
        may_overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not math.isfinite(grad_norm) and not may_overflow:
            raise FloatingPointError(
                f"The discriminator's gradients are not finite at generation {self.generations}. Lower "
                f"`discriminator_learning_rate: {self.args.discriminator_learning_rate}`."
            )
        return grad_norm

    def state_dict(self) -> dict:
        """What a resumed run needs: trained weights, the optimiser, and how many generations there were."""
        weights = {name: weight.detach().cpu() for name, weight in self.weights.items()}
        others = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return {"weights": weights, "generations": self.generations, **others}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """
        Raises:
            `ValueError`: it is the state of another discriminator.
        """
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        if shapes != {name: weight.shape for name, weight in state["weights"].items()}:
            raise ValueError(
                "The checkpoint's discriminator is another one than this run's. Set `discriminator_model` and "
                "`discriminator_lora_r` as they were in the run that it is of."
            )
        self.keep_dtypes()
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # there is none of a run in another precision, or before 0.2
            self.scaler.load_state_dict(state["scaler"])
        self.generations = state["generations"]
