"""On what kind of file system an output lies: some keep neither appends nor locks between machines."""

from __future__ import annotations

import re
from pathlib import Path

# Linux: proc(5) on /proc/PID/mountinfo. Blank, tab, newline and backslash in a path are written in octal there.
_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")
# Those through FUSE are named fuse.PROGRAM; the ones here keep their files on another machine.
_SHARED = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "davfs"),
        *("fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.blobfuse", "fuse.blobfuse2"),
        *("fuse.glusterfs", "fuse.ceph-fuse", "fuse.davfs"),
    )
)


def shared_file_system(directory: Path, mountinfo: str) -> str | None:
    """The type of the network file system that ``directory`` (absolute, without links) is on; None for a local one.

    ``mountinfo`` is the text of /proc/self/mountinfo. The longest mount point counts; of two alike the later one,
    which lies over the other.
    """
    best, kind = -1, None
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
        if directory.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind if kind in _SHARED else None


def shared_file_system_of(directory: Path) -> str | None:
    """The same for this machine at this moment; None where nothing tells (not Linux, no /proc)."""
    try:
        text = _MOUNTINFO.read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    return shared_file_system(directory, text)
