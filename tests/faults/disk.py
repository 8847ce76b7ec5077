"""A disk that can be full: a tmpfs of a few MiB, for which a test must be root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from controller.demo.server import Account

_BLOCK: Final = bytes(64 * 1024)


@dataclass(frozen=True)
class Disk:
    """Mounted at `path`."""

    path: Path

    def fill(self) -> None:
        """To the last byte."""
        with suppress(OSError), (self.path / "ballast").open("ab", buffering=0) as ballast:
            while ballast.write(_BLOCK):
                pass

    def free(self) -> None:
        """What `fill` took."""
        (self.path / "ballast").unlink(missing_ok=True)


def own(account: Account, path: Path) -> None:
    """Makes the account the owner of the folder and everything in it."""
    for each in (path, *path.rglob("*")):
        os.chown(each, account.user or -1, account.group or -1, follow_symlinks=False)


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Disk]:
    """A disk of its own for PostgreSQL, until the end of the block. Skips the test where none can be mounted."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("a disk that can be full is a mount, for which the test must be root")
    account = Account.unprivileged()
    folder = account.make_folder()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        own(account, folder)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
