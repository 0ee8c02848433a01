#!/bin/sh
# At the first start: the platform's own role, which owns its database and is no superuser.
set -eu
password=$(cat /run/secrets/rlt_password)
psql -v ON_ERROR_STOP=1 --no-psqlrc -U "$POSTGRES_USER" -d postgres -v password="$password" <<'SQL'
CREATE ROLE rlt LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE DATABASE rlt OWNER rlt;
REVOKE ALL ON DATABASE rlt FROM PUBLIC;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
SQL
