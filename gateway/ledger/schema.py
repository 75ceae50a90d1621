"""The ledger's tables, and how an older file becomes the present one.

Read ``usage_event``: one row per event. It is a view of a star: ``usage_fact`` holds what differs
from event to event, ``usage_context`` what an admin's configuration decides and many events share.
Events and entries only ever grow; triggers refuse everything else. Rollups are a projection that
``rebuild`` recreates. Knows SQL only. Money is pico-USD, times are UTC microseconds.
"""

import sqlite3


def _append_only(*tables: tuple[str, str]) -> str:
    """Triggers that refuse changes; each table with the moment at which its trigger fires."""
    return "".join(
        f"CREATE TRIGGER {table}_no_{event.lower()} {when} {event} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append only'); END;\n"
        for table, when in tables
        for event in ("UPDATE", "DELETE")
    )


def _context(table: str, *states: str) -> str:
    """The table of what many events share."""
    allowed = ", ".join(f"'{state}'" for state in states)
    return f"""CREATE TABLE {table} (
  context_id INTEGER PRIMARY KEY,
  billing_period TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  key_id TEXT NOT NULL,
  policy_version TEXT NOT NULL,
  route TEXT NOT NULL,
  decision TEXT NOT NULL,
  provider TEXT NOT NULL,
  model_requested TEXT NOT NULL,
  model_served TEXT NOT NULL,
  price_id TEXT,
  baseline_price_id TEXT,
  state TEXT NOT NULL CHECK (state IN ({allowed})),
  cache_status TEXT NOT NULL CHECK (cache_status IN ('miss', 'exact', 'semantic', 'bypass')),
  status INTEGER NOT NULL,
  error_type TEXT,
  superseded INTEGER NOT NULL,
  usage_source TEXT NOT NULL
) STRICT;
"""


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

_FIRST_APPEND_ONLY = _append_only(
    ("usage_event", "BEFORE"), ("entry", "BEFORE"), ("price_book", "BEFORE")
)

_FEES = """
ALTER TABLE usage_event ADD COLUMN cache_write_1h_tokens INTEGER NOT NULL DEFAULT 0
  CHECK (cache_write_1h_tokens <= cache_write_tokens);
ALTER TABLE usage_event ADD COLUMN web_searches INTEGER NOT NULL DEFAULT 0;
"""

