#!/bin/bash
# One backup of the database and of the store's files that it names, taken while builds run: a folder of its own in
# BACKUPS, complete by itself, in which files that the one before has too are the same files (hard links).
#
# The order: files, database, files. A file is whole before a row names it and goes after its row, so what the dump names
# was there before it (first copy) or came meanwhile (second copy). Files that were gone before the dump are not kept.
#
#   BACKUPS  where to; on another disk than what it saves
#   STORE    the store's folder; empty where it is a bucket, which keeps versions of its own
#   KEEP     how many backups stay
#   RLT_JOBS_DATABASE_URL, or the secret file of that name: the database
#
# Needs pg_dump of the server's version or a newer one, GNU coreutils, find, tar, flock. Exit code 0: it is whole.
set -euo pipefail
umask 077

BACKUPS=${BACKUPS:-/backups}
STORE=${STORE-/store}
case $STORE in s3://*) STORE= ;; esac
KEEP=${KEEP:-14}
SECRET=${RLT_SECRETS_DIR:-/run/secrets}/rlt_jobs_database_url
DATABASE=${RLT_JOBS_DATABASE_URL:-$(cat "$SECRET")}
DATABASE=${DATABASE/+psycopg/}

fail() {
    echo "backup: error: $*" >&2
    exit 1
}

# Names and sizes of the whole files below a folder. What writers have not finished ends in .part.
list() {
    (cd "$1" && find . -type f ! -name '*.part' -printf '%P\t%s\n' 2>/dev/null || true) | LC_ALL=C sort
}

# Copy those of STORE that the backup lacks. One that is removed while it is copied is named by nothing any more.
copy_new() {
    list "$STORE" >"$new/.there"
    LC_ALL=C comm -23 "$new/.there" <(list "$new/files") | cut -f1 |
        tar --create --directory "$STORE" --verbatim-files-from --files-from=- --ignore-failed-read --warning=no-failed-read |
        tar --extract --directory "$new/files"
}

# Names that the last backup has with the same size as the store: names are used once, so they are the same files.
link_old() {
    list "$STORE" >"$new/.there"
    list "$last/files" >"$new/.last"
    [ -s "$new/.there" ] || [ ! -s "$new/.last" ] || fail "$STORE is empty, and $last has files: is it mounted?"
    LC_ALL=C comm -12 "$new/.there" "$new/.last" | cut -f1 |
        (cd "$last/files" && xargs --no-run-if-empty --delimiter='\n' cp --link --parents --target-directory="$new/files")
}

mkdir -p "$BACKUPS"
exec 9>"$BACKUPS/.lock"
flock --nonblock 9 || fail "another backup to $BACKUPS is under way"
rm -rf "$BACKUPS"/.unfinished-*

began=$SECONDS
name=$(date -u +%Y-%m-%dT%H-%M-%SZ)
new=$BACKUPS/.unfinished-$name
last=$(find "$BACKUPS" -mindepth 1 -maxdepth 1 -type d -name '20*' | LC_ALL=C sort | tail -n 1)
mkdir -p "$new/files"
if [ -n "$STORE" ]; then
    [ -d "$STORE" ] || fail "$STORE is no folder"
    if [ -n "$last" ]; then link_old; fi
    copy_new
fi
pg_dump --format=custom --no-owner --no-privileges --file="$new/database.dump" "$DATABASE"
pg_restore --list "$new/database.dump" >/dev/null
if [ -n "$STORE" ]; then copy_new; fi
rm -f "$new/.there" "$new/.last"
sync --file-system "$new"
[ ! -e "$BACKUPS/$name" ] || fail "$BACKUPS/$name is there already"
mv "$new" "$BACKUPS/$name"

find "$BACKUPS" -mindepth 1 -maxdepth 1 -type d -name '20*' | LC_ALL=C sort | head -n "-$KEEP" | xargs --no-run-if-empty rm -rf
files=$(find "$BACKUPS/$name/files" -type f | wc -l)
echo "backup: $name: $(stat --format=%s "$BACKUPS/$name/database.dump") bytes of database, $files files, in $((SECONDS - began)) s"
