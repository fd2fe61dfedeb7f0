"""One screen of the monitor, as lines of Rich text exactly as wide and at most as high as asked."""

from __future__ import annotations

import math
import time

from rich.text import Text

from kstep.cli.monitor.chart import MARKS, draw
from kstep.cli.monitor.log import Follower, Summary, thin

COLOURS = ["cyan", "yellow", "magenta", "green", "blue", "red"]
LABEL = 9            # columns of the numbers beside the chart
QUIET_AFTER_S = 120  # a training that writes nothing for so long may be gone


def figure(value: float | None) -> str:
    """Four digits, with an exponent where they would not fit."""
    if value is None:
        return "-"
    if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that they fill."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days} d {h:02d} h" if days else f"{h} h {m:02d} min" if h else f"{m} min {s:02d} s" if m else f"{s} s"


def whole(value: float | None) -> str:
    """A count with its thousands apart."""
    return "-" if value is None else f"{value:,.0f}"


def state(follower: Follower, now: float) -> tuple[str, str]:
    """(words, style) for where the training stands."""
    summary = follower.summary
    if not follower.exists:
        return "waiting", "yellow"
    if summary.ended is not None:
        return "ended", "bold green"
    quiet_s = now - (follower.changed_at or now)
    return (f"no row for {duration(quiet_s)}", "yellow") if quiet_s > QUIET_AFTER_S else ("training", "green")


def _spread(left: Text, right: Text, width: int) -> Text:
    left.truncate(max(0, width - right.cell_len - 1), overflow="crop")
    left.pad_right(max(1, width - left.cell_len - right.cell_len))
    return left.append_text(right)


def _progress(summary: Summary, width: int, unicode: bool) -> list[Text]:
    at = summary.progress
    step, total = at.get("step"), at.get("total_steps")
    share = min(1.0, step / total) if step is not None and total else 0.0
    words = f" step {whole(step)}" + (f" of {whole(total)}  {100 * share:3.0f} %" if total else "")
    words += f"  epoch {whole(at['epoch'])} " if "epoch" in at else " "
    room = max(5, width - len(words) - 1)
    done = round(share * room)
    full, empty = ("━", "─") if unicode else ("#", ".")
    bar = Text.assemble(words, (full * done, "green"), (empty * (room - done), "dim"))
    cells = [("left", duration(summary.left_s())), ("ran", duration(at.get("wall_s"))),
             ("samples/s", figure(summary.latest.get("samples_per_s"))), ("lr", figure(summary.latest.get("lr")))]
    if "peak_memory_MB" in summary.latest:
        cells.append(("memory", f"{whole(summary.latest['peak_memory_MB'])} MB"))
    line = Text(" ")
    for i, (name, value) in enumerate(cells):
        if line.cell_len + len(name) + len(value) + 3 > width:
            break
        line.append("  " * bool(i)).append(name + " ", "dim").append(value, "bold")
    return [bar, line]


