"""A name, a folder or a checkpoint becomes a working classifier, or one sentence that says why not."""

import argparse
import json
import os
import pickle
import re
import socket
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from neurflow_engine.class_names import FOLDERS, IMAGENET, UNKNOWN
from neurflow_engine.config import ModelConfig
from neurflow_engine.errors import DataError, InputError, ModelError
from neurflow_engine.models import Preprocessing, load_classifier, read_checkpoint
from neurflow_engine.records import LOGITS
from neurflow_engine.tracing import Segment, record

ASSETS = Path(os.environ.get("NEURFLOW_ASSETS", Path(__file__).parents[1] / "../shared/assets"))


def small(**kwargs) -> torch.nn.Module:
    """A trained-looking network: batch statistics and biases differ from their initial values."""
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", **({"num_classes": 8} | kwargs))
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_()
    return model.eval()


def part_compiled(model):
    """As torch.compile is used on what repeats in a network, not on all of it."""
    model.layer1 = torch.compile(model.layer1)
    return model


def load(checkpoint=None, name="test_resnet", **fields):
    return load_classifier(ModelConfig(name=name, checkpoint=checkpoint, **fields), device="cpu")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(small().state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A model folder in timm's own format."""
    path = tmp_path / "model"
    path.mkdir()
    safetensors.torch.save_file(small(num_classes=3, in_chans=1).state_dict(), path / "model.safetensors")
    source = {"input_size": [1, 64, 96], "mean": [0.4], "std": [0.3], "interpolation": "bilinear", "crop_pct": 0.9, "first_conv": "conv1.0",
              "classifier": "fc", "num_classes": 3}  # fmt: skip
    config = {"architecture": "test_resnet", "num_classes": 3, "model_args": {"in_chans": 1}, "label_names": ["cat", "dog", "owl"]}
    (path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": source}))
    return path


class TestHeads:
    @pytest.mark.parametrize(
        ("name", "pool"),
        [(name, pool) for name in ("test_resnet", "mobilenetv3_small_050") for pool in ("avg", "max", "avgmax", "catavgmax")]
        + [("test_vit", pool) for pool in ("token", "avg", "map")]
        + [(name, pool) for name in ("test_convnext", "swin_tiny_patch4_window7_224") for pool in ("avg", "max")],
    )
    def test_a_checkpoint_of_every_pooling_tells_its_number_of_classes(self, tmp_path, name, pool):
        small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)} if name.startswith("swin") else {}
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, global_pool=pool, **small).eval()
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        classifier = load(tmp_path / "weights.pth", name=name, model_kwargs={"global_pool": pool} | small)
        assert (classifier.n_classes, classifier.class_names_source) == (5, UNKNOWN)
        images = torch.randn(2, 3, *classifier.preprocessing.input_size)
        with torch.no_grad():
            torch.testing.assert_close(classifier.model(images), model(images), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
    def test_without_pooling_there_is_no_classifier(self, name):
        with pytest.raises(ModelError, match=r"with model_kwargs .*\"\".* does not return one row of logits per image"):
            load(name=name, random_weights=True, model_kwargs={"global_pool": "", "num_classes": 2})

    def test_an_encoder_with_a_classifier_when_one_is_asked_for(self):
        small = {"depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 10}
        assert load(name="qwen3_vit_88m", random_weights=True, input_size=(64, 64), model_kwargs=small).n_classes == 10


class TestRandomWeights:
    def test_the_same_every_time_and_the_global_random_state_stays(self):
        torch.manual_seed(11)
        state = torch.get_rng_state()
        first = load(random_weights=True)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(12)
        second = load(random_weights=True)
        assert first.fingerprint == second.fingerprint
        assert torch.equal(first.model.fc.weight, second.model.fc.weight)

    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "test_convnext", "test_efficientnet.r160_in1k"])
    def test_a_classifier_is_ready_to_be_looked_into(self, name):
        classifier = load(name=name, random_weights=True)
        assert not classifier.model.training
        assert not any(parameter.requires_grad for parameter in classifier.model.parameters())
        assert (classifier.n_classes, classifier.class_names_source) == (1000, IMAGENET)
        assert classifier.device == torch.device("cpu")
        assert classifier.checkpoint_sha256 is None
        assert classifier.architecture == name.partition(".")[0]
        assert classifier.name == name

    def test_the_same_from_many_threads_at_once(self):
        prints = []
        threads = [threading.Thread(target=lambda: prints.append(load(name="test_vit", random_weights=True).fingerprint)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(prints) == 4
        assert len(set(prints)) == 1

    def test_not_together_with_a_checkpoint(self, weights):
        with pytest.raises(ModelError, match=r"random weights and checkpoint .* exclude each other"):
            load(weights, random_weights=True)

    def test_two_threads_cannot_hold_the_lock_at_once(self):
        classifier = load(random_weights=True)
        taken = []
        with classifier.lock, classifier.lock:
            other = threading.Thread(target=lambda: taken.append(classifier.lock.acquire(blocking=False)))
            other.start()
            other.join()
        assert taken == [False]


class TestFingerprint:
    def test_follows_weights_buffers_arguments_and_preprocessing(self, tmp_path, weights):
        state = small().state_dict()
        changed = {"weight": dict(state), "buffer": dict(state)}
        changed["weight"]["fc.bias"] = state["fc.bias"] + 1e-6
        changed["buffer"]["bn1.running_mean"] = state["bn1.running_mean"] + 1e-6
        prints = [load(weights).fingerprint, load(weights, crop_pct=0.5).fingerprint, load(weights, input_size=(64, 64)).fingerprint]
        for name, tensors in changed.items():
            safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
            prints.append(load(tmp_path / f"{name}.safetensors").fingerprint)
        prints.append(load(weights, model_kwargs={"output_stride": 8}).fingerprint)
        assert len(set(prints)) == len(prints)

    def test_does_not_follow_the_file(self, tmp_path, weights):
        torch.save(small().state_dict(), tmp_path / "weights.pth")
        one, other = load(weights), load(tmp_path / "weights.pth")
        assert one.fingerprint == other.fingerprint
        assert one.checkpoint_sha256 != other.checkpoint_sha256


class TestCheckpoints:
    def same(self, classifier) -> bool:
        expected = small().state_dict()
        return all(torch.equal(value, expected[key]) for key, value in classifier.model.state_dict().items())

    @pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt", "pth.tar"])
    def test_plain_state_dicts(self, tmp_path, suffix):
        torch.save(small().state_dict(), tmp_path / f"weights.{suffix}")
        assert self.same(load(tmp_path / f"weights.{suffix}"))

    def test_safetensors_and_the_number_of_classes_is_read_from_the_weights(self, weights):
        classifier = load(weights)
        assert self.same(classifier)
        assert (classifier.n_classes, classifier.class_names_source, classifier.class_names[7]) == (8, UNKNOWN, "class 7")
        assert len(classifier.checkpoint_sha256) == 64

    @pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "state_dict", "model", "module"])
    def test_wrappers(self, tmp_path, wrapper):
        torch.save({wrapper: small().state_dict(), "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "weights.pth")
        assert self.same(load(tmp_path / "weights.pth"))

    def test_averaged_weights_are_preferred(self, tmp_path):
        torch.save({"state_dict": small(num_classes=2).state_dict(), "state_dict_ema": small().state_dict()}, tmp_path / "weights.pth")
        assert self.same(load(tmp_path / "weights.pth"))

    def test_an_empty_average_is_passed_over(self, tmp_path):
        torch.save({"state_dict": small().state_dict(), "state_dict_ema": None}, tmp_path / "weights.pth")
        assert self.same(load(tmp_path / "weights.pth"))

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
    def test_prefixes_of_training_wrappers(self, tmp_path, prefix):
        state = {prefix + key: value for key, value in small().state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "weights.pth")
        assert self.same(load(tmp_path / "weights.pth"))

    @pytest.mark.parametrize(
        "wrapped",
        [
            torch.compile,
            nn.DataParallel,
            lambda model: nn.DataParallel(torch.compile(model)),
            lambda model: torch.compile(nn.DataParallel(model)),
            ModelEmaV3,
            lambda model: ModelEmaV3(torch.compile(model)),
            AveragedModel,
            lambda model: AveragedModel(nn.DataParallel(model)),
            part_compiled,
        ],
        ids=["compile", "parallel", "parallel-compile", "compile-parallel", "ema", "ema-compile", "average", "average-parallel", "part"],
    )
    @pytest.mark.parametrize("under", [None, "state_dict", "model", "model_state_dict", "ema"])
    def test_what_wrapped_networks_save(self, tmp_path, wrapped, under):
        state = wrapped(small()).state_dict()
        assert state.keys() != small().state_dict().keys()
        torch.save({under: state, "epoch": 3} if under else state, tmp_path / "weights.pth")
        assert self.same(load(tmp_path / "weights.pth"))

    def test_what_timms_trainer_writes(self, tmp_path):
        content = {"epoch": 1, "arch": "test_resnet", "state_dict": small().state_dict(), "args": argparse.Namespace(lr=0.1), "version": 2}
        torch.save(content, tmp_path / "last.pth.tar")
        assert self.same(load(tmp_path / "last.pth.tar"))

    def test_files_of_old_torch(self, tmp_path):
        torch.save(small().state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
        assert self.same(load(tmp_path / "weights.pth"))

    def test_half_precision_and_counters_of_batches_left_out(self, tmp_path):
        state = {key: value.half() for key, value in small().state_dict().items() if not key.endswith("num_batches_tracked")}
        safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
        classifier = load(tmp_path / "weights.safetensors")
        assert classifier.model.fc.weight.dtype == torch.float32
        assert torch.equal(classifier.model.fc.weight, small().fc.weight.half().float())

    def test_buffers_that_the_model_computes_itself_do_not_count(self, tmp_path):
        torch.manual_seed(0)
        model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), num_classes=3)
        computed = dict(model.named_buffers()).keys() - model.state_dict().keys()
        assert any("relative_position_index" in key for key in computed)
        torch.save(model.state_dict() | {key: dict(model.named_buffers())[key] for key in computed}, tmp_path / "weights.pth")
        kwargs = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
        assert load(tmp_path / "weights.pth", name="swin_tiny_patch4_window7_224", model_kwargs=kwargs).n_classes == 3

    def test_weights_in_the_format_of_the_first_release(self, tmp_path):
        model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=1000)
        renamed = (
            (r"^head\.norm", "norm"),
            (r"^head\.fc", "head"),
            (r"^stem", "downsample_layers.0"),
            (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
            (r"^stages\.(\d)\.blocks", r"stages.\1"),
            ("conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
        )
        state = model.state_dict()
        for pattern, old in renamed:
            state = {re.sub(pattern, old, key): value for key, value in state.items()}
        assert "stages.1.0.dwconv.weight" in state
        assert "downsample_layers.1.1.weight" in state
        torch.save({"model": state}, tmp_path / "weights.pth")
        classifier = load(tmp_path / "weights.pth", name="convnext_atto", model_kwargs={"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]})
        assert torch.equal(classifier.model.head.fc.weight, model.head.fc.weight)

    def test_another_input_size_of_a_model_with_positions(self, tmp_path):
        torch.save(timm.create_model("test_vit", num_classes=5).state_dict(), tmp_path / "weights.pth")
        classifier = load(tmp_path / "weights.pth", name="test_vit", input_size=(96, 128))
        assert classifier.preprocessing.input_size == (96, 128)
        assert classifier.model(torch.zeros(1, 3, 96, 128)).shape == (1, 5)


class Evil:
    """Unpickling this creates a file: the trace of code that ran."""

    def __init__(self, path, function=os.system):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (f"touch {self.path}",) if self.function is os.system else (f"open({str(self.path)!r}, 'w')",)


class TestRefusedCheckpoints:
    @pytest.mark.parametrize("function", [os.system, eval])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_code_in_a_pickle_is_not_run(self, tmp_path, function, wrapped):
        evil = Evil(tmp_path / "ran", function)
        torch.save({"state_dict": small().state_dict(), "extra": evil} if wrapped else evil, tmp_path / "evil.pth")
        with pytest.raises(
            ModelError, match=r"evil\.pth holds Python objects that would run code \((posix\.system|eval)\); refused, save .*\.$"
        ):
            load(tmp_path / "evil.pth")
        assert not (tmp_path / "ran").exists()
        torch.load(tmp_path / "evil.pth", weights_only=False)  # the trap is real
        assert (tmp_path / "ran").exists()

    def test_code_in_a_bare_pickle_is_not_run(self, tmp_path):
        (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
        with pytest.raises(ModelError, match=r"evil\.bin is damaged or no checkpoint of PyTorch\.$"):
            load(tmp_path / "evil.bin")
        assert not (tmp_path / "ran").exists()

    def test_code_in_a_model_folder_is_not_run(self, tmp_path, folder):
        (folder / "model.safetensors").unlink()
        torch.save(Evil(tmp_path / "ran"), folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match="would run code"):
            load(name=f"local-dir:{folder}")
        assert not (tmp_path / "ran").exists()

    def test_a_whole_pickled_network_is_refused(self, tmp_path):
        torch.save(small(), tmp_path / "model.pth")
        with pytest.raises(ModelError, match=r"would run code \(timm\.models\.resnet\.ResNet\)"):
            load(tmp_path / "model.pth")

    @pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
    def test_torchscript_is_refused(self, tmp_path):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "model.pt")
        with pytest.raises(ModelError, match=r"would run code \(TorchScript\)"):
            load(tmp_path / "model.pt")

    @pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
    def test_truncated_files(self, tmp_path, suffix):
        path = tmp_path / f"weights.{suffix}"
        save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
        save(small().state_dict(), path)
        whole = path.read_bytes()
        for length in (0, 5, 1000, len(whole) // 2):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError, match=rf"^Checkpoint .*weights\.{suffix} is damaged or no .*\)\.$"):
                load(path)

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_files_that_never_were_a_checkpoint(self, tmp_path, suffix):
        path = tmp_path / f"weights.{suffix}"
        path.write_text("These are my notes about the model.\n" * 50)
        with pytest.raises(ModelError, match=r"is damaged or no"):
            load(path)

    @pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}, [1, 2], torch.zeros(3), {"model": {"epoch": 1}}])
    def test_files_without_weights(self, tmp_path, content):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match=r"holds no weights; expected a state dict, alone or under state_dict_ema, "):
            load(tmp_path / "weights.pth")

    def test_a_dictionary_that_holds_itself(self, tmp_path):
        content = {}
        content["model"] = content
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match="holds no weights"):
            load(tmp_path / "weights.pth")

    def test_weights_that_are_no_numbers(self, tmp_path):
        torch.save(small().state_dict() | {"fc.bias": torch.full((8,), torch.nan)}, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match="returns no finite numbers for a blank image; its weights are damaged"):
            load(tmp_path / "weights.pth")

    def test_wrong_paths(self, tmp_path):
        for name, sentence in (("gone.pth", "does not exist"), ("", "is a folder, not a file")):
            with pytest.raises(ModelError, match=sentence):
                load(tmp_path / name)
        (tmp_path / "weights.h5").touch()
        with pytest.raises(ModelError, match=r"has to be one of \.safetensors, \.pth, \.pt"):
            load(tmp_path / "weights.h5")


