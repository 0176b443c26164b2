"""What ends a completion where it is not the tokenizer's EOS alone, or where EOS is padding too."""

import copy
import json
from importlib.metadata import version

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from trl import RewardConfig, RewardTrainer

from tests.conftest import make_model, make_model_that_says, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import GAILConfig, GAILTrainer, PreferenceReward
from trl_irl.text.stop_tokens import cut_at_stop, end_turns_as_the_template_does, stop_token_ids
from trl_irl.trainer.ppo.ppo_reward_model import read_as_trained


needs_ppo = pytest.mark.skipif(version("trl") >= "1.13", reason="PPOTrainer is in TRL 1.12 only")
END = 3  # <|im_end|>, where EOS is 1
CHAT = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}?"}],
        "completion": [{"role": "assistant", "content": f"It is {i}."}],
    }
    for i in range(16)
]


def test_of_a_model_and_of_its_folder(tokenizer, tmp_path):
    model = make_model("llama")
    model.generation_config.eos_token_id = [5, END]
    model.save_pretrained(tmp_path)
    assert stop_token_ids(model, tokenizer) == stop_token_ids(str(tmp_path), tokenizer) == {1, END, 5}
    assert stop_token_ids(str(tmp_path / "none"), tokenizer) == {1}
    GenerationConfig(eos_token_id=None).save_pretrained(tmp_path)
    assert stop_token_ids(str(tmp_path), tokenizer) == {1}


def test_of_an_adapter_and_of_a_folder_without_a_generation_config(tokenizer, tmp_path):
    """What the loaded model has: an adapter's are its base's, and a config alone says them too."""
    model = make_model("llama")
    model.config.eos_token_id = model.generation_config.eos_token_id = [5, END]
    model.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert stop_token_ids(str(tmp_path / "adapter"), tokenizer) == {1, END, 5}
    (tmp_path / "base/generation_config.json").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for path in ("base", "adapter"):
        assert stop_token_ids(str(tmp_path / path), tokenizer) == stop_token_ids(loaded, tokenizer) == {1, END, 5}


def test_cut():
    assert cut_at_stop([7, 3, 8, 1], {1, 3}) == [7, 3]
    assert cut_at_stop([7, 8], {1}) == [7, 8] and cut_at_stop([], {1}) == []


@pytest.mark.parametrize(
    "prompt, stop_tokens, eos",
    [
        (CHAT[0]["prompt"], {1, END}, "<|im_end|>"),
        (CHAT[0]["prompt"], {1}, "<eos>"),  # the template ends a turn with no stop token
        ("What is 1?", {1, END}, "<eos>"),
        ([5, 6], {1, END}, "<eos>"),
    ],
)
def test_the_templates_end_of_turn(prompt, stop_tokens, eos):
    tokenizer = make_tokenizer()
    end_turns_as_the_template_does(tokenizer, prompt, stop_tokens)
    assert tokenizer.eos_token == eos


