"""Where prompt and completion meet: against SFTTrainer's own rows and against what is known by hand."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model, make_tokenizer
from tests.trainer.conftest import settings
from trl_irl import IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer, SoftQReward
from trl_irl.rewards.held_out_loss import held_out_sums
from trl_irl.text.encode import encode, encode_row, encode_rows, prompt_ids, whole_ids
from trl_irl.trainer.gail.expert_tokens import expert_ids
from trl_irl.trainer.online_irl.policy_samples import prompts_of
from trl_irl.trainer.ppo.inputs import demonstrations_of


FOLDER = Path(__file__).parent / "templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


PLAIN = {"prompt": [user("What is the sky?")], "completion": [bot("It is blue.")]}
TURNS = {
    "prompt": [user("What is 1?"), bot("One."), user("And 2?")],
    "completion": [bot("Two."), user("Sure?"), bot("Yes, it is.")],
}
THOUGHTS = {"prompt": [user("The fox?")], "completion": [bot("<think>\nquick brown\n</think>\n\nIt jumps.")]}
CHAT = [PLAIN, TURNS, THOUGHTS]


def with_template(name):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def prepared(trainer_class, config_class, rows, tokenizer, tmp_path, **kwargs):
    trainer = trainer_class(
        model=make_model("qwen2"),
        args=config_class(**settings(tmp_path, **{"max_length": None, **kwargs})),
        train_dataset=rows if isinstance(rows, IterableDataset) else Dataset.from_list(rows),
        processing_class=copy.deepcopy(tokenizer),
    )
    return trainer, [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_reader_has_the_tokens_of_training(template, tokenizer, tmp_path):
    """SFTTrainer's where its prompt begins the whole; the prompt's own in front wherever it does not."""
    tokenizer = with_template(template)
    _, irl = prepared(IRLTrainer, IRLConfig, CHAT, tokenizer, tmp_path)
    _, sft = prepared(SFTTrainer, SFTConfig, CHAT, tokenizer, tmp_path)
    for row, own, trls in zip(CHAT, irl, sft, strict=True):
        found = encode_row(tokenizer, row)
        asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert found.prompt == asked  # what the policy goes on from
        assert found.as_sft == (trls[0][: len(asked)] == asked)
        assert found.ids_and_labels == own == encode(tokenizer, row)
        if found.as_sft:
            assert own == trls
        end = tokenizer.eos_token_id  # in none of these: all turns are there
        assert expert_ids(tokenizer, row, {end}, 1000, {}) == found
        for message in row["completion"]:
            assert message["content"].split("</think>")[-1].strip() in tokenizer.decode(found.completion)


THINKING = {
    "deepseek_r1_distill": [
        ("<｜Assistant｜><think>\n", "It is blue.<｜end▁of▁sentence｜>"),
        (
            "<｜Assistant｜><think>\n",
            "Two.<｜end▁of▁sentence｜><｜User｜>Sure?<｜Assistant｜>Yes, it is.<｜end▁of▁sentence｜>",
        ),
        ("<｜Assistant｜><think>\n", "quick brown\n</think>\n\nIt jumps.<｜end▁of▁sentence｜>"),
    ],
    "nemotron_3_nano": [
        ("assistant\n<think>\n", "</think>It is blue.<|im_end|>\n"),
        (
            "assistant\n<think>\n",
            "</think>Two.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
            "<think></think>Yes, it is.<|im_end|>\n",
        ),
        ("assistant\n<think>\n", "quick brown\n</think>\n\nIt jumps.<|im_end|>\n"),
    ],
    "qwen3_5_nothink": [
        ("assistant\n<think>\n\n</think>\n\n", "It is blue.<|im_end|>\n"),
        (
            "assistant\n<think>\n\n</think>\n\n",
            "Two.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "Yes, it is.<|im_end|>\n",
        ),
        # Asked not to think, and the answer does: it is not cut.
        ("assistant\n<think>\n\n</think>\n\n", "<think>\nquick brown\n</think>\n\nIt jumps.<|im_end|>\n"),
    ],
}


@pytest.mark.parametrize("template", THINKING)
def test_what_is_asked_and_answered(template):
    tokenizer = with_template(template)
    for row, (asked, answer) in zip(CHAT, THINKING[template], strict=True):
        found = encode_row(tokenizer, row)
        assert tokenizer.decode(found.prompt).endswith(asked)
        assert tokenizer.decode(found.completion) == answer


def test_an_answer_that_begins_like_what_is_asked_loses_no_letter():
    tokenizer = with_template("deepseek_r1_distill")
    found = encode_row(tokenizer, {**PLAIN, "completion": "<thinker> is a name"})
    assert tokenizer.decode(found.completion) == "<thinker> is a name<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("thoughts", ["quick brown\n</think>\n\nIt jumps.", "quick brown"])
@pytest.mark.parametrize("opening", ["", "<think>\n"])
@pytest.mark.parametrize("template", ["deepseek_r1_distill", "nemotron_3_nano"])
def test_thoughts_as_they_are_sampled_and_as_they_are_written(template, opening, thoughts, ended):
    """A policy that is asked with "<think>" goes on without it, and a file may have it or not: the same tokens."""
    if thoughts == "quick brown" and (ended or (template, opening) == ("nemotron_3_nano", "")):
        pytest.skip("an answer without a thought, or what may be one")
    tokenizer = with_template(template)
    found = encode_row(tokenizer, {**PLAIN, "completion": opening + thoughts}, ended=ended)
    assert tokenizer.decode(found.prompt).endswith("<think>\n")
    end = {"deepseek_r1_distill": "<｜end▁of▁sentence｜>", "nemotron_3_nano": "<|im_end|>\n"}[template]
    assert tokenizer.decode(found.completion) == thoughts + end * ended


@pytest.mark.parametrize("template, asked", [("qwen3", "assistant\n"), ("qwen3_5_nothink", "</think>\n\n")])
def test_an_answer_cut_in_its_thought_has_no_other_before_it(template, asked):
    tokenizer = with_template(template)
    found = encode_row(tokenizer, {**PLAIN, "completion": "<think>\nquick bro"}, ended=False)
    assert tokenizer.decode(found.prompt).endswith(asked)
    assert tokenizer.decode(found.completion) == "<think>\nquick bro"


@pytest.mark.parametrize("template, options", [("qwen3_5_nothink", {}), ("qwen3", {"enable_thinking": False})])
def test_thoughts_after_an_empty_thought_are_whole(template, options):
    """Asked not to think, and the message brings its thoughts in a key of their own: as where they are in its text."""
    tokenizer = with_template(template)
    row = {**PLAIN, "completion": [bot("It jumps.", reasoning_content="quick brown")], "chat_template_kwargs": options}
    found = encode_row(tokenizer, row)
    assert tokenizer.decode(found.prompt).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(found.completion) == "<think>\nquick brown\n</think>\n\nIt jumps.<|im_end|>\n"
    assert found == encode_row(tokenizer, {**row, "completion": THOUGHTS["completion"]})


def test_a_template_that_writes_earlier_turns_otherwise():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' or loop.last %}{{ m.content }}{% else %}"
        "(earlier){% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    row = {"prompt": [user("One?"), bot("fox")], "completion": [bot("dog")]}
    found = encode_row(tokenizer, row)
    assert tokenizer.decode(found.prompt) == "[user]One?[assistant]fox[assistant]"
    assert tokenizer.decode(found.completion) == "dog"


MERGING = [("What is ", "the fox"), ("The la", "zy dog")]


@pytest.mark.parametrize("prompt, completion", [*MERGING, ("1", "<eos>"), ("", "x")])
def test_text_that_merges(prompt, completion, tokenizer, tmp_path):
    whole = tokenizer(prompt + completion)["input_ids"]
    asked, said = (tokenizer(text)["input_ids"] for text in (prompt, completion))
    row = {"prompt": prompt, "completion": completion}
    found = encode_row(tokenizer, row)
    assert found.as_sft == (whole[: len(asked)] == asked) == ((prompt, completion) not in MERGING)
    said = said if completion.endswith("<eos>") else [*said, tokenizer.eos_token_id]
    assert (found.prompt, found.completion) == (asked, said)
    assert expert_ids(tokenizer, row, {1}, 100, {})[:2] == (asked, said)


ROWS = [
    {"prompt": "What is ", "completion": "the fox"},
    {"prompt": "What is", "completion": " the fox"},
    {"prompt": "The la", "completion": "zy dog"},
]


def test_training_scores_all_of_an_answer_and_says_how_often(tokenizer, tmp_path, caplog):
    trainer, irl = prepared(IRLTrainer, IRLConfig, ROWS, tokenizer, tmp_path)
    assert "In 2 of 3 rows of the train dataset the prompt's tokens are not how" in caplog.text
    assert [[token for token in labels if token != -100] for _, labels in irl] == [
        tokenizer(row["completion"] + "<eos>")["input_ids"] for row in ROWS
    ]
    sft = prepared(SFTTrainer, SFTConfig, ROWS, tokenizer, tmp_path)[1]
    assert irl[1] == sft[1] and irl[0] != sft[0]
    batch = trainer.data_collator([{"input_ids": ids, "labels": labels} for ids, labels in irl])
    assert prompts_of(batch) == [prompt_ids(tokenizer, row["prompt"]) for row in ROWS]  # what a policy samples from


def test_a_stream_has_the_same_rows(tokenizer, tmp_path):
    expected = prepared(IRLTrainer, IRLConfig, ROWS, tokenizer, tmp_path)[1]
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    assert prepared(IRLTrainer, IRLConfig, stream, tokenizer, tmp_path)[1] == expected


NOT_THE_ASSISTANTS = [
    {"prompt": [user("What is 1?"), bot("One.")], "completion": [user("And 2?"), bot("Two.")]},
    {"prompt": [user("What is 1?"), bot("One.")], "completion": [{"role": "tool", "content": "5"}, bot("Two.")]},
    {"prompt": [user("What is 1?"), bot("One.")], "completion": [user("What is 1?"), bot("One.")]},
    {"prompt": [user("What is 1?")], "completion": [user("And 2?"), bot("Two.")]},
    {
        "prompt": [user("What is 1?"), bot("<think>\nhm\n</think>\n\nOne.")],
        "completion": [user("And 2?"), bot("<think>\nhm\n</think>\n\nOne.")],
    },
]
# How a turn begins and ends, by template, with what it writes before the first.
TURNS_OF = {
    "qwen2_5": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "qwen3": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "qwen3_5_nothink": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "smollm2": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "llama3": ("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    "gemma": ("<start_of_turn>{role}\n", "<end_of_turn>\n"),
    "nemotron_3_nano": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "deepseek_r1_distill": ("<｜User｜>", "<｜end▁of▁sentence｜>"),
}


@pytest.mark.parametrize("ends_turns", [False, True], ids=["eos", "eos-ends-turns"])
@pytest.mark.parametrize("row", NOT_THE_ASSISTANTS, ids=["user", "tool", "repeated", "two-users", "thoughts"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_completion_that_begins_with_another_turn(template, row, ends_turns):
    """Nobody is asked there: the whole is as the template writes it, cut where the turn's header begins."""
    tokenizer, first = with_template(template), row["completion"][0]
    begin, end = TURNS_OF[template]
    if ends_turns:
        tokenizer.add_special_tokens({"eos_token": end.strip()})
    try:
        text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    except TemplateError:
        pytest.skip("the template wants turns in another order")
    header = begin.format(role=first["role"])
    if header + first["content"] not in text:
        pytest.skip("the template writes a tool's turn into another one")
    start = text.rindex(header + first["content"])
    found = encode_row(tokenizer, row)
    assert not found.as_sft
    assert found.prompt == tokenizer(text[:start], add_special_tokens=False)["input_ids"]
    assert found.prompt + found.completion == tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = encode_row(tokenizer, row, ended=False)
    assert cut.prompt == found.prompt and found.completion[: len(cut.completion)] == cut.completion
    said = row["completion"][-1]["content"].rpartition("\n")[2]
    assert tokenizer.decode(cut.completion).endswith(said)


