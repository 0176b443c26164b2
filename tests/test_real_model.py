"""
The path of a real pretrained model: its own tokenizer, chat template and weights, whose V moves by many nats. Only
where `make real-model` has put it; the reference is transformers' own forward and TRL's SFTTrainer.
"""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

from benchmarks.real_model import FOLDER
from tests.trainer.conftest import one_step, settings
from trl_irl import IRLConfig, IRLTrainer, SoftQReward, evaluate
from trl_irl.cli import main
from trl_irl.evaluation import EvaluationSettings


pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(), reason="no pretrained model here: `make real-model` fetches it"
)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def said(role, content):
    return {"role": role, "content": content}


# One turn, several, and a system's: what the template of an instruct model is for.
CAPITAL = [said("user", "What is the capital of France?")]
ROWS = [
    {"prompt": CAPITAL, "completion": [said("assistant", "The capital of France is Paris.")]},
    {
        "prompt": [said("system", "You name colours."), said("user", "The sky?")],
        "completion": [said("assistant", "Blue.")],
    },
    {
        "prompt": [said("user", "Count to three."), said("assistant", "1 2 3"), said("user", "And back?")],
        "completion": [said("assistant", "3 2 1")],
    },
    {
        "prompt": [said("user", "The Eagle, a coffee shop by the river, is cheap. Say it in one sentence.")],
        "completion": [said("assistant", "The Eagle is a cheap coffee shop on the riverside.")],
    },
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def plain():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def trainer_of(kind, args_class, tokenizer, tmp_path, **keys):
    more = {name: keys.pop(name) for name in ("peft_config", "quantization_config") if name in keys}
    model = keys.pop("model", str(FOLDER))
    args = args_class(
        **settings(tmp_path, **{"per_device_train_batch_size": len(ROWS), "max_length": 256, **keys}),
        model_init_kwargs={"dtype": "float32"} if isinstance(model, str) else None,
    )
    set_seed(args.seed)  # of the adapter's first weights: TRL 1.12's SFTTrainer does not
    rows = Dataset.from_list(ROWS)
    return kind(model, args=args, train_dataset=rows, processing_class=tokenizer, **more)


def by_hand(plain, tokenizer, row):
    """Log-likelihood of the completion's tokens in the template's text, from full logits."""
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    start = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(start)
    ids = tokenizer(whole, return_tensors="pt", add_special_tokens=False)["input_ids"]
    scored = len(tokenizer(start, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logits = plain(ids).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[scored - 1 :, 0]


@pytest.mark.parametrize(
    "keys",
    [{}, {"packing": True, "max_length": 512}, {"peft_config": LORA}, {"gradient_checkpointing": True}],
    ids=["whole", "packed", "lora", "checkpointed"],
)
def test_a_step_is_sft_trainers(keys, tokenizer, tmp_path):
    steps = []
    for kind, args_class, own in (
        (SFTTrainer, SFTConfig, {"loss_type": "nll"}),
        (IRLTrainer, IRLConfig, {"lambda_td": 0.0}),
    ):
        # Without flash attention documents in SFTTrainer's packed row see each other: rows apart are the reference.
        own |= {"packing": False} if kind is SFTTrainer else {}
        steps.append(one_step(trainer_of(kind, args_class, tokenizer, tmp_path, **{**keys, **own})))
    sft, irl = steps
    # Without AVX-512 torch's own log-softmax is off by 2e-5 nats, to one side: the head is not (against float64).
    torch.testing.assert_close(torch.as_tensor(irl[0]), torch.as_tensor(sft[0]), rtol=3e-5, atol=1e-6)
    assert irl[1].keys() == sft[1].keys()
    for name, expected in sft[1].items():
        error = (irl[1][name] - expected).norm() / expected.norm().clamp(min=1e-12)
        assert error < 1e-3, f"{name}: {error}"


def test_bfloat16_is_float32_to_its_rounding(tokenizer, tmp_path):
    """
    The objective of the defaults, whose squared reward is a small difference of large numbers. The weights are moved
    at random by less than bfloat16 can tell: of 4 bits once, many of them lie just between two of its numbers, and
    a step of any size moves these by half of one; where they lie on its numbers, it does not see a small step.
    """
    logged = []
    for bf16 in (False, True):
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 2**-8 * (torch.rand(weight.shape, generator=generator) - 0.5))
        keys = {"model": model, "bf16": bf16, "lambda_td": 0.1, "learning_rate": 2e-6}
        trainer = trainer_of(IRLTrainer, IRLConfig, tokenizer, tmp_path, **keys)
        trainer.train()
        logged.append([entry for entry in trainer.state.log_history if "nll" in entry])
    assert logged[0][0]["td_scale"] > 20  # nats squared: what the default divides by
    for step, (exact, rounded) in enumerate(zip(*logged, strict=True)):
        for name in ("loss", "nll", "v_mean", "td_scale"):
            # What a step has done to the weights is seen in bfloat16 only where it takes them over an edge.
            assert rounded[name] == pytest.approx(exact[name], rel=2**-5 if step else 2**-6), name
    (exact, rounded) = ([entry["nll"] for entry in one] for one in logged)
    assert rounded[-1] - rounded[0] == pytest.approx(exact[-1] - exact[0], rel=0.25)


def test_values_from_the_base_begin_at_zero(tokenizer, tmp_path):
    keys = {"objective": "value_consistency", "value_origin": "reference", "lambda_td": 1.0}
    trainer = trainer_of(IRLTrainer, IRLConfig, tokenizer, tmp_path, peft_config=LORA, **keys)
    trainer.train()
    first, *_, last = (entry for entry in trainer.state.log_history if "nll" in entry)
    assert first["value_drop_squared"] == pytest.approx(0, abs=1e-5) and last["value_drop_squared"] > 1e-4
    assert trainer.td_scale == 1 and first["td_loss"] < 20  # what is left of r is log pi
    assert last["nll"] < first["nll"]


def test_qlora(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    keys = {"peft_config": LORA, "quantization_config": quantization, "learning_rate": 1e-3, "max_steps": 5}
    trainer = trainer_of(IRLTrainer, IRLConfig, tokenizer, tmp_path, **keys)
    trainer.train()
    losses = [entry["nll"] for entry in trainer.state.log_history if "nll" in entry]
    assert losses[-1] < 0.9 * losses[0]
    trainer.save_model(str(tmp_path / "adapter"))
    trained, before = (
        SoftQReward(path, tokenizer, kind="advantage").score(
            [row["prompt"] for row in ROWS], [row["completion"] for row in ROWS]
        )
        for path in (str(tmp_path / "adapter"), str(FOLDER))
    )
    gained = [a.log_likelihood - b.log_likelihood for a, b in zip(trained, before, strict=True)]
    assert sum(gained) > 0


def test_it_answers_and_its_likelihood_is_that_of_its_full_logits(plain, tokenizer, tmp_path):
    settings = EvaluationSettings(samplers=["t=0"], metrics=["nll"], num_samples=1, max_new_tokens=24, batch_size=4)
    results = evaluate({"smollm2": str(FOLDER)}, ROWS, settings)
    exact = torch.cat([by_hand(plain, tokenizer, row) for row in ROWS])
    assert results.summaries[0].metrics["nll"].mean == pytest.approx(-exact.mean().item(), rel=1e-4)
    assert "Paris" in results.lines[0]["completions"][0]["text"]


def test_its_score_page(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["score", "--model", str(FOLDER), "--dataset_name", str(rows), "--html", str(tmp_path / "page.html")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output", str(tmp_path / "scores.jsonl")])
    assert ended.value.code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Paris" in page and page.count("<article") == len(ROWS)


SCRIPT = """
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model=MODEL,
    args=SFTConfig(
        output_dir=OUTPUT, max_steps=2, logging_steps=1, per_device_train_batch_size=4, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", model_init_kwargs={"dtype": "float32"},
    ),
    train_dataset=Dataset.from_list(ROWS),
)
trainer.train()
"""


def test_the_script_of_sft_trainer_with_two_words_changed(tmp_path):
    runs = {}
    for library, prefix in (("trl", "SFT"), ("trl_irl", "IRL")):
        script = SCRIPT.replace("from trl ", f"from {library} ").replace("SFT", prefix)
        names = {"MODEL": str(FOLDER), "OUTPUT": str(tmp_path / prefix), "ROWS": ROWS}
        exec(compile(script, prefix, "exec"), names)
        runs[prefix] = [entry for entry in names["trainer"].state.log_history if "grad_norm" in entry]
    sft, irl = runs["SFT"], runs["IRL"]
    assert irl[0]["nll"] == pytest.approx(sft[0]["loss"], rel=1e-4)  # TRL rounds what it logs
    # Defaults: the term begins at lambda_td of the tokens that have one, whatever the scale of this model's values.
    assert irl[0]["nll"] + 0.05 < irl[0]["loss"] < irl[0]["nll"] + 0.1
    assert irl[0]["mean_token_accuracy"] == pytest.approx(sft[0]["mean_token_accuracy"], abs=1e-4)
    assert irl[1]["loss"] < irl[0]["loss"] and sft[1]["loss"] < sft[0]["loss"]
