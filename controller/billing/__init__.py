"""Charges what is due. Holds the cycle, its batches, the heartbeat, the guard, the audit, and their SQL in `sql/`.

Guarantees: every whole instance-hour is charged exactly once, to the cent, at the price that applied when it began, or
is recorded in an open row with its reason. A batch is one transaction that begins with the fence and commits the
wallet, the payment, the period and `last_billed_at` together. What is due follows from what is committed, so a
successor needs nothing from a lost leader.

The statements in `sql/` decide who is charged and what is written. The calculations that people may want to repeat in
`psql` (the price clock, the price history, what an instance owes) are functions of migrations 014, 016 and 027.

This package must not decide who leads or when the process ends. A leadership says whether this replica still leads, and
a `StopToken` says whether another cycle or batch may start. No statement handles a single instance.
"""
