"""A look at the way to the SuperLink before anything is started: each failure in words for the site's people."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from spact_models.errors import UserError

SOON_DAYS = 30  # a certificate that ends within this is worth a word to the operator
WAIT_SECONDS = 10.0
# OpenSSL's codes, from its x509_vfy.h
NOT_YET_VALID, EXPIRED, HOST_DIFFERS, ADDRESS_DIFFERS = 9, 10, 62, 64
UNKNOWN_ISSUERS = (2, 18, 19, 20, 21, 27)


@dataclass(frozen=True)
class Connection:
    """What was found on the way to ``address``. ``reached`` without ``fine``: somebody answers, not as it should be."""

    address: str
    reached: bool
    fine: bool
    said: str
    days_left: int | None = None


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[IPv6]:port``.

    Raises:
        UserError: it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 2**16):
        raise UserError(f"--superlink {address!r}, must be HOST:PORT without a prefix, such as server.example.org:8000")
    return host, int(port)


def look(address: str, root_certificates: Path | None, wait_seconds: float = WAIT_SECONDS) -> Connection:
    """Open a connection, and with ``root_certificates`` speak TLS and check the server's certificate; send nothing.

    Raises:
        UserError: the address or the CA's file is not usable.
    """
    host, port = split_address(address)
    context = None if root_certificates is None else _context(root_certificates)
    try:
        plain = socket.create_connection((host, port), timeout=wait_seconds)
    except (socket.gaierror, UnicodeError):
        return Connection(
            address, False, False, f"the name {host!r} is not known here; check it, or this machine's DNS"
        )
    except ConnectionRefusedError:
        said = f"{host} refuses port {port}: nothing listens there. Is the SuperLink up, and is this its --port?"
        return Connection(address, False, False, said)
    except TimeoutError:
        said = f"no answer from {host} port {port} in {wait_seconds:g} s: a firewall on the way, or a wrong address"
        return Connection(address, False, False, said)
    except OSError as error:
        return Connection(address, False, False, f"{host} port {port} cannot be reached ({error.strerror or error})")
    with plain:
        if context is None:
            said = "somebody listens; without TLS everything on the way can be read and changed: one machine only"
            return Connection(address, True, True, said)
        try:
            with context.wrap_socket(plain, server_hostname=host) as secured:
                certificate = secured.getpeercert()
        except ssl.SSLCertVerificationError as error:
            return Connection(address, True, False, _certificate_fault(error, host, root_certificates))
        except (ssl.SSLError, OSError) as error:
            return Connection(address, True, False, _no_tls(error, host, port))
    return _judged(address, certificate)


def _context(root_certificates: Path) -> ssl.SSLContext:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the name; knows no CA but this one
        context.load_verify_locations(cafile=root_certificates)
    except ssl.SSLError:
        raise UserError(
            f"--root-certificates {root_certificates}: no certificate in PEM form; take the ca.crt"
        ) from None
    except OSError as error:
        raise UserError(
            f"--root-certificates {root_certificates}: {error.strerror or error}; take the ca.crt"
        ) from None
    return context


def _certificate_fault(error: ssl.SSLCertVerificationError, host: str, ca: Path | None) -> str:
    code = error.verify_code
    if code == EXPIRED:
        return "the server's certificate (or its CA's) has expired; the operator must make new ones (`fedspact keys`)"
    if code == NOT_YET_VALID:
        return "the server's certificate is not valid yet; compare this machine's clock with the server's"
    if code in (HOST_DIFFERS, ADDRESS_DIFFERS):
        return (
            f"the server's certificate is for other names than {host!r}; use a name that it holds, or have the "
            f"operator make one with `fedspact keys ... --server {host}`"
        )
    if code in UNKNOWN_ISSUERS:
        return (
            f"the server's certificate is not from the CA in {ca}: a wrong ca.crt, an exchanged server, or somebody in "
            "between. Ask the operator for the federation's ca.crt over another way"
        )
    return f"the server's certificate is refused ({error.verify_message})"


def _no_tls(error: Exception, host: str, port: int) -> str:
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return f"{host} port {port} answers, but not with TLS ({reason}): a SuperLink with --insecure, or another program"


def _judged(address: str, certificate: object) -> Connection:
    end = certificate.get("notAfter") if isinstance(certificate, dict) else None
    days = int((ssl.cert_time_to_seconds(str(end)) - time.time()) // 86400)
    said = f"TLS is fine; the server's certificate is valid for {days} more days"
    if days < SOON_DAYS:
        said += ": tell the operator to renew it"
    return Connection(address, True, True, said, days)
