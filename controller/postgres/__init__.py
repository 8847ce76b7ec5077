"""Everything that knows how PostgreSQL is reached.

`connections` opens sessions whose every wait is bounded; `lock_session` is the dedicated session that an election
needs; `migrations` brings the schema up to date; `queries` loads the named statements of `sql/`.

Guarantees: no call waits for ever; no error that leaves here contains a password; a URL is read anew for each
connection, so that a rotated Secret needs no restart.

Must not: decide anything about leadership or money. It carries what the core packages ask for.
"""
