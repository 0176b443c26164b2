"""
The referee on a real pretrained model and public data: SmolLM2-135M-Instruct (`benchmarks.real_model`), all weights.

```bash
.venv/bin/python -m benchmarks.real_model_study             # E2E, in data/e2e: benchmarks/real_model_e2e.yaml
.venv/bin/python -m benchmarks.real_model_study --report
.venv/bin/python -m benchmarks.real_model_study --plan benchmarks/real_model_arithmetic.yaml # the referee's task
```

A run is a line in `results/PLAN.jsonl`; what is there is not run again.
"""

from benchmarks.referee import HERE, main


if __name__ == "__main__":
    main(HERE / "real_model_e2e.yaml", __doc__)
