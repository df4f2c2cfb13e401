"""Errors that a user can act on: each message is one sentence with value, limit, place and remedy.

Every class also inherits the standard exception it refines, so ordinary ``except ValueError`` keeps working.
The command line prints the sentence and exits with 2; anything else that escapes is a bug and keeps its traceback.
"""


class StablerankError(Exception):
    """Base of every error that is the user's to mend."""


class RecipeError(StablerankError, ValueError):
    """A recipe that cannot mean what it says: unknown key, wrong type, contradiction between sections."""


class DataError(StablerankError, ValueError):
    """Data that is missing, empty, without a needed column, or too long for the model."""


class ModelError(StablerankError, ValueError):
    """A model or adapter folder that is missing or cannot be read."""


class RewardError(StablerankError, ValueError):
    """A reward that cannot be loaded, or that returned something other than one number a completion."""


class RunFolderError(StablerankError, OSError):
    """A run folder that is occupied, damaged or not a run folder."""


class MissingExtraError(StablerankError, ImportError):
    """An optional dependency that is not installed; the message holds the install command."""
