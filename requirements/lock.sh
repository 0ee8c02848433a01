#!/usr/bin/env bash
# Resolve requirements/*.in into locks. The CUDA packages that torch pulls in on some machines are left to torch's own
# metadata: a CPU build of torch does not want them, and pip adds them by itself where the wheel asks for them. Our own
# packages, which the locks of images are made from, are left out as well: they are installed from this checkout.
set -euo pipefail
cd "$(dirname "$0")"
skip=()
for name in triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
  nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
  nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx \
  rlt-client rlt-service rlt-jobs rlt-reward-server rlt-teacher-server rlt-trainer; do
  skip+=(--no-emit-package "$name")
done
for name in "${@:-dev}"; do
  extra=()
  for kind in overrides excludes; do
    if [ -e "$name.$kind" ]; then extra+=("--$kind" "$name.$kind"); fi
  done
  uv pip compile "$name.in" --python-version 3.11 --no-emit-index-url --no-header --no-annotate "${skip[@]}" "${extra[@]}" --quiet --output-file "$name.txt"
done
