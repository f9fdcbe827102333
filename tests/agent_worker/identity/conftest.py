"""A real LDAP directory for the tests of its mapper."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster.directory import Directory, missing

PEOPLE = {
    "alice@example.org": ["alice"],
    "bob@example.org": ["bob", "robert"],
    "carol(x)@example.org": ["carol"],
    "nobody@example.org": [],
}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directory's certificate, which nobody but itself vouches for, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(encoding))
    (folder / "key.pem").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="session")
def directory(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> Iterator[Directory]:
    """A real slapd with `PEOPLE` in it; only the worker may read it."""
    lacking = missing()
    if lacking:
        required = request.config.getoption("--require-slurm") or os.environ.get("JOBBERGATE_FLOWS_REQUIRE_SLURM")
        (pytest.fail if required else pytest.skip)(f"no LDAP directory here: {', '.join(lacking)} missing")
    with Directory(PEOPLE, certificate=certificate[0], key=certificate[1]) as started:
        yield started
