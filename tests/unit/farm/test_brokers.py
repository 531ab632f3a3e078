"""What FARM_BROKER_URL may say, and what becomes of it."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path

import pytest

from farm import brokers
from farm import settings as farm_settings
from farm.errors import Usage


def settings(url: str, *, ca: str | None = None) -> farm_settings.Settings:
    found = farm_settings.load(home="/nowhere", environ={"FARM_BROKER_URL": url})
    return dataclasses.replace(found, broker_ca=Path(ca) if ca else None)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://box:6380/2", "redis://box:6380/2"),
        ("valkey://box", "redis://box"),
        ("redis://ann:p%40ss@box/0", "redis://ann:p%40ss@box/0"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("redis+socket:///run/valkey.sock?virtual_host=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
    ],
)
def test_a_plain_broker_is_spelt_as_celery_wants_it(url: str, expected: str) -> None:
    found = brokers.parse(settings(url))
    assert (found.url, found.tls) == (expected, None)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_an_encrypted_broker_is_verified_unless_its_url_says_otherwise(scheme: str) -> None:
    found = brokers.parse(settings(f"{scheme}://ann:pw@box:6380/0"))
    assert found.url == "redis://ann:pw@box:6380/0"
    assert found.tls == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    lax = brokers.parse(settings(f"{scheme}://box/0?ssl_cert_reqs=none"))
    assert lax.tls == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}


def test_certificates_come_from_the_url_or_from_the_option() -> None:
    by_option = brokers.parse(settings("rediss://box", ca="/etc/ca.pem"))
    by_url = brokers.parse(
        settings("rediss://box?ssl_ca_certs=/other.pem&ssl_certfile=/me.pem&ssl_keyfile=/me.key", ca="/etc/ca.pem")
    )
    assert by_option.tls is not None
    assert by_option.tls["ssl_ca_certs"] == "/etc/ca.pem"
    assert by_url.tls is not None
    assert {name: by_url.tls[name] for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")} == {
        "ssl_ca_certs": "/other.pem",
        "ssl_certfile": "/me.pem",
        "ssl_keyfile": "/me.key",
    }


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://box", r"begins with 'amqp://', expected one of: redis://, valkey://, rediss://"),
        ("redis://box?ssl_cert_reqs=none", r"redis://box has the option 'ssl_cert_reqs', expected: none"),
        ("rediss://ann:pw@box?ssl_ca=x", r"rediss://ann:\*\*\*@box has the option 'ssl_ca', expected: ssl_cert_reqs"),
        ("rediss://box?ssl_cert_reqs=maybe", r"ssl_cert_reqs=maybe, expected one of: required, optional, none"),
    ],
)
def test_a_wrong_url_is_refused_with_what_was_expected(url: str, words: str) -> None:
    with pytest.raises(Usage, match=words):
        brokers.parse(settings(url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://ann:pw@box:1/0?x=pw", "redis://ann:***@box:1/0?x=pw"),
        ("redis://:p%40@box", "redis://:***@box"),
        ("postgresql://farm:secret@db/farm", "postgresql://farm:***@db/farm"),
        ("redis://box", "redis://box"),
    ],
)
def test_a_password_is_masked(url: str, expected: str) -> None:
    assert brokers.masked(url) == expected


def test_settings_that_are_printed_show_no_password() -> None:
    assert "pw" not in repr(settings("redis://ann:pw@box"))
    assert "pw" not in repr(brokers.parse(settings("redis://ann:pw@box")))


def test_the_settings_of_the_broker_reach_child_processes() -> None:
    found = dataclasses.replace(settings("rediss://box", ca="/etc/ca.pem"), broker_prefix="other:")
    again = farm_settings.load(environ=farm_settings.to_environ(found))
    assert (again.broker_url, again.broker_ca, again.broker_prefix) == ("rediss://box", Path("/etc/ca.pem"), "other:")
