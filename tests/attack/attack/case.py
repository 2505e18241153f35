"""What a case is, and how cases are run."""

import time
import traceback
from dataclasses import dataclass
from typing import Awaitable, Callable

CASES: list["Case"] = []


class Succeeded(AssertionError):
    """The attack worked: the deployment did what it must not do."""


@dataclass
class Case:
    """An attack, and the rows of the requirements that say why it must fail."""

    rows: tuple[str, ...]
    attack: Callable[[dict], Awaitable[None]]

    @property
    def name(self) -> str:
        return self.attack.__name__


def case(*rows: str):
    """Registers a function as a case."""

    def register(attack):
        CASES.append(Case(rows, attack))
        return attack

    return register


def withstood(holds: bool, what: str) -> None:
    """Raises `Succeeded` unless the deployment withstood."""
    if not holds:
        raise Succeeded(what)


async def run(facts: dict) -> bool:
    """Runs all cases, one after another, and prints a line for each. True if none succeeded."""
    well = True
    for one in CASES:
        begun = time.monotonic()
        try:
            await one.attack(facts)
            seconds = time.monotonic() - begun
            print(f"withstood  {' '.join(one.rows):<18} {one.name} ({seconds:.1f} s)", flush=True)
        except Succeeded as told:
            well = False
            print(f"SUCCEEDED  {' '.join(one.rows):<18} {one.name}: {told}", flush=True)
        except Exception:
            well = False
            print(f"NOT TRIED  {' '.join(one.rows):<18} {one.name}", flush=True)
            traceback.print_exc()
    return well
