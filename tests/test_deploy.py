"""Alert rules and the board of Grafana: promtool accepts them, and they name only metrics and findings that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nodestate.findings import FINDINGS
from nodestate.metrics.metric_table import METRICS, PREFIX

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "nodestate.rules.yml"
RULE_TESTS = DEPLOY / "prometheus" / "nodestate.rules.test.yml"
BOARD = DEPLOY / "grafana" / "nodestate.json"


def exported_names() -> dict[str, set[str]]:
    """Return the names of all series, with their labels and the labels of a scrape."""
    names = {}
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for suffix in suffixes:
            names[PREFIX + metric.name + suffix] = {*metric.labels, "instance", "job", *(("le",) if suffix else ())}
    return names


def promtool(*words: str, folder: Path = DEPLOY) -> str:
    program = shutil.which("promtool")
    if program is None:
        reason = "promtool is missing: apt-get install prometheus (tests/services/ensure.sh does)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - promtool
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_alert_rules_and_their_tests() -> None:
    assert "rules found" in promtool("check", "rules", str(RULES))
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS.name, folder=RULE_TESTS.parent)


def test_each_alert_fires_in_one_case_and_is_quiet_in_another() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text(encoding="utf-8"))
    cases = RULE_TESTS.read_text(encoding="utf-8")
    quiet = re.findall(r"alertname: (\w+), exp_alerts: \[\]", cases)
    firing = re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- exp_labels", cases)
    assert len(alerts) == 19
    assert quiet == alerts
    assert sorted(firing) == sorted(alerts)


@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_promtool_accepts_the_settings_of_prometheus(name: str) -> None:
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", str(RULES.parent / name))


def test_prometheus_scrapes_the_ports_of_the_units() -> None:
    """The second consumer of the page listens where its drop-in says, and agents are named in files of the page."""
    texts = [unit.read_text(encoding="utf-8") for unit in (DEPLOY / "systemd").glob("*.service")]
    texts.append((DEPLOY.parent / "docs" / "how-to" / "run-in-production.md").read_text(encoding="utf-8"))
    listening = set(re.findall(r"(?:METRICS_LISTEN=|--listen )127\.0\.0\.1:(\d+)", "".join(texts)))
    scraped = set(re.findall(r"localhost:(\d{4})", (RULES.parent / "prometheus.yml").read_text(encoding="utf-8")))
    scraped |= set(re.findall(r"- targets: \[localhost:(\d+)\]", texts[-1]))
    scraped -= {"9093", "9467"}  # the Alertmanager, and the simulated fleet of the page
    assert scraped == listening == {"8790", "9464", "9465", "9466"}


def test_promtool_accepts_the_queries_of_the_board(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query} for number, query in enumerate(queries_of_board())
    ]  # JSON is YAML
    path = tmp_path / "board.yml"
    path.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", str(path))


def queries_of_board() -> list[str]:
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_alerts_and_panels_use_only_metrics_and_labels_that_are_exported() -> None:
    known = exported_names()
    alerts = re.findall(r"^        expr: (.*)$", RULES.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(alerts) == 19
    for query in (*alerts, *queries_of_board()):
        names = set(re.findall(r"\bnodestate_\w+", query.replace('"nodestate', '"')))
        assert names <= known.keys(), query
        labels = {one.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for one in group.split(",")}
        labels |= set(re.findall(r"(\w+)(?:=|!=|=~)\"", query))
        allowed = set.union(*(known[name] for name in names)) if names else {"job"}
        assert labels <= allowed, query


def test_findings_of_alerts_exist() -> None:
    named = set(re.findall(r"finding: ([\w-]+)", RULES.read_text(encoding="utf-8")))
    assert named <= {kind.code for kind in FINDINGS}
    assert len(named) >= 8


def test_panels_of_the_board_have_titles_and_do_not_overlap() -> None:
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(panel["title"] for panel in board["panels"])
