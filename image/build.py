"""The build: each part from its step, the root and the data the same for every board, the boot partition its own."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from image import EPOCH, FILES, ROOT, WORK, archive, boot, debian, disk, environment
from image.steps import Steps, read_tree, run
from image.verify import verify
from llmasos_edge.services.store import ModelStore

MODEL: Final = "smollm2-135m"
ENABLED: Final = {
    "multi-user.target.wants": ("llmasos-firstboot", "llmasosd", "mosquitto", "systemd-networkd"),
}
# What Debian's packages switch on, and this system has no use for.
DROPPED: Final = (
    "etc/systemd/system/multi-user.target.wants/wpa_supplicant.service",
    "etc/systemd/system/timers.target.wants/apt-daily.timer",
    "etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer",
    "etc/systemd/system/timers.target.wants/dpkg-db-backup.timer",
    "etc/systemd/system/timers.target.wants/e2scrub_all.timer",
    "etc/systemd/system/multi-user.target.wants/e2scrub_reap.service",
    "etc/systemd/system/getty.target.wants/getty@tty1.service",
    "etc/systemd/system/ssh.service.wants/sshd-keygen.service",  # first boot makes the one key that is used
)
MASKED: Final = ("getty@.service", "serial-getty@.service")  # no account has a password: nobody could log in there
SQUASH: Final = ("-comp", "zstd", "-b", "256K", "-root-mode", "755", "-quiet", "-no-progress")


def build(board: str) -> Path:
    """The card's image for a family of boards; the path of the file."""
    if os.geteuid() != 0:
        sys.exit("image: needs root, for the packages' own scripts run in a chroot: `sudo ./run image`")
    steps = Steps(WORK / "parts")
    base = _base(steps)
    root = _root(steps, base)
    data = _data(steps, base)
    first = steps.make(f"boot-{board}", _inputs(base, ROOT / "image"), lambda it: _make_boot(board, base, it))
    target = WORK / f"llmasos-{board}.img"
    disk.assemble(target, (first / "p1.fat", root / "root.squashfs", None, data / "p4.ext4"), WORK / "disk.log")
    verify(target, board)
    _compress(target)
    return target


def _compress(image: Path) -> None:
    """What people flash: they read .xz, which is smaller than anything else that they read."""
    print("==> compression", flush=True)
    run(["xz", "--keep", "--force", "--threads=0", "-2", image], WORK / "xz.log")
    packed = image.with_name(f"{image.name}.xz")
    print(f"    {image.name}: {packed.stat().st_size / 1e6:.0f} MB compressed", flush=True)


def _base(steps: Steps) -> Path:
    inputs = [repr((debian.PACKAGES, debian.FIRMWARE, debian.LEFT_OUT, debian.SUITE)).encode()]
    own = read_tree(ROOT / "systemd" / "sysusers.d", ROOT / "image" / "devicetree.py", ROOT / "image" / "debian.py")
    return steps.make("debian", [*inputs, *own], debian.arm64_root) / "root.tar"


def _inputs(*paths: Path) -> Iterator[bytes]:
    """Steps' own folders are told by their names, files of the checkout by what they contain."""
    for path in paths:
        if WORK in path.parents:
            yield str(path.relative_to(WORK)).encode()
        else:
            yield from read_tree(path)


def _root(steps: Steps, base: Path) -> Path:
    toolchain = steps.make("toolchain", [repr((debian.TOOLS, debian.SUITE)).encode()], debian.toolchain) / "root"
    lock = (ROOT / "requirements.txt").read_bytes()
    flags = repr((environment.CMAKE, environment.ENGINE_FILES)).encode()
    engine = steps.make(
        "engine",
        [*_inputs(toolchain, ROOT / "native"), lock, flags],
        lambda it: environment.build_engine(it, toolchain),
    )
    wheels = steps.make("wheels", [lock], environment.fetch_wheels)
    project = [ROOT / it for it in ("llmasos_edge", "board", "configs", "pyproject.toml")]
    node = steps.make(
        "node",
        _inputs(toolchain, engine, wheels, *project, ROOT / "image" / "environment.py"),
        lambda it: environment.assemble(it, wheels, engine, toolchain),
    )
    own = [FILES, ROOT / "systemd", ROOT / "image" / "build.py", ROOT / "image" / "archive.py"]
    return steps.make("root", _inputs(base, node, *own), lambda it: _make_root(base, node, it))


