"""Where the bytes of a compiled program go: what a chip executes, by what it is for.

A program's text holds one instruction a line. What stands in the entry computation, or in a loop's body, is a
kernel of its own: it reads its operands from memory and writes its results there. What a fusion holds happens
on the chip. So bytes are those of operands and results of the kernels, and a copy inside a fusion costs none.
TPUs fetch operands ahead into memory on the chip (their layouts say S(1)): the fetch then has the bytes.
"""

import collections
import re
from typing import NamedTuple

from reid_jax.plan import hlo

PRODUCTS = {"convolution", "dot"}
# moves or renames numbers, computes none
LAYOUT = {"copy", "transpose", "reshape", "bitcast", "slice", "pad", "concatenate", "reverse", "convert"}
LAYOUT |= {"dynamic-slice", "dynamic-update-slice", "broadcast", "constant", "parameter", "tuple", "iota"}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done"}
FREE |= {f"{kind}-done" for kind in hlo.COLLECTIVES} | {"async-done", "async-update", "slice-done"}
FREE |= {"partition-id", "replica-id"}
AHEAD = {"copy-start", "slice-start"}  # into or out of memory on the chip, beside the work
CALLS = {"while", "conditional", "call"}
GATHERS = {"gather", "scatter"}
PARTS = {"gather", "dynamic-slice", "slice"}  # read no more of an operand than they give

HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")
OPERANDS = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?")  # one shape with its layout
TRIPS = re.compile(r'known_trip_count":?\{"n":"(\d+)"')
CALLED = re.compile(
    r"(?:calls|body|to_apply|called_computations?|branch_computations|true_computation)=\{?%?([\w.-]+)"
)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shapes: str  # of its results, as text
    kind: str
    operands: tuple  # names
    called: str  # the computation that it holds or runs, "" for none
    again: bool  # recomputed for the backward pass (remat)
    times: int = 1  # that a loop runs, where the compiler knows it


class Kernels(NamedTuple):
    """Kernels of one purpose in a program; bytes: of operands and results in main memory, once each."""

    purpose: str
    calls: int
    bytes: int
    single: int  # of the bytes, those of float32


def computations(text):
    """(name of the entry, {computation: [Instruction]}) of a program's text."""
    entry, found, lines = "", {}, None
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif lines is not None and (name := NAME.match(line)):
            lines += filter(None, [instruction(name[1], line)])
    return entry, found


def instruction(name, line):
    """The Instruction of a line, None where it is none."""
    line = hlo.COMMENT.sub("", line)
    match = hlo.OPERATION.search(line)
    if not match:
        return None
    arguments = line[match.end() :].partition(")")[0]
    called, trips = CALLED.search(line), TRIPS.search(line)
    again = "rematted_computation" in line or ".remat" in name
    operands = tuple(OPERANDS.findall(arguments))
    times = int(trips[1]) if trips else 1
    return Instruction(name, match[1], match[2], operands, called[1] if called else "", again, times)


def kernels(text):
    """[Kernels] of a compiled program, those that move most first."""
    entry, found = computations(text)
    calls, moved, single = collections.Counter(), collections.Counter(), collections.Counter()
    for line, shapes, times in executed(entry, found):
        why = purpose(line, found)
        calls[why] += times
        for array in ARRAY.findall(" ".join(shapes)):
            size = times * hlo.in_memory(array)
            moved[why] += size
            single[why] += size * array.startswith("f32[")
    return [Kernels(why, calls[why], size, single[why]) for why, size in moved.most_common()]


def executed(name, found, times=1):
    """(Instruction, [shapes of its operands and results], times) of what a computation and what it calls run.

    A loop's body runs as often as the compiler knows, else once; of a choice the first branch does.
    """
    lines = found.get(name, [])
    shapes = {line.name: line.shapes for line in lines}
    for line in lines:
        if line.kind in CALLS:
            yield from executed(line.called, found, times * line.times)
        elif line.kind in AHEAD:  # its results name the operand again
            yield line, fetched(line), times
        elif line.kind in PARTS:  # of a larger operand
            yield line, 2 * [line.shapes], times
        elif line.kind not in FREE:
            yield line, [line.shapes, *(shapes.get(operand, "") for operand in line.operands)], times


def fetched(line):
    """[Shapes] that a fetch moves in main memory: the side of a copy that lies there, the part of a slice."""
    arrays = ARRAY.findall(line.shapes)
    if line.kind == "copy-start":
        return arrays
    whole, part = arrays[:2]
    return [part.partition("{")[0]] if hlo.in_memory(whole) or hlo.in_memory(part) else []


def purpose(line, found):
    """What a kernel is for, in a word."""
    if line.kind in AHEAD:
        return "fetched ahead"
    kinds = held(line, found)
    kind = line.kind.removesuffix("-start")
    if kind in hlo.COLLECTIVES:
        return kind
    if kinds & PRODUCTS:
        return "products, recomputed" if line.again else "products"
    if kinds & GATHERS:
        return "gathers and scatters"
    if kinds & {"custom-call", "sort"}:
        return "custom calls and sorts"
    if kinds & {"reduce", "reduce-window", "select-and-scatter"}:
        return "reductions"
    return "layout" if kinds <= LAYOUT else "elementwise"


def held(line, found):
    """Names of the operations of a kernel, those that its fusions hold with them."""
    kinds = {line.kind} - {"fusion"}
    for inner in found.get(line.called, []):
        kinds |= held(inner, found) if inner.kind == "fusion" else {inner.kind}
    return kinds


def products(text):
    """{dtype of the results and operands, as in bf16*bf16->f32: number} of convolutions and dots."""
    _, found = computations(text)
    counted = collections.Counter()
    for lines in found.values():
        shapes = {line.name: line.shapes for line in lines}
        for line in lines:
            if line.kind in PRODUCTS:
                sides = [dtype(shapes.get(operand, "")) for operand in line.operands[:2]]
                counted[f"{'*'.join(sides)}->{dtype(line.shapes)}"] += 1
    return dict(counted.most_common())


def dtype(shapes):
    """The first dtype in shapes written as in HLO, ? for none."""
    match = hlo.SHAPE.search(shapes)
    return match[1] if match else "?"
