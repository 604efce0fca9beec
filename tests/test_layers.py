"""Layers are found in any architecture with their channel axis, and chosen by name or by depth."""

import pytest
import torch
from nets import Chain, Forks, images, network, timm_network
from torch import nn

from neurflow_engine.errors import LayerError
from neurflow_engine.layers import examine, pooled
from neurflow_engine.records import LOGITS, Layer
from neurflow_engine.silencing import zeroed


def anatomy(name, size=64, **kwargs):
    return examine(timm_network(name, num_classes=7, **kwargs), (3, size, size))


@pytest.fixture(scope="module")
def resnet():
    return anatomy("resnet10t")


@pytest.fixture(scope="module")
def vit():
    return anatomy("vit_tiny_patch16_224", 48, img_size=48, depth=8)


class TestAnatomy:
    def test_stages_come_from_input_to_output_and_end_at_the_logits(self, resnet):
        assert resnet.stages == ("act1", "layer1", "layer2", "layer3", "layer4")
        assert list(resnet.layers)[-1] == LOGITS
        assert resnet.layers[LOGITS] == Layer(LOGITS, 7, 1, (7,))

    def test_channels_of_a_convolutional_network_are_the_first_axis(self, resnet):
        assert resnet.layers["layer2"] == Layer("layer2", 128, 1, (128, 8, 8))
        assert resnet.layers["layer4.0.conv1"].channel_axis == 1

    def test_channels_of_an_nhwc_network_are_the_last_axis(self):
        found = anatomy("swin_tiny_patch4_window7_224", img_size=64)
        assert found.layers["layers.1"] == Layer("layers.1", 192, 3, (8, 8, 192))
        assert found.stages == ("layers.0", "layers.1", "layers.2", "layers.3")

    def test_channels_of_tokens_are_the_last_axis_behind_the_class_token(self, vit):
        assert vit.layers["blocks.3"] == Layer("blocks.3", 192, 2, (10, 192), n_prefix_tokens=1)

    def test_layers_before_the_class_token_have_no_prefix(self, vit):
        assert vit.layers["patch_embed"] == Layer("patch_embed", 192, 2, (9, 192), n_prefix_tokens=0)

    def test_register_tokens_are_prefix_tokens_too(self):
        found = anatomy("vit_tiny_patch16_224", 48, img_size=48, depth=2, reg_tokens=4)
        assert found.layers["blocks.1"].n_prefix_tokens == 5

    def test_the_last_convolution_before_pooling_is_a_stage_where_it_makes_new_features(self):
        assert anatomy("mobilenetv2_050").stages[-2:] == ("blocks.6", "bn2")

    def test_blocks_inside_the_stages_are_offered_too(self, vit):
        assert vit.places == tuple(f"blocks.{number}" for number in range(8))
        places = anatomy("convnext_atto").places
        assert [place for place in places if place.startswith("stages.0")] == ["stages.0.blocks.0", "stages.0.blocks.1", "stages.0"]

    def test_the_entry_is_what_leads_into_the_first_place(self, vit):
        assert vit.entry == ("norm_pre",)
        assert vit.layers["norm_pre"].shape == (10, 192)
        assert anatomy("convnext_atto").entry == ("stem",)
        assert anatomy("mobilenetv2_050").entry == ("bn1",)

    def test_a_module_without_one_tensor_per_call_is_unfit_and_says_why_and_where_the_tensors_are(self):
        class Model(Chain):
            def __init__(self):
                super().__init__()
                self.pair = nn.LSTM(5, 5, batch_first=True)
                self.feature_info = [{"module": "cut", "num_chs": 5}, {"module": "pair", "num_chs": 5}]

            def forward(self, x):
                return self.head(self.pair(self.act(self.cut(self.act(self.first(x.flatten(1))))))[0])

        found = examine(network(Model()), (1, 2, 2))
        assert found.unfit == {
            "act": "it is called 2 times in one forward pass",
            "pair": "its output is a tuple, not one tensor; name one of those it holds, pair[0], pair[1][0], pair[1][1]",
            "pair[1][0]": "its output of shape (1, 5) has no image axis in front",
            "pair[1][1]": "its output of shape (1, 5) has no image axis in front",
        }
        assert found.stages == ("cut", "pair[0]")
        with pytest.raises(LayerError, match=r"Layer pair cannot be used: .*, pair\[0\].*; choose among cut, pair\[0\]\.$"):
            found.chosen(("pair",), 1)

    def test_a_network_that_nothing_can_be_cut_in_is_refused(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, x):
                return self.layer(self.layer(x.flatten(1)))

        with pytest.raises(LayerError, match="No layer of this model can be cut"):
            examine(network(Twice()), (1, 2, 2))


