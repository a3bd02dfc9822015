"""The Debian parts: an arm64 root with kernel, initramfs and firmware, and an amd64 one with the cross compiler."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from image import EPOCH, ROOT
from image.steps import run

SUITE: Final = "trixie"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
COMPONENTS: Final = "main non-free-firmware"
TOOLS: Final = ("g++-aarch64-linux-gnu", "cmake", "ninja-build", "python3")
PACKAGES: Final = (
    "linux-image-arm64/trixie-backports",  # the Pi 5 needs 7.x (docs/adr/0012)
    "busybox",
    "ca-certificates",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "firmware-brcm80211",  # the boards' Wi-Fi
    "initramfs-tools",
    "iproute2",
    "kmod",
    "libgomp1",
    "libstdc++6",
    "mosquitto",
    "netbase",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "wireless-regdb",
    "wpasupplicant",
    "zstd",
)
FIRMWARE: Final = "raspi-firmware"  # taken out of its package: installed, it would write to the builder's /boot
LEFT_OUT: Final = ("doc", "info", "lintian", "locale", "man")


def sources() -> str:
    """Debian 13's lines for apt, with the mirrors that apt has on this machine."""
    wanted = "$(LABEL) $(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages", "Origin: Debian"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mirrors = dict(line.split(maxsplit=1) for line in shown.splitlines())
    if not {"Debian", "Debian-Security"} <= mirrors.keys():
        sys.exit("image: apt knows no Debian mirror here: configure one, and run `apt-get update`")
    main, security = mirrors["Debian"], mirrors["Debian-Security"]
    suites = [(main, SUITE), (main, f"{SUITE}-updates"), (security, f"{SUITE}-security"), (main, f"{SUITE}-backports")]
    return "".join(f"deb {mirror} {suite} {COMPONENTS}\n" for mirror, suite in suites)


def toolchain(folder: Path) -> None:
    """`folder`/root: Debian 13 for this machine's own processor, with a compiler for arm64."""
    options = ["--variant=minbase", f"--include={','.join(TOOLS)}"]
    _mmdebstrap(options, folder / "root", folder)


def arm64_root(folder: Path) -> None:
    """`folder`/root.tar: the root, kernel and initramfs in boot/, the boards' firmware in raspi-firmware/."""
    python = f"PYTHONPATH={ROOT} {sys.executable} -m image"
    fetch = f"apt-get download {FIRMWARE} && dpkg-deb -x {FIRMWARE}_*.deb /{FIRMWARE} && rm {FIRMWARE}_*.deb"
    options = [
        "--variant=minbase",
        "--architectures=arm64",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{it}/*" for it in LEFT_OUT),
        f'--customize-hook=chroot "$1" sh -c "cd /tmp && {fetch}"',
        f'--customize-hook={python} initramfs-modules "$1"',
        '--customize-hook=chroot "$1" sh -c "update-initramfs -c -k $(ls "$1/usr/lib/modules")"',
        f'--customize-hook=systemd-sysusers --root="$1" {ROOT}/systemd/sysusers.d/llmasos.conf',
        '--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash --groups sudo,llmasos admin',
    ]
    _mmdebstrap(options, folder / "root.tar", folder)


def _mmdebstrap(options: list[str], target: Path, folder: Path) -> None:
    command = ["mmdebstrap", "--verbose", "--mode=root", f"--keyring={KEYRING}", *options, SUITE, str(target), "-"]
    # INITRD: the kernel's package makes no initramfs; that is done once, when its modules are known.
    run(command, folder / "mmdebstrap.log", text=sources(), extra={"SOURCE_DATE_EPOCH": str(EPOCH), "INITRD": "No"})
