"""What comes over a link: frames and their messages, replies as an asker reads them, letters, events, and bytes of a log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any, get_args

import msgspec
import numpy as np

from edgewise.core.ids import Generation, NodeId
from edgewise.fleet import messages
from edgewise.fleet.messages import Message, RunLetter, kind_of
from edgewise.fleet.messages.fleet_events import AnyEvent, read_event
from edgewise.fleet.node.blob_grants import named_in
from edgewise.inference.stage_messages import StageAnswer, StageRequest
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.training.protocols import event_log
from edgewise.transport.bulk.fetch import ChunkRequest
from edgewise.transport.frame import Frame, Tensor, decode_frame, encode_frame, make_frame
from edgewise.transport.guard import FrameGuard
from edgewise.transport.remote import ErrorMessage, checked_reply, error_frame
from tests.fuzz.examples_of_types import example_of, examples_in_msgpack
from tests.fuzz.mutate import NUMBERS, mutated_bytes, mutated_msgpack, mutated_tree, packed
from tests.fuzz.target import Target, plainly

MESSAGES = {
    kind_of(value): value for value in vars(messages).values() if isinstance(value, type) and issubclass(value, Message)
}
STRUCTS: dict[str, Any] = {**MESSAGES, "stage_request": StageRequest, "stage_answer": StageAnswer}
STRUCTS |= {"chunk_request": ChunkRequest, "error": ErrorMessage}
NAMES = sorted(STRUCTS)
EVENTS = get_args(AnyEvent)
LOGGED = get_args(event_log.AnyEvent)


def frames() -> list[bytes]:
    """Frames of every kind, with tensors of several types."""
    rng = np.random.default_rng(0)
    found = []
    for number, (kind, struct) in enumerate(sorted(STRUCTS.items())):
        message = msgspec.msgpack.encode(example_of(struct))
        tensors = [Tensor("0", rng.normal(size=(2, 3)).astype("float32")), Tensor("x", np.arange(5, dtype=np.uint8))]
        tensors.append(Tensor("half", np.zeros((), np.float16)))
        frame = Frame(
            kind=kind,
            message=message,
            tensors=tuple(tensors[: number % 4]),
            purpose=list(Purpose)[number % len(Purpose)],
            sender=NodeId("device-1"),
            generation=Generation(7),
            deadline_s=(None, 0.5)[number % 2],
        )
        found.append(encode_frame(frame, sign=(None, lambda _: b"s" * 70)[number % 2]))
    return found


def sealed(header: Any, message: bytes, content: bytes, *, signed: bool, rng: Random) -> bytes:
    """A frame of these parts whose lengths and digest are right, so that what is inside is looked at."""
    head = packed(header)
    body = b"EW" + bytes((1, signed)) + len(head).to_bytes(4, "little") + head + message + content
    digest = hashlib.blake2b(body, digest_size=16).digest()
    return body + digest + (rng.randbytes(70) if signed else b"")


def mutated_frame(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A frame with its header, its message or its bytes changed; mostly sealed anew."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, seeds)
    data = rng.choice(seeds)
    start = 8 + int.from_bytes(data[4:8], "little")
    header = msgspec.msgpack.decode(data[8:start])
    size = header[7] if isinstance(header, list) else 0
    message, content = data[start : start + size], data[start + size :][: -16 - 70 * data[3]]
    if rng.random() < 0.5:
        message = mutated_msgpack(rng, [message])
        header[7] = len(message)
    if rng.random() < 0.6:
        header = mutated_tree(rng, header)
        if isinstance(header, list) and len(header) > 8 and rng.random() < 0.7:
            header[7] = len(message)
    if rng.random() < 0.3 and isinstance(header, list) and len(header) > 8 and isinstance(header[8], list):
        shape = [rng.choice((0, 1, *NUMBERS)) for _ in range(rng.randrange(1, 10))]
        header[8].append(
            ["more", rng.choice(("float32", "uint8", "bool", "object")), [*shape, 0], ["raw"][: rng.randrange(2)]]
        )
    if rng.random() < 0.1:
        content = mutated_bytes(rng, [content + b"\0"])
    return sealed(header, message, content, signed=bool(data[3]), rng=rng)


def _received(data: bytes) -> str:
    """As a node reads a query: the frame, then the message of its kind."""
    frame = decode_frame(data)
    message = frame.read(STRUCTS.get(frame.kind, StageRequest))
    if isinstance(message, Message):
        list(named_in(message))
    _ = frame.origins, repr(frame), [tensor.array.nbytes for tensor in frame.tensors]
    return "read"


def _replied(data: bytes) -> str:
    """As an asker reads an answer: opened, an error raised, the tensors taken."""
    guard = FrameGuard(node=NodeId("asker"), generation=Generation(1), counter=FrameCounter(NodeId("asker")))
    frame = checked_reply(guard.open(data))
    frame.read(STRUCTS.get(frame.kind, StageAnswer))
    for tensor in frame.tensors:
        frame.array(tensor.name).tobytes()
    return "read"


def replies() -> list[bytes]:
    """Answers, and errors with fields."""
    error = messages_error()
    return [*frames()[::3], encode_frame(error), encode_frame(make_frame("chunk", tensors={"": np.zeros(9, np.uint8)}))]


def messages_error() -> Frame:
    from edgewise.core.errors import Unreachable

    return error_frame(Unreachable("nobody is there.", key="a/b", node="edge-1", numbers=[1, 2.5]))


def _message(data: bytes) -> str:
    """One message: the first byte says of which kind."""
    kind = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    message = Frame(kind=kind, message=data[1:]).read(STRUCTS[kind])
    if isinstance(message, RunLetter):
        _ = message.letter.key, message.letter.author, list(named_in(message)), message.letter.passed_on
    return "read"


def message_seeds() -> list[bytes]:
    return [bytes((n,)) + data for n, name in enumerate(NAMES) for data in examples_in_msgpack(STRUCTS[name])]


def letter_seeds() -> list[bytes]:
    """A run's letter of every sort, in its envelope."""
    from edgewise.training.protocols.letters import AnyLetter

    place = bytes((NAMES.index("run_letter"),))
    return [
        place + msgspec.msgpack.encode([["client", "a"], example_of(letter, full=full)])
        for letter in get_args(AnyLetter)
        for full in (True, False)
    ]


def mutated_message(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A message with its tree changed, read as its kind or, rarely, as another."""
    seed = rng.choice(seeds)
    kind = seed[:1] if rng.random() < 0.97 else rng.randbytes(1)
    return kind + mutated_msgpack(rng, [seed[1:], rng.choice(seeds)[1:]])


def _published(data: bytes) -> str:
    read_event(Frame(kind="event", message=data))
    return "read"


def _logged(data: bytes) -> str:
    event_log.decode_event(data)
    return "read"


TARGETS = (
    Target("frames", 20, frames, plainly(_received), mutated_frame),
    Target("replies", 10, replies, plainly(_replied), mutated_frame),
    Target("messages", 14, message_seeds, plainly(_message), mutated_message),
    Target("letters", 8, letter_seeds, plainly(_message), mutated_message),
    Target("events", 4, lambda: examples_in_msgpack(*EVENTS), plainly(_published), mutated_msgpack),
    Target("event log", 4, lambda: examples_in_msgpack(*LOGGED), plainly(_logged), mutated_msgpack),
)
