"""Errors that are the user's to mend: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class UserError(ValueError):
    """Something outside the program is not as it must be; the message names it and the way out."""


class Interrupted(Exception):
    """Training stopped after a signal with everything saved; exit code 75, ``--resume`` continues."""
