"""
When does the agent's own data help, and when can it not? A small MDP that speaks token by token, in two versions.

```bash
.venv/bin/python -m benchmarks.correctable_mdp    # two minutes; raw numbers in results/correctable_mdp.json
```

A state is how far the agent has left the track (0 is on it, 6 the farthest). An action, like a token, is one of "stay"
(the distance stays), "back" (one less), "away" (one more) and, after 20 steps, the stop token. At every step a slip of
probability 0.1 turns the action into "away". The expert stays on the track and goes back to it; its demonstrations are
of a world that does not slip, so that they never show what to do off the track.

- **Correctable**: "back" does what it says.
- **Append-only**: "back" leaves the distance as it is. What was said stays said, as in a text.

Policies are the softmax of a table Q[state, action], trained by MLE, by the offline objective, and by the online one
on samples of their own in the world that slips, with this package's own losses. The score is the share of steps that
begin on the track, in that world. Off the track, demonstrations leave MLE and offline IRL with the Q they began with,
and so uniform; the online objective sees that states from which the track is far have a low value, and goes back.
Where there is no way back, there is nothing to learn from one's own data: what is left is not to leave the track, and
that the demonstrations teach. (After the toy of arXiv 2409.01369, which asks the same with other states.)

It also prints the value of the farthest state with the squared reward over the mixture and over the expert's tokens
alone (`chi2_on`): alone, nothing holds the value of states that only the agent visits, and it falls without an end.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import torch

from benchmarks.seeds import RESULTS, shown
from trl_irl.soft_q import SoftQOutput, soft_q_terms
from trl_irl.soft_q.objectives import CHI2_ON, OnlineInverseSoftQ


STAY, BACK, AWAY, STOP = range(4)
FARTHEST, STEPS, SLIP, GAMMA, LAMBDA_TD = 6, 20, 0.1, 0.9, 0.02
METHODS = ("MLE", "offline IRL", "online IRL")
LEFT = FARTHEST + 1  # the state in which 20 steps are over: only the stop token is to be said


def roll_out(q: torch.Tensor, count: int, correctable: bool, slip: float, generator: torch.Generator):
    """
    Trajectories of the policy softmax(q) from the track.

    Args:
        q (`torch.Tensor` of shape `(states, actions)`): float64.
        count (`int`), correctable (`bool`), slip (`float`), generator (`torch.Generator`)

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: states and actions, int64, of the shape `(count, STEPS + 1)`. A slip is
        the world's doing: the action is what the agent said.
    """
    state = torch.zeros(count, dtype=torch.long)
    states, actions = [], []
    policy = q[:, :STOP].softmax(-1)
    for _ in range(STEPS):
        action = torch.multinomial(policy[state], 1, generator=generator)[:, 0]
        states.append(state)
        actions.append(action)
        slips = torch.rand(count, generator=generator) < slip
        done = torch.where(slips, AWAY, action)
        move = (done == AWAY).long() - (done == BACK).long() * correctable
        state = (state + move).clamp(0, FARTHEST)
    states.append(torch.full((count,), LEFT))
    actions.append(torch.full((count,), STOP))
    return torch.stack(states, 1), torch.stack(actions, 1)


def demonstrations(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of an expert in a world that does not slip."""
    q = torch.full((LEFT + 1, 4), -1e9, dtype=torch.float64)
    q[:, STAY] = 0
    return roll_out(q, count, True, 0.0, torch.Generator().manual_seed(0))


def loss_of(q: torch.Tensor, expert, own, method: str, chi2_on: str) -> torch.Tensor:
    """The package's objective on trajectories, states taking the place of what was said before."""
    rows = [expert] if own is None else [expert, own]
    states, actions = (torch.cat([row[i] for row in rows]) for i in (0, 1))
    is_policy = torch.arange(len(states)) >= len(expert[0])
    said, v = q[states, actions], q[states].logsumexp(-1)
    terms = soft_q_terms(said, v, actions, {STOP}, gamma=GAMMA, terminal_value="zero")
    lambda_td = 0.0 if method == "MLE" else LAMBDA_TD
    tokens = [torch.tensor(row[0].numel(), dtype=torch.float64) for row in rows]
    ratios = [] if own is None else [tokens[0] / tokens[1], torch.tensor(len(expert[0]) / len(own[0]))]
    objective = OnlineInverseSoftQ(policy_weight=0.5, gamma=GAMMA, chi2_on=chi2_on)
    return objective(terms, SoftQOutput(q=said, v=v), lambda_td, is_policy, *ratios) / tokens[0]


