"""Curves as characters: braille cells of 2 x 4 dots, or one ASCII mark a cell."""

from __future__ import annotations

import math

MARKS = "*o+x#@"
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bit of the dot in column, row (Unicode 2800)
LOG_RATIO = 10.0  # a decade between lowest and highest: a logarithmic axis shows more


def draw(curves: list[list[tuple[float, float]]], width: int, height: int, *, braille: bool):
    """(cells, (lowest, highest), (first, last step), whether logarithmic) of (step, value) curves.

    cells[row][column] = (character, index of the curve, -1 for none).  None when there is no point.
    """
    points = [point for curve in curves for point in curve]
    if not points or width < 1 or height < 1:
        return None
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    logarithmic = low > 0 and high / low > LOG_RATIO
    scale = math.log10 if logarithmic else float
    bottom, top = scale(low), scale(high)
    across, down = (2, 4) if braille else (1, 1)
    columns, rows = width * across, height * down

    def place(step, value):
        x = (step - first) / (last - first) if last > first else 0.0
        y = (scale(value) - bottom) / (top - bottom) if top > bottom else 0.5
        return round(x * (columns - 1)), round((1 - y) * (rows - 1))

    bits = [[0] * width for _ in range(height)]
    owner = [[-1] * width for _ in range(height)]
    for index, curve in reversed(list(enumerate(curves))):  # the first lies on top
        before = None
        for point in curve:
            x, y = place(*point)
            x0, y0 = before or (x, y)
            n = max(abs(x - x0), abs(y - y0), 1)
            for i in range(n + 1):
                px, py = round(x0 + (x - x0) * i / n), round(y0 + (y - y0) * i / n)
                bits[py // down][px // across] |= _DOTS[px % across][py % down] if braille else 1
                owner[py // down][px // across] = index
            before = x, y
    cells = [[((chr(0x2800 + b) if braille else MARKS[o % len(MARKS)]) if b else " ", o)
              for b, o in zip(bit_row, owner_row, strict=True)] for bit_row, owner_row in zip(bits, owner, strict=True)]
    return cells, (low, high), (first, last), logarithmic
