"""`edgewise ca`: one certificate authority per fleet, kept by a person; every node gets a folder of three files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.cli.main import help_text, make_app
from edgewise.cli.output import AsJson, Output

if TYPE_CHECKING:
    from edgewise.security.authority import CertificateFiles

app = make_app("Make a fleet's certificate authority and issue node certificates.")

CaFolder = Annotated[Path, typer.Option("--ca", help="The authority's folder.")]
Hosts = Annotated[list[str] | None, typer.Option("--host", help="Name or address it listens on; repeat for several.")]
Days = Annotated[float, typer.Option("--days", min=0.0, max=36525.0, help="How long it is valid; more than 0.")]
Node = Annotated[str, typer.Argument(help="The node's name, unique in the fleet: a-z 0-9 . _ -")]
TierName = Annotated[str, typer.Option("--tier", help="device, edge or cloud.")]


def _verb(function: Any) -> Any:
    return app.command(function.__name__, help=help_text(function))(function)


@_verb
def init(
    folder: Annotated[Path, typer.Argument(help="Where the authority is kept. Its ca.key never leaves this folder.")],
    fleet: Annotated[str, typer.Option("--fleet", help="The fleet's name.")] = "main",
    days: Days = 3650.0,
    as_json: AsJson = False,
) -> None:
    """Make a fleet's certificate authority.

    Example:
      edgewise ca init ca --fleet home
    """
    from edgewise.security.authority import create_authority

    out = Output(as_json)
    authority = create_authority(folder, fleet, days=days)
    out.line(f"made the authority of fleet {authority.fleet!r} in {folder}; keep {folder / 'ca.key'} to yourself")
    out.result({"fleet": authority.fleet, "folder": folder, "ca": folder / "ca.pem"})


@_verb
def issue(
    node: Node,
    tier: TierName,
    folder: Annotated[Path | None, typer.Option("--out", help="The node's folder; default: nodes/NODE.")] = None,
    host: Hosts = None,
    days: Days = 365.0,
    ca: CaFolder = Path("ca"),
    as_json: AsJson = False,
) -> None:
    """Make key and certificate of one node, to be copied to it.

    Example:
      edgewise ca issue edge-1 --tier edge --host 192.168.1.10 --ca ca --out nodes/edge-1
    """
    from edgewise.security.authority import Authority
    from edgewise.security.certificates import LOOPBACK, tier_of

    hosts = (*LOOPBACK, *(host or ()))
    files = Authority.load(ca).issue(node, tier_of(tier), hosts=hosts, days=days)
    _written(Output(as_json), files, files.write(folder or Path("nodes") / node))


@_verb
def request(
    node: Node,
    tier: TierName,
    folder: Annotated[Path | None, typer.Option("--out", help="The node's folder; default: nodes/NODE.")] = None,
    host: Hosts = None,
    as_json: AsJson = False,
) -> None:
    """Make a node's key on the node itself, and a request to carry to the authority.

    Example:
      edgewise ca request device-9 --tier device --out nodes/device-9
    """
    from edgewise.security.authority import make_request
    from edgewise.security.certificates import LOOPBACK, tier_of

    out = Output(as_json)
    place = folder or Path("nodes") / node
    make_request(place, node, tier_of(tier), hosts=(*LOOPBACK, *(host or ())))
    out.line(f"made {place / 'node.key'} (stays here) and {place / 'node.csr'}; sign that with: edgewise ca sign")
    out.result({"node": node, "tier": tier, "request": place / "node.csr"})


@_verb
def sign(
    csr: Annotated[Path, typer.Argument(help="The node's request, node.csr.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Where to write; default: beside the request.")] = None,
    host: Hosts = None,
    days: Days = 365.0,
    ca: CaFolder = Path("ca"),
    as_json: AsJson = False,
) -> None:
    """Sign a request whose key was born on the node.

    Example:
      edgewise ca sign nodes/device-9/node.csr --ca ca
    """
    from edgewise.security.authority import Authority
    from edgewise.security.certificates import LOOPBACK

    allowed = (*LOOPBACK, *(host or ()))
    files = Authority.load(ca).sign_request(csr.read_bytes(), allow_hosts=allowed, days=days)
    _written(Output(as_json), files, files.write(folder or csr.parent))


@_verb
def https(
    name: Annotated[str, typer.Argument(help="Whose HTTP port, e.g. the device's name.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Where to write; default: https/NAME.")] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Name or address that clients call; repeat for several.")
    ] = None,
    days: Days = 365.0,
    ca: CaFolder = Path("ca"),
    as_json: AsJson = False,
) -> None:
    """Make key and certificate of a device's HTTP port; its clients trust the ca.pem beside them.

    Example:
      edgewise ca https device-1 --host 192.168.1.20 --ca ca --out https/device-1
    """
    from edgewise.security.https_authority import issue_https

    out = Output(as_json)
    place = issue_https(ca, name, tuple(host or ()), days, folder=folder or Path("https") / name)
    out.line(f"made http.pem and http.key in {place}; clients trust {place / 'ca.pem'}")
    out.result({"name": name, "folder": place, "ca": place / "ca.pem"})


@_verb
def revoke(node: Node, ca: CaFolder = Path("ca"), as_json: AsJson = False) -> None:
    """Put every certificate of a node on the signed list that nodes refuse by.

    Example:
      edgewise ca revoke device-9 --ca ca
    """
    from edgewise.security.authority import Authority

    out = Output(as_json)
    added = Authority.load(ca).revoke(node)
    out.line(f"revoked {added} certificate(s) of {node!r}; copy {ca / 'revoked.crl'} to the nodes that shall refuse it")
    out.result({"node": node, "revoked": added, "list": ca / "revoked.crl"})


def _written(out: Output, files: CertificateFiles, folder: Path) -> None:
    subject = files.subject
    names = ["ca.pem", "node.pem", *(["node.key"] if files.key else [])]
    out.line(f"{subject.tier} {subject.node!r} of fleet {subject.fleet!r}: {', '.join(names)} in {folder}")
    out.line(f"valid until {files.expires:%Y-%m-%d}")
    out.result(
        {"node": subject.node, "tier": subject.tier, "fleet": subject.fleet, "folder": folder, "expires": files.expires}
    )
