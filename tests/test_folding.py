"""Normalisations folded into the convolutions before them: the same outputs everywhere, and a model that is as before afterwards."""

import threading

import pytest
import torch
from nets import images, network, randomised, timm_network
from torch import nn

from neurflow_engine.tracing import Segment, folded, record, trace

# Name, side of the images, and how many of its normalisations stand alone behind a convolution.
NETWORKS = [
    ("resnet18", 64, 20),
    ("mobilenetv2_100", 64, 52),
    ("efficientnet_b0", 64, 49),
    ("tf_efficientnet_lite0", 64, 49),  # convolutions that pad their input themselves
    ("repvgg_a0", 64, 44),  # its 17 branches of a normalisation alone stay as they are
    ("densenet121", 64, 59),  # the others stand before their convolution
    ("inception_v3", 96, 94),
    ("regnety_002", 64, 44),
    ("convnext_atto", 64, 0),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda case: case[0])
def case(request):
    name, side, n_pairs = request.param
    return timm_network(name, num_classes=7), side, n_pairs


def outputs(net, inputs):
    """Of every call in order: its name, the output (held, so that no other takes its identity) and a copy of it."""

    def keep(name, output):
        return output, output.clone() if isinstance(output, torch.Tensor) else None

    return [(call.name, *call.output) for call in trace(net, inputs, keep=keep)]


def state(model):
    """Identity of every tensor and forward of a model, and its numbers of hooks."""
    return {
        name: (
            [id(value) for value in (*module._parameters.values(), *module._buffers.values())],
            id(module.__dict__.get("forward")),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    }


def weights(model):
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def assert_close(found, expected):
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


class TestRealNetworks:
    def test_return_the_same_everywhere_but_in_the_folded_convolutions(self, case):
        net, side, n_pairs = case
        inputs, own = images(2, side), weights(net.model)
        expected, before = outputs(net, inputs), state(net.model)
        with folded(net, images(2, side, seed=5)) as count:
            found = outputs(net, inputs)
            changed = {name for name, weight in weights(net.model).items() if weight is not own[name]}
        assert count == len(changed) == n_pairs
        of_folded = {id(output) for name, output, _ in expected if name in changed}
        compared = 0
        for (name, output, values), (same_name, _, now) in zip(expected, found, strict=True):
            assert same_name == name
            if values is not None and id(output) not in of_folded:
                assert_close(now, values)
                compared += 1
        assert compared > n_pairs
        assert state(net.model) == before

    @pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "densenet121"])
    def test_give_the_same_gradients(self, name):
        net = timm_network(name, num_classes=7)
        net.model.double()  # so that no value falls on the other side of a ReLU

        def gradient():
            inputs = images(2, 64).double().requires_grad_(True)
            (found,) = torch.autograd.grad(net.model(inputs)[:, 1].sum(), inputs)
            return found

        expected = gradient()
        with folded(net, images(2, 64, seed=5).double()) as count:
            assert_close(gradient(), expected)
        assert count > 19

    def test_keep_convolutions_that_are_to_stay_intact(self):
        net, inputs = timm_network("resnet18", num_classes=7), images(2, 64)
        intact = ["conv1", "layer2.0.conv1", "layer4.1.conv2"]
        expected = record(net, inputs, intact)
        with folded(net, inputs, intact) as count:
            found = record(net, inputs, intact)
        assert count == 17
        for name in intact:
            assert_close(found[name], expected[name])
        with folded(net, inputs) as count:
            assert count == 20
            assert not torch.allclose(record(net, inputs, ["conv1"])["conv1"], expected["conv1"], rtol=0.1)


