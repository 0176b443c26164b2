"""`Seq2SeqIRLTrainer`: its loss against a plain float64 loop and against transformers' own trainer, and whole runs."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from tests.conftest import make_model
from tests.encoder_decoders import CONFIGS, PACKABLE, make_encoder_decoder
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import Seq2SeqIRLConfig, Seq2SeqIRLTrainer, SoftQReward
from trl_irl.commands import irl
from trl_irl.soft_q.packed import shifted


def make(tokenizer, folder, model="t5", rows=ROWS, **kwargs):
    own = ("eval_dataset", "peft_config", "ref_model", "objective_itself", "quantization_config", "compute_metrics")
    given = {name.replace("_itself", ""): kwargs.pop(name) for name in own if name in kwargs}
    keys = {"td_scale": 1.0, "terminal_value": "zero", **settings(folder, **kwargs)}
    return Seq2SeqIRLTrainer(
        model=make_encoder_decoder(model) if isinstance(model, str) and model in CONFIGS else model,
        args=Seq2SeqIRLConfig(**keys),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=tokenizer,
        **given,
    )


def plain_loss(model, tokenizer, lambda_td, gamma, zero_at_end):
    """The objective, row by row and token by token, of the model's full logits."""
    total, count = 0.0, 0
    for row in ROWS:
        prompt = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        labels = torch.tensor([tokenizer(row["completion"].lstrip())["input_ids"] + [tokenizer.eos_token_id]])
        logits = model(input_ids=prompt, decoder_input_ids=shifted(model, labels)).logits[0]
        values = [state.logsumexp(-1) for state in logits]
        for t, action in enumerate(labels[0].tolist()):
            q, last = logits[t, action], t == len(values) - 1
            total = total + values[t] - q
            if not last:
                total = total + lambda_td * (q - gamma * values[t + 1]) ** 2
            elif zero_at_end:
                total = total + lambda_td * q**2
            count += 1
    return total / count


