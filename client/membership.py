"""A site's registered key, and the other sites' public ones: who says so in secure aggregation.

They are the keys with which SuperNodes authenticate (``fedspact keys``, or ``ssh-keygen -t ecdsa -b 384``). Whose
public keys lie in a site's ``member_keys`` folder is decided by the site's own people: a server that names other sites
than these, or signs in their place, is found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from client.site import Site
from spact_models.errors import UserError

SUFFIXES = (".key.pub", ".pub")
ALGORITHM = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True)
class Membership:
    """Signs for this site, and checks what others are said to have signed."""

    site: str
    key: ec.EllipticCurvePrivateKey
    members: Mapping[str, ec.EllipticCurvePublicKey]  # by site name, this site's own included

    def sign(self, text: bytes) -> bytes:
        return self.key.sign(text, ALGORITHM)

    def signed(self, name: str, signature: bytes, text: bytes) -> bool:
        """Whether the member of this name has signed the text; False for a name that is no member's."""
        try:
            self.members[name].verify(signature, text, ALGORITHM)
        except (KeyError, InvalidSignature):
            return False
        return True


def open_membership(site: Site) -> Membership:
    """The site's key and its list of members.

    Raises:
        UserError: a file is missing or is no such key, or the list has another key under this site's name.
    """
    if site.signing_key is None or site.member_keys is None:
        raise UserError(
            "the run wants secure aggregation, and this site's file lacks signing_key (its own key, as for its "
            "SuperNode) or member_keys (a folder with every site's public key as NAME.pub)"
        )
    key = _private(site.signing_key)
    members = _members(site.member_keys)
    if site.name not in members:
        raise UserError(f"member_keys = {str(site.member_keys)!r}, holds no {site.name}.pub: this site's own is needed")
    if _raw(members[site.name]) != _raw(key.public_key()):
        raise UserError(f"member_keys: {site.name}.pub is not the public half of signing_key; one of the two is old")
    return Membership(site.name, key, members)


def _members(folder: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    try:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(".pub"))
        found: dict[str, ec.EllipticCurvePublicKey] = {}
        for file in files:
            name = next(file.name.removesuffix(end) for end in SUFFIXES if file.name.endswith(end))
            if name in found:
                raise UserError(f"member_keys: {folder} holds two keys of {name}; keep one")
            found[name] = _public(file)
    except OSError as error:
        raise UserError(f"member_keys = {str(folder)!r}, cannot be read ({error.strerror or error})") from None
    owners: dict[bytes, str] = {}
    for name, key in found.items():
        other = owners.setdefault(_raw(key), name)
        if other != name:
            raise UserError(f"member_keys: {other} and {name} have one key; two sites with one key are one site")
    return found


def _public(file: Path) -> ec.EllipticCurvePublicKey:
    key: Any
    try:
        key = load_ssh_public_key(file.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError(f"{file}: must be an elliptic-curve public key in OpenSSH's format, as `fedspact keys` writes")
    return key


def _private(file: Path) -> ec.EllipticCurvePrivateKey:
    key: Any = None
    try:
        content = file.read_bytes()
        load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in content else load_pem_private_key
        key = load(content, None)
    except OSError as error:
        raise UserError(f"signing_key = {str(file)!r}, cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(
            f"signing_key = {str(file)!r}, must be an elliptic-curve private key without a passphrase, as "
            "`fedspact keys` writes"
        )
    return key


def _raw(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
