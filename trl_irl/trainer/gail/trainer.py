"""Generative adversarial imitation learning: RLOO on the reward of a discriminator that is trained on the way."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast, set_seed
from datasets import Dataset
from transformers import PreTrainedModel
from trl import RLOOTrainer
from trl.trainer.utils import get_config_model_id

from ...rewards.adapters import check_token, is_adapted, tokenizer_of
from ...rewards.frozen_models import check_language_model, check_same_tokens, whole_language_model
from ...soft_q.own_forward import embedding_rows
from ...text.generation import as_it_is
from ...text.padding import padded_batch
from ...text.stop_tokens import cut_at_stop, end_turns_as_the_template_does, stop_token_ids, why_nothing_ends
from ..runtime.checkpoints import how_to_go_on
from ..runtime.generation_watch import GenerationWatch, check_context
from ..runtime.interruption import Interruptible
from ..runtime.models import causal_lm, default_output_dir, keep_4bit_weights_trainable, loaded_if_adapter, sharding_of
from ..runtime.step_clock import StepClock
from ..runtime.vllm_arguments import check_vllm
from .config import GAILConfig
from .discriminator import Discriminator
from .discriminator_training import Adversary
from .expert_tokens import COMPLETION, PROMPT, check_completions, with_expert_ids
from .shared_discriminator import SharedDiscriminator


logger = get_logger(__name__)

ADVERSARY_NAME = "adversary.pt"


class GAILTrainer(Interruptible, RLOOTrainer):
    """
    [`~trl.RLOOTrainer`] whose reward is what a discriminator says, which learns between generations to tell the
    policy's completions from the expert's of the same prompts (GAIL, arXiv 1606.03476; for language models arXiv
    2409.01369). The policy's loss keeps a term of maximum likelihood (`mle_coef`) and RLOO's KL to the start (`beta`).

    RLOO and not GRPO, since GRPO divides advantages by their standard deviation: where the discriminator cannot tell
    the two sides apart, and its rewards are next to equal, as they should be in the end, GRPO would blow its noise up
    to the size of a real difference. RLOO keeps nats as they are, so that `reward_clip` and `beta` mean something.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from trl_irl import GAILConfig, GAILTrainer

    >>> trainer = GAILTrainer(
    ...     model="outputs/tldr/sft",
    ...     args=GAILConfig("outputs/tldr/gail", max_completion_length=53, num_generations=4),
    ...     train_dataset=load_dataset("trl-lib/tldr", split="train"),
    ... )
    >>> trainer.train()
    ```

    Overridden are `_generate` and `_generate_single_turn`, to sample the policy as it is and up to any stop token;
    `_generate_and_score_completions` and `compute_loss`, to add the likelihood of the expert's rows;
    `get_eval_dataloader` and `get_test_dataloader`, to have these rows in tokens; `log`, to add the
    seconds of a step's parts; `_get_grad_norm`, to end a run whose gradients are not finite; and what saves and loads,
    for the discriminator and its optimiser.

    Beside RLOO's metrics (`reward`, `kl`, `completions/*` and so on) it logs `discriminator_loss`,
    `discriminator_accuracy_expert`, `discriminator_accuracy_policy`, `discriminator_grad_norm`, the expert's `nll` in
    nats per token, and the seconds of a step in `time_generation`, `time_discriminator` and `time_update`. The
    discriminator is saved with the model, in the folder `discriminator`, as a reward model that TRL and
    [`PreferenceReward`] can load.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As for [`~trl.RLOOTrainer`]: one that imitates the data already, by maximum likelihood or IRL.
        args ([`GAILConfig`], *optional*):
            If `None`, the defaults, with `output_dir` named after the model.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            With `prompt` and `completion`, text or messages. Other columns reach `reward_funcs`.
        eval_dataset (*optional*):
            Alike.
        discriminator ([`~trainer.gail.discriminator.Discriminator`], *optional*):
            Instead of `args.discriminator_model`.
        reward_funcs (*optional*):
            More rewards, as for [`~trl.RLOOTrainer`]. `args.reward_weights` then begins with the discriminator's; with
            the weight 0 one is only logged.
        processing_class, callbacks, optimizers, quantization_config, peft_config:
            As for [`~trl.RLOOTrainer`].

    Raises:
        `TypeError`: `args` is not a [`GAILConfig`].
        `ValueError`: the data has no completions, a prompt leaves no room for `max_completion_length`, or the
            discriminator has another tokenizer.
        `GenerationError`: for 20 generations no completion ended, or all were empty.
        `FloatingPointError`: gradients of the policy or of the discriminator are not finite.
    """

    _tag_names = ["trl", "gail"]
    _name = "GAIL (generative adversarial imitation learning)"
    _paper = {
        "title": "Generative Adversarial Imitation Learning",
        "id": "1606.03476",
        "citation": textwrap.dedent("""\
            @inproceedings{ho2016generative,
                title        = {{Generative Adversarial Imitation Learning}},
                author       = {Jonathan Ho and Stefano Ermon},
                year         = 2016,
                booktitle    = {Advances in Neural Information Processing Systems},
                eprint       = {arXiv:1606.03476},
            }"""),
    }

    def __init__(
        self,
        model,
        args: GAILConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        discriminator: Discriminator | None = None,
        reward_funcs: Callable | str | PreTrainedModel | list | None = None,
        **kwargs,
    ):
        if args is None:
            args = GAILConfig(default_output_dir(model, "GAIL"))
        if not isinstance(args, GAILConfig):
            raise TypeError(f"`args` is a `{type(args).__name__}`. Build a `GAILConfig`.")
        check_vllm(args)
        check_language_model(model, "model", trust_remote_code=args.trust_remote_code)
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        if processing_class is None:
            processing_class = tokenizer_of(
                name, padding_side="left", truncation_side="left", trust_remote_code=args.trust_remote_code
            )
        if args.eos_token is not None:
            check_token(processing_class, args.eos_token)
            processing_class.eos_token = args.eos_token
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        for dataset, of in ((train_dataset, "train"), (eval_dataset, "eval")):
            check_completions(dataset, of)
        _check_number(args, train_dataset)
        stop_tokens, template = stop_token_ids(model, processing_class), args.chat_template_kwargs or {}
        if train_dataset is not None:
            prompt = next(iter(train_dataset))["prompt"]
            end_turns_as_the_template_does(processing_class, prompt, stop_tokens, **template)
        if args.discriminator_shares_base:
            _check_sharing(args, model, discriminator, kwargs.get("peft_config"))
        else:
            set_seed(args.seed)  # its head starts from random weights
            discriminator = discriminator or _load_discriminator(args, name, processing_class)
        quantization, peft_config = kwargs.pop("quantization_config", None), kwargs.get("peft_config")
        model, _, kwargs["quantization_config"] = loaded_if_adapter(
            model, args, processing_class, quantization, peft_config
        )
        more = [] if reward_funcs is None else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        with whole_language_model(model):
            super().__init__(
                model=model,
                reward_funcs=[self._reward_function(), *more],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        keep_4bit_weights_trainable(self.model)
        if args.discriminator_shares_base:
            discriminator = SharedDiscriminator(self.model, args.discriminator_level, args.discriminator_lora_r)
        self._check_vocabulary(discriminator)
        self._stop_tokens = stop_tokens
        self._knows_one_end = not hasattr(self, "eos_token_ids")  # TRL 1.12
        others = stop_tokens - {processing_class.eos_token_id, processing_class.pad_token_id}
        if self._knows_one_end and args.mask_truncated_completions and others:
            raise ValueError(
                "`mask_truncated_completions=True`: this TRL would mask what ends in one of the stop tokens "
                f"{processing_class.convert_ids_to_tokens(sorted(others))} too, since it knows the tokenizer's EOS "
                "alone. Unset it, or upgrade TRL."
            )
        # TRL 1.12 ends a completion at the tokenizer's EOS alone. This, and the cut below, can go with it.
        if not args.use_vllm:  # which reads the generation config itself
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = sorted(stop_tokens)

        self.train_dataset = self._as_tokens(train_dataset, "train")
        self.eval_dataset = self._as_tokens(eval_dataset, "eval")
        if isinstance(train_dataset, Dataset):
            first = train_dataset.select(range(min(16, len(train_dataset))))
            if warning := why_nothing_ends(processing_class, first, stop_tokens, **template):
                logger.warning(warning)
            longest = max(map(len, self.train_dataset[PROMPT]))
            check_context(self.model.config, longest, args.max_completion_length)
            judges = causal_lm(discriminator.model).config
            check_context(judges, longest, args.max_completion_length, "the discriminator's")
        self._adversary = Adversary(discriminator, args, self.accelerator)
        for weight in discriminator.parameters.values():
            broadcast(weight.data)
        self._watch = GenerationWatch(self.accelerator, args.max_completion_length, "`discriminator_learning_rate`")
        self._clock = StepClock()
        self.add_callback(self._clock)
        self._watch_signals()

    def _as_tokens(self, dataset, name: str):
        longest, template = self.args.max_completion_length, self.args.chat_template_kwargs or {}
        return with_expert_ids(dataset, name, self.processing_class, self._stop_tokens, longest, template)

    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(self._judged(eval_dataset, "eval"))

    def get_test_dataloader(self, test_dataset):
        return super().get_test_dataloader(self._judged(test_dataset, "test"))

    def _judged(self, dataset, name: str):
        """A dataset that is given to `evaluate` or `predict`, with what the expert said in tokens."""
        if dataset is None or isinstance(dataset, str) or PROMPT in (dataset.column_names or next(iter(dataset))):
            return dataset
        check_completions(dataset, name)
        return self._as_tokens(dataset, name)

    @property
    def discriminator(self) -> Discriminator:
        """What judges completions; alike on every rank."""
        return self._adversary.discriminator

    def _check_vocabulary(self, discriminator: Discriminator) -> None:
        own, other = (embedding_rows(causal_lm(model)) for model in (self.model, discriminator.model))
        tokens = min(own, len(self._tokenizer))  # embeddings may be padded
        if other < tokens:
            raise ValueError(
                f"The discriminator has {other} embeddings and the policy {tokens} tokens: it is of another "
                "tokenizer. Take one of the policy's own family."
            )

    def _reward_function(self) -> Callable:
        # TRL logs a reward function under its name.
        def discriminator(prompts, completions, completion_ids, **columns) -> list[float]:
            with self._clock.part("discriminator"):
                return self._judge(completion_ids, columns)

        return discriminator

    def _judge(self, completion_ids: list[list[int]], columns: dict) -> list[float]:
        policy = list(zip(columns[PROMPT], completion_ids, strict=True))
        self._adversary.keep_dtypes()
        if self.model.training:
            self._watch.see(completion_ids, [ids[-1] in self._stop_tokens for ids in completion_ids])
            # Every prompt stands here once for each of its completions, and so does what the expert said.
            expert = list(zip(columns[PROMPT], columns[COMPLETION], strict=True))
            measured = self._adversary.update(expert, policy)
            for name, value in measured.items():
                columns["log_metric"](name, value)
            if self._adversary.is_warming_up:
                return [0.0] * len(policy)
        with self.accelerator.autocast():
            return self.discriminator.rewards(
                policy, self.args.gail_reward, self.args.reward_clip or None, self._adversary.batch_size
            )

    def _generate_single_turn(self, *args):
        return [cut_at_stop(ids, self._stop_tokens) for ids in super()._generate_single_turn(*args)]

    def _generate(self, prompts: list):
        with self._clock.part("generation"), as_it_is(self.accelerator.unwrap_model(self.model)):
            generated = super()._generate(prompts)
        if self._knows_one_end:
            self._count_ended(generated[1])
        return generated

    def _count_ended(self, completion_ids: list[list[int]]) -> None:
        """TRL 1.12 counts what ends in another stop token than the tokenizer's EOS as cut off. This can go with it."""
        counts = [[len(ids), ids[-1] in self._stop_tokens] for ids in completion_ids]
        lengths, ended = self.accelerator.gather(torch.tensor(counts, device=self.accelerator.device)).T
        whole = lengths[ended.bool()].float() if ended.any() else torch.zeros(1)
        values = {"clipped_ratio": 1 - ended.float().mean()}
        values |= {f"{name}_terminated_length": getattr(whole, name)() for name in ("mean", "min", "max")}
        for name, value in values.items():
            self._metrics["train" if self.model.training else "eval"][f"completions/{name}"][-1] = value.item()

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return output | self._expert_batch(inputs) if self.args.mle_coef else output

    def _expert_batch(self, inputs: list[dict]) -> dict[str, torch.Tensor]:
        """The rows of the expert in the form that TRL has for the policy: it shuffles and splits both alike."""
        device, expert = self.accelerator.device, {}
        for column, name, side in ((PROMPT, "expert_prompt", "left"), (COMPLETION, "expert_completion", "right")):
            batch = padded_batch([row[column] for row in inputs], self._tokenizer.pad_token_id, side, device=device)
            expert[f"{name}_ids"], expert[f"{name}_mask"] = batch["input_ids"], batch["attention_mask"]
        # A mean over the tokens of the whole generation, however it is split over micro-batches and ranks.
        totals = torch.tensor([len(inputs), expert["expert_completion_mask"].sum()], device=device)
        rows, tokens = self.accelerator.reduce(totals, reduction="sum")
        expert["expert_scale"] = (rows / tokens).expand(len(inputs))
        return expert

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.args.mle_coef:
            loss = loss + self.args.mle_coef * self._expert_nll(model, inputs)
        return loss

    def _expert_nll(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        sides = [
            torch.cat([inputs[f"expert_prompt_{what}"], inputs[f"expert_completion_{what}"]], 1)
            for what in ("ids", "mask")
        ]
        # A prompt's completions share one demonstration: it goes through the model once.
        rows, counts = torch.stack(sides, 1).unique(dim=0, return_counts=True)
        ids, mask = rows.unbind(1)
        length = inputs["expert_completion_ids"].size(1)
        log_pi = self._get_per_token_logps_and_entropies(model, ids, mask, length)[0]
        nll = -log_pi.masked_fill(mask[:, -length:] == 0, 0).sum(1)
        nll = (nll * counts).sum() * inputs["expert_scale"][0] / len(sides[0])
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["nll"].append(self.accelerator.reduce(nll.detach(), reduction="mean").item())
        return nll

    def _get_grad_norm(self, model, grad_norm=None):
        # Where the Trainer knows a step's gradients and has not used them yet (DeepSpeed has, or has left them out).
        grad_norm = super()._get_grad_norm(model, grad_norm)
        overflow = self.accelerator.mixed_precision == "fp16"  # the loss scaler's business
        if grad_norm is not None and not overflow and not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"Step {self.state.global_step + 1}: the policy's gradients are NaN or infinite. Lower "
                f"`learning_rate: {self.args.learning_rate}`. {how_to_go_on(self.args.output_dir)}"
            )
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            self._metrics["train"].update({name: [seconds] for name, seconds in self._clock.pop().items()})
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        super().save_model(output_dir, _internal_call)
        # Not in checkpoints: Trainer would take the folder of an adapter there for one of the policy's.
        if self.args.should_save and not _internal_call:
            folder = Path(output_dir or self.args.output_dir, "discriminator")
            self.discriminator.save(folder, self.processing_class)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self._adversary.state_dict(), Path(output_dir, ADVERSARY_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, ADVERSARY_NAME)
        if not path.is_file():
            raise ValueError(
                f"{checkpoint} has no {ADVERSARY_NAME}, the discriminator and its optimiser: it is no checkpoint of "
                "GAIL, or was saved with `save_only_model`. Start a new run from its model, with "
                "`discriminator_model` for its `discriminator` if there is one."
            )
        self._load_adversary(path)

    def _load_best_model(self):
        super()._load_best_model()
        path = Path(self.state.best_model_checkpoint, ADVERSARY_NAME)
        if path.is_file():  # not with `save_only_model`
            self._load_adversary(path)

    def _load_adversary(self, path: Path) -> None:
        self._adversary.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def _check_number(args: GAILConfig, dataset) -> None:
    """RLOO leaves out the prompts that fill no generation, and trains on nothing without a word."""
    needed = args.generation_batch_size // args.num_generations
    if isinstance(dataset, Dataset) and len(dataset) < needed:
        raise ValueError(
            f"The train dataset has {len(dataset)} prompts and a generation takes {needed}: `generation_batch_size="
            f"{args.generation_batch_size}` completions, of which each prompt has `num_generations="
            f"{args.num_generations}`. Lower `generation_batch_size`, or, where it is not set, what it is the product "
            f"of: `per_device_train_batch_size={args.per_device_train_batch_size}`, `steps_per_generation="
            f"{args.steps_per_generation}` and {args.world_size} processes. Or give more prompts."
        )


def _check_sharing(args: GAILConfig, model, discriminator: Discriminator | None, peft_config) -> None:
    if discriminator is not None:
        raise ValueError("`discriminator` is passed, and `discriminator_shares_base` would make another. Set one.")
    if peft_config is None and not is_adapted(model):
        raise ValueError(
            "`discriminator_shares_base=True` needs a policy that trains an adapter: of all weights, the base changes "
            "under the discriminator. Set `use_peft: true` (in Python, `peft_config`), or do not share."
        )
    sharding = sharding_of(args)
    if sharding:
        raise ValueError(
            f"`discriminator_shares_base=True` and the launcher is {sharding}, which shards the base: the "
            "discriminator would have to gather it by itself. Launch with single_gpu, ddp or zero2, or do not share; "
            "every rank then holds a whole discriminator of its own."
        )


def _load_discriminator(args: GAILConfig, policy: str, tokenizer) -> Discriminator:
    path = args.discriminator_model or policy
    if not path:
        raise ValueError("No discriminator. Set `discriminator_model`, the decoder that it starts from.")
    if args.discriminator_model is not None:
        check_same_tokens(tokenizer, path, "discriminator_model")
    return Discriminator.load(path, args.discriminator_level, args.discriminator_lora_r, args.discriminator_dtype)
