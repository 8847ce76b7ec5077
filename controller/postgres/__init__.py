"""How PostgreSQL is reached. Decides nothing about money.

`connections` opens sessions with a bound on every wait. `lock_session` is the dedicated session that an election needs.
`migrations` brings the schema up to date, and `index_builds` builds indexes without blocking the application. `sql/`
holds the named statements of sessions, elections and migrations; `controller.sql` loads them and executes them. The
statements that charge are in `controller/billing/sql/`.

Guarantees
----------
- No call waits forever.
- No error raised here contains a password.
- The connection string is read again for each connection, so a rotated Secret needs no restart.

This package must not decide who leads or what is charged.
"""
