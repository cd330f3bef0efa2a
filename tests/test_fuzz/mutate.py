# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Changes of files' bytes, drawn by hypothesis."""

from hypothesis import strategies as st

# Numbers at which readers go wrong.
NUMBERS = [
    *(0, 1, 2, 3, 7, 63, 64, 127, 128, 255, 256, 1000, 4096, 13_000, 16_383, 16_384),
    *(32_767, 32_768, 60_000, 65_500, 65_535, 100_000, 2**24 - 1, 2**24),
    *(2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1),
]


@st.composite
def mutated(draw, content: bytes, others=(b'\0',), fields=(), header: int = 64, most: int = 4):
    """One to ``most`` changes of a file.

    Args:
        content (bytes): Of the file.
        others (sequence[bytes]): Files to take pieces from.
        fields (sequence[tuple]): (offset, bytes, order) of numbers in it, which are changed more
            often than the rest.
        header (int): Bytes at its start and end that are.
    """
    kinds = ['bits', 'bytes', 'number', 'cut', 'remove', 'repeat', 'splice', 'insert']
    if fields:
        kinds += ['field'] * 4
    for _ in range(draw(st.integers(1, most))):
        size = len(content)
        if not size:
            break
        ends = st.integers(0, min(header, size) - 1)
        at = draw(
            st.one_of(ends, ends.map(lambda i, size=size: size - 1 - i), st.integers(0, size - 1))
        )
        kind = draw(st.sampled_from(kinds))
        length = draw(st.integers(1, 32))
        new = None
        if kind == 'bits':
            new = bytes([content[at] ^ (1 << draw(st.integers(0, 7)))])
        elif kind == 'bytes':
            new = draw(st.binary(min_size=1, max_size=8))
        elif kind == 'number':
            width, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(ORDERS))
            new = number(draw(st.sampled_from(NUMBERS)), width, order)
        elif kind == 'field':
            at, width, order = draw(st.sampled_from(list(fields)))
            new = number(draw(st.sampled_from(NUMBERS)), width, order)
        elif kind == 'cut':
            content = content[:at]
        elif kind == 'remove':
            content = content[:at] + content[at + length :]
        elif kind == 'repeat':
            times = draw(st.integers(1, 50))
            content = content[:at] + content[at : at + length] * times + content[at:]
        elif kind == 'splice':
            other = draw(st.sampled_from(list(others)))
            start = draw(st.integers(0, len(other) - 1))
            content = content[:at] + other[start : start + 16 * length] + content[at:]
        else:
            content = content[:at] + draw(st.binary(min_size=1, max_size=16)) + content[at:]
        if new is not None:
            content = content[:at] + new + content[at + len(new) :]
    return content


ORDERS = ['little', 'big']


def number(value: int, width: int, order: str) -> bytes:
    return (value % 256**width).to_bytes(width, order)