def pads_on_the_left(tokenizer):
    """As Gemma's does; and one that does not say that its model reads a mask."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side, tokenizer.model_input_names = "left", ["input_ids"]
    return tokenizer


@pytest.mark.parametrize("shape", ["padded", "padded left", "accumulated", "packed"])
@pytest.mark.parametrize("terminal_value", ["zero", "mask"])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_and_its_gradients(family, terminal_value, shape, tokenizer, tmp_path):
    if shape == "packed" and family not in PACKABLE:
        pytest.skip("its positions are absolute")
    keys = {"gamma": 0.9, "lambda_td": 0.3, "terminal_value": terminal_value}
    if shape == "accumulated":
        keys |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    if shape == "packed":
        keys |= {"packing": True, "max_length": 64}
    given = pads_on_the_left(tokenizer) if shape == "padded left" else tokenizer
    # In float64, as in the loop: gradients of gated layers lose digits in float32.
    trainer = make(given, tmp_path, make_encoder_decoder(family, dtype=torch.float64), **keys)
    if shape == "packed":
        assert len(trainer.train_dataset) <= len(ROWS) / 2
    loss, gradients = one_step(trainer)
    model = make_encoder_decoder(family, dtype=torch.float64)
    expected = plain_loss(model, tokenizer, 0.3, 0.9, terminal_value == "zero")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("family", ["t5", "flan-t5", "bart", "t5gemma"])
def test_maximum_likelihood_is_seq2seq_trainers(family, tokenizer, tmp_path):
    """One batch a step: where there are several, transformers 5.23 adds up the means of T5's and BART's."""
    # Adam divides a gradient by its size: those that are rounding alone (of BART's key biases) must not count.
    keys = {"adam_epsilon": 1e-4}
    of_objective = {"objective": "nll", "lambda_td": 0.0, "td_scale": None, "terminal_value": "mask"}
    ours = make(tokenizer, tmp_path / "ours", family, **of_objective, **keys)
    ours.train()
    args = {key: value for key, value in settings(tmp_path / "theirs", **keys).items() if key != "max_length"}
    theirs = Seq2SeqTrainer(
        make_encoder_decoder(family),
        Seq2SeqTrainingArguments(**args),
        train_dataset=ours.train_dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    theirs.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 3
    for (name, got), (_, expected) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_packed_and_unpacked_train_alike(tokenizer, tmp_path):
    histories = []
    for packing in (False, True):
        keys = {"packing": packing, "max_length": 128, "lambda_kl": 0.1, "learning_rate": 1e-2}
        keys |= {"per_device_eval_batch_size": len(ROWS)}  # `eval_loss` is a mean of means
        trainer = make(tokenizer, tmp_path / str(packing), eval_dataset=Dataset.from_list(ROWS), **keys)
        trainer.train()
        histories.append((trainer.state.log_history, trainer.evaluate()))
    (log, evaluated), (packed_log, packed_evaluated) = histories
    for entry, other in zip(log[:3], packed_log[:3], strict=True):
        for key in ("nll", "td_loss", "reward_mean", "kl", "mean_token_accuracy", "num_tokens"):
            assert other[key] == pytest.approx(entry[key], rel=1e-4, abs=1e-6), key
    for key in ("eval_loss", "eval_nll", "eval_td_loss", "eval_kl"):
        assert packed_evaluated[key] == pytest.approx(evaluated[key], rel=1e-4), key
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and log[2]["kl"] > 1e-4  # the reference is the start


@pytest.mark.parametrize("objective", ["value_consistency", "gem", "z_loss", "dft", "entropy+label_smoothing"])
def test_the_other_objectives(objective, tokenizer, tmp_path):
    keys = {"td_scale": None, "terminal_value": "mask"}
    keys |= {"lambda_td": 0.1} if objective == "value_consistency" else {"lambda_td": 0.0}
    trainer = make(tokenizer, tmp_path, objective=objective, learning_rate=1e-2, max_steps=10, **keys)
    trainer.train()
    losses = [entry["nll"] for entry in trainer.state.log_history if "nll" in entry]
    assert losses[-1] < losses[0] - 0.1


def test_checkpointing_and_bfloat16_give_the_same_loss(tokenizer, tmp_path):
    plain, _ = one_step(make(tokenizer, tmp_path / "plain"))
    checkpointed, _ = one_step(make(tokenizer, tmp_path / "checkpointed", gradient_checkpointing=True))
    rounded, _ = one_step(make(tokenizer, tmp_path / "rounded", bf16=True))
    assert checkpointed.item() == pytest.approx(plain.item(), rel=1e-6)
    assert rounded.item() == pytest.approx(plain.item(), rel=0.02)


@pytest.mark.parametrize("quantised", [False, True])
def test_lora_trains_adapters_alone_and_its_base_is_the_reference(quantised, tokenizer, tmp_path):
    model = make_encoder_decoder("flan-t5")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    keys = {"peft_config": LoraConfig(r=2, target_modules=["q", "v"]), "learning_rate": 1e-2, "lambda_kl": 0.1}
    if quantised:
        keys["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = make(tokenizer, tmp_path / "run", str(tmp_path / "base") if quantised else model, max_steps=6, **keys)
    trainer.train()
    kls = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kls[0] == pytest.approx(0, abs=1e-5) and kls[-1] > 1e-5
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    trainer.save_model(str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(again, tmp_path / "adapter")


def test_a_run_that_goes_on_ends_where_one_that_was_not_cut_off_does(tokenizer, tmp_path):
    keys = {"td_scale": None, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "max_steps": 4}
    keys |= {"per_device_train_batch_size": 3}
    whole = make(tokenizer, tmp_path / "run", **keys)
    whole.train()
    again = make(tokenizer, tmp_path / "run", **keys)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert again.td_scale == whole.td_scale > 1
    for (name, one), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert one.equal(other), name


def test_texts_are_generated_beside_the_objective(tokenizer, tmp_path):
    seen = []

    def count(predicted):
        seen.append(predicted)
        return {"rows": len(predicted.predictions)}

    keys = {"predict_with_generate": True, "generation_max_length": 7, "compute_metrics": count}
    trainer = make(tokenizer, tmp_path, eval_dataset=Dataset.from_list(ROWS), **keys)
    evaluated = trainer.evaluate()
    plain = make(tokenizer, tmp_path, eval_dataset=Dataset.from_list(ROWS)).evaluate()
    for key in ("eval_loss", "eval_nll", "eval_td_loss"):
        assert evaluated[key] == pytest.approx(plain[key], rel=1e-6)
    assert evaluated["eval_rows"] == len(ROWS)
    predictions, labels = seen[0].predictions, seen[0].label_ids
    lengths = [(row != -100).sum() for row in labels]
    expected = [len(row["labels"]) for row in trainer.eval_dataset]
    assert lengths == expected and (predictions[:, 0] == 0).all() and predictions.shape[1] >= 7


def test_what_is_generated_is_not_read_off_the_labels(tokenizer, tmp_path):
    """transformers' collator adds the decoder's inputs where it is told of the model; they are the right text."""
    seen = []
    keys = {"predict_with_generate": True, "generation_max_length": 7}
    for add in (False, True):
        keys["compute_metrics"] = lambda predicted: seen.append(predicted.predictions) or {}
        trainer = make(tokenizer, tmp_path, eval_dataset=Dataset.from_list(ROWS), **keys)
        if add:
            trainer.data_collator = DataCollatorForSeq2Seq(tokenizer, model=trainer.model)
            assert "decoder_input_ids" in next(iter(trainer.get_eval_dataloader()))
        trainer.evaluate()
    assert (seen[0] == seen[1]).all()


def test_the_command_takes_the_trainer_that_the_model_needs(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_encoder_decoder().save_pretrained("base")
    tokenizer.save_pretrained("base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--model_name_or_path", "base", "--dataset_name", "rows.jsonl", "--output_dir", "out"]
    words += ["--use_cpu", "true", "--bf16", "false", "--max_steps", "2", "--packing", "true", "--max_length", "64"]
    words += [
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--dataset_test_split",
        "train",
        "--eval_generations",
        "2",
    ]
    words += ["--eval_max_new_tokens", "4", "--report_to", "none", "--gamma", "0.9", "--logging_steps", "1"]
    assert irl.run(words) == 0
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    assert {"nll", "td_loss", "eval_nll", "eval_rougeL", "eval_self_bleu"} <= logged
    reward = SoftQReward("out")
    assert reward.gamma == 0.9
    prompts, answers = ([row[key] for row in ROWS] for key in ("prompt", "completion"))
    scored = reward.score(prompts, answers)
    model = AutoModelForSeq2SeqLM.from_pretrained("out")
    ids = [tokenizer(answers[0].lstrip())["input_ids"] + [tokenizer.eos_token_id]]
    asked = torch.tensor([tokenizer(prompts[0])["input_ids"]])
    logits = model(input_ids=asked, labels=torch.tensor(ids)).logits[0]
    log_pi = logits.log_softmax(-1).gather(1, torch.tensor(ids).T).sum().item()
    assert scored[0].log_likelihood == pytest.approx(log_pi, rel=1e-4)
    again = reward.score(prompts[:1], completion_ids=ids)
    assert again[0].rewards == pytest.approx(scored[0].rewards, rel=1e-5)


def test_the_decoders_room_is_a_key_of_the_command(tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, model in (("t5", make_encoder_decoder()), ("llama", make_model("llama"))):
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / name)

    def trainer(name):
        words = ["--model_name_or_path", str(tmp_path / name), "--dataset_name", str(tmp_path / "rows.jsonl")]
        words += ["--output_dir", str(tmp_path / "out"), "--max_length", "64", "--max_completion_length", "3"]
        words += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
        return irl.make_trainer(*irl.make_parser().parse(words))[0]

    assert trainer("t5").args.max_lengths == (64, 3)
    assert max(map(len, trainer("t5").train_dataset["labels"])) == 3
    with pytest.raises(ValueError, match="`max_completion_length: 3` is the decoder's room.*Set `max_length` alone"):
        trainer("llama")


def test_a_tokenizer_that_ends_texts_itself(tmp_path):
    """ByT5's: a byte is a token, and EOS follows a prompt and a completion alike."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    model = make_encoder_decoder(vocab_size=384)
    trainer = make(tokenizer, tmp_path, model, [{"prompt": "Ab", "completion": " c"}] * 4, max_length=3)
    assert trainer.train_dataset[0] == {"input_ids": [68, 101, 1], "labels": [102, 1]}
    cut = make(tokenizer, tmp_path, model, [{"prompt": "Abcd", "completion": "efgh"}], max_length=3)
    assert cut.train_dataset[0] == {"input_ids": [68, 101, 1], "labels": [104, 105, 106]}  # the end is not reached
    trainer.train()
    assert trainer.state.log_history[0]["nll"] > trainer.state.log_history[2]["nll"]


