"""Check a cell that was set up by docs/how-to/run-in-production.md: ``checks.py STEP``, on its machine, as root.

Only the standard library is used, because the machine has nothing else. The functions ``check_…`` are the steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = "http://127.0.0.1:9090/api/v1/"
PATIENCE_S: Final = 240.0
"""Longest wait for a condition: alerts wait two minutes, and a scrape comes every 15 s."""
HEALTHY_TARGETS: Final = {
    "localhost:9464",  # consumer 1 of 2
    "localhost:9466",  # consumer 2 of 2
    "localhost:9465",  # the agent of this machine
    "localhost:9467",  # the simulated fleet
    "localhost:8790",  # the HTTP API
}
EMPTY_WHILE_WELL: Final = {
    "sum by (reason) (increase(nodestate_dead_letters_total[15m]))": "no message was refused",
    "sum by (server) (increase(nodestate_store_errors_total[5m]))": "no store failed",
    "sum by (reason) (rate(nodestate_orders_refused_total[5m]))": "no agent refused an order",
}
"""Queries of the board without a series, and the reason: a counter with a label begins with its first event."""


def check_healthy() -> None:
    """All targets are up, the board's queries have answers, all rules can be evaluated, and no alert ever fired."""
    wait_for("all targets are up", lambda: targets() == dict.fromkeys(HEALTHY_TARGETS, "up"), targets)
    panels = panels_of_board()
    wanted = {query for queries in panels.values() for query in queries if query not in EMPTY_WHILE_WELL}
    wait_for(
        "each query of the board has a series",
        lambda: all(series(query) for query in wanted),
        lambda: [query for query in wanted if not series(query)],
    )
    for title, queries in panels.items():
        for query in queries:
            reason = f": {EMPTY_WHILE_WELL[query]}" if query in EMPTY_WHILE_WELL else ""
            print(f"  {title}: {len(series(query))} series{reason}")
    assert not [query for query in EMPTY_WHILE_WELL if series(query)], "a query of EMPTY_WHILE_WELL has a series"
    wait_for("each rule is evaluated", lambda: all(rule["health"] == "ok" for rule in rules()), rules)
    assert not [rule for rule in rules() if rule.get("lastError")], rules()
    wait_for("no rule has a result", lambda: not any(series(rule["query"]) for rule in rules()), alerts)
    wait_for("no alert is pending", lambda: alerts() == {}, alerts)
    fired = series('count_over_time(ALERTS{alertstate="firing"}[1h])')
    assert fired == [], f"alerts fired while the cell was set up: {fired}"
    print(f"  {len(rules())} rules are evaluated without an error, and no alert ever fired")


def check_killed() -> None:
    """systemd restarts a consumer that was killed by SIGKILL, and the cell is current again."""
    unit = "nodestate-consumer@1-2"
    before = state_of(unit)
    run("kill", "-KILL", before["MainPID"])
    wait_for(f"{unit} runs again", lambda: has_restarted(unit, before), lambda: state_of(unit))
    nodestate("view", "--max-age", "5", "--timeout", "60", "--on-stale", "refuse")
    wait_for("each queue has its standby", has_standby, lambda: series("nodestate_queue_consumers"))


def check_frozen() -> None:
    """systemd ends and restarts a consumer that feeds its watchdog no longer."""
    unit = "nodestate-consumer@1-2"
    before = state_of(unit)
    assert before["WatchdogUSec"] == "1min", before
    run("kill", "-STOP", before["MainPID"])
    wait_for(f"{unit} runs again", lambda: has_restarted(unit, before), lambda: state_of(unit))
    log = run("journalctl", "--no-pager", "--unit", unit)
    assert "Watchdog timeout" in log, log
    nodestate("view", "--max-age", "5", "--timeout", "60", "--on-stale", "refuse")
    wait_for("each queue has its standby", has_standby, lambda: series("nodestate_queue_consumers"))


