"""The Flower ClientApp: messages in, the host's answer out."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..common.errors import FedprofileError
from ..common.messages import (
    TrainTask,
    hosting_reply,
    read_task,
    read_train_task,
    refusal,
    update_reply,
)
from .host import DeviceHost

_log = logging.getLogger(__name__)


def build_client_app(find_host: Callable[[Context], DeviceHost]) -> ClientApp:
    """A ClientApp over the host that ``find_host`` names for a node.

    It raises nothing: Flower would send the text of an exception to the server, and that text may
    hold data. What went wrong goes into the device's own log.

    Args:
        find_host: node context → host; called for every message, so it should keep its hosts.
    """
    app = ClientApp()

    @app.query("hosting")
    def hosting(message: Message, context: Context) -> Message:
        def answer(host: DeviceHost) -> Message:
            return hosting_reply(message, first=host.devices.start, count=len(host.devices))

        return _answered(message, lambda: answer(find_host(context)))

    @app.query("popularity")
    @app.query("cooccurrence")
    def statistics(message: Message, context: Context) -> Message:
        def answer(host: DeviceHost) -> Message:
            task = read_task(message)
            assert not isinstance(task, TrainTask), "Flower calls by the type of the message"
            return update_reply(message, task.binding, host.contribute(task))

        return _answered(message, lambda: answer(find_host(context)))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def answer(host: DeviceHost) -> Message:
            task = read_train_task(message)
            return update_reply(message, task.binding, host.train(task))

        return _answered(message, lambda: answer(find_host(context)))

    return app


def _answered(message: Message, answer: Callable[[], Message]) -> Message:
    try:
        return answer()
    except FedprofileError as error:
        _log.error("%s refused: %s", message.metadata.message_type, error)
        return refusal(message, error)
    except Exception as error:
        _log.exception("%s failed", message.metadata.message_type)
        return refusal(message, error)
