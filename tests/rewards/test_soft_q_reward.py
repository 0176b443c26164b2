"""The reward object: against likelihoods computed by hand, as a function of TRL's trainers, and what it refuses."""

import copy
import inspect
import json
import math
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, XLoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.conftest import make_model, make_tokenizer
from tests.trainer.conftest import ROWS, settings
from trl_irl import IRLConfig, IRLTrainer, PreferenceReward, SoftQReward, evaluate
from trl_irl.evaluation import EvaluationSettings
from trl_irl.rewards.adapters import default_device
from trl_irl.rewards.held_out_loss import held_out_sums
from trl_irl.rewards.token_values import token_values
from trl_irl.soft_q.terms import soft_q_terms


PROMPTS = ["What is the colour of the sky?", "One", "One"]
COMPLETIONS = [" It is blue.", " two three", " lazy dog 1 2 3"]


def log_likelihood(model, tokenizer, prompt, completion):
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + completion + tokenizer.eos_token, return_tensors="pt")["input_ids"]
    log_pi = model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return log_pi[start - 1 :].sum().item()


@pytest.fixture
def reward(tokenizer):
    return SoftQReward(make_model("qwen2"), tokenizer, terminal_value="zero")


@pytest.mark.parametrize(
    ("prompts", "completions", "told"),
    [
        ("One", ["two"], "`prompts` is a single value, 'One', where a list is needed"),
        (["One"], "two", "`completions` is a single value, 'two', where a list is needed"),
        ({"prompt": "One"}, ["two"], "`prompts` is a single value"),
        (["One", "Two"], ["three"], "There are 2 `prompts` and 1 `completions`"),
        ([{"role": "user", "content": "One"}], ["two"], "`prompts` is a single value, .* where a list is needed"),
    ],
)
def test_lists_of_prompts_and_completions(prompts, completions, told, reward, tokenizer, tmp_path):
    AutoModelForSequenceClassification.from_config(make_model("llama", num_labels=1).config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for judge in (reward, reward.score, PreferenceReward(str(tmp_path))):
        with pytest.raises(ValueError, match=told):
            judge(prompts, completions)


def test_without_discount_returns_rank_as_likelihood_does(reward, tokenizer):
    """DESIGN 2: the sum telescopes to log pi(completion | prompt) + V(s_0)."""
    model = make_model("qwen2")
    scored = reward.score(PROMPTS, COMPLETIONS)
    for one, prompt, completion in zip(scored, PROMPTS, COMPLETIONS, strict=True):
        expected = log_likelihood(model, tokenizer, prompt, completion)
        assert one.log_likelihood == pytest.approx(expected, rel=1e-4)
        assert one.sum == pytest.approx(expected + one.initial_value, rel=1e-4)
    value = model(tokenizer("One", return_tensors="pt")["input_ids"]).logits[0, -1].logsumexp(-1).item()
    assert scored[1].initial_value == scored[2].initial_value == pytest.approx(value, rel=1e-5)


def test_a_model_whose_values_count_from_a_reference_is_named(tokenizer, tmp_path):
    args = IRLConfig(**settings(tmp_path / "run", value_origin="reference"))
    IRLTrainer(
        make_model("qwen2"), args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    ).save_model()
    with pytest.warns(UserWarning, match="value_origin: reference.*token by token they differ"):
        SoftQReward(str(tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftQReward(str(tmp_path / "run"), kind="advantage")


def test_discount_and_mean_by_hand(tokenizer):
    reward = SoftQReward(make_model("qwen2"), tokenizer, gamma=0.5, terminal_value="zero", aggregate="discounted")
    (one,) = reward.score(PROMPTS[:1], COMPLETIONS[:1])
    next_v = [*one.v[1:], 0.0]
    expected = [q - 0.5 * v for q, v in zip(one.q, next_v, strict=True)]
    np.testing.assert_allclose(one.rewards, expected, rtol=1e-5)
    assert one.discounted == pytest.approx(sum(0.5**t * r for t, r in enumerate(expected)), rel=1e-5)
    assert one.mean == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert reward(PROMPTS[:1], COMPLETIONS[:1]) == [one.discounted]


def test_unset_they_are_those_of_training_that_is_not_told_either(tokenizer):
    """One default everywhere (DESIGN 2): a model that says nothing of itself is read as `IRLConfig` would train it."""
    reward = SoftQReward(make_model("qwen2"), tokenizer)
    config = IRLConfig(output_dir="unused", report_to="none", use_cpu=True, bf16=False)
    assert (reward.gamma, reward.terminal_value) == (config.gamma, config.terminal_value)
    evaluation = EvaluationSettings(task="arithmetic")
    assert (evaluation.gamma, evaluation.terminal_value) == (config.gamma, config.terminal_value)
    for function in (soft_q_terms, token_values, held_out_sums):
        assert inspect.signature(function).parameters["terminal_value"].default == config.terminal_value
    (one,) = reward.score(PROMPTS[:1], COMPLETIONS[:1])
    assert one.has_reward[:-1].all() and not one.has_reward[-1]


def test_log_ratio_and_advantage(tokenizer):
    model, base = make_model("qwen2"), make_model("qwen2", seed=4)
    ratio = SoftQReward(model, tokenizer, kind="log_ratio", ref_model=base)
    for one, prompt, completion in zip(ratio.score(PROMPTS, COMPLETIONS), PROMPTS, COMPLETIONS, strict=True):
        own, others = (log_likelihood(m, tokenizer, prompt, completion) for m in (model, base))
        assert one.sum == pytest.approx(own - others, rel=1e-4, abs=1e-4)
    advantage = SoftQReward(model, tokenizer, kind="advantage").score(PROMPTS, COMPLETIONS)
    assert all(one.sum == pytest.approx(one.log_likelihood) and (one.rewards <= 0).all() for one in advantage)
    itself = SoftQReward(model, tokenizer, kind="log_ratio", ref_model=make_model("qwen2"))
    assert itself(PROMPTS, COMPLETIONS) == [0.0] * 3


def test_ids_text_and_messages_agree(reward, tokenizer):
    ids = [tokenizer(text + "<eos>")["input_ids"] for text in COMPLETIONS]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(reward(PROMPTS, COMPLETIONS, completion_ids=ids), rel=1e-5)
    (cut,) = reward.score(PROMPTS[:1], completion_ids=[ids[0][:-1]])
    assert not cut.has_reward[-1] and cut.rewards[-1] == 0
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    chat = copy.deepcopy(tokenizer)
    chat.eos_token = "<|im_end|>"
    found = SoftQReward(make_model("qwen2"), chat, terminal_value="zero").score(messages, answers)
    assert all(3 in one.token_ids and one.has_reward[list(one.token_ids).index(3)] for one in found)


def test_a_call_normalises_and_clips(tokenizer):
    reward = SoftQReward(make_model("qwen2"), tokenizer, clip=1.0)
    reward.normalize_on(PROMPTS, COMPLETIONS)
    plain = np.array([one.sum for one in reward.score(PROMPTS, COMPLETIONS)])
    expected = ((plain - plain.mean()) / plain.std()).clip(-1, 1)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected.tolist())
    with pytest.raises(ValueError, match="all have the same"):
        reward.normalize_on(PROMPTS[:1], COMPLETIONS[:1])
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected.tolist())  # what failed has changed nothing
    reward.normalize_on([*PROMPTS, "One"], [*COMPLETIONS, ""])  # an empty answer, which has no reward
    *found, of_nothing = reward([*PROMPTS, "One"], [*COMPLETIONS, ""])
    assert found == pytest.approx(expected.tolist()) and of_nothing is None


def test_of_several_adapters_a_reward_is_that_of_its_own(tokenizer):
    model = get_peft_model(make_model("qwen2"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    first = SoftQReward(model, tokenizer)
    expected = first(PROMPTS, COMPLETIONS)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.set_adapter("second")
    second = SoftQReward(model, tokenizer)
    assert second(PROMPTS, COMPLETIONS) != expected
    with pytest.raises(ValueError, match="made of the adapter default, and second is active now"):
        first(PROMPTS, COMPLETIONS)
    model.set_adapter("default")
    assert first(PROMPTS, COMPLETIONS) == expected
    with pytest.raises(ValueError, match="made of the adapter second, and default is active now"):
        second.score(PROMPTS, COMPLETIONS)


def test_a_reference_that_an_adapter_was_put_into_is_no_reference(tokenizer):
    base = make_model("qwen2")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for other in (base, model):
        with pytest.raises(ValueError, match="`ref_model` is the very model that is judged"):
            SoftQReward(model, tokenizer, kind="log_ratio", ref_model=other)


def test_an_empty_completion(reward):
    (one,) = reward.score(PROMPTS[:1], completion_ids=[[]])
    assert one.sum == one.mean == one.discounted == one.log_likelihood == 0 and math.isnan(one.initial_value)


@pytest.mark.parametrize("terminal_value, kind", [("mask", "soft_q"), ("zero", "soft_q"), ("mask", "advantage")])
@pytest.mark.parametrize("aggregate", ["sum", "mean", "discounted"])
def test_what_has_no_known_reward_gets_no_number(terminal_value, kind, aggregate, tokenizer):
    """Nothing, one token that was cut, a stop token alone with `mask`: 0 nats would be more than most texts have."""
    options = {"terminal_value": terminal_value, "kind": kind, "aggregate": aggregate, "clip": 3.0}
    reward, eos = SoftQReward(make_model("qwen2"), tokenizer, **options), tokenizer.eos_token_id
    said = [[], [5], [eos], [5, eos], [5, 6]]
    found = reward(["One"] * len(said), completion_ids=said)
    known = [False, kind == "advantage", kind == "advantage" or terminal_value == "zero", True, True]
    assert [x is not None for x in found] == known
    scored = reward.score(["One"] * len(said), completion_ids=said)
    clipped = [max(-3.0, min(3.0, getattr(one, aggregate))) for one in scored]
    expected = [x for x, is_known in zip(clipped, known, strict=True) if is_known]
    assert [x for x in found if x is not None] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["soft_q", "advantage", "log_ratio"])
@pytest.mark.parametrize("terminal_value", ["mask", "zero"])
def test_blanks_behind_the_stop_token_are_no_policys(kind, terminal_value, tokenizer):
    """A template writes a newline behind the turn that it ends: text and ids of one completion get one number."""
    chat = copy.deepcopy(tokenizer)
    chat.eos_token = "<|im_end|>"
    reference = {"ref_model": make_model("qwen2", seed=5)} if kind == "log_ratio" else {}
    reward = SoftQReward(make_model("qwen2"), chat, kind=kind, terminal_value=terminal_value, **reference)
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": text.strip()}] for text in COMPLETIONS]
    whole = chat.apply_chat_template(prompts[0] + answers[0], tokenize=False)
    assert whole.endswith("<|im_end|>\n"), "the template writes nothing behind the turn: the test tries nothing"
    ids = [[*chat(text.strip())["input_ids"], chat.eos_token_id] for text in COMPLETIONS]
    by_text, by_ids = reward.score(prompts, answers), reward.score(prompts, completion_ids=ids)
    for one, other in zip(by_text, by_ids, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist() and one.token_ids[-1] == chat.eos_token_id
        assert one.rewards == pytest.approx(other.rewards, abs=1e-4)
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
    two = reward.score(prompts[:1], [[*answers[0], *prompts[1], *answers[1]]])[0]  # between turns it is a token as any
    assert list(two.token_ids).count(chat.eos_token_id) == 3 and two.token_ids[-1] == chat.eos_token_id


def test_each_process_loads_onto_its_own_device(monkeypatch):
    """A reward is built before the trainer's arguments set the process's device: until then that is the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert default_device() == "cuda"
    for rank, device in (("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert default_device() == device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == "cpu"


def test_a_path_is_a_name(model_folder):
    expected = SoftQReward(str(model_folder))(PROMPTS, COMPLETIONS)
    found = SoftQReward(model_folder, name="helpful")
    assert isinstance(model_folder, Path) and found(PROMPTS, COMPLETIONS) == expected and found.__name__ == "helpful"
    ratio = SoftQReward(model_folder, kind="log_ratio", ref_model=model_folder)
    assert ratio(PROMPTS, COMPLETIONS) == pytest.approx([0.0] * len(PROMPTS), abs=1e-5)


def test_pickled_it_is_the_same(reward):
    again = pickle.loads(pickle.dumps(reward))
    assert again(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS) and again.__name__ == "soft_q_sum"


@pytest.mark.parametrize("adapter", [False, True])
def test_settings_of_training_are_read_back(adapter, tokenizer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    args = settings(
        tmp_path / "run", gamma=0.9, terminal_value="mask", max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer = IRLTrainer(
        model=str(tmp_path / "base"),
        args=IRLConfig(**args),
        train_dataset=Dataset.from_list(ROWS),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False) if adapter else None,
    )
    trainer.train()
    trainer.save_model(tmp_path / "model")
    for folder in ("model", "run/checkpoint-1"):
        reward = SoftQReward(str(tmp_path / folder))
        assert (reward.gamma, reward.terminal_value) == (0.9, "mask")
    expected = SoftQReward(trainer.model.merge_and_unload() if adapter else trainer.model, tokenizer, gamma=0.9)
    assert SoftQReward(str(tmp_path / "model"), gamma=0.5, terminal_value="zero").gamma == 0.5
    # As the command loads it: a model's class may have its own way to tokenise.
    expected.tokenizer, expected.terminal_value = AutoTokenizer.from_pretrained(tmp_path / "model"), "mask"
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected(PROMPTS, COMPLETIONS), rel=1e-4)
    assert SoftQReward(str(tmp_path / "base")).gamma == 1.0


def test_the_temperature_of_its_values_is_that_of_training(tokenizer, tmp_path):
    args = settings(tmp_path / "run", value_temperature=2.0, gamma=0.9, terminal_value="mask", max_steps=1)
    rows = Dataset.from_list(ROWS)
    trainer = IRLTrainer(make_model("llama"), IRLConfig(**args), train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    reward = SoftQReward(str(tmp_path / "model"))
    prompt, said = tokenizer("The quick")["input_ids"], tokenizer(" brown fox")["input_ids"]
    (scored,) = reward.score([prompt], completion_ids=[said])
    logits = trainer.model(input_ids=torch.tensor([prompt + said])).logits[0].detach().double()
    at = range(len(prompt) - 1, len(prompt) + len(said) - 2)  # the last has no known next state
    expected = [
        logits[t, action] - 0.9 * 2 * (logits[t + 1] / 2).logsumexp(-1) for t, action in zip(at, said, strict=False)
    ]
    assert scored.rewards[:-1] == pytest.approx([float(x) for x in expected], rel=1e-5)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("adapter", [False, True])
def test_as_reward_of_trls_trainers(kind, adapter, tokenizer, tmp_path):
    config, trainer_class = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
    asked = []

    class Watched(SoftQReward):
        def __call__(self, prompts, completions, completion_ids=None, **kwargs):
            found = super().__call__(prompts, completions, completion_ids, **kwargs)
            asked.append((completion_ids, found))
            return found

    options = settings(tmp_path, max_steps=5, max_completion_length=6, num_generations=2)
    options |= {"per_device_train_batch_size": 4, "generation_batch_size": 4} if kind == "grpo" else {}
    options.pop("max_length")
    make_model("qwen2", seed=1).save_pretrained(tmp_path / "policy")  # RLOO loads its reference by name
    trainer = trainer_class(
        model=str(tmp_path / "policy"),
        args=config(**options),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        processing_class=tokenizer,
        reward_funcs=Watched(make_model("qwen2"), tokenizer),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None,
    )
    trainer.train()
    assert trainer.state.global_step == 5 and len(asked) == 5
    known = [[x for x in found if x is not None] for _, found in asked]  # a completion of one token may have none
    assert all(np.isfinite(numbers).all() and len(set(numbers)) > 1 for numbers in known)
    assert all(ids is not None for ids, _ in asked)
    logged = [entry for entry in trainer.state.log_history if "rewards/soft_q_sum/mean" in entry]
    assert logged[0]["rewards/soft_q_sum/mean"] == pytest.approx(np.mean(known[0]), rel=1e-4)


@pytest.mark.parametrize("config, trainer_class", [(GRPOConfig, GRPOTrainer), (RLOOConfig, RLOOTrainer)])
def test_rl_raises_the_return(config, trainer_class, tokenizer, tmp_path):
    """A random policy against the rewards of another random model: any step in the right direction shows."""
    options = settings(tmp_path, max_steps=24, max_completion_length=6, num_generations=8, learning_rate=1e-2)
    options |= {"per_device_train_batch_size": 64, "beta": 0.0, "lr_scheduler_type": "constant"}
    options.pop("max_length")
    make_model("qwen2", seed=1).save_pretrained(tmp_path / "policy")
    trainer = trainer_class(
        model=str(tmp_path / "policy"),
        args=config(**options),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS] * 8),
        processing_class=tokenizer,
        reward_funcs=SoftQReward(make_model("qwen2"), tokenizer, batch_size=64),
    )
    trainer.train()
    returns = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert np.mean(returns[-4:]) > np.mean(returns[:4]) + 10  # nats


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ({"kind": "q"}, "`kind='q'` is unknown"),
        ({"aggregate": "max"}, "`aggregate='max'` is unknown"),
        ({"kind": "log_ratio"}, "compares the model with a reference"),
        ({"ref_model": "x"}, "no other kind has one"),
        ({"tokenizer": None}, "needs its `tokenizer`"),
    ],
)
def test_refused(arguments, fragment, tokenizer):
    with pytest.raises(ValueError, match=fragment):
        SoftQReward(make_model("qwen2"), **{"tokenizer": tokenizer, **arguments})


def test_another_tokenizer_is_seen(reward):
    with pytest.raises(ValueError, match="policy's tokens are not the reward model's"):
        reward(PROMPTS[:1], [" It is blue."], completion_ids=[[5, 6]])
    with pytest.raises(ValueError, match="nothing to score"):
        reward.score(PROMPTS)
    with pytest.raises(ValueError, match="vocabulary has 300"):
        reward.score(PROMPTS[:1], completion_ids=[[300]])


def test_nf4_with_an_adapter(tokenizer, tmp_path):
    """A QLoRA model as it is in training, against its own logits; alone and in a batch."""
    make_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=nf4, dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    reward = SoftQReward(model, tokenizer, kind="advantage")
    with torch.no_grad():
        expected = [log_likelihood(model, tokenizer, *row) for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-4)
    reward.batch_size = 1
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-4)
    with model.disable_adapter():
        assert reward(PROMPTS, COMPLETIONS) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", [SoftQReward, PreferenceReward])
@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ({"model": None}, "`model` is a NoneType. Give a folder"),
        ({"model": torch.nn.Linear(2, 2)}, "`model` is a Linear"),
        ({"tokenizer": "gpt2"}, "`tokenizer` is a str. Give the tokenizer itself"),
        ({"model": "outputs/not/there", "tokenizer": None}, "`model: outputs/not/there` is not there"),
        ({"model": Path("/not/there")}, "`model: /not/there` is not there"),
        ({"batch_size": None}, "`batch_size: None` must be 1 or more"),
        ({"batch_size": "8"}, "`batch_size: 8` must be 1 or more"),
    ],
)
def test_something_else_than_a_model_and_its_tokenizer(kind, arguments, fragment, tokenizer):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=re.escape(fragment)):
        kind(**{"model": make_model("qwen2"), "tokenizer": tokenizer, **arguments})


def test_ids_say_themselves_whether_they_ended(reward):
    with pytest.raises(ValueError, match="`ended` is of `completions`"):
        reward.score(PROMPTS[:1], completion_ids=[[5, 6]], ended=[True])


_WRONG = {"gamma": [1.5, -0.1, "1e-5"], "clip": [-1.0, 0.0, "1"], "batch_size": [0], "terminal_value": ["none"]}


@pytest.mark.parametrize("wrong", [{name: value} for name, values in _WRONG.items() for value in values])
def test_numbers_out_of_range(wrong, tokenizer):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}[=:] ?'?{wrong[name]}'?`"):
        SoftQReward(make_model("llama"), tokenizer, **wrong)


def test_virtual_tokens_are_refused(tokenizer):
    model = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="SoftQReward's `model` is an adapter of virtual tokens .PROMPT_TUNING"):
        SoftQReward(model, tokenizer)


def test_adapters_that_only_pefts_wrapper_can_apply_are_refused(tokenizer, tmp_path):
    """Without it an aLoRA's reward would be its base's, and an X-LoRA's that of weights left from another text."""
    invoked = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6])
    model = get_peft_model(make_model("llama"), invoked)
    with pytest.raises(ValueError, match="SoftQReward's `model` is an aLoRA"):
        SoftQReward(model, tokenizer)
    base = make_model("llama")
    base.save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="`model: .*adapter` is an aLoRA"):
        SoftQReward(str(tmp_path / "adapter"))
    plain = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(make_model("llama"), plain).save_pretrained(tmp_path / "one")
    base.config.use_cache = False
    mixed = XLoraConfig(task_type="CAUSAL_LM", hidden_size=16, adapters={"0": str(tmp_path / "one")})
    with pytest.raises(ValueError, match="SoftQReward's `model` is an X-LoRA"):
        SoftQReward(get_peft_model(base, mixed), tokenizer)


