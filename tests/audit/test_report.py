"""The page and its document: what must be on them, and what must never be."""

import copy
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.measurements import Canaries, Probes
from fedprofile.audit.report import ReportOptions, check_free, make_report, write_report
from fedprofile.audit.report_page import render
from fedprofile.common.errors import DataError, LedgerError, RunFolderError
from fedprofile.common.formatting import epsilon
from fedprofile.common.signing import SigningKey

HOSTILE = "商店<script>alert(1)</script><img src=x>&\"'$x^$"


class Page(HTMLParser):
    """The text of a page, its tags and ids, and whether its tags are balanced."""

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


def read(document):
    page = Page(render(document))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "img", "iframe", "object", "image"}
    assert not re.search(r"\b(nan|None|undefined)\b", page.text)
    return page


def probe_results(*, holds=True, version="0.1.0", config_digest="c0ffee"):
    size = {
        "name": "noise/size",
        "holds": holds,
        "measured": 1.001 if holds else 0.5,
        "expected": [0.99, 1.01],
        "false_alarm_rate": 5e-4,
        "sentence": "What is released has standard deviation σC.",
    }
    clip = {**size, "name": "clip/devices", "holds": True, "measured": 1.0}
    return {
        "run": {
            "created": "2026-01-02T03:04:05+00:00",
            "version": version,
            "config_digest": config_digest,
            "command": "fedprofile audit probe --config shop.toml",
        },
        "holds": holds,
        "declared": {},
        "randomness": "csprng",
        "false_alarm_rate": 1e-3,
        "probes": [size, clip],
    }


def canary_results(*, holds=True, **origin):
    estimate = {"epsilon": 1.1, "low": 0.2, "high": 4.5, "level": 0.99}
    rate = {"value": 0.51, "low": 0.43, "high": 0.6}
    attack = {
        "members": 95,
        "others": 94,
        "auc": rate,
        "true_positive_rate": {"value": 0.0, "low": 0.0, "high": 0.04},
        "false_positive_rate": 0.001,
        "false_positives": 0,
        "level": 0.95,
    }
    return {
        "run": probe_results(**origin)["run"],
        "declared": {"epsilon": 0.9, "delta": 1e-5, "mechanism": {}},
        "canaries": {"count": 400, "included": 198, "null_stddev": 0.03},
        "estimates": {
            "final_model": estimate,
            "sum_of_releases": {**estimate, "epsilon": 1.25},
            "largest_of_releases": estimate,
        },
        "bounds": {
            "confidence": 0.95,
            "steinke": 0.321,
            "mahloujifar": 0.456,
            "epsilon_p_value": 0.9,
            "declared_p_value": 0.7,
            "guesses": [],
        },
        "membership": {"loss": attack, "calibrated": attack},
        "verdict": {
            "holds": holds,
            "findings": [] if holds else ["ε is at least 9"],
            "false_alarm_rate": 0.01,
        },
    }


def test_results_that_contradict_themselves_are_faults():
    """Nobody signs them: what they conclude must follow from what they tell."""
    sound = TypeAdapter(Probes).validate_python(probe_results())
    assert sound.faults == []
    content = probe_results()
    for measured in (1e9, None):
        content["probes"][0] |= {"measured": measured, "holds": True}
        [fault] = TypeAdapter(Probes).validate_python(content).faults
        assert fault.startswith(content["probes"][0]["name"])
    assert TypeAdapter(Canaries).validate_python(canary_results()).faults == []
    content = canary_results()
    content["verdict"]["findings"] = ["ε is at least 9"]
    assert TypeAdapter(Canaries).validate_python(content).faults == ["ε is at least 9"]
    content = canary_results()
    content["estimates"]["sum_of_releases"]["low"] = 40.0
    [fault] = TypeAdapter(Canaries).validate_python(content).faults
    assert "sum of releases" in fault


@pytest.fixture
def report(tmp_path, inline_accountants):
    """The document of a ledger, with files of results beside it."""

    def make(writer, *, anchor=True, change=None, **named):
        anchor = tmp_path / "anchor.json" if anchor else None
        path = writer.write(tmp_path / "ledger.jsonl", anchor)
        if change is not None:
            path.write_bytes(change(path.read_bytes()))
        for name in ("probes", "canaries"):
            if isinstance(named.get(name), dict):
                file = tmp_path / f"{name}.json"
                file.write_text(json.dumps(named[name]), encoding="utf-8")
                named[name] = file
        options = ReportOptions(path=path, command="fedprofile audit report …", **named)
        return make_report(find_evidence(path, anchor=anchor), options)

    return make


