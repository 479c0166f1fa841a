"""Names of places: storage URIs (a folder or s3://), model paths (raydistill://name/alias) and hosts."""

import ipaddress
import re
from pathlib import Path

from raydistill.core.errors import ConfigError

MODEL_SCHEMES = ("raydistill://", "tinker://")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_remote(uri: str) -> bool:
    """Return whether a storage URI lives in an object store."""
    return uri.startswith("s3://")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host's ports; of a name other than localhost nothing is known."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def join(uri: str, *parts: str) -> str:
    """Return a URI below another one; parts may not climb out of it."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ConfigError(f"{part!r} is no name below {uri}: give a relative path without '..'.")
    return "/".join([uri.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """Return an S3 URI as it is and a local path made absolute (workers run in other folders)."""
    if is_remote(uri):
        if "@" in uri.split("/")[2]:  # s3://KEY:SECRET@bucket: it would stand in every message and manifest
            raise ConfigError("s3://...@...: a storage URI holds no credentials. Write s3://bucket/key and use AWS_*.")
        return uri.rstrip("/")
    if "://" in uri:
        raise ConfigError(f"{uri}: this kind of storage is not known. Use a folder or s3://bucket/key.")
    return str(Path(uri).expanduser().absolute())


def check_name(name: str) -> str:
    """Return a model's, alias's or task's name, or raise ConfigError where it could not be a folder's."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no usable name: use letters, digits, '.', '_' and '-', "
            "64 at most, the first a letter or a digit."
        )
    return name


def parse_model_path(path: str) -> tuple[str, str]:
    """Return (name, alias or version) of `raydistill://name/final`, `name/final` or `name` (alias `final`).

    The three-part form `scheme://name/sampler_weights/alias` of the token-level protocol is accepted too.
    """
    for scheme in MODEL_SCHEMES:
        path = path.removeprefix(scheme)
    parts = path.strip("/").split("/")
    if len(parts) == 3 and parts[1] == "sampler_weights":
        parts = [parts[0], parts[2]]
    if len(parts) == 1:
        parts.append("final")
    if len(parts) != 2:
        raise ConfigError(f"{path!r} is no model path: write raydistill://NAME/ALIAS or raydistill://NAME/v0001.")
    return check_name(parts[0]), check_name(parts[1])