class TestMismatch:
    def test_another_architecture(self, weights):
        with pytest.raises(ModelError) as error:
            load(weights, name="mobilenetv3_small_050")
        message = str(error.value)
        assert message.startswith(f"Checkpoint {weights} does not fit model mobilenetv3_small_050: ")
        assert "keys missing (conv_stem.weight, " in message
        assert "keys unexpected (" in message
        assert message.endswith("It was probably made for another architecture or other model kwargs.")

    def test_another_number_of_classes(self, weights):
        with pytest.raises(ModelError) as error:
            load(weights, model_kwargs={"num_classes": 1000})
        assert "2 shapes differ (" in str(error.value)
        assert "fc.weight: checkpoint has [8, 96], model expects [1000, 96]" in str(error.value)
        assert str(error.value).endswith("""It has 8 classes: give --model-kwargs '{"num_classes": 8}'.""")

    def test_another_number_of_channels(self, tmp_path):
        torch.save(small(in_chans=1).state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ModelError) as error:
            load(tmp_path / "weights.pth")
        assert str(error.value).endswith("""It takes 1 input channels: give --model-kwargs '{"in_chans": 1}'.""")
        assert load(tmp_path / "weights.pth", model_kwargs={"in_chans": 1}).preprocessing.in_chans == 1

    def test_a_few_keys_missing_or_too_many(self, tmp_path):
        state = small().state_dict()
        del state["layer1.0.bn1.weight"]
        torch.save(state | {"aux.weight": torch.zeros(2)}, tmp_path / "weights.pth")
        with pytest.raises(ModelError) as error:
            load(tmp_path / "weights.pth")
        assert str(error.value).endswith(": 1 keys missing (layer1.0.bn1.weight), 1 keys unexpected (aux.weight).")


