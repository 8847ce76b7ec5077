"""A disk that can fill up: a tmpfs of a few MiB. Only root can mount it."""

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
    """A file system mounted at `path`."""

    path: Path

    def fill(self) -> None:
        """Fills the disk to the last byte."""
        with suppress(OSError), (self.path / "ballast").open("ab", buffering=0) as ballast:
            while ballast.write(_BLOCK):
                pass

    def free(self) -> None:
        """Frees what `fill` took."""
        (self.path / "ballast").unlink(missing_ok=True)


def own(account: Account, path: Path) -> None:
    """Makes the account the owner of the folder and everything in it."""
    for each in (path, *path.rglob("*")):
        os.chown(each, account.user or -1, account.group or -1, follow_symlinks=False)


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Disk]:
    """Mounts a disk for PostgreSQL for the duration of the context. Skips the test if it can't."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    account = Account.unprivileged()
    folder = account.make_folder()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"can't mount a tmpfs: {done.stderr.strip()}")
    try:
        own(account, folder)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
