"""The one exception of trimtab's own: bad input, found before any work starts."""


class InputError(ValueError):
    """An argument that cannot be used; the message names it, its value and the remedy."""
