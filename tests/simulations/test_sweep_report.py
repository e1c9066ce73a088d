"""The page of a sweep says what was measured, of whom, and what it cost, and loads nothing."""

import copy
import math
import re
from html.parser import HTMLParser

import pytest

from fedprofile.simulations.sweep_report import (
    cost,
    render_sweep_report,
    verdict,
    write_sweep_report,
)

HOSTILE = "<script>alert(1)</script>&\"'$x^$"


LOSS = {"mean": -0.0123, "low": -0.02, "high": -0.004}
GAIN = {"mean": 0.0321, "low": 0.01, "high": 0.05}


def cell(mean, users=400, difference=None):
    low, high = (None, None) if mean is None else (0.9 * mean, 1.1 * mean)
    interval = {"mean": mean, "low": low, "high": high}
    return {"users": users, "ndcg_at_k": interval, "difference": difference}


def grouped(mean, difference=None, first=2):
    countries = {"United Kingdom": 1.0, "Germany": 0.8, "others (7 groups)": 1.2}
    return {
        "training events": [
            {"name": f"{start}–{start + 9} events", **cell(mean * (1 + start / 50), 133)}
            for start in (first, first + 10, first + 20)
        ],
        "country": [
            {"name": n, **cell(mean * times, 60, difference)} for n, times in countries.items()
        ],
    }


def measured(mean, share, difference=None):
    return {
        "share": share,
        "new": cell(mean, difference=difference),
        "all": cell(3 * mean, 450, difference and GAIN),
        "common": cell(1.05 * mean, 90),
        "groups": grouped(mean, difference),
        "groups_all": grouped(3 * mean, difference and GAIN, first=3),
    }


def example(epsilons=(1.0, 8.0, None), shares=(0.5, 1.0)):
    """The figures of a sweep as ``sweep.json`` has them."""
    points = [
        {
            "epsilon": epsilon,
            "population_size": int(4000 * share),
            **measured(
                0.07 * share**0.3 * (1 if epsilon is None else epsilon**0.1 / 1.6),
                share,
                None if epsilon is None else LOSS,
            ),
            "runs": [{"name": f"run {n}", "new": 0.05 + n / 500, "all": 0.2} for n in (1, 2)],
        }
        for share in shares
        for epsilon in epsilons
    ]
    models = (
        ("central", "Same encoder trained centrally", "ceiling", 0.08),
        ("popularity", "Popularity", "baseline", 0.03),
        ("ease", "EASE on the decayed profile", "baseline", 0.0531),
    )
    references = [
        {"part": kind, "key": key, "label": label, "kind": kind, "settings": "half-life 30 days"}
        | {"aside": ""}
        | measured(mean * share**0.2, share)
        for share in shares
        for key, label, kind, mean in models
    ]
    return {
        "sweep": {
            "created": "2025-03-04T15:12:09+00:00",
            "version": "0.1.0",
            "config_digest": "d" * 64,
            "command": "fedprofile simulate --sweep …",
            "repeat": "fedprofile simulate --config base.toml --sweep epsilon=1,8,inf --seeds 2",
            "name": "sweep-retail",
            "dataset": "retail",
            "encoder": "transformer",
            "parameters": 19815,
            "epsilon": list(epsilons),
            "users": list(shares),
            "seeds": 2,
            "k": 10,
            "split": "global-time",
            "repeated_targets": 0.031,
            "smallest_group": 20,
            "group_column": "country",
            "seconds": 754.0,
        },
        "points": points,
        "references": references,
        "runs": [
            {
                "name": f"epsilon-{epsilon or math.inf:g}-run-{number}",
                "seed": None,
                "share": 1.0,
                "population_size": 4000,
                "target_epsilon": epsilon,
                "epsilon": epsilon and epsilon - 0.001,
                "delta": 1.1e-4,
                "rounds_done": 10,
                "rounds_planned": 10,
                "stopped": None,
                "seconds": 12.0,
            }
            for number in (1, 2)
            for epsilon in epsilons
        ],
        "privacy": {
            "delta": 1.1e-4,
            "private_runs": 8,
            "other_runs": 4,
            "epsilon_of_private_runs": 22.3419,
            "epsilon": None,
            "repeatable": False,
        },
        "notes": ["Item texts count as a public catalogue."],
    }


class Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, html):
        super().__init__()
        self.pieces, self.tags, self.attributes, self.ids = [], set(), [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.pieces.append(data)


@pytest.fixture(scope="module")
def html():
    return render_sweep_report(example())


def test_the_page_needs_nothing_but_itself(html):
    page = Page(html)
    links = {value for name, value in page.attributes if name in ("href", "xlink:href", "src")}
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "img", "iframe", "object", "image"}
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert html.count("<svg") == 7  # new, all, users; activity and country in both views


def test_everything_measured_is_there(html):
    text, document = Page(html).text, example()
    for part in (*document["points"], *document["references"]):
        largest = part["share"] == 1.0
        for view in ("new", "all", "common") if largest else ("new", "common"):
            assert f"{part[view]['ndcg_at_k']['mean']:.4f}" in text
    for model in document["references"]:
        assert model["label"] in text
    for run in document["runs"]:
        assert run["name"] in text
    for words in (
        "others (7 groups)",
        "12–21 events",
        "fewer than 20 users",
        "400 test users with new items, 450 with any",
        "only the 90 test users who take part at the smallest share",
        "−0.0123 −0.0200 to −0.0040",
        "+0.0321 +0.0100 to +0.0500",  # on all items
        "13–22 events",  # of those who took anything, cut elsewhere
        "2025-03-04 15:12:09 UTC",
        document["sweep"]["repeat"],
        document["notes"][0],
    ):
        assert words in text


