#!/bin/sh
# Secrets from the folder that `python -m rlt_service.secrets FOLDER` makes: one of each service, rlt-jobs, rlt-teacher, …
# Again after a change: servers read keys anew by themselves. --print shows them instead of applying them.
set -eu
folder=${1:?usage: create-secrets.sh FOLDER [--print]}
for service in jobs teacher reward postgres redis; do
    kubectl create secret generic "rlt-$service" --namespace=rlt --from-file="$folder/$service" --dry-run=client --output=yaml
    echo ---
done | if [ "${2:-}" = --print ]; then cat; else kubectl apply --filename=-; fi
