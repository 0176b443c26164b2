"""The discriminator's training: it learns what there is to learn and no more, whatever the batches."""

import math
import random

import pytest
import torch
from accelerate import Accelerator

from tests.conftest import make_model, make_tokenizer
from trl_irl import GAILConfig
from trl_irl.trainer.gail.discriminator import Discriminator
from trl_irl.trainer.gail.discriminator_training import Adversary


ROWS = [([5, 9, 2], [7, 8, 1]), ([4], [11, 3, 20, 6, 13]), ([30, 31, 32, 33], [1])]


@pytest.fixture
def folder(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


class HalfPrecision(Accelerator):
    """As on a GPU with `fp16`, which the Trainer refuses on a CPU."""

    mixed_precision = "fp16"

    def autocast(self):
        return torch.autocast("cpu", dtype=torch.float16)


def make_adversary(folder, accelerator=Accelerator, **keys):
    args = GAILConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        discriminator_learning_rate=3e-3,
        per_device_train_batch_size=16,
        **keys,
    )
    return Adversary(Discriminator.load(folder, args.discriminator_level), args, accelerator(cpu=True))


def sample(rng, words, count):
    return [([rng.randrange(40, 60)], [rng.choice(words) for _ in range(5)]) for _ in range(count)]


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_learns_to_separate_what_differs(level, folder):
    torch.manual_seed(0)
    rng = random.Random(0)
    adversary = make_adversary(folder, discriminator_level=level)
    first = adversary.update(sample(rng, range(10, 20), 32), sample(rng, range(15, 25), 32))
    for _ in range(60):
        last = adversary.update(sample(rng, range(10, 20), 32), sample(rng, range(15, 25), 32))
    # Half of the tokens are of both sides; that all five of a row are is rare (1 in 32, on either side).
    least = 0.9 if level == "sequence" else 0.75
    assert first["discriminator_loss"] > 0.6 > 0.55 > last["discriminator_loss"]
    assert min(last["discriminator_accuracy_expert"], last["discriminator_accuracy_policy"]) > least


def test_is_right_half_the_time_where_nothing_differs(folder):
    """Both sides from one model; each row is seen before an update with it."""
    torch.manual_seed(0)
    rng = random.Random(0)
    adversary = make_adversary(folder)
    found = [adversary.update(sample(rng, range(10, 30), 32), sample(rng, range(10, 30), 32)) for _ in range(60)]
    accuracy = [sum(step[f"discriminator_accuracy_{side}"] for side in ("expert", "policy")) / 2 for step in found]
    mean = sum(accuracy[20:]) / 40
    assert abs(mean - 0.5) < 0.03  # 2,560 rows: three standard deviations
    assert sum(step["discriminator_loss"] for step in found[-10:]) / 10 > 0.67  # log 2 is 0.693


def test_both_sides_weigh_the_same_whatever_their_numbers(folder):
    gradients = []
    for copies in (1, 3):
        torch.manual_seed(0)
        adversary = make_adversary(folder, discriminator_max_grad_norm=0.0, discriminator_batch_size=3)
        adversary.optimizer.register_step_pre_hook(
            lambda *_, weights=adversary.weights: gradients.append(
                [weight.grad.clone() for weight in weights.values()]
            )
        )
        adversary.update(ROWS[:1], ROWS[1:] * copies)
    for one, three in zip(*gradients, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-7)


def test_update_ratio(folder):
    rng = random.Random(0)
    for ratio, expected in ((0.5, [0, 1, 0, 1]), (1.0, [1, 1, 1, 1]), (3.0, [3, 3, 3, 3])):
        adversary = make_adversary(folder, discriminator_update_ratio=ratio)
        steps = []
        adversary.optimizer.register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        for count in expected:
            before = len(steps)
            measured = adversary.update(sample(rng, range(9), 6), sample(rng, range(9), 6))
            assert len(steps) - before == count
            assert bool(measured) == bool(count)