class Net(nn.Module):
    """A convolution, a normalisation and a head, joined by ``glue(self, images)``."""

    def __init__(self, glue, conv=None, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = conv or nn.Conv2d(3, 4, 3, padding=1), norm or nn.BatchNorm2d(4)
        self.other, self.head, self.glue = nn.Conv2d(4, 4, 1), nn.Linear(4, 3), glue

    def forward(self, x):
        return self.head(self.glue(self, x).mean((2, 3)))


class Listed(nn.Module):
    """Returns the output of a convolution inside a list."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return [self.conv(x), x]


def plain(net, x):
    return net.norm(net.conv(x)).relu()


class TestWhatIsFolded:
    @pytest.mark.parametrize(
        "conv", [{"bias": False}, {"bias": True}, {"stride": 2, "dilation": 2}, {"groups": 1, "padding_mode": "reflect"}]
    )
    @pytest.mark.parametrize("norm", [{}, {"affine": False}, {"eps": 0.3}])
    def test_every_kind_of_convolution_and_normalisation(self, conv, norm):
        net = network(randomised(Net(plain, nn.Conv2d(3, 4, 3, **{"padding": 1} | conv), nn.BatchNorm2d(4, **norm))))
        expected = net.model(images(4))
        with folded(net, images(2, seed=3)) as count:
            assert_close(net.model(images(4)), expected)
        assert count == 1

    @pytest.mark.parametrize(
        "glue",
        [
            pytest.param(lambda net, x: net.norm(net.conv(x)) + net.other(net.conv(x)), id="called twice"),
            pytest.param(lambda net, x: net.norm(y := net.conv(x)) + net.other(y), id="taken by two modules"),
            pytest.param(lambda net, x: net.norm(net.norm(net.conv(x))), id="normalised twice by one module"),
            pytest.param(lambda net, x: net.norm(net.conv(x).relu()), id="something in between"),
            pytest.param(lambda net, x: net.norm(y := net.conv(x)) + y.tanh(), id="taken by a function too"),
            pytest.param(lambda net, x: net.norm(net.conv(x)) * net.conv.weight.mean(), id="a weight that is used elsewhere"),
        ],
    )
    def test_not_what_something_else_needs(self, glue):
        net = network(randomised(Net(glue)))
        expected, before = net.model(images(4)), state(net.model)
        with folded(net, images(2, seed=3)) as count:
            assert count == 0
            assert_close(net.model(images(4)), expected)
        assert state(net.model) == before

    def test_not_a_normalisation_by_the_batch_at_hand(self):
        net = network(randomised(Net(plain, norm=nn.BatchNorm2d(4, track_running_stats=False))))
        with folded(net, images(2)) as count:
            assert count == 0

    def test_not_a_convolution_whose_output_is_a_layer_inside_a_list(self):
        net = network(randomised(Net(lambda net, x: net.norm(net.conv(x)[0]), Listed())))
        expected = record(net, images(2), ["conv[0]"])["conv[0]"]
        with folded(net, images(2), intact=["conv[0]"]) as count:
            assert count == 0
            assert_close(record(net, images(2), ["conv[0]"])["conv[0]"], expected)
        with folded(net, images(2)) as count:
            assert count == 1


class TestAfterwards:
    @pytest.fixture
    def net(self):
        return network(randomised(Net(plain)))

    @pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
    def test_the_model_is_as_before_also_after_an_exception(self, net, error):
        before = state(net.model)

        def fails():
            with folded(net, images(2)) as count:
                assert count == 1
                assert state(net.model) != before
                raise error

        with pytest.raises(error):
            fails()
        assert state(net.model) == before

    def test_also_when_the_model_itself_fails(self, net):
        before = state(net.model)
        with pytest.raises(RuntimeError), folded(net, images(2, channels=5)):
            pytest.fail("the sample does not fit the model")
        assert state(net.model) == before

    def test_one_inside_the_other_changes_nothing_and_undoes_itself(self, case):
        net, side, n_pairs = case
        inputs, before = images(2, side), state(net.model)
        expected = net.model(inputs)
        with folded(net, inputs) as count:
            outer = state(net.model)
            with folded(net, inputs) as again:
                assert_close(net.model(inputs), expected)
            assert state(net.model) == outer
            assert_close(net.model(inputs), expected)
        assert (count, again) == (n_pairs, 0)
        assert state(net.model) == before

    def test_other_threads_wait_for_the_model(self, net):
        found = []
        thread = threading.Thread(target=lambda: found.append(record(net, images(2), ["conv"])["conv"]))
        expected = record(net, images(2), ["conv"])["conv"]
        with folded(net, images(2)):
            thread.start()
            thread.join(0.1)
            assert thread.is_alive()
        thread.join()
        assert torch.equal(found[0], expected)


class TestNarrowed:
    """A segment that computes only the neurons that are asked about."""

    CUTS = (
        # the model, lower, upper, whether the last projection makes the channels of the upper layer alone
        ("mobilenetv2_100", "blocks.6", "bn2", True),
        ("mobilenetv2_100", "blocks.5", "blocks.6", True),
        ("efficientnet_b0", "conv_head", "bn2", False),  # nothing but a normalisation in between
        ("resnet18", "layer3", "layer4", False),  # a sum with what leads around
        ("resnet18", "layer4", "logits", True),
        ("vit_tiny_patch16_224", "blocks.10", "logits", True),
        ("vit_tiny_patch16_224", "blocks.9", "blocks.10", False),
    )

    @pytest.mark.parametrize(("name", "lower", "upper", "can_be"), CUTS)
    def test_gives_the_same_for_its_channels_and_leaves_the_network_as_it_was(self, name, lower, upper, can_be):
        net = timm_network(name, **({"img_size": 64} if name.startswith("vit") else {}))
        inputs = images(3, 64)
        with folded(net, inputs, intact=[lower, upper]):
            segment = Segment(net, lower, upper, inputs)
            at_cut = record(net, inputs, [lower])[lower]
            axis = 2 if upper.startswith("blocks") and name.startswith("vit") else 1
            whole = segment(at_cut)
            chosen = [5, 2, 11]
            with segment.narrowed(chosen, axis) as is_narrow:
                found = segment(at_cut)
                assert is_narrow == can_be
            expected = whole.index_select(axis, torch.tensor(chosen)) if can_be else whole
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(segment(at_cut), whole)

    def test_after_an_exception_everything_is_there_again(self):
        net = timm_network("mobilenetv2_100")
        inputs = images(3, 64)
        segment = Segment(net, "blocks.6", "bn2", inputs)
        weights = dict(net.model.named_parameters())

        def fail_when_narrow():
            with folded(net, inputs, intact=["blocks.6", "bn2"]), segment.narrowed([1], 1) as is_narrow:
                assert is_narrow
                raise ArithmeticError

        with pytest.raises(ArithmeticError):
            fail_when_narrow()
        assert all(value is weights[name] for name, value in net.model.named_parameters())
