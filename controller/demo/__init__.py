"""The demo: an ephemeral PostgreSQL, a sample ContainerStacks database, and the story told with both.

It needs no set-up and no privileges, listens on loopback alone, and leaves nothing behind, however its process ends.
It touches no server or database that it did not make, except for `demo seed`.
"""