class TestSeveralTensors:
    def test_a_stage_is_the_one_of_them_that_leads_on(self):
        found = examine(network(Forks()), (3, 9, 9))
        assert found.stages == ("blocks.0[1][0]", "blocks.1[1][0]")
        assert found.layers["blocks.0[0]"] == Layer("blocks.0[0]", 8, 1, (8, 9, 9))
        assert found.layers["blocks.0[1][0]"] == Layer("blocks.0[1][0]", 4, 1, (4, 7, 7))
        assert found.places == ("blocks.0[0]", "blocks.0[1][0]", "blocks.1[0]", "blocks.1[1][0]")

    def test_names_that_are_no_modules_stand_for_the_row_of_modules_that_is_most_alike(self):
        assert examine(network(Forks(("block.0", "block.1"))), (3, 9, 9)).stages == ("blocks.0[1][0]", "blocks.1[1][0]")

    def test_a_stage_that_is_never_called_itself_is_its_last_module(self):
        assert examine(network(Forks(("stem", "blocks"))), (3, 9, 9)).stages == ("stem", "blocks.1[1][0]")

    def test_without_usable_names_the_outermost_modules_that_keep_space_are_the_stages(self):
        assert examine(network(Forks(("body", "neck"))), (3, 9, 9)).stages == ("stem", "blocks.0[1][0]", "blocks.1[1][0]")


class TestChannelAxis:
    """One convolution whose output is given in either order, at sizes at which one rule alone would be wrong."""

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize(("size", "channels"), [((9, 9), 4), ((12, 6), 6), ((6, 12), 6)])
    def test_is_the_one_beside_which_space_has_the_proportions_of_the_image(self, last, size, channels):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.order, self.head = nn.Conv2d(3, channels, 1), nn.Identity(), nn.Linear(channels, 2)

            def forward(self, x):
                x = self.order(self.stem(x).permute(0, 2, 3, 1) if last else self.stem(x))
                return self.head(x.mean((1, 2) if last else (2, 3)))

        layer = examine(network(Model()), (3, *size)).layers["order"]
        assert (layer.channel_axis, layer.n_channels) == (3 if last else 1, channels)


class TestChosen:
    def test_logits_come_first_then_the_named_layers(self, resnet):
        assert [layer.name for layer in resnet.chosen(("layer4", "layer2"), depth=3)] == [LOGITS, "layer4", "layer2"]

    @pytest.mark.parametrize(("depth", "names"), [(1, ["layer4"]), (3, ["layer4", "layer3", "layer2"]), (99, 5)])
    def test_by_depth_the_deepest_stages_are_taken(self, resnet, depth, names):
        chosen = [layer.name for layer in resnet.chosen(None, depth)][1:]
        assert (len(chosen) if isinstance(names, int) else chosen) == names

    def test_by_depth_a_row_of_equal_blocks_is_evenly_spaced(self, vit):
        assert [layer.name for layer in vit.chosen(None, 3)] == [LOGITS, "blocks.7", "blocks.5", "blocks.3"]

    def test_an_unknown_name_brings_near_matches(self, resnet):
        with pytest.raises(LayerError, match=r"Layer 'layer22' is not in this model\. Did you mean .*layer2.* Its stages are act1, layer1"):
            resnet.chosen(("layer22",), 3)

    def test_the_wrong_order_brings_the_right_one(self, resnet):
        with pytest.raises(LayerError, match="not listed deepest first; write layer4,layer3"):
            resnet.chosen(("layer3", "layer4"), 3)

    def test_the_logits_need_not_be_named(self, resnet):
        with pytest.raises(LayerError, match=r"logits are always analysed; name the layers below them, e\.g\. layer4,layer3"):
            resnet.chosen((LOGITS, "layer3"), 2)

    def test_an_unfit_layer_says_why(self):
        model = Chain()
        model.feature_info = [{"module": "cut", "num_chs": 5}]
        with pytest.raises(LayerError, match=r"Layer act cannot be used: it is called 2 times in one forward pass; choose among cut"):
            examine(network(model), (1, 2, 2)).chosen(("act",), 3)


class TestPooled:
    def test_is_the_mean_over_space_wherever_the_channels_are(self):
        output = images(2, 5, channels=3)
        expected = output.mean((2, 3))
        torch.testing.assert_close(pooled(Layer("a", 3, 1, (3, 5, 5)), output), expected)
        torch.testing.assert_close(pooled(Layer("a", 3, 3, (5, 5, 3)), output.permute(0, 2, 3, 1)), expected)

    def test_leaves_class_and_register_tokens_out(self):
        output = torch.tensor([[[100.0, 200.0], [1.0, 2.0], [3.0, 4.0]]])
        layer = Layer("a", 2, 2, (3, 2), n_prefix_tokens=1)
        assert pooled(layer, output).tolist() == [[2.0, 3.0]]

    def test_of_logits_is_the_logits(self):
        output = torch.tensor([[1.0, 2.0]])
        assert pooled(Layer(LOGITS, 2, 1, (2,)), output).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 3, 4, 4)), (3, (2, 4, 4, 3)), (2, (2, 5, 3)), (1, (2, 3))])
def test_silencing_zeroes_the_neurons_at_every_position_of_a_copy(axis, shape):
    output = torch.ones(shape)
    quiet = zeroed(Layer("a", 3, axis, shape[1:]), output, [0, 2])
    assert quiet.select(axis, 0).abs().max() == 0
    assert quiet.select(axis, 2).abs().max() == 0
    assert quiet.select(axis, 1).min() == 1
    assert output.min() == 1
