"""The short process that makes a device's answer: the only part that loads torch.

It reads an instruction from standard input and leaves the answer in the outbox. Killed at any point it
leaves a whole answer or none, and the device's budget charged once:

1. charge the release to the device's own ledger, durably;
2. train, by the same ClientApp that a simulation runs;
3. put the answer on disk;
4. commit the charge.

Where the owner erases something meanwhile, the answer is thrown away, and the charge stays.

``python -m fedprofile.client.fit DIR`` is started by the node, after the node has checked the instruction.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ..common.encoder import build_encoder
from ..common.errors import BudgetError, MessageError, TaskRefused
from ..common.messages import (
    StatisticsTask,
    TrainTask,
    read_task,
    refusal,
)
from ..common.server_bundle import ServerBundle
from .app import build_client_app
from .device import Device
from .device_folder import DeviceFolder
from .fleet import decode
from .host import DeviceHost
from .lifetime import LifetimeBudget, promised
from .local_training import Trainer
from .membership import terms_of
from .node_keys import load_node_key, public_pem
from .outbox import Outbox, name_of
from .withdrawal import begin_answer, finish_answer


def answer(folder: DeviceFolder, instruction: Message) -> None:
    """Make the answer to ``instruction`` and leave it in the outbox.

    Raises:
        FedprofileError: store, ledger or bundle can't be used; nothing is answered.
    """
    bundle = ServerBundle.load(folder.server)
    outbox = Outbox(folder.outbox)
    task = read_task(instruction)
    name = name_of(task.binding)
    with LifetimeBudget.open(folder.ledger, terms=terms_of(folder, bundle)) as budget:
        try:
            charge = budget.charge(
                task=task.name,
                binding=task.binding,
                mechanism=promised(
                    clip_norm=task.clip_norm, noise_multiplier=task.noise_multiplier
                ),
            )
        except BudgetError as error:
            outbox.store(name, refusal(instruction, error))
            return
        if charge.repeated:
            # An answer may have gone out that is kept no longer, committed or not: a fit may be
            # killed before it commits. Another draw would be another release.
            outbox.store(name, refusal(instruction, TaskRefused("stale", "answered before")))
            return
        begin_answer(folder, name)
        reply = _by_the_client_app(folder, bundle, instruction, task)
        if finish_answer(folder, name, lambda: outbox.store(name, reply)):
            budget.commit(charge)


def _by_the_client_app(
    folder: DeviceFolder,
    bundle: ServerBundle,
    instruction: Message,
    task: StatisticsTask | TrainTask,
) -> Message:
    """What the ClientApp makes of it, with a host of this one device."""
    with Device(folder) as device:
        histories, model = device.history()
    # Not their vectors: a release fills in some of them.
    if model.public.ids != bundle.items.ids:
        raise MessageError("the model in use is of another item table; install the server's again")
    if len(task.devices) != 1:
        raise MessageError("the task names several devices; here is one")
    facts, table = bundle.facts, bundle.items
    encoder = build_encoder(
        facts.model,
        blocks=table.blocks,
        n_items=table.n_items,
        n_types=len(facts.event_types),
        seed=0,
    )
    host = DeviceHost(
        histories,
        keys=np.array([_own_key(folder)], dtype=np.uint64),
        # A device goes by the number it is called by: that is its place in the cohort, no more.
        first=int(task.devices[0]),
        table=table,
        model=facts.model,
        trainer=Trainer(encoder, threads=1),
    )
    TaskIdentity.run_id = instruction.metadata.run_id
    TaskIdentity.node_id = instruction.metadata.dst_node_id
    TaskIdentity.task_id = 0
    context = Context(
        run_id=instruction.metadata.run_id,
        node_id=instruction.metadata.dst_node_id,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    return build_client_app(lambda _: host)(instruction, context)


def _own_key(folder: DeviceFolder) -> int:
    """What the device's random choices follow from: its own key, whoever else takes part."""
    digest = hashlib.blake2b(public_pem(load_node_key(folder)), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def main() -> None:
    """Answer the instruction on standard input for the device in the folder on the command line."""
    folder = DeviceFolder.open(Path(sys.argv[1]))
    os.nice(folder.config.policy.niceness)
    answer(folder, decode(sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
