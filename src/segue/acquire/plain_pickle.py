"""Pickles of plain containers (dict, list, text, numbers), read without building anything else.

Unpickling may call whatever a file names. Here every operation is looked at first: a file that names a class or
function, counts its memo out of order (a few bytes could ask for gigabytes), or is too large is refused. So are tuples,
which as keys of a dict could take forever to hash.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from segue.errors import UserError

MOST_BYTES = 2**26
"""D2ADA's lists have about 8 MB: 24,904 and 2,975 images with three paths each."""
MEMO = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
PLAIN = """
    PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE BINUNICODE8 SHORT_BINUNICODE
    EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT DICT SETITEM SETITEMS
"""


class PickleError(UserError):
    """A pickle that is damaged, or holds more than plain containers."""


class _Refusing(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_plain(path: Path) -> Any:
    """The containers in a pickle; ``PickleError`` when it is missing, too large, damaged, or not plain."""
    data = _bytes(path)
    try:
        _look(path, data)
        return _Refusing(io.BytesIO(data)).load()
    except PickleError:
        raise
    except Exception as error:  # the unpickler raises many kinds for a damaged file
        raise PickleError(f"{path} is damaged or no pickle ({type(error).__name__}): copy it again") from error


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PickleError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise PickleError(f"{path} is larger than {MOST_BYTES // 2**20} MiB and is not opened: is it another file?")
    return data


def _look(path: Path, data: bytes) -> None:
    plain, count = frozenset(PLAIN.split()), 0
    for operation, argument, _ in pickletools.genops(data):
        if operation.name not in plain:
            what = f"{operation.name} {argument}" if argument is not None else operation.name
            raise PickleError(
                f"{path} is not opened: it holds more than plain containers ({what[:80]}), and such a pickle can run "
                f"any program"
            )
        if operation.name in MEMO:
            if argument is None or not 0 <= argument <= count:
                raise PickleError(f"{path} is damaged: its memo is not in order")
            count += 1
        elif operation.name == "MEMOIZE":
            count += 1
