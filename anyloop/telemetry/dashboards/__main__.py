"""Writes every dashboard, or with `--check` says which of them is not what the code makes."""

import argparse
import json
from pathlib import Path

from anyloop.telemetry.dashboards import DASHBOARDS

FOLDER = Path(__file__).parents[3] / "charts" / "anyloop" / "dashboards"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m anyloop.telemetry.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something would change")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    stale = []
    for name, make in DASHBOARDS.items():
        path, text = options.folder / f"{name}.json", json.dumps(make(), indent=1) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        print(f"{'not up to date' if options.check else 'written'}: {', '.join(stale)}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
