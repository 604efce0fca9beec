"""Every mechanism by which timm's families differ: layers are found, replayed exactly and silenced, whatever the architecture.

``benchmarks/FAMILIES.md`` tells the same of the smallest model of each family; here are small networks of every kind.
"""

from dataclasses import dataclass, field

import pytest
import timm
import torch
from nets import images, timm_network
from test_tracing import assert_untouched

from benchmarks.families import check, read_table, smallest
from neurflow_engine.layers import examine, pooled
from neurflow_engine.records import LOGITS
from neurflow_engine.silencing import zeroed
from neurflow_engine.tracing import Place, Segment, edited, record


@dataclass(frozen=True)
class Kind:
    """A small network of one kind, and the layers that are taken by default: name, channel axis, n_channels, prefix tokens."""

    model: str
    size: int
    layers: tuple[tuple[str, int, int, int], ...]
    kwargs: dict = field(default_factory=dict)


KINDS = {
    "residual": Kind("test_resnet", 64, (("layer4", 1, 96, 0), ("layer3", 1, 192, 0))),
    "dense": Kind(
        "densenet121",
        64,
        (("features.norm5", 1, 64, 0), ("features.denseblock3", 1, 64, 0)),
        {"growth_rate": 16, "block_config": (2, 2, 2, 2)},
    ),
    "nhwc": Kind("test_mambaout", 64, (("stages.3", 3, 64, 0), ("stages.2", 3, 48, 0))),
    "windowed": Kind(
        "swin_tiny_patch4_window7_224", 64, (("layers.3", 3, 768, 0), ("layers.2", 3, 384, 0)), {"img_size": 64, "depths": (2, 1, 1, 1)}
    ),
    "class token": Kind("test_vit", 48, (("blocks.5", 2, 64, 1), ("blocks.4", 2, 64, 1)), {"img_size": 48}),
    "register tokens": Kind("test_vit", 48, (("blocks.5", 2, 64, 5), ("blocks.4", 2, 64, 5)), {"img_size": 48, "reg_tokens": 4}),
    "late class token": Kind("cait_xxs24_224", 48, (("blocks.3", 2, 192, 0), ("blocks.2", 2, 192, 0)), {"img_size": 48, "depth": 4}),
    "distilled": Kind(
        "deit_tiny_distilled_patch16_224", 48, (("blocks.2", 2, 192, 2), ("blocks.1", 2, 192, 2)), {"img_size": 48, "depth": 3}
    ),
    "hybrid": Kind("vit_tiny_r_s16_p8_224", 64, (("blocks.2", 2, 192, 1), ("blocks.1", 2, 192, 1)), {"img_size": 64, "depth": 3}),
    "branches that meet": Kind("hrnet_w18_small", 64, (("final_layer", 1, 2048, 0), ("stage4[3]", 1, 128, 0))),
    "branches of tokens": Kind("crossvit_tiny_240", 120, (("blocks.2[1]", 2, 192, 1), ("blocks.1[1]", 2, 192, 1)), {"img_size": 120}),
    "pixels and patches": Kind(
        "tnt_s_legacy_patch16_224", 64, (("blocks.2[1]", 2, 384, 1), ("blocks.1[1]", 2, 384, 1)), {"img_size": 64, "depth": 3}
    ),
    "class token apart": Kind("pit_ti_224", 64, (("transformers.2[1]", 2, 256, 0), ("transformers.1[0]", 1, 128, 0)), {"img_size": 64}),
    "states that go to the head": Kind("efficientvim_m1", 64, (("stages.2[1]", 1, 320, 0), ("stages.1[1]", 1, 320, 0))),
    "modules never called": Kind(
        "coat_tiny", 64, (("parallel_blocks.1[3]", 2, 152, 1), ("serial_blocks1.1", 2, 152, 1)), {"img_size": 64, "parallel_depth": 2}
    ),
    "names of no module": Kind(
        "twins_svt_small", 64, (("blocks.3.0", 2, 512, 0), ("blocks.2.0", 2, 256, 0)), {"img_size": 64, "depths": (1, 1, 1, 1)}
    ),
    "names of no module, sizes beside the tensor": Kind(
        "mvitv2_tiny", 64, (("stages.3[0]", 2, 768, 0), ("stages.2[0]", 2, 384, 0)), {"img_size": 64}
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    kind = KINDS[request.param]
    net = timm_network(kind.model, num_classes=7, **kind.kwargs)
    return kind, net, examine(net, (3, kind.size, kind.size))


def by_hand(model, inputs, lower, upper, tensor):
    """Output of layer ``upper`` in an ordinary forward pass in which a plain hook overwrites layer ``lower`` with ``tensor``."""
    places, found = (Place.of(lower), Place.of(upper)), {}
    handles = [model.get_submodule(places[0].module).register_forward_hook(lambda *call: places[0].write(call[-1], tensor.clone()))]
    if upper != LOGITS:
        keep = lambda *call: found.update(upper=places[1].read(call[-1]).clone())  # noqa: E731
        handles.append(model.get_submodule(places[1].module).register_forward_hook(keep))
    with torch.no_grad():
        logits = model(inputs)
    for handle in handles:
        handle.remove()
    return found.get("upper", logits)


class TestKinds:
    def test_layers_are_found_with_their_channels_and_without_prefix_tokens(self, kind):
        kind, _, anatomy = kind
        chosen = anatomy.chosen(None, 2)[1:]
        assert tuple((layer.name, layer.channel_axis, layer.n_channels, layer.n_prefix_tokens) for layer in chosen) == kind.layers
        assert len(anatomy.stages) >= 2
        assert set(anatomy.stages) <= set(anatomy.places)

    def test_replay_is_exact_with_any_tensor_at_the_cut(self, kind):
        kind, net, anatomy = kind
        inputs = images(2, kind.size, seed=5)
        upper = LOGITS
        for lower, *_ in kind.layers:
            segment = Segment(net, lower, upper, images(3, kind.size))
            assert segment.replay_error < 1e-5
            at_cut = record(net, inputs, [lower])[lower]
            assert pooled(anatomy.layers[lower], at_cut).shape == (2, anatomy.layers[lower].n_channels)
            context = segment.context(inputs) if segment.needs_context else None
            tensor = zeroed(anatomy.layers[lower], 0.5 * at_cut, range(0, anatomy.layers[lower].n_channels, 2))
            with torch.no_grad():
                expected = by_hand(net.model, inputs, lower, upper, tensor)
                torch.testing.assert_close(segment(tensor, context), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
                assert not torch.allclose(expected, by_hand(net.model, inputs, lower, upper, at_cut), rtol=1e-3, atol=1e-6)
            upper = lower
        assert_untouched(net)

    def test_silencing_equals_zeroing_by_hand_and_leaves_no_trace(self, kind):
        kind, net, anatomy = kind
        inputs = images(2, kind.size, seed=5)
        intact = record(net, inputs, [LOGITS])[LOGITS]
        for name, *_ in kind.layers:
            layer = anatomy.layers[name]
            neurons = range(layer.n_channels // 2)
            quiet = record(net, inputs, [name])[name]
            for neuron in neurons:
                quiet.select(layer.channel_axis, neuron).zero_()
            with edited(net, name, lambda output, layer=layer, neurons=neurons: zeroed(layer, output, neurons)):
                found = record(net, inputs, [LOGITS])[LOGITS]
            torch.testing.assert_close(found, by_hand(net.model, inputs, name, LOGITS, quiet))
            assert not torch.allclose(found, intact, rtol=1e-3, atol=1e-6)
        assert torch.equal(record(net, inputs, [LOGITS])[LOGITS], intact)
        assert_untouched(net)


def test_the_table_tells_of_every_family_of_the_installed_timm():
    families = smallest()
    assert len(families) == 98
    table = read_table()
    assert {family: row.model for family, row in table.items()} == {family: info.name for family, info in families.items()}
    assert all(row.verdict for row in table.values())


def test_the_table_says_for_which_timm_it_was_written():
    from benchmarks.families import TABLE

    assert TABLE.read_text(encoding="utf-8").startswith(f"# The families of timm {timm.__version__}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["byobnet", "convnext", "resnet", "vision_transformer", "vision_transformer_relpos", "efficientvim", "hrnet", "pit", "twins"]
)
def test_a_circuit_is_built_and_silenced(family):
    row = check(family)
    assert row.passed, row
