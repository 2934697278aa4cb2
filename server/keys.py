"""``fedspact keys``: everything that TLS and SuperNode authentication need, made once by the operator.

A CA of the federation's own, the server's certificate for its names and addresses, and for each site a key pair of the
kind that Flower's SuperNode authentication takes (elliptic curve P-384, OpenSSH's format). A site that makes its own
pair with ``ssh-keygen -t ecdsa -b 384`` hands over only the public half, which is better still; see docs/sites.md.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from spact_models.errors import UserError

HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DAYS = 365  # a year: long enough for a study, short enough that a stolen key ends by itself
CLOCK_SKEW = timedelta(minutes=5)  # a site's clock may be behind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``fedspact keys``."""
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make; must not hold anything yet")
    parser.add_argument(
        "--server", metavar="HOST", nargs="+", required=True, help="names and addresses by which sites reach the server"
    )
    parser.add_argument("--sites", metavar="NAME", nargs="+", default=[], help="make a key pair for each of these")
    parser.add_argument("--days", metavar="N", type=int, default=DAYS, help=f"validity (default: {DAYS})")


def run(args: argparse.Namespace) -> int:
    """Make the files and say which goes where."""
    make_keys(args.out, args.server, args.sites, args.days)
    end = datetime.now(UTC) + timedelta(days=args.days)
    print(f"wrote {args.out}, certificates valid until {end:%Y-%m-%d}")
    told = {
        "ca.crt": "to every site and to the operator",
        "ca.key": "keep it off the server; whoever has it can pass for the server",
        "server/": "server.crt and server.key: to the server, beside ca.crt",
        **{
            f"sites/{site}/": f"{site}.key to the site over a safe way, then delete it here; {site}.key.pub stays"
            for site in args.sites
        },
        "members/": "every site's public key: to every site, for secure aggregation (docs/sites.md)",
    }
    width = max(map(len, told))
    print("\n".join(f"  {name:<{width}}  {what}" for name, what in told.items()))
    out = shlex.quote(str(args.out))
    print(f"next: fedspact server start --keys {out}")
    if args.sites:
        print(f"then: fedspact server register CONNECTION {out}/sites/*/*.pub")
        print("      CONNECTION is the SuperLink's name in Flower's config.toml: `first` for [superlink.first]")
    return 0


def make_keys(out: Path, hosts: Sequence[str], sites: Sequence[str], days: int) -> None:
    """Write the whole folder; private keys are readable by their owner alone.

    Raises:
        UserError: a name that is no host or no plain name, a number of days out of range, or the folder holds files.
    """
    names = [_general_name(host) for host in hosts]
    for site in sites:
        if SITE.fullmatch(site) is None:
            raise UserError(f"--sites {site!r}, must be letters, digits, dots, dashes: files are named by it")
    if len(set(sites)) != len(sites):
        raise UserError("--sites names a site twice; two sites with one key would be one site")
    if not 1 <= days <= 3650:
        raise UserError(f"--days = {days}, must be from 1 to 3650")
    try:
        _make_folder(out)
        ca_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        ca = _authority(ca_key, days)
        certificate = _server_certificate(ca, ca_key, server_key, names, days)
        _write(out / "ca.key", _private(ca_key), 0o600)
        _write(out / "ca.crt", ca.public_bytes(Encoding.PEM), 0o644)
        for folder in (out / "server", out / "sites", *(out / "sites" / site for site in sites)):
            folder.mkdir(mode=0o700)
        _write(out / "server" / "server.key", _private(server_key), 0o600)
        _write(out / "server" / "server.crt", certificate.public_bytes(Encoding.PEM), 0o644)
        (out / "members").mkdir(mode=0o700)
        for site in sites:
            public = write_pair(out / "sites" / site / f"{site}.key")
            _write(out / "members" / f"{site}.pub", public, 0o644)
    except OSError as error:
        raise UserError(f"OUT = {str(out)!r}, cannot be written ({error.strerror}); choose another place") from error


def write_pair(file: Path) -> bytes:
    """A new private key in ``file`` and its public half in ``file.pub``; returns the public one's line."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    _write(file, _private(key, PrivateFormat.OpenSSH), 0o600)
    _write(file.with_name(f"{file.name}.pub"), public, 0o644)
    return public


def _make_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"OUT = {str(out)!r} exists and is not an empty folder; keys are never overwritten: choose another"
        )
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    out.chmod(0o700)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if HOST.fullmatch(host) is None:
        raise UserError(f"--server {host!r}, must be a host name or an IP address, without a port")
    return x509.DNSName(host)


def _authority(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedspact federation CA")])
    usage = _usage(certificates=True)
    builder = _builder(name, name, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA384())


def _server_certificate(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    days: int,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedspact server")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = _builder(subject, ca.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(_usage(certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(issuer, critical=False)
    return builder.sign(ca_key, hashes.SHA384())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - CLOCK_SKEW).not_valid_after(now + timedelta(days=days))


def _usage(certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    """A new file, with its mode from the first moment."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