def gradients_of(adversary, expert, policy):
    """What an update's optimiser is given."""
    found = {}
    adversary.optimizer.register_step_pre_hook(
        lambda *_: found.update({name: weight.grad.clone() for name, weight in adversary.weights.items()})
    )
    adversary.update(expert, policy)
    return found


def test_a_demonstration_weighs_as_often_as_it_stands_there_and_is_read_once(folder, monkeypatch):
    """As where a prompt's four completions lie on two ranks, three with one of another prompt."""

    def gradients(*expert):
        torch.manual_seed(0)
        return gradients_of(make_adversary(folder, discriminator_max_grad_norm=0.0), expert, [])

    several, other = gradients(ROWS[0]), gradients(ROWS[1])
    read, losses = [], Discriminator.losses
    monkeypatch.setattr(
        Discriminator, "losses", lambda self, rows, *args: read.extend(rows) or losses(self, rows, *args)
    )
    found = gradients(*[ROWS[0]] * 3, ROWS[1])
    assert len(read) == 2
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, 0.75 * several[name] + 0.25 * other[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0])
def test_more_updates_than_demonstrations_have_both_sides(ratio, folder):
    """Eight completions of one prompt: each update has its share of the expert's and the policy's."""
    torch.manual_seed(0)
    adversary = make_adversary(folder, discriminator_update_ratio=ratio, label_smoothing=0.0)
    for _ in range(30):
        measured = adversary.update([ROWS[0]] * 8, [ROWS[0]] * 8)  # nothing to tell the sides apart by
    # Both are judged alike, so that one is right where the other is wrong; an update without the expert counts as 0.
    assert measured["discriminator_accuracy_expert"] + measured["discriminator_accuracy_policy"] == pytest.approx(1.0)
    with torch.no_grad():
        (reward, *_) = adversary.discriminator.rewards([ROWS[0]], "airl", None, 1)
    assert abs(reward) < 0.2 and measured["discriminator_loss"] == pytest.approx(math.log(2), abs=0.02)
    few = make_adversary(folder, discriminator_update_ratio=5.0)
    assert all(map(math.isfinite, few.update(ROWS[:1], ROWS[1:2]).values()))  # one row, and so one update


@pytest.mark.parametrize("scaled", [True, False])
def test_half_precision_loses_no_gradients(scaled, folder):
    """Against float32. Each token has a small share in a mean over long completions: without the scaler it is lost."""
    rng = random.Random(0)
    sides = [[([5], rng.choices(words, k=100)) for _ in range(64)] for words in (range(10, 20), range(15, 25))]
    found = []
    for accelerator in (Accelerator, HalfPrecision):
        torch.manual_seed(0)
        keys = {"discriminator_max_grad_norm": 0.0, "discriminator_level": "token"}
        adversary = make_adversary(folder, accelerator, **keys)
        if not scaled:
            adversary.scaler = torch.amp.GradScaler("cpu", enabled=False)
        found.append(gradients_of(adversary, *sides))
    exact, half = (torch.cat([x.flatten() for x in one.values()]) for one in found)
    error = (half - exact).norm() / exact.norm()
    assert error < 0.002 if scaled else error > 0.01


def test_a_step_that_overflows_is_left_out(folder):
    rng = random.Random(0)
    sides = [sample(rng, words, 16) for words in (range(10, 20), range(15, 25))]
    adversary = make_adversary(folder, HalfPrecision)
    before = {name: weight.detach().clone() for name, weight in adversary.weights.items()}
    adversary.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    adversary.update(*sides)
    assert all(torch.equal(weight, before[name]) for name, weight in adversary.weights.items())
    assert adversary.scaler.get_scale() == 2.0**39
    again = make_adversary(folder, HalfPrecision)
    again.load_state_dict(adversary.state_dict())
    assert again.scaler.get_scale() == 2.0**39
    for _ in range(40):
        again.update(*sides)
    assert not all(torch.equal(weight, before[name]) for name, weight in again.weights.items())
    with torch.no_grad():
        next(iter(again.weights.values())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="discriminator_learning_rate"):
        for _ in range(100):
            again.update(*sides)