def test_bfloat16_keeps_values_in_float32(tokenizer):
    model = make_model("qwen2")
    expected = SoftQReward(model, tokenizer).score(PROMPTS, COMPLETIONS)
    found = SoftQReward(copy.deepcopy(model).to(torch.bfloat16), tokenizer).score(PROMPTS, COMPLETIONS)
    for one, other in zip(found, expected, strict=True):
        assert one.rewards.dtype == np.float32
        np.testing.assert_allclose(one.rewards, other.rewards, atol=0.25)


def test_completions_that_trl_has_parsed(model_folder, tokenizer):
    """GRPO hands thoughts and tool calls apart from the text where the tokenizer has a response template."""
    reward = SoftQReward(str(model_folder))
    prompt = [{"role": "user", "content": "What is 1?"}]
    ids = tokenizer("hm It is one\n\nOne two")["input_ids"] + [tokenizer.eos_token_id]
    parsed = {"role": "assistant", "reasoning_content": "hm It is one", "content": "One two"}
    expected = reward([prompt], None, [ids])
    assert reward([prompt], [[parsed]], [ids]) == pytest.approx(expected)
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "One", "arguments": {}}}]}
    assert reward([prompt], [[called]], [ids]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="The policy's tokens are not the reward model's"):
        reward([prompt], [[{**parsed, "content": "lazy dog"}]], [ids])


