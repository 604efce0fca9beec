"""The Labels page without a browser: decisions, conflicts, filters, several at once, proposals, files. Keys and drafts need a browser."""

import json
import re
import shutil
from html import unescape

import hand_made_labels
import pytest
from streamlit.testing.v1 import AppTest
from test_pages import EVIL, in_address, opened, written

from neurflow_engine.labels import LabelStore
from neurflow_engine.proposals import Outcome, Proposal, ProposalStore
from neurflow_engine.records import LOGITS
from pages.ui import cached, label_scene, show
from pages.ui.label_field import KEY


@pytest.fixture
def run(demo_run, analysed_demo, tmp_path, monkeypatch):
    """The demo's run alone in a workspace of this test's own."""
    workspace = tmp_path / "workspace"
    shutil.copytree(analysed_demo.root / "runs" / demo_run.id, workspace / "runs" / demo_run.id)
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(workspace))
    monkeypatch.delenv("NEURFLOW_LLM_MODEL", raising=False)
    return demo_run


@pytest.fixture
def groups(run) -> list[str]:
    """Ids of the groups that can be named, in the order of the queue."""
    return [group.id for group in run.circuit.groups if group.layer != LOGITS]


@pytest.fixture
def store(run):
    store = LabelStore.for_workspace(cached.workspace().root)
    yield store
    store.close()


@pytest.fixture
def proposed(run) -> dict[str, str]:
    """Wordings on the table by group, with scores."""
    return hand_made_labels.write(run, cached.workspace().root)


def type_name(app: AppTest, group: str, version: int, text: str) -> None:
    """What the browser tells when the field is left."""
    app.session_state[KEY] = {"draft": {"group": group, "version": version, "text": text}}


def said(app: AppTest) -> str:
    """What can be read on the page."""
    return re.sub(r"\s+", " ", unescape(re.sub("<[^>]*>", " ", " ".join(block.proto.body for block in app.get("html")))))


def view(app: AppTest, name: str) -> AppTest:
    return app.segmented_control(key="label_view").set_value(name).run()


