"""The recipes of TL;DR and of helpful answers, stage after stage, each on what the one before wrote: tiny models."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from trl.scripts import grpo, reward, rloo, sft

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import PreferenceReward
from trl_irl.commands import evaluate, gail, irl, online_irl, ppo, prepare


RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {key: value for key, value in QUIET.items() if key != "gradient_checkpointing"}
SMALL |= {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "eval_strategy": "no"}
PROMPTS = ["What is the colour of the sky?", "One", "The quick brown fox", "One two", "What is the dog?", "1 2 3"]


def rows(conversational):
    """Preference pairs."""
    found = []
    for text in PROMPTS + [f"{text} is" for text in PROMPTS]:
        row = {"prompt": text, "chosen": f" {text.split()[-1]}", "rejected": " blue blue"}
        if conversational:
            row = {
                "prompt": [{"role": "user", "content": text}],
                **{key: [{"role": "assistant", "content": row[key].strip()}] for key in ("chosen", "rejected")},
            }
        found.append(row)
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(folder)(stage, **keys)`: a stage by its own recipe, these keys set otherwise; returns where it saved."""
    for name in ("TRL_IRL_REWARD", "TRL_IRL_PREFERENCE_REWARD"):
        monkeypatch.setenv(name, "to be set by the recipe, and restored after the test")

    def of_folder(folder):
        monkeypatch.chdir(tmp_path)  # recipes name outputs/...

        def _run(stage, without=(), **keys):
            output_dir = tmp_path / "outputs" / folder / stage
            keys = {**SMALL, **keys}
            words = ["--config", str(RECIPES / folder / f"{stage}.yaml")]
            words += [
                word for key, value in keys.items() if key not in without for word in (f"--{key}", str(value).lower())
            ]
            own = {"irl": irl, "online_irl": online_irl, "gail": gail}
            if stage in own:
                assert own[stage].run(words) == 0
            elif stage.startswith("ppo"):
                assert ppo.run(words) == 0
            else:
                module = {"sft": sft, "reward": reward, "rloo": rloo, "grpo": grpo}[stage]
                module.main(*module.make_parser().parse_args_and_config(words, fail_with_unknown_args=True))
            return output_dir

        return _run

    return of_folder


def logged(folder, key):
    (state,) = folder.rglob("trainer_state.json")  # TRL's own commands leave it in a checkpoint
    history = json.loads(state.read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


@pytest.mark.parametrize("folder", ["tldr", "hh"])
def test_stage_after_stage(folder, run, tmp_path):
    run = run(folder)
    base = tmp_path / "base"
    make_model("llama").save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    pairs, data = tmp_path / "pairs", tmp_path / "outputs" / folder / "data"
    pairs.mkdir()
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows(folder == "hh"))
        (pairs / f"{split}.jsonl").write_text(text)
    limits = ["--max_prompt_length", "200", "--drop_too_long", "true"]
    words = ["--dataset_name", str(pairs), "--tokenizer", str(base), "--output_dir", str(data)]
    assert prepare.run([*words, *limits]) == 0

    pad = {"pad_token": "<pad>"} if folder == "tldr" else {}
    supervised = {"model_name_or_path": base, "dataset_name": data, **pad}
    run("sft", **supervised)
    task = {"task": "tldr"} if folder == "tldr" else {}
    run("irl", **supervised, **task)
    if folder == "tldr":
        assert logged(run("online_irl", dataset_name=data, max_completion_length=8), "policy_length")
        saved = run("gail", dataset_name=data, max_completion_length=8)
        assert len(logged(saved, "discriminator_loss")) == 2
        assert (saved / "discriminator/adapter_model.safetensors").is_file()
    saved = run("reward", dataset_name=pairs, **pad)
    chosen = [(row["prompt"], row["chosen"]) for row in rows(folder == "hh")]
    given = PreferenceReward(str(saved))([prompt for prompt, _ in chosen], [text for _, text in chosen])
    assert len(set(given)) > 1
    sampling = {"max_completion_length": 8, "save_strategy": "steps", "save_steps": 2, "steps_per_generation": 1}
    on_reward_model = logged(run("rloo", **sampling), "reward")
    on_irl = logged(run("grpo", per_device_train_batch_size=8, **sampling), "rewards/soft_q_mean/mean")
    assert len(on_reward_model) == len(on_irl) == 2
    models = ["SFT=outputs/{0}/sft", "IRL=outputs/{0}/irl"]
    if version("trl") < "1.13":
        keys = {
            "response_length": 8,
            "total_episodes": 8,
            "local_rollout_forward_batch_size": 4,
            "eval_generations": 0,
        }
        keys |= {"dataset_name": data, "num_ppo_epochs": 1}
        run("ppo_full", without=("max_steps",), **keys)
        saved = run("ppo_lora", without=("max_steps",), **keys)
        assert len(logged(saved, "objective/kl")) == 2 and (saved / "value_model/model.safetensors").is_file()
        models.append("PPO=outputs/{0}/ppo_lora")
    words = ["--models", *(model.format(folder) for model in models), "--dataset_name", str(data)]
    words += ["--reward_model_path", f"outputs/{folder}/reward", "--temperatures", "1.0", "--max_new_tokens", "8"]
    assert evaluate.run([*words, "--output_dir", str(tmp_path / "evaluation"), "--num_prompts", "4"]) == 0
    results = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert len(results) == len(models) and all("win_rate" in one["metrics"] for one in results)
