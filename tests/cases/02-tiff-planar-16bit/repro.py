# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where an uncompressed 16-bit RGB TIFF in separate planes decodes to other pixels."""

import io
import struct
import sys

import numpy as np

from mmdense.datasets.transforms.loading import decode_image


def tiff(a, planar):
    h, w, c = a.shape
    data = (a.transpose(2, 0, 1) if planar else a).astype('<u2').tobytes()
    out = bytearray(b'II*\0' + b'\0' * 4) + data

    def far(fmt, values):
        at = len(out)
        out.extend(struct.pack(f'<{len(values)}{fmt}', *values))
        return at

    n = c if planar else 1
    each = len(data) // n
    bits = far('H', [16] * c)
    offsets = far('I', [8 + i * each for i in range(n)]) if n > 1 else 8
    counts = far('I', [each] * n) if n > 1 else each
    tags = [
        (256, 4, 1, w),
        (257, 4, 1, h),
        (258, 3, c, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, n, offsets),
        (277, 3, 1, c),
        (278, 4, 1, h),
        (279, 4, n, counts),
        (284, 3, 1, 2 if planar else 1),
    ]
    struct.pack_into('<I', out, 4, len(out))
    out += (
        struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + b'\0' * 4
    )
    return bytes(out)


y, x = np.mgrid[:60, :80]
a = np.dstack([x * 800, y * 1000, (x + y) * 400]).astype(np.uint16)
want = (a >> 8).astype(int)
bad = 0
for planar in (False, True):
    try:
        got = decode_image(tiff(a, planar))[..., ::-1].astype(int)
        worst = abs(got - want).max()
        print('separate planes' if planar else 'interleaved', 'worst difference', worst)
        bad |= worst > 1
    except ValueError as error:  # a refusal is no silent corruption
        print('planar', planar, 'refused:', error)
        bad |= not planar
sys.exit(int(bad))
