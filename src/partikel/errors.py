"""What a user can mend: every such failure is one clear sentence and exit code 2.

Functions raise the most specific class; the command line prints the message without a traceback.
Mistakes of a programmer (wrong shapes, wrong types) stay ordinary ``ValueError`` and ``TypeError``.
"""


class PartikelError(Exception):
    """Base of all failures that the user can mend; the message names the cause and the mend."""


class ConfigError(PartikelError):
    """A configuration key, type, range or combination that cannot work."""


class DataError(PartikelError):
    """Data that is missing, corrupt, or not what the configuration says."""


class CheckpointError(PartikelError):
    """A checkpoint or run folder that is missing, truncated, foreign or of another model."""


class NumericsError(PartikelError):
    """Training or sampling left the finite numbers."""


def nearest(name: str, valid: "list[str] | tuple[str, ...]") -> str:
    """A phrase that helps with a misspelt name.

    Args:
        name: what the user wrote.
        valid: the names that exist.

    Returns:
        ``"did you mean 'x'?"`` where something is close, else the list of valid names.
    """
    import difflib

    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(sorted(valid))}"
