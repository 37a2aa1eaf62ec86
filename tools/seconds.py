"""The seconds of slow notebooks and test files, as last measured: those that take longest are started first.

`python tools/run_notebooks.py --record` and `pytest --record-seconds` write them into tools/seconds.json."""

import json
from pathlib import Path

FILE = Path(__file__).resolve().parent / "seconds.json"
NOTED = 2  # Seconds from which a file is noted


def read_file():
    "All that is noted"
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def known_seconds(kind):
    'The last known seconds of "notebooks" or of "tests", by path; empty without a record'
    return read_file().get(kind, {})


def record_seconds(kind, seconds):
    "Note the seconds of the slow files among those that were run; what is known of others stays"
    measured = {name: round(value) for name, value in seconds.items()}
    merged = known_seconds(kind) | measured
    slow = {name: value for name, value in sorted(merged.items()) if value >= NOTED}
    text = json.dumps(read_file() | {kind: slow}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")
