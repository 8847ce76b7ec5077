"""How the process starts, stops and hands over.

`services` runs named threads, of which none may die in silence; `drain` is the one path by which a replica stops,
whoever asked for it; `control` is the Unix socket by which a preStop hook asks.

Guarantees: stopping is idempotent; work ends before the leadership does; every wait has a bound; an unexpected
exception in a thread ends the process with a non-zero status after the same drain.

Must not: know what the work is (it is given callables), touch the database, or call Kubernetes.
"""