class TestModelFolder:
    def test_everything_comes_from_the_folder(self, folder):
        classifier = load(name=f"local-dir:{folder}")
        assert classifier.preprocessing == Preprocessing((64, 96), 1, (0.4,), (0.3,), "bilinear", 0.9, "center")
        assert (classifier.class_names, classifier.class_names_source) == (("cat", "dog", "owl"), "the model's own label names")
        assert classifier.architecture == "test_resnet"
        with torch.no_grad():
            image = torch.ones(1, 1, 64, 96)
            torch.testing.assert_close(classifier.model(image), small(num_classes=3, in_chans=1)(image))

    def test_timm_loads_the_same(self, folder):
        reference = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(reference.fc.weight, load(name=f"local-dir:{folder}").model.fc.weight)

    def test_it_can_be_overridden(self, folder):
        classifier = load(name=f"local-dir:{folder}", input_size=(32, 32), mean=(0.1,), crop_mode="squash", interpolation="nearest")
        assert classifier.preprocessing == Preprocessing((32, 32), 1, (0.1,), (0.3,), "nearest", 0.9, "squash")

    def test_its_architecture_with_random_weights(self, folder):
        (folder / "model.safetensors").unlink()
        assert load(name=f"local-dir:{folder}", random_weights=True).n_classes == 3

    def test_problems_are_one_sentence(self, tmp_path, folder):
        with pytest.raises(ModelError, match=r"Model folder .*nowhere does not exist; expected a folder with config\.json"):
            load(name=f"local-dir:{tmp_path / 'nowhere'}")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelError, match=r"empty has no config\.json"):
            load(name=f"local-dir:{tmp_path / 'empty'}")
        (folder / "model.safetensors").rename(folder / "notes.txt")
        with pytest.raises(ModelError, match=r"has no weight file; expected model\.safetensors"):
            load(name=f"local-dir:{folder}")

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            "{}",
            '{"architecture": "no_such_model", "pretrained_cfg": {}}',
            '{"architecture": "test_resnet", "pretrained_cfg": {"a": 1}}',
        ],
    )
    def test_a_broken_config_is_one_sentence(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"^[^\n]*\.$"):
            load(name=f"local-dir:{folder}")

    @pytest.mark.parametrize(
        ("key", "value"), [("input_size", 224), ("mean", "grey"), ("std", [0.0]), ("interpolation", "guessed"), ("crop_pct", "most")]
    )
    def test_broken_preprocessing_settings_are_one_sentence(self, folder, key, value):
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"][key] = value
        config["model_args"] = {} if key == "input_size" else config["model_args"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"^Model local-dir:[^\n]*\.$"):
            load(name=f"local-dir:{folder}")


