"""Tells systemd how it goes, for a unit of `Type=notify`. The protocol is a datagram; a library would be larger."""

import contextlib
import socket


def notify(address: str | None, state: str) -> None:
    """Sends a state such as `READY=1` to the socket that systemd names; without one, or when it is gone, nothing.

    Source: sd_notify(3). A leading @ names an abstract socket.
    """
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.connect("\0" + address[1:] if address.startswith("@") else address)
        peer.send(state.encode())
