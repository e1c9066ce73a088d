import copy
import math
import re
from html.parser import HTMLParser

import pytest

from fedprofile.simulations.report import render_report, write_report

HOSTILE = "<script>alert(1)</script>&\"'$x^$"
CHOICES = {"kind", "randomness", "sampler", "split", "validation_from", "test_from"}


def interval(mean, half=0.004):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def view(ndcg, users):
    return {
        "users": users,
        "hr_at_k": interval(min(0.9, 4.2 * ndcg), 0.012),
        "recall_at_k": interval(0.9 * ndcg),
        "ndcg_at_k": interval(ndcg, 0.05 * ndcg + 0.002),
        "mrr": interval(1.6 * ndcg, 0.008),
        "diversity_at_k": interval(0.71, 0.003),
        "novelty_at_k": interval(9.3, 0.05),
        "coverage_at_k": min(1.0, 6 * ndcg),
    }


def model(key, label, kind, new, everything, settings="", private=False, difference=None, **more):
    return {
        "key": key,
        "label": label,
        "kind": kind,
        "private": private,
        "test": {"k": 10, "new": view(new, 1893), "all": view(everything, 2014), "cold_users": 207},
        "validation_ndcg": 0.97 * new,
        "settings": settings,
        "difference": difference,
        "difference_all": None,
        "aside": "",
        **more,
    }


