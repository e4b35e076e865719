"""`python -m trainer.replay.check ALGORITHM [NAME=VALUE...]`: would the trainer take these settings in a replay?

Prints all of them as JSON, or what is wrong on stderr with exit code 2. It loads no model, so it is quick.
"""

import sys

from trainer.replay.settings import SettingError, effective


def main(arguments: list[str] | None = None) -> int:
    algorithm, *assignments = sys.argv[1:] if arguments is None else arguments
    try:
        print(effective(algorithm, dict(one.partition("=")[::2] for one in assignments)).model_dump_json())
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
