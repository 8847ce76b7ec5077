"""The benchmark: `python -m bench --help`.

Each suite starts a durable PostgreSQL (fsync, synchronous_commit and full_page_writes on), fills the whole
ContainerStacks schema with realistic rows, and reports the minimum, median and maximum of at least five rounds after a
warm-up. Alternatives run in turn (A B A B), each on a fresh copy of one template. `--write` writes the tables of
bench/results. The controller imports nothing from here.
"""