# Half the bytes and half the time per event. Nothing that a client chooses freely is in the
# context, so the number of contexts is bounded by the configuration. The trigger FAILs, because
# with ABORT each statement would keep a journal of its own to take back.
_STAR = f"""
ALTER TABLE usage_event RENAME TO old_event;
ALTER TABLE entry RENAME TO old_entry;
DROP TRIGGER usage_event_open_period;
DROP TRIGGER usage_event_no_update;
DROP TRIGGER usage_event_no_delete;
DROP TRIGGER entry_no_update;
DROP TRIGGER entry_no_delete;

{_context("usage_context", "final", "estimated", "interrupted")}CREATE INDEX usage_context_by_tenant
  ON usage_context (tenant_id, billing_period, policy_version, key_id);

CREATE TABLE usage_fact (
  seq INTEGER PRIMARY KEY,
  context_id INTEGER NOT NULL REFERENCES usage_context,
  counted INTEGER NOT NULL,
  tags TEXT NOT NULL,
  request_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  ts_us INTEGER NOT NULL,
  recorded_us INTEGER NOT NULL,
  end_user TEXT,
  client_request_id TEXT,
  reason TEXT NOT NULL,
  difficulty REAL,
  cache_ref TEXT,
  similarity REAL,
  upstream_request_id TEXT,
  list_pico INTEGER,
  cost_pico INTEGER,
  charge_pico INTEGER,
  baseline_pico INTEGER,
  overhead_pico INTEGER NOT NULL,
  duration_us INTEGER NOT NULL,
  ttft_us INTEGER,
  prompt_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  prompt_audio_tokens INTEGER NOT NULL,
  prompt_image_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  reasoning_tokens INTEGER NOT NULL,
  completion_audio_tokens INTEGER NOT NULL,
  compute_us INTEGER NOT NULL,
  cache_write_1h_tokens INTEGER NOT NULL,
  web_searches INTEGER NOT NULL,
  UNIQUE (request_id, attempt),
  CHECK (cached_tokens + cache_write_tokens <= prompt_tokens),
  CHECK (cache_write_1h_tokens <= cache_write_tokens),
  CHECK (reasoning_tokens + completion_audio_tokens <= completion_tokens)
) STRICT;
CREATE INDEX usage_fact_by_context ON usage_fact (context_id, ts_us, charge_pico);
CREATE UNIQUE INDEX usage_fact_counted ON usage_fact (request_id) WHERE counted;

INSERT INTO usage_context
  SELECT DISTINCT NULL, billing_period, tenant_id, project_id, key_id, policy_version, route,
    decision, provider, model_requested, model_served, price_id, baseline_price_id, state,
    cache_status, status, error_type, superseded, usage_source
  FROM old_event;
INSERT INTO usage_fact
  SELECT o.seq, c.context_id, o.counted, o.tags, o.request_id, o.attempt, o.ts_us, o.recorded_us,
    o.end_user, o.client_request_id, o.reason, o.difficulty, o.cache_ref, o.similarity,
    o.upstream_request_id, o.list_pico, o.cost_pico, o.charge_pico, o.baseline_pico,
    o.overhead_pico, o.duration_us, o.ttft_us, o.prompt_tokens, o.cached_tokens,
    o.cache_write_tokens, o.prompt_audio_tokens, o.prompt_image_tokens, o.completion_tokens,
    o.reasoning_tokens, o.completion_audio_tokens, o.compute_us, o.cache_write_1h_tokens,
    o.web_searches
  FROM old_event o JOIN usage_context c ON c.tenant_id = o.tenant_id
    AND c.billing_period = o.billing_period AND c.project_id = o.project_id
    AND c.key_id = o.key_id AND c.policy_version = o.policy_version AND c.route = o.route
    AND c.decision = o.decision AND c.provider = o.provider
    AND c.model_requested = o.model_requested AND c.model_served = o.model_served
    AND c.price_id IS o.price_id AND c.baseline_price_id IS o.baseline_price_id
    AND c.state = o.state AND c.cache_status = o.cache_status AND c.status = o.status
    AND c.error_type IS o.error_type AND c.superseded = o.superseded
    AND c.usage_source = o.usage_source;

CREATE TABLE entry (
  txn INTEGER NOT NULL,
  line INTEGER NOT NULL,
  account TEXT NOT NULL,
  amount_pico INTEGER NOT NULL,
  PRIMARY KEY (txn, line)
) STRICT, WITHOUT ROWID;
INSERT INTO entry
  SELECT o.seq, e.line, e.account, e.amount_pico
  FROM old_entry e JOIN old_event o ON o.event_id = e.event_id;
DROP TABLE old_entry;
DROP TABLE old_event;

CREATE VIEW usage_event AS
SELECT f.seq, f.request_id || '/' || f.attempt AS event_id, f.request_id, f.attempt, c.state,
  f.ts_us, f.recorded_us, c.billing_period, c.tenant_id, c.project_id, c.key_id, f.end_user,
  f.client_request_id, f.tags, c.policy_version, c.route, c.decision, f.reason, f.difficulty,
  c.cache_status, f.cache_ref, f.similarity, c.provider, c.model_requested, c.model_served,
  f.upstream_request_id, f.prompt_tokens, f.cached_tokens, f.cache_write_tokens,
  f.prompt_audio_tokens, f.prompt_image_tokens, f.completion_tokens, f.reasoning_tokens,
  f.completion_audio_tokens, f.compute_us, f.cache_write_1h_tokens, f.web_searches,
  c.usage_source, c.price_id, c.baseline_price_id,
  f.list_pico, f.cost_pico, f.charge_pico, f.baseline_pico, f.overhead_pico,
  iif(c.superseded, -f.cost_pico, f.baseline_pico - f.cost_pico) AS gross_saved_pico, c.status,
  c.error_type, f.duration_us, f.ttft_us, c.superseded, f.counted
FROM usage_fact f JOIN usage_context c ON c.context_id = f.context_id;
"""  # noqa: S608 - constants

