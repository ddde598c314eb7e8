"""The one exception a user is meant to see."""

from __future__ import annotations

import sys
from collections.abc import Callable

MOST_VALUE, MOST_LINE = 200, 2000
"""characters shown of a value, and of a message"""


class InputError(ValueError):
    """Bad input from outside: one line that names the field, the value and what is allowed.

    The command line prints it without a traceback and exits with code 2.
    """


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `InputError` "<field> = <value>: must be <allowed>" unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} = {shown(value)}: must be {allowed}")


def script(main: Callable[[], object]) -> None:
    """Run the main function of a script, for which bad input is one line and exit code 2, too."""
    try:
        main()
    except InputError as error:
        print(one_line(str(error)), file=sys.stderr)
        sys.exit(2)


def nearest(name: str, known: list[str]) -> str:
    """A closing hint for an unknown `name`: the nearest of `known`, then all of them."""
    import difflib

    close = difflib.get_close_matches(name[:MOST_VALUE], known, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"


def one_line(text: str, most: int = MOST_LINE) -> str:
    r"""Text as one line that does nothing to a terminal: control characters as \x1b, the middle of a long one cut."""
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def shown(value: object) -> str:
    """A value of any kind in a message."""
    try:
        return one_line(str(value), MOST_VALUE)
    except (RecursionError, ValueError):  # nested too deep; an integer of more digits than Python prints
        return f"a {type(value).__name__} that cannot be printed"
