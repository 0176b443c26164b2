"""GAILTrainer against TRL's RLOOTrainer and a plain reference; what the expert's tokens are; resuming; bad input."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from tests.conftest import make_model
from tests.distributed.launchers import QUIET
from trl_irl import GAILConfig, GAILTrainer, PreferenceReward
from trl_irl.trainer.gail.discriminator import Discriminator
from trl_irl.trainer.gail.expert_tokens import expert_ids
from trl_irl.trainer.runtime.generation_watch import GenerationError


ROWS = [
    {"prompt": "What is the colour of the sky?", "completion": " It is blue."},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog."},
    {"prompt": "1", "completion": " 2 3"},
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in ROWS
]


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory):
    """The folder that policy and discriminator start from."""
    folder = tmp_path_factory.mktemp("start")
    make_model("llama", seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(folder, **overrides):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "max_completion_length": 6,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "seed": 7,
        **QUIET,
        **overrides,
    }


def make_trainer(start, folder, rows=ROWS, trainer_kwargs=None, **overrides):
    defaults = {"discriminator_learning_rate": 1e-2, "discriminator_warmup_steps": 0}
    args = GAILConfig(**{**defaults, **settings(folder, **overrides)})
    return GAILTrainer(start, args, Dataset.from_list(rows), **(trainer_kwargs or {}))


def adapter():
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_a_discriminator_that_stands_still_is_a_reward_function_of_rloo(start, tmp_path):
    """Against TRL's own trainer with the same rewards."""
    frozen = {"discriminator_update_ratio": 1e-9, "mle_coef": 0.0}
    ours = make_trainer(start, tmp_path / "ours", **frozen)
    judge = copy.deepcopy(ours.discriminator)
    ours.train()

    def judged(prompts, completion_ids, **kwargs):
        asked = [ours._tokenizer(prompt)["input_ids"] for prompt in prompts]
        return judge.rewards(list(zip(asked, completion_ids, strict=True)))

    theirs = RLOOTrainer(
        start, judged, RLOOConfig(**settings(tmp_path / "theirs")), Dataset.from_list(ROWS).select_columns("prompt")
    )
    theirs.train()
    assert logged(ours, "reward") == pytest.approx(logged(theirs, "reward"), rel=1e-5)
    assert len(set(logged(ours, "reward"))) == 4
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_rows_that_are_given_to_evaluate_are_those_that_were_given_before(start, tmp_path):
    """As RLOO takes them: a dataset, several by name, with and without the expert's tokens."""
    trainer = make_trainer(start, tmp_path, trainer_kwargs={"eval_dataset": Dataset.from_list(ROWS)})
    rows = Dataset.from_list(ROWS)
    first = trainer.evaluate()
    for again in (trainer.evaluate(rows), trainer.evaluate(trainer.eval_dataset)):
        assert again.keys() == first.keys() and np.isfinite(again["eval_nll"])
        assert again["eval_nll"] == pytest.approx(first["eval_nll"], rel=1e-5)
    several = trainer.evaluate({"one": rows, "two": rows})
    assert {"eval_one_loss", "eval_two_loss"} <= several.keys()
    assert several["eval_nll"] == pytest.approx(first["eval_nll"], rel=1e-5)  # TRL's name, whatever the dataset
    with pytest.raises(ValueError, match="The eval dataset has the columns prompt, and no `completion`"):
        trainer.evaluate(rows.select_columns("prompt"))


class Gradients(TrainerCallback):
    def __init__(self):
        self.found = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("batch, steps", [(8, 1), (2, 4)])
def test_the_expert_term_is_its_mean_nll_however_it_is_split(batch, steps, start, tokenizer, tmp_path):
    """In warm-up and without KL nothing else moves the policy; the reference goes row by row over float64 logits."""
    gradients = Gradients()
    trainer = make_trainer(
        start,
        tmp_path,
        trainer_kwargs={"callbacks": [gradients]},
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        discriminator_warmup_steps=10,
        beta=0.0,
        mle_coef=0.5,
        max_grad_norm=0.0,
        max_steps=1,
    )
    trainer.train()
    model, found = make_model("llama", seed=0).double(), []
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = prompt + [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id][:6]
        log_pi = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found += [-log_pi[t - 1, ids[t]] for t in range(len(prompt), len(ids))]
    nll = torch.stack(found).mean()
    assert sum(logged(trainer, "nll")) == pytest.approx(nll.item(), rel=1e-5)
    (0.5 * nll).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients.found[name].double(), weight.grad, rtol=1e-3, atol=1e-6)