@pytest.fixture(scope="module")
def document(forge, accountants_inline, tmp_path_factory):
    """A ledger that holds, with probes and canaries of its build."""
    folder = tmp_path_factory.mktemp("whole")
    path = forge.honest(rounds=12, target_epsilon=1.0).write(
        folder / "ledger.jsonl", folder / "anchor.json"
    )
    (folder / "probe.json").write_text(json.dumps(probe_results()))
    (folder / "canaries").mkdir()
    (folder / "canaries" / "canaries.json").write_text(json.dumps(canary_results()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedprofile.audit.verify.Accountants", accountants_inline)
        options = ReportOptions(path=path, command="fedprofile audit report ledger.jsonl")
        return make_report(find_evidence(folder), options)


@pytest.fixture(scope="module")
def html(document):
    return render(document)


def test_the_page_needs_nothing_but_itself(document, html):
    page = read(document)
    links = {value for name, value in page.attributes if name in ("href", "xlink:href", "src")}
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(page.ids)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert '<meta charset="utf-8">' in html
    assert "default-src 'none'" in html


def test_the_guarantee_is_one_sentence_that_can_be_quoted(document, html):
    sentence = document["guarantee"]["sentence"]
    for words in (
        "(ε, δ)-differential privacy at the level of the user",
        f"ε = {epsilon(document['cost']['epsilon'])} ",
        "δ = 1.00 × 10⁻⁵",
        "add-or-remove-one",
        "population “shop” (N = 1,000)",
        "the 13 releases of this ledger (1 of statistics/popularity, 12 of training; no others)",
        "made on 2026-01-01 by the ledger's clock",
        "operator of the server",
        "keeps it and the choice of cohorts secret",
        "hosts of devices clip",
    ):
        assert words in sentence, words
    assert ". " not in sentence
    quoted = html[html.index("<blockquote") : html.index("</blockquote>")]
    assert sentence in Page(quoted + "</blockquote>").text
    assert 'class="good"' in quoted  # ε below 1


def test_everything_is_on_the_page(document):
    text = read(document).text
    for check in document["checks"]:
        assert check["what"] in text
        assert check["asked"] in text
    for figure in ("epsilon_pld", "epsilon_rdp", "epsilon_without_amplification"):
        assert epsilon(document["cost"][figure]) in text
    assert re.search(r"PRV not run", text)
    assert f"{document['forecast']['rounds_left']:,} rounds fit" in text
    assert "More rounds ε after them" in text
    for name in ("noise/size", "clip/devices"):
        assert name in text
    assert "0.321" in text
    assert "1.250" in text
    for hazard in document["hazards"]:
        assert hazard["title"] in text
        assert hazard["text"] in text
    for command in document["commands"]:
        assert command["command"] in text
    assert document["ledger"]["head"] in text
    assert "no device ledger was given" in text
    assert text.count("ε so far") == 1  # one plot over releases


def test_what_is_measured_on_the_same_build_counts_for_it(document):
    assert document["verdict"]["holds"] is True
    assert document["probes"]["foreign"] is document["canaries"]["foreign"] is None
    answers = {hazard["title"]: hazard["answer"] for hazard in document["hazards"]}
    assert answers["Custom implementations with mistakes in them"] == "evidence"
    assert answers["Empirical measures in place of a proof"] == "evidence"
    assert answers["Timing channels"] == "not covered"
    assert {layer["layer"] for layer in document["hazards"]} == {
        "Privacy parameters and unit of privacy",
        "Algorithms: correctness, utility and bias",
        "Deployment: trust, side channels, security, data collection",
    }


def test_document_and_page_are_written_and_never_over_others(document, tmp_path):
    paths = write_report(document, tmp_path / "報告")
    assert json.loads(Path(paths["document"]).read_text(encoding="utf-8")) == document
    assert Path(paths["page"]).read_text(encoding="utf-8") == render(document)
    Path(paths["document"]).unlink()
    with pytest.raises(RunFolderError, match=r"report.html: exists already"):
        write_report(document, tmp_path / "報告")
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        check_free(tmp_path / "file")


def test_the_page_is_repeatable_and_leaves_the_document_alone(document, html):
    before = copy.deepcopy(document)
    assert render(document) == html
    assert document == before


def test_strings_of_a_ledger_stay_strings(report, forge):
    turned = HOSTILE + "\u202egnirts"
    writer = forge.honest(
        rounds=2, target_epsilon=0.6, population=turned, config_digest=HOSTILE, code_version=HOSTILE
    )
    for values in writer.values:
        if values["kind"] == "reserve":
            values |= {"task": turned, "run": HOSTILE, "code_version": HOSTILE}
        if values["kind"] == "commit":
            values["rejected"] = {HOSTILE: 1}
    writer.values.append({"kind": "stop", "reason": HOSTILE, "epsilon": None})
    found = report(writer, probes=probe_results(version=HOSTILE, config_digest=HOSTILE))
    page = read(found)
    assert page.text.count(HOSTILE) >= 4
    assert "商店<script>" in page.text[page.text.index("rejected:") :][:40]
    assert "&lt;" not in page.text
    assert "\u202e" not in render(found)
    assert found["ledger"]["population"] == turned  # the document has it as it is


@pytest.mark.parametrize("where", [b'"round":7', b'"time"', b'"cohort_size"'])
def test_a_broken_ledger_is_told_in_red_and_promises_nothing(report, forge, where):
    def change(content):
        place = content.index(where, len(content) // 2)
        return content[:place] + b"x" + content[place + 1 :]

    found = report(
        forge.honest(rounds=10, target_epsilon=0.6), change=change, probes=probe_results()
    )
    assert found["verdict"]["holds"] is False
    assert found["guarantee"]["sentence"] is None
    assert (found["cost"], found["releases"], found["spent"]) == (None, [], [])
    page, html = read(found), render(found)
    assert 'class="banner bad" role="alert"' in html
    assert "No guarantee may be quoted" in page.text
    assert "Does not hold: " in page.text
    assert re.search(r"line \d+ \(entry \d+\)", page.text)
    assert "differential privacy at the level" not in page.text


def test_a_ledger_without_entries_is_no_ledger(report, forge):
    with pytest.raises(LedgerError, match="no complete entry"):
        report(forge.honest(rounds=1, target_epsilon=0.6), change=lambda _: b"")


@pytest.mark.parametrize(
    ("opening", "changes", "why"),
    [
        ({"randomness": "seeded"}, {}, "A seed decided noise"),
        ({"target_epsilon": None}, {"noise_multiplier": 0.0}, "ε is infinite"),
    ],
)
def test_releases_that_protect_nobody_promise_nothing(report, forge, opening, changes, why):
    writer = forge.honest(rounds=3, **{"target_epsilon": 0.6, **opening})
    for values in writer.values:
        if values["kind"] == "reserve":
            values["mechanism"] = {**values["mechanism"], **changes}
    found = report(writer)
    assert found["verdict"]["holds"] is True  # the ledger says so itself
    assert found["guarantee"]["sentence"] is None
    assert why in found["guarantee"]["why_not"]
    assert why in read(found).text


def test_a_ledger_that_has_only_begun(report, forge):
    text = read(report(forge.Writer().open())).text
    assert "Nothing was released yet." in text
    assert "No forecast:" in text


def test_without_a_poisson_sampler_the_worse_figure_stands(report, forge):
    found = report(forge.honest(rounds=30, sizes=[50] * 30))
    assert found["verdict"]["holds"] is False
    assert found["cost"]["epsilon"] == found["cost"]["epsilon_without_amplification"]
    assert found["spent"][-1]["epsilon"] == found["cost"]["epsilon"]
    assert "rests on it" in found["forecast"]["why_not"]
    html = render(found)
    assert re.search(r'class="own"><th scope="row">without amplification', html)


@pytest.mark.parametrize("name", ["probes", "canaries"])
def test_what_fails_on_the_same_build_takes_the_guarantee_away(report, forge, name):
    results = {"probes": probe_results, "canaries": canary_results}[name](holds=False)
    found = report(forge.honest(rounds=3, target_epsilon=0.6), **{name: results})
    assert found["verdict"]["holds"] is False
    assert "the running program" in found["verdict"]["sentence"]
    assert "doesn't run as the ledger declares" in found["guarantee"]["why_not"]
    assert "attention" in {hazard["answer"] for hazard in found["hazards"]}
    assert 'class="banner bad"' in render(found)


def test_commands_name_the_anchor_where_the_officer_did(report, run_folder, forge, tmp_path):
    named = report(forge.honest(rounds=1, target_epsilon=0.6))["commands"]
    for row in named[:2]:
        assert f"--anchor {tmp_path / 'anchor.json'}" in row["command"]
    assert "--anchor" not in str(run_folder(users=0)["commands"])


@pytest.mark.parametrize("more", ["; rm -rf ~ $(rm -rf ~)\nrm -rf ~", " 'open; rm -rf ~"])
def test_a_command_of_a_file_is_safe_to_paste(report, forge, more):
    results = probe_results()
    results["run"]["command"] += more
    [*_, told, _] = report(forge.honest(rounds=1, target_epsilon=0.6), probes=results)["commands"]
    words = shlex.shlex(told["command"], posix=True, punctuation_chars=True)
    words.whitespace_split = True
    assert not any(set(word) <= set(words.punctuation_chars) for word in words)
    assert "$" not in re.sub(r"'[^']*'", "", told["command"])


@pytest.mark.parametrize("other", [{"version": "0.2.0"}, {"config_digest": "decaf"}])
def test_what_is_of_another_build_says_nothing_and_says_so(report, forge, other):
    found = report(
        forge.honest(rounds=3, target_epsilon=0.6),
        probes=probe_results(holds=False, **other),
        canaries=canary_results(**other),
    )
    assert found["verdict"]["holds"] is True
    [theirs] = other.values()
    for name in ("probes", "canaries"):
        assert theirs in found[name]["foreign"]
    text = read(found).text
    assert text.count("Not of these releases") == 2
    assert text.count(found["probes"]["foreign"]) >= 2
    answers = {hazard["title"]: hazard["answer"] for hazard in found["hazards"]}
    assert answers["Custom implementations with mistakes in them"] == "not covered"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"run": 1}', json.dumps({**probe_results(), "probes": []}), "\udcff"],
)
def test_files_of_something_else_are_refused(report, forge, tmp_path, content):
    path = tmp_path / "probes.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    for name in ("probes", "canaries"):
        with pytest.raises(DataError, match=r"probes.json: isn't what"):
            report(forge.honest(rounds=1, target_epsilon=0.6), **{name: path})
    with pytest.raises(DataError, match="can't be read"):
        report(forge.honest(rounds=1, target_epsilon=0.6), canaries=tmp_path / "none.json")


def test_devices_are_told_one_by_one(report, forge, tmp_path):
    writer = forge.honest(rounds=5, target_epsilon=0.6)
    before = next(v["model_before"] for v in writer.values if v.get("round") == 3)
    paths = []
    for name, noise in (("a.jsonl", 2.0), ("b.jsonl", 4.0)):
        device = forge.Writer().open(population_size=1, target_epsilon=30.0)
        own = forge.mechanism(
            population_size=1,
            sampling_probability=1.0,
            sampler="self-selected",
            noise_multiplier=noise,
        )
        device.reserve(own, round=3, model_before=before)
        paths.append(device.write(tmp_path / name))
    paths.append(tmp_path / "c.jsonl")
    paths[-1].write_bytes(paths[0].read_bytes().replace(b'"round":3', b'"round":4'))
    found = report(writer, device_ledgers=paths)
    assert [d["outcome"] for d in found["devices"]] == ["holds", "fails", "fails"]
    # One Gaussian release with σ = 2 at δ = 1e-5, by Balle & Wang (2018), theorem 8.
    assert found["devices"][0]["epsilon"] == pytest.approx(1.9930, abs=2e-3)
    assert found["devices"][2]["epsilon"] is None
    assert found["event_level"] == []
    text = read(found).text
    assert "had noise 2, promised was 4" in text
    assert "Event-level" not in text[: text.index("Hazards of NIST")]


def test_a_device_that_took_no_part_is_no_witness(report, forge, tmp_path):
    device = forge.Writer().open(population_size=1, target_epsilon=30.0)
    path = device.write(tmp_path / "idle.jsonl")
    found = report(forge.honest(rounds=5, target_epsilon=0.6), device_ledgers=[path])
    assert found["devices"][0]["outcome"] == "not run"
    assert found["devices"][0]["releases_here"] == 0
    [trust] = [h for h in found["hazards"] if h["title"] == "Trust that isn't warranted"]
    assert trust["answer"] == "not covered"


@pytest.fixture
def run_folder(forge, tmp_path, inline_accountants):
    """The report of a run folder with devices' ledgers in it: user-level ones, and one of events."""

    def make(*, users, events=True):
        folder, before = tmp_path / "run", "a" * 64
        (folder / "devices").mkdir(parents=True)
        writer = forge.honest(rounds=5, target_epsilon=0.6)
        writer.write(folder / "ledger.jsonl", folder / "anchor.json")
        before = next(v["model_before"] for v in writer.values if v.get("round") == 3)
        own = forge.mechanism(population_size=1, sampling_probability=1.0, sampler="self-selected")
        for number in range(users):
            key = SigningKey.generate()
            device = forge.Writer(key=key).open(population_size=1, target_epsilon=30.0)
            device.reserve(own, round=3, model_before=before)
            device.write(folder / "devices" / f"{number:02}.jsonl")
        if events:
            forge.events(steps=3, target_epsilon=60.0).write(folder / "devices" / "00.events.jsonl")
        options = ReportOptions(path=folder, command="fedprofile audit report run")
        return make_report(find_evidence(folder), options)

    return make


def trust(document):
    [hazard] = [h for h in document["hazards"] if h["title"] == "Trust that isn't warranted"]
    return hazard


def test_devices_of_a_run_folder_are_told(run_folder):
    found = run_folder(users=2)
    assert [Path(d["file"]).name for d in found["devices"]] == ["00.jsonl", "01.jsonl"]
    assert {d["outcome"] for d in found["devices"]} == {"holds"}
    [events] = found["event_level"]
    assert (events["unit"], events["releases"], events["outcome"]) == ("event", 3, "holds")
    assert trust(found)["answer"] == "evidence"
    assert "3 of 3 device ledgers agree" in trust(found)["text"]
    text = read(found).text
    assert "no device ledger was given" not in text
    assert "nobody but the server speaks" not in text
    assert "Another unit: one event, not one user" in text


def test_many_devices_of_a_run_folder_are_one_row(run_folder):
    found = run_folder(users=21, events=False)
    [row] = found["devices"]
    assert row["file"].endswith("devices: 21 ledgers")
    assert (row["outcome"], row["releases"], row["releases_here"]) == ("holds", 21, 21)
    assert row["epsilon"] == pytest.approx(1.9930, abs=2e-3)
    assert (row["noise_multipliers"], row["target_epsilon"]) == ([2.0, 2.0], 30.0)
    assert "21 of 21 device ledgers agree" in trust(found)["text"]
    assert "devices: 21 ledgers" in read(found).text


def test_events_alone_are_no_user_level_witness_and_the_page_says_so(run_folder):
    found = run_folder(users=0)
    assert found["devices"] == []
    assert "No user-level ledger of a device is there" in read(found).text


def test_another_unit_is_told_apart(document):
    device = {
        "file": "phone.jsonl",
        "outcome": "holds",
        "what": "34 visits",
        "unit": "event",
        "releases": 34,
        "noise_multipliers": [1.0, 1.0],
        "epsilon": 29.4,
        "delta": 1e-5,
        "target_epsilon": 40.0,
    }
    text = read({**document, "event_level": [device]}).text
    assert "Another unit: one event, not one user" in text
    assert "29.400" in text[text.index("Another unit") :]
    assert "29.400" not in text[: text.index("Another unit")]


def test_the_ledger_of_a_device_is_told_by_its_unit(report, forge):
    found = report(forge.events(target_epsilon=60.0))
    assert found["forecast"]["spent"] == found["cost"]["epsilon"]
    text = read(found).text
    assert "each event's gradient is clipped" in text
    assert "whole contribution" not in text
    assert "of 20 slots of events" in text
    assert "More local steps" in text
    presented = "Event-level privacy presented as privacy of people"
    [hazard] = [h for h in found["hazards"] if h["title"] == presented]
    assert hazard["answer"] == "attention"


def test_a_ledger_of_many_mechanisms_is_not_forecast(report, forge):
    writer = forge.Writer().open()
    for number in range(101):
        louder = forge.mechanism(noise_multiplier=40 + number, sampling_probability=1.0)
        writer.reserve(louder, round=None, task=f"statistics/{number}")
    found = report(writer)
    assert "too long" in found["forecast"]["why_not"]
    assert len(found["releases"]) == 101
    # More lines than points of the curve: some end between two of them.
    assert None in {group["epsilon_after"] for group in found["releases"]}
    assert "too long" in read(found).text


def test_thousands_of_different_releases_stay_a_page(document):
    group = document["releases"][-1]
    html = render({**document, "releases": [group] * 5_000})
    assert html.count('<th scope="row">training') == 200
    assert "4,800 more lines in report.json" in html
    assert len(html) < 500_000
