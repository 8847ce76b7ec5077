"""The demo, and the sample database that it and `demo seed` use.

The demo needs no set-up or privileges, listens only on loopback, and leaves nothing behind, even if it is killed.
"""
