"""
Every objective that `IRLConfig.objective` can name: its step, loss and all gradients, against its formula on the
model's own full logits in float64, token by token; and against TRL's own loss where TRL has it.
"""

import dataclasses

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer
from trl_irl.rewards.soft_q_settings import saved_settings
from trl_irl.soft_q.objectives import NLL, OBJECTIVES, Combined, InverseSoftQ, ZLoss


GAMMA, STOP = 0.9, 1
PLAIN = {"td_scale": None, "terminal_value": "mask"}  # the defaults, where the tests' settings have others
TD = {"lambda_td": 0.3, "td_scale": 2.0, "gamma": GAMMA}
CASES = {
    "soft_q": TD,
    "value_consistency": TD,
    "squared_nll": {"lambda_td": 0.3, "td_scale": 2.0},
    "nll": {},
    "dft": {},
    "gem": {"gem_beta": 0.6},
    "entropy": {"entropy_weight": 0.2},
    "label_smoothing": {"label_smoothing_weight": 0.3},
    "focal": {"focal_gamma": 1.5},
    "z_loss": {"z_loss_weight": 0.05},
    # Variants and combinations: the objective is what stands before the colon.
    "gem:log_sigmoid": {"gem_beta": 1.4, "gem_form": "log_sigmoid"},
    "soft_q:weights": {**TD, "td_weights": [0.5, -0.3, 2.0]},
    "soft_q:temperature": {**TD, "value_temperature": 2.5},
    "soft_q:both": {**TD, "value_temperature": 0.5, "td_weights": [0.5, 0.2, 1.0]},
    "value_consistency + z_loss": {**TD, "z_loss_weight": 0.05},
    "soft_q+squared_nll+entropy": {**TD, "entropy_weight": 0.2},
    "label_smoothing+soft_q": {**TD, "label_smoothing_weight": 0.3},
    "gem+value_consistency+entropy": {**TD, "entropy_weight": 0.2},
    "soft_q:reference": {**TD, "value_origin": "reference"},
    "soft_q:all": {**TD, "value_origin": "reference", "value_temperature": 0.5, "td_weights": [0.5, 0.2, 1.0]},
    "value_consistency:reference": {**TD, "value_origin": "reference"},
    "z_loss:reference": {"z_loss_weight": 0.05, "value_origin": "reference"},
    "label_smoothing+value_consistency+z_loss": {
        **TD,
        "value_origin": "reference",
        "label_smoothing_weight": 0.3,
        "z_loss_weight": 0.05,
    },
}


def name_of(case):
    return case.partition(":")[0]


def formula(name, keys, logits, action, next_v):
    """
    The loss of one token from its logits, float64, with torch's own functions; `next_v` gives V(s') at a temperature,
    and `None` where it is not known.
    """
    log_pi = logits.log_softmax(-1)
    nll, v, pi = -log_pi[action], logits.logsumexp(-1), log_pi[action].exp()
    temperature, (first, second, third) = keys.get("value_temperature", 1.0), keys.get("td_weights", (1, 1, 1))
    likelihoods = {
        "dft": lambda: pi.detach() * nll,
        "focal": lambda: (1 - pi) ** keys["focal_gamma"] * nll,
        "label_smoothing": lambda: cross_entropy(
            logits, torch.tensor(action), label_smoothing=keys["label_smoothing_weight"]
        ),
        "gem": lambda: gem(logits, action, keys.get("gem_beta", 0.7), keys.get("gem_form", "linear")),
    }
    parts = [part.strip() for part in name.split("+")]
    loss = next((likelihoods[part]() for part in parts if part in likelihoods), nll)
    if "entropy" in parts:
        loss = loss - keys["entropy_weight"] * torch.distributions.Categorical(logits=logits).entropy()
    if "z_loss" in parts:
        loss = loss + keys["z_loss_weight"] * v**2
    if next_v is None:
        return loss
    soft_v = temperature * (logits / temperature).logsumexp(-1)
    drop = soft_v - GAMMA * next_v(temperature)
    advantage = logits[action] - soft_v
    squares = {
        "soft_q": first * advantage**2 + second * 2 * advantage * drop + third * drop**2,
        "value_consistency": drop**2,
        "squared_nll": nll**2,
    }
    return loss + 0.3 / 2.0 * sum(squares[part] for part in parts if part in squares)