def test_the_expert_stands_in_the_policys_tokens(tokenizer):
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    prompt, completion, _ = expert_ids(tokenizer, ROWS[0], ends, 100, {})
    assert prompt == tokenizer(ROWS[0]["prompt"])["input_ids"]
    assert completion == tokenizer(" It is blue.")["input_ids"] + [tokenizer.eos_token_id]
    assert expert_ids(tokenizer, ROWS[0], ends, 3, {})[1] == completion[:3]  # as the policy would be cut
    # Written as one, the space merges with what follows; the policy goes on after the space.
    row = {"prompt": "The quick ", "completion": "brown"}
    prompt, completion, _ = expert_ids(tokenizer, row, ends, 100, {})
    assert prompt == tokenizer(row["prompt"])["input_ids"]
    assert prompt != tokenizer("The quick brown")["input_ids"][: len(prompt)]
    assert tokenizer.decode(prompt + completion) == "The quick brown<eos>"
    # The template ends a turn with a newline, which a policy that has said <|im_end|> never comes to write.
    prompt, completion, _ = expert_ids(tokenizer, CHAT[1], ends, 100, {})
    assert tokenizer.decode(prompt) == "<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(completion) == " two three<|im_end|>"


def test_what_is_logged_and_saved(start, tmp_path):
    rows = Dataset.from_list(ROWS)
    trainer = make_trainer(
        start,
        tmp_path,
        trainer_kwargs={"eval_dataset": {"held_out": rows}, "reward_funcs": length_reward},
        reward_weights=[1.0, 0.0],
        discriminator_warmup_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "discriminator_loss" in entry]
    assert len(history) == 4
    for entry in history:
        assert 0 <= entry["discriminator_accuracy_expert"] <= 1 and 0 <= entry["discriminator_accuracy_policy"] <= 1
        assert min(entry["time_generation"], entry["time_discriminator"], entry["time_update"]) > 0
        assert entry["reward"] == pytest.approx(entry["rewards/discriminator/mean"], abs=1e-6)
        assert entry["rewards/length_reward/mean"] >= 1
    assert [entry["reward"] == 0 for entry in history] == [True, True, False, False]
    evaluated = [entry for entry in trainer.state.log_history if "eval_held_out_nll" in entry or "eval_nll" in entry]
    assert len(evaluated) == 2
    assert trainer._adversary.generations == 4  # and not in evaluations
    trainer.save_model()
    reward = PreferenceReward(str(tmp_path / "discriminator"))
    ids = [5, 6, 7, 8]
    assert reward.of_ids([ids]) == pytest.approx(trainer.discriminator.rewards([(ids[:2], ids[2:])]), rel=1e-4)


def length_reward(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("rows", [ROWS, CHAT], ids=["text", "messages"])
def test_adapters_levels_and_messages(level, rows, start, tmp_path):
    trainer = make_trainer(
        start,
        tmp_path,
        rows,
        trainer_kwargs={"peft_config": adapter()},
        discriminator_level=level,
        discriminator_lora_r=4,
        gail_reward="gail",
        max_steps=2,
    )
    before = {name: weight.clone() for name, weight in trainer.discriminator.parameters.items()}
    policy = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert any("lora" in name for name in before)
    after = trainer.discriminator.parameters
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert any("lora" in name for name in changed) and any("score" in name for name in changed)
    moved = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, policy[name])]
    assert moved and all("lora" in name for name in moved)
    assert all(value >= 0 for value in logged(trainer, "reward"))


