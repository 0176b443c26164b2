"""OnlineIRLTrainer: its loss against a plain reference on full logits, its offline limit, samples, replay, resume."""

import copy
import inspect
import json
import random
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl.generation.vllm_generation import VLLMGeneration

from tests.conftest import make_model
from tests.distributed.launchers import QUIET
from trl_irl import IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer
from trl_irl.trainer.online_irl.policy_samples import prompt_lengths


ROWS = [
    {"prompt": "What is the colour of the sky?", "completion": " It is blue."},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog."},
    {"prompt": "1", "completion": " 2 3"},
]


def make_trainer(tokenizer, folder, online=True, seed=0, ref_model=None, **overrides):
    keys = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lambda_td": 0.2,
        "td_scale": 1.0,
        **QUIET,
        **overrides,
    }
    if online:
        keys = {"max_completion_length": 6, **keys}
    config, trainer = (OnlineIRLConfig, OnlineIRLTrainer) if online else (IRLConfig, IRLTrainer)
    return trainer(
        model=make_model("llama", seed=seed),
        args=config(str(folder), **keys),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=copy.deepcopy(tokenizer),
        ref_model=ref_model,
    )


def losses(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_without_weight_on_the_policy_it_trains_as_offline(tokenizer, tmp_path):
    online = make_trainer(tokenizer, tmp_path, policy_weight=0.0)
    offline = make_trainer(tokenizer, tmp_path, online=False)
    online.train()
    offline.train()
    assert losses(online) == pytest.approx(losses(offline), rel=1e-5)
    for name in ("nll", "td_loss", "reward_mean", "v_mean", "entropy"):
        assert losses(online, name) == pytest.approx(losses(offline, name), rel=1e-4), name
    for mine, theirs in zip(online.model.parameters(), offline.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert len(losses(online, "policy_length")) == 3


def reference(model, rows, gamma, lambda_td, weight, terminal_value, stop):
    """The objective as docs/online.md writes it, row by row on full float64 logits."""
    model = copy.deepcopy(model).double()
    sums, of_completions = {side: [] for side in (False, True)}, {side: [] for side in (False, True)}
    for ids, start, of_policy in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        v = logits.logsumexp(-1)
        of_completions[of_policy].append(v[start - 1] + (1 - gamma) * v[start : len(ids) - 1].sum())
        for t in range(start - 1, len(ids) - 1):
            action = ids[t + 1]
            ends, last = action in stop, t + 1 == len(ids) - 1
            next_v = 0.0 if ends else None if last else v[t + 1]
            sums[of_policy].append((logits[t, action], v[t], next_v, ends))

    def mean(side, value):
        return sum(value(*token) for token in sums[side]) / len(sums[side])

    def squared(q, v, next_v, ends):
        return 0.0 if next_v is None or (ends and terminal_value == "mask") else (q - gamma * next_v) ** 2

    expert, policy = (torch.stack(of_completions[side]).mean() for side in (False, True))
    length = len(sums[False]) / len(of_completions[False])
    squares = (1 - weight) * mean(False, squared) + weight * mean(True, squared)
    nll = mean(False, lambda q, v, next_v, ends: v - q)
    return nll + weight * (policy - expert) / length + lambda_td * squares


def mixture_of_kl(model, other, rows, weight):
    """KL(model || other) in float64, a mean over the states of the expert's rows and one over the policy's."""
    found = {side: [] for side in (False, True)}
    for ids, start, of_policy in rows:
        p, q = (copy.deepcopy(m).double()(input_ids=torch.tensor([ids])).logits[0] for m in (model, other))
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        found[of_policy] += [*(log_p.exp() * (log_p - log_q)).sum(-1)[start - 1 : len(ids) - 1]]
    return sum(w * torch.stack(found[side]).mean() for side, w in ((False, 1 - weight), (True, weight)))


@pytest.mark.parametrize("gamma, terminal_value, weight", [(1.0, "mask", 0.5), (0.9, "zero", 0.3)])
@pytest.mark.parametrize("accumulation, lambda_kl", [(1, 0.0), (2, 0.0), (2, 0.5)])
def test_loss_against_full_logits(gamma, terminal_value, weight, accumulation, lambda_kl, tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        ref_model=make_model("llama", seed=1) if lambda_kl else None,
        lambda_kl=lambda_kl,
        gamma=gamma,
        terminal_value=terminal_value,
        policy_weight=weight,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        learning_rate=0.0,
    )
    model = copy.deepcopy(make_model("llama"))
    kept = []
    policy_rows = trainer._policy_rows

    def watched():
        groups = policy_rows()
        kept.extend(sample for group in groups for sample in group)
        return groups

    trainer._policy_rows = watched
    trainer.train()
    assert len(kept) == 4
    rows = [(sample.prompt + sample.completion, len(sample.prompt), True) for sample in kept]
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        rows.append((ids, len(prompt), False))
    expected = reference(model, rows, gamma, 0.2, weight, terminal_value, {tokenizer.eos_token_id})
    kl = mixture_of_kl(model, make_model("llama", seed=1), rows, weight)
    assert kl > 0.1
    expected = expected + lambda_kl * kl
    assert losses(trainer)[0] == pytest.approx(expected.item(), rel=1e-4)


def test_what_is_logged(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, num_generations=2)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["reward_gap"] == pytest.approx(logged["reward_mean"] - logged["policy_reward_mean"], abs=1e-6)
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in ROWS]
    prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in ROWS]
    assert logged["expert_length"] == pytest.approx((sum(lengths) - sum(prompts)) / 4) and logged["expert_ended"] == 1
    assert 1 <= logged["policy_length"] <= 6 and 0 <= logged["policy_ended"] <= 1
    assert logged["time_generation"] > 0 and logged["time_update"] > 0


