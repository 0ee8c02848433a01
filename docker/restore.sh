#!/bin/sh
# Bring back what docker/backup.sh saved: docker/restore.sh [--replace] [--files-only] [BACKUP]. Stops what works on the
# database, restores, migrates, proves that all is whole, and only then starts everything again.
set -eu
cd "$(dirname "$0")/.."
compose="docker compose --profile tools"
$compose stop proxy jobs-api jobs-relay jobs-worker
# Backups from another machine may belong to whoever copied them, and a volume that is new here belongs to root.
own="$compose run --rm --no-deps --user 0:0 --cap-add CHOWN --cap-add DAC_READ_SEARCH --entrypoint chown"
$own backup --recursive 10001:10001 /backups
$own restore 10001:10001 /store
$compose run --rm restore "$@"
$compose run --rm migrate
$compose run --rm --no-deps jobs-relay rlt-jobs check
docker compose up --detach --wait --no-build
