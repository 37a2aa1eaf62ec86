"""Run one step of the checks, print its time, and fail when it fails or changes the tree:

    python tools/check_tree.py "export and clean" "python tools/export.py" nbdev_clean
    python tools/check_tree.py "notebook tests" "nbdev_test --n_workers 2"

The tree is every file that git tracks or would track, as it is on the disk, committed or not. Every file that a step has changed is named.
"""

import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fingerprint():
    "sha256 of every tracked or untracked file that is not ignored, by path; empty without git"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        sys.exit(
            "the tree can only be checked in a git checkout (git clone, or git init): "
            + listed.stderr.decode().strip()
        )
    names = sorted({name for name in listed.stdout.decode().split("\0") if name})
    return {
        name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
        for name in names
        if (ROOT / name).is_file()
    }


def what_happened(name, before, after):
    "What became of a file"
    if name not in before:
        return "new"
    return "changed" if name in after else "gone"


def differences(before, after):
    "One line for each file that came, went or changed"
    names = sorted(before.keys() | after.keys())
    return [
        f"{what_happened(name, before, after)}: {name}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def main():
    label = sys.argv[1]
    commands = sys.argv[2:]
    print(f"== {label}", flush=True)
    start = time.monotonic()
    before = fingerprint()
    code = 0
    for command in commands:
        code = subprocess.run(shlex.split(command), cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        if code:
            break
    changed = differences(before, fingerprint())
    for line in changed:
        print(f"   {line}")
    if code:
        verdict = f"FAILED: {command} (exit code {code})"
    elif changed:
        verdict = (
            f"FAILED: it changed {len(changed)} files of the tree (run `make export`, look at `git diff`)"
        )
    else:
        verdict = "ok"
    print(f"== {label}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    sys.exit(1 if code or changed else 0)


if __name__ == "__main__":
    main()