def check_stopped() -> None:
    """A consumer that is stopped for good raises its alerts, which end when it runs again. Views stay current."""
    wait_for("no alert fires", lambda: alerts() == {}, alerts)
    run("systemctl", "stop", "nodestate-consumer@2-2")
    expected = {"NodestateProcessIsDown": "firing", "NodestateNoStandby": "firing"}
    wait_for(f"the alerts are {expected}", lambda: alerts() == expected, alerts)
    nodestate("view", "--max-age", "5", "--on-stale", "refuse")
    run("systemctl", "start", "nodestate-consumer@2-2")
    wait_for("no alert fires", lambda: alerts() == {}, alerts)


def check_ended() -> None:
    """The services ended without an error, and the backup has the settings and the state of the agent."""
    for unit in ("nodestate-consumer@1-2", "nodestate-consumer@2-2", "nodestate-serve", "nodestate-agent"):
        state = state_of(unit)
        assert (state["ActiveState"], state["Result"]) == ("inactive", "success"), f"{unit}: {state}"
    view = json.loads(nodestate("view", "--max-age", "600", "--on-stale", "flag", "--json"))
    assert list(view["nodes"]) == ["production"], list(view["nodes"])
    names = run("tar", "--list", "--file", "/var/backups/nodestate.tar.gz").split()
    for name in ("etc/nodestate/nodestate.toml", "etc/nodestate/broker", "etc/nodestate/tokens"):
        assert name in names, names
    assert any(name.endswith("/production.incarnation") for name in names), names


# -- Prometheus -----------------------------------------------------------------------------------


def ask(path: str, **parameters: str) -> Any:
    """Return the data of a successful answer of Prometheus."""
    url = f"{PROMETHEUS}{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the constant address above
        document = json.load(answer)
    assert document["status"] == "success", document
    return document["data"]


def series(query: str) -> list[dict[str, Any]]:
    """Return the series of a query."""
    result: list[dict[str, Any]] = ask("query", query=query)["result"]
    return result


def targets() -> dict[str, str]:
    """Return the health of each target, by its address."""
    return {one["labels"]["instance"]: one["health"] for one in ask("targets", state="active")["activeTargets"]}


def rules() -> list[dict[str, Any]]:
    """Return all rules."""
    return [rule for group in ask("rules")["groups"] for rule in group["rules"]]


def alerts() -> dict[str, str]:
    """Return the state of each alert that is pending or fires."""
    return {one["labels"]["alertname"]: one["state"] for one in ask("alerts")["alerts"]}


def panels_of_board() -> dict[str, list[str]]:
    """Return the queries of each panel of the board, by its title."""
    board = json.loads((ROOT / "deploy" / "grafana" / "nodestate.json").read_text(encoding="utf-8"))
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in board["panels"]}


# -- the machine ----------------------------------------------------------------------------------


def run(*words: str) -> str:
    """Return the output of a command, which must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - words of this file
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def nodestate(*words: str) -> str:
    """Return the output of a command of nodestate."""
    return run("nodestate", *words)


def state_of(unit: str) -> dict[str, str]:
    """Return some properties of a unit of systemd."""
    names = "MainPID,NRestarts,ActiveState,Result,WatchdogUSec"
    lines = run("systemctl", "show", "--property", names, unit).splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def has_restarted(unit: str, before: dict[str, str]) -> bool:
    """Return whether systemd has started a unit again, and the unit is ready."""
    now = state_of(unit)
    return now["ActiveState"] == "active" and now["NRestarts"] > before["NRestarts"] and now["MainPID"] != "0"


def has_standby() -> bool:
    """Return whether each queue has two consumers in the last scrape, which is later than this call."""
    scraped_at = float(series('time() - timestamp(up{job="nodestate-serve"})')[0]["value"][1])
    counts = [one["value"][1] for one in series("nodestate_queue_consumers")]
    return scraped_at < 1.0 and counts == ["2"] * 8


def wait_for(claim: str, holds: Callable[[], bool], shown: Callable[[], object]) -> None:
    """Wait until a claim holds. Fail after ``PATIENCE_S``, and show the last state."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"not true within {PATIENCE_S:.0f} s: {claim}; now: {shown()}")
        time.sleep(1.0)
    print(f"  {claim} (after {time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    globals()[f"check_{sys.argv[1]}"]()