def gem(logits, action, beta, form):
    """As the paper's authors compute it: full probabilities, weights without gradient."""
    log_pi = logits.log_softmax(-1)
    weights = (logits / beta).softmax(-1).detach()
    if form == "log_sigmoid":
        weights = weights * torch.sigmoid(0.01 * (logits - logits[action])).detach()
    return -(weights * (log_pi[action] - log_pi)).sum()


def reference(model, documents, case, terminal_value, origin=None):
    """
    Loss of the documents and its gradients, by plain autograd, one document and one token at a time. With a model as
    origin, each state's logits are shifted by its V: no softmax sees it.
    """
    total, count = 0.0, 0
    for ids, labels in documents:
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        if origin is not None:
            shift = origin(input_ids=torch.tensor([ids])).logits[0].detach().double().logsumexp(-1, keepdim=True)
            logits = logits - shift
        for t in range(len(ids) - 1):
            if labels[t + 1] == -100:
                continue
            ends, follows = labels[t + 1] == STOP, t + 2 < len(ids) and labels[t + 2] != -100
            next_v = None
            if ends and terminal_value == "zero":
                next_v = lambda temperature: torch.zeros(())  # noqa: E731
            elif follows and not ends:
                next_v = lambda b, after=logits[t + 1]: b * (after / b).logsumexp(-1)  # noqa: E731
            total = total + formula(name_of(case), CASES[case], logits[t], labels[t + 1], next_v)
            count += 1
    loss = total / count
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def documents_of(tokenizer):
    found = []
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        found.append((ids, [-100] * len(prompt) + ids[len(prompt) :]))
    return found


def assert_same(step, expected):
    torch.testing.assert_close(torch.as_tensor(step[0]).double(), expected[0].double(), rtol=1e-5, atol=1e-6)
    for name, gradient in step[1].items():
        torch.testing.assert_close(
            gradient, expected[1][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_every_objective_is_tested():
    assert {name for name in CASES if name.isidentifier()} == set(OBJECTIVES)


def origin_of(case):
    return make_model("llama", seed=3) if CASES[case].get("value_origin") == "reference" else None


def keys_of(case, terminal_value):
    keys = {"objective": name_of(case), **PLAIN, **CASES[case]}
    return keys | ({"terminal_value": terminal_value} if "lambda_td" in keys else {})


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"packing": True, "per_device_train_batch_size": 100},
    ],
    ids=["padded", "accumulated", "packed"],
)
@pytest.mark.parametrize("terminal_value", ["mask", "zero"])
@pytest.mark.parametrize("case", CASES)
def test_against_its_formula(case, terminal_value, layout, make_trainer, tokenizer):
    if terminal_value == "zero" and "lambda_td" not in CASES[case]:
        pytest.skip("it has no value of the next state")
    keys, origin = {**keys_of(case, terminal_value), "logit_buffer_mb": 0.01, **layout}, origin_of(case)
    trainer = make_trainer(make_model("llama"), ref_model=origin_of(case), **keys)
    expected = reference(make_model("llama"), documents_of(tokenizer), case, terminal_value, origin)
    assert_same(one_step(trainer), expected)


@pytest.mark.parametrize("case", CASES)
def test_with_an_adapter(case, make_trainer, tokenizer):
    peft = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    trainer = make_trainer(make_model("llama"), peft_config=peft, **keys_of(case, "mask"))
    step = one_step(trainer)
    plain = trainer.model  # without the head's switch its forward is the original one
    plain.zero_grad()
    assert len(step[1]) > 1 and all("lora" in key for key in step[1])
    # Of an adapter the reference is the base it is on, which is `make_model("llama")`.
    origin = None if origin_of(case) is None else make_model("llama")
    assert_same(step, reference(plain, documents_of(tokenizer), case, "mask", origin))