class TestReview:
    def test_the_first_group_that_nobody_decided_on_opens(self, run, groups, store):
        store.edit(run.id, groups[0], "star", "ana", 0)
        app = opened("labels", run=run.id)
        assert f"approve_{groups[1]}" in {button.key for button in app.button}
        assert f"1 of {len(groups)} reviewed" in said(app)

    def test_a_proposal_is_approved_with_its_evidence_and_the_next_group_opens(self, run, groups, store, proposed):
        app = opened("labels", run=run.id)
        app.button(key=f"approve_{groups[0]}").click().run()
        label = store.get(run.id, groups[0])
        assert (label.text, label.state, label.version) == (proposed[groups[0]], "approved", 2)
        assert label.evidence["proposal"]["proposer"] == hand_made_labels.MODEL
        assert in_address(app, "group") == groups[1]
        assert f"{groups[0]}: approved “{proposed[groups[0]]}”" in said(app)

    def test_a_typed_name_is_fixed_and_accepted_in_one_step(self, run, groups, store, proposed):
        app = opened("labels", run=run.id, group=groups[0])
        type_name(app, groups[0], 1, EVIL[:100])
        app.button(key=f"approve_{groups[0]}").click().run()
        label = store.get(run.id, groups[0])
        assert (label.text, label.state, label.version) == (EVIL[:100], "approved", 2)
        assert in_address(app, "group") == groups[1]

    def test_what_was_typed_for_an_older_version_is_not_approved_unseen(self, run, groups, store, proposed):
        app = opened("labels", run=run.id, group=groups[0])
        type_name(app, groups[0], 0, "older")
        app.button(key=f"approve_{groups[0]}").click().run()
        assert store.get(run.id, groups[0]).text == proposed[groups[0]]

    def test_a_group_without_a_name_cannot_be_approved(self, run, groups, store):
        app = opened("labels", run=run.id, group=groups[0])
        app.button(key=f"approve_{groups[0]}").click().run()
        assert "no name to approve" in app.error[0].value
        assert store.get(run.id, groups[0]) is None
        assert in_address(app, "group") == groups[0]

    def test_undo_takes_back_the_last_decisions_one_by_one_and_shows_their_groups(self, run, groups, store, proposed):
        app = opened("labels", run=run.id)
        app.button(key=f"approve_{groups[0]}").click().run()
        app.button(key=f"reject_{groups[1]}").click().run()
        app.button(key=f"undo_{groups[2]}").click().run()
        assert in_address(app, "group") == groups[1]
        assert store.get(run.id, groups[1]).state == "pending"
        app.button(key=f"undo_{groups[1]}").click().run()
        assert in_address(app, "group") == groups[0]
        assert store.get(run.id, groups[0]).state == "pending"

    def test_the_last_change_of_a_label_can_be_undone_in_another_tab(self, run, groups, store):
        store.edit(run.id, groups[0], "star", "ana", 0)
        store.decide(run.id, groups[0], "rejected", "ana", 1)
        app = opened("labels", run=run.id, group=groups[0])
        app.button(key=f"undo_{groups[0]}").click().run()
        assert (store.get(run.id, groups[0]).text, store.get(run.id, groups[0]).state) == ("star", "edited")

    def test_a_skipped_group_comes_last(self, run, groups, store, proposed):
        app = opened("labels", run=run.id)
        app.button(key=f"skip_{groups[0]}").click().run()
        assert in_address(app, "group") == groups[1]
        assert "1 skipped" in said(app)
        for group in groups[1:-1]:
            store.edit(run.id, group, "seen", "ana", store.get(run.id, group).version if store.get(run.id, group) else 0)
        app.query_params["group"] = groups[-1]
        app.run()
        app.button(key=f"reject_{groups[-1]}").click().run()
        assert in_address(app, "group") == groups[0]

    def test_back_and_next_go_through_reviewed_groups_too(self, run, groups, store, proposed):
        app = opened("labels", run=run.id)
        app.button(key=f"approve_{groups[0]}").click().run()
        app.button(key=f"previous_{groups[1]}").click().run()
        assert in_address(app, "group") == groups[0]
        assert app.button(key=f"previous_{groups[0]}").disabled
        app.button(key=f"next_{groups[0]}").click().run()
        assert in_address(app, "group") == groups[1]

    def test_everything_reviewed_is_said(self, run, groups, store):
        for group in groups:
            store.edit(run.id, group, "seen", "ana", 0)
        app = opened("labels", run=run.id)
        assert f"{len(groups)} of {len(groups)} reviewed · {len(groups)} edited · nothing is left to review" in said(app)

    def test_score_baselines_and_what_refutes_the_words_are_shown(self, run, groups, proposed):
        text = said(opened("labels", run=run.id, group=groups[0]))
        assert "✓ Supported It beats every baseline." in text
        assert "0.90 [0.82, 0.98]" in text
        for baseline in (
            "“object” a word for everything 0.50",
            "“dark stripes” another group's label 0.30",
            "“bright corner” runner-up 0.44",
        ):
            assert baseline in text
        assert "Fits the words, group silent 3" in text
        assert "Fires the group, does not fit 1" in text
        assert "✗ Not supported" in said(opened("labels", run=run.id, group=groups[1]))

    def test_a_group_whose_proposal_failed_says_why(self, run, groups, proposed):
        assert "No proposal The reply was cut off after 400 tokens, twice." in said(opened("labels", run=run.id, group=groups[-1]))
        assert "No common feature" in said(opened("labels", run=run.id, group=groups[-2]))

    def test_text_of_a_model_stays_text(self, run, groups, store):
        evil = "<b onclick=alert(1)>{{7*7}} ![x](http://leak.example/a.png)"
        proposals = ProposalStore.for_workspace(cached.workspace().root)
        proposals.add(
            Proposal(
                run.id, groups[0], evil, Outcome.PROPOSED, evil, evil, evil, 0.5, None, {"runner_up": evil}, 1, 1, hand_made_labels.TIME
            )
        )
        store.propose(run.id, groups[0], evil, evil)
        app = opened("labels", run=run.id, group=groups[0])
        assert not any("<b onclick" in block.proto.body for block in app.get("html"))
        assert evil in written(app)
        assert not [block for block in app.markdown if "leak.example" in block.value and "\\!" not in block.value]

    def test_a_label_that_needs_review_shows_its_state_here_and_in_the_circuit(self, run, groups, store):
        store.carry(run.id, groups[0], "old name", "needs review", "ana", {})
        for page in ("labels", "circuit"):
            assert "! needs review" in re.sub("<[^>]*>", "", written(opened(page, run=run.id, group=groups[0])))

    def test_a_group_that_is_not_there_is_said(self, run, groups):
        assert "no group 'nonsense'" in show.plain(opened("labels", run=run.id, group="nonsense").error[0].value).replace("\\", "")


