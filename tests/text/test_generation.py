"""What a model's generation config adds to sampling, every method leaves out: it samples from the policy as it is."""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.conftest import ARCHITECTURES, make_model, make_model_that_says
from tests.encoder_decoders import make_encoder_decoder
from tests.slow.sweep_families import build
from trl_irl import GAILConfig, GAILTrainer, SoftQReward
from trl_irl.text.generation import as_it_is, generate
from trl_irl.text.sampling import Completion, sample


# Each changes what is sampled from the tiny model below.
LEAKS = {
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 1,
    "min_p": 0.4,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.02,
    "bad_words_ids": [[i] for i in range(4, 150)],
    "suppress_tokens": list(range(4, 150)),
    "min_new_tokens": 12,
    "sequence_bias": [[[40], 20.0]],
    "top_k": 1,
    "temperature": 0.1,
    "forced_eos_token_id": 1,
    "num_beams": 6,
}
PROMPTS = ["The quick brown", "What is", "One two three one two"]


def policy(**leaks):
    model = make_model("llama").eval()
    for name, value in leaks.items():
        setattr(model.generation_config, name, value)
    return model


def evaluated(model, tokenizer, temperature):
    groups = sample(model, tokenizer, PROMPTS, 12, temperature=temperature, num_samples=4, description="")
    return [completion.token_ids for group in groups for completion in group]


def online(model, tokenizer, temperature):
    torch.manual_seed(0)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS * 4]
    return generate(model, ids, {tokenizer.eos_token_id}, tokenizer.pad_token_id, 12, temperature or 1.0, 12)


@pytest.mark.parametrize("how, temperature", [(evaluated, 0.0), (evaluated, 1.0), (online, 1.0)])
@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_leaks(tokenizer, how, temperature, leak):
    expected = how(policy(), tokenizer, temperature)
    model = policy(**{leak: LEAKS[leak]})
    assert how(model, tokenizer, temperature) == expected
    assert getattr(model.generation_config, leak) == LEAKS[leak]  # and is saved with the model


def test_the_leaks_are_real(tokenizer):
    """Without the guard each of them changes something of what transformers samples."""

    def raw(model, **options):
        torch.manual_seed(0)
        ids = torch.tensor([tokenizer("The quick brown")["input_ids"]])
        return model.generate(ids, max_new_tokens=12, do_sample=True, num_return_sequences=6, **options).tolist()

    plain = raw(policy())
    for name, value in LEAKS.items():
        assert raw(policy(**{name: value})) != plain, name


def test_what_is_asked_for_holds_and_token_ids_stay():
    model = policy(eos_token_id=[1, 3], repetition_penalty=1.8)
    own = model.generation_config
    with as_it_is(model):
        assert model.generation_config.eos_token_id == [1, 3] and model.generation_config.pad_token_id == 0
        assert model.generation_config.repetition_penalty in (None, 1.0)
        greedy = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False, bad_words_ids=[[9]])
        assert 9 not in greedy[0].tolist()
    assert model.generation_config is own
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with as_it_is(adapted):
        assert adapted.generation_config.repetition_penalty in (None, 1.0)
    assert adapted.generation_config.repetition_penalty == 1.8
    with pytest.raises(KeyError), as_it_is(model):
        raise KeyError
    assert model.generation_config is own


def test_what_counts_a_whole_completion_is_not_counted_by_stretches(tokenizer):
    """An end that is likely at each token, forbidden for 40 of 80."""
    model = make_model_that_says(1, 3.0)
    asked = tokenizer("One two")["input_ids"]
    options = {"max_new_tokens": 80, "min_new_tokens": 40, "do_sample": False, "eos_token_id": [1], "pad_token_id": 0}
    with as_it_is(model):
        expected = model.eval().generate(input_ids=torch.tensor([asked]), **options)[0, len(asked) :].tolist()
    (found,) = generate(model, [asked], {1}, 0, 80, 0.0, 4, min_new_tokens=40)
    assert found == expected and len(found) == 41


def test_an_empty_prompt_is_refused(tokenizer):
    for prompts in ([""], ["One", ""]):
        with pytest.raises(ValueError, match=f"Prompt {len(prompts) - 1} is empty: there is not one token"):
            sample(make_model("llama"), tokenizer, prompts, 3, description="")


def test_gail_samples_as_it_is(tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": prompt, "completion": " fox"} for prompt in (*PROMPTS, "It is")])
    seen = []
    for leaks in ({}, {name: LEAKS[name] for name in ("repetition_penalty", "min_p", "bad_words_ids", "typical_p")}):
        model = policy(do_sample=True, **leaks)
        model.save_pretrained(tmp_path / "start")
        tokenizer.save_pretrained(tmp_path / "start")
        keys = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "max_steps": 1}
        keys |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
        told = []

        def watched(completion_ids, told=told, **kwargs):
            told.extend(completion_ids)
            return [0.0] * len(completion_ids)

        trainer = GAILTrainer(
            str(tmp_path / "start"),
            GAILConfig(str(tmp_path / "run"), **keys),
            train_dataset=rows,
            processing_class=copy.deepcopy(tokenizer),
            reward_funcs=watched,
        )
        trainer.train()
        seen.append(told)
    assert len(seen[0]) == 4 and seen[0] == seen[1]


def test_ppo_samples_as_it_is():
    ppo = pytest.importorskip("trl_irl.trainer.ppo.trainer", reason="TRL without PPO", exc_type=ImportError)
    ids = torch.tensor([[5, 6, 7]])
    generated = []
    for leaks in ({}, {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "min_p": 0.4}):
        model = policy(**leaks)
        if leaks:
            ppo.PPOTrainer._generate_as_it_is(SimpleNamespace(policy_model=model, _forgiving=None))
        torch.manual_seed(0)
        generated.append(model.generate(ids, max_new_tokens=12, do_sample=True, top_k=0).tolist())
    assert generated[0] == generated[1]