@pytest.mark.parametrize("lora, shared", [(False, False), (True, False), (True, True)])
def test_resume_goes_on_as_if_nothing_had_happened(lora, shared, start, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "discriminator_update_ratio": 1.5}
    keys |= {"discriminator_lora_r": 4, "discriminator_shares_base": shared} if lora else {}
    rows = ROWS * 4  # one epoch: TRL's sampler shuffles the next ones otherwise after a resume
    whole, resumed = (
        make_trainer(start, tmp_path / name, rows, {"peft_config": adapter()} if lora else None, **keys)
        for name in ("whole", "resumed")
    )
    whole.train()
    seen = {}
    resumed.add_callback(_Seen(lambda: seen.update(copy.deepcopy(resumed._adversary.state_dict()))))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    saved = torch.load(tmp_path / "whole/checkpoint-2/adversary.pt", weights_only=True)
    assert seen["generations"] == saved["generations"] == 2
    for name, weight in saved["weights"].items():
        assert torch.equal(seen["weights"][name], weight)
    for index, state in saved["optimizer"]["state"].items():
        assert torch.equal(seen["optimizer"]["state"][index]["exp_avg_sq"], state["exp_avg_sq"])
    assert logged(resumed, "discriminator_loss") == logged(whole, "discriminator_loss")
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(
        resumed.discriminator.model.parameters(), whole.discriminator.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_run_that_is_resumed_at_its_end_trains_no_more(start, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "lr_scheduler_type": "constant"}
    trainer = make_trainer(start, tmp_path, ROWS * 4, **keys)
    trainer.train()
    again = make_trainer(start, tmp_path, ROWS * 4, **keys)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 2 and again._adversary.generations == trainer._adversary.generations
    for mine, before in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, before)


