"""Which folders may be read, who may do what, and what is kept of what people upload."""

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neurflow_engine import access, demo, uploads
from neurflow_engine.access import Person, Role
from neurflow_engine.class_names import read_class_map
from neurflow_engine.config import ModelConfig
from neurflow_engine.errors import AccessError, DataError, InputError, ModelError, RunError
from neurflow_engine.images import open_image, scan
from neurflow_engine.models import load_classifier, read_checkpoint
from neurflow_engine.store import Workspace

OUTSIDE = "lies outside of the folders that may be read here"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The one folder that may be read."""
    folder = tmp_path / "open"
    folder.mkdir()
    monkeypatch.setenv(access.ROOTS, str(folder))
    return folder


@pytest.fixture
def secret(tmp_path) -> Path:
    """A folder beside it, with a picture in a class folder."""
    (tmp_path / "closed" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "closed" / "cat" / "secret.png")
    return tmp_path / "closed"


class TestFolders:
    def test_everything_may_be_read_where_no_root_is_named(self, secret, monkeypatch):
        monkeypatch.delenv(access.ROOTS, raising=False)
        assert len(scan(secret).images) == 1

    def test_nothing_but_the_products_own_where_none_is_set(self, secret, workspace, monkeypatch):
        monkeypatch.setenv(access.ROOTS, "")
        with pytest.raises(AccessError, match="none is set"):
            scan(secret)
        for own in (workspace.demo_folder / "images", workspace.uploads_folder / "x.png", demo.MODEL_FOLDER):
            access.check_readable(own, "Folder")

    def test_the_rest_of_the_workspace_is_not_for_everybody(self, workspace, monkeypatch):
        monkeypatch.setenv(access.ROOTS, "")
        for path in (workspace.root, workspace.root / "labels.sqlite", workspace.root / "demo" / ".." / "jobs"):
            with pytest.raises(AccessError, match=OUTSIDE):
                access.check_readable(path, "Folder")

    def test_a_folder_under_a_root_is_read(self, root, secret):
        secret.rename(root / "photos")
        assert len(scan(root / "photos").images) == 1

    @pytest.mark.parametrize("way", ["/etc", "closed", "open/../closed", "open/link", "open/link/cat", "opener"])
    def test_no_way_leads_out_of_the_roots(self, root, secret, way):
        (root / "link").symlink_to(secret)
        (root.parent / "opener").mkdir()  # begins as the root's name does
        with pytest.raises(AccessError, match=OUTSIDE):
            scan(root.parent / way)

    def test_a_refusal_does_not_tell_what_is_there(self, root, secret):
        there, nowhere = str(secret), str(secret.parent / "nowhere")
        said = []
        for path in (there, nowhere):
            with pytest.raises(AccessError) as refused:
                scan(path)
            said.append(str(refused.value).replace(path, "PATH"))
        assert said[0] == said[1]

    def test_a_link_to_an_image_outside_is_left_out_and_named(self, root, secret):
        Image.new("RGB", (8, 8), "blue").save(root / "own.png")
        (root / "leak.png").symlink_to(secret / "cat" / "secret.png")
        found = scan(root)
        assert [image.path for image in found.images] == ["own.png"]
        assert [(file.path, file.reason) for file in found.skipped] == [("leak.png", "is a link that leads out of the data folder")]

    def test_an_image_that_became_a_link_since_is_not_opened(self, root, secret):
        image = root / "own.png"
        Image.new("RGB", (8, 8), "blue").save(image)
        assert scan(root).images
        image.unlink()
        image.symlink_to(secret / "cat" / "secret.png")
        with pytest.raises(AccessError, match=OUTSIDE):
            open_image(image)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt.tar"])
    def test_a_checkpoint_outside_is_not_opened_nor_one_that_is_a_link(self, root, secret, suffix):
        torch.save({"weight": torch.zeros(1)}, secret / f"weights{suffix}")
        (root / f"link{suffix}").symlink_to(secret / f"weights{suffix}")
        for path in (secret / f"weights{suffix}", root / f"link{suffix}"):
            with pytest.raises(AccessError, match=OUTSIDE):
                read_checkpoint(path)

    def test_a_class_map_outside_shows_none_of_its_lines(self, root, secret):
        (secret / "passwords.txt").write_text("hunter2")
        (root / "names.txt").symlink_to(secret / "passwords.txt")
        for path in (secret / "passwords.txt", root / "names.txt"):
            with pytest.raises(AccessError, match=OUTSIDE) as refused:
                read_class_map(path, 1)
            assert "hunter2" not in str(refused.value)

    @pytest.mark.parametrize("prefix", ["local-dir:", "LOCAL-DIR:", "Local-Dir:"])
    def test_a_model_folder_outside_is_not_opened(self, root, secret, prefix):
        (secret / "config.json").write_text("{}")
        with pytest.raises(AccessError, match=OUTSIDE):
            load_classifier(ModelConfig(name=f"{prefix}{secret}"), "cpu")

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
    def test_a_model_folder_does_not_lead_out_by_its_files(self, root, secret, file):
        model = root / "model"
        model.mkdir()
        for part in demo.MODEL_FOLDER.iterdir():
            (secret / part.name).write_bytes(part.read_bytes())
            (model / part.name).write_bytes(part.read_bytes())
        assert load_classifier(ModelConfig(name=f"local-dir:{model}"), "cpu").n_classes == len(demo.CLASSES)
        (model / file).unlink()
        (model / file).symlink_to(secret / file)
        with pytest.raises(AccessError, match=OUTSIDE):
            load_classifier(ModelConfig(name=f"local-dir:{model}"), "cpu")

    def test_a_run_folder_outside_is_not_opened(self, root, secret, workspace):
        (secret / "manifest.json").write_text(json.dumps({"schema": 1, "run": "x"}))
        for path in (secret, f"{workspace.root}/runs/../../closed", os.path.relpath(secret)):
            with pytest.raises(AccessError, match=OUTSIDE):
                workspace.open_run(path)

    @pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b"])
    def test_what_can_be_no_path_is_one_sentence(self, path):
        with pytest.raises(InputError, match="is no path"):
            access.absolute(path)

    @given(parts=st.lists(st.sampled_from(["..", ".", "open", "closed", "link", "cat", "", "~", "link/.."]), max_size=6))
    def test_whatever_is_put_together_stays_inside(self, tmp_path_factory, parts):
        base = tmp_path_factory.mktemp("base")
        (base / "open").mkdir()
        (base / "closed" / "cat").mkdir(parents=True)
        (base / "open" / "link").symlink_to(base / "closed")
        path = os.path.join(base, "open", *(part for part in parts))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(access.ROOTS, str(base / "open"))
            try:
                access.check_readable(path, "Folder")
            except AccessError:
                assert not Path(os.path.realpath(path)).is_relative_to(base / "open")
            else:
                assert Path(os.path.realpath(path)).is_relative_to(base / "open")


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc", "a/b", ".hidden", "a\0b", "a\nb", "x" * 300, "runs/../x"])
def test_an_id_is_no_path(workspace, name):
    for opened in (workspace.run, workspace.open_evaluation, workspace.open_debug_report):
        with pytest.raises(RunError, match="There is no"):
            opened(name)


class TestPeople:
    @pytest.mark.parametrize(
        ("reviewers", "viewers", "name", "role"),
        [
            ("ana@lab.org", "", "ana@lab.org", Role.REVIEWER),
            ("ana@lab.org", "", "Ana@Lab.org", Role.REVIEWER),
            ("ana@lab.org, @team.org", "*", "bo@team.org", Role.REVIEWER),
            ("ana@lab.org", "*", "bo@lab.org", Role.VIEWER),
            ("ana@lab.org", "@lab.org", "bo@lab.org", Role.VIEWER),
            ("ana@lab.org", "ana@lab.org", "ana@lab.org", Role.REVIEWER),
            ("*", "", "anybody", Role.REVIEWER),
        ],
    )
    def test_lists_say_who_may_what(self, monkeypatch, reviewers, viewers, name, role):
        monkeypatch.setenv(access.REVIEWERS, reviewers)
        monkeypatch.setenv(access.VIEWERS, viewers)
        assert access.signed_in(name) == Person(name, role)

    @pytest.mark.parametrize(
        "name", ["bo@lab.org", "ana@lab.org.evil.com", "xana@lab.org", "ana@lab.or\u212a".replace("\u212a", "g\u0301"), "@lab.org x"]
    )
    def test_who_is_in_no_list_is_refused(self, monkeypatch, name):
        monkeypatch.setenv(access.REVIEWERS, "ana@lab.org")
        monkeypatch.delenv(access.VIEWERS, raising=False)
        with pytest.raises(AccessError):
            access.signed_in(name)

    def test_a_letter_that_folds_to_another_is_somebody_else(self, monkeypatch):
        monkeypatch.setenv(access.REVIEWERS, "mark@lab.org")
        with pytest.raises(AccessError, match="may not use this server"):
            access.signed_in("mar\u212a@lab.org")  # the Kelvin sign, whose small letter is k

    @pytest.mark.parametrize("name", [None, "", 5, "a b@lab.org", "a\n@lab.org", "x" * 201, "a\u202eb", ["ana@lab.org"]])
    def test_what_is_no_name_is_refused_also_where_all_are_let_in(self, monkeypatch, name):
        monkeypatch.setenv(access.REVIEWERS, "*")
        with pytest.raises(AccessError, match="no e-mail address"):
            access.signed_in(name)

    def test_nobody_is_let_in_without_a_list(self, monkeypatch):
        monkeypatch.delenv(access.REVIEWERS, raising=False)
        monkeypatch.delenv(access.VIEWERS, raising=False)
        with pytest.raises(AccessError, match=f"{access.VIEWERS} or {access.REVIEWERS}"):
            access.signed_in("ana@lab.org")

    @pytest.mark.parametrize("said", [None, "", "yes", "1", "admin"])
    def test_a_server_that_others_reach_lets_nobody_in_unless_it_is_told_to(self, monkeypatch, said):
        monkeypatch.setenv(access.ANONYMOUS, said) if said is not None else monkeypatch.delenv(access.ANONYMOUS, raising=False)
        with pytest.raises(AccessError, match="can be reached from other machines"):
            access.anonymous()

    def test_a_viewer_may_not_change_anything_and_is_told_whom_to_ask(self):
        access.LOCAL.check_reviewer()
        with pytest.raises(AccessError, match=r"bo@lab.org is a viewer and may look.*NEURFLOW_REVIEWERS"):
            Person("bo@lab.org", Role.VIEWER).check_reviewer()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: bytes = b"") -> bytes:
    """A PNG that says that it has this size, whatever is in it."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    written = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, kind)
    return content.getvalue()


