"""The ledger's tables, and how an older file becomes the present one.

Events and entries only ever grow; triggers refuse everything else. Rollups are a projection that
``rebuild`` recreates. Knows SQL only. Money is pico-USD, times are UTC microseconds.
"""

import sqlite3

_FIRST = """
CREATE TABLE price_book (
  price_id TEXT PRIMARY KEY,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  currency TEXT NOT NULL,
  effective_from_us INTEGER NOT NULL,
  effective_to_us INTEGER,
  min_input_tokens INTEGER NOT NULL,
  daily_from_us INTEGER,
  daily_to_us INTEGER,
  rates TEXT NOT NULL,
  source TEXT NOT NULL,
  source_hash TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_event (
  seq INTEGER PRIMARY KEY,
  event_id TEXT NOT NULL UNIQUE,
  request_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('final', 'estimated', 'interrupted')),
  ts_us INTEGER NOT NULL,
  recorded_us INTEGER NOT NULL,
  billing_period TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  key_id TEXT NOT NULL,
  end_user TEXT,
  client_request_id TEXT,
  tags TEXT NOT NULL,
  policy_version TEXT NOT NULL,
  route TEXT NOT NULL,
  decision TEXT NOT NULL,
  reason TEXT NOT NULL,
  difficulty REAL,
  cache_status TEXT NOT NULL CHECK (cache_status IN ('miss', 'exact', 'semantic', 'bypass')),
  cache_ref TEXT,
  similarity REAL,
  provider TEXT NOT NULL,
  model_requested TEXT NOT NULL,
  model_served TEXT NOT NULL,
  upstream_request_id TEXT,
  prompt_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  prompt_audio_tokens INTEGER NOT NULL,
  prompt_image_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  reasoning_tokens INTEGER NOT NULL,
  completion_audio_tokens INTEGER NOT NULL,
  compute_us INTEGER NOT NULL,
  usage_source TEXT NOT NULL,
  price_id TEXT,
  baseline_price_id TEXT,
  list_pico INTEGER,
  cost_pico INTEGER,
  charge_pico INTEGER,
  baseline_pico INTEGER,
  overhead_pico INTEGER NOT NULL,
  gross_saved_pico INTEGER,
  status INTEGER NOT NULL,
  error_type TEXT,
  duration_us INTEGER NOT NULL,
  ttft_us INTEGER,
  superseded INTEGER NOT NULL,
  counted INTEGER NOT NULL,
  CHECK (cached_tokens + cache_write_tokens <= prompt_tokens),
  CHECK (reasoning_tokens + completion_audio_tokens <= completion_tokens)
) STRICT;
CREATE INDEX usage_by_tenant ON usage_event (tenant_id, ts_us, charge_pico);
CREATE INDEX usage_by_request ON usage_event (request_id);

CREATE TABLE entry (
  event_id TEXT NOT NULL,
  line INTEGER NOT NULL,
  account TEXT NOT NULL,
  amount_pico INTEGER NOT NULL,
  PRIMARY KEY (event_id, line)
) STRICT, WITHOUT ROWID;

CREATE TABLE rollup (
  day INTEGER NOT NULL,
  billing_period TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  key_id TEXT NOT NULL,
  provider TEXT NOT NULL,
  model_served TEXT NOT NULL,
  route TEXT NOT NULL,
  decision TEXT NOT NULL,
  cache_status TEXT NOT NULL,
  state TEXT NOT NULL,
  requests INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  unpriced INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  reasoning_tokens INTEGER NOT NULL,
  cost_pico INTEGER NOT NULL,
  charge_pico INTEGER NOT NULL,
  baseline_pico INTEGER NOT NULL,
  overhead_pico INTEGER NOT NULL,
  gross_saved_pico INTEGER NOT NULL,
  PRIMARY KEY (billing_period, tenant_id, day, project_id, key_id, provider, model_served, route,
               decision, cache_status, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE open_intent (
  event_id TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  intent BLOB NOT NULL,
  completion_tokens INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE ingest_offset (
  segment TEXT PRIMARY KEY,
  byte_offset INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rejected_record (
  segment TEXT NOT NULL,
  byte_offset INTEGER NOT NULL,
  content BLOB NOT NULL,
  reason TEXT NOT NULL,
  PRIMARY KEY (segment, byte_offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE billing_period (
  period TEXT PRIMARY KEY,
  status TEXT NOT NULL CHECK (status IN ('Open', 'Closed')),
  closed_us INTEGER,
  closed_by TEXT
) STRICT, WITHOUT ROWID;

CREATE TRIGGER usage_event_open_period BEFORE INSERT ON usage_event
WHEN EXISTS (SELECT 1 FROM billing_period
             WHERE period = NEW.billing_period AND status = 'Closed')
BEGIN SELECT RAISE(ABORT, 'the billing period is closed'); END;
CREATE TRIGGER billing_period_stays_closed BEFORE UPDATE ON billing_period
WHEN OLD.status = 'Closed'
BEGIN SELECT RAISE(ABORT, 'a closed billing period stays closed'); END;
"""

_APPEND_ONLY = "".join(
    f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} is append only'); END;\n"
    for table in ("usage_event", "entry", "price_book")
    for event in ("UPDATE", "DELETE")
)

_FEES = """
ALTER TABLE usage_event ADD COLUMN cache_write_1h_tokens INTEGER NOT NULL DEFAULT 0
  CHECK (cache_write_1h_tokens <= cache_write_tokens);
ALTER TABLE usage_event ADD COLUMN web_searches INTEGER NOT NULL DEFAULT 0;
"""

# One script per version of the file; a released script is never edited.
MIGRATIONS = (_FIRST + _APPEND_ONLY, _FEES)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to date, each version in one transaction.

    Raises ValueError where the file was written by a newer release.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise ValueError(
            f"the ledger has version {version} and this release knows {len(MIGRATIONS)}; "
            "run the release that wrote it, or a newer one"
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        try:
            connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.Error:
            connection.rollback()
            raise
