#!/usr/bin/env bash
# The checks and benchmarks that need an NVIDIA GPU, in about five minutes; results go to $1 (default: runs/gpu).
#
#     pip install -e '.[cuda,dev]' && bash benchmarks/gpu.sh
#
# 1. cuDNN's attention against the reference. 2. Pretraining, LoRA and PPO at the width of LLaMA 7B: the predicted
# against the measured peak of memory, seconds of a step, share of the peak. 3. Decoding against memory's bandwidth.
set -u
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
mkdir -p "$out"
python=${PYTHON:-python}
failed=0
step() {  # step NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" > "$out/$name.out" 2> "$out/$name.err" || { failed=1; echo "$name failed: $out/$name.err"; }
    tail -n 1 "$out/$name.out"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
step attention 60 "$python" -m pytest tests/model/test_attention.py -q -k gpu
for case in pretrain lora ppo; do
    step "$case" 70 "$python" benchmarks/plan_measured.py --case="$case"
done
step decode 60 "$python" benchmarks/decode_random.py
exit "$failed"
