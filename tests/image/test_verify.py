"""Tests of what a built card is held to, each with a small one that has just that wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from image import FILES, boot, disk
from image.verify import NEEDED, boot_mistakes, named_files, root_mistakes
from llmasos_edge.firstboot.appliance import Appliance, read_appliance

BOARDS = sorted(boot.TREES)
Change = Callable[[Path], object]


def boot_folder(folder: Path, board: str) -> Path:
    """A boot partition with everything that it must have."""
    slot = folder / boot.SLOT
    slot.mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img", *boot.TREES[board]):
        (slot / name).touch()
    (slot / "cmdline.txt").write_text(boot.command_line(board))
    for file in (boot.HERE / "boards" / board).glob("*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def root_folder(folder: Path) -> Path:
    """A root with everything that it must have."""
    for name in (*NEEDED, "etc/machine-id"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "etc/shadow").write_text("root:*:1::::::\nadmin:!:1::::::\n")
    return folder


@pytest.mark.parametrize("board", BOARDS)
def test_what_each_board_is_made_from(tmp_path: Path, board: str) -> None:
    """config.txt names what is there, and the command line finds the root by its id."""
    assert list(boot_mistakes(boot_folder(tmp_path, board), board)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda it: (it / "slot-a/vmlinuz").unlink(), "slot-a/vmlinuz is missing"),
        (lambda it: (it / "slot-a/bcm2712-rpi-5-b.dtb").unlink(), "config.txt names slot-a/bcm2712-rpi-5-b.dtb"),
        (lambda it: (it / "slot-a/bcm2712d0-rpi-5-b.dtb").unlink(), "slot-a/bcm2712d0-rpi-5-b.dtb is missing"),
        (lambda it: (it / "slot-a/cmdline.txt").write_text("root=/dev/mmcblk0p2 ro"), "does not find the root"),
        (lambda it: (it / "key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----"), "key has a private key"),
    ],
)
def test_what_is_wrong_with_a_boot_partition_is_told(tmp_path: Path, change: Change, told: str) -> None:
    """Each alone."""
    change(boot_folder(tmp_path, "raspberry-pi"))
    assert any(told in it for it in boot_mistakes(tmp_path, "raspberry-pi"))


def test_a_good_root(tmp_path: Path) -> None:
    """Nothing is told of it."""
    assert list(root_mistakes(root_folder(tmp_path), Path("/home/builder"))) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("etc/machine-id", "0123", "machine-id is not empty"),
        ("etc/shadow", "root:$y$hash:1::::::\n", "root has a password"),
        ("etc/shadow", "admin::1::::::\n", "admin has a password, or needs none"),
        ("etc/ssh/ssh_host_ed25519_key", "", "must be made by each machine"),
        ("etc/mosquitto/passwd", "", "must be made by each machine"),
        ("etc/x.pem", "-----BEGIN PRIVATE KEY-----", "has a private key"),
        ("opt/llmasos/x.pth", "/home/builder/x", "names /home/builder"),
    ],
)
def test_what_is_wrong_with_a_root_is_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    """Each alone."""
    path = root_folder(tmp_path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert any(told in it for it in root_mistakes(tmp_path, Path("/home/builder")))


def test_files_that_a_config_names() -> None:
    """With the prefix, from every section, and without comments."""
    config = (
        "#kernel=no\nos_prefix=slot-a/\nkernel=vmlinuz\ninitramfs initrd.img followkernel\n[pi5]\ndevice_tree=a.dtb"
    )
    assert named_files(config) == ["slot-a/vmlinuz", "slot-a/initrd.img", "slot-a/a.dtb"]


def test_the_card_has_its_four_partitions() -> None:
    """MBR; both roots of one size, none over another, and the slots' roots are the second and the third."""
    starts, size = disk.STARTS, disk.ROOT_MIB
    assert disk.table().startswith(f"label: dos\nlabel-id: 0x{disk.DISK_ID}\n")
    assert starts == (4, 516, 516 + size, 516 + 2 * size)
    assert [disk.root_partuuid(slot) for slot in "ab"] == [f"{disk.DISK_ID}-02", f"{disk.DISK_ID}-03"]


def test_the_settings_that_a_card_comes_with() -> None:
    """They are without a mistake, and ask for the defaults."""
    assert read_appliance(boot.HERE / "llmasos.yaml") == Appliance()


def test_every_wish_in_the_settings_can_be_uncommented(tmp_path: Path) -> None:
    """The examples in comments are good ones, but for the key, which stands for the owner's."""
    lines = (boot.HERE / "llmasos.yaml").read_text().splitlines()
    opened = [line for line in lines if not line.lstrip().startswith("#")]
    opened += [line.replace("# ", "", 1) for line in lines if re.match(r"  # +(\w+:|- )", line)]
    file = tmp_path / "llmasos.yaml"
    file.write_text("\n".join(opened).replace("AAAA...", "AAAAC3Nz"))
    given = read_appliance(file)
    assert None not in (given.wired, given.wifi)
    assert (len(given.ssh_keys), len(given.clients)) == (1, 1)


def test_no_login_without_a_key() -> None:
    """The server's own settings, and the unit's condition."""
    settings = (FILES / "etc/ssh/sshd_config.d/llmasos.conf").read_text()
    for line in ("AuthenticationMethods publickey", "PasswordAuthentication no", "PermitRootLogin no"):
        assert line in settings
    condition = (FILES / "etc/systemd/system/ssh.service.d/llmasos.conf").read_text()
    assert "ConditionDirectoryNotEmpty=/etc/ssh/authorized_keys.d" in condition
