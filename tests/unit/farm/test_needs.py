"""Requests for places that the farm does not have."""

from __future__ import annotations

import re

import pytest

from farm import needs
from farm.errors import Usage
from farm.needs import KnownDevice, Needs

DEVICES = (
    KnownDevice(name="ultra/0", host="a", sku="ultra", num_cores=16, labels=frozenset({"lab", "fast"}), sdk="1.20.1"),
    KnownDevice(name="ultra/1", host="a", sku="ultra", num_cores=16, labels=frozenset({"lab"}), sdk="1.20.1"),
    KnownDevice(name="standard/0", host="b", sku="standard", num_cores=14, sdk="1.19.0"),
)


def check(asked: Needs = needs.ANYWHERE, *, cores: int = 8, num_devices: int = 1) -> None:
    needs.check(asked, cores=(1, cores), num_devices=num_devices, devices=DEVICES, hosts=["a", "b"])


@pytest.mark.parametrize(
    ("asked", "cores", "num_devices", "words"),
    [
        (Needs(host="c"), 8, 1, "There is no host 'c', expected one of: a, b."),
        (Needs(sku="pro"), 8, 1, "No device has the SKU pro. Known: standard, ultra. Correct --sku."),
        (Needs(sdk="1.2"), 8, 1, "No device has the SDK 1.2. Known: 1.19.0, 1.20.1. Correct --sdk."),
        (
            Needs(labels=("fast", "loud")),
            8,
            1,
            "No device has all of the labels fast, loud. Known: fast, lab. Correct --device-label.",
        ),
        (Needs(host="b", labels=("lab",)), 8, 1, "No device has all of the labels lab. Known: none."),
        (
            Needs(sku="standard"),
            16,
            1,
            "No device has 16 cores: standard/0 (14 cores). Ask for at most 14 with --cores.",
        ),
        (
            needs.ANYWHERE,
            99,
            1,
            "No device has 99 cores: a ultra/0 (16 cores), a ultra/1 (16 cores), b standard/0 (14 cores).",
        ),
        (needs.ANYWHERE, 8, 3, "No host has 3 devices with 8 cores: a has 2, b has 1. Ask for at most 2 with"),
    ],
)
def test_what_no_place_can_be_is_refused_with_what_there_is(
    asked: Needs, cores: int, num_devices: int, words: str
) -> None:
    with pytest.raises(Usage, match=re.escape(words)):
        check(asked, cores=cores, num_devices=num_devices)


def test_what_some_place_is_passes() -> None:
    check(Needs(sku="ultra", labels=("fast", "lab"), host="a", sdk="1.20"), cores=16)
    check(Needs(labels=("lab",)), cores=16, num_devices=2)


def test_nothing_is_checked_before_anything_is_registered() -> None:
    asked = Needs(sku="ultra", host="c", labels=("lab",), sdk="9")
    needs.check(asked, cores=(99,), num_devices=9, devices=(), hosts=())


@pytest.mark.parametrize(
    ("asked", "found"), [("ultra", "PCIe Ultra"), ("pcie", "PCIe"), ("PCIe Ultra", "PCIe Ultra"), ("pro", "pro")]
)
def test_a_word_is_enough_for_the_sku_that_alone_has_it(asked: str, found: str) -> None:
    devices = [KnownDevice(name=f"{sku}/0", host="a", sku=sku, num_cores=16) for sku in ("PCIe", "PCIe Ultra")]
    assert needs.with_full_sku(Needs(sku=asked), devices=devices).sku == found
