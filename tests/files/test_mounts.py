"""The file system an output lies on, from the text that the kernel gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmbatch.files.mounts import shared_file_system, shared_file_system_of

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /home rw,relatime shared:2 master:1 - nfs4 server:/home rw,vers=4.2
24 22 0:21 / /home/ann rw - ext4 /dev/vdb rw
25 22 0:22 / /mnt/with\040blank\134and rw - cifs //server/share rw
26 22 0:23 / /ssh rw - fuse.sshfs ann@server: rw
27 22 0:24 / /over rw - nfs server:/x rw
28 27 0:25 / /over rw - tmpfs tmpfs rw
29 22 0:26 / /under rw - tmpfs tmpfs rw
30 29 0:27 / /under rw - 9p host rw
31 22 0:28 / /local/fuse rw - fuse.encfs encfs rw
cut short
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", None),
        ("/data", None),
        ("/home", "nfs4"),
        ("/home/bob/deep/er", "nfs4"),
        ("/home/ann", None),
        ("/home/ann/x", None),
        ("/home/anna", "nfs4"),
        ("/homes", None),
        ("/mnt/with blank\\and/x", "cifs"),
        ("/ssh/x", "fuse.sshfs"),
        ("/over/x", None),
        ("/under/x", "9p"),
        ("/local/fuse/x", None),
    ],
)
def test_the_longest_and_last_mount_point_above_a_directory_counts(directory: str, kind: str | None) -> None:
    assert shared_file_system(Path(directory), MOUNTINFO) == kind


def test_nothing_is_known_where_the_kernel_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "mountinfo"
    monkeypatch.setattr("llmbatch.files.mounts._MOUNTINFO", told)
    assert shared_file_system_of(tmp_path) is None
    told.write_text("22 1 0:9 / / rw - nfs4 server:/ rw\n")
    assert shared_file_system_of(tmp_path) == "nfs4"
