"""Which file system holds a path, from the kernel's own table of mounts; knows nothing of homes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

# Also cluster file systems (one disk, many hosts) and the folders that a virtual machine shares with its host.
# Other FUSE types are local more often than not (overlays of rootless containers, ntfs-3g, mergerfs).
_NETWORK = """
    9p acfs afs beegfs ceph cifs coda davfs fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs3 nfs4 ocfs2 orangefs
    panfs prl_fs pvfs2 smb smb2 smb3 smbfs vboxsf vmhgfs wekafs
"""
_NETWORK_FUSE = """
    afp blobfuse blobfuse2 ceph ceph-fuse cephfs curlftpfs davfs2 gcsfuse geesefs gitfs glusterfs goofys juicefs
    moosefs mount-s3 mountpoint-s3 nfs rclone s3fs s3ql seaweedfs smbnetfs sshfs vmhgfs-fuse
"""
NETWORK_TYPES: Final = frozenset([*_NETWORK.split(), *(f"fuse.{name}" for name in _NETWORK_FUSE.split())])
_ESCAPE = re.compile(r"\\([0-7]{3})")


def network_filesystem(path: str, mountinfo: str) -> str | None:
    """The type of the network file system that holds ``path``, or None if it is a local one or unknown.

    Args:
        path: absolute and without symbolic links; need not exist.
        mountinfo: text of ``/proc/self/mountinfo``.

    >>> network_filesystem("/data/home", "36 25 0:31 / /data rw shared:7 - nfs4 server:/x rw")
    'nfs4'
    """
    found, longest = "", -1
    # Only "\n" and " " separate: a mount point may hold any other kind of blank, and the kernel escapes just these.
    for line in mountinfo.split("\n"):
        left, separator, right = line.partition(" - ")
        fields, kinds = left.split(" "), right.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _ESCAPE.sub(_unescape, fields[4])
        # Equal length: a later line is mounted over an earlier one.
        if len(point) >= longest and (path == point or path.startswith(point.rstrip("/") + "/")):
            found, longest = kinds[0].lower(), len(point)
    return found if found in NETWORK_TYPES else None


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def read_mountinfo() -> str:
    """The mounts that this process sees; empty where the kernel does not tell."""
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