@pytest.fixture(scope="module")
def says_im_end(tmp_path_factory):
    """A chat model that says <|im_end|> with probability 1/2 and more, whatever came before; its EOS is another."""
    folder = tmp_path_factory.mktemp("policy")
    model = make_model_that_says(END, 1.6)
    model.generation_config.eos_token_id = [1, END]
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_gail_ends_where_the_turn_ends(says_im_end, tmp_path):
    args = GAILConfig(
        str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=32, max_steps=2, **QUIET
    )
    seen = []

    def watched(completion_ids, **kwargs):
        seen.extend(completion_ids)
        return [0.0] * len(completion_ids)

    trainer = GAILTrainer(str(says_im_end), args, Dataset.from_list(CHAT), reward_funcs=watched)
    trainer.train()
    assert len(seen) == 16
    assert all(set(ids[:-1]).isdisjoint({1, END}) for ids in seen)  # nothing after an end
    assert sum(ids[-1] == END for ids in seen) >= 15  # of 32 tokens hardly one completion is cut
    clipped = [entry["completions/clipped_ratio"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(clipped) / len(clipped) == pytest.approx(sum(ids[-1] not in (1, END) for ids in seen) / 16)


def nothing(prediction, row):
    return {"nothing": 0.0}


@needs_ppo
def test_ppo_takes_no_penalty_off_a_finished_answer(says_im_end, tmp_path):
    from trl_irl.commands import ppo

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    keys = {"model_name_or_path": says_im_end, "dataset_name": data, "output_dir": tmp_path / "run"}
    keys |= {"task": "tests.text.test_stop_tokens:nothing", "reward_metric": "nothing", "missing_eos_penalty": 1.0}
    keys |= {"response_length": 32, "total_episodes": 16, "per_device_train_batch_size": 8, **QUIET}
    told = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    trainer = ppo.make_trainer(*ppo.make_parser().parse(told))
    assert trainer.policy_model.generation_config.eos_token_id == [1, END]
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    assert sum(entry["val/num_eos_tokens"] for entry in logs) >= 15  # a row may have one end
    assert all(entry["objective/scores"] == entry["val/num_eos_tokens"] / 8 - 1 for entry in logs)


@needs_ppo
@pytest.mark.parametrize("response_length", [2, 32])
def test_ppo_after_text_takes_every_end_for_one(response_length, says_im_end, tmp_path, monkeypatch):
    """The tokenizer's EOS stays another than the end of a turn that the policy nearly always says."""
    from trl.experimental.ppo import ppo_trainer

    from trl_irl.commands import ppo

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {i}?"}) + "\n" for i in range(16)))
    keys = {"model_name_or_path": says_im_end, "dataset_name": data, "output_dir": tmp_path / "run"}
    keys |= {"task": "tests.text.test_stop_tokens:nothing", "reward_metric": "nothing", "missing_eos_penalty": 1.5}
    keys |= {"response_length": response_length, "total_episodes": 16, "per_device_train_batch_size": 8, **QUIET}
    keys["temperature"] = 1.6 if response_length == 2 else 1.0  # some are cut
    told = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    generated, drawn = ppo_trainer.batch_generation, []

    def watched(model, queries, *args):
        found = generated(model, queries, *args)
        drawn.append(found[0][:, queries.size(1) :])
        return found

    monkeypatch.setattr(ppo_trainer, "batch_generation", watched)
    trainer = ppo.make_trainer(*ppo.make_parser().parse(told))
    assert trainer.processing_class.eos_token_id == 1
    trainer.train()
    cut = [1 - torch.isin(rows, torch.tensor([1, END])).any(1).double().mean().item() for rows in drawn]
    scores = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
    assert scores == [-1.5 * share for share in cut] and len(scores) == 2
    assert sum(cut) < 0.2 if response_length == 32 else 0 < sum(cut)


@needs_ppo
@pytest.mark.parametrize("pad, expected", [(0, [0, 0, 1, 0, 1]), (1, [0, 0, 0, 0, 1])])
def test_what_is_given_back(pad, expected):
    """To a reward model's own numbers, whatever they are: the penalty, where the only end is another than EOS."""
    from trl.experimental.utils import get_reward

    from trl_irl.trainer.ppo.ppo_reward_model import OtherEndsForgiven

    scorer = AutoModelForSequenceClassification.from_config(make_model("llama").config, dtype=torch.bfloat16)
    scorer.config.num_labels, scorer.score = 1, torch.nn.Linear(16, 1, bias=False, dtype=torch.bfloat16)
    rows = torch.tensor([[END, 7, 8, 9, 9], [END, 7, 8, 1, pad], [END, 7, END, pad, pad], [7, 1, 8, 9, pad]])
    rows = torch.cat([rows, torch.tensor([[7, 7, 8, 9, END]])])
    own = get_reward(scorer, rows, pad, 2)[1]
    wrapped = OtherEndsForgiven(scorer, 1, {1, END}, pad, 0.3)
    assert torch.equal(get_reward(wrapped, rows, pad, 2)[1].float(), own.float())  # nothing was asked yet
    wrapped.prompt_width = 2
    given = get_reward(wrapped, rows, pad, 2)[1].float()  # float32, or it would be off by the rounding of bfloat16
    torch.testing.assert_close(given, own.float() + 0.3 * torch.tensor(expected), rtol=0, atol=1e-6)


@needs_ppo
def test_ppo_pads_with_no_stop_token(tmp_path):
    from trl_irl.trainer.ppo.inputs import load_tokenizer

    model, tokenizer = make_model("llama"), make_tokenizer()
    model.generation_config.eos_token_id = [1, 0]  # as Qwen's, which pad with another of their ends
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), model.config, False).pad_token == "[PAD]"
    model.generation_config.eos_token_id = [1, END]
    model.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), model.config, False).pad_token == "<pad>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no EOS token, so no response ever ends"):
        load_tokenizer(str(tmp_path), model.config, False)


