"""The Flower ClientApp: messages in, the host's answer out."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..common.messages import (
    hosting_reply,
    read_popularity_task,
    read_train_task,
    update_reply,
)
from .host import DeviceHost


def build_client_app(find_host: Callable[[Context], DeviceHost]) -> ClientApp:
    """A ClientApp over the host that ``find_host`` names for a node.

    Args:
        find_host: node context → host; called for every message, so it should keep its hosts.
    """
    app = ClientApp()

    @app.query("hosting")
    def hosting(message: Message, context: Context) -> Message:
        devices = find_host(context).devices
        return hosting_reply(message, first=devices.start, count=len(devices))

    @app.query("popularity")
    def popularity(message: Message, context: Context) -> Message:
        task = read_popularity_task(message)
        return update_reply(message, task.binding, find_host(context).contribute(task))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = read_train_task(message)
        return update_reply(message, task.binding, find_host(context).train(task))

    return app
