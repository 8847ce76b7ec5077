"""The server's certificate is verified against the system's authorities, or against DATABASE_CA_FILE."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import settings
from controller.demo.process import COMMAND, clean_environment
from controller.doctor import Level, examine
from controller.postgres import certificates
from controller.postgres.certificates import BUNDLES, use_system_certificates
from tests.support.servers import Server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.crt")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder / "ca.crt"


@pytest.fixture
def url(authority: Path) -> Iterator[str]:
    """A server that accepts TLS, by its name in the certificate. Its version makes no difference to the client."""
    server = Server()
    server.start()
    for file in (authority, authority.with_suffix(".key")):
        copy = server.folder / "data" / file.name
        shutil.copy(file, copy)
        copy.chmod(0o600)
        owner = copy.parent.stat()
        os.chown(copy, owner.st_uid, owner.st_gid)
    server.options |= {"ssl": "on", "ssl_cert_file": "ca.crt", "ssl_key_file": "ca.key"}
    server.restart()
    try:
        yield f"postgresql://postgres@localhost:{server.port}/postgres?hostaddr=127.0.0.1"
    finally:
        server.remove()


def check(url: str, **settings: str) -> str:
    """Returns what `migrate --check` prints about a database without the application's tables."""
    done = subprocess.run(
        [*COMMAND, "migrate", "--check"],
        env=clean_environment({"DATABASE_URL": url, **settings}),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stderr


def examined(url: str, **variables: str) -> tuple[Level, str]:
    """Returns what `doctor` says about the encryption."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DATABASE_URL": url, "BILLING_KUBERNETES": "off", **variables}.items():
            patch.setenv(name, value)
        findings = examine(lambda: settings.load(None))
    return next((each.level, each.message) for each in findings if each.check == "tls")


CONNECTED = "this is not a ContainerStacks database"


def test_server_is_verified_against_the_authorities_of_the_system_or_of_a_file(url: str, authority: Path) -> None:
    system = f"{url}&sslmode=verify-full&sslrootcert=system"
    assert CONNECTED in check(system, SSL_CERT_FILE=str(authority))
    assert "certificate verify failed" in check(system), "the machine does not know this authority"
    assert CONNECTED in check(url, DATABASE_CA_FILE=str(authority))
    assert "certificate verify failed" in check(url, DATABASE_CA_FILE=BUNDLES[0])
    assert CONNECTED in check(f"{url}&sslmode=disable", DATABASE_CA_FILE=BUNDLES[0]), "the URL states the mode"
    assert examined(url, DATABASE_CA_FILE=str(authority)) == (Level.OK, "encrypted, sslmode=verify-full")
    level, message = examined(f"{url}&sslmode=require")
    assert (level, message) == (Level.WARNING, "encrypted, but sslmode=require accepts any certificate")
    assert examined(f"{url}&sslmode=disable") == (Level.OK, "not encrypted, and the server is on this host")


@pytest.mark.parametrize("bundle", BUNDLES)
def test_first_bundle_of_the_machine_is_used(bundle: str) -> None:
    environment: dict[str, str] = {}
    use_system_certificates(environment, lambda path: str(path) == bundle)
    assert environment == {"SSL_CERT_FILE": bundle}


def test_machine_without_a_bundle_uses_the_one_of_a_dependency() -> None:
    environment: dict[str, str] = {}
    use_system_certificates(environment, lambda _path: False)
    assert Path(environment["SSL_CERT_FILE"]).read_text("utf-8").count("BEGIN CERTIFICATE") > 50


@pytest.mark.parametrize("variable", [certificates.VARIABLE, "SSL_CERT_DIR"])
def test_choice_of_the_operator_is_kept(variable: str) -> None:
    environment = {variable: "/mine"}
    use_system_certificates(environment)
    assert environment == {variable: "/mine"}
