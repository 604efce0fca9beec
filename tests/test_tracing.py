"""Recording, replaying from a cut and silencing: exact on intact networks, and undone whatever happens."""

import threading
from contextlib import suppress

import pytest
import torch
from nets import Chain, Forks, FromTheImage, SkipAround, TwoStreams, images, network, timm_network
from torch import nn

from neurflow_engine.errors import LayerError
from neurflow_engine.layers import examine
from neurflow_engine.records import LOGITS
from neurflow_engine.silencing import zeroed
from neurflow_engine.tracing import Place, Segment, edited, record, trace

REAL = {
    "resnet10t": ("resnet10t", {"num_classes": 7}, 64, [("layer2", "layer3"), ("layer3.0.conv1", "layer4"), ("layer4", LOGITS)]),
    "convnext": ("convnext_atto", {"num_classes": 7}, 64, [("stages.1", "stages.2"), ("stages.2.blocks.1", LOGITS)]),
    "vit": ("vit_tiny_patch16_224", {"num_classes": 7, "img_size": 48, "depth": 5}, 48, [("blocks.1", "blocks.3"), ("blocks.4", LOGITS)]),
    "swin": ("swin_tiny_patch4_window7_224", {"num_classes": 7, "img_size": 64}, 64, [("layers.1", "layers.2"), ("layers.3", LOGITS)]),
    "densenet": ("densenet121", {"num_classes": 7}, 64, [("features.denseblock2", "features.denseblock3"), ("features.norm5", LOGITS)]),
    "mobilenetv3": ("mobilenetv3_small_050", {"num_classes": 7}, 64, [("blocks.3", "blocks.5"), ("blocks.5", LOGITS)]),
    "tnt": ("tnt_s_patch16_224", {"num_classes": 7, "img_size": 64, "depth": 3}, 64, [("pos_drop", "norm"), ("norm", LOGITS)]),
}


def forward_by_hand(model, inputs, lower, upper, replacement=None):
    """Output of ``upper`` in an ordinary forward pass in which ``lower`` returns ``replacement``: the truth that replays are held to."""
    modules, found = dict(model.named_modules()), {}
    handles = [modules[upper].register_forward_hook(lambda *call: found.update(upper=call[-1].clone()))] if upper != LOGITS else []
    if replacement is not None:
        handles.append(modules[lower].register_forward_hook(lambda *call: replacement))
    logits = model(inputs)
    for handle in handles:
        handle.remove()
    return found.get("upper", logits)


def assert_untouched(net):
    """No hook, no replaced forward, and the lock is free for another thread."""
    for name, module in net.model.named_modules():
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
        assert "forward" not in module.__dict__, name
    free = []

    def take():
        free.append(net.lock.acquire(timeout=5))
        net.lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert free == [True]


@pytest.fixture(scope="module", params=REAL)
def real(request):
    name, kwargs, size, cuts = REAL[request.param]
    return timm_network(name, **kwargs), size, cuts