_OPEN_PERIOD = """
CREATE TRIGGER usage_fact_open_period AFTER INSERT ON usage_fact
WHEN EXISTS (SELECT 1 FROM billing_period WHERE status = 'Closed' AND period =
             (SELECT billing_period FROM usage_context WHERE context_id = NEW.context_id))
BEGIN SELECT RAISE(FAIL, 'the billing period is closed'); END;
"""

_STAR_APPEND_ONLY = _append_only(
    ("usage_event", "INSTEAD OF"),
    ("usage_fact", "BEFORE"),
    ("usage_context", "BEFORE"),
    ("entry", "BEFORE"),
)

# What failed without an answer has a possible cost beside the charge, and refused requests are
# counted. A CHECK cannot be altered, so the contexts move to a new table under the old name.
_POSSIBLE = f"""
DROP VIEW usage_event;
DROP TRIGGER usage_fact_open_period;
DROP TRIGGER usage_context_no_update;
DROP TRIGGER usage_context_no_delete;
{_context("new_context", "final", "estimated", "interrupted", "possible")}
INSERT INTO new_context SELECT context_id, billing_period, tenant_id, project_id, key_id,
  policy_version, route, decision, provider, model_requested, model_served, price_id,
  baseline_price_id, state, cache_status, status, error_type, superseded, usage_source
  FROM usage_context;
DROP TABLE usage_context;
ALTER TABLE new_context RENAME TO usage_context;
CREATE INDEX usage_context_by_tenant
  ON usage_context (tenant_id, billing_period, policy_version, key_id);

ALTER TABLE usage_fact ADD COLUMN possible_cost_pico INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_fact ADD COLUMN possible_charge_pico INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_fact ADD COLUMN request_us INTEGER;
ALTER TABLE rollup ADD COLUMN possible_cost_pico INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollup ADD COLUMN possible_charge_pico INTEGER NOT NULL DEFAULT 0;

CREATE VIEW usage_event AS
SELECT f.seq, f.request_id || '/' || f.attempt AS event_id, f.request_id, f.attempt, c.state,
  f.ts_us, f.recorded_us, c.billing_period, c.tenant_id, c.project_id, c.key_id, f.end_user,
  f.client_request_id, f.tags, c.policy_version, c.route, c.decision, f.reason, f.difficulty,
  c.cache_status, f.cache_ref, f.similarity, c.provider, c.model_requested, c.model_served,
  f.upstream_request_id, f.prompt_tokens, f.cached_tokens, f.cache_write_tokens,
  f.prompt_audio_tokens, f.prompt_image_tokens, f.completion_tokens, f.reasoning_tokens,
  f.completion_audio_tokens, f.compute_us, f.cache_write_1h_tokens, f.web_searches,
  c.usage_source, c.price_id, c.baseline_price_id,
  f.list_pico, f.cost_pico, f.charge_pico, f.baseline_pico, f.overhead_pico,
  CASE WHEN c.state = 'possible' THEN f.cost_pico * 0
    WHEN c.superseded THEN -f.cost_pico
    ELSE f.baseline_pico - f.cost_pico END AS gross_saved_pico,
  c.status, c.error_type, f.duration_us, f.ttft_us, c.superseded, f.counted,
  f.possible_cost_pico, f.possible_charge_pico, f.request_us
FROM usage_fact f JOIN usage_context c ON c.context_id = f.context_id;


CREATE TABLE refusal (
  day INTEGER NOT NULL,
  billing_period TEXT NOT NULL,
  tenant_id TEXT NOT NULL,
  project_id TEXT NOT NULL,
  key_id TEXT NOT NULL,
  reason TEXT NOT NULL,
  status INTEGER NOT NULL,
  requests INTEGER NOT NULL CHECK (requests > 0),
  PRIMARY KEY (billing_period, tenant_id, day, project_id, key_id, reason, status)
) STRICT, WITHOUT ROWID;
"""  # noqa: S608 - constants

