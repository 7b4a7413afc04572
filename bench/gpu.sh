#!/usr/bin/env bash
# Some minutes on one GPU: as many small runs of a study as fit, side by side; packed results in OUT.
# bash bench/gpu.sh DATA OUT [MINUTES] [RUNS AT A TIME] [SPEC]
set -eu
data=$1 out=$2 minutes=${3:-8} jobs=${4:-$(nproc)} spec=${5:-configs/study/cifar10_gpu.yaml}
name=$(basename "$spec" .yaml) python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=1 # else each run starts as many as there are cores
mkdir -p "$out"

# with NVIDIA's MPS, kernels of several processes run at the same time; without it they take turns
if command -v nvidia-cuda-mps-control >/dev/null; then
  export CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
  export CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
  trap 'echo quit | nvidia-cuda-mps-control || true' EXIT
  nvidia-cuda-mps-control -d || true
  if timeout 40 "$python" -c 'import torch; print(torch.ones(9, device="cuda").sum())'; then
    echo 'several runs at once share the GPU by MPS'
  else
    echo 'no MPS: runs take turns on the GPU'
    echo quit | nvidia-cuda-mps-control || true
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    trap - EXIT
  fi
fi

packed=()
lock=$name/spec.lock.yaml
if [ -e "results/studies/$lock" ] && [ ! -e "studies/$lock" ]; then packed=(--packed); fi
# what has not ended by then is stopped (124), and would go on from its checkpoint
set +e
timeout "${minutes}m" "$python" -m study run "$spec" --dir "studies/$name" --set "data.root=$data" \
  --jobs "$jobs" --minutes "$minutes" "${packed[@]}" 2>&1 | tee "$out/$name.log"
status=${PIPESTATUS[0]}
set -e
case $status in 0 | 124 | 130 | 143) ;; *) echo "the study failed ($status): nothing is packed"; exit "$status" ;; esac
"$python" -m study pack "studies/$name"
tar czf "$out/$name.tgz" -C results/studies "$name"