class TestReplay:
    def test_equals_the_intact_network_with_any_tensor_at_the_cut(self, real):
        net, size, cuts = real
        inputs = images(2, size, seed=5)
        layers = examine(net, (3, size, size)).layers
        for lower, upper in cuts:
            segment = Segment(net, lower, upper, images(3, size))
            assert segment.replay_error < 1e-6
            at_cut = record(net, inputs, [lower])[lower]
            context = segment.context(inputs) if segment.needs_context else None
            for tensor in (at_cut, 0.3 * at_cut, zeroed(layers[lower], at_cut, range(0, layers[lower].n_channels, 2))):
                expected = forward_by_hand(net.model, inputs, lower, upper, tensor)
                with torch.no_grad():
                    torch.testing.assert_close(segment(tensor, context), expected, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(forward_by_hand(net.model, inputs, lower, upper), expected, rtol=1e-2)  # the cut matters
        assert_untouched(net)

    def test_gradients_are_those_of_the_intact_network(self, real):
        net, size, cuts = real
        inputs = images(2, size, seed=5)
        lower, upper = cuts[0]
        segment = Segment(net, lower, upper, images(3, size))
        context = segment.context(inputs) if segment.needs_context else None
        at_cut = record(net, inputs, [lower])[lower]
        gradients = []
        for forward in (lambda x: segment(x, context), lambda x: forward_by_hand(net.model, inputs, lower, upper, x * 1)):
            leaf = at_cut.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(forward(leaf).square().sum(), leaf)
            gradients.append(gradient)
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5 * float(gradients[1].abs().max()))

    def test_only_the_tnt_needs_context_here(self, real, request):
        net, size, cuts = real
        lower, upper = cuts[0]
        assert Segment(net, lower, upper, images(3, size)).needs_context == ("tnt" in request.node.callspec.id)

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_branch_around_the_cut_needs_its_context_and_is_exact_with_it(self, in_place):
        net = network(SkipAround(in_place))
        segment = Segment(net, "cut", "head", images(3, 8))
        assert segment.needs_context
        inputs = images(4, 8, seed=2)
        quiet = torch.zeros_like(record(net, inputs, ["cut"])["cut"])
        expected = forward_by_hand(net.model, inputs, "cut", "head", quiet)
        for _ in range(2):  # an operation in place must not change the recorded context
            context = segment.context(inputs)
            torch.testing.assert_close(segment(quiet, context), expected)
        with pytest.raises(LayerError, match="context must be given"):
            segment(quiet)

    def test_repeats_each_image_with_its_own_context(self):
        net = network(SkipAround())
        segment = Segment(net, "cut", LOGITS, images(3, 8))
        inputs = images(2, 8, seed=2)
        at_cut = record(net, inputs, ["cut"])["cut"]
        variants = torch.cat([at_cut, 0.5 * at_cut, 0 * at_cut])
        expected = torch.cat([forward_by_hand(net.model, inputs, "cut", LOGITS, part) for part in variants.split(2)])
        torch.testing.assert_close(segment.repeated(variants, segment.context(inputs), 3), expected)

    def test_without_a_branch_operations_in_place_leave_what_was_given_alone(self):
        net = network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)))
        segment = Segment(net, "1", "3", images(3, 8))
        inputs = images(2, 8, seed=2)
        at_cut = record(net, inputs, ["1"])["1"]
        before = at_cut.clone()
        torch.testing.assert_close(segment(at_cut), forward_by_hand(net.model, inputs, "1", "3"))
        assert torch.equal(at_cut, before)
        assert (at_cut < 0).any()  # so the ReLU behind it had something to overwrite

    def test_a_branch_that_starts_at_the_image_is_refused(self):
        with pytest.raises(LayerError, match="cannot be cut between cut and head"):
            Segment(network(FromTheImage()), "cut", "head", images(3, 8))

    def test_a_module_called_on_both_sides_of_the_cut_computes_on_the_far_side(self):
        net = network(Chain())
        inputs = images(3, 2, channels=1)
        segment = Segment(net, "cut", LOGITS, inputs)
        tensor = torch.ones(3, 5)
        torch.testing.assert_close(segment(tensor), net.model.head(tensor.tanh()))

    @pytest.mark.parametrize(("layer", "times"), [("idle", 0), ("act", 2)])
    def test_a_cut_needs_exactly_one_call(self, layer, times):
        with pytest.raises(LayerError, match=f"Layer {layer} is called {times} times"):
            Segment(network(Chain()), layer, LOGITS, images(3, 2, channels=1))

    def test_runs_nothing_below_the_cut(self):
        net = network(Chain())
        segment = Segment(net, "cut", LOGITS, images(3, 2, channels=1))
        names = []
        handles = [
            module.register_forward_hook(lambda *call, name=name: names.append(name)) for name, module in net.model.named_modules() if name
        ]
        with torch.no_grad():
            net.model.first.weight.fill_(float("nan"))
        assert torch.isfinite(segment(torch.ones(2, 5))).all()
        for handle in handles:
            handle.remove()
        assert names == ["first", "act", "cut", "act", "head"]  # all are called; those before the cut answer with stand-ins


