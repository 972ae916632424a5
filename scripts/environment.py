"""Make the virtual environment the Makefile runs in; do nothing when it is up to date.

usage: python environment.py VENV [EXTRA ...]

Everything is installed with the pins of constraints.txt; TORCH=2.8.0 in the environment replaces the pin of torch, to
try another version. Safe to run twice at the same time and after a kill: a lock
is held while installing, and the record of what is installed is written last.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = "glmkit-environment.json"


def fingerprint() -> str:
    """What the environment depends on; the path is part of it because an editable install points to it."""
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]} {os.environ.get('TORCH', '')}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def constraints(venv: Path) -> Path:
    """The file of pins: constraints.txt, or a copy in `venv` with another torch."""
    pins, torch = ROOT / "constraints.txt", os.environ.get("TORCH")
    if not torch:
        return pins
    changed = venv / "constraints.txt"
    lines = pins.read_text().splitlines()
    changed.write_text("\n".join(f"torch=={torch}" if line.startswith("torch==") else line for line in lines) + "\n")
    return changed


def read_record(venv: Path) -> tuple[str, set[str]]:
    try:
        record = json.loads((venv / RECORD).read_text())
        return record["fingerprint"], set(record["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", set()


def version_of(python: Path) -> str:
    """The "3.11" of an interpreter, or "" when it does not run."""
    command = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def install(venv: Path, extras: set[str]) -> None:
    """Bring `venv` up to date. Raises CalledProcessError, after the failing command has printed its own error."""
    python = venv / "bin" / "python"
    if not version_of(python):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    have, installed = read_record(venv)
    wanted = extras | installed if have == fingerprint() else extras
    names = f"[{','.join(sorted(wanted))}]" if wanted else ""
    # -qq: errors only; pip's notes on indexes and versions are not for this reader.
    pip = [
        str(python),
        *["-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c"],
        str(constraints(venv)),
    ]
    if have == fingerprint():  # only extras are missing: leave the project itself alone, it may be running
        subprocess.run([*pip, f"glmkit{names}"], check=True)
    else:
        subprocess.run([*pip, "setuptools"], check=True)
        subprocess.run([*pip, "--no-build-isolation", "-e", f"{ROOT}{names}"], check=True)
    temporary = venv / f".{RECORD}.{os.getpid()}"
    temporary.write_text(json.dumps({"fingerprint": fingerprint(), "extras": sorted(wanted)}))
    temporary.replace(venv / RECORD)


def is_ready(venv: Path, extras: set[str]) -> bool:
    have, installed = read_record(venv)
    return have == fingerprint() and extras <= installed and (venv / "bin" / "python").exists()


def main() -> int:
    venv, extras = Path(sys.argv[1]), set(sys.argv[2:])
    if is_ready(venv, extras):
        return 0
    mine, theirs = "{}.{}".format(*sys.version_info[:2]), version_of(venv / "bin" / "python")
    if theirs not in ("", mine):
        sys.exit(f"{venv} holds Python {theirs}, not {mine}; remove it or choose another: make VENV=.venv-{mine}")
    start = time.monotonic()
    what = f"the core and [{', '.join(sorted(extras))}]" if extras else "the core"
    print(f"set-up: {venv} with Python {sys.version.split()[0]}, packages of {what}; a few minutes, once", flush=True)
    venv.mkdir(parents=True, exist_ok=True)
    lock = os.open(venv, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(venv, extras):
            install(venv, extras)
    except subprocess.CalledProcessError as error:
        print(f"set-up failed with status {error.returncode}: {' '.join(error.cmd)}", file=sys.stderr)
        return 1
    finally:
        os.close(lock)
    print(f"set-up took {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