def _chart(summary, metrics, width, height, unicode, colour) -> list[Text]:
    curves = [thin(summary.curves.get(m, []), summary.max_points) for m in metrics]
    braille = unicode and (colour or len(metrics) == 1)  # two curves of dots are told apart by colour alone
    drawn = draw(curves, width - LABEL - 3, height - 2, braille=braille)
    title = Text(" ")
    for i, m in enumerate(metrics):
        mark = ("━" if braille else MARKS[i % len(MARKS)]) + " "
        title.append(mark, COLOURS[i % len(COLOURS)]).append(m + "  ", "bold")
        if not curves[i]:
            title.append("(none yet)  ", "dim")
    if drawn is None:
        blank = [Text("") for _ in range(height - 1)]
        blank[(height - 1) // 2] = Text("no points to draw yet".center(width).rstrip(), "dim")
        return [title, *blank]
    cells, (low, high), (first, last), logarithmic = drawn
    lines = [_spread(title, Text("logarithmic " if logarithmic else "", "dim"), width)]
    middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
    at = {0: high, len(cells) // 2: middle, len(cells) - 1: low} if high > low else {len(cells) // 2: low}
    for r, row in enumerate(cells):
        line = Text(f"{figure(at[r]) if r in at else '':>{LABEL}} " + ("│" if unicode else "|"), "dim")
        for char, curve in row:
            line.append(char, COLOURS[curve % len(COLOURS)] if curve >= 0 else None)
        lines.append(line)
    right = f"step {whole(last)}"
    axis = whole(first).ljust(width - LABEL - 3 - len(right)) + right
    lines.append(Text(" " * (LABEL + 1) + ("└" if unicode else "+") + axis, "dim"))
    return lines


def _tables(summary: Summary, width: int, height: int) -> list[Text]:
    """Training losses on the left, validation (last, best) on the right; the best is that of the lowest loss."""
    train = [k for k in summary.latest if k.startswith("train_")]
    name = max([12, *(len(k) - 4 for k in train)])  # the train_ off, a blank before and after
    wide = max([14, *(len(k) + 1 for k in summary.validation_keys)])
    gap = max(1, min(8, width - name - wide - 34))
    wide = max(1, min(wide, width - name - gap - 33))
    half = name + 11 + gap
    rows = [(Text(f" {'training':<{name - 1}}{'last':>11}", "bold"),
             Text(f"{'validation':<{wide}}{'last':>11}{'best':>11}", "bold"))]
    for i in range(max(len(train), len(summary.validation_keys))):
        left, right = Text(""), Text("")
        if i < len(train):
            left = Text(f" {train[i][6:][:name - 2]:<{name - 1}}").append(*_shown(summary.latest[train[i]], 11))
        if i < len(summary.validation_keys):
            key = summary.validation_keys[i]
            right = Text(f"{key[:wide - 1]:<{wide}}").append(*_shown(summary.latest[key], 11))
            right.append(f"{figure(summary.best.get(key)):>11}")
        rows.append((left, right))
    lines = []
    for left, right in rows[:height]:
        left.pad_right(max(0, half - left.cell_len))
        lines.append(left.append_text(right))
    if len(rows) > height > 0:
        lines[-1] = Text(f" and {len(rows) - height + 1} lines more in a higher window", "dim")
    return lines


def _shown(value: float, width: int):
    return f"{figure(value):>{width}}", None if math.isfinite(value) else "bold red"


def compose(follower: Follower, metrics: list[str], width: int, height: int, *, unicode: bool = True,
            colour: bool = True, now: float | None = None) -> list[Text]:
    """The lines of one screen, at most `height` of at most `width` columns."""
    summary, now = follower.summary, time.time() if now is None else now
    words, style = state(follower, now)
    facts = summary.facts
    about = "  ".join(str(part) for part in (
        facts.get("arch"), f"{facts['parameters']:,} parameters" if isinstance(facts.get("parameters"), int) else None,
        facts.get("device")) if part)
    head = Text.assemble(" ", (str(follower.path.parent), "bold"), "  ", about)
    lines = [_spread(head, Text(words + " ", style), width)]
    foot = Text(" q quits", "dim")
    if summary.ended is not None:
        foot = Text(f" ended: {summary.ended}", "green")
    notes = [f"{n} {what}" for n, what in ((summary.not_finite, "not finite"), (summary.skipped, "rows skipped")) if n]
    foot = _spread(foot, Text(", ".join(notes) + " ", "red" if summary.not_finite else "dim"), width)
    if not follower.exists:
        body = [Text(""), Text(f" waiting for {follower.path}"), Text(" a training writes it: src/04_train.py", "dim")]
    else:
        saved = Text(" checkpoints", "bold")
        for name, step in reversed(summary.checkpoints.items()):
            words = f"  {name} at {whole(step)}"
            if saved.cell_len + len(words) > width:
                break
            saved.append(words, "not bold")
        if not summary.checkpoints:
            saved.append("  none yet", "dim")
        wanted = 1 + max(len(summary.validation_keys), sum(k.startswith("train_") for k in summary.latest))
        bar = _progress(summary, width, unicode)
        room = height - len(lines) - len(bar) - 4  # two blank lines, the checkpoints, the foot
        table = _tables(summary, width, max(0, min(wanted, room - 8)))
        body = [*bar, Text(""), *_chart(summary, metrics, width, max(3, room - len(table)), unicode, colour), Text(""),
                *table, saved]
    body = body[:max(0, height - 2)]
    lines += [*body, *(Text("") for _ in range(height - 2 - len(body))), foot]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines[:height]
