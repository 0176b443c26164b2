"""Online IRL of encoder-decoder models: the loss against full logits, and a run by the command."""

import copy
import json

import pytest
import torch
from datasets import Dataset

from tests.distributed.launchers import QUIET
from tests.encoder_decoders import make_encoder_decoder
from tests.trainer.online_irl.test_trainer import ROWS
from trl_irl import OnlineIRLConfig, Seq2SeqOnlineIRLConfig, Seq2SeqOnlineIRLTrainer
from trl_irl.commands import online_irl
from trl_irl.soft_q.packed import shifted


def make(tokenizer, folder, family="t5", **keys):
    keys = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "td_scale": 1.0} | keys
    return Seq2SeqOnlineIRLTrainer(
        model=make_encoder_decoder(family),
        args=Seq2SeqOnlineIRLConfig(str(folder), **{"max_completion_length": 6, **QUIET, **keys}),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=copy.deepcopy(tokenizer),
    )


def reference(model, rows, gamma, lambda_td, weight, stop):
    """
    The objective as docs/online.md writes it, row by row on full float64 logits, with no square at a stop token nor
    where the next state is not known.
    """
    model = copy.deepcopy(model).double()
    sums, of_completions = {False: [], True: []}, {False: [], True: []}
    for prompt, labels, of_policy in rows:
        labels = torch.tensor([labels])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=shifted(model, labels)).logits[0]
        v = logits.logsumexp(-1)
        of_completions[of_policy].append(v[0] + (1 - gamma) * v[1:].sum())
        for t, action in enumerate(labels[0].tolist()):
            ends, last = action in stop, t == len(v) - 1
            sums[of_policy].append((logits[t, action], v[t], 0.0 if ends else None if last else v[t + 1], ends))

    def mean(side, value):
        return sum(value(*token) for token in sums[side]) / len(sums[side])

    def squared(q, v, next_v, ends):
        return 0.0 if next_v is None or ends else (q - gamma * next_v) ** 2

    expert, policy = (torch.stack(of_completions[side]).mean() for side in (False, True))
    length = len(sums[False]) / len(of_completions[False])
    squares = (1 - weight) * mean(False, squared) + weight * mean(True, squared)
    nll = mean(False, lambda q, v, next_v, ends: v - q)
    return nll + weight * (policy - expert) / length + lambda_td * squares


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_against_full_logits(family, accumulation, tokenizer, tmp_path, monkeypatch):
    keys = {"gamma": 0.9, "lambda_td": 0.2, "policy_weight": 0.3, "learning_rate": 0.0, "max_steps": 1}
    keys |= {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = make(tokenizer, tmp_path, family, **keys)
    model, sampled, sample = copy.deepcopy(trainer.model), [], trainer._sample
    monkeypatch.setattr(trainer, "_sample", lambda prompts: sampled.append(sample(prompts)) or sampled[-1])
    trainer.train()
    (policy,) = sampled
    assert sorted(one.prompt for one in policy) == sorted(trainer.train_dataset["input_ids"])
    assert all(0 < len(one.completion) <= 6 for one in policy)
    rows = [(row["input_ids"], row["labels"], False) for row in trainer.train_dataset]
    rows += [(one.prompt, one.completion, True) for one in policy]
    for part in model.modules():
        part.__dict__.pop("forward", None)  # of the soft-Q head
    expected = reference(model, rows, 0.9, 0.2, 0.3, trainer.stop_token_ids)
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logged["policy_length"] == pytest.approx(sum(len(one.completion) for one in policy) / 4)
    assert logged["expert_length"] == pytest.approx(sum(len(row["labels"]) for row in trainer.train_dataset) / 4)


def test_a_run_by_the_command_with_replay(tokenizer, tmp_path):
    make_encoder_decoder().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--model_name_or_path", str(tmp_path / "base"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false", "--max_steps", "3"]
    words += ["--max_completion_length", "5", "--replay_size", "4", "--report_to", "none", "--logging_steps", "1"]
    assert online_irl.run(words) == 0
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "policy_nll" in entry]
    assert len(logged) == 3 and all(entry["policy_length"] <= 5 for entry in logged)


def test_what_is_refused(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="Build a `Seq2SeqOnlineIRLConfig`"):
        Seq2SeqOnlineIRLTrainer(make_encoder_decoder(), OnlineIRLConfig(str(tmp_path), **QUIET))
    with pytest.raises(ValueError, match="vLLM has no encoder-decoder models"):
        Seq2SeqOnlineIRLConfig(str(tmp_path), use_vllm=True, **QUIET)
    with pytest.raises(ValueError, match="`packing` and `padding_free` put several rows into one"):
        Seq2SeqOnlineIRLConfig(str(tmp_path), packing=True, **QUIET)
    with pytest.raises(ValueError, match="does not fit into the decoder's context of 64 tokens"):
        make(tokenizer, tmp_path, "bart", max_completion_length=65)
    make(tokenizer, tmp_path, "bart", max_completion_length=64)  # the last one is read by nothing
