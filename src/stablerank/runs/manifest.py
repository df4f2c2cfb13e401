"""What ran: code, packages, device and hashes, collected once before a run starts."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("stablerank", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify", "numpy")


def code_state() -> dict[str, Any]:
    """Commit and uncommitted difference of the library's own sources, or None values for an installed wheel."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    try:
        # A virtual environment inside somebody else's repository holds our files, but that repository does not.
        is_ours = git("ls-files", "--error-unmatch", __file__) is not None
    except OSError:  # no git on this machine
        is_ours = False
    if not is_ours:
        return {"hash": None, "dirty": False, "diff": ""}
    commit, diff, changes = (
        git("rev-parse", "HEAD"),
        git("diff", "HEAD", "--", str(here)),
        git("status", "--porcelain", "--", str(here)),  # a new file is in no diff
    )
    return {"hash": commit and commit.strip(), "dirty": bool(changes), "diff": diff or ""}


def package_versions() -> dict[str, str]:
    """Installed versions of the packages whose numerics shape a run."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def device_state() -> dict[str, Any]:
    """Everything about the machine that decides whether two runs can be compared bit for bit."""
    import torch  # seconds to load, and only runs need it

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": gpus,
        "cpu": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "python": sys.version.split()[0],
        "system": platform.platform(),
    }


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file directly inside a model folder."""
    return {p.name: _sha256(p) for p in sorted(folder.iterdir()) if p.is_file()} if folder.is_dir() else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
