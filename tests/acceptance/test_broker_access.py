"""A broker that encrypts and knows its users: a whole farm as a user with few rights, and an administrator who asks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import trustme

from farm import settings as farm_settings
from tests import small_sweep, valkey
from tests.acceptance.running_farm import RunningFarm, running_farm
from tests.valkey import Server
from workers import app

DOCS = Path(__file__).parents[2] / "docs" / "broker.md"
ROOT = "root-password"
FARM = valkey.password()


@dataclasses.dataclass(frozen=True)
class Secured:
    """A farm and its broker."""

    farm: RunningFarm
    server: Server


def acl() -> str:
    """The users that docs/broker.md recommends, and one who may look at everything."""
    (rules,) = re.findall(r"^ +(user farm .*)$", DOCS.read_text(), re.MULTILINE)
    rules = rules.replace(">PASSWORD", f">{FARM}")
    return f"user default off\n{rules}\nuser root on >{ROOT} ~* &* +@all\n"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(valkey.server(directory, acl=acl()))
        wire = stack.enter_context(valkey.wire(server.port, tls=context))  # the server of the wheel has no TLS
        url = f"rediss://farm:{quote(FARM, safe='')}@localhost:{wire.port}/0"
        farm = stack.enter_context(running_farm(directory / "home", broker_url=url, broker_ca=directory / "ca.pem"))
        yield Secured(farm=farm, server=server)


def run(secured: Secured, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **farm_settings.to_environ(secured.farm.settings)}
    return subprocess.run([sys.executable, "-m", *words], env=environ, capture_output=True, text=True, check=False)


def test_a_user_with_few_rights_is_enough_for_a_farm_and_for_those_who_look(secured: Secured, tmp_path: Path) -> None:
    farm, flag = secured.farm, tmp_path / "flag"
    farm.wait_for_end(farm.submit(small_sweep.plan("model")))
    submission_id = farm.submit(small_sweep.plan(f"wait={flag}"))
    farm.wait_until(flag.exists, what="a running stage")
    nodes = {f"celery@host.{farm.settings.host}", *(f"celery@device.{farm.settings.host}.{qid}" for qid in (0, 1))}
    # With names the answer is there when all of them have answered.
    celery = ("celery", "-A", "workers.app", "inspect", "--json", "--destination", ",".join(sorted(nodes)))
    pong = run(secured, *celery, "--timeout", "30", "ping")
    assert json.loads(pong.stdout) == {node: {"ok": "pong"} for node in nodes}
    control = app.make(farm.settings).control
    inspect = control.inspect(destination=sorted(nodes), timeout=30)
    active = inspect.active()
    running = farm.jobs(submission_id)[0].id
    assert [task["args"] for tasks in active.values() for task in tasks] == [[running, 1]]
    assert inspect.stats().keys() == nodes
    refused = control.broadcast("shutdown", destination=sorted(nodes), reply=True, timeout=30)
    assert [answer["error"].partition(".")[0] for found in refused for answer in found.values()] == [
        "Nodes only answer questions"
    ] * len(nodes)
    flag.unlink()
    farm.wait_for_end(submission_id)
    farm.assert_sound(submission_id)
    assert secured.server.ask("ACL LOG", user="root", password=ROOT) == "*0\r\n"


def test_a_node_keeps_nothing_on_the_broker(secured: Secured) -> None:
    secured.farm.wait_for_end(secured.farm.submit(small_sweep.plan("nothing to keep")))
    answer = secured.server.ask("KEYS *", user="root", password=ROOT)
    keys = {line for line in answer.splitlines() if line.startswith("qeff-farm:")}
    assert keys
    assert not [key for key in keys if not key.startswith("qeff-farm:_kombu.binding")]


def test_the_user_reaches_nothing_else_on_the_server(secured: Secured) -> None:
    def ask(command: str) -> str:
        return secured.server.ask(command, user="farm", password=FARM)

    for command in ("GET other", "SET other 1", "LPUSH other 1", "KEYS *", "FLUSHALL", "CONFIG SET save 1", "ACL LIST"):
        assert ask(command).startswith("-NOPERM"), command
    assert ask("PUBLISH other 1").startswith("-NOPERM")
    assert ask("LLEN qeff-farm:x").startswith(":0")
    assert secured.server.ask("PING").startswith("-NOAUTH")
    secured.server.ask("ACL LOG RESET", user="root", password=ROOT)


def test_the_password_stands_in_no_log_no_command_line_and_no_answer(secured: Secured) -> None:
    farm = secured.farm
    secrets = (FARM, quote(FARM, safe=""))
    shown = [run(secured, "farm", "doctor").stdout, run(secured, "farm", "doctor", "--json").stdout]
    assert "rediss://farm:***@localhost:" in shown[0]
    nodes = [f"celery@host.{farm.settings.host}"]
    inspect = app.make(farm.settings).control.inspect(destination=nodes, timeout=30)
    shown.append(json.dumps([inspect.report(), inspect.stats()]))
    shown += [path.read_text(errors="replace") for path in farm.settings.home.rglob("*.log")]
    shown += [path.read_text() for path in farm.settings.run_dir.glob("*.json")]
    shown.append(repr(farm.settings))
    for pid in farm.children.values():
        shown.append(" ".join(psutil.Process(pid).cmdline()))
    assert not [text for text in shown if any(secret in text for secret in secrets)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"broker_ca": None}, "certificate verify failed"),
        ({"broker_url": ("farm:", "nobody:")}, "WRONGPASS"),
        ({"broker_url": ("localhost", "127.0.0.1")}, "certificate"),
    ],
)
def test_doctor_says_what_is_wrong_with_an_encrypted_broker(
    secured: Secured, change: dict[str, tuple[str, str] | None], words: str
) -> None:
    settings = secured.farm.settings
    for name, new in change.items():
        value = getattr(settings, name).replace(*new) if new is not None else None
        settings = dataclasses.replace(settings, **{name: value})
    environ = {**os.environ, **farm_settings.to_environ(settings)}
    found = subprocess.run(
        [sys.executable, "-m", "farm", "doctor", "--json"], env=environ, capture_output=True, text=True, check=False
    )
    (broker,) = [check for check in json.loads(found.stdout) if check["name"] == "broker"]
    assert not broker["ok"]
    assert words in broker["found"]
