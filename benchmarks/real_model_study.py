"""
The referee on a real pretrained model and public data: SmolLM2-135M-Instruct (`benchmarks.real_model`), all weights.

```bash
.venv/bin/python -m benchmarks.real_model_study                                          # E2E, in data/e2e
.venv/bin/python -m benchmarks.real_model_study --plan benchmarks/real_model_arithmetic.yaml
.venv/bin/python -m benchmarks.real_model_study --plan benchmarks/real_model_gsm8k.yaml   # the Hub's, or in data/gsm8k
.venv/bin/python -m benchmarks.real_model_study --report
```

A run takes ten to thirty minutes of a core and is a line in `results/PLAN.jsonl`; what is there is not run again.
"""

from benchmarks.referee import HERE, main


if __name__ == "__main__":
    main(HERE / "real_model_e2e.yaml", __doc__)
