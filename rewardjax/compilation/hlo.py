"""What a compiled program moves, read from its text: HBM traffic and collectives, loops unrolled.

The compiler's own cost analysis looks at a loop's body once. Here a computation counts as often as the
loops around it turn.
"""

import dataclasses
import math
import re
from collections import defaultdict

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Names for what is already there, or does its work in computations that are counted themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "iota"}
FREE |= {"conditional", "after-all", "partition-id", "opt-barrier"}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
SLICES = ("dynamic-slice", "slice", "gather")
BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = shape opcode(inside), attributes`."""

    name: str
    shape: str
    opcode: str
    inside: str
    attributes: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """The names of the instructions that it reads."""
        return re.findall(r"%([\w.\-]+)", self.inside)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one device in one run of the program.

    Attributes:
      memory: bytes read from and written to HBM.
      collectives: bytes of each kind's results, or operands where those are larger.
    """

    memory: float
    collectives: dict[str, float]


Computation = dict[str, Instruction]


STARTS, ENDS = (f'custom_call_target="AsyncCollective{what}"' for what in ("Start", "Done"))


def size_of(shape: str, *, everywhere: bool = False) -> float:
    """Bytes of a shape's arrays; by default only of those in HBM, not in a faster memory (`S(1)`)."""
    total = 0.0
    for kind, sizes, layout in ARRAY.findall(shape):
        if everywhere or "S(" not in layout:
            bits = BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])
            total += bits / 8 * math.prod(int(n) for n in sizes.split(",") if n)
    return total


def traffic(text: str) -> Traffic:
    """What a compiled module's text says that one device moves.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = parse(text)
    started = _started(computations)
    memory, moved = 0.0, defaultdict[str, float](float)
    stack = [(entry, 1.0, True)]
    while stack:
        name, times, executed = stack.pop()
        body = computations[name]
        for it in body.values():
            kind = it.opcode.removesuffix("-start")
            first = started.get(_channel(it), name) == name
            if kind in COLLECTIVES and first and not it.opcode.endswith("-done"):
                fused = "reduce-scatter" if "reduce-scatter" in name else kind
                moved[fused] += times * _collective(it, body)
            if executed and it.opcode not in FREE and not it.opcode.endswith("-done"):
                memory += times * _touched(it, body, computations, started)
            turns = _turns(it, computations) if it.opcode == "while" else 1
            inside = it.opcode in ("while", "call", "conditional")
            if it.opcode in ("while", "call", "conditional", "fusion", "async-start"):
                for called in _called(it):
                    stack.append((called, times * turns, executed and inside))
    return Traffic(memory, dict(moved))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the entry's name.

    Raises:
      ValueError: there is no entry.
    """
    found: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif " = " in line and line.startswith("  "):
            it = _instruction(line)
            current[it.name] = it
    if not entry:
        raise ValueError("compiled program: expected an ENTRY computation, found none")
    return found, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().partition(" = ")
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:cut], rest[cut:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    root, name = name.startswith("ROOT "), name.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, rest[:start], rest[start + 1 : end], rest[end + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for mark in re.compile(r"[()]").finditer(text, start):
        depth += 1 if mark[0] == "(" else -1
        if depth == 0:
            return mark.start()
    raise ValueError(f"compiled program: a bracket does not close: {text[:80]!r}")


def _called(it: Instruction) -> list[str]:
    branches = re.search(r"branch_computations=\{([^}]*)\}", it.attributes)
    named = CALLED.findall(it.attributes)
    return named + (re.findall(r"%([\w.\-]+)", branches[1]) if branches else [])


def _turns(loop: Instruction, computations: dict[str, Computation]) -> int:
    """How often a loop `for i in range(n)` turns; 1 where its condition is another one."""
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    lines = computations[condition[1]].values() if condition else []
    limits = [it for it in lines if it.opcode == "constant" and it.shape.startswith("s32[]")]
    counted = any("direction=LT" in it.attributes for it in lines)
    if not (counted and len(limits) == 1):
        return 1
    return int(limits[0].inside)


def _collective(it: Instruction, body: Computation) -> float:
    operands = sum(size_of(body[name].shape, everywhere=True) for name in it.operands)
    if it.opcode == "reduce-scatter" or it.opcode.endswith("-start"):
        return operands
    return max(size_of(it.shape, everywhere=True), operands)


def _channel(it: Instruction) -> str:
    """What collectives are told apart by; "" for other instructions."""
    found = re.search(r"\bchannel_id=(\d+)", it.attributes)
    return found[1] if found else ""


def _started(computations: dict[str, Computation]) -> dict[str, str]:
    """By channel, where a collective starts that other fusions carry on, a part in each, or end.

    The compiler writes the collective into all of these fusions, as if each did all of it.
    """
    return {
        _channel(it): name
        for name, body in computations.items()
        if any(STARTS in it.attributes for it in body.values())
        for it in body.values()
        if it.opcode in COLLECTIVES
    }


def _carried(name: str, fused: Computation, started: dict[str, str]) -> set[str]:
    """Of a fusion that carries on or ends a collective, what belongs to that: operands and results."""
    moving = {
        it.name
        for it in fused.values()
        if it.opcode in COLLECTIVES and started.get(_channel(it), name) != name
    }
    if not moving:
        return set()
    passed = set(moving)
    for it in fused.values():
        users = [user for user in fused.values() if it.name in user.operands]
        if it.opcode == "parameter":
            own = all(
                user.name in moving or (user.root and user.opcode == "tuple") for user in users
            )
            passed |= {it.name} if own else set()
    return passed


def _touched(
    it: Instruction,
    body: Computation,
    computations: dict[str, Computation],
    started: dict[str, str],
) -> float:
    """HBM bytes that an instruction reads and writes."""
    shapes = [body[name].shape for name in it.operands]
    if it.opcode in SLICES:
        return 2 * size_of(it.shape)
    if it.opcode == "dynamic-update-slice":
        return 2 * size_of(shapes[1])
    if it.opcode != "fusion":
        return size_of(it.shape) + sum(map(size_of, shapes))
    (called, *_) = _called(it)
    fused = computations[called]
    if any(ENDS in each.attributes for each in fused.values()):
        return 0.0
    carried, read = _carried(called, fused, started), 0.0
    for parameter, shape in zip(_parameters(fused), shapes, strict=True):
        if parameter not in carried:
            read += min(size_of(shape), _read(parameter, fused, computations))
    written = sum(
        size_of(fused[each.operands[1]].shape) if _in_place(each) else size_of(each.shape)
        for each in _results(fused)
        if each.name not in carried
    )
    return read + min(written, size_of(it.shape))


def _parameters(fused: Computation) -> list[str]:
    numbered = [it for it in fused.values() if it.opcode == "parameter"]
    numbered.sort(key=lambda it: int(it.inside))
    return [it.name for it in numbered]


def _read(parameter: str, fused: Computation, computations: dict[str, Computation]) -> float:
    """Bytes of a fusion's operand that are needed: slices of it, or all (infinity)."""
    total = 0.0
    for user in fused.values():
        for place, name in enumerate(user.operands):
            if name != parameter:
                continue
            if user.opcode in SLICES and place == 0:
                total += size_of(user.shape, everywhere=True)
            elif user.opcode == "fusion":
                inner = computations[_called(user)[0]]
                total += _read(_parameters(inner)[place], inner, computations)
            elif user.opcode == "bitcast" and not user.root:
                total += _read(user.name, fused, computations)
            elif not (_in_place(user) and place == 0):
                return math.inf
    return total


def _in_place(it: Instruction) -> bool:
    return it.opcode == "dynamic-update-slice"


def _results(fused: Computation) -> list[Instruction]:
    (root,) = (it for it in fused.values() if it.root)
    return [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