def test_a_tokenizer_without_padding(tokenizer):
    """What is padded is masked, so any token does."""
    expected = evaluated(policy(), tokenizer, 1.0)
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    assert evaluated(policy(), without, 1.0) == expected


REPEATED = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]] * 3 + [[20, 21, 22]] * 3 + [[30]] * 3
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
# What keeps more than keys and values, or reads a prompt backwards too, reads each row by itself.
BY_ROW = ("lfm2", "qwen3_next", "bloom", "openai-gpt", "git", "paligemma")


def drawn_and_read(model, monkeypatch, share=True):
    """Samples of prompts that stand there three times, and how many rows the first forward pass has."""
    rows = []
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = owner.register_forward_pre_hook(lambda m, args, kw: rows.append(len(kw["input_ids"])), with_kwargs=True)
    with monkeypatch.context() as patch:
        if not share:
            patch.setattr("trl_irl.text.generation.read_once", lambda model, batch: {})
        torch.manual_seed(0)
        drawn = generate(model, REPEATED, {1}, 0, 8, 1.0, 9)
    hook.remove()
    return drawn, rows[0]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "gemma2 sliding", "mistral sliding", "adapter"])
def test_a_prompt_with_several_samples_is_read_once(name, monkeypatch):
    if name == "adapter":
        model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj", "v_proj"]))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.3)
    elif name == "mistral sliding":
        model = build("mistral", AutoModelForCausalLM)
        model.config.sliding_window = 4
    else:
        model = make_model(name.split()[0], **SLIDING if "sliding" in name else {})
    shared, read = drawn_and_read(model.eval(), monkeypatch)
    plain, read_by_row = drawn_and_read(model, monkeypatch, share=False)
    assert shared == plain and (read, read_by_row) == (3, 9)
    assert len({tuple(row) for row in plain}) > 5


@pytest.mark.parametrize("name", BY_ROW)
def test_a_model_that_cannot_share_what_it_read(name, monkeypatch):
    auto = AutoModelForImageTextToText if name in ("git", "paligemma") else AutoModelForCausalLM
    model = build(name, auto).eval()
    shared, read = drawn_and_read(model, monkeypatch)
    assert shared == drawn_and_read(model, monkeypatch, share=False)[0]
    assert read == 9 or name == "openai-gpt"  # which has no cache, as only shows when it has read


def test_all_prompts_differ_or_are_one_token(monkeypatch):
    model = make_model("llama").eval()
    for prompts in ([[5, 6, 7], [5, 6]], [[5]] * 3):
        torch.manual_seed(0)
        drawn = generate(model, prompts, {1}, 0, 5, 1.0, 9)
        with monkeypatch.context() as patch:
            patch.setattr("trl_irl.text.generation.read_once", lambda model, batch: {})
            torch.manual_seed(0)
            assert generate(model, prompts, {1}, 0, 5, 1.0, 9) == drawn


def test_a_stop_token_that_is_an_ordinary_one_is_not_in_the_text(tokenizer):
    token = tokenizer("fox")["input_ids"][0]
    word = tokenizer.decode([token])
    model = make_model_that_says(token, 100.0)
    model.generation_config.eos_token_id = [1, token]
    ((said,),) = sample(model, tokenizer, ["One two"], 8, temperature=0.0)
    assert said == Completion("", 1, True, [token])
    reward = SoftQReward(model, tokenizer)
    assert reward.reads([said.text], [said.token_ids], [True]) and not reward.reads(["One"], [said.token_ids], [True])
    assert not reward.reads([said.text], [said.token_ids], [False])  # it would be a word
    # TRL's trainers leave such a token in the text.
    assert len(reward(["One"], [word], [[token]])) == 1
    with pytest.raises(ValueError, match="The policy's tokens are not the reward model's"):
        reward(["One"], [""], [[token]])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_token_that_a_decoder_must_begin_with(family, tokenizer):
    """An mBART's or NLLB's language."""
    model = make_encoder_decoder(family).eval()
    model.generation_config.forced_bos_token_id = 7
    ids = tokenizer(["One two", "The quick brown"], padding=True, return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=4, do_sample=False)[:, 1].tolist()
    greedy = sample(model, tokenizer, ["One two", "The quick brown"], 40)
    drawn = sample(model, tokenizer, ["One two", "The quick brown"], 40, temperature=1.0, num_samples=3)
    assert expected == [7, 7]
    assert {one.token_ids[0] for group in (*greedy, *drawn) for one in group} == {7}
    assert any(7 not in one.token_ids[32:33] for group in drawn for one in group)  # but not where it goes on


@pytest.mark.parametrize(
    "options", [{"forced_eos_token_id": 1}, {"exponential_decay_length_penalty": (40, 1.5)}, {"min_length": 60}]
)
def test_options_that_look_at_the_whole_completion(options, tokenizer):
    model = policy()
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    found = generate(model, ids, {1}, 0, 80, 0.0, 8, **options)
    for prompt, said in zip(ids, found, strict=True):
        with as_it_is(model):
            (expected,) = model.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=80, eos_token_id=[1], pad_token_id=0, **options
            )
        assert said == expected[len(prompt) :].tolist()


def test_a_temperature_that_is_a_whole_number(tokenizer):
    one, other = (sample(policy(), tokenizer, PROMPTS, 5, temperature=t, num_samples=2) for t in (2, 2.0))
    assert one == other
