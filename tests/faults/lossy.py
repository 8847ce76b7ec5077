"""A network namespace with a link that loses packets in the kernel. Needs root and Linux."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

_numbers = itertools.count(os.getpid() % 200)


@dataclass(frozen=True)
class LossyLink:
    """A link between `namespace` and `server_address` on this machine.

    Attributes:
        launcher: the command that starts a program in the namespace.
    """

    namespace: str
    server_address: str
    network: str

    @property
    def launcher(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def lose(self, share: float) -> None:
        """Loses this share of the packets in each direction, from 0 to 1, without an ICMP message."""
        hooks = ("input", "output") if share else ()
        drop = "drop" if share == 1 else f"numgen random mod 1000 < {share * 1000:.0f} drop"
        rules = "".join(f"chain {hook} {{ type filter hook {hook} priority 0; {drop}; }}\n" for hook in hooks)
        table = f"table inet lossy {{}}\ndelete table inet lossy\ntable inet lossy {{\n{rules}}}\n"
        _run(*self.launcher, "nft", "-f", "-", given=table)


@contextmanager
def lossy_link() -> Iterator[LossyLink]:
    """Makes the link for the duration of the context. Skips the test if this machine can't."""
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            pytest.skip(f"losing packets needs Linux's `{program}`, which is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root can create a network namespace")
    number = next(_numbers)
    name, near, far = f"billing{number}", f"bn{number}", f"bf{number}"
    link = LossyLink(name, f"10.213.{number}.1", f"10.213.{number}.0/24")
    with ExitStack() as stack:
        try:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
            _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
            stack.callback(_run, "ip", "link", "delete", near)
            _run("ip", "address", "add", f"{link.server_address}/24", "dev", near)
            _run("ip", "link", "set", near, "up")
            _run("ip", "-n", name, "address", "add", f"10.213.{number}.2/24", "dev", far)
            _run("ip", "-n", name, "link", "set", far, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            link.lose(0.01)
            link.lose(0)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"can't create a namespace that loses packets: {' '.join(error.cmd)}: {error.stderr.strip()}")
        yield link


def _run(*command: str, given: str | None = None) -> None:
    subprocess.run(command, input=given, capture_output=True, text=True, check=True)
