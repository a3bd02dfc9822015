"""/opt/llmasos: the node in a virtual environment of its own, put together for arm64 on this machine."""

import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from image import ROOT
from image.requirements import PIP, engine_source, pinned
from image.steps import run
from llmasos_edge.engine import attention

PYTHON: Final = "3.13"  # Debian 13's
PLACE: Final = Path("opt/llmasos")
PACKAGES: Final = PLACE / "lib" / f"python{PYTHON}" / "site-packages"
PLATFORMS: Final = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")
NOT_HERE: Final = (
    "diskcache",
    "llama-cpp-python",
    "numpy",
)  # the engine's library is cross-built, and used without its package
ENGINE_FILES: Final = ("__init__.py", "_ctypes_extensions.py", "llama_cpp.py")  # what engine/llama.py reads of it
START: Final = "#!/{place}/bin/python3\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
CMAKE: Final = (
    "CMAKE_SYSTEM_NAME=Linux",
    "CMAKE_SYSTEM_PROCESSOR=aarch64",
    "CMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    "CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "CMAKE_BUILD_TYPE=Release",
    "CMAKE_BUILD_RPATH=$ORIGIN",
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",  # one file for each library, and no links
    "GGML_NATIVE=OFF",
    "GGML_BACKEND_DL=ON",
    "GGML_CPU_ALL_VARIANTS=ON",  # the worker takes the one that suits its processor
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_COMMON=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_SERVER=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_TOOLS=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_CURL=OFF",
    "LLAMA_OPENSSL=OFF",
)


def build_engine(folder: Path, toolchain: Path) -> None:
    """`folder`/llama_cpp: the engine's library for every ARM board, compiled inside the toolchain's root."""
    source = engine_source(folder.parent / "source")
    inside, built = toolchain / "llama.cpp", toolchain / "build"
    shutil.copytree(
        source / "vendor" / "llama.cpp", inside, symlinks=True, dirs_exist_ok=True
    )  # goes on where it broke
    cmake = ["chroot", toolchain, "cmake"]
    flags = ["-G", "Ninja", "-S", "/llama.cpp", "-B", "/build", *(f"-D{it}" for it in CMAKE)]
    run([*cmake, *flags], folder / "configure.log")
    run([*cmake, "--build", "/build"], folder / "compile.log")
    shutil.copytree(ROOT / "native", toolchain / "native", dirs_exist_ok=True)
    compiler = ["chroot", toolchain, "env", "CC=aarch64-linux-gnu-gcc"]
    run(
        [*compiler, "/native/build", "/llama.cpp/ggml/include", f"/build/bin/{attention.NAME}"],
        folder / "attention.log",
    )
    package = folder / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    for name in ENGINE_FILES:
        shutil.copyfile(source / "llama_cpp" / name, package / name)
    for library in sorted((built / "bin").glob("*.so")):
        run(["chroot", toolchain, "aarch64-linux-gnu-strip", f"/build/bin/{library.name}"], folder / "strip.log")
        shutil.copyfile(library, package / "lib" / library.name)


def fetch_wheels(folder: Path) -> None:
    """Wheels for arm64 of what the node imports, with the hashes of requirements.txt."""
    wanted = folder / "requirements.txt"
    wanted.write_text(pinned(lambda name: name not in NOT_HERE))
    flags = ["--no-deps", "--require-hashes", "-r", wanted, "-d", folder]
    run([*PIP, "download", *_foreign(), *flags], folder / "download.log")


def assemble(folder: Path, wheels: Path, engine: Path, toolchain: Path) -> None:
    """`folder`/opt/llmasos: those wheels, the engine's library, and the project as it is in this checkout."""
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], folder / "wheel.log")
    packages = folder / PACKAGES
    chosen = [*sorted(wheels.glob("*.whl")), *folder.glob("*.whl")]
    flags = ["--no-index", "--no-deps", "--no-compile", "--target", packages]
    run([*PIP, "install", *_foreign(), *flags, *chosen], folder / "install.log")
    shutil.rmtree(packages / "bin", ignore_errors=True)  # its scripts name this machine's Python
    shutil.copytree(engine / "llama_cpp", packages / "llama_cpp")
    _forget_origins(packages.glob("*.dist-info"))
    _compile(packages, toolchain)
    _write_scripts(folder / PLACE)


def _foreign() -> list[str]:
    platforms = [word for it in PLATFORMS for word in ("--platform", it)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]


def _forget_origins(records: Iterable[Path]) -> None:
    """What pip notes about where a package came from names folders of this machine."""
    for record in records:
        for name in ("direct_url.json", "INSTALLER", "RECORD", "REQUESTED"):
            (record / name).unlink(missing_ok=True)


def _compile(packages: Path, toolchain: Path) -> None:
    """Bytecode, by the toolchain's Python, which is of the image's version: the root is read-only there."""
    inside = toolchain / "packages"
    shutil.rmtree(inside, ignore_errors=True)
    shutil.copytree(packages, inside)
    flags = ["-q", "-s", "/packages", "-p", f"/{PACKAGES}", "--invalidation-mode", "unchecked-hash", "/packages"]
    run(["chroot", toolchain, "python3", "-m", "compileall", *flags], packages.parents[4] / "compile.log")
    shutil.rmtree(packages)
    shutil.copytree(inside, packages)


def _write_scripts(place: Path) -> None:
    """What makes a folder a virtual environment, and the programs of pyproject.toml."""
    (place / "bin").mkdir()
    (place / "bin" / "python3").symlink_to("/usr/bin/python3")
    (place / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, entry in project["scripts"].items():
        module, function = entry.split(":")
        script = place / "bin" / name
        script.write_text(START.format(place=PLACE, module=module, function=function))
        script.chmod(0o755)
