#!/bin/bash
# Put a backup back: the database into an empty one, and the files that the store lacks. Nothing may work on either
# meanwhile. Afterwards: rlt-jobs migrate, rlt-jobs check, and then start what was stopped.
#
#   restore.sh [--replace] [--files-only] [BACKUP]
#     BACKUP        its name in BACKUPS; the newest if left out
#     --replace     empty the database first, which is refused otherwise
#     --files-only  of a store that lost files; the database stays
#
# BACKUPS, STORE and RLT_JOBS_DATABASE_URL as for backup.sh. Exit code 0: everything is back.
set -euo pipefail

BACKUPS=${BACKUPS:-/backups}
STORE=${STORE-/store}
case $STORE in s3://*) STORE= ;; esac
SECRET=${RLT_SECRETS_DIR:-/run/secrets}/rlt_jobs_database_url
DATABASE=${RLT_JOBS_DATABASE_URL:-$(cat "$SECRET")}
DATABASE=${DATABASE/+psycopg/}
# Ids that were given out after the backup would be given again: whoever noted one would find another build or version.
AHEAD=10000

fail() {
    echo "restore: error: $*" >&2
    exit 1
}

ask() {
    psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --command="$1" "$DATABASE"
}

list() {
    (cd "$1" && find . -type f ! -name '*.part' -printf '%P\t%s\n') | LC_ALL=C sort
}

empty_database() {
    ask "DO \$\$
DECLARE statement text;
BEGIN
    FOR statement IN
        SELECT format('DROP TABLE IF EXISTS public.%I CASCADE', tablename) FROM pg_tables WHERE schemaname = 'public'
        UNION ALL SELECT format('DROP TYPE IF EXISTS public.%I CASCADE', typname) FROM pg_type
            WHERE typtype = 'e' AND typnamespace = 'public'::regnamespace
    LOOP
        EXECUTE statement;
    END LOOP;
END \$\$"
}

restore_database() {
    others=$(ask "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rlt%'")
    [ "$others" = 0 ] || fail "$others connections of the service are open: stop the API, the relays and the workers first"
    tables=$(ask "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    if [ "$tables" != 0 ]; then
        [ "$replace" = yes ] || fail "the database has $tables tables: give --replace to put the backup in their place"
        empty_database
    fi
    pg_restore --exit-on-error --single-transaction --no-owner --no-privileges --dbname="$DATABASE" "$from/database.dump"
    for table in builds datasets versions; do
        ask "SELECT setval(pg_get_serial_sequence('$table', 'id'), nextval(pg_get_serial_sequence('$table', 'id')) + $AHEAD)" >/dev/null
    done
    ask "ANALYZE"  # a database without statistics plans badly, and its first hour is a busy one
}

restore_files() {
    [ -d "$STORE" ] || fail "$STORE is no folder"
    LC_ALL=C comm -13 <(list "$STORE") <(list "$from/files") | cut -f1 |
        tar --create --directory "$from/files" --verbatim-files-from --files-from=- |
        tar --extract --directory "$STORE"
    sync --file-system "$STORE"
}

replace=no
database=yes
backup=
for argument in "$@"; do
    case $argument in
        --replace) replace=yes ;;
        --files-only) database=no ;;
        -*) fail "unknown option $argument" ;;
        *) backup=$argument ;;
    esac
done
if [ -z "$backup" ]; then
    backup=$(find "$BACKUPS" -mindepth 1 -maxdepth 1 -type d -name '20*' -printf '%f\n' | LC_ALL=C sort | tail -n 1)
fi
from=$BACKUPS/$backup
[ -n "$backup" ] && [ -f "$from/database.dump" ] || fail "there is no backup ${backup:-at all} in $BACKUPS"

if [ -n "$STORE" ]; then restore_files; fi  # before the rows that name them
if [ "$database" = yes ]; then restore_database; fi
echo "restore: $backup is back; now: rlt-jobs migrate, rlt-jobs check"
