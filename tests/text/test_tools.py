"""Tools and template arguments of a row: whoever asks its prompt asks as training does."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from tests.conftest import make_model
from tests.text.test_encode import bot, log_pi, prepared, user, with_template
from tests.trainer.conftest import settings
from trl_irl import GAILConfig, IRLConfig, IRLTrainer, PreferenceReward, SoftQReward
from trl_irl.commands import score
from trl_irl.evaluation.callback import GenerationArguments, GenerationCallback
from trl_irl.rewards.held_out_loss import held_out_sums
from trl_irl.tasks.columns import as_prompt_completion
from trl_irl.tasks.preferences import sampled_pairs
from trl_irl.text.encode import asked, encode_row
from trl_irl.text.sampling import encode_prompts, sample


def tool(name, key):
    schema = {"type": "object", "properties": {key: {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


ROWS = [
    {"prompt": [user("1 + 1?")], "completion": [bot("It is 2.")], "tools": json.dumps([tool("add", "x")])},
    {"prompt": [user("Sky?")], "completion": [bot("Blue.")], "chat_template_kwargs": {"enable_thinking": False}},
]
BOTH = [{**row, "tools": row.get("tools"), "chat_template_kwargs": row.get("chat_template_kwargs")} for row in ROWS]
LONG = {"max_position_embeddings": 1024}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model("qwen2", **LONG).save_pretrained(folder)
    with_template("qwen3").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def qwen3(folder):
    return AutoTokenizer.from_pretrained(folder)  # as commands load it, which reads Qwen's by rules of its own


@pytest.fixture(scope="module")
def trained(qwen3, tmp_path_factory):
    """The prompts and completions of IRLTrainer's own rows."""
    irl = [prepared(IRLTrainer, IRLConfig, [row], qwen3, tmp_path_factory.mktemp("irl"))[1][0] for row in ROWS]
    return [([i for i, x in zip(*row, strict=True) if x == -100], [x for x in row[1] if x != -100]) for row in irl]


def test_who_is_asked(qwen3, trained):
    prompts = encode_prompts(qwen3, [asked(row) for row in ROWS])
    assert prompts == [prompt for prompt, _ in trained]
    texts = qwen3.batch_decode(prompts)
    assert '"name": "add"' in texts[0] and texts[1].endswith("<think>\n\n</think>\n\n")
    assert encode_prompts(qwen3, [row["prompt"] for row in ROWS]) != prompts  # without them it is another prompt
    assert encode_prompts(qwen3, [asked(row) for row in BOTH]) == prompts


def test_samples_go_on_from_it(qwen3, trained):
    model = make_model("qwen2", **LONG)
    for row, (prompt, _) in zip(ROWS, trained, strict=True):
        ((sampled,),) = sample(model, qwen3, [asked(row)], max_new_tokens=5, description="")
        plain = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=5, do_sample=False)
        assert sampled.token_ids == plain[0, len(prompt) :].tolist()


def test_scores_and_held_out_losses_are_of_it(qwen3, trained):
    rows = [as_prompt_completion(row) for row in ROWS]
    expected = [log_pi(make_model("qwen2", **LONG), *row).sum().item() for row in trained]
    reward = SoftQReward(make_model("qwen2", **LONG), qwen3, kind="advantage")
    prompts, ids = [asked(row) for row in rows], [completion for _, completion in trained]
    for scored in (reward.score(prompts, [row["completion"] for row in rows]), reward.score(prompts, None, ids)):
        assert [one.log_likelihood for one in scored] == pytest.approx(expected, rel=1e-4)
    sums = held_out_sums(make_model("qwen2", **LONG), qwen3, rows)["nll"]
    assert sums[:, 0].tolist() == pytest.approx([-x for x in expected], rel=1e-4)


def test_the_score_command(folder, trained, tmp_path):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BOTH))
    out = tmp_path / "out.jsonl"
    words = ["--model", folder, "--dataset_name", str(tmp_path / "d.jsonl"), "--output", str(out)]
    assert score.run(words) == 0
    found = [json.loads(line)["log_likelihood"] for line in out.read_text().splitlines()]
    assert found == pytest.approx(
        [log_pi(make_model("qwen2", **LONG), *row).sum().item() for row in trained], rel=1e-4
    )


def test_generations_in_training(qwen3, trained, tmp_path, monkeypatch):
    seen = []
    model = make_model("qwen2", **LONG)
    generate = model.generate

    def watched(input_ids, attention_mask, **kwargs):
        seen.extend(ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True))
        return generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    rows = [as_prompt_completion(row) for row in BOTH]
    data = Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in ROWS])
    args = IRLConfig(**settings(tmp_path, max_length=None, eval_strategy="steps", eval_steps=1, max_steps=1))
    trainer = IRLTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=qwen3)
    monkeypatch.setattr(model, "generate", watched)
    options = GenerationArguments(eval_num_samples=1, eval_max_new_tokens=2)
    trainer.add_callback(GenerationCallback(trainer, rows, lambda text, row: {"n": 1.0}, options))
    trainer.evaluate()
    assert seen == [prompt for prompt, _ in trained]


