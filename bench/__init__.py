"""What the controller costs and gives, measured: `python -m bench --help`.

Each suite starts a durable PostgreSQL of its own (fsync, synchronous_commit and full_page_writes on), fills the whole
ContainerStacks schema with plausible rows, and gives back sections of figures: minimum, median and maximum of at least
five rounds after a warm-up, whatever is compared in turn A B A B on fresh copies of one template. A figure knows its
aim. Nothing here is imported by the controller, and no figure is typed by hand: `report` writes the tables of
docs/performance.md.
"""