def test_rows_of_ids_are_cut_as_text_is(tokenizer, tmp_path):
    rows = [{"input_ids": list(range(10, 30)), "labels": list(range(40, 60))}, {"input_ids": [5, 1], "labels": [6, 1]}]
    trainer = make(tokenizer, tmp_path, rows=rows, max_length=8, max_completion_length=4)
    assert trainer.train_dataset["input_ids"][:] == [list(range(10, 18)), [5, 1]]
    assert trainer.train_dataset["labels"][:] == [list(range(40, 44)), [6, 1]]


def test_rows_are_shuffled_where_that_is_asked_for(tokenizer, tmp_path):
    rows = [{"input_ids": [10 + i, 1], "labels": [6, 1]} for i in range(20)]
    plain, shuffled = (
        [ids for ids, _ in make(tokenizer, tmp_path, rows=rows, shuffle_dataset=x).train_dataset["input_ids"]]
        for x in (False, True)
    )
    assert plain != shuffled and plain == sorted(shuffled)


def test_messages(tokenizer, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}]}]
    (row,) = make(tokenizer, tmp_path, rows=rows).train_dataset
    assert tokenizer.decode(row["input_ids"]) == "<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["labels"]) == "two<eos>"


def test_what_t5_keeps_in_float32(tokenizer, tmp_path, caplog):
    trainer = make(tokenizer, tmp_path, make_encoder_decoder(dtype=torch.float16))
    kinds = {name.split(".")[-2]: p.dtype for name, p in trainer.model.named_parameters()}
    assert kinds["wo"] == torch.float32 and kinds["wi"] == torch.float16
    assert "is in float16, in which the activations of T5" in caplog.text


