#!/bin/sh
# Run once, by the first start on an empty volume: the database of MLflow's users, and a role for Grafana that reads metrics and no more.
set -eu
reader=$(cat /run/secrets/postgres/grafana-password)
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1 --set reader="$reader" <<'SQL'
CREATE DATABASE mlflow_auth;
CREATE ROLE grafana LOGIN PASSWORD :'reader' CONNECTION LIMIT 10;
GRANT CONNECT ON DATABASE mlflow TO grafana;
REVOKE CONNECT ON DATABASE mlflow_auth FROM PUBLIC;
-- MLflow makes its tables later: what Grafana may see is granted after the first start (infra/README.md).
SQL