@pytest.mark.parametrize("lora", [False, True])
def test_the_best_policy_comes_with_its_own_discriminator(lora, start, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    keys |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_given", "greater_is_better": True}
    keys |= {"discriminator_lora_r": 4, "discriminator_shares_base": True} if lora else {}
    args = GAILConfig(
        **{"discriminator_learning_rate": 1e-2, "discriminator_warmup_steps": 0, **settings(tmp_path, **keys)}
    )
    rows = Dataset.from_list(ROWS * 4)
    trainer = GAILTrainer(
        start, args, rows, eval_dataset=rows.select(range(2)), peft_config=adapter() if lora else None
    )
    trainer.add_callback(_Best(at=1))
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best, last = (
        torch.load(tmp_path / f"checkpoint-{step}/adversary.pt", weights_only=True)["weights"] for step in (1, 3)
    )
    own = trainer._adversary.state_dict()["weights"]
    assert all(torch.equal(own[name], weight) for name, weight in best.items())
    assert any(not torch.equal(own[name], weight) for name, weight in last.items())


class _Best(TrainerCallback):
    """One evaluation that is better than all others."""

    def __init__(self, at):
        self.at = at

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_given"] = float(state.global_step == self.at)


SHARED = {"discriminator_lora_r": 4, "discriminator_shares_base": True}


def test_a_shared_base_is_seen_as_the_saved_reward_model_is(start, tokenizer, tmp_path):
    """An adapter of its own on the policy's base: read back by itself, as a reward model, it says the same."""
    trainer = make_trainer(start, tmp_path, ROWS, {"peft_config": adapter()}, **SHARED)
    trainer.train()
    rows = [([5, 6], [7, 8, 1]), ([9], [10, 11])]
    own = trainer.discriminator.rewards(rows)
    trainer.save_model()
    saved = PreferenceReward(str(tmp_path / "discriminator"), tokenizer=tokenizer)
    assert saved.of_ids([prompt + completion for prompt, completion in rows]) == pytest.approx(own, rel=1e-4)
    bases = {weight.data_ptr() for weight in trainer.discriminator._backbone.parameters()}
    assert bases <= {weight.data_ptr() for weight in trainer.model.parameters()}


def test_a_shared_base_leaves_the_policy_alone(start, tmp_path):
    """Without a reward the policy trains as beside a discriminator of its own; updates do not touch what it says."""
    keys = {"discriminator_warmup_steps": 9, "beta": 0.0, "mle_coef": 1.0}
    shared = make_trainer(start, tmp_path / "shared", ROWS, {"peft_config": adapter()}, **SHARED, **keys)
    apart = make_trainer(start, tmp_path / "apart", ROWS, {"peft_config": adapter()}, **keys)
    with torch.no_grad():  # an adapter begins at random
        for name, weight in apart.model.named_parameters():
            weight.copy_(shared.model.get_parameter(name))
    ids = torch.tensor([[5, 6, 7, 8]])
    before = shared.model(input_ids=ids).logits
    measured = shared._adversary.update([([5, 6], [7, 8])], [([5, 6], [9, 9])])
    assert measured["discriminator_grad_norm"] > 0
    assert torch.equal(shared.model(input_ids=ids).logits, before)
    shared.train()
    apart.train()
    assert logged(shared, "nll") == pytest.approx(logged(apart, "nll"), rel=1e-5)
    assert len(set(logged(shared, "nll"))) == 4
    for name, weight in apart.model.named_parameters():
        torch.testing.assert_close(weight, shared.model.get_parameter(name), rtol=1e-4, atol=1e-6)
    trained = shared.discriminator.parameters
    assert any("lora_B" in name and weight.abs().sum() > 0 for name, weight in trained.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_shared_base_in_4_bits(checkpointing, start, tmp_path):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    kwargs = {"peft_config": adapter(), "quantization_config": nf4}
    trainer = make_trainer(start, tmp_path, ROWS, kwargs, gradient_checkpointing=checkpointing, max_steps=2, **SHARED)
    before = {name: weight.clone() for name, weight in trainer.discriminator.parameters.items()}
    policy = {name: weight.clone() for name, weight in trainer.model.named_parameters() if ".default." in name}
    trainer.train()
    after = trainer.discriminator.parameters
    assert all(not torch.equal(weight, before[name]) for name, weight in after.items() if "lora_B" in name)
    assert any(not torch.equal(trainer.model.get_parameter(name), weight) for name, weight in policy.items())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_a_base_in_bfloat16(bf16, shared, start, tmp_path):
    """With autocast or without: the discriminator sees what it sees in float32, and trains in float32."""
    rows = [([5, 6], [7, 8, 1]), ([9], [10, 11])]
    models = {"discriminator_dtype": "bfloat16"} if not shared else {}
    told = {"peft_config": adapter()}
    keys = {**SHARED, "discriminator_shares_base": shared, "max_steps": 2, **models}
    exact = make_trainer(start, tmp_path / "exact", ROWS, told, model_init_kwargs={"dtype": "float32"}, **keys)
    trainer = make_trainer(
        start, tmp_path / "run", ROWS, told, model_init_kwargs={"dtype": "bfloat16"}, bf16=bf16, **keys
    )
    base = trainer.discriminator._backbone
    assert next(base.parameters()).dtype == torch.bfloat16
    trainer._adversary.load_state_dict(exact._adversary.state_dict())
    assert trainer.discriminator.rewards(rows) == pytest.approx(exact.discriminator.rewards(rows), rel=0.05, abs=2e-3)
    trainer.train()
    adapters = {weight.dtype for name, weight in trainer.discriminator.parameters.items() if "lora" in name}
    assert adapters == {torch.float32}
    assert torch.tensor(logged(trainer, "discriminator_loss")).isfinite().all()


def test_what_cannot_be_shared(start, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="set `discriminator_lora_r` to its rank"):
        make_trainer(start, tmp_path, discriminator_shares_base=True)
    with pytest.raises(ValueError, match="needs a policy that trains an adapter"):
        make_trainer(start, tmp_path, **SHARED)
    kwargs = {"peft_config": adapter(), "discriminator": Discriminator.load(start)}
    with pytest.raises(ValueError, match="would make another"):
        make_trainer(start, tmp_path, ROWS, kwargs, **SHARED)
    monkeypatch.setattr("trl_irl.trainer.runtime.models.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="the launcher is DeepSpeed ZeRO-3, which shards the base"):
        make_trainer(start, tmp_path, ROWS, {"peft_config": adapter()}, **SHARED)


def test_a_discriminator_of_a_short_context(start, tokenizer, tmp_path):
    """Beyond it Llama's numbers mean nothing, and others have no positions: said before anything is sampled."""
    make_model("llama", seed=1, max_position_embeddings=8).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="no room for `max_completion_length=6` in the discriminator's context of 8"):
        make_trainer(start, tmp_path / "run", discriminator_model=str(tmp_path / "short"))


@pytest.mark.parametrize("key", ["gradient_accumulation_steps", "per_device_train_batch_size"])
def test_numbers_of_trainers_own(key, tmp_path):
    with pytest.raises(ValueError, match=f"`{key}=0` is out of range. Set it to 1 or more"):
        GAILConfig(**settings(tmp_path, **{key: 0}))


def test_an_empty_prompt_is_named(start, tmp_path):
    with pytest.raises(ValueError, match="Row 1 of the train dataset has an empty prompt"):
        make_trainer(start, tmp_path, [ROWS[0], {"prompt": "", "completion": " x"}, *ROWS[1:]])


class _Seen(TrainerCallback):
    def __init__(self, look):
        self.look = look

    def on_train_begin(self, args, state, control, **kwargs):
        self.look()


def test_checkpoints_of_others(start, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(start, tmp_path / "whole", **keys).train()
    checkpoint = tmp_path / "whole/checkpoint-2"
    other = make_trainer(start, tmp_path / "other", discriminator_lora_r=2, **keys)
    with pytest.raises(ValueError, match="discriminator is another one"):
        other.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "adversary.pt").unlink()
    with pytest.raises(ValueError, match="has no adversary.pt"):
        make_trainer(start, tmp_path / "again", **keys).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("length", [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 2}])
def test_fewer_prompts_than_a_generation_takes(length, start, tmp_path):
    """RLOO drops them, and ends well after no step."""
    message = "has 3 prompts and a generation takes 4.*per_device_train_batch_size=4.*steps_per_generation=2"
    with pytest.raises(ValueError, match=message):
        make_trainer(start, tmp_path, ROWS[:3], None, **BATCHES, **length)
    trainer = make_trainer(start, tmp_path, ROWS, None, **BATCHES, **length)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps > 0


BATCHES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def test_the_policy_has_one_likelihood(start, tmp_path):
    """On policy and at a learning rate of 0 RLOO's ratio is 1, whatever dropout an adapter asks for."""
    lora = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    ratios = {}
    for name, keys in (("ours", {}), ("of RLOO", {"disable_dropout": False})):
        trainer = make_trainer(start, tmp_path, ROWS, {"peft_config": lora}, learning_rate=0.0, max_steps=2, **keys)
        trainer.train()
        ratios[name] = logged(trainer, "clip_ratio/region_mean")
    assert ratios["ours"] == [0, 0] and max(ratios["of RLOO"]) > 0


def test_what_ends_in_another_stop_token_has_ended(start, tokenizer, tmp_path, monkeypatch):
    model = make_model("llama", seed=0)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    said = [[10, 11, 5], [10, tokenizer.eos_token_id], [10, 11, 12, 13, 14, 15], [5]] * 2
    monkeypatch.setattr(GAILTrainer, "_generate_single_turn", lambda *args: [list(ids) for ids in said])
    trainer = make_trainer(str(tmp_path / "model"), tmp_path, max_steps=1)
    trainer.train()
    expected = {"clipped_ratio": 1 / 4, "mean_terminated_length": 2, "min_terminated_length": 1}
    for name, value in {**expected, "max_terminated_length": 3, "max_length": 6}.items():
        assert logged(trainer, f"completions/{name}") == [pytest.approx(value)], name
    kept = {}

    def keep(self, inputs):
        output = of_trl(self, inputs)
        kept["tokens"] = output["completion_mask"].sum().item()
        return output

    of_trl = GAILTrainer._generate_and_score_completions
    monkeypatch.setattr(GAILTrainer, "_generate_and_score_completions", keep)
    try:
        trainer = make_trainer(str(tmp_path / "model"), tmp_path, max_steps=1, mask_truncated_completions=True)
    except ValueError as error:
        assert "this TRL would mask" in str(error) and trainer._knows_one_end
        return
    trainer.train()
    assert kept["tokens"] == 2 * (3 + 2 + 1)


def test_gradients_that_are_not_finite(start, tmp_path):
    trainer = make_trainer(start, tmp_path / "policy")
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="Step 1: the policy's gradients are NaN"):
        trainer.train()
    trainer = make_trainer(start, tmp_path / "discriminator")
    trainer.discriminator.parameters["score.weight"].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="The discriminator's gradients are not finite at generation 1"):
        trainer.train()