def example(rounds=30):
    """The figures of a run as ``metrics.json`` has them."""
    others = (
        ("popularity", "Popularity", "baseline", 0.0301, 0.041, ""),
        ("recent-popularity", "Recent popularity", "baseline", 0.0452, 0.058, "half-life 30 days"),
        ("content-cosine", "Content cosine", "baseline", 0.0588, 0.201, "half-life 90 days"),
        ("item-knn", "Item-kNN, decayed profile", "baseline", 0.0671, 0.262, "50 neighbours"),
        ("ease", "EASE, decayed profile", "baseline", 0.0772, 0.291, "ridge 300, 90 days"),
        ("personal-frequency", "Personal frequency", "baseline", 0.0301, 0.329, "30 days"),
        ("local-only", "Local only", "baseline", 0.0513, 0.184, "5 epochs on each device"),
        ("central", "Same encoder, trained centrally", "ceiling", 0.0824, 0.31, "20 epochs"),
    )
    models = [model("encoder", "Shared encoder", "ours", 0.0668, 0.301, "q = 0.8", True)]
    models += [
        model(
            *row[:5],
            settings=row[5],
            difference=interval(0.0668 - row[3], 0.0035),
            difference_all=interval(0.301 - row[4], 0.006),
            aside="its order is popularity's" if row[0] == "personal-frequency" else "",
        )
        for row in others
    ]
    releases = [
        {
            "task": "statistics/popularity",
            "round": None,
            "noise_multiplier": 9.21,
            "clip_norm": 1.0,
            "sampling_probability": 1.0,
            "epsilon_after": 0.611,
            "cohort": 5042,
            "replies": 5042,
            "rejected": {},
        }
    ]
    curve = []
    for number in range(1, rounds + 1):
        spent = 0.611 + 1.387 * (number / rounds) ** 0.6
        sampled = 4034 + (37 * number) % 61 - 30
        rejected = {"stale": 3} if number % 7 == 0 else {}
        if number == 12:
            rejected = {"over-clip": 1, "non-finite": 12}
        if number == 20:
            rejected = {"no-reply": 19}
        trained = sampled - sum(rejected.values())
        releases.append(
            {
                "task": "training",
                "round": number,
                "noise_multiplier": 8.614,
                "clip_norm": 0.5,
                "sampling_probability": 0.8,
                "epsilon_after": spent,
                "cohort": sampled,
                "replies": trained,
                "rejected": rejected,
            }
        )
        curve.append(
            {
                "round": number,
                "epsilon": spent,
                "sampled": sampled,
                "trained": trained,
                "rejected": rejected,
                "validation_ndcg": 0.0652 - 0.012 * math.exp(-number / 6) + 0.0004 * (-1) ** number,
                "update_norm": 0.0951 + 0.04 * math.exp(-number / 6) + 0.001 * (-1) ** number,
                "noise_norm": 0.0921,
                "seconds": 2.7,
            }
        )
    rules = (
        ("exact duplicates", "the same line a second time in one file", 9713, 0),
        ("overlapping files", "a line that an earlier file holds already", 22202, 0),
        ("missing user", "the user column is empty", 198135, 0),
        ("cancelled sessions", "the session takes an earlier one back (^[Cc])", 15852, 0),
        ("negative values", "the value is zero or less", 0, 0),
        ("zero price", "nothing was paid: a gift, a loss or a correction of stock", 53, 0),
        ("non-items", "the code is no product's: postage, fees, vouchers, tests", 2371, 0),
        ("broken prices", "a price that is NaN, infinite or negative counts as unknown", 0, 4),
        ("merged lines", "further lines of an item in one basket, added to its first", 8072, 0),
        ("rare users", "users with fewer than 2 events", 97, 0),
    )
    names = ("name", "explanation", "removed", "changed")
    return {
        "run": {
            "name": "retail-ε2",
            "created": "2025-03-04T15:12:09+00:00",
            "seconds": 402.6,
            "version": "0.1.0",
            "seed": None,
            "engine": "local",
            "config_digest": "4b0f" * 16,
            "encoder": "transformer",
            "parameters": 9842,
            "rounds_planned": rounds,
            "rounds_done": rounds,
            "stopped": None,
            "best_round": None,
            "beyond_content": None,
            "whole_histories": False,
            "command": "fedprofile simulate --data online-retail-ii --epsilon 2",
            "dataset": "online-retail-ii",
        },
        "data": {
            "quality": {
                "source": "online-retail-ii",
                "preset": "online-retail-ii",
                "rows_per_file": {
                    "year-2009-2010.parquet": 525461,
                    "year-2010-2011.parquet": 370931,
                },
                "rules": [dict(zip(names, rule, strict=True)) for rule in rules],
                "rows_kept": 639897,
                "users": 5315,
                "items": 4497,
                "sessions": 31176,
                "first_time": 1259653500,
                "last_time": 1317397920,
                "rows_read": 896392,
                "rows_removed": 256495,
                "events": 639897,
            },
            "users": 5315,
            "items": 4497,
            "events": 639897,
            "train_events": 529104,
            "train_users": 5042,
            "validation_users": 1604,
            "test_users": 2014,
            "cold_users": 207,
            "repeated_targets": 0.412,
            "content": True,
            "split": "global-time",
            "validation_from": "2011-07-01T00:00+00:00",
            "test_from": "2011-08-15T00:00+00:00",
            "refitted": False,
        },
        "privacy": {
            "enabled": True,
            "epsilon": 1.998,
            "delta": 8.4e-05,
            "target_epsilon": 2.0,
            "unit": "user",
            "adjacency": "add-or-remove-one",
            "randomness": "csprng",
            "sampler": "poisson",
            "accountant": "PLD (dp_accounting)",
            "epsilon_prv": 2.003,
            "epsilon_rdp": 2.217,
            "time_read_off_data": False,
            "population_size": 5042,
            "releases": releases,
        },
        "curve": curve,
        "models": models,
        "notes": [
            "The catalogue was derived from the transactions themselves; it counts as public."
        ],
    }


