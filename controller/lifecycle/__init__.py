"""How the process starts, runs its threads, and stops.

- `signals` catches SIGTERM and SIGINT; `control` is the Unix socket through which a preStop hook requests a drain.
- `drain` is the only way to stop, whatever the reason.
- `stop` holds the token that tells the workers what they may still start.
- `services` runs the named threads and reports the ones that crash.

Guarantees: stopping is idempotent; work ends before the leadership does; every wait has a bound; an unexpected
exception in any thread ends the process with a non-zero status, after the same drain.

This package must not know what the work is (the composition root passes callables), touch the database, or call
Kubernetes.
"""
