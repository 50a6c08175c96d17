"""Texts as the alphabet has them."""

import unicodedata
from typing import Literal, cast

CASES = ("lower", "upper", None)
FORMS = ("NFC", "NFD", "NFKC", "NFKD", None)


def normalize(text: str, case: str | None = None, unicode: str | None = None) -> str:
    r"""`text` in one case and one Unicode form; numbers are left to whoever knows how they are read.

    Args:
        text: of a manifest.
        case: ``"lower"``, ``"upper"`` or None for as it is.
        unicode: ``"NFC"`` (a letter with its accent is one character), ``"NFD"``, ``"NFKC"``, ``"NFKD"`` or None.

    Example:
        >>> normalize("A\u0308ra", case="lower", unicode="NFC")
        'ära'
    """
    if case is not None:
        text = text.lower() if case == "lower" else text.upper()
    if unicode is not None:  # last: another case may come in another form
        text = unicodedata.normalize(cast(Literal["NFC", "NFD", "NFKC", "NFKD"], unicode), text)
    return text
