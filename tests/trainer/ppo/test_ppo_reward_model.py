"""SoftQReward as PPO's reward model: what TRL's own `get_reward` reads from it is what SoftQReward gives."""

import copy

import pytest
import torch
from datasets import Dataset

from tests.conftest import make_model
from tests.trainer.conftest import ROWS
from trl_irl import SoftQReward
from trl_irl.trainer.ppo.ppo_reward_model import SoftQRewardModel


ppo = pytest.importorskip("trl.experimental.ppo", reason="PPOTrainer is in TRL 1.12 only")

PAD, EOS = 0, 1


def padded_row(prompt, response, width, length, pad):
    return [pad] * (width - len(prompt)) + prompt + response + [pad] * (length - len(response))


@pytest.fixture
def policy():
    policy = make_model("qwen2", seed=1)
    policy.generation_config.eos_token_id = EOS
    return policy


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["pad", "EOS as pad"])
@pytest.mark.parametrize(
    "options", [{}, {"kind": "advantage", "aggregate": "mean"}, {"aggregate": "discounted", "gamma": 0.9, "clip": 5}]
)
def test_what_get_reward_reads(pad, options, policy, tokenizer):
    from trl.experimental.utils import get_reward

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token_id = pad
    reward = SoftQReward(make_model("qwen2"), tokenizer, batch_size=2, **options)
    model = SoftQRewardModel(reward, policy)
    prompts = [[20, 21, 22, 23, 24], [30, 31], [40, 41, 42], [50], [60, 61]]
    responses = [[5, 6, EOS], [7, 8, 9, 10], [11, EOS], [EOS], []]  # the second was cut, the last is empty
    rows = [padded_row(*row, width=5, length=4, pad=pad) for row in zip(prompts, responses, strict=True)]
    # PPO has no way to leave an empty response: with EOS as padding it is one that is EOS alone.
    expected = [[EOS] if pad == EOS and not ids else ids for ids in responses]
    policy.generate(input_ids=torch.tensor([row[:5] for row in rows]), max_new_tokens=1)
    _, found, _ = get_reward(model, torch.tensor(rows), pad, 5)
    numbers = [0.0 if x is None else x for x in reward(prompts, completion_ids=expected)]  # PPO needs one for each
    assert found.tolist() == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    assert len(set(found.tolist())) >= 3
    if pad == PAD:
        assert found[4] == 0


def test_tokens_after_a_stop_token_do_not_count(policy, tokenizer):
    """Without `stop_token`, PPO leaves in a response what follows its EOS."""
    from trl.experimental.utils import get_reward

    reward = SoftQReward(make_model("qwen2"), tokenizer)
    model = SoftQRewardModel(reward, policy)
    policy.generate(torch.tensor([[20, 21]]), max_new_tokens=1)
    _, found, _ = get_reward(model, torch.tensor([[20, 21, 5, EOS, 7, 8]]), PAD, 2)
    assert found.tolist() == pytest.approx(reward([[20, 21]], completion_ids=[[5, EOS]]), rel=1e-5)


def test_before_anything_is_generated(policy, tokenizer):
    model = SoftQRewardModel(SoftQReward(make_model("qwen2"), tokenizer), policy)
    with pytest.raises(RuntimeError, match="the same object"):
        model.backbone(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("adapter", [False, True])
def test_ppo_trains_on_it(adapter, policy, tokenizer, tmp_path):
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification

    from trl_irl.trainer.ppo.trainer import PPOTrainer

    policy.save_pretrained(tmp_path / "policy")
    value_model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "policy", num_labels=1)
    if adapter:
        from peft import get_peft_model

        policy = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    asked = []

    class Watched(SoftQReward):
        def __call__(self, *args, **kwargs):
            found = super().__call__(*args, **kwargs)
            asked.append((kwargs["prompts"], kwargs["completion_ids"], found))
            return found

    reward = Watched(make_model("qwen2"), tokenizer)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    args = ppo.PPOConfig(
        output_dir=str(tmp_path / "run"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=2,
        total_episodes=8,
        response_length=6,
        stop_token="eos",
        num_sample_generations=0,
        save_strategy="no",
    )
    parts = {
        "args": args,
        "model": policy,
        "ref_model": None if adapter else make_model("qwen2", seed=1),
        "reward_model": SoftQRewardModel(reward, policy),
        "value_model": value_model,
        "train_dataset": Dataset.from_dict({"input_ids": prompts}),
        "eval_dataset": Dataset.from_dict({"input_ids": prompts[:4]}),
    }
    padding_with_eos = copy.deepcopy(tokenizer)
    padding_with_eos.pad_token = tokenizer.eos_token  # as most scripts have it: the policy would unlearn to end
    with pytest.raises(ValueError, match="pads with its EOS, '<eos>'.*unlearn to end"):
        PPOTrainer(processing_class=padding_with_eos, **parts)
    trainer = ppo.PPOTrainer(processing_class=tokenizer, **parts)
    trainer.train()
    assert len(asked) == 4  # two updates of four prompts, two at a time
    for given, ids, _ in asked:
        assert all(prompt in prompts for prompt in given)  # the padding is off, and nothing of the response is in it
        assert all(1 <= len(one) <= 6 for one in ids)
    means = [entry["objective/scores"] for entry in trainer.state.log_history]
    assert means[0] == pytest.approx(sum(asked[0][2] + asked[1][2]) / 4, rel=1e-4)
