"""The demo, and the sample database that it and `demo seed` use.

It needs no set-up and no privileges, listens on loopback alone, and leaves nothing behind, however its process ends.
"""