def train(method: str, correctable: bool, seed: int, updates: int = 1000, chi2_on: str = "mixture") -> torch.Tensor:
    """Q, of shape `(states, actions)`, after so many updates on 20 demonstrations."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.zeros(LEFT + 1, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        q += 0.1 * torch.randn(q.shape, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.Adam([q], lr=0.05)
    expert = demonstrations(20)
    for _ in range(updates):
        own = roll_out(q.detach(), 20, correctable, SLIP, generator) if method == "online IRL" else None
        optimizer.zero_grad()
        loss_of(q, expert, own, method, chi2_on).backward()
        optimizer.step()
    return q.detach()


def score(q: torch.Tensor, correctable: bool, seed: int = 0, count: int = 4000) -> float:
    """The share of steps that begin on the track, in the world that slips."""
    states, _ = roll_out(q, count, correctable, SLIP, torch.Generator().manual_seed(seed + 10_000))
    return (states[:, :STEPS] == 0).double().mean().item()


def expert_q(correctable: bool) -> torch.Tensor:
    """What the expert would do off the track, too."""
    q = torch.full((LEFT + 1, 4), -1e9, dtype=torch.float64)
    q[0, STAY] = 0
    q[1:, BACK] = 0
    return q


def measure(seeds: int) -> dict[str, dict[str, list[float]]]:
    """Scores by world and by method, one number per seed."""
    found = {}
    for name, correctable in (("correctable", True), ("append-only", False)):
        found[name] = {
            method: [score(train(method, correctable, seed), correctable) for seed in range(seeds)]
            for method in METHODS
        }
        found[name]["expert"] = [score(expert_q(correctable), correctable)]
    return found


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, (world, scores) in zip(axes, found.items(), strict=True):
        means = [fmean(scores[method]) for method in METHODS]
        spread = [stdev(scores[method]) if len(scores[method]) > 1 else 0 for method in METHODS]
        bars = axis.bar(METHODS, means, yerr=spread, color=["#8c8c8c", "#4878a8", "#c44e52"], capsize=4, width=0.6)
        axis.bar_label(bars, [f"{mean:.2f}" for mean in means], label_type="center", color="white")
        axis.axhline(scores["expert"][0], color="black", linestyle="--", linewidth=1)
        axis.text(-0.42, scores["expert"][0] + 0.015, "the expert", ha="left", va="bottom", fontsize=9)
        axis.set_title(world)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("share of steps on the track")
    figure.savefig(path, dpi=150)


def falling_values() -> dict[str, dict]:
    """By `chi2_on`: V of the farthest state after so many updates, and the score after 1000."""
    found = {}
    for chi2_on in CHI2_ON:
        learned = {updates: train("online IRL", True, 0, updates, chi2_on) for updates in (500, 1000, 2000)}
        values = {str(updates): q[FARTHEST].logsumexp(-1).item() for updates, q in learned.items()}
        found[chi2_on] = {"v_of_the_farthest": values, "score": score(learned[1000], True)}
    return found


def report(found: dict) -> str:
    """A Markdown table of the scores, the best of what was learned in bold."""
    lines = [f"| world | {' | '.join(METHODS)} | the expert |", "|---|" + "---:|" * (len(METHODS) + 1)]
    for world, scores in found["scores"].items():
        cells = {name: shown(scores[name], digits=3) for name in (*METHODS, "expert")}
        best = max(METHODS, key=lambda name: fmean(scores[name]))
        if fmean(scores[best]) > 1.1 * min(fmean(scores[name]) for name in METHODS):
            cells[best] = f"**{cells[best]}**"
        lines.append(f"| {world} | {' | '.join(cells.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/correctable_mdp"), help="the picture")
    parser.add_argument("--results", type=Path, default=RESULTS / "correctable_mdp.json", help="raw numbers")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    found = {"scores": measure(options.seeds), "chi2_on": falling_values()}
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found["scores"], options.output_dir / "correctable_mdp.png")
    print(report(found))
    for chi2_on, told in found["chi2_on"].items():
        values = ", ".join(f"{value:.1f} after {updates}" for updates, value in told["v_of_the_farthest"].items())
        print(f"chi2_on {chi2_on}: V of the farthest state {values} updates; on the track {told['score']:.3f} of the "
              "time after 1000")  # fmt: skip


if __name__ == "__main__":
    main()
