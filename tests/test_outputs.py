# SPDX-License-Identifier: Apache-2.0
"""What commands write: all of it or nothing, readable by whom the umask says, and nobody's folder lost."""

import json
import os

import pytest

from qvit_hw.errors import UserError
from qvit_hw.outputs import check_replaced, replaced_folder, write_files


@pytest.fixture
def umask():
    """A function that sets the umask; it is put back afterwards."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_follow_the_umask(mask, mode, tmp_path, umask):
    umask(mask)
    write_files({tmp_path / "a": b"a"})
    with replaced_folder(tmp_path / "folder") as folder:
        (folder / "b").write_bytes(b"b")
    for path in (tmp_path / "a", tmp_path / "folder" / "b"):
        assert path.stat().st_mode & 0o777 == mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_files_of_several_folders_are_replaced(tmp_path):
    (tmp_path / "deep").mkdir()
    for content in (b"old", b"new"):
        write_files({tmp_path / "a": content, tmp_path / "deep" / "b": content})
    assert contents(tmp_path) == {"a": b"new", "deep/b": b"new"}


def test_all_files_or_none(tmp_path):
    write_files({tmp_path / "a": b"old"})
    with pytest.raises(FileNotFoundError):
        write_files({tmp_path / "a": b"new", tmp_path / "absent" / "b": b"new"})
    assert contents(tmp_path) == {"a": b"old"}


def test_a_folder_is_replaced_in_full_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "folder"
    with pytest.raises(ZeroDivisionError), replaced_folder(target):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    for name in ("old", "new"):
        with replaced_folder(target) as folder:
            (folder / name).write_text(name)
    with pytest.raises(UserError, match="cannot be written: No such file"), replaced_folder(target):
        (tmp_path / "absent" / "c").write_text("")
    assert contents(tmp_path) == {"deep/folder/new": b"new"}


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path):
    target = tmp_path / "folder"
    check_replaced(target, "index.json", "ours")
    target.mkdir()
    check_replaced(target, "index.json", "ours")
    sentence = r"^Output '.*folder' holds other files and no index: it is left alone\.$"
    for index in ("", "[]", "{}", '{"schema": "theirs"}'):
        (target / "index.json").write_text(index)
        with pytest.raises(UserError, match=sentence):
            check_replaced(target, "index.json", "ours", " and no index")
    (target / "index.json").write_text(json.dumps({"schema": "ours"}))
    check_replaced(target, "index.json", "ours")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(UserError, match=r"^Output '.*link' must be a folder, not a file\.$"):
        check_replaced(link, "index.json", "ours")
