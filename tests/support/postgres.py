"""A PostgreSQL of a test's own: a throw-away cluster in a temporary folder, on loopback."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_port


@contextmanager
def cluster() -> Iterator[str]:
    """Give the URL of a fresh database, for as long as it is entered."""
    # Not in a session's own folder: the account that it runs as must come there, and a socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="flora-pg-", dir="/tmp"))
    if os.getuid() == 0:  # a server that root runs refuses to start
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
    port = free_port()
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    server = ("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w")
    try:
        _run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "flora")
        _run(*server, "-o", settings, "start")
        try:
            yield f"postgresql://flora@127.0.0.1:{port}/postgres"
        finally:
            _run(*server, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _run(program: str, *words: str) -> None:
    path = shutil.which(program) or str(max(Path("/usr/lib/postgresql").glob(f"*/bin/{program}")))
    as_whom = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()
    subprocess.run((*as_whom, path, *words), check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=120)
