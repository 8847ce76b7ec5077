"""`run` listens before it imports the rest of the program, on every address family that the host has."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from controller import listener
from controller.listener import EVERY_INTERFACE, listen, listen_early


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_run_accepts_connections_before_the_server_exists() -> None:
    port = free_port()
    listen_early(["run"], {"BILLING_HTTP_ADDRESS": f"127.0.0.1:{port}"})
    with socket.create_connection(("127.0.0.1", port), 5), listen("127.0.0.1", port) as taken:
        assert taken.getsockname()[1] == port
    assert listener._bound_early == {}


@pytest.mark.parametrize("address", ["none", "off", "", "nonsense", "192.0.2.1:1"])
def test_address_that_can_not_be_bound_is_left_to_the_settings(address: str) -> None:
    listen_early(["run"], {"BILLING_HTTP_ADDRESS": address})
    assert listener._bound_early == {}


@pytest.mark.parametrize("arguments", [["migrate"], ["status", "--json"], ["run", "--help"], []])
def test_no_other_command_listens(arguments: list[str]) -> None:
    listen_early(arguments, {"BILLING_HTTP_ADDRESS": "127.0.0.1:0"})
    assert listener._bound_early == {}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_every_interface_is_every_address_family(family: socket.AddressFamily) -> None:
    if family is socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    with listen(EVERY_INTERFACE, 0) as server, socket.socket(family) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1" if family is socket.AF_INET else "::1", server.getsockname()[1]))


def test_host_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.create_server

    def without_ipv6(address: tuple[str, int], **arguments: object) -> socket.socket:
        if ":" in address[0]:
            raise OSError(97, "Address family not supported by protocol")
        return bind(address, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    with listen(EVERY_INTERFACE, 0) as server:
        assert server.family is socket.AF_INET


def test_nothing_heavy_is_imported_before_the_address_is_bound() -> None:
    program = (
        "import sys, controller.__main__\n"
        "sys.exit(bool({'pydantic', 'psycopg', 'typer', 'waitress', 'structlog', 'rich'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
