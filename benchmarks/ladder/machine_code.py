"""What cuobjdump and Triton say of a compiled kernel: instructions of SASS, the machine code, and of PTX, before it."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple


class Instruction(NamedTuple):
    address: int
    operation: str
    operands: str


def disassembled(cubin: bytes) -> tuple[dict[str, int], list[Instruction]]:
    """What the code uses (REG, STACK, ...), and its instructions without padding."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        arguments = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", text)}
    code = [
        Instruction(int(address, 16), operation, operands)
        for address, operation, operands in re.findall(
            r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([\w.]+) ?([^;]*);", text
        )
    ]
    return usage, [instruction for instruction in code if instruction.operation != "NOP"]


def _loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last address of each loop: a branch that leads back. The last branch of a program leads to itself."""
    found = []
    for address, operation, operands in code:
        target = re.search(r"0x([0-9a-f]+)$", operands.strip())
        if operation.startswith("BRA") and target and int(target[1], 16) < address:
            found.append((int(target[1], 16), address))
    return sorted(found)


def _blocks(code: list[Instruction]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The loops over blocks of targets, which contain no other, and loops over rows, which contain them."""
    loops = _loops(code)
    outer = [loop for loop in loops if any(loop[0] <= one[0] and one[1] <= loop[1] and one != loop for one in loops)]
    return [loop for loop in loops if loop not in outer], outer


def instructions_of_row(code: list[Instruction]) -> tuple[int, int]:
    """A warp's instructions for a row: those outside loops over blocks of targets, and those of one block."""
    inner, outer = _blocks(code)
    first, last = outer[0] if outer else (0, code[-1].address)
    of_row = sum(first <= instruction.address <= last for instruction in code)
    of_blocks = sum(begin <= instruction.address <= end for begin, end in inner for instruction in code)
    return of_row - of_blocks, of_blocks


def gathers_of_block(code: list[Instruction]) -> tuple[int, int]:
    """Loads of 16 bytes in the first loop that has any, and how many precede the first use of what one has loaded."""
    for first, last in _blocks(code)[0]:
        body = [instruction for instruction in code if first <= instruction.address <= last]
        loads = [place for place, one in enumerate(body) if one.operation.startswith("LDG.E.128")]
        if not loads:
            continue
        loaded, together = set[int](), 0
        for _, operation, operands in body:
            target, *sources = operands.split(",")
            if loaded & {int(number) for source in sources for number in re.findall(r"\bR(\d+)\b", source)}:
                break
            if operation.startswith("LDG.E.128"):
                begin = int(re.findall(r"\bR(\d+)\b", target)[0])
                loaded |= set(range(begin, begin + 4))
                together += 1
        return len(loads), together
    return 0, 0


def accesses(ptx: str) -> Iterator[str]:
    """Each access of global memory, such as "ld.cg v4": operation, cache, and how many numbers of up to 4 bytes.

    An addition that orders other accesses, which costs a fence, has "ordered" at the end.
    """
    for words in re.findall(r"\b(?:ld|st|red|atom)\.global[\w.:]*", ptx):
        parts = words.split(".")
        width = next((part for part in parts if re.fullmatch(r"v\d", part)), "v1")
        ordered = " ordered" if {"acquire", "release", "acq_rel"} & {*parts} else ""
        yield f"{parts[0]}{'.cg' * ('cg' in parts)} {width}{ordered}"
