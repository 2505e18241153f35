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
    """An attack, and the rows of the requirements that say why it must fail. No row is about
    availability, so a case that only keeps others from their work has none."""

    rows: tuple[str, ...]
    attack: Callable[[dict], Awaitable[str | None]]

    @property
    def proves(self) -> str:
        return " ".join(self.rows) or "no row: availability"

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
    """Runs all cases, one after another, and prints a line for each, with what it says of itself.
    True if none succeeded."""
    well = True
    for one in CASES:
        begun = time.monotonic()
        try:
            said = await one.attack(facts)
            seconds = time.monotonic() - begun
            remark = f": {said}" if said else ""
            print(f"withstood  {one.proves:<20} {one.name} ({seconds:.1f} s){remark}", flush=True)
        except Succeeded as told:
            well = False
            print(f"SUCCEEDED  {one.proves:<20} {one.name}: {told}", flush=True)
        except Exception:
            well = False
            print(f"NOT TRIED  {one.proves:<20} {one.name}", flush=True)
            traceback.print_exc()
    return well
