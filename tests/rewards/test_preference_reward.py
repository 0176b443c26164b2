"""A reward model read by PreferenceReward against the RewardTrainer that trained it."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from tests.conftest import make_model, make_tokenizer
from trl_irl import PreferenceReward


TEXT = [
    {"prompt": "What is the colour of the sky?", "chosen": " It is blue.", "rejected": " fox"},
    {"prompt": "One", "chosen": " two three", "rejected": " dog dog dog dog"},
    {"prompt": "The quick", "chosen": " brown fox", "rejected": " blue"},
    {"prompt": "1", "chosen": " 2 3", "rejected": " jumps over"},
    {"prompt": "It is", "chosen": " blue", "rejected": " the lazy dog. 1 2 3"},
]


def as_messages(row):
    assistant = {key: [{"role": "assistant", "content": row[key].strip()}] for key in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **assistant}


CHAT = [as_messages(row) for row in TEXT]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(rows, adapter)`: the folder of a reward model, and its trainer."""

    def _trained(rows, adapter=False, steps=3):
        folder = tmp_path_factory.mktemp("reward")
        make_model("llama").save_pretrained(folder / "base")
        make_tokenizer().save_pretrained(folder / "base")
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
        trainer = RewardTrainer(
            model=str(folder / "base"),
            args=RewardConfig(
                output_dir=str(folder / "run"),
                max_steps=steps,
                learning_rate=1e-2,
                per_device_train_batch_size=2,
                use_cpu=True,
                bf16=False,
                report_to="none",
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            processing_class=make_tokenizer(),
            peft_config=lora if adapter else None,
        )
        trainer.train()
        trainer.save_model(folder / "saved")
        return str(folder / "saved"), trainer

    return _trained


@pytest.mark.parametrize("rows", [TEXT, CHAT], ids=["text", "messages"])
@pytest.mark.parametrize("adapter", [False, True])
def test_pair_accuracy_after_a_reload_is_the_trainers(rows, adapter, trained):
    folder, trainer = trained(rows, adapter)
    told = trainer.evaluate()
    for batch_size in (1, 2, 8):
        reward = PreferenceReward(folder, batch_size, dtype="float32")
        assert reward.pair_accuracy(rows) == pytest.approx(told["eval_accuracy"])
        prompts = [row["prompt"] for row in rows]
        chosen, rejected = (reward(prompts, [row[key] for row in rows]) for key in ("chosen", "rejected"))
        margin = sum(a - b for a, b in zip(chosen, rejected, strict=True)) / len(rows)
        assert margin == pytest.approx(told["eval_margin"], abs=1e-4)
        assert abs(margin) > 1e-3


TURNS = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}?"}],
        **{
            key: [
                {"role": "assistant", "content": said},
                {"role": "user", "content": "Is it?"},
                {"role": "assistant", "content": "It is."},
            ]
            for key, said in (("chosen", f"It is {i}."), ("rejected", "no fox"))
        },
    }
    for i in range(6)
]


def with_the_prompt_inside(row):
    return {key: row["prompt"] + row[key] for key in ("chosen", "rejected")}


@pytest.mark.parametrize(
    "rows",
    [TURNS, [with_the_prompt_inside(row) for row in TURNS], [with_the_prompt_inside(row) for row in TEXT]],
    ids=["part at an earlier turn", "prompt inside, messages", "prompt inside, text"],
)
def test_pairs_are_those_that_were_trained_on(rows, trained):
    folder, trainer = trained(rows, steps=6)
    told, reward = trainer.evaluate(), PreferenceReward(folder, dtype="float32")
    assert reward.pair_accuracy(rows) == pytest.approx(told["eval_accuracy"])
    (batch,) = [trainer.data_collator(list(trainer.eval_dataset))]
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits[:, 0]
    ids = [row[key] for key in ("chosen_ids", "rejected_ids") for row in trainer.eval_dataset]
    assert reward.of_ids(ids) == pytest.approx(logits.tolist(), abs=1e-4)
    if "prompt" in rows[0]:
        prompts = [row["prompt"] for row in rows]
        given = reward(prompts, [row["chosen"] for row in rows]) + reward(prompts, [row["rejected"] for row in rows])
        assert given == pytest.approx(logits.tolist(), abs=1e-4)


def test_ids_of_another_tokenizer_are_left_aside(trained):
    folder, _ = trained(TEXT)
    prompts, texts = [row["prompt"] for row in TEXT], [row["chosen"] for row in TEXT]
    shifted = [[id + 5 for id in make_tokenizer()(text)["input_ids"]] for text in texts]
    reward = PreferenceReward(folder, dtype="float32")
    expected = reward(prompts, texts)
    with pytest.warns(UserWarning, match="The policy's tokens are not the reward model's"):
        assert reward(prompts, texts, completion_ids=shifted) == expected
    assert reward(prompts[:1], [""], completion_ids=[[]]) == reward(prompts[:1], [""])  # it stays so


