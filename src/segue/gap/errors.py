"""What is wrong with a fingerprint, its network or its file."""

from segue.errors import UserError


class GapError(UserError):
    """A layer that is not there, fingerprints that cannot be compared, or a damaged file."""
