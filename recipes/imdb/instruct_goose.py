"""
InstructGoose's README example on TRL: GPT-2 continues the openings of IMDb reviews, and PPO makes the continuations
score higher with a reward model.

```bash
pip install ".[ppo]"    # in the clone
python recipes/imdb/instruct_goose.py --reward_model outputs/imdb/reward    # of `trl reward`
```

Without `--reward_model` it is GPT-2 with a new, untrained head, as in InstructGoose's README: it shows that the parts
fit together, and no more.
"""

import argparse
import json

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, set_seed

from trl_irl.rewards.frozen_models import load_language_model
from trl_irl.rewards.preference_reward import load_scorer
from trl_irl.trainer.ppo.ppo_reward_model import read_as_trained
from trl_irl.trainer.ppo.trainer import PPOConfig, PPOTrainer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--reward_model")
    parser.add_argument("--dataset", default="stanfordnlp/imdb", help="a Hub id, or a JSON Lines file with `text`")
    parser.add_argument("--total_episodes", type=int, default=10_000)
    parser.add_argument("--output_dir", default="outputs/imdb/ppo")
    options = parser.parse_args(argv)

    # Step 1: the dataset. A prompt is the first 16 tokens of a review.
    is_file = options.dataset.endswith(".jsonl")
    source = {"path": "json", "data_files": options.dataset} if is_file else {"path": options.dataset}
    dataset = load_dataset(**source, split="train")
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    if tokenizer.pad_token in (
        None,
        tokenizer.eos_token,
    ):  # PPO tells the end of a response by its padding, so it must not be EOS
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    prompts = dataset.map(
        lambda row: {"input_ids": tokenizer(row["text"])["input_ids"][:16]}, remove_columns=dataset.column_names
    )

    # Step 2: the models. The value network starts from the reward model's weights.
    set_seed(0)
    policy = load_language_model(options.model)
    if len(tokenizer) > policy.config.vocab_size:
        policy.resize_token_embeddings(len(tokenizer))
    rewarding = options.reward_model or options.model
    new_head = options.reward_model is None
    reward_model, value_model = (load_scorer(rewarding, "auto", "reward_model", new_head) for _ in range(2))

    reward_model = read_as_trained(reward_model, tokenizer.eos_token_id)

    # Step 3: agent and reference model. PPOTrainer joins policy and value network, and copies the policy.
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=options.output_dir,
            total_episodes=options.total_episodes,
            per_device_train_batch_size=4,
            response_length=20,
            cliprange=0.1,  # RLHFConfig(epsilon=0.1)
            vf_coef=0.1,  # RLHFConfig(vf_coef=0.1)
            kl_coef=0.05,  # in the place of RLHFConfig(ent_coef=0.01): it keeps the policy near the reference
            learning_rate=3e-6,
            temperature=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=prompts,
    )

    # Step 4: train it.
    trainer.train()
    trainer.save_model(options.output_dir)
    if trainer.args.should_save:
        scores = [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]
        print(json.dumps({"first": scores[0], "last": scores[-1], "saved": options.output_dir}))


if __name__ == "__main__":
    main()
