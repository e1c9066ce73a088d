"""Who is enrolled, brought to the SuperLink that runs: the file decides, Flower's database follows."""

from __future__ import annotations

import httpx

from .enrolment import Enrolled, Enrolment
from .folder import ServerFolder
from .link import Link, Node


def admit(enrolment: Enrolment, link: Link) -> list[tuple[Enrolled, Node]]:
    """Register who is enrolled and isn't known, shut out who is known and isn't enrolled.

    Returns:
        Enrolled devices and their nodes, by number.
    """
    wanted = {device.public_key: device for device in enrolment.active()}
    nodes = {node.public_key: node for node in link.nodes()}
    for key in nodes.keys() - wanted.keys():
        link.unregister(nodes[key].number)
    missing = [key for key in wanted if key not in nodes]
    for key in missing:
        link.register(key)
    if missing:
        nodes = {node.public_key: node for node in link.nodes()}
    return [(device, nodes[key]) for key, device in wanted.items() if key in nodes]


def apply_enrolment(folder: ServerFolder) -> None:
    """Let a change take effect at once, where the server runs."""
    size = folder.config.federation.population_size
    try:
        with Link(folder.socket) as link:
            admit(Enrolment(folder.devices, population_size=size), link)
    except httpx.TransportError:
        return  # it doesn't run: what is enrolled is read when it starts
