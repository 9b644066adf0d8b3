"""Parts that all commands share: help with an example, exit codes, errors as text or JSON, logs in both formats."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec
import pytest
import structlog
from click.testing import CliRunner, Result

from harness.waiting import PATIENCE_S
from nodestate.cli import COMMANDS, every_command, main
from nodestate.cli.command import Run, cell_command
from nodestate.cli.command_group import USAGE_KIND
from nodestate.cli.logs import set_up_logs
from nodestate.cli.shutdown import stop_on_signals
from nodestate.errors import NodestateError, StaleViewError

NAMES = [
    *("up", "agent", "publish", "consume", "view", "top", "check", "serve"),
    *("select", "boot", "reserve", "confirm", "extend", "release", "reservations"),
    *("migrate", "evacuate", "resize", "update", "terminate"),
    *("capacity", "what-if"),
    *("node show", "node cordon", "node uncordon", "node drain", "node forget"),
    *("design status", "design prepare", "design verify", "design cutover", "design rollback", "design retire"),
    "design sign",
    *("key init", "key node", "key rotate", "key revoke", "key status"),
    "retag",
    *("sql upgrade", "sql downgrade", "sql status"),
    "resync",
    *("config show", "config check", "config sample"),
    *("completion", "doctor"),
]
REAL = ["--broker", "amqp://127.0.0.1:1", "--store", "memcached://127.0.0.1:1"]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BROKER", "STORE", "CELL", "PARTITIONS", "CONFIG", "DESIGNS", "SQL", "READ_DESIGN"):
        monkeypatch.delenv(f"NODESTATE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*words: str, env: Mapping[str, str] | None = None, stdin: str = "") -> Result:
    return CliRunner().invoke(main, words, env=env, input=stdin)


def test_list_of_commands_is_complete_and_in_order() -> None:
    assert list(every_command()) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestHelp:
    def test_help_ends_with_an_example_that_parses(self, name: str) -> None:
        """The help shows the example, and its options and arguments are accepted. The example is not run."""
        answer = run(*name.split(), "--help")
        assert answer.exit_code == 0
        _, _, example = answer.output.partition("Example:\n")
        for line in example.strip().splitlines():
            shown, words = line.strip().partition(" > ")[0].rpartition("nodestate ")[2], name.split()
            assert shown.split()[: len(words)] == words
            given = shown.split()[len(words) :]
            command = every_command()[name]
            command.make_context(name, [word for word in given if word != "-"] + ["-"] * ("-" in given))

    def test_every_option_has_a_help_text(self, name: str) -> None:
        """The text alone must describe the option."""
        for param in every_command()[name].params:
            if isinstance(param, click.Option):
                assert param.help, f"nodestate {name} {param.opts[0]}"
                assert param.help.endswith("."), f"nodestate {name} {param.opts[0]}: the help text is no sentence"

    def test_common_options_exist_for_every_command(self, name: str) -> None:
        options = {option for param in every_command()[name].params for option in param.opts}
        common = {"--json", "--config", "--broker", "--store", "--cell", "--partitions", "--log-level", "--log-format"}
        assert common <= options


@pytest.mark.parametrize(
    "words",
    [
        ["consume", *REAL, "--member", "3/2"],
        ["consume", *REAL, "--member", "0/2"],
        ["consume", *REAL, "--member", "half"],
        ["consume", *REAL, "--design", "stone-tablets"],
        ["view", *REAL, "--design", "stone-tablets"],
        ["view", *REAL, "--on-stale", "ignore"],
        ["view", *REAL, "--max-age", "young"],
        ["view", "--store", "memcached://"],
        ["view", "--cell", "two words"],
        ["view", "--partitions", "0"],
        ["view", "--config", "nowhere.toml"],
        ["resync", *REAL],
        ["resync", *REAL, "--all", "--node", "n1"],
        ["resync", *REAL, "--partition", "8"],
        ["publish", *REAL],
        ["publish", *REAL, "nowhere.jsonl"],
        ["agent", *REAL, "--source", "imagination"],
        ["agent", *REAL, "--nodes", "0"],
        ["up", "--nodes", "0"],
        ["top", *REAL, "--log-level", "chatty"],
        ["dance"],
        ["design", "status", "--store", "memory://"],
        ["design", "prepare", *REAL, "stone-tablets"],
        ["design", "prepare", *REAL, "sql"],
        ["design", "cutover", *REAL],
        ["design", "dance"],
        ["select", *REAL],
        ["select", *REAL, "request.json", "--resources", "VCPU=1"],
        ["select", *REAL, "--resources", "VCPU=1", "--max-age", "0"],
        ["boot", *REAL, "--reservation", "1"],
        ["boot", *REAL, "--instance", "web-1"],
        ["boot", *REAL, "--reservation", "1", "--instance", "web-1", "--explain"],
        ["boot", *REAL, "request.json", "--reservation", "1", "--instance", "web-1"],
        ["reserve", *REAL],
        ["reserve", *REAL, "nowhere.json"],
        ["extend", *REAL, "1"],
        ["resize", *REAL, "web-1"],
        ["key", "init"],
        ["key", "status", "--keys-file", "nowhere.keys"],
        ["key", "node", "--keys-file", "nowhere.keys", "a b"],
        ["update", *REAL, "web-1"],
        ["config", "check", "--config", "nowhere.toml"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2_and_a_reason(words: list[str]) -> None:
    answer = run(*words)
    assert answer.exit_code == 2
    assert answer.stderr
    assert "Traceback" not in answer.stderr
    assert not answer.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["select", *REAL, "--json"], "no request was given"),
        (["select", "--json", "--nodes", "3"], "--nodes"),
        (["view", *REAL, "--max-age", "young", "--json"], "young"),
        (["extend", *REAL, "1", "--json"], "--hold"),
        (["design", "dance", "--json"], "dance"),
        (["dance", "--json"], "dance"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage_with_json_prints_an_error_object(words: list[str], told: str) -> None:
    """Regression: the error was printed as text if the wrong word stood before ``--json``."""
    answer = run(*words)
    assert answer.exit_code == 2
    error = json.loads(answer.stderr)
    assert error.keys() == {"error", "kind"}
    assert told in error["error"]
    assert error["kind"] == USAGE_KIND
    assert not answer.stdout


KINDS = {
    "NodestateError": "error",
    "ConfigError": "config",
    "BadEventError": "bad-event",
    "DesignStepError": "design-step",
    "KeyStepError": "key-step",
    "DesignIncompleteError": "design-incomplete",
    "DesignsDifferError": "design-differs",
    "LayoutInUseError": "layout-in-use",
    "ControlLostError": "control-record-lost",
    "StoreError": "store",
    "StoreUnavailableError": "store-unavailable",
    "StoreRefusedError": "store-refused",
    "SchemaError": "schema",
    "StoreFullError": "store-full",
    "DatabaseFullError": "database-full",
    "ItemTooLargeError": "item-too-large",
    "CorruptItemError": "corrupt-item",
    "FencedError": "fenced",
    "EpochLostError": "epoch-lost",
    "BrokerUnavailableError": "broker-unavailable",
    "DeadLetterError": "dead-letter-refused",
    "UnconfirmedError": "unconfirmed",
    "SourceUnavailableError": "source-unavailable",
    "OrderFailedError": "order-failed",
    "StaleViewError": "stale-view",
    "BehindError": "behind",
    "NothingReadError": "nothing-read",
    "BadRequestError": "bad-request",
    "NotFoundError": "not-found",
    "NodeAliveError": "node-alive",
    "NotForgottenError": "not-forgotten",
    "UnknownNodeError": "not-found",
    "CommandTimeoutError": "timeout",
    "OutputError": "output",
    "SilentAgentsError": "silent-agents",
    "PolicyError": "policy",
}
"""By class, the kind that programs compare. A class may be renamed, here as well; its kind stays."""


def public_errors() -> dict[str, type[NodestateError]]:
    """All public classes of errors of the package, by name."""
    every_command()  # imports all commands, and so everything that defines an error
    found: dict[str, type[NodestateError]] = {}
    left: list[type[NodestateError]] = [NodestateError]
    while left:
        error = left.pop()
        left += error.__subclasses__()
        if error.__module__.startswith("nodestate.") and not error.__name__.startswith("_"):
            found[error.__name__] = error
    return found


def test_kinds_of_errors_are_frozen_words_of_their_own() -> None:
    """Programs compare the kind, so it must not change with the name of a class."""
    assert {name: vars(error).get("kind") for name, error in public_errors().items()} == KINDS
    assert USAGE_KIND == "usage"


def test_every_kind_of_error_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(documented) == sorted({*KINDS.values(), USAGE_KIND})


def test_help_loads_no_library_that_only_a_command_needs() -> None:
    """The list of commands must appear at once; numpy, kombu and the others cost half a second."""
    script = (
        "import sys\n"
        "from nodestate.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(*(name for name in ('kombu', 'numpy', 'sqlalchemy', 'rich') if name in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stderr.strip() == ""


def test_list_of_commands_shows_the_summary_of_each_command() -> None:
    """The list shows the summaries of the entries; a command that is loaded has the same."""
    listed = run("--help").stdout
    for name, entry in COMMANDS.items():
        assert " ".join(entry.summary.split()) in " ".join(listed.split()), name
        assert main.load(name).get_short_help_str(200) == entry.summary


def test_request_file_and_resources_together_are_refused_with_a_reason() -> None:
    """Regression: the message for both was the one for none of them."""
    answer = run("select", *REAL, "request.json", "--resources", "VCPU=1")
    assert "give one of them, not both" in answer.stderr
    assert "no request was given" in run("select", *REAL).stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("publish", ["publish", "-"]),
        ("consume", ["consume", "--store", "memcached://127.0.0.1:1"]),
        ("consume", ["consume", "--broker", "amqp://127.0.0.1:1"]),
        ("view", ["view"]),
        ("top", ["top", "--once"]),
        ("check", ["check"]),
        ("resync", ["resync", "--all"]),
        ("doctor", ["doctor"]),
        ("agent", ["agent"]),
        ("select", ["select", "--resources", "VCPU=1"]),
        ("boot", ["boot", "--resources", "VCPU=1", "--store", "memcached://127.0.0.1:1"]),
        ("confirm", ["confirm", "1", "--broker", "amqp://127.0.0.1:1"]),
        ("reservations", ["reservations"]),
        ("migrate", ["migrate", "web-1"]),
    ],
)
def test_command_of_its_own_process_refuses_memory_urls(name: str, words: list[str]) -> None:
    """A memory:// broker exists within one process: what a command publishes there is lost when the command ends."""
    answer = run(*words)
    assert answer.exit_code == 2
    assert "exists only within one process" in answer.stderr
    assert name in every_command()


