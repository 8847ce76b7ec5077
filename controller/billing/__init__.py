"""Charges what is due: batches, cycles, the heartbeat that says so, the audit that proves it, the guard that heeds it.

What it guarantees: every whole instance-hour is charged exactly once, to the cent, or stands as one open debt with its
reason. Each batch is one transaction that begins with the fence, locks wallets in the one global order, and commits the
wallet, the payment transaction, the period and `last_billed_at` together. Nothing outside the database is needed to go
on after a crash: what is due is computed from what is committed. The rules of money (the price clock, the plan's price,
what a short wallet pays) are written once, in SQL: `billing_price_clock` and its neighbours in migrations 014 and 016,
and the statements of charge.sql.

What it must not do: elect anyone, or decide when the process ends; it is told under which leadership it works and asks
before each step whether that still holds. It makes no round trip for a single instance.
"""