class TestConflict:
    @pytest.fixture
    def refused(self, run, groups, store, proposed) -> AppTest:
        """Somebody else named the group while this tab had it open with a typed name."""
        app = opened("labels", run=run.id, group=groups[0])
        store.edit(run.id, groups[0], "theirs", "ana", 1)
        type_name(app, groups[0], 1, "mine")
        return app.button(key=f"approve_{groups[0]}").click().run()

    def test_both_texts_are_shown_and_nothing_is_overwritten(self, refused, run, groups, store):
        assert "ana changed this label just now, while it was open here" in said(refused)
        assert "theirs “theirs” edited yours “mine” to be approved" in said(refused)
        assert in_address(refused, "group") == groups[0]
        assert store.get(run.id, groups[0]).text == "theirs"

    def test_mine_can_be_used_on_the_new_version(self, refused, run, groups, store):
        refused.button(key=f"mine_{groups[0]}").click().run()
        assert [change.text for change in store.history(run.id, groups[0])] == [None, "theirs", "mine"]
        assert store.get(run.id, groups[0]).state == "approved"
        assert in_address(refused, "group") == groups[1]

    def test_theirs_can_be_kept(self, refused, run, groups, store):
        refused.button(key=f"theirs_{groups[0]}").click().run()
        assert "Not saved" not in said(refused)
        assert store.get(run.id, groups[0]).text == "theirs"


class TestTable:
    def table(self, app: AppTest):
        return next(frame.value for frame in app.dataframe if "proposed" in frame.value)

    def test_filters_by_layer_state_score_and_text(self, run, groups, store, proposed):
        store.edit(run.id, groups[0], "sail", "ana", 1)
        app = view(opened("labels", run=run.id), "Table")
        layer = groups[-1].rsplit("/", 1)[0]
        for key, value, expected in (
            ("label_layers", [layer], [group for group in groups if group.startswith(f"{layer}/")]),
            ("label_states", ["edited"], groups[:1]),
        ):
            app.multiselect(key=key).set_value(value).run()
            assert list(self.table(app)["group"]) == expected
            app.button(key="clear_filters").click().run()
        app.selectbox(key="label_score").set_value("Not supported").run()
        assert list(self.table(app)["group"]) == groups[1:-2:3]
        app.button(key="clear_filters").click().run()
        app.text_input(key="label_text").set_value("SAI").run()
        assert list(self.table(app)["group"]) == groups[:1]
        app.text_input(key="label_text").set_value("no such text").run()
        assert not app.dataframe

    def test_the_weakest_score_comes_first_where_asked(self, run, groups, proposed):
        app = view(opened("labels", run=run.id), "Table")
        app.selectbox(key="label_sort").set_value("Weakest score first").run()
        scored = [group for group in groups if group in proposed]
        assert list(self.table(app)["group"]) == [*scored[::-1], *groups[-2:]]

    def test_the_queue_obeys_the_filter(self, run, groups, proposed):
        app = view(opened("labels", run=run.id), "Table")
        app.selectbox(key="label_score").set_value("Not supported").run()
        view(app, "Review")
        assert f"approve_{groups[1]}" in {button.key for button in app.button}
        app.button(key=f"approve_{groups[1]}").click().run()
        assert in_address(app, "group") == groups[4]

    def test_supported_labels_above_a_score_are_approved_together(self, run, groups, store, proposed):
        app = view(opened("labels", run=run.id), "Table")
        app.number_input(key="label_least").set_value(0.83).run()
        app.button(key="approve_above").click().run()
        approved = {group for group, label in store.for_run(run.id).items() if label.state == "approved"}
        assert approved == {groups[0], groups[2], groups[3]}  # groups[1] scores as much and is not supported
        assert store.get(run.id, groups[0]).evidence["proposal"]["proposer"] == hand_made_labels.MODEL

    def test_ticked_labels_are_decided_together_but_not_over_a_newer_version(self, run, groups, store, proposed):
        app = view(opened("labels", run=run.id), "Table")
        key = next(frame.key for frame in app.dataframe)
        app.session_state[key] = {"selection": {"rows": [0, 1], "columns": [], "cells": []}}
        app.run()
        store.edit(run.id, groups[0], "theirs", "ana", 1)
        app.button(key="bulk_approve").click().run()
        assert "1 approved, 1 not" in app.error[0].value
        assert [store.get(run.id, group).state for group in groups[:2]] == ["edited", "approved"]

    def test_groups_like_one_share_neurons_or_patches(self, run, groups):
        scene = label_scene.Scene.of(run)
        found = {group: label_scene.like(scene, group) for group in groups}
        asked = next(group for group in groups if found[group])
        other, neurons, patches = found[asked][0]
        one, two = run.circuit.group[asked], run.circuit.group[other]
        shared = len(set(one.patches) & set(two.patches)) / len(set(one.patches) | set(two.patches))
        assert patches == pytest.approx(shared)
        assert max(neurons, patches) >= label_scene.ALIKE
        app = opened("labels", run=run.id, group=asked)
        app.button(key="compare_alike").click().run()
        assert list(self.table(app)["group"]) == [row[0] for row in found[asked]]