def test_groups_are_told_of_in_both_views(html):
    text = Page(html).text
    section = text[text.index("Whom it serves") :]
    for part in example()["points"][3:]:  # at the largest share
        for groups in (part["groups"], part["groups_all"]):
            for group in (*groups["country"], *groups["training events"]):
                assert f"{group['ndcg_at_k']['mean']:.4f}" in section
    assert section.count("New items: all groups") == section.count("All items: all groups") == 2
    assert section.count("+0.0321") == 6  # three countries at two ε


def test_each_view_has_its_own_best_models_beside_its_groups():
    document = example()
    for model in document["references"]:
        if model["key"] == "popularity":
            model["all"] = cell(0.9)
    text = Page(render_sweep_report(document)).text
    section = text[text.index("Whom it serves") :]
    assert "ε = ∞ Same encoder trained centrally EASE on the decayed profile Popularity" in section
    assert "ε = ∞ Popularity Same encoder trained centrally EASE on the decayed profile" in section


def test_where_users_repeat_all_items_are_part_of_the_verdict():
    document = example()
    document["sweep"]["repeated_targets"] = 0.868
    assert verdict(document).endswith(
        " On all items (86.8 % of what test users took was had before) the encoder reaches 0.1313 to "
        "0.2100, the best baseline, “EASE on the decayed profile”, 0.1593."
    )
    document["references"] = []
    assert verdict(document).endswith("the encoder reaches 0.1313 to 0.2100.")


def test_a_baseline_that_adds_nothing_is_not_the_best():
    document = example()
    for model in document["references"]:
        if model["key"] == "ease":
            model["aside"] = "new items stand in popularity's order"
    assert "The best baseline, “Popularity”" in verdict(document)
    assert "new items stand in popularity's order" in Page(render_sweep_report(document)).text


def test_what_all_runs_cost_together_and_what_no_epsilon_covers(html):
    text = Page(html).text
    assert "ε = 22.342, δ = 1.10 × 10⁻⁴: all their ledgers composed" in text
    assert "With the 4 runs without privacy, which released exact sums, ε is infinite" in text
    assert "choosing one by looking at this page is covered by no ε" in text
    assert "Each run's guarantee holds for that run alone" in text
    assert "repeatable" not in text


def test_repeatable_noise_is_no_guarantee():
    document = example()
    document["privacy"]["repeatable"] = True
    assert cost(document["privacy"]).startswith("Had the noise been secret: who receives")
    html = render_sweep_report(document)
    assert 'class="banner warn"' in html
    assert "Don't release these models" in Page(html).text


def test_nothing_private_is_no_guarantee_at_all():
    document = example(epsilons=(None,))
    document["privacy"].update(private_runs=0, epsilon_of_private_runs=None)
    text = Page(render_sweep_report(document)).text
    assert "No run was private, so there is no guarantee: ε is infinite." in text
    assert "no protection" in text


def test_verdict_compares_with_no_privacy_and_with_the_best_baseline():
    found = verdict(example())
    assert found == (
        "The federated encoder reaches NDCG@10 on new items of 0.0700 without privacy, "
        "0.0539 (76.9 % of that) at ε = 8, 0.0438 (62.5 % of that) at ε = 1. The best baseline, “EASE on "
        "the decayed profile”, reaches 0.0531."
    )
    without = verdict({**example(epsilons=(1.0,)), "references": []})
    assert without == "The federated encoder reaches NDCG@10 on new items of 0.0438 at ε = 1."


@pytest.mark.parametrize(
    ("epsilons", "shares"),
    [
        ((8.0,), (1.0,)),
        ((None,), (0.5,)),
        ((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, None), (0.1, 0.5, 1.0)),
    ],
)
def test_sweeps_of_other_shapes(epsilons, shares):
    page = Page(render_sweep_report(example(epsilons, shares)))
    assert ("Quality against the number of users" in page.text) == (len(shares) > 1)
    assert not re.search(r"\b(nan|None|undefined)\b", page.text)


def test_nobody_to_measure_and_no_groups():
    document = example()
    for part in (*document["points"], *document["references"]):
        part.update(new=cell(None, 0), all=cell(None, 0), common=cell(None, 0))
        part["groups"] = part["groups_all"] = {"training events": []}
    for point in document["points"]:
        point["runs"] = [{"name": "a", "new": None, "all": None}]
        point["new"]["difference"] = {"mean": None, "low": None, "high": None}
    text = Page(render_sweep_report(document)).text
    assert "nothing was measured" in text
    assert "Too few test users" in text
    assert not re.search(r"\b(nan|None|undefined)\b", text)


def test_without_baselines():
    document = example()
    document["references"] = []
    text = Page(render_sweep_report(document)).text
    for words in ("Best baseline", "Broken lines", "other models"):
        assert words not in text


def test_every_text_is_escaped_and_other_scripts_survive(tmp_path):
    document = copy.deepcopy(example())
    document["sweep"].update(name=HOSTILE, dataset=HOSTILE, repeat=HOSTILE)
    document["runs"][0].update(name=HOSTILE, stopped=HOSTILE)
    document["notes"] = [HOSTILE]
    for part in (*document["points"], *document["references"]):
        for groups in (part["groups"], part["groups_all"]):
            groups["country"][0]["name"] = HOSTILE
            groups[HOSTILE] = groups["国"] = groups["country"]
    write_sweep_report(document, tmp_path / "sweep.html")
    page = Page((tmp_path / "sweep.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 8
    assert "By 国" in page.text


def test_a_page_is_repeatable_and_leaves_the_figures_alone(html):
    document = example()
    before = copy.deepcopy(document)
    assert render_sweep_report(document) == html
    assert document == before
    assert math.isclose(document["points"][0]["new"]["ndcg_at_k"]["mean"], 0.0355, abs_tol=1e-3)
