"""What a run may claim, in words: the verdict, the guarantee, the warnings, and the limits.

Each sentence holds for the run it is made for: a guarantee is worded as one only where noise was
added and kept secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..common.formatting import count, epsilon, factor, known, number, scientific, share
from ..common.strength import Level, Statement, strength, weaknesses

REPEATS = 0.1
"""Share of test targets that users had before, from which on all items are told of beside new ones."""

M = TypeVar("M", bound=Mapping[str, Any])

_PLACES = {"better": "better than", "level": "level with", "behind": "behind"}


def own_model(models: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The model that the run is about: the first of kind ``ours``."""
    return next((model for model in models if model["kind"] == "ours"), None)


def ndcg(model: Mapping[str, Any], view: str = "new") -> float:
    """Mean test NDCG@k of a model; NaN where it was not measured."""
    mean = model["test"][view]["ndcg_at_k"]["mean"] if model["test"] else None
    return math.nan if mean is None else float(mean)


def difference(model: Mapping[str, Any], view: str = "new") -> Mapping[str, Any]:
    """NDCG@k of the run's own model minus that of ``model``; empty where it was not measured."""
    return model["difference" if view == "new" else "difference_all"] or {}


def compared(model: Mapping[str, Any], view: str = "new") -> str:
    """How the run's own model fares against ``model``: better, level, behind or unknown.

    Better and behind by a paired interval that leaves zero out; unknown where there is none.
    """
    gap = difference(model, view)
    low, high = gap.get("low"), gap.get("high")
    if not known(low) or not known(high):
        return "unknown"
    if low > 0:
        return "better"
    return "behind" if high < 0 else "level"


def baselines(
    models: Sequence[M], view: str = "new", *, quality: Callable[[M, str], float] = ndcg
) -> list[M]:
    """The baselines that were measured, the best first.

    On new items without those that can't differ from popularity there, or have nothing to go by.

    Args:
        models: of a run, or the references of a sweep.
        view: ``new`` or ``all``.
        quality: finds what a model reaches in a view.
    """
    found = [m for m in models if m["kind"] == "baseline" and known(quality(m, view))]
    if view == "new":
        found = [model for model in found if not model["aside"]]
    return sorted(found, key=lambda model: -quality(model, view))


def repeats(data: Mapping[str, Any]) -> bool:
    """Whether users take things again so often that new items are half the story at most."""
    share = data["repeated_targets"]
    return known(share) and share >= REPEATS


def protected(privacy: Mapping[str, Any]) -> bool:
    """Whether every release had noise, so that ε is finite."""
    return bool(privacy["enabled"]) and known(privacy["epsilon"])


def level(privacy: Mapping[str, Any]) -> Level:
    """How much the guarantee says; repeatable noise is a warning whatever its ε."""
    if protected(privacy) and privacy["randomness"] == "seeded":
        return "warn"
    return strength(
        privacy["epsilon"] if privacy["enabled"] else None,
        delta=privacy["delta"],
        population_size=privacy["population_size"],
    )


def verdict(
    run: Mapping[str, Any],
    privacy: Mapping[str, Any],
    models: Sequence[dict[str, Any]],
    data: Mapping[str, Any],
) -> str:
    """The run in a sentence: what privacy, what quality, against what; and one more where users repeat."""
    spent = f"ε = {epsilon(privacy['epsilon'])} per user"
    if not protected(privacy):
        start = "Without any privacy"
    elif privacy["randomness"] == "seeded":
        start = f"With repeatable noise ({spent}, had it been secret)"
    else:
        start = f"At {spent}"
    own = own_model(models)
    if own is None or not known(ndcg(own)):
        return (
            f"{start}, the {run['encoder']} encoder was trained for {count(run['rounds_done'])} of "
            f"{count(run['rounds_planned'])} rounds; nothing was held out, so how well it "
            "recommends was not measured."
        )
    quality = f"{own['label']} reaches NDCG@{own['test']['k']} = {number(ndcg(own))} on new items"
    again = _with_repeats(own, models, data) if repeats(data) else ""
    return f"{start}, {quality}{_against_baselines(models)}.{again}"


def _with_repeats(
    own: Mapping[str, Any], models: Sequence[dict[str, Any]], data: Mapping[str, Any]
) -> str:
    if not known(ndcg(own, "all")):
        return ""
    had = f"On all items ({share(data['repeated_targets'], 1)} of what test users took was had before)"
    reached = f" {had} it reaches {number(ndcg(own, 'all'))}"
    others = baselines(models, "all")
    if not others:
        return f"{reached}; no baseline was measured."
    named = f"the best baseline, “{others[0]['label']}”"
    place = _PLACES.get(compared(others[0], "all"))
    if place is None:
        return f"{reached}; {named}, reaches {number(ndcg(others[0], 'all'))}."
    return f"{reached}, {place} {named}, with {number(ndcg(others[0], 'all'))}."


def _against_baselines(models: Sequence[dict[str, Any]]) -> str:
    others = baselines(models)
    if not others:
        return "; no baseline was measured"
    best = others[0]
    named = f"“{best['label']}”, reaches {number(ndcg(best))}"
    outcomes = [compared(model) for model in others]
    if "unknown" in outcomes:
        return f"; the best baseline, {named}"
    places = [
        f"{words} {outcomes.count(outcome)}"
        for outcome, words in _PLACES.items()
        if outcome in outcomes
    ]
    listed = " and ".join(filter(None, [", ".join(places[:-1]), places[-1]]))
    return f": {listed} of {len(others)} baselines (the best, {named})"


