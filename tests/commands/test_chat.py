"""`trl-irl chat`: what a model says is what `generate` gives, its return what SoftQReward gives, and it remembers."""

import io
import re
import shutil

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import CHAT_TEMPLATE
from trl_irl import SoftQReward
from trl_irl.commands import chat
from trl_irl.evaluation.talk import Answer
from trl_irl.rewards.heatmap import colour, full_colour
from trl_irl.rewards.soft_q_settings import SETTINGS_FILE, save_settings


@pytest.fixture(scope="module")
def tuned(model_folder, tmp_path_factory):
    """As IRL leaves a model: with the settings of its reward."""
    folder = tmp_path_factory.mktemp("chat") / "tuned"
    shutil.copytree(model_folder, folder)
    with_template(folder, None)
    save_settings(str(folder), {"gamma": 0.9, "terminal_value": "zero", "lambda_td": 0.1})
    return folder


@pytest.fixture(scope="module")
def talker(tuned, tmp_path_factory):
    """With a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "talker"
    shutil.copytree(tuned, folder)
    with_template(folder, CHAT_TEMPLATE)
    return folder


def with_template(folder, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


def greedy(folder, ids, count):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, repetition_penalty=1.0)
    new = made[0, len(ids) :].tolist()
    return new, tokenizer.decode(new, skip_special_tokens=True).strip()


def test_one_answer_of_each_model(tuned, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tuned, base)
    (base / SETTINGS_FILE).unlink()
    words = ["--prompt", "The quick", "--max_new_tokens", "6", "--temperature", "0"]
    assert chat.run([f"base={base}", f"tuned={tuned}", *words]) == 0
    told = capsys.readouterr().out
    ids, text = greedy(tuned, AutoTokenizer.from_pretrained(tuned)("The quick").input_ids, 6)
    assert f"base: {text}\n" in told and f"tuned: {text}\n" in told
    (scored,) = SoftQReward(str(tuned)).score(["The quick"], completion_ids=[ids])
    assert scored.gamma == 0.9
    (shown,) = re.findall(r"return ([-+.\d]+) nats", told)  # the base holds no reward
    assert float(shown) == pytest.approx(scored.sum, abs=0.006)
    words[1] = "null"  # a word as any other
    _, text = greedy(tuned, AutoTokenizer.from_pretrained(tuned)("null").input_ids, 6)
    assert chat.run([str(tuned), *words]) == 0 and text in capsys.readouterr().out
    assert chat.run([str(tuned), *words, "--rewards", "false"]) == 0
    assert "nats" not in capsys.readouterr().out


def test_a_talk_is_remembered_until_it_is_forgotten(talker, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("One two\nthree\\n1\n/reset\nOne two\n\nnever asked\n"))
    assert chat.run([str(talker), "--max_new_tokens", "5", "--temperature", "0", "--system", "brown fox"]) == 0
    said = re.findall(r"^talker: (.*?)\n  \(", capsys.readouterr().out, re.MULTILINE | re.DOTALL)
    tokenizer = AutoTokenizer.from_pretrained(talker)
    messages, right = [{"role": "system", "content": "brown fox"}], []
    for text in ("One two", "three\n1"):
        messages.append({"role": "user", "content": text})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        new, answer = greedy(talker, ids, 5)
        right.append(answer)
        messages.append({"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)})
    assert said == [*right, right[0]]


def test_what_the_system_says_needs_a_template(talker, tuned, capsys):
    words = ["--prompt", "One", "--max_new_tokens", "2", "--system", "Be kind."]
    assert chat.run([str(tuned), *words]) == 2
    assert "no model here has a chat template" in capsys.readouterr().err
    assert chat.run([f"plain={tuned}", f"chat={talker}", *words]) == 0
    assert "Note: plain without a chat template" in capsys.readouterr().out


def test_a_prompt_that_does_not_fit_ends_one_answer_not_the_talk(talker, monkeypatch, capsys):
    context = AutoModelForCausalLM.from_pretrained(talker).config.max_position_embeddings
    monkeypatch.setattr("sys.stdin", io.StringIO("One " * context + "\nOne\n"))
    assert chat.run([str(talker), "--max_new_tokens", "3"]) == 0
    told = capsys.readouterr()
    assert told.err.count("trl-irl chat: error: ") == 1 and "`/reset` forgets" in told.err
    assert told.out.count("talker: ") == 1


def test_an_answer_has_the_room_that_the_context_leaves(talker, tuned, capsys):
    """As the commands propose it, without a length: also of a model whose context is no longer than the default."""
    for folder in (talker, tuned):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        context = AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings
        text = "One " * 20
        assert chat.run([str(folder), "--prompt", text, "--temperature", "0", "--eos_token", "<eos>"]) == 0
        shown = int(re.search(r"(\d+) tokens", capsys.readouterr().out)[1])
        ids = tokenizer(text).input_ids
        if tokenizer.chat_template:
            told = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(told, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert 0 < shown <= context - len(ids)


def test_side_by_side_in_a_terminal_with_every_token_on_its_colour(tuned, model_folder, monkeypatch):
    seen = io.StringIO()
    real = Console

    def console(**options):
        return real(file=seen, force_terminal=True, color_system="truecolor", width=80, **options)

    monkeypatch.setattr("rich.console.Console", console)
    arguments = chat.ChatArguments(models=["x"], max_new_tokens=6, temperature=0.0)
    talks = {name: chat.Talk(str(path), arguments) for name, path in {"base": model_folder, "tuned": tuned}.items()}
    chat.answers(talks, "The quick", 0)
    talks["tuned"].reset()
    answer = talks["tuned"].ask("The quick", 0, lambda piece: None)
    largest = full_colour([reward for _, reward in answer.pieces if reward is not None])
    for piece, reward in answer.pieces:
        if reward is not None and (piece == "\n" or piece.isprintable() and piece.strip()):
            red, green, blue = bytes.fromhex(colour(reward / largest)[1:])  # as the page of `score` has it
            assert f"48;2;{red};{green};{blue}m" in seen.getvalue()
    assert re.search(r"base +.*tuned", seen.getvalue())


def test_pieces_arrive_as_they_are_said(tuned):
    arrived = []
    talk = chat.Talk(str(tuned), chat.ChatArguments(models=["x"], max_new_tokens=8, temperature=0.0))
    answer = talk.ask("The quick", 0, arrived.append)
    assert "".join(arrived).strip() == answer.text.strip()
    assert "".join(text for text, _ in answer.pieces).startswith(answer.text)


def test_rewards_are_those_that_the_model_was_trained_with(tuned, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tuned, folder)
    trained = {"gamma": 0.9, "terminal_value": "mask", "lambda_td": 0.1, "value_temperature": 2.0}
    save_settings(str(folder), {**trained, "value_origin": "reference"})
    with pytest.warns(UserWarning, match="`value_origin: reference`"):
        talk = chat.Talk(str(folder), chat.ChatArguments(models=["x"]))
    with pytest.warns(UserWarning, match="`value_origin: reference`"):
        by_name = SoftQReward(str(folder))
    ours, right = (one.score([[5, 6]], completion_ids=[[7, 8, 9]])[0].rewards for one in (talk.reward, by_name))
    assert ours.tolist() == right.tolist()


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "No model"),
        (["nowhere/at/all/here"], "nowhere/at/all/here"),
        (["a=MODEL", "a=MODEL"], "two called a"),
        (["MODEL", "--temperature", "-1"], "`temperature: -1.0`"),
        (["MODEL", "--top_p", "0"], "`top_p: 0.0`"),
        (["MODEL", "--max_new_tokens", "0"], "leaves nothing to say"),
        (["MODEL", "--prompt", "One " * 2000], "context"),
    ],
)
def test_what_cannot_be_asked(words, said, model_folder, capsys):
    words = [word.replace("MODEL", str(model_folder)) for word in words]
    try:
        status = chat.run(words)
    except SystemExit as stopped:  # by the parser
        status = stopped.code
    told = capsys.readouterr().err
    assert status == 2 and said in told and told.count("error:") == 1 and "Traceback" not in told


def test_what_a_terminal_takes_for_a_command_is_shown_as_what_it_is_not():
    said = "One\x1b]0;title\x07\ttwo\x9b2J\nthree"
    text = chat._coloured(Answer(text=said, length=3, ended=True, pieces=[(said, 0.5)])).plain
    assert "One\ufffd]0;title\ufffd\ttwo\ufffd2J↵\nthree" in text and "\x1b" not in text and "\x9b" not in text