@pytest.mark.parametrize("ends", [False, True], ids=["never ends", "is always empty"])
def test_generation_there_is_nothing_to_learn_from(ends, start, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.runtime.generation_watch.MAX_WITHOUT_END", 2)
    trainer = make_trainer(start, tmp_path, learning_rate=0.0, max_steps=5)
    head = trainer.model.lm_head
    forward = head.forward

    def biased(hidden):
        logits = forward(hidden)
        return logits + 1e4 * (1 if ends else -1) * torch.nn.functional.one_hot(torch.tensor(1), logits.size(-1))

    monkeypatch.setattr(head, "forward", biased)
    told = "every completion was empty" if ends else "no completion ended within `max_completion_length=6`"
    with pytest.raises(GenerationError, match=told):
        trainer.train()


@pytest.mark.parametrize(
    "keys, fragment",
    [
        ({"label_smoothing": 0.5}, "`label_smoothing=0.5` is out of range"),
        ({"gail_reward": "wgan"}, "`gail_reward='wgan'` is unknown"),
        ({"discriminator_level": "word"}, "`discriminator_level='word'` is unknown"),
        ({"reward_clip": -1.0}, "`reward_clip=-1.0` is out of range"),
        ({"discriminator_update_ratio": float("inf")}, "`discriminator_update_ratio=inf` is out of range"),
        ({"mle_coef": float("inf")}, "`mle_coef=inf` must be finite"),
        ({"discriminator_update_ratio": 0.0}, "`discriminator_update_ratio=0.0` is out of range"),
        ({"discriminator_batch_size": 0}, "`discriminator_batch_size=0`"),
        ({"max_completion_length": 300}, "no room for `max_completion_length=300` in the model's context of 256"),
        ({"remove_unused_columns": True}, "`remove_unused_columns=True` would drop the expert's completions"),
    ],
)
def test_refused(keys, fragment, start, tmp_path):
    with pytest.raises(ValueError, match=fragment):
        make_trainer(start, tmp_path, **keys)


def test_data_without_completions(start, tmp_path):
    with pytest.raises(ValueError, match="train dataset has the columns answer, prompt, and no `completion`"):
        make_trainer(start, tmp_path, [{"prompt": "One", "answer": "two"}])


def test_a_discriminator_with_another_tokenizer(start, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<other>"])
    make_model("llama").save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`discriminator_model: .*other` has another tokenizer than the policy"):
        make_trainer(start, tmp_path, discriminator_model=str(tmp_path / "other"))
    make_model("llama", vocab_size=100).save_pretrained(tmp_path / "small")
    small = Discriminator.load(str(tmp_path / "small"))
    with pytest.raises(ValueError, match="The discriminator has 100 embeddings and the policy 300 tokens"):
        make_trainer(start, tmp_path, trainer_kwargs={"discriminator": small})


def test_no_gail_config(start, tmp_path):
    with pytest.raises(TypeError, match="Build a `GAILConfig`"):
        GAILTrainer(start, RLOOConfig(**settings(tmp_path)), Dataset.from_list(ROWS))


def test_policy_and_discriminator_are_asked_the_same(start, tokenizer, tmp_path):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " blue?"}]
    said = [{"role": "assistant", "content": "The sky."}]
    rows = [{"prompt": [{"role": "user", "content": parts}], "completion": said}] * 4
    trainer = make_trainer(start, tmp_path, rows=rows)
    prepared = trainer.train_dataset[0]
    said = tokenizer.apply_chat_template(prepared["prompt"], add_generation_prompt=True, return_dict=False)
    assert said == prepared["expert_prompt_ids"] and "What is blue?" in tokenizer.decode(said)