def streams_by_hand(model, inputs, left=None, right=None):
    """The logits of ``TwoStreams`` with the given maps in place of those of ``pair``."""
    left = model.pair.left(inputs) if left is None else left
    right = model.pair.right(inputs) if right is None else right
    return model.head(left + right.tanh()).mean((2, 3))


class TestOneTensorOfSeveral:
    """``pair[0]`` is a layer like any other; the second map that the module returns is a branch around the cut."""

    @pytest.mark.parametrize(
        ("name", "place"),
        [
            ("layer4", Place("layer4")),
            ("stage3.1[2]", Place("stage3.1", ("2",))),
            ("blocks.2[0][1]", Place("blocks.2", ("0", "1"))),
            ("neck[high]", Place("neck", ("high",))),
        ],
    )
    def test_a_name_says_where_it_lies(self, name, place):
        assert Place.of(name) == place
        assert place.name == name

    @pytest.fixture(params=[None, ("low", "high")], ids=["list", "dict"])
    def streams(self, request):
        steps = request.param or ("0", "1")
        return network(TwoStreams(request.param)), f"pair[{steps[0]}]", f"pair[{steps[1]}]"

    def test_is_recorded_as_it_was_returned(self, streams):
        net, left, right = streams
        inputs = images(2, 8)
        found = record(net, inputs, [left, right])
        torch.testing.assert_close(found[left], net.model.pair.left(inputs))
        torch.testing.assert_close(found[right], net.model.pair.right(inputs))

    def test_is_silenced_alone(self, streams):
        net, _, right = streams
        inputs = images(2, 8)
        intact = net.model(inputs)
        with edited(net, right, torch.zeros_like):
            found = net.model(inputs)
        torch.testing.assert_close(found, streams_by_hand(net.model, inputs, right=torch.zeros(2, 3, 8, 8)))
        assert not torch.allclose(found, intact)
        assert torch.equal(net.model(inputs), intact)
        assert_untouched(net)

    def test_is_replayed_beside_the_others_as_often_as_wanted(self, streams):
        net, left, right = streams
        inputs = images(2, 8, seed=2)
        given = torch.rand((2, 3, 8, 8))
        for lower, by_hand in ((left, {"left": given}), (right, {"right": given})):
            segment = Segment(net, lower, LOGITS, images(3, 8))
            assert segment.needs_context
            assert segment.replay_error < 1e-6
            context = segment.context(inputs)
            expected = streams_by_hand(net.model, inputs, **by_hand)
            for _ in range(2):  # ``mix`` writes into the list and into the map: neither may be the recorded one
                torch.testing.assert_close(segment(given, context), expected)
            torch.testing.assert_close(segment.repeated(torch.cat([given, given]), context, 2), torch.cat([expected, expected]))
        assert_untouched(net)

    def test_is_the_upper_end_of_a_segment(self):
        net = network(Forks())
        segment = Segment(net, "blocks.0[1][0]", "blocks.1[0]", images(3, 9))
        assert not segment.needs_context
        given = torch.rand((2, 4, 7, 7))
        torch.testing.assert_close(segment(given), net.model.blocks[1].side(given))

    def test_that_leads_nowhere_is_refused(self):
        with pytest.raises(LayerError, match=r"No path leads from blocks\.0\[0\] to logits"):
            Segment(network(Forks()), "blocks.0[0]", LOGITS, images(3, 9))

    @pytest.mark.parametrize("name", ["blocks.0", "blocks.0[1]", "blocks.0[5]"])
    def test_must_be_one_tensor(self, name):
        with pytest.raises(LayerError, match=r"is not one tensor .*: blocks\.0\[0\], blocks\.0\[1\]\[0\]\.$"):
            Segment(network(Forks()), name, LOGITS, images(3, 9))