class TestUploads:
    def test_an_image_is_found_again_by_its_owner_alone(self, tmp_path):
        name = uploads.keep(tmp_path, "ana", "../../own.JPG", picture(kind="JPEG"))
        assert uploads.find(tmp_path, "ana", name).read_bytes() == picture(kind="JPEG")
        assert name.endswith(".jpg")
        for owner in ("bo", "", "../ana"):
            with pytest.raises(DataError, match="uploaded in another browser"):
                uploads.find(tmp_path, owner, name)

    @pytest.mark.parametrize(
        "name", ["../x.png", "/etc/passwd", "", ".", "..", f"{'0' * 24}.txt", f"../{'0' * 24}.png", f"{'0' * 24}.png\n"]
    )
    def test_no_other_file_is_found(self, tmp_path, name):
        (tmp_path / "x.png").write_bytes(picture())
        with pytest.raises(DataError, match="uploaded in another browser"):
            uploads.find(tmp_path, "ana", name)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is not an image"),
            (b"<svg onload=alert(1)>", "is not an image"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "is not an image"),
            (picture()[:-30], "is damaged"),
            (png(60_000, 60_000), "pixels"),  # 10 GB, if it were unpacked
            (png(7100, 7100, rows=zlib.compress(bytes(1000))), "more than 50,000,000 pixels"),
            (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20))), rows=zlib.compress(bytes(200))), "is not an image|is damaged"),
            (bytes((uploads.MEGABYTES << 20) + 1), "more than the 20 MB that can be uploaded"),
        ],
        ids=[
            "empty",
            "svg",
            "postscript",
            "cut off",
            "pixels that fill memory",
            "too many pixels",
            "text that unpacks to 80 MB",
            "too large",
        ],
    )
    def test_what_could_do_harm_is_refused_in_one_sentence_and_not_kept(self, tmp_path, content, said):
        with pytest.raises(DataError, match=said) as refused:
            uploads.keep(tmp_path, "ana", "own.png", content)
        assert str(refused.value).startswith("own.png ")
        assert str(tmp_path) not in str(refused.value)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_only_so_many_are_kept_the_newest(self, tmp_path, monkeypatch):
        monkeypatch.setattr(uploads, "OF_ONE", 3)
        monkeypatch.setattr(uploads, "OF_ALL", 5)
        names = []
        for number, colour in enumerate(("red", "green", "blue", "white")):
            names.append(uploads.keep(tmp_path, "ana", "own.png", picture(colour)))
            os.utime(uploads.find(tmp_path, "ana", names[-1]), (number, number))
        assert len(list(tmp_path.glob("*/*"))) == 3
        with pytest.raises(DataError):
            uploads.find(tmp_path, "ana", names[0])
        for colour in ("red", "green", "blue"):
            uploads.keep(tmp_path, "bo", "own.png", picture(colour))
        assert len(list(tmp_path.glob("*/*"))) == 5


class TestArchives:
    def test_a_checkpoint_that_grows_when_it_is_unpacked_is_refused(self, tmp_path):
        bomb = tmp_path / "bomb.pt"
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(300 << 20))
        assert bomb.stat().st_size < 1 << 20
        with pytest.raises(ModelError, match=r"unpacks to 300 MB; refused"):
            read_checkpoint(bomb)

    def test_a_checkpoint_of_pytorch_is_none(self, tmp_path):
        torch.save({"weight": torch.zeros(100, 100)}, tmp_path / "weights.pt")
        assert read_checkpoint(tmp_path / "weights.pt")["weight"].shape == (100, 100)

    def test_a_class_map_without_end_is_not_read(self, tmp_path):
        with open(tmp_path / "names.txt", "wb") as file:
            file.truncate(11 << 20)
        with pytest.raises(ModelError, match="more than 10 MB"):
            read_class_map(tmp_path / "names.txt", 2)


def test_the_workspace_of_a_command_is_the_default_one_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.delenv(access.WORKSPACE, raising=False)
    with access.using_workspace(tmp_path):
        assert Workspace().root == tmp_path
    assert access.WORKSPACE not in os.environ
