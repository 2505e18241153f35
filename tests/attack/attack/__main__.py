"""`python3 -m attack FACTS`: runs every case; status 1 if one succeeded or could not be tried."""

import asyncio
import json
import sys

# Each registers its cases, in this order: URLs end after a minute, and the record is read last.
from . import store, tokens, messages, bus, ports, told  # noqa: F401
from .case import run


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        facts = json.load(file)
    return 0 if asyncio.run(run(facts)) else 1


sys.exit(main())