class Page(HTMLParser):
    """The text of a page, its ids, and whether its tags are balanced."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.tags, self.attributes, self.pieces = [], [], set(), [], []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)


def read(metrics):
    page = Page(render_report(metrics))
    assert page.open == []
    return page


@pytest.fixture
def metrics():
    return example()


@pytest.fixture(scope="module")
def html():
    return render_report(example())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture
def without_privacy(metrics):
    metrics["privacy"].update(
        enabled=False, epsilon=None, target_epsilon=None, epsilon_prv=None, epsilon_rdp=None
    )
    for release in metrics["privacy"]["releases"]:
        release.update(noise_multiplier=0.0, clip_norm=None, epsilon_after=None)
    for entry in metrics["curve"]:
        entry.update(epsilon=None, noise_norm=0.0)
    return metrics


def test_the_page_needs_nothing_but_itself(html, page):
    assert page.open == []
    links = {value for name, value in page.attributes if name in ("href", "xlink:href", "src")}
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "image"}
    assert "src=" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))


def test_ids_are_unique(page):
    assert len(page.ids) == len(set(page.ids))


def test_everything_measured_is_named(metrics, page):
    text = page.text
    for model in metrics["models"]:
        assert model["label"] in text
        assert model["settings"] in text
        assert f"{model['test']['new']['ndcg_at_k']['mean']:.4f}" in text
        assert f"{model['test']['all']['ndcg_at_k']['mean']:.4f}" in text
    for rule in metrics["data"]["quality"]["rules"]:
        assert rule["name"] in text
        assert rule["explanation"] in text
        assert f"{rule['removed']:,}" in text
    for release in metrics["privacy"]["releases"]:
        assert release["task"] in text
    for reason in ("stale 3", "over-clip 1, non-finite 12"):
        assert reason in text
    for value in (
        "896,392 read = 639,897 kept + 256,495 removed",
        "statistics/popularity",
        "8.614",
    ):
        assert value in text
    assert metrics["notes"][0] in text
    assert metrics["run"]["command"] in text
    assert metrics["run"]["config_digest"] in text
    assert "2025-03-04 15:12:09 UTC" in text
    assert "test from 2011-08-15 00:00 UTC" in text


def test_rows_that_do_not_add_up_are_pointed_out(metrics, page):
    assert "don't add up" not in page.text
    metrics["data"]["quality"]["rows_removed"] -= 1
    assert "don't add up" in read(metrics).text


def test_guarantee_says_what_it_rests_on(html):
    quoted = Page(html[html.index("<blockquote") : html.index("</blockquote>") + 13]).text
    for words in (
        "(ε, δ)-differentially private",
        "ε = 1.998",
        "δ = 8.40 × 10⁻⁵",
        "level of the user",
        "add-or-remove-one",
        "e^ε = 7.37",
        "operator of the server",
        "keeps it and the choice of cohorts secret",
        "device hosts clip",
        "N = 5,042",
    ):
        assert words in quoted
    assert 'class="banner' not in html


def test_cohorts_add_up(metrics, page):
    text = page.text
    sampled = sum(entry["sampled"] for entry in metrics["curve"])
    trained = sum(entry["trained"] for entry in metrics["curve"])
    assert f"expected (q·N a round) {round(30 * 0.8 * 5042):,}" in text
    assert f"sampled {sampled:,}" in text
    assert f"trained {trained:,}" in text
    assert "no reply 19" in text
    assert "rejected: stale 12" in text
    assert "not accounted for" not in text
    assert sampled - trained == 19 + 12 + 1 + 12


def test_devices_that_nothing_is_known_of_are_shown(metrics):
    metrics["curve"][3]["trained"] -= 7
    assert "not accounted for 7" in read(metrics).text


def test_run_without_privacy_is_red(without_privacy):
    html = render_report(without_privacy)
    text = Page(html).text
    assert 'class="banner bad"' in html
    assert html.index('class="banner bad"') < html.index('class="verdict"')
    assert "This run protects nobody" in text
    assert "Without any privacy" in text
    assert "There is no guarantee: ε is infinite" in text
    assert "<blockquote" not in html
    assert "amplification is claimed" not in text


def test_an_infinite_epsilon_is_red_whatever_was_asked_for(metrics):
    metrics["privacy"]["epsilon"] = None
    html = render_report(metrics)
    assert 'class="banner bad"' in html
    assert "<blockquote" not in html


def test_seeded_noise_is_amber_and_no_guarantee(metrics):
    metrics["privacy"]["randomness"] = "seeded"
    metrics["run"]["seed"] = 7
    html = render_report(metrics)
    text = Page(html).text
    assert 'class="banner warn"' in html
    assert "The noise of this run is repeatable" in text
    assert "No guarantee may be quoted" in text
    assert "Had the noise been secret, all models" in text
    assert "had it been secret" in text[: text.index("Best baseline")]


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"epsilon": 10.1}, "A weak guarantee"),
        ({"delta": 1 / 5042}, "δ is too large"),
        ({"delta": 0.02, "population_size": 35}, "where the guarantee may fail"),
    ],
)
def test_guarantees_that_say_little_are_pointed_out(metrics, page, change, title):
    assert title not in page.text
    metrics["privacy"].update(change)
    assert title in read(metrics).text


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({"epsilon": 0.9}, "good"),
        ({}, "note"),
        ({"epsilon": 10.1}, "warn"),
        ({"epsilon": 0.9, "delta": 1 / 5042}, "warn"),
        ({"epsilon": 0.9, "randomness": "seeded"}, "warn"),
    ],
)
def test_a_guarantee_looks_as_good_as_it_is(metrics, change, level):
    metrics["privacy"].update(change)
    html = render_report(metrics)
    assert f'<blockquote class="{level}">' in html
    assert f'<div class="card {level}"><dt>ε per user' in html


def test_an_infinite_epsilon_looks_bad(without_privacy):
    assert '<div class="card bad"><dt>ε per user' in render_report(without_privacy)


def test_early_stop_is_explained(metrics):
    metrics["run"].update(stopped="the next round would cost ε = 2.01", rounds_done=29)
    text = read(metrics).text
    assert "Stopped after 29 of 30 rounds" in text
    assert "the next round would cost ε = 2.01" in text


def test_how_much_co_occurrence_counts_beside_content_is_told(metrics):
    told = "Of what is taken together 62.5 % counts beside content"
    assert "Of what is taken together" not in read(metrics).text
    metrics["run"].update(beyond_content=0.625)
    assert told in read(metrics).text
    metrics["data"].update(content=False)
    assert "Of what is taken together" not in read(metrics).text


def test_that_whole_histories_were_compared_is_told(metrics):
    told = "What goes with what is told of whole histories"
    assert told not in read(metrics).text
    metrics["run"].update(whole_histories=True)
    assert told in read(metrics).text


def test_a_model_that_validation_chose_is_told(without_privacy):
    told = "The result is the model of round 20: of those measured on validation it was best"
    assert told not in read(without_privacy).text
    without_privacy["run"].update(best_round=20)
    text = read(without_privacy).text
    assert told in text
    assert "Stopped" not in text
    reason = "validation was best at round 20, 3 measurements ago"
    without_privacy["run"].update(stopped=reason, rounds_done=29)
    text = read(without_privacy).text
    assert "Stopped after 29 of 30 rounds" in text
    assert f"Reason: {reason}. The model of round 20 is kept." in text
    assert "paid for" not in text


def test_verdict_counts_by_paired_intervals(page):
    assert (
        "At ε = 1.998 per user, Shared encoder reaches NDCG@10 = 0.0668 on new items: better than "
        "4, level with 1 and behind 1 of 6 baselines (the best, “EASE, decayed profile”, reaches "
        "0.0772). On all items (41.2 % of what test users took was had before) it reaches 0.3010, behind "
        "the best baseline, “Personal frequency”, with 0.3290." in page.text
    )


def test_all_items_are_compared_like_new_ones(page):
    table = page.text[page.text.index("41.2 % of what these users took was had before") :]
    assert "−0.0280 −0.0340 to −0.0220" in table  # personal frequency
    assert "+0.2600 +0.2540 to +0.2660" in table  # popularity


def test_where_nobody_repeats_the_verdict_is_about_new_items(metrics):
    for share in (None, 0.02):
        metrics["data"]["repeated_targets"] = share
        text = read(metrics).text
        assert "On all items (" not in text
        assert "NDCG@10, all items" not in text


def test_a_baseline_that_adds_nothing_on_new_items_is_not_counted(metrics):
    for model in metrics["models"]:
        if model["kind"] == "baseline":
            model["aside"] = "it has nothing to go by"
    text = read(metrics).text
    assert "on new items; no baseline was measured. On all items" in text
    assert text.count("not counted: it has nothing to go by") == 7


def test_diversity_is_left_out_where_nothing_tells_what_is_alike(metrics, page):
    assert "of the vectors that this run's devices rank with" in page.text
    for model in metrics["models"]:
        for view_ in ("new", "all"):
            model["test"][view_]["diversity_at_k"] = {"mean": None, "low": None, "high": None}
    metrics["data"]["content"] = False
    assert "a dash, for nothing tells which items are alike" in read(metrics).text


def test_an_epsilon_is_never_rounded_down(metrics):
    metrics["privacy"].update(epsilon_prv=2.01042, epsilon_rdp=2.24931)
    assert "PRV (Opacus) 2.011, RDP 2.250" in read(metrics).text


def test_statistics_alone_have_no_curve_over_rounds(metrics):
    metrics["privacy"]["releases"] = metrics["privacy"]["releases"][:1] * 2
    metrics["curve"] = []
    html = render_report(metrics)
    assert "ε of all releases so far" not in html
    assert "statistics/popularity" in html


def test_verdict_without_intervals_ranks_nothing(metrics):
    for model in metrics["models"]:
        for name in ("difference", "difference_all"):
            if model[name]:
                model[name].update(low=None, high=math.nan)
        for view_ in ("new", "all"):
            for value in model["test"][view_].values():
                if isinstance(value, dict):
                    value.update(low=None, high=None)
    text = read(metrics).text
    assert "on new items; the best baseline, “EASE, decayed profile”, reaches 0.0772." in text
    assert "it reaches 0.3010; the best baseline, “Personal frequency”, reaches 0.3290." in text
    assert "no interval" in text


def test_nothing_held_out(metrics):
    metrics["models"] = []
    metrics["data"].update(
        split="none", validation_from=None, test_from=None, validation_users=0, test_users=0
    )
    for entry in metrics["curve"]:
        entry["validation_ndcg"] = None
    text = read(metrics).text
    assert "nothing was held out, so how well it recommends was not measured" in text
    assert "this run says nothing about quality" in text
    assert "(ε, δ)-differentially private" in text


def test_models_without_test_are_still_named(metrics):
    for model in metrics["models"]:
        model.update(test=None, difference=None, validation_ndcg=None)
    text = read(metrics).text
    assert all(model["label"] in text for model in metrics["models"])


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_unknown_figures_are_dashes(metrics, nothing):
    metrics["privacy"].update(epsilon_prv=nothing, epsilon_rdp=nothing)
    metrics["run"]["seconds"] = nothing
    for entry in metrics["curve"]:
        entry.update(validation_ndcg=nothing, update_norm=nothing, noise_norm=nothing)
    empty = {"mean": nothing, "low": nothing, "high": nothing}
    for model in metrics["models"]:
        model["validation_ndcg"] = nothing
        model["difference"] = empty if model["difference"] else None
        for measure, value in model["test"]["new"].items():
            if isinstance(value, dict):
                model["test"]["new"][measure] = empty
    text = read(metrics).text
    assert not re.search(r"\b(nan|None|undefined)\b", text)
    assert "–" in text
    assert "of 7 baselines" not in text


def test_run_that_did_nothing(metrics):
    metrics["curve"], metrics["models"], metrics["notes"] = [], [], []
    metrics["privacy"].update(releases=[], epsilon=0.0)
    metrics["run"].update(rounds_done=0, rounds_planned=0)
    metrics["data"]["quality"].update(rules=[], rows_per_file={"synthetic": 639897})
    text = read(metrics).text
    assert "Nothing was released" in text
    assert "No round was run" in text


def test_every_text_is_escaped(metrics):
    def poison(value, key=""):
        if isinstance(value, dict):
            free = key in ("rejected", "rows_per_file")
            return {(HOSTILE + k if free else k): poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return HOSTILE + value if isinstance(value, str) and key not in CHOICES else value

    poisoned = read(poison(metrics))
    assert "script" not in poisoned.tags
    assert poisoned.text.count(HOSTILE) > 50


@pytest.mark.filterwarnings("error::UserWarning")  # a glyph that no font has
def test_other_scripts_survive(metrics, tmp_path):
    name = "甲乙 – ελληνικά 🜁"
    metrics["run"]["name"] = metrics["models"][0]["label"] = name
    metrics["data"]["quality"]["rows_per_file"] = {"交易.csv": 896392}
    path = tmp_path / "報告.html"
    write_report(metrics, path)
    text = Page(path.read_text(encoding="utf-8")).text
    assert text.count(name) >= 5  # title, heading, verdict, tables and charts
    assert "交易.csv" in text


def test_bytes_that_are_no_text_do_not_stop_the_report(metrics, tmp_path):
    metrics["run"]["dataset"] = b"\xff.csv".decode("utf-8", "surrogateescape")
    write_report(metrics, tmp_path / "report.html")
    assert "?.csv" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_is_repeatable_and_leaves_the_metrics_alone(metrics, html):
    before = copy.deepcopy(metrics)
    assert render_report(metrics) == html
    assert metrics == before


def test_a_moment_that_is_read_off_the_data_is_said_to_be_public():
    metrics = example()
    assert "read off the data" not in " ".join(render_report(metrics).split())
    metrics["privacy"]["time_read_off_data"] = True
    assert (
        " ".join(render_report(metrics).split()).count("read off the data") == 2
    )  # in the guarantee and in the limits
