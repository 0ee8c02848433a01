"""Runs inside a container, by `python -`, with its orders in `ORDERS`: tries what an attacker there would try.

Standard library only. Prints one JSON object.
"""

import json
import os
import re
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ORDERS = json.loads(os.environ.get("ORDERS", "{}"))
ANSWER = 15.0  # a server next door may be busy
PATIENCE = 2.0  # seconds: a container next door answers at once; what is dropped silently stays silent


def reached(places: dict[str, list[tuple[str, int, str, str]]]) -> dict[str, bool]:
    """By target, whether it answers at any of its places; all are tried at once."""
    flat = [(name, place) for name, where in places.items() for place in where]
    with ThreadPoolExecutor(max(1, len(flat))) as pool:
        answered = list(pool.map(lambda entry: answers(*entry[1]), flat))
    return {name: any(did for (of, _), did in zip(flat, answered, strict=True) if of == name) for name in places}


def answers(host: str, port: int, hello: str, answer: str) -> bool:
    """Whether what listens there is what is looked for: a gateway may accept every connection."""
    return re.match(answer, said(host, port, hello)) is not None


def writable(folders: list[str]) -> list[str]:
    found = []
    for folder in folders:
        path = Path(folder, ".attack")
        try:
            path.write_text("x")
            path.unlink()
            found.append(folder)
        except OSError:
            pass
    return found


def status_of(method: str, url: str, token: str) -> int:
    """The HTTP status of a request; 0 where there is no answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    body = b"{}" if method == "POST" else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def said(host: str, port: int, text: str) -> str:
    """The first words of whoever listens there."""
    try:
        with socket.create_connection((host, port), PATIENCE) as link:
            link.sendall(text.encode("latin-1"))
            link.settimeout(ANSWER)
            return link.recv(200).decode(errors="replace").strip()
    except OSError as error:
        return type(error).__name__


def token(name: str) -> str:
    """A secret by its file's name, or the text itself."""
    path = Path("/run/secrets") / name
    return path.read_text().strip() if name and path.is_file() else name


def rights() -> dict[str, str]:
    status = Path("/proc/self/status").read_text().splitlines()
    lines = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    return {name: lines[name].split("\t")[0] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}


def secrets() -> list[str]:
    folder = Path("/run/secrets")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


print(
    json.dumps(
        {
            "reached": reached(ORDERS.get("places", {})),
            "writable": writable(ORDERS.get("folders", [])),
            "requests": [status_of(method, url, token(key)) for method, url, key in ORDERS.get("requests", [])],
            "said": [said(*order) for order in ORDERS.get("said", [])],
            "rights": rights(),
            "secrets": secrets(),
            "sockets": [str(path) for path in Path("/run").glob("**/*.sock")],
        }
    )
)
