"""``fedprofile device enroll``: join a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.console import remark
from .device_cli import DEVICE
from .device_folder import DeviceFolder

enroll_app = typer.Typer(rich_markup_mode=None, add_completion=False)

_ENROLL = """Make the key that a server knows this device by, and take the server's bundle.

\b
Examples:
  fedprofile device enroll phone --server-bundle bundle.zip
  fedprofile device enroll phone                              where init took the bundle

Prints the name of the file with the public key; its operator admits the device by
'fedprofile server enroll'. Exit codes: 0 success; 2 no bundle, or it can't be used.
"""


@enroll_app.command(help=_ENROLL)
def enroll(
    path: Annotated[Path, DEVICE],
    server_bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="bundle.zip of the server")
    ] = None,
) -> None:
    """See the help text above."""
    from .model_delivery import join_server
    from .node_keys import ensure_node_key

    folder = DeviceFolder.open(path)
    if server_bundle is not None:
        join_server(folder, server_bundle)
    ensure_node_key(folder)
    if not folder.server_facts.exists():
        remark("No server yet: give its bundle by --server-bundle.")
    remark("Hand this file to the server's operator:")
    typer.echo(str(folder.node_public_key))
