#!/usr/bin/env bash
# On a machine with a GPU and nothing else: tests of the kernels, tests of the trainers, benchmarks and a profile, in at
# most 9 minutes. Needs torch, triton, pyarrow, pandas, pytest, and .whl/ from prepare.sh. What fails does not stop the
# rest; a step that finds too little time left is not begun. Without a GPU the kernels run in Triton's interpreter and
# the benchmarks small, to see that everything here works.
#
#   benchmarks/gpu/run.sh                # what was found: outputs/gpu/summary.jsonl, *.json, *.log
#   OUT=/somewhere BUDGET=300 benchmarks/gpu/run.sh
#
# Exits with 1 if a step failed or was not begun.
set -uo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
out=${OUT:-outputs/gpu}
budget=${BUDGET:-540}
mkdir -p "$out"
rm -f "$out"/*.json "$out"/*.jsonl "$out"/*.log
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl || exit 1
export PYTHONPATH="$site:$PWD" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=0

# step NAME SECONDS COMMAND...: its output in NAME.log, its outcome as a line of summary.jsonl
step() {
    local name=$1 limit=$2 begun=$SECONDS status
    shift 2
    local left=$((budget - SECONDS))
    if [ "$left" -lt 15 ]; then
        status=null
    else
        timeout --kill-after 5 "$((limit < left ? limit : left))" "$@" >"$out/$name.log" 2>&1
        status=$?
    fi
    [ "$status" = 0 ] || failed=1
    printf '{"step": "%s", "status": %s, "seconds": %s}\n' "$name" "$status" "$((SECONDS - begun))" |
        tee -a "$out/summary.jsonl"
}

step machine 30 "$python" - <<'PYTHON'
import platform
from importlib.metadata import version

import torch

for name in ("torch", "triton", "trl", "transformers", "accelerate", "peft", "datasets"):
    print(name, version(name))
print(platform.platform(), torch.get_num_threads(), "threads")
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))
PYTHON

tests=("$python" -m pytest -q -p no:cacheprovider --timeout 120)
if "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    head=("$python" benchmarks/head.py --device cuda --dtype bfloat16 --json "$out/head.json")
    irl_step=("$python" benchmarks/irl_step.py --device cuda)
    step cuda 120 "${tests[@]}" tests/soft_q/test_cuda.py
    step head_limit 90 "${head[@]}" --tokens 8192 --hidden 4096 --vocab 151936
    step head_small 60 "${head[@]}" --tokens 2048 --hidden 896 --vocab 151936
    step irl_step 120 "${irl_step[@]}" --model-size 0.5b --batch-size 8 --length 1024 --json "$out/irl_step.json"
    step irl_step_small 60 "${irl_step[@]}" --vocab 32000 151936 --variants IRLTrainer SFTTrainer --json "$out/irl_step_small.json"
    step irl_step_auto 40 "${irl_step[@]}" --model-size 0.5b --batch-size 8 --length 512 --variants IRLTrainer \
        --logit-buffer-mb auto --json "$out/irl_step_auto.json"
    step profile 60 "$python" benchmarks/head.py --device cuda --dtype bfloat16 --tokens 8192 --hidden 4096 \
        --vocab 151936 --heads soft-Q --profile "$out/profile.log"
    step trainers 150 "${tests[@]}" -n 8 tests/trainer/irl/test_trainer.py tests/trainer/irl/test_objectives.py
else
    # Triton 3.6's interpreter needs numpy < 2.4.
    step interpreted 120 "${tests[@]}" tests/soft_q/test_triton.py
    step head 60 "$python" benchmarks/head.py --calls 2 --json "$out/head.json"
    step irl_step 120 "$python" benchmarks/irl_step.py --vocab 32000 --steps 2 --warmup 1 --json "$out/irl_step.json"
    step profile 60 "$python" benchmarks/head.py --calls 2 --heads soft-Q --profile "$out/profile.log"
    step trainers 200 "${tests[@]}" -n 2 tests/trainer/irl/test_trainer.py
fi
exit "$failed"
