"""Packed rows train as padded ones do, and families that let one document see another are refused by measurement."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.conftest import make_model
from tests.slow.sweep_families import build
from tests.trainer.conftest import one_step
from trl_irl.trainer.irl.packing import check_documents_apart


COLLATOR = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
DOCUMENTS = Dataset.from_list(
    [{"input_ids": [(7 * i + 3 * t) % 190 + 5 for t in range(4 + i % 4)] + [2]} for i in range(8)]
)
KEEP_APART = ["llama", "gpt_neox", "phi", "gemma3_text", "qwen3", "gpt2", "mixtral", "olmo2"]
DO_NOT = ["opt", "bloom", "mpt", "mamba", "rwkv", "lfm2", "falcon_mamba", "qwen3_next", "xglm"]


@pytest.mark.parametrize("family", KEEP_APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_that_keep_documents_apart(family, dtype):
    model = build(family, AutoModelForCausalLM).to(dtype)
    check_documents_apart(model, model, COLLATOR, False)


@pytest.mark.parametrize("family", DO_NOT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_that_do_not(family, dtype):
    model = build(family, AutoModelForCausalLM).to(dtype)
    with pytest.raises(ValueError, match="does not keep them apart"):
        check_documents_apart(model, model, COLLATOR, False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("lambda_td", [0.0, 0.2])
def test_packed_is_padded(make_trainer, family, lambda_td):
    results = []
    for more in ({}, {"packing": True, "per_device_train_batch_size": 1}):
        trainer = make_trainer(build(family, AutoModelForCausalLM), DOCUMENTS, lambda_td=lambda_td, **more)
        results.append(one_step(trainer))
    torch.testing.assert_close(results[1][0], results[0][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keys", [{"packing": True}, {"padding_free": True, "max_length": None}])
def test_the_trainer_refuses_before_it_trains(make_trainer, keys):
    with pytest.raises(ValueError, match="OPTForCausalLM does not keep them apart"):
        make_trainer(build("opt", AutoModelForCausalLM), DOCUMENTS, **keys)


def test_evaluation_is_of_documents_alone_however_they_are_packed(make_trainer):
    def evaluated(**more):
        return make_trainer(make_model("llama"), DOCUMENTS, eval_dataset=DOCUMENTS, **more).evaluate()

    expected = evaluated()
    for more in (
        {"packing": True},
        {"packing": True, "eval_packing": False},
        {"padding_free": True, "max_length": None},
    ):
        found = evaluated(**more)
        for name in ("eval_nll", "eval_td_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
    with pytest.raises(ValueError, match="`eval_packing: true` without `packing: true`"):
        evaluated(eval_packing=True)


def test_a_sharded_model_is_measured_at_its_first_step(make_trainer, monkeypatch):
    """ZeRO-3 and the meta device: neither the head nor packing can be looked at before the first forward."""
    expected, gradients = one_step(make_trainer(make_model("gemma2"), packing=True))
    for module in ("trl_irl.soft_q.head", "trl_irl.trainer.runtime.models"):
        monkeypatch.setattr(f"{module}.can_run", lambda model: False)
    loss, others = one_step(make_trainer(make_model("gemma2"), packing=True))
    torch.testing.assert_close(loss, expected)
    for name in gradients:
        torch.testing.assert_close(others[name], gradients[name])
    trainer = make_trainer(build("bloom", AutoModelForCausalLM), DOCUMENTS, packing=True)
    with pytest.raises(ValueError, match="BloomForCausalLM does not keep them apart"):
        one_step(trainer)


@pytest.mark.parametrize("multiple", [8, 16, 64])
def test_padding_behind_the_documents_decides_nothing(multiple, make_trainer):
    """Neither is a model that keeps them apart refused, nor one that does not taken."""
    keys = {"packing": True, "pad_to_multiple_of": multiple}
    trainer = make_trainer(build("qwen3", AutoModelForCausalLM), DOCUMENTS, per_device_train_batch_size=1, **keys)
    plain = make_trainer(build("qwen3", AutoModelForCausalLM), DOCUMENTS, per_device_train_batch_size=1, packing=True)
    torch.testing.assert_close(one_step(trainer)[0], one_step(plain)[0])
    with pytest.raises(ValueError, match="MambaForCausalLM does not keep them apart"):
        make_trainer(build("mamba", AutoModelForCausalLM), DOCUMENTS, **keys)