def test_online_fraction(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, online_fraction=0.0)
    trainer.train()
    assert not losses(trainer, "policy_length") and len(losses(trainer)) == 3
    assert not losses(trainer, "policy_reward_mean") and not losses(trainer, "reward_gap")
    trainer = make_trainer(tokenizer, tmp_path, online_fraction=0.5, max_steps=12)
    trainer.train()
    assert 2 <= len(losses(trainer, "policy_length")) <= 10


@pytest.mark.parametrize("replay_size", [0, 6])
def test_resume_goes_on_as_if_nothing_had_happened(replay_size, tokenizer, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "replay_size": replay_size}
    whole = make_trainer(tokenizer, tmp_path / "whole", **keys)
    whole.train()
    resumed = make_trainer(tokenizer, tmp_path / "resumed", **keys)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert losses(resumed) == losses(whole)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    if replay_size:
        saved = json.loads((tmp_path / "whole/checkpoint-2/replay-0.json").read_text())
        assert len(saved["samples"]) == 6


def test_an_offline_step_has_no_rows_of_the_policy_not_even_earlier_ones(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, replay_size=6, online_fraction=0.5, max_steps=8)
    counts = []
    policy_rows = trainer._policy_rows

    def watched():
        rows = policy_rows()
        counts.append(sum(map(len, rows)))
        return rows

    trainer._policy_rows = watched
    trainer.train()
    # Which steps sample is drawn from the step alone: 4 prompts fresh and, from the second such step on, 4 earlier.
    online = [random.Random(f"{trainer.args.seed} {step}").random() < 0.5 for step in range(8)]
    assert 0 < sum(online) < 8
    assert [count > 0 for count in counts] == online
    assert [count for count in counts if count] == [4] + [8] * (sum(online) - 1)


