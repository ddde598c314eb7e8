"""The one exception a user is meant to see."""


class InputError(ValueError):
    """Bad input from outside: one line that names the field, the value and what is allowed.

    The command line prints it without a traceback and exits with code 2.
    """


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `InputError` "<field> = <value>: must be <allowed>" unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} = {value}: must be {allowed}")


def nearest(name: str, known: list[str]) -> str:
    """A closing hint for an unknown `name`: the nearest of `known`, then all of them."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"