@pytest.mark.parametrize("name", ["soft_q", "value_consistency", "z_loss"])
def test_values_from_a_reference_begin_at_zero(name, make_trainer):
    """Without a `ref_model` it is the model itself as it starts; whatever its values are, they count from there."""
    keys = {"objective": name, "value_origin": "reference", "max_steps": 3, "learning_rate": 1e-3}
    keys |= PLAIN | {"logging_steps": 1} | ({"lambda_td": 1.0, "terminal_value": "zero"} if name != "z_loss" else {})
    trainer = make_trainer(wild(), **keys)
    trainer.train()
    first, *_, last = (entry for entry in trainer.state.log_history if "nll" in entry)
    if name == "soft_q":
        assert first["reward_mean"] == pytest.approx(first["log_pi_mean"], rel=1e-5)
        assert abs(last["reward_mean"] - last["log_pi_mean"]) > 1e-3
    else:
        logged = "value_drop_squared" if name == "value_consistency" else "v_squared"
        assert first[logged] == pytest.approx(0, abs=1e-4) and last[logged] > 1e-3
    assert first["v_mean"] > 10 and not any(p.requires_grad for p in trainer.ref_model.parameters())


def test_the_kl_and_the_origin_share_a_reference(make_trainer):
    steps = {}
    for keys in ({"lambda_kl": 0.5}, {"value_origin": "reference"}, {"lambda_kl": 0.5, "value_origin": "reference"}):
        trainer = make_trainer(make_model("llama"), ref_model=make_model("llama", seed=3), lambda_td=0.2, **keys)
        steps[tuple(keys)] = one_step(trainer)
        logged = trainer._token_metrics["train"].pop(trainer.accelerator)
        steps[tuple(keys)] += (logged["td_loss"], logged.get("kl"))
    kl, origin, both = steps.values()
    assert origin[3] is None and kl[3] == both[3] > 0.01
    assert both[2] == pytest.approx(origin[2], rel=1e-5) and abs(both[2] - kl[2]) > 0.01
    assert both[0].item() == pytest.approx(origin[0].item() + 0.5 * kl[3], rel=1e-5)


def test_parts_of_a_sum_have_one_origin():
    with pytest.raises(ValueError, match="all must do the same"):
        Combined(0.0, (InverseSoftQ(value_origin="reference"), ZLoss()))
    assert Combined(0.0, (InverseSoftQ(value_origin="reference"), NLL())).value_origin == "reference"


