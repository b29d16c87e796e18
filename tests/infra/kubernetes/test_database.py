"""The dashboard's SQL, and the script that makes its role, in a real PostgreSQL: on the tables of the MLflow that is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import postgres
from tests.manifests import ROOT

BASE = ROOT / "infra" / "kubernetes" / "base"
SECOND = 1_700_000_000_000
TABLES = """
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from mlflow.store.tracking.dbmodels import models
for model in (models.SqlExperiment, models.SqlRun, models.SqlMetric, models.SqlTag):
    print(str(CreateTable(model.__table__).compile(dialect=postgresql.dialect())) + ";")
"""
ROWS = f"""
INSERT INTO experiments (experiment_id, name, workspace) VALUES (1, 'biovlm', 'default');
INSERT INTO runs (run_uuid, name, status, start_time, end_time, experiment_id) VALUES
  ('aaaaaaaaaa', 'task', 'RUNNING', {SECOND}, NULL, 1), ('bbbbbbbbbb', 'pipeline', 'FINISHED', {SECOND}, {SECOND + 60_000}, 1);
INSERT INTO tags (key, value, run_uuid) VALUES ('biovlm.step', 'task', 'aaaaaaaaaa'), ('biovlm.step', 'pipeline', 'bbbbbbbbbb');
INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
  SELECT key, 1.5, {SECOND} + 1000 * step, 'aaaaaaaaaa', step, false FROM generate_series(1, 9) AS step,
  unnest(ARRAY['loss', 'tokens_per_second', 'gradient_norm', 'skipped_steps', 'checkpoint_age_seconds']) AS key;
"""


def panels():
    found = json.loads((BASE / "monitoring" / "biovlm.json").read_text())["panels"]
    return {panel["title"]: target["rawSql"] for panel in found for target in panel.get("targets", []) if "rawSql" in target}


def as_grafana_asks(sql):
    """Grafana's macros, filled in for all times."""
    sql = re.sub(r"\$__timeFilter\(((?:[^()]|\([^()]*\))*)\)", r"(\1) > to_timestamp(0)", sql)
    sql = re.sub(r"\$__timeGroup\(((?:[^()]|\([^()]*\))*), \$__interval\)", r"date_trunc('minute', \1)", sql)
    assert "$" not in sql
    return sql


@pytest.fixture(scope="module")
def database():
    """A real server after the script that makes its roles, with MLflow's tables and a few rows. Yields `ask(sql, role, database)`."""
    if not postgres.is_installed():
        pytest.skip("PostgreSQL is not installed: the dashboard's SQL is not run")
    with postgres.running() as server:
        secrets = server.home / "secrets"
        secrets.mkdir()
        (secrets / "grafana-password").write_text("only for this test\n")
        secrets.chmod(0o755)
        script = (BASE / "tracking" / "20-readers.sh").read_text().replace("/run/secrets/postgres", str(secrets))
        (server.home / "readers.sh").write_text(script)
        env = {**os.environ, "POSTGRES_USER": postgres.USER, "POSTGRES_DB": "mlflow", "PGHOST": str(server.home)}
        server.call("sh", str(server.home / "readers.sh"), env=env)
        tables = subprocess.run([sys.executable, "-c", TABLES], capture_output=True, text=True, check=True).stdout
        server.ask(tables + ROWS + grants())
        yield server.ask


def grants():
    """What infra/README.md says to type after MLflow's first start."""
    (line,) = re.findall(r"^GRANT SELECT .*;$", (ROOT / "infra" / "README.md").read_text(), re.M)
    return line


@pytest.mark.parametrize("title", panels())
def test_every_panel_over_mlflow_gets_rows(title, database):
    assert database(as_grafana_asks(panels()[title]), "grafana"), title


FORBIDDEN = (
    "DELETE FROM metrics",
    "INSERT INTO tags (key, value, run_uuid) VALUES ('a', 'b', 'aaaaaaaaaa')",
    "SELECT * FROM experiments",
)


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_the_dashboards_role_reads_what_it_shows_and_no_more(sql, database):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        database(sql, "grafana")
    assert "permission denied" in failed.value.stderr


def test_the_dashboards_role_does_not_see_who_may_log_in(database):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        database("SELECT 1", "grafana", "mlflow_auth")
    assert "permission denied" in failed.value.stderr
    assert database("SELECT 1", "mlflow", "mlflow_auth") == ["1"]


def test_the_password_of_a_role_is_kept_as_a_hash(database):
    (kept,) = database("SELECT rolpassword FROM pg_authid WHERE rolname = 'grafana'")
    assert kept.startswith("SCRAM-SHA-256$")


def test_the_configuration_names_no_password():
    settings = Path(BASE / "tracking" / "basic_auth.ini").read_text()
    assert "password" not in re.sub(r"^;.*$", "", settings, flags=re.M)
