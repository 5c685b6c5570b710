"""`edgewise token`: tokens of HTTP clients, in a file that the ports of this machine read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.cli.main import help_text, make_app
from edgewise.cli.output import AsJson, Output

app = make_app("Make, list and revoke the tokens of HTTP clients.")

TokensFile = Annotated[Path, typer.Option("--tokens", help="The file; give it to serve, agent or coordinator.")]
TokenName = Annotated[str, typer.Argument(help="Whose token it is: a-z 0-9 . _ -")]
DEFAULT = Path("tokens.json")


def _verb(function: Any) -> Any:
    return app.command(function.__name__.removesuffix("_all"), help=help_text(function))(function)


@_verb
def create(
    name: TokenName,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="infer, feedback, metrics or manage (all); repeat for several. Default: infer."),
    ] = None,
    days: Annotated[float, typer.Option("--days", min=0.0, max=36525.0, help="How long; 0 for ever.")] = 365.0,
    tokens: TokensFile = DEFAULT,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Write the token there, 0600, not to the screen.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; it is shown once and stored as a hash.

    Example:
      edgewise token create cam-7 --role infer --role feedback --tokens tokens.json --out cam-7.token
    """
    from edgewise.core.files import check_writable, write_atomic
    from edgewise.security.tokens import TokenFile

    out, roles = Output(as_json), role or ["infer"]
    if out_file is not None:
        check_writable(out_file)
    text = TokenFile(tokens).create(name, roles, days)
    if out_file is None:
        out.line(f"token {name!r} ({', '.join(roles)}), shown this once: {text}")
    else:
        write_atomic(out_file, f"{text}\n".encode(), mode=0o600)
        out.line(f"token {name!r} ({', '.join(roles)}) is in {out_file}; {tokens} has its hash")
    shown = {"token": text} if out_file is None else {"file": out_file}
    out.result({"name": name, "roles": roles, "tokens": tokens, **shown})


@_verb
def list_all(tokens: TokensFile = DEFAULT, as_json: AsJson = False) -> None:
    """List the tokens of a file, without what cannot be shown again.

    Example:
      edgewise token list --tokens tokens.json
    """
    from edgewise.security.certificates import utc_now
    from edgewise.security.tokens import TokenFile

    out, found, now = Output(as_json), TokenFile(tokens).all(), utc_now()
    ends = {t.name: "never" if t.expires is None else f"{t.expires:%Y-%m-%d}" for t in found}
    rows = [
        [t.name, " ".join(t.roles), f"{t.created:%Y-%m-%d}", f"{ends[t.name]}{' (over)' if t.is_expired(now) else ''}"]
        for t in found
    ]
    out.table(f"tokens in {tokens}", ["name", "roles", "made", "expires"], rows)
    out.result([{"name": t.name, "roles": list(t.roles), "created": t.created, "expires": t.expires} for t in found])


@_verb
def revoke(name: TokenName, tokens: TokensFile = DEFAULT, as_json: AsJson = False) -> None:
    """Take a token away; running ports refuse it from the next request on.

    Example:
      edgewise token revoke cam-7 --tokens tokens.json
    """
    from edgewise.security.tokens import TokenFile

    out = Output(as_json)
    TokenFile(tokens).revoke(name)
    out.line(f"revoked {name!r}; ports that read {tokens} refuse it now")
    out.result({"name": name, "revoked": True})
