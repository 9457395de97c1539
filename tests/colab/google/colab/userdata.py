"""Secrets, which Colab's page keeps: one call, three ways to fail."""

# What the person has stored, and which of it this notebook may read.
STORED: dict[str, str] = {}
ACCESS: set[str] = set()
# Without a page at the other end (a run from outside) a request is never answered.
PAGE_IS_OPEN = [True]


class NotebookAccessError(Exception):
    def __init__(self, key: str):
        super().__init__(f"Notebook does not have access to secret {key}")


class SecretNotFoundError(Exception):
    def __init__(self, key: str):
        super().__init__(f"Secret {key} does not exist.")


class TimeoutException(Exception):  # its real name
    def __init__(self, key: str):
        super().__init__(
            f"Requesting secret {key} timed out. Secrets can only be fetched when "
            "running from the Colab UI."
        )


def get(key: str) -> str:
    if not PAGE_IS_OPEN[0]:
        raise TimeoutException(key)
    if key not in STORED:
        raise SecretNotFoundError(key)
    if key not in ACCESS:
        raise NotebookAccessError(key)
    return STORED[key]
