"""The one exception that means: the input is at fault, and the message says how to mend it."""


class UserError(ValueError):
    """Bad input, told in one line; a launcher prints the message alone (`is_user_error`) and exits 1."""

    is_user_error = True