def test_a_reward_model_reads_what_it_was_trained_on(qwen3, folder, tmp_path, monkeypatch):
    """RewardTrainer writes tools and arguments of a row too; `trl-irl reward-data` hands them on."""
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    scorer.save_pretrained(tmp_path / "rm")
    qwen3.save_pretrained(tmp_path / "rm")
    reward, read = PreferenceReward(str(tmp_path / "rm")), []
    monkeypatch.setattr(reward, "of_ids", lambda rows: read.extend(rows) or [0.0] * len(rows))
    for row in ROWS:
        (pair,) = sampled_pairs([row], [["It is 2.", "no"]], [[1.0, 0.0]])
        trainer = RewardTrainer(
            scorer,
            RewardConfig(str(tmp_path / "t"), use_cpu=True, bf16=False, report_to="none", max_length=None),
            train_dataset=Dataset.from_list([pair]),
            processing_class=qwen3,
        )
        reward([asked(row)], ["It is 2."])
        assert read[-1] == trainer.train_dataset[0]["chosen_ids"]
        assert encode_row(qwen3, row).prompt == read[-1][: len(encode_row(qwen3, row).prompt)]


@pytest.mark.parametrize("own", [{}, {"enable_thinking": True}])
def test_a_reward_in_rl_is_asked_as_the_policy_is(own, qwen3, folder, tmp_path, monkeypatch):
    """TRL does not tell a reward function of the template's arguments: it has them itself, and a row's come first."""
    options = {"enable_thinking": False}
    prompt = [user("Sky?")]
    row = {"prompt": prompt, "chat_template_kwargs": own} if own else prompt
    reward = SoftQReward(str(folder), qwen3, chat_template_kwargs=options)
    asked_with = {**options, **own}
    ids = qwen3.apply_chat_template(prompt, add_generation_prompt=True, **asked_with)["input_ids"]
    said = qwen3("Blue.")["input_ids"] + [qwen3.eos_token_id]
    (found,), (expected,), (other,) = (
        reward([row], completion_ids=[said]),
        SoftQReward(str(folder), qwen3)([list(ids)], completion_ids=[said]),
        SoftQReward(str(folder), qwen3)([prompt], completion_ids=[said]),
    )
    assert found == pytest.approx(expected, rel=1e-6) and (found != pytest.approx(other, rel=1e-3)) == (not own)
    in_text = SoftQReward(str(folder), qwen3).score(
        [{"prompt": prompt, "chat_template_kwargs": asked_with}], ["Blue."]
    )
    assert reward.score([row], ["Blue."])[0].sum == pytest.approx(in_text[0].sum, rel=1e-6)
    assert reward(["text"], ["alike"]) == SoftQReward(str(folder), qwen3)(["text"], ["alike"])

    scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    for part in (scorer, qwen3):
        part.save_pretrained(tmp_path / "rm")
    preference, read = PreferenceReward(str(tmp_path / "rm"), chat_template_kwargs=options), []
    monkeypatch.setattr(preference, "of_ids", lambda rows: read.extend(rows) or [0.0] * len(rows))
    preference([row], ["Blue."])
    turns = [*prompt, {"role": "assistant", "content": "Blue."}]
    assert read == [list(qwen3.apply_chat_template(turns, **asked_with)["input_ids"])]


def test_results_of_tools_are_no_words_of_the_policy(qwen3, folder):
    reward = SoftQReward(str(folder), qwen3)
    turns = [{"role": "assistant", "content": "1"}, {"role": "tool", "content": "2"}]
    with pytest.raises(ValueError, match="the results of tools among its tokens"):
        reward([[user("Sky?")]], [turns], completion_ids=[[5, 6, 7]])


def test_prompts_of_ppo(qwen3, folder, trained, tmp_path):
    pytest.importorskip("trl.experimental.ppo", reason="PPOTrainer is in TRL 1.12 only")
    from trl_irl.commands.ppo import PPOScriptArguments, load_prompts
    from trl_irl.trainer.ppo.config import PPOConfig
    from trl_irl.trainer.ppo.inputs import after_eos, demonstrations_of

    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BOTH))
    arguments = PPOScriptArguments(dataset_name=str(tmp_path / "d.jsonl"))
    rows = load_prompts(arguments, qwen3, PPOConfig(str(tmp_path), use_cpu=True, bf16=False, max_prompt_length=1000))
    rows = rows["train"]
    assert [row["input_ids"] for row in rows] == [prompt for prompt, _ in trained]
    assert [prompt for prompt, _ in demonstrations_of(rows, qwen3)] == [prompt for prompt, _ in trained]
    ends = AutoTokenizer.from_pretrained(folder, eos_token="<|im_end|>")
    assert ends.decode(after_eos(ends, rows[0])) == "\n"


def test_generations_of_gail_are_asked_as_rloo_asks(qwen3, tmp_path):
    """There the run's arguments reach the template, and the rows' own tools do not."""
    args = GAILConfig(str(tmp_path), chat_template_kwargs={"enable_thinking": False}, use_cpu=True, bf16=False)
    trainer = SimpleNamespace(processing_class=qwen3, model=make_model("qwen2", **LONG), args=args)
    row = as_prompt_completion(BOTH[0])
    options = GenerationArguments(eval_num_samples=1, eval_max_new_tokens=2)
    callback = GenerationCallback(trainer, [row], lambda text, row: {"n": 1.0}, options)
    plain = qwen3.apply_chat_template(row["prompt"], add_generation_prompt=True, enable_thinking=False)["input_ids"]
    assert encode_prompts(qwen3, callback._prompts) == [list(plain)]
