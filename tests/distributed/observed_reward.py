"""A reward function for `trl rloo` that also writes down what both kinds of reward said of which tokens."""

import json
import os

from trl_irl.rewards import from_environment


# As TRL's script does it: looked up when a recipe names them, after its arguments and before its policy.
soft_q, preference = from_environment.soft_q_reward, from_environment.preference_reward


def observed(prompts, completions, completion_ids, **kwargs):
    rewards = soft_q(prompts, completions, completion_ids)
    preferences = preference(prompts, completions, completion_ids)
    with open(f"{os.environ['OBSERVED']}-{os.environ['RANK']}.jsonl", "a", encoding="utf-8") as file:
        for row in zip(prompts, completion_ids, rewards, preferences, strict=True):
            file.write(json.dumps(row) + "\n")
    return rewards