def test_a_constant_that_values_are_held_near(make_trainer, tokenizer, tmp_path):
    """z_loss_center measured: V's mean over the first step's tokens, kept when a run goes on."""
    keys = {"objective": "z_loss", "z_loss_weight": 0.05, **PLAIN}
    trainer = make_trainer(make_model("llama"), z_loss_center="measured", **keys)
    loss, _ = one_step(trainer)
    values, nll = [], []
    model = make_model("llama")
    for ids, labels in documents_of(tokenizer):
        logits = model(input_ids=torch.tensor([ids])).logits[0].detach().double()
        for t, action in enumerate(labels[1:]):
            if action != -100:
                values.append(logits[t].logsumexp(-1))
                nll.append(values[-1] - logits[t, action])
    values, nll = torch.stack(values), torch.stack(nll)
    assert trainer.objective.center == pytest.approx(values.mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx((nll.mean() + 0.05 * values.var(unbiased=False)).item(), rel=1e-5)
    trainer._save(str(tmp_path / "saved"))
    other = make_trainer(make_model("llama", seed=3), z_loss_center="measured", **keys)
    other._first_step.resume(saved_settings(str(tmp_path / "saved")))
    one_step(other)
    assert other.objective.center == trainer.objective.center


def test_a_run_that_goes_on_with_another_objective_measures_anew(make_trainer, tmp_path, caplog):
    trainer = make_trainer(wild(), td_scale=None, max_steps=1)
    trainer.train()
    trainer._save(str(tmp_path / "saved"))
    same, other = (make_trainer(wild(), objective=x, td_scale=None) for x in ("soft_q", "value_consistency"))
    for one in (same, other):
        one._first_step.resume(saved_settings(str(tmp_path / "saved")))
    assert same.td_scale == trainer.td_scale > 1 and other.td_scale == 1.0
    assert "was trained with the objective soft_q, and this run has value_consistency" in caplog.text


def wild():
    """A model whose V moves by tens of nats."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(60)
    return model


def test_its_own_metrics_are_logged(make_trainer, tokenizer):
    trainer = make_trainer(
        make_model("llama"),
        objective="label_smoothing+z_loss",
        z_loss_weight=0.05,
        **PLAIN,
        learning_rate=0.0,
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "nll" in entry)
    uniform, squares = [], []
    model = make_model("llama")
    for ids, labels in documents_of(tokenizer):
        logits = model(input_ids=torch.tensor([ids])).logits[0].detach().double()
        scored = [t for t, action in enumerate(labels[1:]) if action != -100]
        uniform += (-logits.log_softmax(-1).mean(-1))[scored].tolist()
        squares += logits.logsumexp(-1)[scored].square().tolist()
    assert logged["uniform_nll"] == pytest.approx(sum(uniform) / len(uniform), rel=1e-4)
    assert logged["v_squared"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)


@pytest.mark.parametrize("name, loss_type", [("nll", "nll"), ("dft", "dft")])
def test_as_trl_has_it(name, loss_type, tokenizer, tmp_path):
    steps = []
    for trainer_class, args in (
        (SFTTrainer, SFTConfig(**settings(tmp_path, loss_type=loss_type))),
        (IRLTrainer, IRLConfig(**settings(tmp_path, objective=name, **PLAIN))),
    ):
        rows = Dataset.from_list(ROWS)
        steps.append(
            one_step(trainer_class(make_model("llama"), args=args, train_dataset=rows, processing_class=tokenizer))
        )
    (loss, gradients), ours = steps
    assert_same(ours, (torch.as_tensor(loss), gradients))


def test_what_scale_is_measured_is_that_of_what_is_squared(make_trainer):
    """Values that move by tens of nats: (V - gamma V')^2 and r^2 then differ, and each is divided by its own mean."""
    scales = {}
    for name in ("soft_q", "value_consistency", "squared_nll"):
        keys = {} if name == "squared_nll" else {"gamma": 0.5}
        trainer = make_trainer(wild(), objective=name, td_scale=None, max_steps=1, **keys)
        trainer.train()
        scales[name] = trainer.td_scale
    assert all(scale > 1 for scale in scales.values()) and len(set(scales.values())) == 3


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"objective": ["gem", "soft_q"]}, "is no name; several are written in one"),
        ({"objective": None}, "`objective=None` is no name"),
        ({"td_weights": None}, "must be three finite numbers"),
        ({"td_weights": 1.0}, "must be three finite numbers"),
        ({"objective": "mle"}, "`objective='mle'` is unknown: there is no 'mle'; there are soft_q, "),
        ({"objective": "nll+nll"}, "nll is named twice"),
        ({"objective": "soft_q+"}, "there is no ''"),
        ({"objective": "gem+dft"}, "cannot be: GEM and DFT each replace the likelihood"),
        ({"objective": "gem+soft_q", "value_temperature": 2.0}, r"cannot be: a forward has one `temperature`.*0\.7"),
        ({"objective": "nll", "gamma": 0.9}, "`gamma=0.9` means nothing to `objective='nll'`"),
        ({"objective": "squared_nll", "td_target_grad": False}, "`td_target_grad=False` means nothing to"),
        ({"objective": "value_consistency", "td_weights": [1, 0, 1]}, "`td_weights=.* means nothing to"),
        ({"td_weights": [1.0, 1.0]}, "must be three finite numbers"),
        ({"td_weights": [1.0, 1.5, 1.0]}, "without a lowest value"),
        ({"td_weights": [-1.0, 0.0, 1.0]}, "without a lowest value"),
        ({"value_temperature": 0.0}, "`value_temperature=0.0` is no temperature"),
        ({"objective": "gem", "gem_beta": -1.0}, "`gem_beta=-1.0` is no temperature"),
        (
            {"objective": "gem", "gem_form": "sigmoid"},
            "`gem_form='sigmoid'` is unknown; there are linear, log_sigmoid",
        ),
        ({"objective": "label_smoothing", "label_smoothing_weight": 1.5}, "`label_smoothing_weight=1.5` is out of"),
        ({"objective": "entropy", "entropy_weight": -0.1}, "`entropy_weight=-0.1` is out of range"),
        ({"lambda_td_decay_steps": -1}, "`lambda_td_decay_steps=-1` must be 0 or more"),
        ({"objective": "nll", "lambda_td": 0.3}, "`lambda_td=0.3` means nothing to `objective='nll'`.*: soft_q, "),
        ({"objective": "dft", "td_scale": 1.0}, "`td_scale=1.0` means nothing to"),
        ({"objective": "focal", "mle_warmup_steps": 3}, "`mle_warmup_steps=3` means nothing to"),
        ({"focal_gamma": 1.0}, "`focal_gamma=1.0` means nothing to `objective='soft_q'`.*one that has it: focal"),
        ({"objective": "z_loss", "z_loss_weight": -1.0}, "`z_loss_weight=-1.0` is out of range"),
        ({"objective": "focal", "focal_gamma": float("nan")}, "`focal_gamma=nan` is out of range"),
        ({"value_origin": "base"}, "`value_origin='base'` is unknown; there are zero, reference"),
        ({"objective": "gem", "value_origin": "reference"}, "`value_origin=reference` means nothing to .*: soft_q, "),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        IRLConfig(**settings(tmp_path, **{**PLAIN, **keys}))


