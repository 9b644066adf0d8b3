"""Access: tokens and their roles, cookies of browsers, foreign hosts and pages, and addresses that are not loopback."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from starlette.datastructures import Headers

from harness.certificates import CertificateAuthority
from nodestate.cli import main
from nodestate.errors import ConfigError
from nodestate.serve import tokens as tokens_module
from nodestate.serve.access import COOKIE, Access, require_safe
from nodestate.serve.app import ROUTES
from nodestate.serve.event_hub import ResetEvent
from nodestate.serve.problems import ProblemError
from nodestate.serve.server import tls_context
from nodestate.serve.tokens import ROLES, TokenFile
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService, publish

TOKENS = {role: f"{role}-token-".ljust(40, "x") for role in ROLES[1:]}


def write_tokens(folder: Path) -> Path:
    path = folder / "tokens"
    lines = [f"{role} {role}er {token}" for role, token in TOKENS.items()]
    path.write_text("\n".join(["# who may do what", "", *lines, ""]), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tokens(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    file = write_tokens(tmp_path_factory.mktemp("access"))
    with RunningService.over(SimulatedCell(), access=Access(TokenFile(str(file)), ["cell.example"])) as running:
        yield running


def headers_of(token: str) -> Headers:
    return Headers({"authorization": f"Bearer {token}"})


def test_requests_without_a_right_token_are_refused_and_health_is_open(running: RunningService) -> None:
    """Every route but health and its own description needs a token; the answer tells how to send one."""
    for path in ("/v1/view", "/v1/nodes", "/v1/nodes/node-1", "/v1/designs"):
        refused = running.get(path)
        assert (refused.status_code, refused.json()["type"]) == (401, "unauthorized"), path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert running.get(path, authorization="Bearer wrong").status_code == 401, path
        assert running.get(path, authorization=f"Bearer {TOKENS['read']}").status_code != 401, path
    assert running.get("/livez").status_code == 200
    assert running.get("/openapi.json").status_code == 200
    assert {route.path for route in ROUTES if route.role == "open" and route.method == "GET"} == {"/livez", "/readyz"}


def test_each_role_includes_those_below_it(file: Path) -> None:
    access = Access(TokenFile(str(file)))
    for held, token in TOKENS.items():
        for needed in TOKENS:
            if ROLES.index(held) >= ROLES.index(needed):
                holder = access.require_role(needed, "POST", headers_of(token))
                assert holder is not None
                assert holder.name == f"{held}er"
            else:
                with pytest.raises(ProblemError, match=f"needs the role {needed}") as caught:
                    access.require_role(needed, "POST", headers_of(token))
                assert caught.value.document.status == 403


def test_a_browser_gets_a_cookie_that_counts_only_for_reading(running: RunningService) -> None:
    """A browser adds its cookie to requests of any page, so a cookie must never change anything."""
    given = running.client.post("/v1/session", headers={"Authorization": f"Bearer {TOKENS['read']}"})
    assert given.json() == {"name": "reader", "role": "read"}
    attributes = given.headers["set-cookie"].lower()
    assert all(word in attributes for word in ("httponly", "samesite=strict", "path=/"))
    with httpx.Client(base_url=running.listener.url, cookies={COOKIE: TOKENS["operate"]}, trust_env=False) as browser:
        assert browser.get("/v1/designs").status_code != 401
        assert browser.post("/v1/session").status_code == 401
    ended = running.client.delete("/v1/session")
    assert "max-age=0" in ended.headers["set-cookie"].lower()


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "[::1]:80", "cell.example", "CELL.example:9"])
def test_a_known_host_is_accepted(running: RunningService, host: str) -> None:
    assert running.get("/livez", host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "a b", "@"])
def test_a_name_that_points_here_by_a_foreign_will_is_refused(running: RunningService, host: str) -> None:
    """A page can let its own name point to 127.0.0.1; without this check its scripts could read the cell."""
    refused = running.get("/livez", host=host)
    assert refused.status_code in (400, 421)


def test_requests_of_pages_of_other_sites_are_refused(running: RunningService) -> None:
    for origin in ("http://evil.example", "null", "https://127.0.0.1"):
        assert running.get("/livez", origin=origin).status_code == 403, origin
    assert running.get("/livez", origin=running.listener.url).status_code == 200


def test_a_changed_file_counts_from_then_on_and_a_damaged_one_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "CHECK_S", 0.0)
    loaded = TokenFile(str(file))
    new = "n" * 40
    file.write_text(f"read other {new}\n", encoding="utf-8")
    assert loaded.holder_of(TOKENS["operate"]) is None
    holder = loaded.holder_of(new)
    assert holder is not None
    assert holder.role == "read"
    file.write_text("nonsense\n", encoding="utf-8")
    assert loaded.holder_of(new) == holder
    file.unlink()
    assert loaded.holder_of(new) == holder


def test_the_open_stream_of_a_withdrawn_token_ends_and_that_of_another_one_goes_on(file: Path) -> None:
    """Each request checks its token, but a stream is one request for an hour."""
    with RunningService.over(SimulatedCell(), access=Access(TokenFile(str(file)))) as running, ExitStack() as stack:
        streams = {
            role: stack.enter_context(
                running.client.stream(
                    "GET", "/v1/events?topics=decisions", headers={"Authorization": f"Bearer {TOKENS[role]}"}
                )
            )
            for role in ("read", "schedule")
        }
        lines = {role: stream.iter_lines() for role, stream in streams.items()}
        assert {next(one) for one in lines.values()} == {"retry: 1000"}
        kept = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("read ")]
        file.write_text("\n".join(kept), encoding="utf-8")
        assert [line for line in lines["read"] if line.startswith("data")] == ['data: {"reason":"start"}']
        assert len(running.service.hub.clients) == 1
        publish(running, "decisions", ResetEvent("of a test"))
        while "of a test" not in next(lines["schedule"]):
            pass


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("read a " + "x" * 32, 0o644, "chmod 600"),
        ("read a short", 0o600, "openssl rand"),
        ("admin a " + "x" * 32, 0o600, "no role 'admin'"),
        ("read " + "x" * 32, 0o600, "ROLE NAME TOKEN"),
        (f"read a {'x' * 32}\noperate b {'x' * 32}", 0o600, "line 2"),
        ("# nothing\n", 0o600, "no token"),
        ("\udcff", 0o600, "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_at_the_start(
    tmp_path: Path, content: str, mode: int, reason: str
) -> None:
    path = tmp_path / "tokens"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=reason) as caught:
        TokenFile(str(path))
    assert "x" * 32 not in str(caught.value), "a message must not have a token"
    with pytest.raises(ConfigError, match="can't be read"):
        TokenFile(str(tmp_path / "missing"))


def test_an_address_that_other_machines_reach_needs_tokens_or_a_word() -> None:
    """Without tokens the service starts there only if the operator says that it is meant."""
    store = ["--store", "memcached://127.0.0.1:1", "--listen", "0.0.0.0:0"]
    refused = CliRunner().invoke(main, ["serve", *store])
    assert refused.exit_code == 2
    assert all(word in refused.output for word in ("--tokens", "--insecure", "127.0.0.1"))
    every_machine = {"is_loopback": False, "has_tls": False, "insecure": False}
    assert "can be read on the way" in require_safe(**{**every_machine, "has_tokens": True})
    assert "every machine" in require_safe(**{**every_machine, "has_tokens": False, "insecure": True})
    assert require_safe(is_loopback=False, has_tokens=True, has_tls=True, insecure=False) == ""
    assert require_safe(is_loopback=True, has_tokens=False, has_tls=False, insecure=False) == ""


def test_tls_is_served_with_the_given_certificate(authority: CertificateAuthority, tmp_path: Path) -> None:
    made = authority.issue("127.0.0.1")
    with pytest.raises(ConfigError, match="chmod 600"):
        tls_context(str(made.cert), str(made.key))
    key = tmp_path / "key.pem"
    key.write_bytes(made.key.read_bytes())
    key.chmod(0o600)
    with pytest.raises(ConfigError, match="no certificate"):
        tls_context(os.devnull, str(key))
    with RunningService.over(SimulatedCell(), tls=tls_context(str(made.cert), str(key))) as running:
        assert running.listener.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(authority.file))
        with httpx.Client(verify=trusted, trust_env=False) as client:
            assert client.get(f"{running.listener.url}/livez").status_code == 200
            cookie = client.post(f"{running.listener.url}/v1/session")
            assert cookie.json()["role"] == "operate"
