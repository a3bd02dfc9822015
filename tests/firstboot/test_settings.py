"""Tests of the files that first boot writes."""

import hashlib

from llmasos_edge.firstboot.appliance import Appliance, Client, Wifi, Wired
from llmasos_edge.firstboot.settings import access_list, access_note, broker_files, machine_files, new_password


def written(appliance: Appliance) -> dict[str, str | None]:
    return {file.path.rpartition("/")[2]: file.text for file in machine_files(appliance)}


def test_without_wishes_files_of_an_earlier_boot_go() -> None:
    """DHCP, no radio, no login: what the image has, with nothing over it."""
    assert written(Appliance()) == {
        "hostname": "llmasos\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 llmasos\n",
        "10-wired.network": None,
        "wpa_supplicant-wlan0.conf": None,
        "admin": None,
    }


def test_the_radio_is_told_a_key_and_no_password() -> None:
    """Quotes in a name or a password can't break out of the file, and the password is not on the card."""
    text = written(Appliance(wifi=Wifi("GB", 'a"\n}', 'pass"word')))["wpa_supplicant-wlan0.conf"]
    key = hashlib.pbkdf2_hmac("sha1", b'pass"word', b'a"\n}', 4096, 32).hex()
    assert text == f"ctrl_interface=/run/wpa_supplicant\ncountry=GB\nnetwork={{\n\tssid=61220a7d\n\tpsk={key}\n}}\n"


def test_a_fixed_address() -> None:
    """It is read before the file that asks for DHCP, and says all of it."""
    text = written(Appliance(wired=Wired("10.0.0.2/8", "10.0.0.1", ("10.0.0.1",))))["10-wired.network"]
    assert text is not None
    assert "Address=10.0.0.2/8\nGateway=10.0.0.1\nDNS=10.0.0.1\n" in text


def test_clients_speak_and_hear_under_their_own_names() -> None:
    """mosquitto puts the user in for %u; only the node has everything."""
    text = access_list(["phone"], ["home/#"])
    blocks = text.rstrip().split("\n\n")
    assert blocks[0] == "user llmasos\ntopic readwrite #"
    assert blocks[1].startswith("user phone\n")
    assert "topic readwrite home/#" in blocks[1]
    assert "topic read llmasos/v1/+/+/status" in blocks[1]
    assert blocks[2] == "pattern write llmasos/v1/+/+/req/%u/#\npattern read llmasos/v1/+/+/res/%u/#"
    assert text.count("readwrite #") == 1


def test_secrets_are_for_their_readers() -> None:
    """No password can be read by everyone."""
    files = {file.path: file for file in broker_files([Client("phone", "12345678")], [], "node's own")}
    assert {(file.mode, file.group) for file in files.values()} == {(0o640, "mosquitto"), (0o640, "llmasos")}
    assert files["etc/mosquitto/passwd"].text == "llmasos:node's own\nphone:12345678\n"


def test_the_note_says_where_and_who() -> None:
    """All that a client needs is in it."""
    note = access_note("kitchen", Client("owner", "secret"))
    for part in ("kitchen.local", "owner", "secret", "llmasos/v1/home/kitchen/req/owner/chat"):
        assert part in note


def test_passwords_are_long_and_never_the_same() -> None:
    """20 characters of 64: nobody guesses them."""
    assert len({new_password() for _ in range(50)}) == 50
    assert len(new_password()) == 20