def test_ids_as_sampled_are_read_at_their_end(trained):
    """Finished, a completion is what it is as text; cut, it is read where it stops, without an EOS."""
    folder, trainer = trained(TEXT)
    reward, tokenizer = PreferenceReward(folder, dtype="float32"), make_tokenizer()
    prompts, texts = [row["prompt"] for row in TEXT], [row["chosen"] for row in TEXT]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    finished = reward(prompts, texts, completion_ids=[one + [tokenizer.eos_token_id] for one in ids])
    assert finished == pytest.approx(reward(prompts, texts), abs=1e-5)
    cut = reward(prompts, texts, completion_ids=ids)
    batch = tokenizer([p + t for p, t in zip(prompts, texts, strict=True)], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits[:, 0].tolist()
    assert cut == pytest.approx(expected, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(cut, finished, strict=True)) > 1e-3


def test_no_reward_model(model_folder):
    with pytest.raises(ValueError, match="num_labels = 2, and a reward is one number"):
        PreferenceReward(str(model_folder))


def test_columns_of_a_dataset_are_not_read(trained):
    """TRL's trainers pass all of them to a reward function, whatever they are called."""
    folder, _ = trained(TEXT)
    reward = PreferenceReward(folder, dtype="float32")
    prompts, completions = [row["prompt"] for row in TEXT], [row["chosen"] for row in TEXT]
    columns = {name: [True] * len(TEXT) for name in ("ended", "cut", "rows", "batch_size", "trainer_state")}
    ids = [reward.tokenizer(text)["input_ids"] for text in completions]
    cut = reward(prompts, completions, completion_ids=ids)
    with pytest.warns(UserWarning, match="`ended` is not read: it may be a column"):
        assert reward(prompts, completions, completion_ids=ids, **columns) == cut
    del columns["ended"]
    assert reward(prompts, completions, **columns) == reward(prompts, completions) != cut


@pytest.mark.parametrize("rows", [TEXT, CHAT], ids=["text", "messages"])
def test_a_completion_that_was_cut_is_read_where_it_was_cut(rows, trained):
    """Against the model itself on the written text without what ends a turn."""
    folder, _ = trained(rows)
    reward, tokenizer = PreferenceReward(folder, dtype="float32"), make_tokenizer()
    prompts, completions = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    ended = [i % 2 == 0 for i in range(len(rows))]
    found, finished = reward.score(prompts, completions, ended=ended), reward(prompts, completions)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if ended[i]:
            assert found[i] == pytest.approx(finished[i], abs=1e-5)
            continue
        if rows is TEXT:
            ids = tokenizer(prompt + completion)["input_ids"]
        else:
            head = f"<|im_start|>user\n{prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(head + completion[0]["content"])["input_ids"]
        with torch.no_grad():
            expected = reward.model(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert found[i] == pytest.approx(expected, abs=1e-5)
        assert abs(found[i] - finished[i]) > 1e-4


def test_a_policy_that_ends_in_another_token_of_the_vocabulary(tokenizer, tmp_path):
    """It is read after the EOS that the reward model was trained with; what was cut gets none."""
    AutoModelForSequenceClassification.from_config(make_model("llama", num_labels=1).config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = PreferenceReward(str(tmp_path))
    texts = [" two three", " fox"]
    finished = reward(["One", "Two"], texts)
    for end in ("<eos>", "<|im_end|>"):
        ids = [tokenizer(text + end)["input_ids"] for text in texts]
        assert reward(["One", "Two"], texts, ids) == pytest.approx(finished, abs=1e-6)
    cut = reward(["One", "Two"], texts, [tokenizer(text)["input_ids"] for text in texts])
    assert cut == pytest.approx(reward.score(["One", "Two"], texts, ended=[False, False]), abs=1e-6)
    assert min(abs(a - b) for a, b in zip(cut, finished, strict=True)) > 1e-4


def test_a_chat_completion_is_cut_where_its_ids_are(trained):
    """As TRL's trainers ask: messages without what ends a turn, and the ids, which have it or not."""
    folder, _ = trained(CHAT)
    reward, tokenizer = PreferenceReward(folder, dtype="float32"), make_tokenizer()
    prompts, completions = [row["prompt"] for row in CHAT], [row["chosen"] for row in CHAT]
    ended = [i % 2 == 0 for i in range(len(CHAT))]
    said = [one[0]["content"] + "<|im_end|>" * end for one, end in zip(completions, ended, strict=True)]
    ids = [tokenizer(text)["input_ids"] for text in said]
    assert reward(prompts, completions, completion_ids=ids) == reward.score(prompts, completions, ended=ended)
    assert reward.score(prompts, completions, ended=ended) != reward(prompts, completions)
    with pytest.warns(UserWarning, match="The policy's tokens are not the reward model's"):
        other = [[id + 5 for id in one] for one in ids]
        assert reward(prompts, completions, completion_ids=other) == reward(prompts, completions)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_model_itself_its_folder_and_its_path_are_one(adapter, trained):
    folder, trainer = trained(TEXT, adapter)
    prompts, completions = [row["prompt"] for row in TEXT], [row["chosen"] for row in TEXT]
    expected = PreferenceReward(folder, dtype="float32")(prompts, completions)
    assert PreferenceReward(Path(folder), dtype="float32", name="helpful")(prompts, completions) == expected
    own = PreferenceReward(trainer.model, tokenizer=make_tokenizer(), name="helpful")
    assert own(prompts, completions) == pytest.approx(expected, abs=1e-5) and own.__name__ == "helpful"
    with pytest.raises(ValueError, match="not given by name needs its `tokenizer`"):
        PreferenceReward(trainer.model)
    with pytest.raises(ValueError, match="`model` is a LlamaForCausalLM, and a reward model is"):
        PreferenceReward(make_model("llama"), tokenizer=make_tokenizer())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_above_the_context_are_refused(kind, tmp_path):
    """GPT-2 has no such positions, and Llama numbers from some that it has never seen."""
    model = AutoModelForSequenceClassification.from_config(make_model(kind).config)
    model.config.num_labels = 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(model.config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    reward = PreferenceReward(str(tmp_path))
    long = "One two three " * 100
    with pytest.raises(ValueError, match="Row 1 has .* tokens.*and the reward model's context is 256"):
        reward(["One", long], [" two", " fox"])
    assert len(reward(["One"], [" two"])) == 1


def test_without_eos_and_padding(tmp_path):
    """Messages need no EOS, and rows are then read one by one; text needs one, and says so."""
    tokenizer = make_tokenizer()
    base = make_model("llama", eos_token_id=None, pad_token_id=None)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    model.save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    padded = PreferenceReward(str(tmp_path / "scorer"))
    expected = padded([row["prompt"] for row in CHAT], [row["chosen"] for row in CHAT])
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "scorer")
    bare = PreferenceReward(str(tmp_path / "scorer"))
    assert bare.tokenizer.eos_token is None and bare.model.config.pad_token_id is None
    assert bare([row["prompt"] for row in CHAT], [row["chosen"] for row in CHAT]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="has no EOS token, so nothing says where a completion ends"):
        bare(["One"], [" two"])


def test_another_kind_of_model(tmp_path):
    from transformers import LlamaForTokenClassification

    config = make_model("llama").config
    config.num_labels = 1
    LlamaForTokenClassification(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a LlamaForTokenClassification, and a reward model is"):
        PreferenceReward(str(tmp_path))


def scorer_with(tmp_path, tokenizer, **config):
    torch.manual_seed(0)
    make_model("llama", **config).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    return model.eval()


def read_at_the_end(model, ids):
    """What the head says of the last token, whatever the model takes for padding."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        return model.score(hidden)[0, -1, 0].item()


@pytest.mark.parametrize("given", ["by name", "itself"])
def test_a_config_without_padding_is_read_after_the_eos(given, tmp_path):
    tokenizer = make_tokenizer()
    model = scorer_with(tmp_path, tokenizer, pad_token_id=None)
    named = str(tmp_path / "scorer")
    reward = PreferenceReward(named) if given == "by name" else PreferenceReward(model, tokenizer=tokenizer)
    texts = [" two", " two three four"]
    ids = [tokenizer("One")["input_ids"] + tokenizer(text)["input_ids"] for text in texts]
    after = [read_at_the_end(model, [*one, tokenizer.eos_token_id]) for one in ids]
    before = [read_at_the_end(model, one) for one in ids]
    assert reward(["One"] * 2, texts) == pytest.approx(after, abs=1e-5)
    assert reward.score(["One"] * 2, texts, ended=[True, False]) == pytest.approx([after[0], before[1]], abs=1e-5)
    assert abs(after[1] - before[1]) > 0.1
    assert model.config.pad_token_id is None  # a model that is given itself stays as it is


def test_a_padding_that_is_the_eos_is_told(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = scorer_with(tmp_path, tokenizer, pad_token_id=tokenizer.eos_token_id)
    with pytest.warns(UserWarning, match="padding is its EOS token, <eos>: .* gets the number of the same text when"):
        reward = PreferenceReward(str(tmp_path / "scorer"))
    ended, cut = reward.score(["One"] * 2, [" two"] * 2, ended=[True, False])
    ids = tokenizer("One")["input_ids"] + tokenizer(" two")["input_ids"]
    assert ended == pytest.approx(cut) == pytest.approx(read_at_the_end(model, ids), abs=1e-5)


def test_a_number_that_is_none_is_an_error(tmp_path):
    model = scorer_with(tmp_path, make_tokenizer())
    with torch.no_grad():
        model.score.weight[:] = float("nan")
    with pytest.raises(ValueError, match="gives row 0 the reward nan. Its weights"):
        PreferenceReward(model, tokenizer=make_tokenizer())(["One"], [" two"])


def test_pairs_that_are_none(trained):
    reward = PreferenceReward(str(trained(TEXT)[0]))
    for pairs, fragment in (
        ([], "There are no `pairs`"),
        ([TEXT[0], {"prompt": "a", "chosen": "b"}], "Pair 1 has nothing .null. as its `rejected`"),
        ([{**TEXT[0], "chosen": 3}], "Pair 0 has 3 as its `chosen`"),
    ):
        with pytest.raises(ValueError, match=fragment):
            reward.pair_accuracy(pairs)