PAIRS = [{"prompt": f"The fox {i}", "chosen": f" jumps over {i}", "rejected": " lazy dog."} for i in range(8)]


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "adapter"])
def padded_with_eos(request, tmp_path_factory):
    """A reward model of `trl reward` whose tokenizer pads with EOS, and its trainer."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, None
    make_model("llama").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    args = RewardConfig(str(folder), max_steps=4, learning_rate=1e-2, **{**QUIET, "logging_steps": 10})
    data = Dataset.from_list(PAIRS)
    trainer = RewardTrainer(
        str(folder / "base"), args, train_dataset=data, eval_dataset=data, peft_config=lora if request.param else None
    )
    trainer.train()
    trainer.save_model(folder / "saved")
    return str(folder / "saved"), trainer


def test_a_reward_model_is_read_where_it_was_trained(padded_with_eos):
    folder, trainer = padded_with_eos
    told, reward = trainer.evaluate(), PreferenceReward(folder, dtype="float32")
    chosen, rejected = (
        reward([p["prompt"] for p in PAIRS], [p[key] for p in PAIRS]) for key in ("chosen", "rejected")
    )
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert sum(margins) / len(margins) == pytest.approx(told["eval_margin"], abs=1e-4)


@needs_ppo
def test_and_so_in_ppo(padded_with_eos):
    from trl.experimental.utils import get_reward

    from trl_irl.rewards.preference_reward import load_scorer

    folder, _ = padded_with_eos
    reward, pad = PreferenceReward(folder, dtype="float32"), 299
    tokenizer = reward.tokenizer
    model = read_as_trained(load_scorer(folder, "float32").eval(), tokenizer.eos_token_id)
    for padding in (0, 3):
        for pair in PAIRS[:3]:
            prompt, answer = (tokenizer(pair[key])["input_ids"] for key in ("prompt", "chosen"))
            ids = torch.tensor([[pad] * padding + prompt + answer + [tokenizer.eos_token_id] + [pad] * padding])
            with torch.no_grad():
                read = get_reward(model, ids, pad, padding + len(prompt))[1].item()
            assert read == pytest.approx(reward([pair["prompt"]], [pair["chosen"]])[0], abs=1e-4)


def test_a_reward_model_with_padding_of_its_own_stays_as_it_is(tmp_path):
    scorer = copy.deepcopy(make_model("llama"))
    scorer.config.pad_token_id = 0
    assert read_as_trained(scorer, 1) is scorer


@pytest.fixture(scope="module")
def ends_turns_otherwise(tmp_path_factory):
    """A chat model whose template ends a turn with <|im_end|>, while nothing but another EOS is known as a stop."""
    folder = tmp_path_factory.mktemp("otherwise")
    model = make_model_that_says(END, 1.6)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    return folder


@pytest.mark.parametrize("eos_token", [None, "<|im_end|>"])
@pytest.mark.parametrize("command", ["evaluate", "reward-data", "gail", "ppo"])
def test_eos_token_and_its_warning_wherever_is_sampled(
    command, eos_token, ends_turns_otherwise, tmp_path, capsys, monkeypatch, recwarn, caplog
):
    from trl_irl.commands import evaluate, gail, reward_data

    monkeypatch.chdir(tmp_path)
    data = ["--dataset_name", str(ends_turns_otherwise / "rows.jsonl")]
    data += ["--eos_token", eos_token] if eos_token else []
    train = f"--model_name_or_path {ends_turns_otherwise} --output_dir out --use_cpu true --bf16 false --max_steps 1"
    train += " --report_to none --per_device_train_batch_size 4 --save_strategy no --learning_rate 1e-9"
    sampled = "--max_new_tokens 40 --num_samples 4 --output_dir out"
    (tmp_path / "own_of_ends.py").write_text("def size(text, row): return len(text)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ended = None
    if command == "evaluate":
        words = f"--models {ends_turns_otherwise} --split train --temperatures 1 --metrics rouge {sampled}"
        assert evaluate.run([*words.split(), *data]) == 0
        ended = json.loads((tmp_path / "out/metrics.json").read_text())[0]["metrics"]["ended"]["mean"]
    elif command == "reward-data":
        status = reward_data.run([*f"--model {ends_turns_otherwise} --task own_of_ends:size {sampled}".split(), *data])
        ended = 1.0 if "were cut at" not in capsys.readouterr().out and status == 0 else 0.0
    elif command == "gail":
        words = f"{train} --num_generations 2 --max_completion_length 40 --logging_steps 1"
        assert gail.run([*words.split(), *data]) == 0
        history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
        ended = 1 - history[0]["completions/clipped_ratio"]
    else:
        if version("trl") >= "1.13":
            pytest.skip("PPOTrainer is in TRL 1.12 only")
        from trl_irl.commands import ppo

        words = f"{train} --task own_of_ends:size --reward_metric size --response_length 40 --total_episodes 4"
        assert ppo.run([*words.replace("--max_steps 1", "").split(), *data]) == 0
        history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
        ended = history[0]["val/num_eos_tokens"] / 4
    told = " ".join([*(str(one.message) for one in recwarn.list), caplog.text])
    assert ("is written with a stop token" in told) == (eos_token is None)
    assert ended > 0.9 if eos_token else ended < 0.5