def test_error_is_one_line_of_text_or_one_json_object() -> None:
    words = ["view", *REAL, "--on-stale", "refuse"]

    told = run(*words)
    assert told.exit_code == 1
    assert told.stderr.startswith("nodestate: the view was never")
    assert told.stderr.count("\n") == 1
    assert not told.stdout

    answer = run(*words, "--json")
    assert answer.exit_code == 1
    error = json.loads(answer.stderr)
    assert error["error"] + "\n" == told.stderr.removeprefix("nodestate: ")
    assert error["kind"] == "stale-view"
    assert error["max_age"] == 5.0
    assert error["age"] is None
    assert error["partitions"] == list(range(8))


@pytest.mark.parametrize(
    "words", [["view", "--config", "\udcff.toml"], ["sql", "status", "--sql", "sqlite:///\udcff.db"]]
)
def test_an_argument_that_is_not_utf_8_is_printed_as_json_with_an_escape(words: list[str]) -> None:
    """Regression: the error ended in a traceback."""
    answer = run(*words, "--json")
    assert answer.exit_code in {1, 2}
    assert "\\udcff" in answer.output
    assert json.loads(answer.output)


def test_a_consumer_that_never_reached_its_servers_fails(tmp_path: Path) -> None:
    """Regression: it ended with exit code 0, as after work that was done."""
    answer = run("consume", *REAL, "--seconds", "0.1", "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["sessions"] == 0
    assert json.loads(answer.stderr.splitlines()[-1])["kind"] == "store-unavailable"
    sqlite = {"NODESTATE_SQL": f"sqlite:///{tmp_path}/cell.db"}
    answer = run("consume", *REAL, "--design", "sql", "--seconds", "0.1", "--json", env=sqlite)
    assert answer.exit_code == 1
    assert json.loads(answer.stderr.splitlines()[-1])["kind"] == "broker-unavailable"


def test_outage_of_the_broker_is_an_error_without_traceback() -> None:
    answer = run("resync", "--all", *REAL, "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stderr)["kind"] == "broker-unavailable"


def test_flagged_view_names_partitions_that_could_not_be_read() -> None:
    answer = run("view", *REAL, "--partitions", "2", "--on-stale", "flag", "--json")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout) == {
        "position": [None, None],
        "age": None,
        "nodes": {},
        "stale": [],
        "incomplete": ["partition 0", "partition 1"],
    }


def test_view_without_any_readable_partition_is_refused() -> None:
    """A program that ignores ``incomplete`` would take an empty view for a cell without nodes."""
    answer = run("view", *REAL, "--partitions", "2", "--json")
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert json.loads(answer.stderr)["kind"] == "nothing-read"


def test_up_ignores_broker_and_store_of_the_environment() -> None:
    """Regression: the simulated fleet overwrote nodes of the same names in the real cell of the environment."""
    where = {"NODESTATE_BROKER": "amqp://127.0.0.1:1", "NODESTATE_STORE": "memcached://127.0.0.1:1"}
    answer = CliRunner().invoke(main, ["up", "--nodes", "3", "--seconds", "1", "--json"], env=where)
    assert answer.exit_code == 0, answer.output
    assert "embedded broker and store" in answer.stderr


def test_publish_refuses_a_compressed_file_with_a_remedy(tmp_path: Path) -> None:
    """The error is one line with the remedy, not one for each line feed in the compressed data."""
    file = tmp_path / "events.jsonl.gz"
    file.write_bytes(gzip.compress(b"{}\n" * 99))
    answer = run("publish", *REAL, str(file))
    assert answer.exit_code == 2
    assert f"zcat {file} | nodestate publish -" in answer.stderr


def test_publish_of_a_file_in_the_other_format_is_one_error_that_names_the_option(tmp_path: Path) -> None:
    """Regression: there was one refusal for each byte of the file, or for each line feed in it."""
    file = tmp_path / "events"
    file.write_text(f"{GOOD}\n" * 99)
    answer = run("publish", *REAL, "--format", "msgpack", str(file))
    assert answer.exit_code == 1
    assert answer.stderr.startswith("event 1: undecodable: no event at byte 0 of the stream, but a number; ")
    assert answer.stderr.count("\n") == 1
    assert "--format json" in answer.stderr
    file.write_bytes(msgspec.msgpack.encode(json.loads(GOOD) | {"text": "\n" * 99}))
    answer = run("publish", *REAL, str(file))
    assert answer.exit_code == 2
    assert answer.stderr.count("\n") == 1
    assert "--format msgpack" in answer.stderr


@pytest.mark.parametrize("words", [["--json"], ["--limit", "40"]])
def test_view_in_msgpack_refuses_options_of_the_other_formats(words: list[str]) -> None:
    answer = run("view", *REAL, "--format", "msgpack", *words)
    assert answer.exit_code == 2
    assert words[0] in answer.stderr
    assert "--format msgpack" in answer.stderr


@pytest.mark.parametrize("command", ["publish", "view"])
def test_help_has_an_example_in_msgpack(command: str) -> None:
    assert "--format msgpack" in run(command, "--help").stdout.partition("Example:")[2]


def test_check_without_any_readable_partition_fails() -> None:
    """Two empty views are equal, but that does not show that the designs agree."""
    answer = run("check", *REAL, "--timeout", "0", "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["agree"] is False


def test_doctor_reports_servers_that_do_not_answer_as_failures() -> None:
    answer = run("doctor", *REAL, "--json")
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert found["ok"] is False
    assert {finding["about"] for finding in found["findings"] if finding["level"] == "FAIL"} == {
        "broker",
        "store 127.0.0.1:1",
        "journal",
        "snapshot",
    }
    assert all(finding["advice"] for finding in found["findings"] if finding["level"] != "OK")


def test_passwords_are_not_shown() -> None:
    answer = run("doctor", "--broker", "amqp://someone:verysecret@127.0.0.1:1", "--store", "memcached://127.0.0.1:1")
    assert "someone:***" in answer.stdout
    assert "verysecret" not in answer.output


def test_settings_come_from_options_then_environment_then_file(tmp_path: Path) -> None:
    file = tmp_path / "cell.toml"
    file.write_text('broker = "amqp://127.0.0.1:1"\nstore = "memcached://127.0.0.1:1"\ncell = "of-the-file"\n')
    env = {"NODESTATE_CELL": "of-the-environment"}

    def cell_of(*words: str, env: Mapping[str, str] | None = None) -> str:
        answer = run("doctor", "--json", "--config", str(file), *words, env=env)
        cell: str = json.loads(answer.stdout)["cell"]
        return cell

    assert cell_of() == "of-the-file"
    assert cell_of(env=env) == "of-the-environment"
    assert cell_of("--cell", "of-the-option", env=env) == "of-the-option"


# -- publishing without a broker ------------------------------------------------------------------

GOOD = '{"v":1,"kind":"report","node":"n1","incarnation":1700000000,"generation":1,"reported_at":1.7e9,"state":{}}'


def test_publish_prints_line_numbers_and_reasons_of_invalid_events() -> None:
    lines = ["", "not json", GOOD.replace('"n1"', '"two words"'), GOOD.replace('"v":1', '"v":9'), GOOD[:-3], "[]"]
    answer = run("publish", *REAL, "--json", "-", stdin="\n".join(lines))

    assert answer.exit_code == 1
    refusals = [json.loads(line) for line in answer.stderr.splitlines()]
    assert [(refusal["line"], refusal["reason"]) for refusal in refusals] == [
        (2, "undecodable"),
        (3, "bad-name"),
        (4, "unknown-version"),
        (5, "undecodable"),
        (6, "wrong-type"),
    ]
    summary = json.loads(answer.stdout)
    assert (summary["published"], summary["refused"]) == (0, 5)


def test_publish_fails_with_a_summary_if_the_broker_stays_away() -> None:
    answer = run("publish", *REAL, "--timeout", "0.1", "--json", "--log-level", "error", "-", stdin=GOOD)

    assert answer.exit_code == 1
    assert json.loads(answer.stderr)["kind"] == "broker-unavailable"
    assert json.loads(answer.stdout)["published"] == 0


# -- logs, signals --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["console", "json"])
def test_logs_go_to_stderr_in_both_forms(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        set_up_logs("info", form)
        log = structlog.get_logger("nodestate.test")
        log.debug("not shown")
        log.info("took", partition=3)
    finally:
        structlog.reset_defaults()

    told = capsys.readouterr()
    assert not told.out
    assert told.err.count("\n") == 1
    if form == "json":
        line = json.loads(told.err)
        assert (line["event"], line["partition"], line["level"]) == ("took", 3, "info")
    else:
        assert "took" in told.err
        assert "partition=3" in told.err


def test_first_signal_requests_a_stop_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_infinite_numbers_are_null_in_json() -> None:
    @cell_command("ask", example="nodestate ask")
    def ask(run: Run) -> None:
        """Ask."""
        run.print_json({"age": float("inf")})
        raise StaleViewError(float("inf"), 5.0)

    answer = CliRunner().invoke(ask, ["--json"])
    assert isinstance(ask, click.Command)
    assert json.loads(answer.stdout) == {"age": None}
    assert json.loads(answer.stderr)["age"] is None


def test_python_dash_m_runs_the_same_program() -> None:
    command = [sys.executable, "-m", "nodestate.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)  # noqa: S603
    assert done.stdout.startswith("nodestate, version ")