def _make_root(base: Path, node: Path, folder: Path) -> None:
    layer = folder / "layer"
    shutil.copytree(FILES, layer, symlinks=True)
    shutil.copytree(node / environment.PLACE, layer / environment.PLACE, symlinks=True)
    _add_units(layer)
    target = folder / "root.squashfs"
    times = ["-mkfs-time", str(EPOCH), "-all-time", str(EPOCH)]
    with subprocess.Popen(["sqfstar", *SQUASH, *times, str(target)], stdin=subprocess.PIPE) as squash:
        if squash.stdin is not None:
            archive.merge(base, layer, squash.stdin, DROPPED)
            squash.stdin.close()
    if squash.returncode or target.stat().st_size > disk.ROOT_MIB * disk.MIB:
        sys.exit(
            f"image: no root was made of {target} (sqfstar: {squash.returncode}), or it is too large for its place"
        )
    shutil.rmtree(layer)


def _add_units(layer: Path) -> None:
    """systemd/ of the repository in its places, and what is switched on and off."""
    units, own = layer / "usr/lib/systemd/system", layer / "etc/systemd/system"
    for path in sorted((ROOT / "systemd").iterdir()):
        place = layer / "usr/lib" / path.name if path.name in ("sysusers.d", "tmpfiles.d") else units / path.name
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place)
    for wants, names in ENABLED.items():
        (own / wants).mkdir(parents=True)
        for name in names:
            (own / wants / f"{name}.service").symlink_to(f"/usr/lib/systemd/system/{name}.service")
    for name in MASKED:
        (own / name).symlink_to("/dev/null")
    (layer / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for folder in ("data", "boot/firmware"):
        (layer / folder).mkdir(parents=True)


def _data(steps: Steps, base: Path) -> Path:
    own = read_tree(ROOT / "llmasos_edge" / "services" / "catalogue.yaml", ROOT / "image" / "disk.py")
    return steps.make("data", [*own, MODEL.encode(), *_inputs(base)], lambda it: _make_data(base, it))


def _make_data(base: Path, folder: Path) -> None:
    """p4: the default model in the node's store, checked by its hash, and room for /etc and /var."""
    content = folder / "content"
    for overlay in ("etc", "var"):
        for part in ("upper", "work"):
            (content / overlay / part).mkdir(parents=True)
    state = content / "llmasos"
    store = ModelStore(state / "models", Path(os.environ["LLMASOS_MODELS"]))
    store.pull(MODEL, lambda _: None)
    store.verify(MODEL)
    user, group = _owner(base)
    for path in (state, *state.rglob("*")):
        os.chown(path, user, group)
        path.chmod(0o750 if path.is_dir() else 0o640)
    disk.make_ext4(content, folder / "p4.ext4", folder / "mke2fs.log")
    shutil.rmtree(content)


def _owner(base: Path) -> tuple[int, int]:
    """The ids that the node's user got in the root."""
    with tarfile.open(base) as archive_:
        file = archive_.extractfile("./etc/passwd")
        lines = file.read().decode().splitlines() if file is not None else []
    found = next(line.split(":") for line in lines if line.startswith("llmasos:"))
    return int(found[2]), int(found[3])


def _make_boot(board: str, base: Path, folder: Path) -> None:
    content = folder / "content"
    boot.fill(board, base, content)
    disk.make_fat(content, folder / "p1.fat", folder / "fat.log")
