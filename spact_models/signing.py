"""Signatures of released anonymizers: Ed25519 over the model's bytes and its card, in a file beside them.

    anonymizer.safetensors             what is signed
    anonymizer.safetensors.card.json   its model card, signed with it
    anonymizer.safetensors.sig         the signature, as JSON

A signature proves that whoever holds a key has released exactly these bytes with exactly this card. Whether that key
is one to believe is the reader's decision: :func:`verify` takes the public keys that are trusted here, from its caller
or from the folder ``trusted_folder()``. Curves and encodings are the library's (RFC 8032; PKCS #8 and
SubjectPublicKeyInfo in PEM, as OpenSSL reads them).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from spact_models.errors import UserError
from spact_models.files import write_file

FORMAT, FORMAT_VERSION = "fedspact-signature", 1
PUBLIC_SUFFIX = ".pub"
TRUSTED = "FEDSPACT_TRUSTED_KEYS"  # environment: a folder of public keys
LARGEST_SIDE_FILE = 16 * 2**20  # a signature or a card that is larger is neither
Status = Literal["trusted", "unknown-key", "unsigned", "tampered"]


@dataclass(frozen=True)
class Verdict:
    """What a model's signature is worth here, and why.

    ``trusted``: signed by a trusted key, nothing changed since. ``unknown-key``: signed and unchanged, but no key
    trusted here made it. ``unsigned``: there is no signature. ``tampered``: there is one and it does not hold; such a
    file must never be used.
    """

    status: Status
    reason: str
    key: str = ""  # fingerprint of the key that signed; empty where nothing was signed or nothing holds

    @property
    def trusted(self) -> bool:
        return self.status == "trusted"

    @property
    def refused(self) -> bool:
        """To be refused whatever the settings say: somebody changed what somebody else had signed."""
        return self.status == "tampered"


def card_path(model: Path) -> Path:
    return model.with_name(f"{model.name}.card.json")


def signature_path(model: Path) -> Path:
    return model.with_name(f"{model.name}.sig")


def trusted_folder() -> Path:
    """Where public keys (``*.pub``) lie that this user trusts: ``$FEDSPACT_TRUSTED_KEYS``, or a folder of its own."""
    named = os.environ.get(TRUSTED, "")
    return Path(named).expanduser() if named else Path.home() / ".config" / "fedspact" / "trusted-keys"


def make_key(path: Path) -> Path:
    """Write a new private key to ``path``, readable by its owner alone, and the public one to ``path.pub``.

    Raises:
        UserError: one of the two is there already, or the folder cannot be written.
    """
    public = public_path(path)
    for taken in (path, public):
        if taken.exists():
            raise UserError(f"{taken}: exists, and a lost key cannot be made again. Name another file.")
    key = Ed25519PrivateKey.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Name another place.") from error
    return public


def public_path(private: Path) -> Path:
    return private.with_name(private.name + PUBLIC_SUFFIX)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises UserError: not there, not an Ed25519 key, or readable by others than its owner."""
    content = _read(path, "private key")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UserError(f"private key {path}: others can read it; chmod 600 {path}, and make a new one if they have.")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"private key {path}: cannot be read ({error}); fedspact release keygen FILE makes one."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"private key {path}: not an Ed25519 key; fedspact release keygen FILE makes one.")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Raises UserError: not there, or not an Ed25519 public key."""
    try:
        key = load_pem_public_key(_read(path, "public key"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"public key {path}: cannot be read ({error}); it is the .pub file of fedspact release keygen."
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"public key {path}: not an Ed25519 key; it is the .pub file of fedspact release keygen.")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key: what people compare over the telephone."""
    return hashlib.sha256(_raw(key)).hexdigest()


def sign(model: Path, key: Ed25519PrivateKey) -> Path:
    """Sign ``model`` and its card, which must lie beside it; returns the signature's file.

    Raises:
        UserError: the model or its card is not there, or the signature cannot be written.
    """
    model_sha256, card_sha256 = _digest(model, "model"), _digest(card_path(model), "model card")
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "algorithm": "Ed25519",
        "model_sha256": model_sha256,
        "card_sha256": card_sha256,
        "public_key": base64.b64encode(_raw(key.public_key())).decode(),
        "signature": base64.b64encode(key.sign(_statement(model_sha256, card_sha256))).decode(),
    }
    text = json.dumps(content, indent=2) + "\n"
    write_file(signature_path(model), text, "nothing is signed; free that disk, then release again")
    return signature_path(model)


def verify(model: Path, trusted: Sequence[Path] | None = None) -> Verdict:
    """Whether ``model`` is what somebody released, and whether that somebody is trusted here.

    Args:
        model: the anonymizer's file; signature and card are looked for beside it.
        trusted: public keys that are believed; None: those in :func:`trusted_folder`.

    Raises:
        UserError: the model is not there, or a trusted key cannot be read.
    """
    model_sha256 = _digest(model, "model")
    for key_file in trusted or ():
        read_public_key(key_file)  # a wrong path is a mistake, whatever the model's signature is worth
    signature = signature_path(model)
    if not signature.exists():
        return Verdict("unsigned", f"{model.name} has no signature ({signature.name} is not there)")
    try:
        said = _read_signature(signature)
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(said["public_key"], validate=True))
        signed = base64.b64decode(said["signature"], validate=True)
    except (UserError, KeyError, TypeError, ValueError, binascii.Error) as error:
        return Verdict("tampered", f"{signature.name} is not a signature that can be read ({error})")
    if said.get("model_sha256") != model_sha256:
        return Verdict("tampered", f"{model.name} is not the file that was signed: its SHA-256 differs")
    card = card_path(model)
    if not card.is_file():
        return Verdict("tampered", f"{card.name}, which was signed with the model, is not there")
    if said.get("card_sha256") != _digest(card, "model card"):
        return Verdict("tampered", f"{card.name} is not the card that was signed: its SHA-256 differs")
    try:
        key.verify(signed, _statement(model_sha256, said["card_sha256"]))
    except InvalidSignature:
        return Verdict("tampered", f"{signature.name} was not made by the key that it names")
    return _believed(fingerprint(key), trusted)


def _believed(signer: str, trusted: Sequence[Path] | None) -> Verdict:
    files = sorted(trusted_folder().glob(f"*{PUBLIC_SUFFIX}")) if trusted is None else trusted
    for file in files:
        if fingerprint(read_public_key(file)) == signer:
            return Verdict("trusted", f"released by {file.stem}", signer)
    where = f"in {trusted_folder()}" if trusted is None else "among the named ones"
    return Verdict("unknown-key", f"signed by a key that is not {where}: {signer}", signer)


def _statement(model_sha256: str, card_sha256: str) -> bytes:
    """What is signed. The first line keeps a signature from standing for anything else."""
    return f"{FORMAT} {FORMAT_VERSION}\nmodel {model_sha256}\ncard {card_sha256}\n".encode()


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _read_signature(path: Path) -> dict[str, Any]:
    said = json.loads(_read(path, "signature").decode("utf-8"))
    if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"it is not of format {FORMAT} {FORMAT_VERSION}")
    return said


def _read(path: Path, what: str) -> bytes:
    try:
        if path.stat().st_size > LARGEST_SIDE_FILE:
            raise UserError(f"{what} {path}: larger than {LARGEST_SIDE_FILE} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror}).") from None


def _digest(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror}).") from None
