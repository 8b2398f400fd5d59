"""The error that the command line prints as one line."""


class UserError(Exception):
    """Something the user can mend: the text says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 1; ``--traceback`` shows where it was raised.
    """