def guarantee(privacy: Mapping[str, Any]) -> str | None:
    """The sentences that may be quoted, in full; None where there is no privacy."""
    if not protected(privacy):
        return None
    moment = ", and so is the moment that popularity was taken at, which was read off the data"
    # Where noise is repeatable there is nothing to quote, hence the conditional.
    if privacy["randomness"] == "csprng":
        opening, be, changes = "All", "are", "changes"
    else:
        opening, be, changes = "Had the noise been secret, all", "would be", "would change"
    return (
        f"{opening} models and statistics that this run released (every round's model, the final "
        f"model and the releases listed below) {be}, taken together, "
        f"(ε, δ)-differentially private with ε = {epsilon(privacy['epsilon'])} and "
        f"δ = {scientific(privacy['delta'])} at the level of the {privacy['unit']}, neighbours by "
        f"{privacy['adjacency']}: adding or removing everything that any one "
        f"{privacy['unit']} did {changes} the probability of any outcome by no more than a factor "
        f"of e^ε = {factor(privacy['epsilon'])}, plus δ. It holds against everyone who receives what "
        "was released. It assumes that the operator of the server, who sees sums before noise is "
        "added, adds the noise and keeps it and the choice of cohorts secret; that device hosts clip each "
        f"{privacy['unit']}'s contribution as stated; and that the catalogue of items, the names of "
        f"event types and the number of {privacy['unit']}s (N = {count(privacy['population_size'])}) "
        f"are public{moment if privacy['time_read_off_data'] else ''}."
    )


def event_level(local: Mapping[str, Any]) -> str:
    """What devices hid from the server itself, in one sentence; ``local`` is ``privacy.local``."""
    return (
        "Apart from that, on each device, against the server itself: event-level "
        f"(ε ≤ {epsilon(local['epsilon'])}, δ = {scientific(local['delta'])}) over its lifetime, for "
        f"whatever its owner did in any one period of {local['period_days']:g} days. The figures are of "
        "different units and never add up."
    )


def warnings(run: Mapping[str, Any], privacy: Mapping[str, Any]) -> Iterator[Statement]:
    """What must be seen before anything else, the worst first."""
    if not protected(privacy):
        yield Statement(
            "This run protects nobody",
            "Exact sums were released, so ε is infinite. Use such a run for research on data that "
            "you may see anyway, and don't hand out its model.",
            "bad",
        )
    elif privacy["randomness"] == "seeded":
        yield Statement(
            "The noise of this run is repeatable",
            "A seed decided noise and cohorts. Whoever knows or guesses it can take the noise off "
            f"again, so ε = {epsilon(privacy['epsilon'])} is what the same run would cost with "
            "secret noise. Don't release this model; run again without a seed.",
            "warn",
        )
    if protected(privacy):
        yield from weaknesses(
            privacy["epsilon"],
            delta=privacy["delta"],
            population_size=privacy["population_size"],
        )
    if run["stopped"]:
        kept = "What was trained until then is kept and was paid for."
        if run["best_round"] is not None:
            kept = f"The model of round {count(run['best_round'])} is kept."
        yield Statement(
            f"Stopped after {count(run['rounds_done'])} of {count(run['rounds_planned'])} rounds",
            f"Reason: {run['stopped']}. {kept}",
        )


def limits(privacy: Mapping[str, Any]) -> Iterator[Statement]:
    """What this run does not protect."""
    if not protected(privacy):
        yield Statement(
            "Anybody, against whoever gets the model",
            "The model itself may give away what it was trained on. What follows would not be "
            "protected with privacy switched on either.",
        )
    yield Statement(
        "The figures on this page",
        "Quality, curves, counts and data quality are the researcher's own measurement on raw "
        "data. They are exact, no ε covers them, and they are not meant for publication as private.",
    )
    yield Statement(
        "The other models",
        "Baselines and centrally trained models see every history in clear and are no part of the "
        "guarantee. They were fitted for comparison only.",
    )
    yield Statement(
        "Choices made on the data",
        "Settings picked by validation scores, cut dates at quantiles, minimum counts of users and "
        "items, and earlier runs on the same users all cost privacy that this ε leaves out.",
    )
    yield Statement(
        "Who takes part",
        f"The number of users (N = {count(privacy['population_size'])}) is taken as public: it "
        "sets the divisor. The counts of cohorts and replies in the ledger are exact.",
    )
    yield Statement(
        "The catalogue",
        "Items, texts, categories and prices count as public, and so do the names of event types. "
        "Where no item table was given, the catalogue was put together from transactions, and an "
        "item that one user alone bought gives that purchase away.",
    )
    if privacy["time_read_off_data"]:
        yield Statement(
            "The moment of the statistics",
            "Popularity counts ages back from a moment that was read off the data, and a user who "
            "moves it moves what others contribute. Set statistics.as_of to a day fixed beforehand.",
        )
    yield Statement(
        "Against the server and the device hosts",
        "The server sees sums before noise and knows who was sampled; hosts see what they train on. "
        "Both are trusted to do as stated. In a simulation they are whoever runs it.",
    )
    yield Statement(
        "People with several ids, and groups",
        "The unit is one user id. Whoever has k of them, or a household of k users, is protected by "
        "about k·ε.",
    )
    yield Statement(
        "Against what is true of everyone",
        "A model may learn that people who buy one thing buy another, and that can be applied to "
        "somebody who took no part. Differential privacy neither prevents nor measures it.",
    )
    yield Statement(
        "Recommendations and devices",
        "A ranked list is computed from its owner's raw history and shows it to whoever sees the "
        "list. A lost device or a copied data file is outside this page.",
    )
    yield Statement(
        "Side channels",
        "The time a round takes, memory that was not wiped, and arithmetic in finite precision are "
        "not part of the proof.",
    )
