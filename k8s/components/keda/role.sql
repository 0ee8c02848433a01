-- What KEDA's question needs, and nothing else: psql -v password=… -f role.sql, as the owner of the tables.
CREATE ROLE rlt_keda LOGIN PASSWORD :'password' CONNECTION LIMIT 4;
GRANT CONNECT ON DATABASE rlt TO rlt_keda;
GRANT USAGE ON SCHEMA public TO rlt_keda;
GRANT SELECT (build_id, state) ON shards TO rlt_keda;
GRANT SELECT (id, state) ON builds TO rlt_keda;
