"""The one error of the data layer."""

from __future__ import annotations

from segue.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message names the file, folder or key and the way out."""
