"""Tests of llmasos.yaml: what is read, and how each mistake is told."""

from pathlib import Path

import pytest

from llmasos_edge.errors import ConfigError
from llmasos_edge.firstboot.appliance import DEFAULT_TOPICS, Appliance, Client, Wifi, Wired, read_appliance

HEAD = "apiVersion: llmasos/v1\nkind: Appliance\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake me"


def read(folder: Path, spec: str) -> Appliance:
    file = folder / "llmasos.yaml"
    file.write_text(HEAD + spec)
    return read_appliance(file)


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    """Each key arrives where it belongs."""
    given = read(
        tmp_path,
        f"""\
spec:
  hostname: kitchen
  network:
    wired: {{address: 192.168.1.20/24, gateway: 192.168.1.1, dns: [192.168.1.1]}}
    wifi: {{country: GB, ssid: "Our net", password: "long enough"}}
  ssh_keys: ["{KEY}"]
  mqtt:
    clients: [{{name: dashboard, password: "also long enough"}}]
    topics: ["tasmota/+/tele/#"]
""",
    )
    assert given == Appliance(
        "kitchen",
        Wired("192.168.1.20/24", "192.168.1.1", ("192.168.1.1",)),
        Wifi("GB", "Our net", "long enough"),
        (KEY,),
        (Client("dashboard", "also long enough"),),
        ("tasmota/+/tele/#",),
    )


def test_nothing_said_is_the_defaults(tmp_path: Path) -> None:
    """The file as it is flashed asks for nothing special."""
    assert read(tmp_path, "") == Appliance() == Appliance(topics=DEFAULT_TOPICS)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("hostnam: x", 'unknown key; did you mean "hostname"?'),
        ("hostname: Kitchen_1", "is no host name"),
        ("network: {wired: {address: 192.168.1.20}}", "no address with its network"),
        ("network: {wired: {address: 1.2.3.4/24, gateway: router}}", "is no address"),
        ("network: {wifi: {country: GB, ssid: x}}", 'the key "password" is missing'),
        ("network: {wifi: {country: gb, ssid: x, password: 12345678a}}", "two capital letters"),
        ("network: {wifi: {country: GB, ssid: x, password: short}}", "8 to 63"),
        ("ssh_keys: [-----BEGIN]", "no SSH public key"),
        ("mqtt: {clients: [{name: llmasos, password: abcdefgh}]}", "the node's own name"),
        ('mqtt: {clients: [{name: "a/#", password: abcdefgh}]}', "is no name"),
        ("mqtt: {clients: [{name: a, password: abcdefgh}, {name: a, password: abcdefgh}]}", '"a" is there twice'),
        ('mqtt: {topics: ["#"]}', "can't be opened"),
        ('mqtt: {topics: ["llmasos/v1/#"]}', "can't be opened"),
        ('mqtt: {topics: ["home/x#"]}', "can't be opened"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, spec: str, told: str) -> None:
    """The owner reads them on the card: file, line, and what to write."""
    with pytest.raises(ConfigError, match=r"llmasos\.yaml:4: ") as caught:
        read(tmp_path, f"spec:\n  {spec}\n")
    assert told in caught.value.message
