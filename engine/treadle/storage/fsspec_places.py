"""A routed type's bytes in an object store or on another machine, through fsspec; see ``places``."""

from __future__ import annotations

import importlib
import uuid
from typing import Any

from treadle.errors import OptionError
from treadle.storage.blob_checks import damaged, store_error, verified
from treadle.storage.fsspec_blobs import ATOMIC_SCHEMES, check_url
from treadle.storage.places import ABSENT, checked, highest_of


class FsspecPlace:
    """A folder of an object store or of another machine, through fsspec."""

    def __init__(self, url: str) -> None:
        self._atomic = check_url(url) in ATOMIC_SCHEMES
        try:
            found: tuple[Any, str] = importlib.import_module("fsspec").url_to_fs(url, use_listings_cache=False)
        except (ImportError, TypeError, ValueError) as error:
            raise OptionError(
                f"the route {url!r} cannot be opened", why=str(error), fix="check the URL, and install its library",
                option="routes",
            ) from error  # fmt: skip
        self._fs, root = found
        self._root, self._url = root.rstrip("/"), url.rstrip("/")

    def __repr__(self) -> str:
        return f"<FsspecPlace {self._url}>"

    def put(self, location: str, data: bytes) -> bool:
        """See ``Place.put``."""
        path = f"{self._root}/{checked(location)}"
        try:
            if self._fs.exists(path):
                return False
            if self._atomic:
                self._fs.pipe_file(path, data)
            else:
                self._move_in(path, data)
            if (there := self._fs.info(path)["size"]) != len(data):
                raise OSError(f"only {there} of {len(data)} bytes have arrived")
        except Exception as error:
            raise store_error(f"{self._url}/{location}", "write", error) from error
        return True

    def get(self, location: str, size: int, checksum: bytes) -> bytes:
        """See ``Place.get``."""
        shown = f"{self._url}/{checked(location)}"
        try:
            data = bytes(self._fs.cat_file(f"{self._root}/{location}", start=0, end=size + 1))
        except ABSENT:
            damaged(shown, "it is missing")
        except Exception as error:
            raise store_error(shown, "read", error) from error
        return verified(data, size, checksum, shown)

    def exists(self, location: str, size: int) -> bool:
        """See ``Place.exists``."""
        try:
            info: dict[str, Any] = self._fs.info(f"{self._root}/{checked(location)}")
        except ABSENT:
            return False
        except Exception as error:
            raise store_error(f"{self._url}/{location}", "look up", error) from error
        return bool(info["type"] == "file" and info["size"] == size)

    def delete(self, location: str) -> bool:
        """See ``Place.delete``."""
        try:
            self._fs.rm_file(f"{self._root}/{checked(location)}")
        except ABSENT:
            return False
        except Exception as error:
            raise store_error(f"{self._url}/{location}", "delete", error) from error
        return True

    def highest(self, name: str) -> int:
        """See ``Place.highest``."""
        try:
            found: list[str] = self._fs.ls(f"{self._root}/{name}", detail=False)
        except ABSENT:
            return 0
        except Exception as error:
            raise store_error(f"{self._url}/{name}", "list", error) from error
        return highest_of(path.rpartition("/")[2] for path in found)

    def _move_in(self, path: str, data: bytes) -> None:
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        temp = f"{path.rpartition('/')[0]}/.new-{uuid.uuid4().hex}"
        try:
            self._fs.pipe_file(temp, data)
            self._fs.mv(temp, path)
        except BaseException:
            if self._fs.exists(temp):
                self._fs.rm_file(temp)
            raise