class TestRecord:
    def test_holds_what_the_layers_returned_before_anything_wrote_into_it(self):
        net = network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2)))
        inputs = images(2, 8)
        found = record(net, inputs, ["0", LOGITS])
        torch.testing.assert_close(found["0"], net.model[0](inputs))
        torch.testing.assert_close(found[LOGITS], net.model(inputs))
        assert (found["0"] < 0).any()

    def test_stops_after_the_last_wanted_layer(self):
        net = network(Chain())
        net.model.fails = True
        assert record(net, images(2, 2, channels=1), ["cut"])["cut"].shape == (2, 5)

    def test_a_layer_that_is_never_called_is_an_error(self):
        net = network(Chain())
        with pytest.raises(LayerError, match="Layer idle was never called"):
            record(net, images(2, 2, channels=1), ["cut", "idle"])
        assert_untouched(net)

    def test_traces_every_call_in_order_of_its_end(self):
        net = network(nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), nn.Tanh()))
        calls = trace(net, images(2, 2, channels=1))
        assert [call.name for call in calls] == ["0.0", "0.1", "0", "1"]
        assert all(call.start < call.end for call in calls)
        torch.testing.assert_close(calls[-1].output, net.model(images(2, 2, channels=1)))


class TestSilencing:
    def test_equals_zeroing_by_hand(self, real):
        net, size, cuts = real
        inputs, lower = images(2, size, seed=5), cuts[-1][0]
        layer = examine(net, (3, size, size)).layers[lower]
        by_hand = record(net, inputs, [lower])[lower]
        for neuron in (0, layer.n_channels - 1):
            by_hand.select(layer.channel_axis, neuron).zero_()
        expected = forward_by_hand(net.model, inputs, lower, LOGITS, by_hand)
        intact = net.model(inputs)
        with edited(net, lower, lambda output: zeroed(layer, output, [0, layer.n_channels - 1])):
            found = net.model(inputs)
        torch.testing.assert_close(found, expected)  # not bit by bit: kernels may round by where a tensor lies in memory
        assert (found - intact).abs().max() > 1e-3
        torch.testing.assert_close(net.model(inputs), intact)

    def test_of_a_layer_that_is_never_called_is_an_error(self):
        net = network(Chain())
        with (
            pytest.raises(LayerError, match="Layer idle was never called while it was to be silenced"),
            edited(net, "idle", torch.zeros_like),
        ):
            net.model(images(2, 2, channels=1))
        assert_untouched(net)

    def test_two_threads_get_the_answers_that_one_after_the_other_gets(self):
        net = timm_network("resnet10t", num_classes=7)
        inputs = images(2, 32)
        layer = examine(net, (3, 32, 32)).layers["layer2"]
        segment = Segment(net, "layer2", LOGITS, images(3, 32))
        groups = [range(64), range(64, 128)]

        def silence(neurons):
            with edited(net, "layer2", lambda output: zeroed(layer, output, neurons)):
                return record(net, inputs, [LOGITS])[LOGITS]

        def replay(neurons):
            with torch.no_grad():
                return segment(zeroed(layer, record(net, inputs, ["layer2"])["layer2"], neurons))

        expected = [silence(neurons) for neurons in groups]
        assert not torch.allclose(*expected)
        intact, wrong, start = record(net, inputs, [LOGITS])[LOGITS], [], threading.Barrier(3)

        def work(number):
            start.wait()
            for repetition in range(40):
                found = (silence, replay)[repetition % 2](groups[number])
                if not torch.allclose(found, expected[number], rtol=1e-5, atol=1e-6):
                    wrong.append((number, repetition))

        def look_on():
            start.wait()
            wrong.extend(
                ("intact", repetition) for repetition in range(40) if not torch.equal(record(net, inputs, [LOGITS])[LOGITS], intact)
            )

        threads = [threading.Thread(target=work, args=(0,)), threading.Thread(target=work, args=(1,)), threading.Thread(target=look_on)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert_untouched(net)


def _raise(error):
    raise error


class TestAfterAnException:
    """A hook or a replaced forward left behind would silently change every later answer."""

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize(
        "use",
        [
            pytest.param(lambda net, x, error: _edited(net, x, torch.zeros_like, lambda: _raise(error)), id="inside the context"),
            pytest.param(lambda net, x, error: _edited(net, x, lambda output: _raise(error)), id="in the edit"),
            pytest.param(lambda net, x, error: record(net, x, ["cut"], keep=lambda name, output: _raise(error)), id="while recording"),
            pytest.param(lambda net, x, error: trace(net, x, keep=lambda name, output: _raise(error)), id="while tracing"),
        ],
    )
    def test_the_model_is_as_before(self, use, error):
        net, inputs = network(Chain()), images(3, 2, channels=1)
        intact = net.model(inputs)
        with pytest.raises(error):
            use(net, inputs, error)
        assert_untouched(net)
        assert torch.equal(net.model(inputs), intact)

    def test_of_the_model_itself_it_is_as_before(self):
        net, inputs = network(Chain()), images(3, 2, channels=1)
        segment = Segment(net, "cut", LOGITS, inputs)
        intact = net.model(inputs)
        net.model.fails = True
        for use in (
            lambda: record(net, inputs, [LOGITS]),
            lambda: trace(net, inputs),
            lambda: segment(torch.ones(3, 5)),
            lambda: Segment(net, "cut", LOGITS, inputs),
            lambda: _edited(net, inputs, torch.zeros_like),
        ):
            with pytest.raises(ArithmeticError, match="the model itself is broken"):
                use()
            assert_untouched(net)
        net.model.fails = False
        assert torch.equal(net.model(inputs), intact)

    def test_the_context_is_recorded_without_what_lies_above_the_cut(self):
        net, inputs = network(Chain()), images(3, 2, channels=1)
        segment = Segment(net, "cut", LOGITS, inputs)
        net.model.fails = True  # above the cut
        context = segment.context(inputs)
        net.model.fails = False
        assert torch.equal(segment(record(net, inputs, ["cut"])["cut"], context), net.model(inputs))

    def test_a_replay_with_a_tensor_of_the_wrong_shape_leaves_the_model_as_before(self):
        net, inputs = network(Chain()), images(3, 2, channels=1)
        segment = Segment(net, "cut", LOGITS, inputs)
        with pytest.raises(RuntimeError):
            segment(torch.ones(3, 4))
        assert_untouched(net)

    def test_a_forward_that_the_model_had_replaced_itself_is_put_back(self):
        net, inputs = network(Chain()), images(3, 2, channels=1)
        own = lambda x: x * 2  # noqa: E731
        net.model.act.forward = own
        segment = Segment(net, "cut", LOGITS, inputs)
        torch.testing.assert_close(segment(torch.ones(3, 5)), net.model.head(2 * torch.ones(3, 5)))
        assert net.model.act.__dict__["forward"] is own

    def test_contexts_inside_each_other_undo_themselves_one_by_one(self):
        net, inputs = network(Chain()), images(3, 2, channels=1)
        intact = net.model(inputs)
        with edited(net, "cut", torch.zeros_like):
            outer = net.model(inputs)
            with suppress(RuntimeError), edited(net, "head", torch.zeros_like):
                assert net.model(inputs).abs().max() == 0
                raise RuntimeError
            assert torch.equal(net.model(inputs), outer)
        assert torch.equal(net.model(inputs), intact)
        assert not torch.equal(outer, intact)


def _edited(net, inputs, edit, afterwards=lambda: None):
    with edited(net, "cut", edit):
        net.model(inputs)
        afterwards()
