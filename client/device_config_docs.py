"""``docs/device-configuration.md``, made from the configuration itself so that the two can't differ.

``python -m fedprofile.client.device_config_docs > docs/device-configuration.md`` brings it up to date.
"""

from __future__ import annotations

import sys

from ..common.config_docs import keys_markdown
from .device_config import DeviceConfig

_INTRODUCTION = """\
# Configuration of a device

<!-- Made by `python -m fedprofile.client.device_config_docs > docs/device-configuration.md`; a test
compares. -->

`device.toml` in the folder of a device holds what its owner decides. `fedprofile device init` writes it
with all keys; change it with an editor, and restart the process that runs the device. An unknown key is
an error.
"""


def device_configuration_markdown() -> str:
    """The whole document."""
    return keys_markdown(DeviceConfig, _INTRODUCTION)


if __name__ == "__main__":
    sys.stdout.write(device_configuration_markdown())
