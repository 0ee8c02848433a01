#!/bin/sh
# Bring back what docker/backup.sh saved: docker/restore.sh [--replace] [--files-only] [BACKUP]. Stops what works on the
# database, restores, migrates, proves that all is whole, and only then starts everything again.
set -eu
cd "$(dirname "$0")/.."
compose="docker compose --profile tools"
$compose stop proxy jobs-api jobs-relay jobs-worker
$compose run --rm restore "$@"
$compose run --rm migrate
$compose run --rm --no-deps jobs-relay rlt-jobs check
$compose up --detach --wait --no-build
