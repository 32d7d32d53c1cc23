"""What is in a text, before a run reads it.

    python -m lighthouse.data check PATH [--text COLUMN] [--tokenizer byte|FOLDER] [--json]
    python -m lighthouse.data check RUN.toml [--gpus N] [--json]

Reads all of it once: documents, bytes, tokens, lengths, duplicates, rows that are no text. Of a
TOML it reads the local text that the run would train on, under its tokenizer, and says how many
epochs of each source its steps are. Progress is on stderr.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lighthouse.refusal import refuse


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.data", description="Look at text before training on it."
    )
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "check", help="read all of it once, and count"
    )
    command.add_argument("path", type=Path, help="a folder, a file of text, or a run's TOML")
    command.add_argument("--text", help='column of a PATH; default: "text"')
    command.add_argument("--tokenizer", help='of a PATH: "byte", the default, or a folder')
    command.add_argument("--gpus", type=int, help="of a TOML, where its batch depends on them")
    command.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    of_toml = options.path.suffix.lower() == ".toml"
    for key in ("text", "tokenizer") if of_toml else ("gpus",):
        if getattr(options, key) is not None:
            parser.error(f"--{key} is not for {'a TOML' if of_toml else 'a path of text'}")

    # Not imported above: it takes seconds.
    from lighthouse.data.survey import survey_of_path, survey_of_toml, table

    try:
        if of_toml:
            found = survey_of_toml(options.path, options.gpus or 1)
        else:
            found = survey_of_path(
                options.path, options.text or "text", options.tokenizer or "byte"
            )
    except ValueError as error:
        refuse(error)
    print(json.dumps([asdict(one) for one in found], indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
