"""Progress with time left: a live line on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

LOG_EVERY_S = 15.0


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Prints ``title  120/400  loss 1.23  0.31 s each  1:27 left`` to standard error."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.live = sys.stderr.isatty()
        self.first: tuple[int, float] | None = None
        self.printed = 0.0

    def __call__(self, done: int, total: int, numbers: Mapping[str, float] | None = None) -> None:
        """Report ``done`` of ``total``, with the latest numbers."""
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now)
        pace = (now - self.first[1]) / (done - self.first[0]) if done > self.first[0] else None
        last = done >= total
        if not self.live and not last and now - self.printed < LOG_EVERY_S:
            return
        self.printed = now
        parts = [f"{self.title}  {done}/{total}"]
        parts += [f"{k.removeprefix('loss/')} {v:.3f}" for k, v in (numbers or {}).items() if k.startswith("loss/")]
        if pace is not None:
            parts.append(f"{pace:.2f} s each  {clock(pace * (total - done))} left")
        line = "  ".join(parts)
        end = "\n" if last or not self.live else ""
        print(f"\r\x1b[2K{line}" if self.live else line, end=end, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning, in the place of the progress line where there is one."""
    lead = "\r\x1b[2K" if sys.stderr.isatty() else ""
    print(f"{lead}warning: {text}", file=sys.stderr, flush=True)