class TestProposals:
    def test_the_offline_description_is_offered_where_no_model_is_set(self, run):
        app = view(opened("labels", run=run.id), "Proposals")
        assert not app.error
        assert "0 requests 0 tokens costs nothing" in said(app)
        app.segmented_control(key="proposer").set_value("Language model").run()
        assert "NEURFLOW_LLM_MODEL" in app.caption[0].value
        assert "propose" not in {button.key for button in app.button}

    def test_requests_tokens_and_cost_are_said_before_anybody_is_asked(self, run, groups, monkeypatch, tmp_path):
        prices = tmp_path / "prices.json"
        prices.write_text(json.dumps({"vision-9b": {"input": 1000.0, "output": 2000.0}}))
        monkeypatch.setenv("NEURFLOW_LLM_MODEL", "vision-9b")
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        monkeypatch.setenv("NEURFLOW_PRICES", str(prices))
        app = view(opened("labels", run=run.id), "Proposals")
        assert not app.error
        text = said(app)
        assert re.search(r"[1-9][\d,]* requests [1-9][\d,]* tokens in [1-9][\d,]* tokens out about [1-9]\d*\.\d\d USD", text)
        assert "127.0.0.1" in text
        assert app.button(key="propose").label == f"Propose for {len(groups)} groups"

    def test_failures_are_listed_with_their_reasons(self, run, groups, proposed):
        app = view(opened("labels", run=run.id), "Proposals")
        (table,) = (frame.value for frame in app.dataframe if "why" in frame.value)
        why = dict(zip(table["group"], table["why"], strict=True))
        assert why == {groups[-2]: "no common feature", groups[-1]: "The reply was cut off after 400 tokens, twice."}


class TestCarryingOver:
    def test_names_of_an_earlier_run_are_carried_over_and_listed(self, run, groups, store):
        copy = shutil.copytree(run.folder, cached.workspace().root / "runs" / f"{run.id}-older")
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"run": copy.name, "created": "2026-01-01T00:00:00+00:00"}))
        store.edit(copy.name, groups[0], "sail", "ana", 0)
        app = view(opened("labels", run=run.id), "Proposals")
        app.button(key="carry_over").click().run()
        assert store.get(run.id, groups[0]).text == "sail"
        (table,) = (frame.value for frame in app.dataframe if "shared" in frame.value)
        assert table.to_dict("records") == [{"from": groups[0], "to": groups[0], "shared": 1.0, "name": "sail", "state": "edited"}]

    def test_it_is_not_offered_without_such_a_run(self, run, store, groups):
        store.edit("another-run", groups[0], "sail", "ana", 0)
        app = view(opened("labels", run=run.id), "Proposals")
        assert "carry_over" not in {button.key for button in app.button}


class TestFiles:
    def test_what_is_exported_elsewhere_comes_in_and_bad_rows_are_named(self, run, groups, store, tmp_path):
        elsewhere = LabelStore.for_workspace(tmp_path / "elsewhere")
        elsewhere.edit(run.id, groups[0], "sail", "ana", 0)
        rows = [*elsewhere.export_rows(), {"run_id": run.id, "group_id": groups[1], "text": "x" * 500, "state": "approved"}]
        elsewhere.close()
        app = view(opened("labels", run=run.id), "Files")
        app.file_uploader(key="labels_file").upload("labels.json", json.dumps(rows).encode(), "application/json").run()
        assert "1 usable row for 1 run, 1 left out" in [text.value for text in app.text]
        app.button(key="labels_import").click().run()
        assert [(change.action, change.author) for change in store.history(run.id, groups[0])] == [("edited", "ana")]
        assert "1 new or changed, 0 refused" in [text.value for text in app.text]

    def test_a_file_of_something_else_says_so(self, run):
        app = view(opened("labels", run=run.id), "Files")
        app.file_uploader(key="labels_file").upload("labels.csv", b"a,b\n1,2\n", "text/csv").run()
        assert "no column run" in show.plain(app.error[0].value).replace("\\", "")
        assert "labels_import" not in {button.key for button in app.button}
