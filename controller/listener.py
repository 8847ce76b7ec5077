"""Binds the HTTP server's socket. Imports nothing heavy, so that `run` listens before it loads the rest of the program.

The kernel accepts connections as soon as the socket listens. A probe that arrives during the imports waits for its
answer instead of being refused.
"""

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from controller.errors import SettingsError

SETTING: Final = "BILLING_HTTP_ADDRESS"
PAGE_SETTING: Final = "BILLING_PAGE_ADDRESS"
#: `parse_address` returns this host for every interface.
EVERY_INTERFACE: Final = "*"

_bound_early: dict[tuple[str, int], socket.socket] = {}


def parse_address(address: str, setting: str = SETTING) -> tuple[str, int]:
    """Returns the host and the port of `host:port`. `:port` means every interface and gives the host EVERY_INTERFACE.

    Args:
        address: the value of the setting.
        setting: named in the error.

    Raises:
        SettingsError: `address` has neither form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004 - the largest port
        example = "127.0.0.1:8081" if setting == PAGE_SETTING else "0.0.0.0:8080"
        raise SettingsError(f"{setting}={address} is not host:port: set it to {example}, say, or to none")
    return host.strip("[]") or EVERY_INTERFACE, int(port)


def listen_early(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Binds the address in the environment for the command `run`. `listen` reports an address that can't be bound."""
    if list(arguments) == ["run"]:
        with suppress(SettingsError):
            host, port = parse_address(environment.get(SETTING, ""))
            _bound_early[host, port] = listen(host, port)


def listen(host: str, port: int, setting: str = SETTING) -> socket.socket:
    """Returns a listening socket, which `listen_early` may have bound.

    Args:
        host: a name, an address, or EVERY_INTERFACE.
        port: 0 picks a free one.
        setting: named in the error.

    Raises:
        SettingsError: the address can't be bound.
    """
    if (early := _bound_early.pop((host, port), None)) is not None:
        return early
    shown = f"{setting}={'' if host == EVERY_INTERFACE else f'[{host}]' if ':' in host else host}:{port}"
    try:
        listener = _bind(host, port)
    except OSError as error:
        # str(error) would repeat the address
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise SettingsError(f"{shown}: can't listen: {str(reason).lower()}; set another address, or none") from None
    listener.setblocking(False)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    if host == EVERY_INTERFACE:
        try:
            return _bind("::", port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
        host = "0.0.0.0"  # noqa: S104 - this host has no IPv6
    if host == "::" and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server((str(address[0]), port), family=family)