def test_without_a_temporal_difference_term_none_is_told(make_trainer, tmp_path):
    assert IRLConfig(**settings(tmp_path, objective="nll", lambda_td=0.0, **PLAIN)).lambda_td == 0.0
    trainer = make_trainer(objective="z_loss", z_loss_weight=0.1, **PLAIN)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "nll" in entry)
    assert logged["lambda_td"] == 0 and logged["loss"] > logged["nll"]


def test_a_copy_of_the_arguments_with_another_objective_has_the_weight(tmp_path):
    likelihood = IRLConfig(**settings(tmp_path, objective="nll", **PLAIN))
    assert likelihood.lambda_td_in_use == 0 == likelihood.lambda_td_at(2)
    again = dataclasses.replace(likelihood, objective="soft_q")
    assert again.lambda_td_in_use == again.lambda_td_at(2) == IRLConfig(**settings(tmp_path)).lambda_td > 0


def test_online_has_one_objective(tmp_path):
    with pytest.raises(ValueError, match="`objective='dft'` has no online form"):
        OnlineIRLConfig(**settings(tmp_path, objective="dft", **PLAIN))


def test_lambda_td_rises_and_falls(tmp_path):
    keys = {"lambda_td": 0.8, "mle_warmup_steps": 2, "lambda_td_warmup_steps": 4, "lambda_td_decay_steps": 2}
    args = IRLConfig(**settings(tmp_path, **keys))
    assert [args.lambda_td_at(step) for step in range(9)] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 0.4, 0, 0])
    args = IRLConfig(**settings(tmp_path, lambda_td=0.8, lambda_td_decay_steps=4))
    assert [args.lambda_td_at(step) for step in range(6)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])


