"""The huge run that other tests draw is one that the engine could have made."""

from neurflow_engine.circuit_json import as_json
from neurflow_engine.records import LOGITS
from tests import huge
from tests.well_formed import assert_well_formed


def test_a_huge_run_is_whole_and_has_as_many_groups_as_were_asked_for(workspace):
    run = huge.write(workspace, n_groups=120, n_images=80)
    assert_well_formed(as_json(run), tau=128, top_k=40, size=(128, 128))
    assert len(run.circuit.groups) == 120
    assert len(run.circuit.groups_of("layer2")) >= 24
    assert all(run.patch_thumbnail(patch).is_file() for group in run.circuit.groups for patch in group.patches)
    (report,) = workspace.debug_reports(run.id)
    assert {group.id for group in run.circuit.groups if group.layer != LOGITS} < set(report.groups)
    assert len(report.json["images"]) == len(workspace.open_evaluation(run.manifest["evaluation"]).predictions) == 80
    assert all(len(group["presence"]) == 80 for group in report.groups.values())
    assert all(report.silencer(group) is not None for group in report.groups)
