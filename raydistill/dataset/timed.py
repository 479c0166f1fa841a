"""Regular expressions that cannot hang a pass."""

import functools

import regex

from raydistill.core.errors import DatasetError

LONGEST_SEARCH_SECONDS = 10.0  # a million times what a search in an answer takes


def search(pattern: str, text: str, key: str, ignore_case: bool = False) -> "regex.Match[str] | None":
    """Return where a pattern is found in a text.

    Nested repetitions can take longer than anybody waits. A search that is given up is an error and never a drop: what
    is kept must not depend on how fast a machine is.

    Args:
        pattern: valid. It is the `regex` package that searches, since a search of `re` cannot be given up.
        text: an answer, or a part of it.
        key: of the table `create_data.quality`, which a user is to mend.
        ignore_case: whether "A" is found where "a" is looked for.

    Raises:
        DatasetError: it takes longer than LONGEST_SEARCH_SECONDS.
    """
    try:
        return _compile(pattern, ignore_case).search(text, timeout=LONGEST_SEARCH_SECONDS)
    except TimeoutError as error:
        raise DatasetError(
            f"create_data.quality.{key}: {pattern!r} takes more than {LONGEST_SEARCH_SECONDS:g} s on the "
            f"answer {text[:80]!r}. Write it without repetitions inside repetitions, as in (a+)+, and run the same "
            "command again: nothing is asked twice."
        ) from error


@functools.lru_cache(maxsize=1024)
def _compile(pattern: str, ignore_case: bool) -> "regex.Pattern[str]":
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