def test_a_replay_buffer_of_another_run(tokenizer, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make_trainer(tokenizer, tmp_path / "without", **keys).train()
    other = make_trainer(tokenizer, tmp_path / "other", replay_size=4, **keys)
    with pytest.raises(ValueError, match="has no replay buffer"):
        other.train(resume_from_checkpoint=str(tmp_path / "without/checkpoint-2"))
    make_trainer(tokenizer, tmp_path / "six", replay_size=6, **keys).train()
    other = make_trainer(tokenizer, tmp_path / "again", replay_size=4, **keys)
    with pytest.raises(ValueError, match="of another run: its size is 6, and this run's is 4"):
        other.train(resume_from_checkpoint=str(tmp_path / "six/checkpoint-2"))


def test_lengths_of_prompts_are_those_of_a_walk_over_the_labels():
    """Of rows with and without a scored token, empty ones, and rows that were chosen and shuffled."""
    rng = random.Random(0)
    rows = [[-100] * rng.randrange(4) + [rng.choice([5, -100]) for _ in range(rng.randrange(4))] for _ in range(300)]
    dataset = Dataset.from_dict({"labels": rows}).shuffle(seed=1).select(range(20, 280))
    walked = [next((i for i, label in enumerate(row) if label != -100), len(row)) for row in dataset["labels"]]
    assert prompt_lengths(dataset).tolist() == walked
    assert prompt_lengths(Dataset.from_dict({"labels": [[-100, -100], [-100]]})).tolist() == [2, 1]


class StandInForVLLM(VLLMGeneration):
    """TRL's class with the model itself in vLLM's place: its arguments are those that TRL has."""

    made = []

    def _init_vllm(self):
        self.synced = 0
        StandInForVLLM.made.append(self)

    def sync_weights(self):
        self.synced += 1
        self.copy = copy.deepcopy(self.model)

    def generate(self, prompts, images, num_generations, profiler=None):
        inspect.signature(VLLMGeneration.generate).bind(self, prompts, images, num_generations)
        (stop,) = self.generation_kwargs["stop_token_ids"]
        rows = [
            self.copy.generate(
                torch.tensor([ids]), max_new_tokens=self.max_completion_length, temperature=self.temperature, top_k=0,
                top_p=self.top_p, do_sample=True, eos_token_id=stop, pad_token_id=0,
            )[0, len(ids) :].tolist()
            for ids in prompts
        ]  # fmt: skip
        return prompts, rows, None, None


def test_vllm_of_a_cpu_is_refused_before_it_loads(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.runtime.vllm_arguments.is_vllm_available", lambda: True)
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    with pytest.raises(ValueError, match="cannot take those of a later step"):
        make_trainer(tokenizer, tmp_path, use_vllm=True, vllm_mode="colocate")


def test_sampling_by_vllm(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.runtime.vllm_arguments.VLLMGeneration", StandInForVLLM)
    monkeypatch.setattr("trl_irl.trainer.runtime.vllm_arguments.is_vllm_available", lambda: True)
    monkeypatch.setattr("trl_irl.trainer.runtime.vllm_arguments._of_a_cpu", lambda: False)
    # As good as greedy, so that both ways of sampling draw the same.
    keys = {"temperature": 1e-4, "num_generations": 2, "gradient_accumulation_steps": 2}
    keys |= {"per_device_train_batch_size": 2}
    by_vllm = make_trainer(tokenizer, tmp_path / "vllm", use_vllm=True, vllm_mode="colocate", **keys)
    plain = make_trainer(tokenizer, tmp_path / "plain", **keys)
    by_vllm.train()
    plain.train()
    (made,) = StandInForVLLM.made
    assert made.synced == 3 and made.max_num_seqs == 8
    assert losses(by_vllm) == pytest.approx(losses(plain), rel=1e-5)
    assert losses(by_vllm, "policy_length") == losses(plain, "policy_length")


def test_vllm_that_is_not_installed(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.runtime.vllm_arguments.is_vllm_available", lambda: False)
    with pytest.raises(ImportError, match="`use_vllm` is set and vLLM is not installed"):
        make_trainer(tokenizer, tmp_path, use_vllm=True)


def test_generation_that_never_ends(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.runtime.generation_watch.MAX_WITHOUT_END", 2)
    trainer = make_trainer(tokenizer, tmp_path, max_completion_length=1, max_steps=20)
    with torch.no_grad():
        trainer.model.lm_head.weight[tokenizer.eos_token_id] -= 100 * trainer.model.lm_head.weight.abs().max()
    trainer.stop_token_ids = frozenset({299})  # a token that the model hardly ever says
    with pytest.raises(RuntimeError, match="no completion ended within `max_completion_length=1`"):
        trainer.train()


@pytest.mark.parametrize(
    "keys, fragment",
    [
        ({"online_fraction": 1.5}, "`online_fraction=1.5` is out of range"),
        ({"policy_weight": -0.1}, "`policy_weight=-0.1` is out of range"),
        ({"temperature": 0.0}, "`temperature=0.0` must be above 0"),
        ({"temperature": float("inf")}, "`temperature=inf` must be above 0, and finite"),
        ({"num_generations": 0}, "`num_generations=0` is out of range"),
        ({"replay_size": -1}, "`replay_size=-1` is out of range"),
        ({"chi2_on": "policy"}, "`chi2_on='policy'` is unknown"),
        ({"packing": True}, "`packing` and `padding_free`"),
        ({"completion_only_loss": False}, "`completion_only_loss"),
        ({"max_completion_length": 300}, "no room for `max_completion_length=300` in the model's context of 256"),
    ],
)
def test_refused(keys, fragment, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=fragment):
        make_trainer(tokenizer, tmp_path, **keys)


def test_tensor_parallelism_is_refused(tokenizer, tmp_path, monkeypatch):
    """Each of its processes would sample by itself, and the rows of all would be counted."""
    monkeypatch.setattr(OnlineIRLTrainer, "_tensor_parallel", 2)
    with pytest.raises(ValueError, match="split over 2 processes .tensor parallelism.*offline IRL"):
        make_trainer(tokenizer, tmp_path)


def test_data_without_prompts(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no `prompt` and `completion`"):
        OnlineIRLTrainer(
            model=make_model("llama"),
            args=OnlineIRLConfig(str(tmp_path), use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list([{"text": "One two"}]),
            processing_class=tokenizer,
        )
    with pytest.raises(TypeError, match="Build an `OnlineIRLConfig`"):
        OnlineIRLTrainer(model=make_model("llama"), args=IRLConfig(str(tmp_path), use_cpu=True, bf16=False))


def test_an_empty_prompt_is_named(tokenizer, tmp_path):
    rows = [*ROWS, {"prompt": "", "completion": " x"}]
    args = OnlineIRLConfig(str(tmp_path), max_completion_length=6, **QUIET)
    with pytest.raises(ValueError, match="Row 4 of the train dataset has an empty prompt"):
        OnlineIRLTrainer(
            make_model("llama"), args, train_dataset=Dataset.from_list(rows), processing_class=copy.deepcopy(tokenizer)
        )


@pytest.mark.parametrize(
    "prompt, told",
    [("", "A row of the stream has an empty prompt"), ("One two " * 150, "in the model's context of 256")],
)
def test_prompts_of_a_stream_are_checked_as_they_come(prompt, told, tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": prompt, "completion": " x"}] * 8).to_iterable_dataset()
    args = OnlineIRLConfig(str(tmp_path), max_completion_length=6, max_length=None, max_steps=1, **QUIET)
    trainer = OnlineIRLTrainer(
        make_model("llama"), args, train_dataset=rows, processing_class=copy.deepcopy(tokenizer)
    )
    with pytest.raises(ValueError, match=told):
        trainer.train()


def test_the_expert_is_scored_to_its_stop_token(tokenizer, tmp_path):
    """What a template writes behind it, and later turns, no completion of the policy has."""
    turns = [("user", "One"), ("assistant", "two"), ("user", "fox"), ("assistant", "dog")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [
        {"prompt": messages[:1], "completion": messages[1:2]},
        {"prompt": messages[:1], "completion": messages[1:]},
    ]
    own = copy.deepcopy(tokenizer)
    keys = {"per_device_train_batch_size": 2, "max_steps": 1, "max_completion_length": 6, "eos_token": "<|im_end|>"}
    trainer = OnlineIRLTrainer(
        model=make_model("llama"),
        args=OnlineIRLConfig(str(tmp_path), **keys, **QUIET),
        train_dataset=Dataset.from_list(rows),
        processing_class=own,
    )
    batches, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    stop = own.convert_tokens_to_ids("<|im_end|>")
    expected = [*own("two")["input_ids"], stop]
    assert [row[row != -100].tolist() for row in batches[0]["labels"]] == [expected, expected]
    assert tokens == 2 * len(expected)
    evaluated = trainer.evaluate(trainer.train_dataset)
    trainer.train()
    (logged,) = (entry for entry in trainer.state.log_history if "expert_length" in entry)
    assert logged["expert_length"] == len(expected)
    assert evaluated["eval_nll"] == pytest.approx(logged["nll"], rel=1e-4)  # of the same tokens