class TestNames:
    def test_unknown_names_list_near_matches(self):
        with pytest.raises(ModelError, match=r"timm .* has no model 'resnet81'\. Did you mean .*resnet18"):
            load(name="resnet81", random_weights=True)

    def test_unknown_weights_list_what_there_is(self):
        with pytest.raises(ModelError, match=r"Model resnet18 has no pretrained weights 'b2'; timm knows .*a1_in1k"):
            load(name="resnet18.b2", random_weights=True)

    @pytest.mark.parametrize("name", ["http://x/y", "timm/resnet18", "/tmp/model", "hf-hub:"])
    def test_unknown_sources(self, name):
        with pytest.raises(ModelError, match=r"^[^\n]*\.$"):
            load(name=name, random_weights=True)

    def test_a_model_without_a_classifier(self):
        with pytest.raises(ModelError, match=r"has no classifier \(0 classes\)"):
            load(name="vit_small_patch14_dinov2", random_weights=True)

    @pytest.mark.parametrize(
        ("kwargs", "sentence"),
        [
            (
                {"colour": "red"},
                r"Model test_resnet with model_kwargs {\"colour\": \"red\"} cannot be built: .*unexpected keyword argument 'colour'\.",
            ),
            ({"layers": "many"}, r"with model_kwargs .* cannot be built: "),
            ({"num_classes": -1}, r"has no classifier \(0 classes\)"),
            ({"num_classes": 0}, r"has no classifier"),
            ({"pretrained": True}, r"model_kwargs pretrained cannot be set here; leave them out"),
            ({"features_only": True}, r"model_kwargs features_only cannot be set here"),
            ({"in_chans": 4}, r"takes 4 input channels; only images with 1 or 3 can be read"),
            ({"in_chans": "x"}, r"^Model test_resnet with model_kwargs .* cannot be used: "),
            ({"global_pool": ""}, r"does not return one row of logits per image, so it cannot be used as a classifier\."),
        ],
    )
    def test_bad_model_kwargs_are_one_sentence(self, kwargs, sentence):
        with pytest.raises(ModelError, match=sentence) as error:
            load(random_weights=True, model_kwargs=kwargs)
        assert "\n" not in str(error.value)

    def test_an_input_size_the_model_cannot_take(self):
        with pytest.raises(ModelError, match=r"^Model levit_128 does not accept an input of 100 x 100 pixels: .*\.$"):
            load(name="levit_128", random_weights=True, input_size=(100, 100))


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No connection is possible and nothing was downloaded before."""

    def refused(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
class TestWithoutNetwork:
    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("test_resnet", r"^Weights of test_resnet could not .* to huggingface\.co\); give --checkpoint FILE or --random-weights\.$"),
            ("gcvit_xxtiny", r"^Weights of gcvit_xxtiny could not .* to github\.com\); give --checkpoint FILE or --random-weights\.$"),
            (
                "hf-hub:timm/test_resnet.r160_in1k",
                r"^The configuration of hf-hub:timm/.* could not be fetched \(no connection to .*FOLDER\.$",
            ),
        ],
    )
    def test_it_fails_within_seconds_with_what_to_do(self, name, sentence):
        start = time.monotonic()
        with pytest.raises(ModelError, match=sentence):
            load(name=name)
        assert time.monotonic() - start < 10

    def test_the_hub_is_asked_again_later(self):
        with pytest.raises(ModelError):
            load(name="test_resnet")
        assert not huggingface_hub.constants.HF_HUB_OFFLINE

    def test_a_model_that_never_had_weights(self):
        with pytest.raises(ModelError, match="timm has no pretrained weights for nfnet_f0; give --checkpoint FILE or --random-weights"):
            load(name="nfnet_f0")

    def test_another_number_of_classes_needs_a_checkpoint(self):
        with pytest.raises(
            ModelError, match="its pretrained classifier has 1000 classes, so model_kwargs num_classes 8 would leave it untrained"
        ):
            load(name="test_resnet", model_kwargs={"num_classes": 8})

    def test_downloaded_weights_are_used(self, tmp_path):
        snapshot = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (tmp_path / "models--timm--test_resnet.r160_in1k" / "refs").mkdir()
        (tmp_path / "models--timm--test_resnet.r160_in1k" / "refs" / "main").write_text("abc")
        safetensors.torch.save_file(small(num_classes=1000).state_dict(), snapshot / "model.safetensors")
        assert torch.equal(load(name="test_resnet").model.fc.bias, small(num_classes=1000).fc.bias)


class TestDevices:
    @pytest.mark.parametrize(
        ("device", "sentence"),
        [
            ("gpu", "is unknown; expected auto, cpu, cuda"),
            ("cuda:x", "is unknown"),
            ("cuda:99", "is not available"),
            ("cpu:1", "is not available"),
        ],
    )
    def test_wrong_devices_are_one_sentence(self, device, sentence):
        with pytest.raises(InputError, match=sentence):
            load_classifier(ModelConfig(name="test_resnet", random_weights=True), device)

    def test_auto_is_a_device_that_works(self):
        classifier = load_classifier(ModelConfig(name="test_vit", random_weights=True))
        assert next(classifier.model.parameters()).device.type == classifier.device.type


class TestPreprocessing:
    def test_it_is_timms_evaluation_transform(self):
        classifier = load(name="test_vit", random_weights=True)
        reference = create_transform(**resolve_model_data_config(classifier.model), is_training=False)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
        assert torch.equal(classifier.preprocessing.transform()(image), reference(image))

    def test_it_can_be_sent_to_another_process(self):
        transform = pickle.loads(pickle.dumps(Preprocessing((8, 8), 3, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "border").transform()))  # noqa: S301
        assert transform(Image.new("RGB", (9, 9))).shape == (3, 8, 8)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
    def test_every_crop_mode_gives_the_input_size_and_true_colours_come_back(self, channels, crop_mode):
        mean, std = (0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 0.4)[:channels]
        preprocessing = Preprocessing((24, 36), channels, mean, std, "bilinear", 1.0, crop_mode)
        colour = (200, 30, 120) if channels == 3 else 200
        tensor = preprocessing.transform()(Image.new("RGB" if channels == 3 else "L", (60, 40), colour))
        assert tensor.shape == (channels, 24, 36)
        pixels = preprocessing.to_pixels(tensor)
        assert (pixels.shape, pixels.dtype) == ((24, 36, 3), np.uint8)
        assert pixels[12, 18].tolist() == (list(colour) if channels == 3 else [200] * 3)

    def test_pixels_stay_in_range(self):
        preprocessing = Preprocessing((2, 2), 3, (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center")
        assert preprocessing.to_pixels(torch.full((3, 2, 2), 9.0)).max() == 255
        assert preprocessing.to_pixels(torch.full((3, 2, 2), -9.0)).min() == 0

    def test_a_grey_model_gets_one_mean_of_its_own(self):
        preprocessing = load(random_weights=True, model_kwargs={"in_chans": 1}).preprocessing
        assert (preprocessing.in_chans, len(preprocessing.mean), len(preprocessing.std)) == (1, 1, 1)

    def test_one_value_stands_for_all_channels_and_a_wrong_count_is_refused(self):
        assert load(random_weights=True, std=(0.25,)).preprocessing.std == (0.25,) * 3
        with pytest.raises(ModelError, match=r"takes 3 input channels, but --mean has 2 values"):
            load(random_weights=True, mean=(0.1, 0.2))

    def test_an_input_size_given_as_a_model_argument(self):
        assert load(name="test_vit", random_weights=True, model_kwargs={"img_size": 96}).preprocessing.input_size == (96, 96)


class TestClassNames:
    def test_a_class_map_is_strongest(self, tmp_path, folder):
        (tmp_path / "names.txt").write_text("a\nb\nc\n")
        classifier = load(name=f"local-dir:{folder}", class_map=tmp_path / "names.txt")
        assert (classifier.class_names, classifier.class_names_source) == (("a", "b", "c"), "class map names.txt")

    def test_a_class_map_of_another_length_is_refused(self, tmp_path, folder):
        (tmp_path / "names.txt").write_text("a\nb\n")
        with pytest.raises(ModelError, match="names 2 classes, but the model has 3"):
            load(name=f"local-dir:{folder}", class_map=tmp_path / "names.txt")

    def test_folders_name_the_classes_where_their_number_agrees(self, weights):
        names = tuple("hgfedcba")
        named = load_classifier(ModelConfig(name="test_resnet", checkpoint=weights), "cpu", names)
        assert (named.class_names, named.class_names_source) == (tuple(sorted(names)), FOLDERS)
        assert load_classifier(ModelConfig(name="test_resnet", checkpoint=weights), "cpu", names[1:]).class_names_source == UNKNOWN

    def test_a_thousand_folders_of_imagenet_do_not_replace_its_names(self):
        folders = tuple(f"{index:03d}" for index in range(1000))
        classifier = load_classifier(ModelConfig(name="test_vit", random_weights=True), "cpu", folders)
        assert classifier.class_names_source == IMAGENET

    @pytest.mark.parametrize("labels", [["cat", "dog"], {"cat": 0, "dog": 1, "owl": 2}, {}])
    def test_labels_that_do_not_name_each_class_are_not_used(self, folder, labels):
        config = json.loads((folder / "config.json").read_text()) | {"label_names": labels}
        (folder / "config.json").write_text(json.dumps(config))
        assert load(name=f"local-dir:{folder}").class_names_source == UNKNOWN

    def test_labels_by_index(self, folder):
        config = json.loads((folder / "config.json").read_text()) | {"label_names": {"2": "owl", "0": "cat", "1": "dog"}}
        (folder / "config.json").write_text(json.dumps(config))
        assert load(name=f"local-dir:{folder}").class_names == ("cat", "dog", "owl")

    def test_a_class_is_found_by_name_or_index(self, folder):
        classifier = load(name=f"local-dir:{folder}")
        assert (classifier.class_index("OWL"), classifier.class_index("1")) == (2, 1)
        with pytest.raises(DataError, match=r"no class 'cot'.* Did you mean cat\?"):
            classifier.class_index("cot")


class TestMergedClasses:
    @pytest.fixture
    def merge(self, tmp_path):
        (tmp_path / "pets.json").write_text(json.dumps({"pet": [6, "1-3"], "bird": ["class 0"]}))
        return tmp_path / "pets.json"

    def test_are_as_probable_as_their_members_together_and_the_others_stay(self, weights, merge):
        plain, merged = load(weights), load(weights, merge=merge)
        assert merged.class_names == ("pet", "bird", "class 4", "class 5", "class 7")
        images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before, after = plain.model(images).softmax(1), merged.model(images).softmax(1)
        torch.testing.assert_close(after[:, 0], before[:, [6, 1, 2, 3]].sum(1))
        torch.testing.assert_close(after[:, 1:], before[:, [0, 4, 5, 7]])

    def test_are_seen_by_what_cuts_the_network(self, weights, merge):
        classifier = load(weights, merge=merge)
        images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        recorded = record(classifier, images, ["layer1", LOGITS])
        assert recorded[LOGITS].shape == (3, 5)
        segment = Segment(classifier, "layer1", LOGITS, images)
        torch.testing.assert_close(segment(recorded["layer1"]), recorded[LOGITS], rtol=1e-4, atol=1e-5)

    def test_keep_the_names_of_modules_and_weights_but_are_another_model(self, weights, merge):
        plain, merged = load(weights), load(weights, merge=merge)
        assert list(plain.model.state_dict()) == list(merged.model.state_dict())
        assert plain.fingerprint != merged.fingerprint
        assert load(weights, merge=merge).fingerprint == merged.fingerprint
        merge.write_text(json.dumps({"pet": [6, "1-2"], "bird": ["class 0"]}))
        assert load(weights, merge=merge).fingerprint != merged.fingerprint


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the shared assets are not here")
def test_a_real_model_is_the_one_that_timm_loads():
    name = f"local-dir:{ASSETS / 'imagenet_mobilenetv2'}"
    classifier = load(name=name, crop_pct=1.0)
    assert (classifier.class_index("lesser panda"), classifier.preprocessing.crop_pct) == (387, 1.0)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(classifier.model(image), timm.create_model(name, pretrained=True).eval()(image), rtol=1e-4, atol=1e-4)


def test_weights_are_read_without_a_model(weights):
    assert read_checkpoint(weights)["fc.weight"].shape == (8, 96)
