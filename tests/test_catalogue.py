"""Architectures can be listed at once, without torch, and the list says what timm says."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
from timm.models import get_pretrained_cfg

from neurflow_engine import catalogue
from neurflow_engine.catalogue import ModelInfo, list_models


def test_all_of_timm_is_listed():
    assert [info.name for info in list_models()] == timm.list_models()


def test_listing_takes_a_moment_and_no_torch():
    code = "import sys; from neurflow_engine.catalogue import list_models; print(len(list_models()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split() == [str(len(timm.list_models())), "False"], done.stderr
    start = time.perf_counter()
    list_models()
    assert time.perf_counter() - start < 0.3


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("resnet18", {"legacy_seresnet18", "resnet18"}), ("ResNet18*", {"resnet18", "resnet18d"}), ("no_such_model", set())],
)
def test_patterns(pattern, expected):
    found = {info.name for info in list_models(pattern)}
    assert expected <= found
    assert bool(found) == bool(expected)
    assert ("legacy_seresnet18" in found) == ("legacy_seresnet18" in expected)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "mobilenetv3_small_050", "gcvit_xxtiny"])
def test_the_table_says_what_timm_says(name):
    (info,) = [info for info in list_models(name) if info.name == name]
    model, source = timm.create_model(name), get_pretrained_cfg(name)
    assert info.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (3, *info.input_size) == tuple(source.input_size)
    assert info.n_classes == model.num_classes
    assert info.stages == tuple(stage["module"] for stage in model.feature_info)
    assert info.weights == (source.hf_hub_id or source.url)
    assert info.family == type(model).__module__.rpartition(".")[2]


def test_models_without_weights_or_classifier_are_told_apart():
    known = {info.name: info for info in list_models()}
    assert known["resnet18"].pretrained
    assert not known["nfnet_f0"].pretrained
    assert known["vit_small_patch14_dinov2"].n_classes == 0


def test_downloaded_weights_are_recognised(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    known = {info.name: info for info in list_models()}
    assert not any(info.weights_local for info in known.values())
    from_hub = tmp_path / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc" / "model.safetensors"
    from_address = tmp_path / "hub" / "checkpoints" / Path(known["gcvit_xxtiny"].weights).name
    for file in (from_hub, from_address):
        file.parent.mkdir(parents=True)
        file.touch()
    assert {info.name for info in list_models() if info.weights_local} == {"resnet18", "gcvit_xxtiny"}


def test_another_version_of_timm_is_listed_as_it_is(monkeypatch):
    monkeypatch.setattr(catalogue, "version", lambda _package: "99.0")
    monkeypatch.setattr(timm, "list_models", lambda: ["resnet18", "resnet_of_tomorrow"])
    catalogue._known.cache_clear()
    try:
        old, new = list_models()
    finally:
        catalogue._known.cache_clear()
    assert (old.name, old.family) == ("resnet18", "resnet")
    assert new == ModelInfo("resnet_of_tomorrow", None, None, None, None, (), None)
