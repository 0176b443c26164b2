"""
What r^2 does: the gradients of its three terms over a training, and V along completions before and after, on
`arithmetic`. Ten minutes on a core after the referee's base model; one seed, raw numbers in results/mechanism.json.

```bash
.venv/bin/python -m benchmarks.mechanism           # docs/assets/mechanism_*.svg too
.venv/bin/python -m benchmarks.mechanism --draw    # only the pictures
```

r = log pi + (V - gamma V'), so r^2 = (log pi)^2 + 2 log pi (V - gamma V') + (V - gamma V')^2. At some steps of a
training with r^2 the gradients of the likelihood and of the three terms are taken on 64 rows, the same each time:
their norms and their cosines.
"""

import argparse
import json
from pathlib import Path

from benchmarks.demo_picture import INK
from benchmarks.seeds import RESULTS


ROOT = Path(__file__).parents[1]
RECORD = RESULTS / "mechanism.json"
STEPS = (0, 5, 10, 20, 50, 100, 150, 200, 250, 299)
TERMS = ("(log pi)^2", "2 log pi (V - V')", "(V - V')^2")
# What is trained, and what V along completions is drawn of.
TRAINED = {
    "MLE": {"objective": "nll", "lambda_td": 0.0, "td_scale": "null", "lambda_td_warmup_steps": 0},
    "soft-Q, 0.3": {"lambda_td": 0.3},
    "value consistency, 0.3": {"objective": "value_consistency", "lambda_td": 0.3},
}


def gradients(trainer, batch: dict) -> dict[str, "object"]:
    """The likelihood's gradient, and that of each term of r^2, as one vector each."""
    import torch

    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    output = trainer.model(**batch, soft_q="values")
    terms = trainer.soft_q_terms(output)
    drop, log_pi = terms.value_drop, (-terms.nll).masked_fill(~terms.has_reward, 0)
    found = {}
    for name, values in zip(
        ("nll", *TERMS), (terms.nll, log_pi.square(), 2 * log_pi * drop, drop.square()), strict=True
    ):
        found[name] = torch.cat(
            [g.flatten() for g in torch.autograd.grad(values.sum(), parameters, retain_graph=True)]
        )
    return {name: vector / terms.scored.sum() for name, vector in found.items()}


def compared(found: dict) -> dict:
    """Norms, cosines with the likelihood and with r^2, and that of the second term with the third."""
    from torch.nn.functional import cosine_similarity

    whole = sum(found[name] for name in TERMS)
    return {
        "norm": {name: vector.norm().item() for name, vector in {**found, "r^2": whole}.items()},
        "cosine with nll": {name: cosine_similarity(found[name], found["nll"], dim=0).item() for name in TERMS},
        "cosine with r^2": {name: cosine_similarity(found[name], whole, dim=0).item() for name in TERMS},
        "cosine of the last two": cosine_similarity(found[TERMS[1]], found[TERMS[2]], dim=0).item(),
    }


def values_along(model, tokenizer, rows: list[dict]) -> list[list[float]]:
    """V at each token of the references of some rows, in nats."""
    from trl_irl.rewards.token_values import token_values
    from trl_irl.text.encode import encode_rows
    from trl_irl.text.stop_tokens import stop_token_ids

    encoded = [row.ids_and_labels for row in encode_rows(tokenizer, rows)]
    return [one.v.tolist() for one in token_values(model, encoded, stop_token_ids(model, tokenizer))]


def train(
    output_dir: Path, keys: dict, observe: bool, seed: int = 0
) -> tuple[list[dict], list[list[float]], list[list[float]]]:
    """What the gradients were at [`STEPS`], if they are observed, and V along 200 references before and after."""
    import torch
    from transformers import TrainerCallback

    from trl_irl.commands.irl import make_parser, make_trainer
    from trl_irl.demos.recipe_runs import words_of
    from trl_irl.tasks.arithmetic import make_arithmetic

    words = ["--config", str(ROOT / "recipes/arithmetic/irl.yaml"), "--model_name_or_path", str(output_dir / "base")]
    words += ["--output_dir", str(output_dir / "mechanism"), "--task_seed", str(1000 + seed)]
    words += ["--eval_strategy", "no", "--disable_tqdm", "true", "--logging_steps", "1000"]
    if seed:  # the recipe's otherwise
        words += ["--seed", str(seed)]
    trainer, _ = make_trainer(*make_parser().parse([*words, *words_of(keys)]))
    batch, seen = trainer.data_collator([trainer.train_dataset[i] for i in range(64)]), []

    class Observer(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if observe and state.global_step in STEPS:
                random = torch.get_rng_state()
                seen.append({"step": state.global_step, **compared(gradients(trainer, batch))})
                torch.set_rng_state(random)

    trainer.add_callback(Observer())
    rows = list(make_arithmetic(num_train=1, seed=1000 + seed)["test"])
    before = values_along(trainer.model, trainer.processing_class, rows)
    trainer.train()
    return seen, before, values_along(trainer.model, trainer.processing_class, rows)


def along(values: list[list[float]], positions: int = 40) -> dict:
    """V's mean over completions at each position, and its moves from token to token."""
    import numpy as np

    moves = np.concatenate([np.diff(one) for one in values])
    at = [[one[i] for one in values if len(one) > i] for i in range(positions)]
    return {
        "mean at position": [float(np.mean(one)) for one in at if len(one) >= 20],
        "mean": float(np.mean(np.concatenate(values))),
        "deviation within a completion": float(np.mean([np.std(one) for one in values])),
        "root mean square move": float(np.sqrt(np.mean(moves**2))),
        "examples": [[round(x, 3) for x in one] for one in values[:3]],
    }


def draw(found: dict) -> None:
    """Norms of the gradients over the training, and V along completions."""
    import matplotlib.pyplot as plt

    for theme, ink in INK.items():
        with plt.rc_context({"svg.hashsalt": "mechanism", "text.color": ink, "axes.labelcolor": ink}):
            picture, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
            steps = [one["step"] for one in found["gradients"]]
            for name in (*TERMS, "r^2"):
                style = {"color": ink, "linestyle": "--"} if name == "r^2" else {"marker": "o"}
                left.plot(steps, [one["norm"][name] for one in found["gradients"]], label=name, **style)
            left.set(xlabel="training step", ylabel="norm of the gradient", yscale="log")
            for name, values in found["values"].items():
                right.plot(values["mean at position"], label=name, linestyle="--" if name == "base" else "-")
            right.set(xlabel="token of the reference", ylabel="V (nats), mean of 200 completions")
            for axes in (left, right):
                axes.patch.set_alpha(0)
                axes.grid(alpha=0.25)
                axes.tick_params(colors=ink)
                for spine in axes.spines.values():
                    spine.set_color(ink)
                axes.legend(frameon=False, fontsize=9)
            path = ROOT / f"docs/assets/mechanism_{theme}.svg"
            picture.savefig(path, transparent=True, metadata={"Date": None})
            plt.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/referee"), help="the base model")
    parser.add_argument("--draw", action="store_true", help="only the pictures")
    options = parser.parse_args()
    if not options.draw:
        from trl_irl.demos.demo import pretrained_base

        pretrained_base(options.output_dir)
        found: dict = {"gradients": [], "values": {}}
        for name, keys in TRAINED.items():
            seen, before, after = train(options.output_dir, keys, observe=name.startswith("soft-Q"))
            found["gradients"] += seen
            found["values"] = {"base": along(before), **found["values"], name: along(after)}
            RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RECORD.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