def test_a_schedule_in_shares_of_the_run(make_trainer, tmp_path):
    """As transformers' `warmup_steps`: below 1 a share, whatever the number of processes makes of the steps."""
    names = ("mle_warmup_steps", "lambda_td_warmup_steps", "lambda_td_decay_steps")
    shares = IRLConfig(**settings(tmp_path, lambda_td=0.8, **dict(zip(names, (0.2, 0.4, 0.15), strict=True))))
    steps = IRLConfig(**settings(tmp_path, lambda_td=0.8, **dict(zip(names, (2, 4, 2), strict=True))))
    assert shares.schedule_of(10) == (2, 4, 2) == steps.schedule_of() and shares.schedule_of(100) == (20, 40, 15)
    assert [shares.lambda_td_at(i, 10) for i in range(10)] == [steps.lambda_td_at(i) for i in range(10)]
    with pytest.raises(ValueError, match="needs the run's `max_steps`"):
        shares.lambda_td_at(0)
    trainer = make_trainer(max_steps=4, lambda_td=0.8, mle_warmup_steps=0.25, lambda_td_warmup_steps=0.5)
    trainer.train()
    assert [entry["lambda_td"] for entry in trainer.state.log_history if "nll" in entry] == pytest.approx(
        [0, 0.4, 0.8, 0.8]
    )
    for wrong in (-0.1, 1.5, float("nan"), float("inf")):
        for name in names:
            with pytest.raises(ValueError, match=f"`{name}={wrong}` must be 0 or more, and whole, or below 1"):
                IRLConfig(**settings(tmp_path, **{name: wrong}))


@pytest.mark.parametrize(
    "keys, objective, message",
    [
        ({"objective": "dft"}, NLL(), "Both `objective` and `args.objective='dft'`"),
        ({"lambda_kl": 0.1}, NLL(), "`args.lambda_kl=0.1` makes the reference.*`lambda_kl=0.0`"),
        ({"td_weights": [1.0, 0.0, 1.0]}, NLL(), "`td_weights=.* an objective was passed"),
        ({"value_origin": "reference"}, NLL(), "`value_origin=.* an objective was passed"),
        ({}, NLL(lambda_kl=0.1), "`args.lambda_kl=0.0` makes the reference.*`lambda_kl=0.1`"),
    ],
)
def test_an_objective_that_is_passed_agrees_with_the_arguments(keys, objective, message, tokenizer, tmp_path):
    args = IRLConfig(**settings(tmp_path, **PLAIN, **keys))
    with pytest.raises(ValueError, match=message):
        IRLTrainer(make_model("llama"), args, train_dataset=Dataset.from_list(ROWS), objective=objective)


@pytest.mark.parametrize(
    "keys", [{"td_weights": [1.0, 0.0, 0.0]}, {"value_temperature": 0.2}, {"value_origin": "reference"}]
)
def test_online_has_no_variants(keys, tmp_path):
    with pytest.raises(ValueError, match=f"`{next(iter(keys))}=.*has no online form"):
        OnlineIRLConfig(**settings(tmp_path, **keys))


def test_what_is_saved_is_of_the_objective_that_was_passed(make_trainer, tmp_path):
    trainer = make_trainer(make_model("llama"), trainer_objective=InverseSoftQ(value_temperature=0.5))
    trainer._save(str(tmp_path / "saved"))
    saved = saved_settings(str(tmp_path / "saved"))
    assert (saved["objective"], saved["value_temperature"]) == ("InverseSoftQ", 0.5)


@pytest.mark.parametrize(
    "keys, warns",
    [
        ({"objective": "soft_q", "td_weights": [1.0, 0.0, 0.0], "td_scale": None, "lambda_td": 1.0}, False),
        ({"objective": "soft_q"}, True),
        ({"objective": "soft_q+nll"}, True),
        ({"objective": "value_consistency"}, True),
        ({"objective": "z_loss", "z_loss_weight": 1.0, **PLAIN}, False),  # it has no such term
    ],
)
def test_a_term_that_drowns_the_likelihood_is_named_whatever_it_squares(keys, warns, make_trainer, caplog):
    make_trainer(wild(), max_steps=1, **{"td_scale": 1.0, **keys}).train()
    said = [record.getMessage() for record in caplog.records if "temporal-difference term is" in record.getMessage()]
    assert len(said) == warns
    if keys["objective"] == "value_consistency":
        assert "value_drop_squared" in said[0]


def test_online_takes_no_offline_objective(tokenizer, tmp_path):
    args = OnlineIRLConfig(**settings(tmp_path))
    with pytest.raises(TypeError, match="`objective` is a `NLL`, which does not know the policy's rows"):
        OnlineIRLTrainer(make_model("llama"), args, train_dataset=Dataset.from_list(ROWS), objective=NLL())
