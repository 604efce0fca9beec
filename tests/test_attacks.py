"""What somebody who means ill can send to the app and to the command line, over the wire as it is, and the sentence that comes back."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from browsing import serving
from PIL import Image
from protocol import Tab
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.exceptions import InvalidStatus

from neurflow_engine import access, demo
from neurflow_engine.__main__ import main
from neurflow_engine.edits import EditStore
from neurflow_engine.jobs import Jobs
from neurflow_engine.labels import LabelStore
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Workspace
from neurflow_engine.verdicts import VerdictStore
from pages.ui import session
from tests import huge

pytestmark = pytest.mark.slow

PAGES = tuple(session._KEPT)
EXPOSED = ("--server.address", "0.0.0.0")
SECRET = "root-of-all-evil-4711"
HOSTILE = ("../../../etc/passwd", "/etc", "..", "a\0b", "9" * 5000, "x" * 30_000, "<script>alert(1)</script>", "²,-1,1e9,٣,,")
MADE_UP = (
    None,
    5,
    "x",
    [1],
    {"selection": 5},
    {"selection": []},
    {"selection": {"node": [], "edge": {"a": 1}}},
    {"selection": {"node": "../../x", "edge": "x>y"}},
    {"picked": [1]},
    {"picked": {"row": -1, "column": 10**9}},
    {"picked": {"row": "a", "column": None}},
    {"picked": {"id": ["x"], "add": {}}},
    {"picked": {"id": "../../etc/passwd"}},
    {"draft": 5, "author": {"a": 1}},
    {"draft": {"group": [], "version": "x", "text": 5}, "author": "x" * 100_000},
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """A workspace with a run, a debug report and a few names."""
    workspace = Workspace(tmp_path_factory.mktemp("attacked") / "workspace")
    run = huge.write(workspace, n_groups=20, n_images=60)
    with closing(LabelStore.for_workspace(workspace.root)) as labels:
        for group in run.circuit.groups[1:6]:
            labels.propose(run.id, group.id, f"a name for {group.id}", "somebody")
    return workspace


@pytest.fixture(scope="module")
def run(workspace):
    (summary,) = workspace.runs()
    return workspace.run(summary.id)


@pytest.fixture(scope="module")
def app(workspace, tmp_path_factory) -> Iterator[str]:
    """The app on this computer alone."""
    with serving(workspace.root) as address:
        yield address


def exceptions(tab: Tab) -> list[str]:
    """What a page shows where nobody foresaw what happened."""
    return [str(one) for one in tab.elements if one.WhichOneof("type") == "exception" or "Something went wrong" in str(one)]


def sentences(tab: Tab) -> list[str]:
    """The errors on a page as people read them."""
    return [one.alert.body.replace("\\", "") for one in tab.elements if one.WhichOneof("type") == "alert"]


def kept(workspace: Workspace) -> dict:
    """Everything that a workspace holds, but its log and what is being written while somebody looks."""
    run_ids = [run.id for run in workspace.runs()]
    found: dict = {"jobs": [job.id for job in Jobs(workspace.root).all()]}
    with closing(LabelStore.for_workspace(workspace.root)) as labels:
        found["labels"] = labels.export_rows()
    with closing(VerdictStore.for_workspace(workspace.root)) as verdicts:
        reports = [report.id for run in run_ids for report in workspace.debug_reports(run)]
        found["verdicts"] = [verdicts.for_run(run, report) for run in run_ids for report in (None, *reports)]
    with closing(EditStore.for_workspace(workspace.root)) as edits:
        found["edits"] = [edits.history(run) for run in run_ids]
    files = (path for path in workspace.root.rglob("*") if path.is_file() and ".sqlite" not in path.name and path.suffix != ".lock")
    return found | {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if not {"jobs", "logs"} & set(path.parts)}


# who is asked


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_a_forged_host_is_refused(app, host):
    with pytest.raises(InvalidStatus, match="403"):
        Tab(app, host=host)


def test_a_page_of_another_site_cannot_connect(app):
    with pytest.raises(InvalidStatus, match="403"):
        Tab(app, origin="http://evil.example")


def test_a_server_that_others_reach_shows_nothing_without_sign_in(workspace, run):
    with serving(workspace.root, *EXPOSED) as address:
        for page in PAGES:
            with Tab(address) as tab:
                shown = tab.open(page, run=run.id)
                assert sentences(tab) == [
                    "This server can be reached from other machines, and nobody has to sign in; set up sign-in as the README says under "
                    "Sharing, or let in everybody who reaches it with NEURFLOW_ANONYMOUS=viewer or NEURFLOW_ANONYMOUS=reviewer."
                ]
                assert run.circuit.target_name not in shown
                assert run.id not in shown


def test_a_name_that_a_proxy_answers_to_exposes_a_server_too(workspace, run):
    names = "localhost 127.0.0.1 team.example"
    with serving(workspace.root, STREAMLIT_SERVER_ALLOWED_HOSTS=names) as address, Tab(address, host="team.example") as tab:
        assert run.id not in tab.open("circuit", run=run.id)
        assert "can be reached from other machines" in sentences(tab)[0]


class TestProxy:
    """Sign-in by a proxy in front of the app."""

    PASSWORD = "a-secret-of-the-proxy"
    NAMED, SHOWN = ("X-Forwarded-Email", "ana@lab.org"), ("X-Neurflow-Secret", PASSWORD)

    @pytest.fixture(scope="class")
    def behind(self, workspace) -> Iterator[str]:
        said = {"NEURFLOW_USER_HEADER": "X-Forwarded-Email", "NEURFLOW_PROXY_SECRET": self.PASSWORD, "NEURFLOW_REVIEWERS": "ana@lab.org"}
        with serving(workspace.root, *EXPOSED, **said) as address:
            yield address

    @pytest.mark.parametrize(
        ("headers", "said"),
        [
            ([], "This server is to be used through its sign-in only"),
            ([NAMED], "This server is to be used through its sign-in only"),
            ([NAMED, ("X-Neurflow-Secret", "")], "This server is to be used through its sign-in only"),
            ([NAMED, ("X-Neurflow-Secret", PASSWORD.upper())], "This server is to be used through its sign-in only"),
            ([NAMED, SHOWN, ("X-Neurflow-Secret", "x")], "This server is to be used through its sign-in only"),
            ([SHOWN], "Sign in to use this server."),
            ([NAMED, ("X-Forwarded-Email", "bo@lab.org"), SHOWN], "Sign in to use this server."),
            ([("X-Forwarded-Email", "bo@lab.org"), SHOWN], "bo@lab.org may not use this server"),
            ([("X-Forwarded-Email", ""), SHOWN], "no e-mail address that can be used"),
        ],
    )
    def test_a_name_that_the_proxy_did_not_send_alone_lets_nobody_in(self, behind, run, headers, said):
        with Tab(behind, headers) as tab:
            shown = tab.open("circuit", run=run.id)
            assert len(sentences(tab)) == 1
            assert said in sentences(tab)[0]
            assert run.id not in shown

    def test_who_signed_in_is_the_author_whatever_they_type(self, behind, workspace, run):
        group = run.circuit.groups[1].id
        with Tab(behind, [self.NAMED, self.SHOWN]) as tab:
            shown = tab.open("labels", run=run.id, group=group)
            assert "Your name" not in shown
            tab.click(f"approve_{group}")
        with closing(LabelStore.for_workspace(workspace.root)) as labels:
            assert labels.get(run.id, group).author == "ana@lab.org"

    @pytest.mark.parametrize("secret", ["", "short"])
    def test_a_header_that_anybody_could_write_is_no_sign_in(self, workspace, run, secret):
        said = {"NEURFLOW_USER_HEADER": "X-Forwarded-Email", "NEURFLOW_PROXY_SECRET": secret, "NEURFLOW_REVIEWERS": "*"}
        with serving(workspace.root, **said) as address, Tab(address, [self.NAMED, ("X-Neurflow-Secret", secret)]) as tab:
            assert run.id not in tab.open("circuit", run=run.id)
            assert "anybody could write that header" in sentences(tab)[0]


# what is sent


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_parameter_of_the_address_leads_anywhere_else(app, run, page, text):
    for also in ({}, {"run": run.id}):
        with Tab(app) as tab:
            shown = tab.open(page, **dict.fromkeys(session._KEPT[page], text) | also)
            assert tab.elements
            assert not exceptions(tab)
            assert "root:x:0" not in shown
            assert all(len(sentence) < 1500 for sentence in sentences(tab))


@pytest.mark.parametrize("page", PAGES)
def test_made_up_values_of_components_change_nothing(app, workspace, run, page):
    before = kept(workspace)
    with Tab(app) as tab:
        tab.open(page, run=run.id)
        components = [one.bidi_component.id for one in tab.elements if one.WhichOneof("type") == "bidi_component"]
        assert components
        for component in components:
            for value in MADE_UP:
                tab.send(WidgetState(id=component, json_value=json.dumps(value)))
                assert not exceptions(tab), value
    assert kept(workspace) == before


@pytest.mark.parametrize("rows", ["5", '{"selection": 5}', '{"selection": {"rows": 5}}', '{"selection": {"rows": [99999, -1, "a", null]}}'])
def test_made_up_rows_of_tables_are_passed_over(app, run, rows):
    for page, view in (("analyze", {}), ("labels", {"view": "Table"})):
        with Tab(app) as tab:
            tab.open(page, run=run.id, **view)
            tables = [one.dataframe.id for one in tab.elements if one.WhichOneof("type") == "dataframe" and one.dataframe.id]
            assert tables
            for table in tables:
                tab.send(WidgetState(id=table, string_value=rows))
                assert not [one for one in exceptions(tab) if "Something went wrong" in one]


@pytest.mark.parametrize("message", [b"", b"\xff" * 100, b"\x00"])
def test_a_message_that_is_none_ends_the_session_it_came_from_alone(app, run, message):
    with Tab(app) as tab, Tab(app) as other:
        other.open("circuit", run=run.id)
        tab._socket.send(message)
        assert run.circuit.target_name in other.open("circuit", run=run.id)


# uploads


def refused(request) -> int:
    with pytest.raises(HTTPError) as answer, urlopen(request):
        pass
    return answer.value.code


def too_large(request) -> None:
    """Refused for its size; the server may also hang up while it is still being sent."""
    with pytest.raises((HTTPError, ConnectionError, URLError)) as answer, urlopen(request):
        pass
    assert getattr(answer.value, "code", 413) == 413


def test_an_upload_of_100_megabytes_is_refused(app, run):
    with Tab(app) as tab:
        tab.open("debug", run=run.id)
        too_large(tab.upload(bytes(100 << 20)))


def test_an_upload_that_hides_its_size_is_refused(app, run):
    with Tab(app) as tab:
        tab.open("debug", run=run.id)
        request = tab.upload(bytes(30 << 20))
        body, request.data = request.data, None
        request.data = (body[start : start + (1 << 20)] for start in range(0, len(body), 1 << 20))  # sent in chunks, its length unsaid
        too_large(request)


@pytest.mark.parametrize("token", ["", "2|00000000|00000000000000000000000000000000|1700000000"])
def test_an_upload_from_another_site_is_refused(app, run, token):
    with Tab(app) as tab:
        tab.open("debug", run=run.id)
        assert refused(tab.upload(b"x", token=token)) == 403


def test_an_upload_to_a_session_that_is_not_there_is_refused(app, run):
    with Tab(app) as tab:
        tab.open("debug", run=run.id)
        assert refused(tab.upload(b"x", session="00000000-0000-0000-0000-000000000000")) == 400


def test_nobody_sees_the_upload_of_another_browser(app, workspace, run, tmp_path):
    Image.new("RGB", (40, 40), "magenta").save(tmp_path / "own.png")
    with Tab(app) as tab, Tab(app) as other:
        tab.open("debug", run=run.id)
        with urlopen(tab.upload((tmp_path / "own.png").read_bytes())) as answer:
            assert answer.status == 204
        state = WidgetState(id=tab.widget("upload"))
        uploaded = state.file_uploader_state_value.uploaded_file_info.add()
        uploaded.file_id, uploaded.name, uploaded.size = "own-file", "own.png", 1
        tab.send(state)
        name = next(path.name for path in workspace.uploads_folder.rglob("*.png"))
        assert "As the model sees it." in tab.open("debug", run=run.id, image=f"upload:{name}")
        shown = other.open("debug", run=run.id, image=f"upload:{name}")
        assert "As the model sees it." not in shown
        assert "This image was uploaded in another browser" in sentences(other)[0]


# viewers

VIEWS = (
    [(page, {}) for page in PAGES]
    + [("labels", {"view": view}) for view in ("Table", "Proposals", "Files")]
    + [("circuit", {"tab": "Trust"})]
)


def buttons(tab: Tab) -> list[tuple[str, str]]:
    """The id and the name of every button on the page."""
    return [(one.button.id, one.button.label) for one in tab.elements if one.WhichOneof("type") == "button"]


@pytest.fixture(scope="module")
def for_viewers(workspace) -> Iterator[str]:
    with serving(workspace.root, *EXPOSED, NEURFLOW_ANONYMOUS="viewer") as address:
        yield address


@pytest.mark.parametrize(("page", "view"), VIEWS, ids=str)
def test_a_viewer_who_presses_every_button_there_is_changes_nothing(for_viewers, workspace, run, page, view):
    group = run.circuit.inputs(f"{LOGITS}/0")[0].source
    before = kept(workspace)
    with Tab(for_viewers) as tab:
        tab.open(page, run=run.id, group=group, **view)
        assert not exceptions(tab)
        for button, name in buttons(tab):
            tab.open(page, run=run.id, group=group, **view)
            tab.send(WidgetState(id=button, trigger_value=True))
            assert not exceptions(tab), name
    assert kept(workspace) == before


def test_a_greyed_button_that_is_pressed_all_the_same_does_nothing(for_viewers, workspace, run):
    group, before = run.circuit.groups[2].id, kept(workspace)
    with Tab(for_viewers) as tab:
        tab.open("labels", run=run.id, group=group)
        (button,) = (one.button for one in tab.elements if one.WhichOneof("type") == "button" and f"approve_{group}" in one.button.id)
        assert (button.disabled, button.help) == (True, "Viewers may look; this needs a reviewer.")
        tab.click(f"approve_{group}")
        assert not exceptions(tab)
    assert kept(workspace) == before


def test_the_same_button_does_something_for_a_reviewer(app, workspace, run):
    group, before = run.circuit.groups[3].id, kept(workspace)
    with Tab(app) as tab:
        tab.open("labels", run=run.id, group=group)
        tab.click(f"approve_{group}")
    assert kept(workspace)["labels"] != before["labels"]


# paths in every field


@pytest.fixture
def closed(tmp_path, monkeypatch) -> Path:
    """A folder with everything that could be asked for, outside of the one folder that may be read."""
    (tmp_path / "open").mkdir()
    monkeypatch.setenv(access.ROOTS, str(tmp_path / "open"))
    outside = tmp_path / "closed"
    shutil.copytree(demo.MODEL_FOLDER, outside / "model")
    (outside / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(outside / "images" / "cat" / "x.png")
    (outside / "names.txt").write_text(SECRET)
    (outside / "labels.json").write_text(SECRET)
    (outside / "manifest.json").write_text(json.dumps({"schema": 1, "run": SECRET}))
    (tmp_path / "open" / "link").symlink_to(outside)
    return outside


MODEL = ["--model", f"local-dir:{demo.MODEL_FOLDER}"]


@pytest.mark.parametrize("way", ["{closed}", "{closed}/../open/link", "{closed}/../open/../closed"])
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", *MODEL, "--data", "WAY/images"],
        ["analyze", *MODEL, "--data", "WAY/images", "--target", "0"],
        ["evaluate", "--model", "local-dir:WAY/model", "--data", "DATA"],
        ["evaluate", "--model", "resnet18", "--checkpoint", "WAY/model/model.safetensors", "--data", "DATA"],
        ["evaluate", *MODEL, "--class-map", "WAY/names.txt", "--data", "DATA"],
        ["evaluate", *MODEL, "--merge", "WAY/labels.json", "--data", "DATA"],
        ["debug", "RUN", "--images", "WAY/images"],
        ["debug", "RUN", "--images", "DATA", "WAY/images"],
        ["debug", "RUN", "--images", "WAY/images", "--mask", "GROUP"],
        ["preview", "RUN", "--images", "WAY/images", "--mask", "GROUP"],
        ["circuit", "WAY"],
        ["labels", "import", "--in", "WAY/labels.json"],
    ],
    ids=lambda command: " ".join(command)[:60],
)
def test_no_flag_of_the_command_line_reads_outside_of_the_roots(workspace, run, closed, way, command, capsys):
    data = closed.parent / "open" / "photos"
    (data / "cat").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(data / "cat" / "x.png")
    names = {"RUN": run.id, "DATA": str(data), "GROUP": run.circuit.groups[1].id}
    written = [names.get(part, part).replace("WAY", way.format(closed=closed)) for part in command]
    assert main([*written, "--workspace", str(workspace.root)]) == 2
    said = capsys.readouterr()
    assert "lies outside of the folders that may be read here" in said.err.splitlines()[-1]
    assert SECRET not in said.out + said.err


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", "a/b", "x\ny"])
def test_no_id_on_the_command_line_is_a_path(workspace, run, name, capsys):
    group = run.circuit.groups[1].id
    for command in (
        ["circuit", name],
        ["debug", run.id, "--images", str(run.data_root), "--mask", group, "--report", name],
        ["debug", run.id, "--images", str(run.data_root), "--mask", name],
        ["export", run.id, "--format", "fix", "--groups", name, "--out", str(workspace.root / "x.json")],
    ):
        assert main([*command, "--workspace", str(workspace.root)]) == 2
        assert len(capsys.readouterr().err.splitlines()[-1]) < 1000


@pytest.fixture(scope="module")
def with_roots(workspace, tmp_path_factory) -> Iterator[str]:
    with serving(workspace.root, NEURFLOW_ROOTS=str(tmp_path_factory.mktemp("open"))) as address:
        yield address


@pytest.mark.parametrize("path", ["/etc", "~root", "~nobody-of-this-name", "/proc/self/environ", "../../../etc", "a\0b"])
def test_no_field_of_the_pages_reads_outside_of_the_roots(with_roots, workspace, run, path):
    before = Jobs(workspace.root).all()
    with Tab(with_roots) as tab:
        tab.open("analyze", run=run.id)
        kinds = {
            one.button_group.id: [option.content for option in one.button_group.options]
            for one in tab.elements
            if one.WhichOneof("type") == "button_group"
        }
        kind = next(name for name in kinds if name.endswith("image_kind"))
        chosen = WidgetState(id=kind)
        chosen.string_array_value.data.append("Folder")
        tab.send(chosen)
        typed = WidgetState(id=tab.widget("image_folder"), string_value=path)
        tab.send(chosen, typed)
        if not sentences(tab):
            tab.send(chosen, typed, WidgetState(id=tab.widget("evaluate"), trigger_value=True))
        assert "lies outside of the folders that may be read here" in sentences(tab)[0] or "is no path" in sentences(tab)[0]
        tab.open("debug", run=run.id)
        typed = WidgetState(id=tab.widget("other_folder"), string_value=path)
        tab.send(typed)
        tab.send(typed, WidgetState(id=tab.widget("evaluate_folder"), trigger_value=True))
        assert "lies outside of the folders that may be read here" in sentences(tab)[0] or "is no path" in sentences(tab)[0]
    assert Jobs(workspace.root).all() == before


def test_a_server_that_others_reach_reads_nothing_that_was_not_named(workspace, run):
    with serving(workspace.root, *EXPOSED, NEURFLOW_ANONYMOUS="reviewer") as address, Tab(address) as tab:
        tab.open("debug", run=run.id)
        typed = WidgetState(id=tab.widget("other_folder"), string_value=str(run.data_root))
        tab.send(typed)
        tab.send(typed, WidgetState(id=tab.widget("evaluate_folder"), trigger_value=True))
        assert "(none is set)" in sentences(tab)[0]


def test_secrets_are_in_no_log_no_export_and_no_run(workspace, run, tmp_path):
    """A label job that the server refuses, with a key, a password in the address and one of the database."""
    log, key = tmp_path / "server.log", "sk-4711-never-to-be-seen"
    said = {
        "NEURFLOW_LLM_MODEL": "some-model",
        "OPENAI_API_KEY": key,
        "OPENAI_BASE_URL": f"http://user:{key}@127.0.0.1:9/v1",
        "NEURFLOW_LLM_RETRIES": "0",
        "NEURFLOW_PROXY_SECRET": key,
    }
    with serving(workspace.root, log=log, **said) as address, Tab(address) as tab:
        shown = tab.open("labels", run=run.id, view="Proposals")
        shown += tab.click("propose")
        jobs = Jobs(workspace.root)
        newest = jobs.all()[0]
        while jobs.get(newest.id).active:
            pass
        shown += tab.open("labels", run=run.id, view="Proposals")
        assert newest.kind == "label"
        assert key not in shown
    assert "127.0.0.1:9" in "".join(path.read_text(errors="replace") for path in newest.folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        own = ["--workspace", str(workspace.root), "--out"]
        assert main(["labels", "export", run.id, *own, str(tmp_path / "labels.json")]) == 0
        assert main(["export", run.id, "--format", "circuit-html", *own, str(tmp_path / "circuit.html")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"server.log", "labels.json", "circuit.html"}
    for path in [*tmp_path.iterdir(), *(path for path in workspace.root.rglob("*") if path.is_file())]:
        assert key.encode() not in path.read_bytes(), path
