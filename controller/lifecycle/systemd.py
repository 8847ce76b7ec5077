"""Notifies systemd of the process's state, for a unit of `Type=notify`. The protocol is one datagram."""

import contextlib
import socket


def notify(address: str | None, state: str) -> None:
    """Sends a state such as `READY=1`. Does nothing if there is no socket, or if it is gone.

    Args:
        address: the value of `NOTIFY_SOCKET`; a leading @ names an abstract socket.
        state: as sd_notify(3) defines it.
    """
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.connect("\0" + address[1:] if address.startswith("@") else address)
        peer.send(state.encode())
