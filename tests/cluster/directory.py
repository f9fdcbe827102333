"""A real LDAP directory: Debian's slapd with a database in a folder, on a loopback port of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from tests.cluster.folder_server import FolderServer
from tests.cluster.service import Service, ServiceFailed, free_ports

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_SCHEMAS = Path("/etc/ldap/schema")
BASE = "dc=example,dc=org"
WORKER = f"cn=worker,{BASE}"
PASSWORD = "worker's password"

_PEOPLE = f"""\
dn: {BASE}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: {WORKER}
objectClass: person
cn: worker
sn: worker
userPassword: {PASSWORD}

"""


def missing() -> list[str]:
    """What this machine lacks for a directory; empty when it can be started."""
    return [name for name in ("slapd", "slapadd") if shutil.which(name, path=_PATH) is None]


class Directory(FolderServer):
    """`with Directory({"alice@example.org": ["alice"]}) as directory: ...`; only `WORKER` may read it.

    Args:
        people: Mail address -> uids. Each address is one entry.
        certificate, key: Files with which it answers on `ldaps` as well.
    """

    def __init__(
        self, people: dict[str, list[str]], *, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        super().__init__("slapd-")
        self._port, self._tls_port = free_ports(2)
        self.url = f"ldap://127.0.0.1:{self._port}"
        self.tls_url = f"ldaps://localhost:{self._tls_port}"
        self._write(people, certificate, key)
        urls = self.url if certificate is None else f"{self.url} {self.tls_url}"
        command = [shutil.which("slapd", path=_PATH) or "slapd", "-d", "0", "-f", str(self._conf), "-h", urls]
        self.service = Service("slapd", command, self.folder / "slapd.log", {"PATH": _PATH})

    @property
    def _conf(self) -> Path:
        return self.folder / "slapd.conf"

    def _write(self, people: dict[str, list[str]], certificate: Path | None, key: Path | None) -> None:
        (self.folder / "db").mkdir()
        tls = f"TLSCertificateFile {certificate}\nTLSCertificateKeyFile {key}\n" if certificate else ""
        schemas = "".join(f"include {_SCHEMAS}/{name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
        self._conf.write_text(
            f"{schemas}pidfile {self.folder}/pid\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n{tls}"
            f'database mdb\nmaxsize 10485760\nsuffix "{BASE}"\ndirectory {self.folder}/db\n'
            f'access to attrs=userPassword by anonymous auth\naccess to * by dn="{WORKER}" read by * none\n'
        )
        entries = "".join(
            f"dn: cn=person{number},{BASE}\nobjectClass: inetOrgPerson\ncn: person{number}\nsn: x\nmail: {mail}\n"
            + "".join(f"uid: {uid}\n" for uid in uids)
            + "\n"
            for number, (mail, uids) in enumerate(people.items())
        )
        done = subprocess.run(
            [shutil.which("slapadd", path=_PATH) or "slapadd", "-f", str(self._conf)],
            input=_PEOPLE + entries,
            capture_output=True,
            text=True,
            env={"PATH": _PATH},
        )
        if done.returncode:
            raise ServiceFailed(f"slapadd exited with {done.returncode}: {done.stderr}")

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=5):
                return True
        except OSError:
            return False
