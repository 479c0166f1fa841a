"""Follow the aliases of every model below one folder: what has not changed is not read again."""

from dataclasses import dataclass

from raydistill.core import storage
from raydistill.core.errors import StorageError, UnavailableError
from raydistill.core.etags import find_etags
from raydistill.core.uris import NAME, is_remote, join
from raydistill.registry.aliases import ALIASES_FILE, Aliases, next_entry, read_aliases


@dataclass(frozen=True)
class Followed:
    """The aliases of each model as they are now.

    Attributes:
        models: model's name -> its aliases; as last read where they cannot be read now.
        unreadable: model's name -> why its aliases cannot be read now.
    """

    models: dict[str, Aliases]
    unreadable: dict[str, str]


class Follower:
    """Remembers what it has read of each model, and by which etag."""

    def __init__(self, models_uri: str) -> None:
        """Take the registry's folder, ROOT/models."""
        self._uri = models_uri
        self._models: dict[str, Aliases] = {}
        self._etags: dict[str, str] = {}

    def poll(self) -> Followed:
        """Look at every model, and read the aliases of those that have moved.

        In S3 that is one listing (a request for each 1,000 objects below the folder), and one read for each model
        that has moved. One model's damaged file keeps no other from being followed. Aliases are never deleted, so a
        file that was there and is gone is a fault (of a mount, perhaps), and the model stays as it was.

        Raises:
            StorageError: the folder cannot be listed, or the store stopped answering.
        """
        etags = {name: etag for name, etag in find_etags(self._uri, ALIASES_FILE).items() if NAME.fullmatch(name)}
        unreadable: dict[str, str] = {}
        for name in sorted({*etags, *self._models}):
            try:
                self._follow(name, etags.get(name, storage.ABSENT))
            except UnavailableError:
                raise
            except StorageError as error:
                unreadable[name] = str(error)
        return Followed(dict(self._models), unreadable)

    def _follow(self, name: str, etag: str) -> None:
        uri = join(self._uri, name)
        known = self._models.get(name)
        if etag == storage.ABSENT and self._etags.get(name, etag) != etag:
            raise StorageError(f"{join(uri, ALIASES_FILE)} is gone; what it named last is still served. Put it back.")
        if etag == self._etags.get(name) and known is not None and self._is_newest(uri, known):
            return
        if etag == storage.ABSENT and self._is_newest(uri, known or Aliases()):
            return  # of a model that no alias names yet
        self._models[name] = read_aliases(uri)
        self._etags[name] = etag

    @staticmethod
    def _is_newest(uri: str, known: Aliases) -> bool:
        """Return whether nothing was written after these; see `aliases` for why a folder has to be asked again."""
        return is_remote(uri) or not storage.exists(next_entry(uri, known))