def test_an_evaluation_dataset_called_train_is_not_the_train_dataset(tokenizer, tmp_path):
    few = Dataset.from_list(ROWS[:2])
    trainer = make(tokenizer, tmp_path, eval_dataset={"train": few, "other": Dataset.from_list(ROWS[:3])})
    assert len(trainer.train_dataset) == len(ROWS)
    assert {name: len(rows) for name, rows in trainer.eval_dataset.items()} == {"train": 2, "other": 3}


@pytest.mark.parametrize("packing", [False, True])
def test_both_sides_are_padded_to_a_multiple(packing, tokenizer, tmp_path):
    found = []
    for multiple in (None, 16):
        trainer = make(tokenizer, tmp_path, packing=packing, max_length=128, pad_to_multiple_of=multiple)
        batch = next(iter(trainer.get_train_dataloader()))
        sides = ("input_ids", "labels", "decoder_input_ids", "encoder_documents", "decoder_documents")
        if multiple:
            assert all(batch[key].size(1) % multiple == 0 for key in sides if key in batch)
        found.append((batch, one_step(trainer)[0]))
    (narrow, loss), (wide, wide_loss) = found
    assert narrow["labels"].size(1) % 16 and not torch.equal(narrow["labels"], wide["labels"])
    assert sorted(narrow["labels"][narrow["labels"] != -100]) == sorted(wide["labels"][wide["labels"] != -100])
    torch.testing.assert_close(wide_loss, loss)