_POSSIBLE_APPEND_ONLY = _append_only(("usage_event", "INSTEAD OF"), ("usage_context", "BEFORE"))

# Kinds of tokens that have prices of their own, and what a provider says that an answer cost.
_KINDS = """
ALTER TABLE usage_fact ADD COLUMN prompt_video_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_fact ADD COLUMN cached_audio_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_fact ADD COLUMN cached_image_tokens INTEGER NOT NULL DEFAULT 0
  CHECK (cached_audio_tokens + cached_image_tokens <= cached_tokens);
ALTER TABLE usage_fact ADD COLUMN completion_image_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_fact ADD COLUMN completion_video_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_fact ADD COLUMN citation_tokens INTEGER NOT NULL DEFAULT 0
  CHECK (reasoning_tokens + completion_audio_tokens + completion_image_tokens
         + completion_video_tokens + citation_tokens <= completion_tokens);
ALTER TABLE usage_fact ADD COLUMN told_pico INTEGER NOT NULL DEFAULT 0;
DROP VIEW usage_event;

CREATE VIEW usage_event AS
SELECT f.seq, f.request_id || '/' || f.attempt AS event_id, f.request_id, f.attempt, c.state,
  f.ts_us, f.recorded_us, c.billing_period, c.tenant_id, c.project_id, c.key_id, f.end_user,
  f.client_request_id, f.tags, c.policy_version, c.route, c.decision, f.reason, f.difficulty,
  c.cache_status, f.cache_ref, f.similarity, c.provider, c.model_requested, c.model_served,
  f.upstream_request_id, f.prompt_tokens, f.cached_tokens, f.cache_write_tokens,
  f.prompt_audio_tokens, f.prompt_image_tokens, f.completion_tokens, f.reasoning_tokens,
  f.completion_audio_tokens, f.compute_us, f.cache_write_1h_tokens, f.web_searches,
  f.prompt_video_tokens, f.cached_audio_tokens, f.cached_image_tokens,
  f.completion_image_tokens, f.completion_video_tokens, f.citation_tokens, f.told_pico,
  c.usage_source, c.price_id, c.baseline_price_id,
  f.list_pico, f.cost_pico, f.charge_pico, f.baseline_pico, f.overhead_pico,
  CASE WHEN c.state = 'possible' THEN f.cost_pico * 0
    WHEN c.superseded THEN -f.cost_pico
    ELSE f.baseline_pico - f.cost_pico END AS gross_saved_pico,
  c.status, c.error_type, f.duration_us, f.ttft_us, c.superseded, f.counted,
  f.possible_cost_pico, f.possible_charge_pico, f.request_us
FROM usage_fact f JOIN usage_context c ON c.context_id = f.context_id;
"""

_KINDS_APPEND_ONLY = _append_only(("usage_event", "INSTEAD OF"))

# One script per version of the file; a released script is never edited.
MIGRATIONS = (
    _FIRST + _FIRST_APPEND_ONLY,
    _FEES,
    _STAR + _OPEN_PERIOD + _STAR_APPEND_ONLY,
    _POSSIBLE + _OPEN_PERIOD + _POSSIBLE_APPEND_ONLY,
    _KINDS + _KINDS_APPEND_ONLY,
)


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
