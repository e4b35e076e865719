import errno
import os
from pathlib import Path

import pytest

from anyloop.cli.exits import CommandError
from tests.faults.small_disk import SmallDisk


def test_a_full_disk_takes_nothing_until_the_block_ends(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        with pytest.raises(CommandError, match="run as root"), SmallDisk(tmp_path / "disk", 1):
            pass
        return
    with SmallDisk(tmp_path / "disk", 1) as disk:
        kept = disk.folder / "kept"
        kept.write_bytes(bytes(4096))
        with disk.full():
            with pytest.raises(OSError) as refused:
                (disk.folder / "new").write_bytes(b"x")
            assert refused.value.errno == errno.ENOSPC
        (disk.folder / "new").write_bytes(bytes(2**19))
        assert kept.read_bytes() == bytes(4096)
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_disk_left_by_a_killed_run_is_replaced(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        with pytest.raises(CommandError, match="run as root"), SmallDisk(tmp_path, 1):
            pass
        return
    left = SmallDisk(tmp_path, 1).__enter__()
    (left.folder / "old").touch()
    with SmallDisk(tmp_path, 1) as disk:
        assert list(disk.folder.iterdir()) == []
    assert not tmp_path.is_mount()
