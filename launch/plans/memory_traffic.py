"""Bytes that a compiled program reads from and writes to a device's memory, loops multiplied out.

Each instruction reads its operands and writes its result once. Slices read what they return, and an update in place
writes what it changes. Values that XLA keeps in a TPU's vector memory (`S(1)` in their layout) do not count. An
instruction that reads an operand several times, such as a product of matrices in tiles, moves more than is counted.
"""

import re

from .hlo import Computation, Instruction, Module, arrays, branches, turns

FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
"""Operations that move nothing."""
SLICES = ("dynamic-slice", "gather", "slice")
_ARRAY = re.compile(r"[a-z]\w*\[[\d,<=]*\](?:\{[^{}]*\})?")


def memory_bytes(module: Module, name: str | None = None) -> int:
    """Bytes that one execution of a module, or of one of its computations, moves.

    Of branches, the one that moves most counts, and a loop whose turns are not known counts as one turn.
    """
    computation = module.computations[name or module.entry]
    return sum(_moved(module, computation, each) for each in computation.instructions)


def _moved(module: Module, where: Computation, each: Instruction) -> int:
    if each.opcode in FREE or each.opcode.endswith("-done") or each.opcode == "async-update":
        return 0
    if each.opcode == "while":
        n = turns(module, each, where)
        return (1 if n is None else n) * memory_bytes(module, each.attribute("body"))
    if each.opcode == "conditional":
        return max(memory_bytes(module, name) for name in branches(each))
    if each.opcode == "call":
        return memory_bytes(module, each.called)
    if each.opcode == "fusion":
        return _of_fusion(module, where, each)
    if each.opcode.endswith("-start"):
        return _in_memory(each.shape)  # operands and results
    if each.opcode in SLICES:
        return 2 * _in_memory(each.shape)
    if each.opcode == "dynamic-update-slice":
        return 2 * _size(where, each.operands[1])
    return sum(_size(where, name) for name in each.operands) + _in_memory(each.shape)


def _in_memory(shape: str) -> int:
    """Bytes of the arrays of a shape that are in the device's main memory."""
    found = _ARRAY.findall(shape)
    return sum(size for each in found if not ("T(" in each and "S(" in each) for _, size in arrays(each))


def _size(where: Computation, name: str) -> int:
    return _in_memory(where.by_name[name].shape) if name in where.by_name else 0


def _of_fusion(module: Module, where: Computation, fusion: Instruction) -> int:
    inside = module.computations[fusion.called]
    read = sum(min(_size(where, name), _read(module, inside, i)) for i, name in enumerate(fusion.operands))
    return read + min(_in_memory(fusion.shape), _written(inside, inside.root))


def _read(module: Module, inside: Computation, place: int) -> int:
    """Bytes that a fusion reads of its parameter number `place`."""
    parameter = next(x for x in inside.instructions if x.opcode == "parameter" and int(x.operands[0]) == place)
    whole = sum(size for _, size in arrays(parameter.shape))
    names, total = {parameter.name}, 0
    for each in inside.instructions:
        for i, name in enumerate(each.operands):
            if name not in names:
                continue
            if each.opcode == "bitcast":
                names.add(each.name)
            elif each.opcode == "fusion":
                total += _read(module, module.computations[each.called], i)
            elif each.opcode in SLICES and i == 0:
                total += sum(size for _, size in arrays(each.shape))
            elif each.opcode != "dynamic-update-slice" or i:
                return whole
    return total


def _written(inside: Computation, result: Instruction) -> int:
    """Bytes that a fusion writes for a result."""
    if result.opcode == "tuple":
        return sum(_written(inside, inside.by_name[name]) for name in result.operands)
    made = inside.by_name[result.operands[0]] if result.opcode == "bitcast" else result
    if made.opcode == "dynamic-update-slice":
        return sum(size for _, size in arrays(inside.by_name[made.operands[1]].shape))
    return sum(size for _, size in arrays(result.shape))
