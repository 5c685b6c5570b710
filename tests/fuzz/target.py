"""What is fuzzed, as a value; a failure is anything but an answer or one of the library's own refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from random import Random

from tests.fuzz.mutate import mutated_bytes

Check = Callable[[bytes], str]
"""Gives an input to what is fuzzed and says in a word what became of it; an `EdgewiseError` is a refusal by its type."""


class ServerFault(Exception):
    """An answer that blames the server for what a client sent."""


@dataclass(frozen=True, slots=True)
class Target:
    """One door that strangers' bytes come in by.

    Attributes:
        name: For people.
        share: Of all inputs, beside the other targets' shares.
        seeds: Makes valid inputs.
        check: Opens what checks an input; what it opened is closed at the end.
        mutate: Makes an input from the seeds; the same for an equal generator.
        seconds: CPU time that one input may take.
        memory_bytes: Address space that checking may take beyond what the process has when it begins.
    """

    name: str
    share: float
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[], AbstractContextManager[Check]]
    mutate: Callable[[Random, Sequence[bytes]], bytes] = mutated_bytes
    seconds: float = 2.0
    memory_bytes: int = 2**30


def plainly(check: Check) -> Callable[[], AbstractContextManager[Check]]:
    """A check that needs nothing opened.

    Args:
        check: The function.

    Returns:
        What `Target.check` wants.
    """
    return lambda: nullcontext(check)


def input_of(target: Target, seeds: Sequence[bytes], seed: int, index: int) -> bytes:
    """Input number `index` of a campaign; it depends on nothing else.

    Args:
        target: Of what.
        seeds: Its seeds.
        seed: Of the campaign.
        index: From 0; the first ones are the seeds themselves.
    """
    if index < len(seeds):
        return seeds[index]
    return target.mutate(Random(f"{seed}/{target.name}/{index}"), seeds)
