"""``docs/server-configuration.md``, made from the configuration itself so that the two can't differ.

``python -m fedprofile.server.server_config_docs > docs/server-configuration.md`` brings it up to date.
"""

from __future__ import annotations

import sys

from ..common.config_docs import keys_markdown
from ..common.server_config import ServerConfig

_INTRODUCTION = """\
# Configuration of a server

<!-- Made by `python -m fedprofile.server.server_config_docs > docs/server-configuration.md`; a test
compares. -->

`server.toml` in the folder of a server holds what its operator decides. `fedprofile server init` writes it
with all keys, from `--config FILE` where that is given. Change `[federation]` with an editor and start the
server again; what decides the result (`items`, `statistics`, `model`, `training`, `privacy`, and the
population's name and size) is fixed once something has been released. `statistics.as_of` must be set;
`init` takes the day. Until something has been released, `init` and `run` refuse a day before 1970 or more
than 30 days ahead, and warn of one that lies further back than the shortest of
`statistics.half_lives_days`. Devices keep the address that was in their bundle.
"""


def server_configuration_markdown() -> str:
    """The whole document."""
    return keys_markdown(ServerConfig, _INTRODUCTION)


if __name__ == "__main__":
    sys.stdout.write(server_configuration_markdown())