def test_a_reference_with_tokens_of_another_tokenizer(tmp_path, model_folder, tokenizer):
    """Ids of one tokenizer are other words in another, and every one of them is below its vocabulary's size."""
    other = make_tokenizer()
    backend = json.loads(other.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    shifted = {token: 4 + (i - 4 + 7) % (len(vocab) - 4) if i >= 4 else i for token, i in vocab.items()}
    backend["model"]["vocab"] = shifted
    foreign = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), pad_token="<pad>", eos_token="<eos>"
    )
    make_model("qwen2", seed=4).save_pretrained(tmp_path / "foreign")
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(
        ValueError, match="`ref_model: .*foreign` has another tokenizer than the model: .* is .* there"
    ):
        SoftQReward(str(model_folder), kind="log_ratio", ref_model=str(tmp_path / "foreign"))
    settings = EvaluationSettings(rerank=True, reward_ref_model=str(tmp_path / "foreign"), **SAMPLED)
    rows = [{"prompt": "One", "completion": " two"}, {"prompt": "The quick", "completion": " brown"}]
    with pytest.raises(ValueError, match="`reward_ref_model: .*foreign` has another tokenizer"):
        evaluate({"own": str(model_folder)}, rows, settings)

    more = make_tokenizer()  # as a reference without the tokens of a chat template
    more.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    make_model("qwen2", seed=4).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    ratio = SoftQReward(make_model("qwen2"), more, kind="log_ratio", ref_model=str(tmp_path / "plain"))
    assert len(ratio(PROMPTS, COMPLETIONS)) == 3


SAMPLED = {"temperatures": [1.0], "num_samples": 2, "max_new_tokens": 4, "metrics": ["rouge"]}
