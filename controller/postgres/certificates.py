"""Makes `sslrootcert=system` work everywhere: in the image, in a wheel, and under systemd.

psycopg's wheels bring their own OpenSSL, which looks for certificates in a directory that exists on no machine. OpenSSL
reads SSL_CERT_FILE instead if it is set.
"""

from collections.abc import Callable, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

VARIABLE: Final = "SSL_CERT_FILE"
#: Bundles of public certificate authorities on Debian, Fedora, openSUSE, Alpine and macOS.
BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def use_system_certificates(
    environment: MutableMapping[str, str], exists: Callable[[Path], bool] = Path.is_file
) -> None:
    """Sets SSL_CERT_FILE to the machine's certificates unless it or SSL_CERT_DIR is set. Call it before connecting."""
    if environment.get(VARIABLE) or environment.get("SSL_CERT_DIR"):
        return
    bundle = next((path for path in BUNDLES if exists(Path(path))), None) or _bundled()
    if bundle is not None:
        environment[VARIABLE] = bundle


def _bundled() -> str | None:
    """Returns the bundle in `certifi`, a dependency of the Kubernetes client; None if it isn't installed."""
    found = find_spec("certifi")
    return str(Path(found.origin).with_name("cacert.pem")) if found and found.origin else None
