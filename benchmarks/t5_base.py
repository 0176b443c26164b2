"""
A T5 of 2 M weights, pretrained on `arithmetic`'s stories and sums: what the study of encoder-decoder models begins
with (`benchmarks/t5.yaml`).

```bash
.venv/bin/python -m benchmarks.referee --plan benchmarks/t5.yaml
```
"""

import re
from pathlib import Path

from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, set_seed


def pretrained_t5(output_dir: Path) -> Path:
    """The model in `output_dir / "base"`, made if it is not there: a story is read, and its sums are written."""
    from datasets import Dataset

    from trl_irl import Seq2SeqIRLConfig, Seq2SeqIRLTrainer
    from trl_irl.demos.demo import build_base_model
    from trl_irl.tasks.arithmetic import make_arithmetic_facts

    base = output_dir / "base"
    if (base / "trainer_state.json").is_file():
        return base
    output_dir.mkdir(parents=True, exist_ok=True)
    build_base_model(output_dir / "words")  # for its tokenizer
    tokenizer = AutoTokenizer.from_pretrained(output_dir / "words")
    set_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=384,
            num_layers=4,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            dropout_rate=0.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    texts = make_arithmetic_facts(num_train=40_000)["train"]["text"]
    rows = [re.match(r"(.*?\.) (\d+ [-+*] .*)", text).groups() for text in texts]
    args = Seq2SeqIRLConfig(
        str(base),
        objective="nll",
        lambda_td=0.0,
        max_steps=2500,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        logging_steps=100,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        seed=0,
    )
    trainer = Seq2SeqIRLTrainer(
        model,
        args,
        train_dataset=Dataset.from_list([{"prompt": story, "completion": sums} for story, sums in rows]),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(base))
    trainer.save_state()
    return base
