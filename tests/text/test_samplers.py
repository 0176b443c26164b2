"""Samplers: what the text of one says, and what is cut off the policy's distribution for it."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.conftest import make_model
from trl_irl.text import vllm_sampling
from trl_irl.text.samplers import GREEDY, Sampler
from trl_irl.text.sampling import sample


@pytest.mark.parametrize(
    "text, sampler, label, family",
    [
        ("t=0", Sampler(0.0), "greedy", "temperature"),
        ("0.7", Sampler(0.7), "T = 0.7", "temperature"),
        ("temperature=1.5", Sampler(1.5), "T = 1.5", "temperature"),
        ("t=1,top_p=0.9", Sampler(1.0, top_p=0.9), "T = 1, top-p 0.9", "top-p 0.9"),
        (" min_p=0.05 , t=2", Sampler(2.0, min_p=0.05), "T = 2, min-p 0.05", "min-p 0.05"),
        ("t=1,top_k=40,top_p=0.5", Sampler(1.0, 0.5, 40), "T = 1, top-p 0.5, top-k 40", "top-p 0.5, top-k 40"),
        ("beams=4", Sampler(0.0, beams=4), "4 beams", "beams"),
        ("beams=4,t=0", Sampler(0.0, beams=4), "4 beams", "beams"),
        ("top_k=5", Sampler(1.0, top_k=5), "T = 1, top-k 5", "top-k 5"),
    ],
)
def test_what_is_written(text, sampler, label, family):
    assert Sampler.parse(text) == sampler and Sampler.parse(str(sampler)) == sampler
    assert (sampler.label, sampler.family) == (label, family)
    assert sampler.is_random == (sampler.temperature > 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("warm", "cannot be read at 'warm'"),
        ("t=hot", "cannot be read at 't=hot'"),
        ("t=1,p=0.9", "cannot be read at 'p=0.9'"),
        ("t=1,t=2", "cannot be read at 't=2'"),
        ("", "cannot be read at ''"),
        ("t=-1", "`temperature` must be 0"),
        ("t=nan", "`temperature` must be 0"),
        ("t=inf", "`temperature` must be 0"),
        ("beams=inf", "`beams` must be a whole number"),
        ("beams=2.7", "`beams` must be a whole number"),
        ("t=1,top_k=0.5", "`top_k` must be a whole number"),
        ("t=1,top_k=nan", "`top_k` must be a whole number"),
        ("t=1,top_p=0", "`top_p` must be a probability above 0"),
        ("t=1,top_p=1.1", "`top_p` must be"),
        ("t=1,min_p=1", "`min_p` must be"),
        ("t=1,top_k=-1", "`top_k` must be"),
        ("t=1,beams=2", "searches beams at a temperature above 0"),
        ("t=0,top_p=0.9", "cuts the tail off greedy decoding"),
        ("beams=2,min_p=0.1", "cuts the tail off greedy decoding"),
    ],
)
def test_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        Sampler.parse(text)


def first_tokens(sampler, tokenizer, count=4000):
    """How often each token is the first of a completion, and the policy's own distribution of it."""
    torch.manual_seed(0)
    model = make_model("llama").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # away from uniform
        logits = model(**tokenizer("The quick", return_tensors="pt")).logits[0, -1]
    options = {"num_samples": count, "batch_size": count, "seed": 0, "description": "", **sampler.options()}
    (group,) = sample(model, tokenizer, ["The quick"], 1, **options)
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in group]), minlength=len(logits))
    return counts / len(group), (logits / (sampler.temperature or 1.0)).softmax(-1)


@pytest.mark.parametrize("text", ["t=1", "t=0.5", "t=1,top_p=0.6", "t=1.5,min_p=0.3", "t=1,top_k=3"])
def test_the_distribution_is_the_policys_less_what_is_cut(text, tokenizer):
    sampler = Sampler.parse(text)
    drawn, probabilities = first_tokens(sampler, tokenizer)
    order = probabilities.argsort(descending=True)
    kept = torch.ones(len(order), dtype=torch.bool)
    before = probabilities[order].cumsum(0) - probabilities[order]
    kept[order[before >= sampler.top_p]] = False
    if sampler.top_k:
        kept[order[sampler.top_k :]] = False
    kept &= probabilities >= sampler.min_p * probabilities.max()
    expected = torch.where(kept, probabilities, 0) / probabilities[kept].sum()
    assert drawn[~kept].sum() == 0
    assert text == "t=1" or text == "t=0.5" or 0 < kept.sum() < len(kept) / 2
    assert (drawn - expected).abs().max() < 0.035  # of 4,000 draws: more than four standard errors


def test_beams_find_what_is_likelier_than_greedy(tokenizer):
    """And beside the model's own beam search, the same."""
    gains, prompt = [], tokenizer("One", return_tensors="pt")
    start = prompt["input_ids"].size(1)
    for seed in range(5):
        model, found = make_model("llama", seed=seed).eval(), {}
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        for sampler in (GREEDY, Sampler(0.0, beams=5)):
            ((one, again),) = sample(model, tokenizer, ["One"], 3, num_samples=2, description="", **sampler.options())
            assert one.token_ids == again.token_ids
            ids = torch.cat([prompt["input_ids"][0], torch.tensor(one.token_ids)])
            log_pi = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            found[sampler] = log_pi.gather(1, ids[1:, None])[start - 1 :].sum().item()
        own = model.generate(**prompt, num_beams=5, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert own[0, start:].tolist()[: len(one.token_ids)] == one.token_ids
        gains.append(found[sampler] - found[GREEDY])
    assert sum(gains) > 0.5  # by length, so that one may be less likely as a whole


def test_vllm_is_told_the_same(tokenizer, monkeypatch):
    asked = []
    vllm = ModuleType("vllm")
    vllm.SamplingParams = lambda **options: asked.append(options) or SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    engine = SimpleNamespace(generate=lambda prompts, options, lora_request: [SimpleNamespace(outputs=[])])
    for text in ("t=1,top_k=40", "t=0.5,min_p=0.1", "t=1,top_p=0.9", "t=0"):
        vllm_sampling.sample(engine, tokenizer, ["One"], 5, num_samples=3, **Sampler.parse(text).options())
    told = [{k: x for k, x in one.items() if k in ("temperature", "top_k", "top_p", "min_p")} for one in asked]
    assert told == [
        {"temperature": 1.0, "top_p": 1.0, "top_k": 40},
        {"temperature": 0.5, "top_p": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.0, "top_p": 1.0},
    ]


def test_vllm_is_told_of_weights_that_are_saved_in_float32(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        make_model("llama").to(dtype).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        for key in ("dtype", None):  # as it is saved now, and as a config says nothing of it
            told = {name: value for name, value in config.items() if key or name not in ("dtype", "torch_dtype")}
            (folder / "config.json").write_text(json.dumps(told))
            assert vllm_sampling.is_float32(str(folder)) == (dtype == torch.float32)