def test_a_completion_that_begins_with_another_turn_has_the_tokens_of_sft(tokenizer, tmp_path):
    """SFTTrainer learns it from its fourth token on, where the prompt would be if an answer were asked for."""
    rows = [NOT_THE_ASSISTANTS[0], NOT_THE_ASSISTANTS[2]]
    irl, sft = (
        prepared(*of, rows, tokenizer, tmp_path)[1] for of in ((IRLTrainer, IRLConfig), (SFTTrainer, SFTConfig))
    )
    assert [ids for ids, _ in irl] == [ids for ids, _ in sft]
    for (_, ours), (_, theirs) in zip(irl, sft, strict=True):
        assert ours[-theirs[::-1].index(-100) :] == theirs[-theirs[::-1].index(-100) :]
        assert sum(token != -100 for token in ours) > sum(token != -100 for token in theirs)


WITHOUT_ASKING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, WITHOUT_ASKING], ids=["chatml", "without-asking"])
@pytest.mark.parametrize("role", ["user", "tool", "developer", "human", "User"])
def test_no_policy_is_asked_for_another_turn_than_the_assistants(role, template, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    row = {"prompt": [user("What is 1?"), bot("One.")], "completion": [{"role": role, "content": "So"}, bot("Two.")]}
    told = f"begins with a turn of the role '{role}', and a policy is asked for the assistant's answer"
    with pytest.raises(ValueError, match=told):
        expert_ids(tokenizer, row, {1}, 100, {})
    with pytest.raises(ValueError, match=f"Row 0 of the train dataset: .*{told}"):
        prepared(OnlineIRLTrainer, OnlineIRLConfig, [row] * 2, tokenizer, tmp_path)
    with pytest.raises(ValueError, match=f"Row 0 of the demonstrations: .*{told}"):
        demonstrations_of([row], tokenizer)


def test_the_assistant_by_the_name_that_a_template_has_for_it():
    tokenizer = with_template("gemma")
    named = {**PLAIN, "completion": [{**PLAIN["completion"][0], "role": "model"}]}
    assert encode_row(tokenizer, named, answers=True) == encode_row(tokenizer, PLAIN)


def test_a_turn_that_the_template_does_not_write():
    tokenizer = with_template("deepseek_r1_distill")
    row = {"prompt": [user("What is 1?")], "completion": [{"role": "gpt", "content": "One."}]}
    with pytest.raises(ValueError, match="of the role 'gpt', and the chat template writes nothing for it"):
        encode_row(tokenizer, row)


def test_nothing_is_said_where_nothing_is_moved(tokenizer, tmp_path, caplog, recwarn):
    prepared(IRLTrainer, IRLConfig, ROWS[1:2], tokenizer, tmp_path)
    held_out_sums(make_model("qwen2"), tokenizer, ROWS[1:2])
    assert "the prompt's tokens are not how" not in caplog.text + "".join(str(w.message) for w in recwarn)


def log_pi(model, prompt, completion):
    """A plain float64 reference."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[range(len(completion)), completion]


@pytest.mark.parametrize("rows", [ROWS, [TURNS]], ids=["text", "messages"])
@pytest.mark.filterwarnings("ignore:In 2 of 3 rows")
def test_rewards_and_held_out_losses_are_over_the_same_tokens(rows, tokenizer):
    encoded = [encode_row(tokenizer, row) for row in rows]
    expected = [log_pi(make_model("llama"), row.prompt, row.completion) for row in encoded]
    reward = SoftQReward(make_model("llama"), tokenizer, kind="advantage")
    scored = reward.score([row["prompt"] for row in rows], [row["completion"] for row in rows])
    for one, logs, row in zip(scored, expected, encoded, strict=True):
        assert one.token_ids.tolist() == row.completion
        torch.testing.assert_close(torch.tensor(one.rewards).double(), logs, rtol=1e-4, atol=1e-4)
    sums = held_out_sums(make_model("llama"), tokenizer, rows)["nll"]
    assert sums[:, 0] == pytest.approx([-logs.sum().item() for logs in expected], rel=1e-5)
    assert sums[:, 1].tolist() == [len(row.completion) for row in encoded]


def sentencepiece_like():
    words = ["▁", "▁one", "▁two", "▁it", "▁is", "one", "two", "o", "n", "e", "t", "w", "i", "s", "\n", "a", "▁a"]
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("<eos>", 0.0), *((word, -len(words) + len(word)) for word in words)], 0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", pad_token="<unk>")


@pytest.mark.parametrize("prompt, completion", [("it is ", "two"), ("it is on", "e two"), ("it is", " two one")])
def test_a_tokenizer_that_begins_every_text_with_a_space(prompt, completion):
    tokenizer = sentencepiece_like()
    found = encode_row(tokenizer, {"prompt": prompt, "completion": completion})
    assert found.prompt == tokenizer(prompt)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(found.prompt + found.completion)
    assert "".join(pieces) == f"▁{prompt}{completion}<eos>".replace(" ", "▁")


def test_a_tokenizer_that_ends_every_text_with_eos(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    found = encode_row(tokenizer, {"prompt": "One", "completion": " two"})
    plain = make_tokenizer()
    assert found.prompt == plain("One")["input_ids"]
    assert found.completion == [*plain(" two")["input_ids"], 1]


def test_tools_and_arguments_of_a_row_reach_the_template(tmp_path):
    tokenizer = with_template("qwen3")
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    row = {
        "prompt": [user("1?")],
        "completion": [bot(None, tool_calls=[call]), {"role": "tool", "content": "2"}, bot("It is 2.")],
        "tools": [tool],
    }
    quiet = {**PLAIN, "chat_template_kwargs": {"enable_thinking": False}}
    for rows in ([row], [quiet]):
        sft = prepared(SFTTrainer, SFTConfig, rows, tokenizer, tmp_path)[1]
        assert prepared(IRLTrainer, IRLConfig, rows, tokenizer, tmp_path)[1] == sft == [encode(tokenizer, rows[0])]
    assert tokenizer.decode(encode_row(tokenizer, row).prompt).count('"name": "add"') == 1
    assert "</think>" in tokenizer.decode(encode_row(tokenizer, quiet).prompt)


def test_a_tool_call_that_the_template_cannot_write(tokenizer):
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    with pytest.raises(ValueError, match="a call of the tool 'add' without text.*does not write tool calls"):
        encode(tokenizer, {"prompt": [user("1?")], "completion": [bot(None, tool_calls=[call])]})


def test_rows_of_a_reward_model_are_encoded_as_one(tokenizer):
    row = {"prompt": "What is ", "completion": "the fox"}
    assert whole_ids(tokenizer, row) == tokenizer("What is the fox<eos>")["input_ids"]
    assert whole_ids(tokenizer, {"completion": "What is the fox"}) == whole_ids(tokenizer, row)
    assert whole_ids(tokenizer, {"completion": PLAIN["prompt"] + PLAIN["completion"]}) == whole_ids(tokenizer, PLAIN)


@pytest.mark.parametrize(
    "said", ["Paris is the ", " of the\n", "", "\n", ">", "|", "end", "eot", "im", "user", "assistant"]
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_was_cut_has_nothing_of_what_the_template_writes_behind_it(template, said):
    """Whether a template trims the text, and whether the text stands in the template's own words as well."""
    tokenizer = with_template(template)
    prompt = [user("What is the sky?")]

    def text(content):
        return tokenizer.apply_chat_template([*prompt, bot(content)], tokenize=False)

    ending = text("SENTINEL").split("SENTINEL")[1]
    written = text(said)
    expected = written[: len(written) - len(ending)]
    assert ending.strip() and expected + ending == written  # else there would be nothing to see
    row = {"prompt": prompt, "completion": [bot(said)]}
    read = [tokenizer.decode(whole_ids(tokenizer, row, ended=False))]
    found = encode_row(tokenizer, row, ended=False)
    assert found.prompt == encode_row(tokenizer, row).prompt
    assert read == [expected]
    answer = tokenizer.decode(found.completion)
    assert expected.endswith(answer) and answer.strip().endswith(said.strip()) and "<|" not in answer


@pytest.mark.parametrize("columns", [{}, {"text": "another"}])
def test_rows_of_text_end_whatever_their_column(columns, tokenizer, tmp_path):
    rows = [{"content": "One two three", **columns}, {"content": "fox<eos>", **columns}]
    irl = prepared(IRLTrainer, IRLConfig, rows, tokenizer, tmp_path, dataset_text_field="content")[1]
    as_text = [{"text": row["content"]} for row in rows]
    assert irl == prepared(SFTTrainer, SFTConfig, as_text, tokenizer, tmp_path)[1]
    assert [ids[-1] for ids, _ in irl] == [1, 1] and [ids.count(1) for ids, _ in irl] == [1, 1]


def test_messages_without_a_chat_template(tokenizer):
    """transformers' own message names neither the tokenizer nor a key."""
    plain = copy.deepcopy(tokenizer)
    plain.chat_template, plain.name_or_path = None, "meta/base"
    row = {"prompt": [{"role": "user", "content": "Fox?"}], "completion": [{"role": "assistant", "content": "Dog."}]}
    with pytest.raises(ValueError, match="the tokenizer of meta/base has no chat template.*`chat_template_path`"):
        encode_rows(plain, [row])
