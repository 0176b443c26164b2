"""lm-evaluation-harness, through its Python API and offline, on a folder that this package's trainer saved."""

import json

import pytest
from datasets import Dataset

from tests.conftest import make_model
from tests.encoder_decoders import make_encoder_decoder
from tests.trainer.conftest import settings
from trl_irl import IRLConfig, IRLTrainer, Seq2SeqIRLConfig, Seq2SeqIRLTrainer
from trl_irl.rewards.held_out_loss import held_out_sums
from trl_irl.text.sampling import sample_completions


ROWS = [{"question": "What is blue?", "answer": " The sky"}, {"question": "One", "answer": " two three"}]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
{rest}
"""
GENERATE = """generation_kwargs: {until: ["<eos>"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A model that has learnt the first answer by heart, saved by the trainer."""
    folder = tmp_path_factory.mktemp("lm_eval")
    trainer = IRLTrainer(
        model=make_model("llama"),
        args=IRLConfig(**settings(folder / "run", max_steps=60, learning_rate=2e-2, lambda_td=0.01)),
        train_dataset=Dataset.from_list([{"prompt": ROWS[0]["question"], "completion": ROWS[0]["answer"]}] * 8),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(folder / "model")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, output_type, rest in (("says", "generate_until", GENERATE), ("weighs", "loglikelihood", "")):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, output_type=output_type, rest=rest))
    return folder


def test_its_scores_are_ours(saved, tokenizer):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(saved / "model"), "dtype": "float32"},
        tasks=["says", "weighs"],
        task_manager=TaskManager(include_path=str(saved), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )
    model = AutoModelForCausalLM.from_pretrained(saved / "model")
    texts = sample_completions(model, tokenizer, [row["question"] for row in ROWS], 8)
    answers = [sample["resps"][0][0] for sample in found["samples"]["says"]]
    assert answers == [text for (text,) in texts]
    assert texts[0] == [" The sky"] and texts[1] != [" two three"]
    assert found["results"]["says"]["exact_match,none"] == 0.5
    # Without the EOS token, which the harness does not score.
    likelihoods = [sample["resps"][0][0][0] for sample in found["samples"]["weighs"]]
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in ROWS]
    with_eos = held_out_sums(model, tokenizer, rows)["nll"][:, 0]
    for row, likelihood, nll in zip(rows, likelihoods, with_eos, strict=True):
        ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"]
        eos_nll = -model(ids).logits[0, -1].log_softmax(-1)[tokenizer.eos_token_id].item()
        # Of an answer by heart next to nothing is left: there the harness's float32 is off by its logits' rounding.
        assert -likelihood == pytest.approx(nll - eos_nll, rel=1e-4, abs=2e-5)


@pytest.mark.any_trl
def test_an_encoder_decoder_says_what_it_says_here(saved, tokenizer, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForSeq2SeqLM

    rows = [{"prompt": row["question"], "completion": row["answer"].strip()} for row in ROWS]
    trainer = Seq2SeqIRLTrainer(
        make_encoder_decoder(),
        Seq2SeqIRLConfig(**settings(tmp_path / "run", max_steps=150, learning_rate=2e-2, lambda_td=0.01)),
        train_dataset=Dataset.from_list(rows[:1] * 8),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(tmp_path / "model")
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model"), "dtype": "float32"},
        tasks=["says"],
        task_manager=TaskManager(include_path=str(saved), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    texts = sample_completions(model, tokenizer, [row["prompt"] for row in rows], 8)
    answers = [sample["resps"][0][0] for sample in found["samples"]["says"]]
    assert answers == [text for (text,) in texts] and texts[0] == ["The sky"]
