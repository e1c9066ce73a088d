"""Makes the stubs of ``edge_v1.proto``: ``python -m fedprofile.client.edge_v1_stubs``; a test compares."""

from __future__ import annotations

import sys
from pathlib import Path

from ..common.errors import ConfigError

PROTO = Path(__file__).with_name("edge_v1.proto")


def write_stubs(folder: Path) -> None:
    """Write ``edge_v1_pb2.py``, ``edge_v1_pb2.pyi`` and ``edge_v1_pb2_grpc.py`` into ``folder``.

    Raises:
        ConfigError: the definition has a mistake, which is told on standard error.
    """
    from grpc_tools import protoc

    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO.parent}", *outputs, PROTO.name]):
        raise ConfigError(f"{PROTO}: can't be compiled")
    stub = folder / "edge_v1_pb2_grpc.py"
    # Modules of a package import one another relatively.
    text = stub.read_text(encoding="utf-8")
    stub.write_text(text.replace("\nimport edge_v1", "\nfrom . import edge_v1"), encoding="utf-8")


if __name__ == "__main__":
    write_stubs(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO.parent)
