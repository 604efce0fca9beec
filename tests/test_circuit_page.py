"""The Circuit page without a browser: edits by hand change what is shown and handed over, for everybody, and can be taken back."""

import json
import shutil

import pytest
from test_pages import in_address, opened, written

from neurflow_engine.edits import suggested_parts
from neurflow_engine.labels import LabelStore
from pages.ui import cached


@pytest.fixture
def run(demo_run, workspace):
    """The demo's run in a workspace of this test's own."""
    shutil.copytree(demo_run.folder, workspace.run_folder(demo_run.id))
    return workspace.open_run(demo_run.id)


@pytest.fixture
def pair(run) -> tuple[str, str]:
    """Two groups of the lowest layer."""
    return tuple(group.id for group in run.circuit.groups_of(run.circuit.layers[-1])[:2])


def shown(app) -> set[str]:
    """The groups that can be found, so those of the circuit as it is shown."""
    return {option.rpartition(" · ")[2] for option in app.selectbox(key="find").options}


def downloaded(run) -> dict:
    """What the page hands over as JSON."""
    from neurflow_engine.report import export

    return json.loads(export(run, "json", {}, cached.edits().of(run.id)))


def test_a_hidden_group_is_gone_until_the_edit_is_undone(run, pair):
    app = opened("circuit", run=run.id, group=pair[0])
    assert "Edited by hand" not in written(app)
    app.button(key="hide_it").click().run()
    assert "Edited by hand</b>: 1 hidden" in written(app)
    assert pair[0] not in shown(app)
    assert pair[0] not in {group["id"] for group in downloaded(run)["groups"]}
    assert in_address(app, "group") is None
    somebody_else = opened("circuit", run=run.id)
    assert pair[0] not in shown(somebody_else)
    somebody_else.button(key="undo_edit").click().run()
    assert pair[0] in shown(somebody_else)
    assert "Edited by hand" not in written(somebody_else)


def test_a_link_to_a_hidden_or_merged_group_leads_on(run, pair):
    store = cached.edits()
    store.hide(run, pair[0], "ana", 0)
    app = opened("circuit", run=run.id, group=pair[0])
    assert f"Group {pair[0]} is hidden" in written(app)
    app.button(key="show_hidden").click().run()
    assert pair[0] in shown(app)
    store.merge(run, pair, "ana", 2)
    (made,) = store.of(run.id).made
    app = opened("circuit", run=run.id, group=pair[1])
    assert f"Group {pair[1]} was edited" in written(app)
    app.button(key=f"holder_{made}").click().run()
    assert in_address(app, "group") == made


def test_groups_are_merged_and_have_the_names_of_both(run, pair):
    labels = LabelStore.for_workspace(cached.workspace().root)
    labels.edit(run.id, pair[0], "white star", "ana", 0)
    labels.edit(run.id, pair[1], "magenta edge", "ana", 0)
    labels.close()
    cached.edits().merge(run, pair, "ana", 0)
    (made,) = cached.edits().of(run.id).made
    app = opened("circuit", run=run.id, group=made)
    assert "white star + magenta edge" in written(app)
    assert not set(pair) & shown(app)
    assert app.button(key="name_it").disabled
    content = downloaded(run)
    assert made in content["edits"]["made"]
    assert made in {group["id"] for group in content["groups"]}
    assert {end for edge in content["edges"] for end in (edge["source"], edge["target"])} <= {group["id"] for group in content["groups"]}
    app.toggle(key="computed").set_value(True).run()
    assert set(pair) <= shown(app)
    assert made not in shown(app)
    assert not [button for button in app.button if button.key == "merge_it"]
    app.toggle(key="computed").set_value(False).run()
    assert made in shown(app)
    app.button(key="restore_it").click().run()
    assert set(pair) <= shown(app)


def test_a_part_of_a_group_can_be_named_with_the_whole_but_not_silenced_by_itself(run):
    group = max(run.circuit.groups_of(run.circuit.layers[1]), key=lambda group: len(group.members))
    cached.edits().split(run, group.id, suggested_parts(run, group), "ana", 0)
    app = opened("circuit", run=run.id, group=f"{group.id}.2")
    assert {f"{group.id}.1", f"{group.id}.2"} <= shown(app)
    assert app.button(key="silence_it").disabled
    assert not app.button(key="name_it").disabled


def test_a_pinned_group_stays_however_few_are_shown(run):
    last = run.circuit.groups[-1].id
    app = opened("circuit", run=run.id, group=last)
    app.button(key="pin_it").click().run()
    scene_limit = opened("circuit", run=run.id, limit="2")
    assert "Shown: 2 of" in written(scene_limit) or "Shown: 3 of" in written(scene_limit)
    assert cached.edits().of(run.id).pinned == [last]
    app.button(key="pin_it").click().run()
    assert cached.edits().of(run.id).pinned == []


def test_an_edit_on_what_somebody_else_changed_is_refused_with_a_sentence(run, pair):
    app = opened("circuit", run=run.id, group=pair[0])
    cached.edits().pin(run, pair[1], "ana", 0)
    app.button(key="hide_it").click().run()
    assert any("ana edited this circuit" in error.value.replace("\\", "") for error in app.error)
    assert cached.edits().of(run.id).hidden == []


def test_fewer_layers_are_shown_on_request(run):
    app = opened("circuit", run=run.id, depth=run.circuit.layers[1])
    count = 1 + len(run.circuit.groups_of(run.circuit.layers[1]))
    assert f"Shown: {count} of {len(run.circuit.groups)} groups" in written(app)
