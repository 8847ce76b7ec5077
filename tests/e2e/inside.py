"""Runs SQL, commands and HTTP requests in a pod of the project's image. workbench.py passes this file to `python3 -c`.

The request is a JSON object on standard input, the response one on standard output. Connection strings arrive only on
standard input, so no process list and no audit log of the API server contains a password.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.rows import dict_row


def sql(url: str, statements: list[tuple[str, Any]]) -> dict[str, Any]:
    """Runs each statement in its own transaction and returns the rows of the last one."""
    rows: list[dict[str, Any]] = []
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=10, row_factory=dict_row) as connection:
            for text, parameters in statements:
                cursor = connection.execute(text, parameters or None)
                rows = cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        return {"error": str(error).strip(), "sqlstate": error.sqlstate}
    return {"rows": rows}


def run(arguments: list[str], environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Runs a program of the image."""
    done = subprocess.run(
        arguments,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def get(url: str) -> dict[str, Any]:
    """Sends an HTTP request. The status is 0 if there is no response."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - an address of the cluster
            return {"status": response.status, "body": response.read().decode(errors="replace")}
    except urllib.error.HTTPError as error:
        with error:
            return {"status": error.code, "body": error.read().decode(errors="replace")}
    except OSError as error:
        return {"status": 0, "body": str(error)}


def resolve(name: str) -> dict[str, Any]:
    """Tries to resolve a name with the cluster's DNS."""
    try:
        return {"known": bool(socket.getaddrinfo(name, None))}
    except OSError:
        return {"known": False}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    actions: dict[str, Callable[..., dict[str, Any]]] = {"sql": sql, "run": run, "get": get, "resolve": resolve}
    json.dump(actions[request.pop("do")](**request), sys.stdout, default=str)
