"""Makes a PostgreSQL and a ContainerStacks database out of nothing, for the demo and the tests.

Guarantees: needs no set-up and no privileges, listens on loopback alone, takes free ports, and
leaves neither a process nor a file behind, however the process that asked for it ends.

Must not: be reached by a controller that bills for real, touch any server or database that it has
not made itself, or import the core packages.
"""
