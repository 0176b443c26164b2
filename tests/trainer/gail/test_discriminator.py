"""The discriminator: what it reads, its loss, its rewards, and what is left of it on disk."""

import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.conftest import make_model, make_tokenizer
from trl_irl import PreferenceReward
from trl_irl.trainer.gail.discriminator import Discriminator


ROWS = [([5, 9, 2], [7, 8, 1]), ([4], [11, 3, 20, 6, 13]), ([30, 31, 32, 33], [1])]


@pytest.fixture
def folder(tmp_path):
    def save(architecture="llama", **overrides):
        make_model(architecture, **overrides).save_pretrained(tmp_path / architecture)
        make_tokenizer().save_pretrained(tmp_path / architecture)
        return str(tmp_path / architecture)

    return save


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("lora_r", [0, 4])
def test_it_reads_as_the_model_itself_row_by_row(architecture, lora_r, folder):
    """Padding changes nothing; each token's logit is that of the row cut there."""
    found = Discriminator.load(folder(architecture), "token", lora_r)
    found.model.eval()
    logits, counts = found.logits(ROWS)
    assert counts.sum(1).tolist() == [len(completion) for _, completion in ROWS]
    for i, (prompt, completion) in enumerate(ROWS):
        for t in range(len(completion)):
            alone = found.model(input_ids=torch.tensor([prompt + completion[: t + 1]])).logits[0, 0]
            torch.testing.assert_close(logits[i, t], alone, rtol=1e-4, atol=1e-5)
    last = Discriminator(found.model, "sequence").logits(ROWS)
    torch.testing.assert_close(last[0], logits)
    assert last[1].int().argmax(1).tolist() == [len(completion) - 1 for _, completion in ROWS]
    assert last[1].sum(1).tolist() == [1, 1, 1]


def test_an_end_is_seen_where_eos_is_the_padding(folder):
    """The model's own forward reads before the EOS tokens there."""
    found = Discriminator.load(folder("gpt2"))
    ended, cut = found.rewards([([5, 6], [7, 8, 1]), ([5, 6], [7, 8])])
    assert abs(ended - cut) > 1e-3


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_losses_and_rewards(level, folder):
    found = Discriminator.load(folder(), level)
    logits, counts = (tensor.double() for tensor in found.logits(ROWS))
    is_expert = [True, False, True]
    losses, right = found.losses(ROWS, is_expert, label_smoothing=0.1)
    rewards = {form: found.rewards(ROWS, form, batch_size=2) for form in ("airl", "gail")}
    clipped = found.rewards(ROWS, "airl", clip=0.05)
    for i, expert in enumerate(is_expert):
        d = [1 / (1 + math.exp(-x)) for x, count in zip(logits[i].tolist(), counts[i], strict=True) if count]
        y = 0.9 if expert else 0.1
        expected = [-y * math.log(p) - (1 - y) * math.log(1 - p) for p in d]
        assert losses[i].item() == pytest.approx(sum(expected) / len(d), rel=1e-5)
        assert right[i].item() == pytest.approx(sum((p > 0.5) == expert for p in d) / len(d))
        airl = [math.log(p) - math.log(1 - p) for p in d]
        assert rewards["airl"][i] == pytest.approx(sum(airl) / len(d), rel=1e-4, abs=1e-6)
        assert rewards["gail"][i] == pytest.approx(sum(-math.log(1 - p) for p in d) / len(d), rel=1e-5)
        assert clipped[i] == pytest.approx(sum(max(-0.05, min(0.05, x)) for x in airl) / len(d), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("lora_r", [0, 4])
def test_saved_it_is_a_reward_model(lora_r, folder, tmp_path):
    tokenizer = make_tokenizer()
    found = Discriminator.load(folder(), lora_r=lora_r)
    with torch.no_grad():
        for weight in found.parameters.values():
            weight += 0.1 * torch.randn_like(weight)
    found.save(tmp_path / "saved", tokenizer)
    rows = [prompt + completion for prompt, completion in ROWS]
    assert PreferenceReward(str(tmp_path / "saved")).of_ids(rows) == pytest.approx(found.rewards(ROWS), rel=1e-4)


def test_refused(folder):
    with pytest.raises(ValueError, match="without a head `score`"):
        Discriminator(make_model("llama"))
    two = AutoModelForSequenceClassification.from_pretrained(folder("llama"), num_labels=2)
    with pytest.raises(ValueError, match="without a head `score` of one label"):
        Discriminator(two)
    with pytest.raises(ValueError, match="level is 'word'"):
        Discriminator.load(folder("llama"), "word")
