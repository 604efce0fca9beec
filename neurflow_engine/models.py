"""From a name or a file to a classifier: the network, how its input is prepared, what its outputs are called.

In: a ModelConfig and a device. Out: a Classifier that nobody trains any more; or a ModelError that says why there is none.
"""

import argparse
import hashlib
import json
import pickle
import re
import socket
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sys import modules
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import huggingface_hub
import numpy as np
import safetensors
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_model_input_config, parse_model_name, resolve_model_input_args
from torch import Tensor, nn

from neurflow_engine.access import check_readable
from neurflow_engine.class_names import FOLDERS, IMAGENET, UNKNOWN, find_class, imagenet_names, match_folders, read_class_map, read_merge
from neurflow_engine.config import ModelConfig
from neurflow_engine.errors import InputError, ModelError, near_matches
from neurflow_engine.tracing import merge_outputs

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # timm's trainer writes .pth.tar

_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "module")  # averaged weights first, as timm
_PREFIXES = ("module.", "model.")
_ANYWHERE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # parts of a network may be wrapped too
_COUNTER = "n_averaged"  # of torch's AveragedModel, beside the weights
_NOT_FOR_CLASSIFIERS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "features_only",
    "cache_dir",
    "scriptable",
)
_NEEDS_CODE = re.compile(
    r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|for unrecognized function|via `add_safe_globals`,? but got) "
    r"(?:<(?:class|function|built-in function) )?'?([\w.]+)"
)
_SECONDS_TO_ANSWER = 4
_BUILDING = threading.Lock()  # networks draw their first weights from the one random state that all threads share
_INSTEAD = "give --checkpoint FILE or --random-weights"
_NO_ROW = "does not return one row of logits per image, so it cannot be used as a classifier"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: timm's evaluation transform, and back to pixels."""

    input_size: tuple[int, int]  # (height, width)
    in_chans: int  # 1 or 3
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    def transform(self) -> Callable:
        """A picklable callable from a PIL image (mode RGB or L, as ``in_chans`` asks) to a normalised Tensor (channels, height, width)."""
        return create_transform(
            (self.in_chans, *self.input_size),
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )

    def to_pixels(self, image: Tensor) -> np.ndarray:
        """True colours of a normalised image (channels, height, width): array (height, width, 3) of 0..255."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (image.detach().float().cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier ready to be looked into. Hold ``lock`` while the model runs with hooks."""

    model: nn.Module  # in eval mode, no parameter asks for a gradient; takes (n_images, channels, height, width)
    config: ModelConfig  # what was asked for
    architecture: str  # timm's name
    class_names: tuple[str, ...]
    class_names_source: str
    preprocessing: Preprocessing
    checkpoint_sha256: str | None  # of the local weight file, where there is one
    fingerprint: str  # sha256 over architecture, arguments, weights, buffers, preprocessing and which classes are merged
    device: torch.device
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """The model as it was asked for."""
        return self.config.name

    @property
    def n_classes(self) -> int:
        """Number of outputs."""
        return len(self.class_names)

    def class_index(self, name_or_digits: str) -> int:
        """The class that a name or an index in digits stands for; raises DataError with near matches."""
        return find_class(name_or_digits, self.class_names, self.class_names_source)


def load_classifier(config: ModelConfig, device: str = "auto", folders: Sequence[str] = ()) -> Classifier:
    """Build the classifier that ``config`` asks for.

    Weights come from the checkpoint, the ``local-dir:`` folder, or the hub; random ones only when asked for (the same every time).
    ``folders`` are the class folders of the data: they name the classes where nothing better is known and their number agrees.
    Raises ModelError when the name, the weights or the arguments do not make a working classifier, InputError for the device.
    """
    place = _device(device)
    if config.random_weights and config.checkpoint:
        raise ModelError(f"Model {config.name}: random weights and checkpoint {config.checkpoint} exclude each other; ask for one of them.")
    arguments = _arguments(config)
    checkpoint = None if config.random_weights else config.checkpoint or _weights_in_folder(config.name)
    state = read_checkpoint(checkpoint) if checkpoint else None
    if state is not None and "num_classes" not in config.model_kwargs:
        arguments |= _classes_of(state, arguments["pretrained_cfg"])
    fetch = state is None and not config.random_weights
    if fetch:
        _check_fetchable(config, arguments)
    model = _created(config, arguments, fetch)
    if state is not None:
        _fill(model, state, checkpoint, config.name)
    preprocessing = _preprocessing(config, model)
    model = model.eval().requires_grad_(False).to(place, memory_format=torch.channels_last)  # convolutions run faster so, on CPU and GPU
    n_classes = _tried(model, preprocessing, config, place)
    class_names, source = _class_names(config, model.pretrained_cfg, n_classes, folders)
    fingerprint = _fingerprint(model, arguments, preprocessing)
    if config.merge:
        merged = read_merge(config.merge, class_names, source)
        rest = merge_outputs(model, list(merged.values()), n_classes)
        class_names = (*merged, *(class_names[index] for index in rest))
        source = f"{source}, some merged by {config.merge.name}"
        fingerprint = hashlib.sha256(json.dumps([fingerprint, merged]).encode()).hexdigest()
    return Classifier(
        model=model,
        config=config,
        architecture=arguments["model_name"],
        class_names=class_names,
        class_names_source=source,
        preprocessing=preprocessing,
        checkpoint_sha256=_file_sha256(checkpoint) if checkpoint else None,
        fingerprint=fingerprint,
        device=place,
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file, unwrapped and with the prefixes of training wrappers removed.

    Raises ModelError when there is no such file, it is damaged, holds no weights, or holds Python objects, which are never loaded.
    """
    path = Path(path)
    check_readable(path, "Checkpoint")
    if not path.is_file():
        raise ModelError(f"Checkpoint {path} {'is a folder, not a file' if path.is_dir() else 'does not exist'}.")
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise ModelError(f"Checkpoint {path} has to be one of {', '.join(CHECKPOINT_SUFFIXES)}.")
    content = _safetensors(path) if path.suffix.lower() == ".safetensors" else _pickled_tensors(path)
    for _ in range(3):  # not for as long as there is one: a dictionary in a file may hold itself
        content = next((inside for inside in map(_items(content).get, _WRAPPERS) if isinstance(inside, Mapping)), content)
    tensors = {
        _ANYWHERE.sub("", key): value for key, value in _items(content).items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    tensors.pop(_COUNTER, None)
    if not tensors:
        raise ModelError(f"Checkpoint {path} holds no weights; expected a state dict, alone or under {', '.join(_WRAPPERS)}.")
    while prefix := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _items(content: object) -> Mapping:
    return content if isinstance(content, Mapping) else {}


def _device(name: str) -> torch.device:
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind, _, index = name.partition(":")
    if kind not in available or (index and not index.isdecimal()):
        raise InputError(f"Device {name} is unknown; expected auto, cpu, cuda, cuda:N or mps.")
    if int(index or 0) >= available[kind]:
        usable = ", ".join(["auto", *(kind for kind, count in available.items() if count)])
        raise InputError(f"Device {name} is not available on this machine; choose one of {usable}.")
    return torch.device(name)


def _arguments(config: ModelConfig) -> dict:
    """Arguments of timm's ``create_model``: the model's own, overridden by the configuration."""
    if reserved := [key for key in _NOT_FOR_CLASSIFIERS if key in config.model_kwargs]:
        raise ModelError(f"Model {config.name}: model_kwargs {', '.join(reserved)} cannot be set here; leave them out.")
    try:
        origin, identifier = parse_model_name(config.name)
    except ValueError as error:
        raise ModelError(f"{str(error).rstrip('.')}.") from None
    if origin is None:
        _check_known(identifier)
    elif origin == "local-dir":
        _check_folder(Path(identifier))
    try:
        instead = "give a timm name with --checkpoint FILE, or local-dir:FOLDER"
        with _hub(f"The configuration of {config.name}", instead) if origin == "hf-hub" else nullcontext():
            arguments = resolve_model_input_args(config.name, **config.model_kwargs)
        if config.input_size:
            channels = arguments.get("in_chans", arguments["pretrained_cfg"]["input_size"][0])
            arguments = resolve_model_input_args(arguments.pop("model_name"), {"input_size": (channels, *config.input_size)}, **arguments)
    except ModelError:
        raise
    except KeyError as error:
        raise ModelError(f"Model {config.name}: its config.json lacks {error}.") from None
    except (ValueError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise ModelError(f"{_described(config)} cannot be used: {_brief(error)}.") from None
    return arguments


def _check_folder(folder: Path) -> None:
    for path in (folder, folder / "config.json"):  # a link in a folder that may be read can lead out of it
        check_readable(path, "Model folder")
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelError(f"Model folder {folder} {problem}; expected a folder with config.json and model.safetensors.")


def _check_known(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(f"timm {timm.__version__} has no model '{name}'.{near_matches(architecture, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ModelError(f"Model {architecture} has no pretrained weights '{tag}'; timm knows {', '.join(tags) or 'none'}.")


def _weights_in_folder(name: str) -> Path | None:
    """The weight file of a ``local-dir:`` model, safetensors before pickles, timm's own names before others."""
    origin, folder = parse_model_name(name)
    if origin != "local-dir":
        return None
    files = [file for suffix in CHECKPOINT_SUFFIXES for file in sorted(Path(folder).glob(f"*{suffix}"))]
    if not files:
        raise ModelError(f"Model folder {folder} has no weight file; expected model.safetensors.")
    return next((file for file in files if file.stem in ("model", "pytorch_model")), files[0])


def _check_fetchable(config: ModelConfig, arguments: dict) -> None:
    source = arguments["pretrained_cfg"]
    hub, url = source.get("hf_hub_id"), source.get("url")
    if not (hub or url):
        raise ModelError(f"timm has no pretrained weights for {config.name}; {_INSTEAD}.")
    if not hub and not (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name).exists() and not _answers(url):
        raise ModelError(f"Weights of {config.name} could not be fetched (no connection to {urlsplit(url).hostname}); {_INSTEAD}.")
    if source.get("num_classes") and arguments.get("num_classes", source["num_classes"]) != source["num_classes"]:
        raise ModelError(
            f"Model {config.name}: its pretrained classifier has {source['num_classes']} classes, so model_kwargs num_classes "
            f"{arguments['num_classes']} would leave it untrained; {_INSTEAD}."
        )


def _created(config: ModelConfig, arguments: dict, fetch: bool) -> nn.Module:
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            with _hub(f"Weights of {config.name}", _INSTEAD) if fetch else nullcontext():
                model = timm.create_model(pretrained=fetch, **arguments)
        except ModelError:
            raise
        except Exception as error:  # constructors raise anything on arguments they were not made for
            raise ModelError(f"{_described(config)} cannot be built: {_brief(error)}.") from None
    if getattr(model, "num_classes", 0) < 1:
        raise ModelError(f"{_described(config)} has no classifier (0 classes); choose a model that was trained to classify.")
    return model


@contextmanager
def _hub(what: str, instead: str) -> Iterator[None]:
    """Turns a failed download into a ModelError within seconds.

    huggingface_hub retries a hub that it cannot reach for most of a minute, so where nothing answers it is told to look into its
    cache only. That switch is the library's own module constant; timm passes no argument for it on.
    """
    constants = huggingface_hub.constants
    offline = constants.HF_HUB_OFFLINE
    answers = offline or _answers(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline or not answers
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, huggingface_hub.errors.EntryNotFoundError)) and not type(error).__module__.startswith("httpx"):
            raise
        reason = _brief(error) if answers else f"no connection to {urlsplit(constants.ENDPOINT).hostname}"
        raise ModelError(f"{what} could not be fetched ({reason}); {instead}.") from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def _answers(url: str) -> bool:
    """Whether something listens at a web address, or at the proxy in front of it, within seconds."""
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.hostname) else getproxies().get(address.scheme)
    if proxy:
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        socket.create_connection((address.hostname, address.port or {"http": 80}.get(address.scheme, 443)), _SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"Checkpoint {path} is damaged or no safetensors file ({_brief(error)}).") from None


def _pickled_tensors(path: Path):
    """What torch's restricted unpickler reads: tensors and plain containers. Nothing else in the file is ever built or called."""
    _check_size(path)
    try:
        # timm's trainer stores its settings as a Namespace; it carries no code
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise anything
        if name := _needs_code(error):
            raise ModelError(
                f"Checkpoint {path} holds Python objects that would run code ({name}); refused, save its state dict as .safetensors."
            ) from None
        # What the unpickler says goes on to explain how to load a file whatever is in it, which is no advice of ours.
        detail = "" if isinstance(error, pickle.UnpicklingError) else f" ({_brief(error)})"
        raise ModelError(f"Checkpoint {path} is damaged or no checkpoint of PyTorch{detail}.") from None


def _check_size(path: Path) -> None:
    """Refuse an archive that grows when it is unpacked: PyTorch writes its own as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # of another kind, or damaged, which the reader says better
    if unpacked > 2 * path.stat().st_size:
        raise ModelError(
            f"Checkpoint {path} is an archive of {path.stat().st_size >> 20:,} MB that unpacks to {unpacked >> 20:,} MB; refused, since "
            "PyTorch does not compress: save the weights with torch.save or as .safetensors."
        )


def _needs_code(error: Exception) -> str | None:
    if "TorchScript" in str(error):
        return "TorchScript"
    found = _NEEDS_CODE.search(str(error))
    return found[1] if found else None


def _classes_of(state: Mapping[str, Tensor], source: dict) -> dict[str, int]:
    """``num_classes`` as the classifier's weight in a checkpoint has it."""
    heads = (state.get(f"{name}.weight") for name in _as_tuple(source.get("classifier")))
    return next(({"num_classes": head.shape[0]} for head in heads if head is not None), {})


def _fill(model: nn.Module, state: dict[str, Tensor], checkpoint: Path, name: str) -> None:
    """Load weights into a model, all of them or none; raises ModelError with what differs."""
    as_written = _differences(model, state)
    if any(as_written):
        # Weights in the format of an architecture's first release: its timm module knows how to rename them.
        rename = getattr(modules[type(model).__module__], "checkpoint_filter_fn", None)
        try:
            state = rename(dict(state), model)
        except Exception:  # including no such function: renaming is a second chance, the first answer stands
            state = {}
        if any(_differences(model, state)):
            raise ModelError(f"Checkpoint {checkpoint} does not fit model {name}: {_mismatch(model, *as_written)}")
    model.load_state_dict(state, strict=False)


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str], dict[str, tuple[list[int], list[int]]]]:
    """Keys that the state lacks, keys the model does not know, and (shape in the state, shape in the model) where they differ.

    Counters of batches and buffers that the model computes by itself come and go between versions and do not count.
    """
    expected = model.state_dict()
    computed = dict(model.named_buffers()).keys() - expected.keys()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected and key not in computed]
    shared = (key for key in expected if key in state and state[key].shape != expected[key].shape)
    return missing, unexpected, {key: (list(state[key].shape), list(expected[key].shape)) for key in shared}


def _mismatch(model: nn.Module, missing: list[str], unexpected: list[str], shapes: dict[str, tuple[list[int], list[int]]]) -> str:
    """The differences in numbers and examples, then the likely cause."""
    parts = [f"{len(keys)} {what} ({_some(keys)})" for keys, what in ((missing, "keys missing"), (unexpected, "keys unexpected")) if keys]
    if shapes:
        examples = [f"{key}: checkpoint has {given}, model expects {expected}" for key, (given, expected) in shapes.items()]
        parts.append(f"{len(shapes)} shapes differ ({_some(examples, '; ')})")
    source = model.pretrained_cfg
    classifier, first_conv = (_as_tuple(source.get(key)) for key in ("classifier", "first_conv"))
    for key, (given, expected) in shapes.items():
        layer = key.rpartition(".")[0]
        if layer in first_conv and len(given) == len(expected) == 4 and given[1] != expected[1]:
            return f"{', '.join(parts)}. It takes {given[1]} input channels: give --model-kwargs '{{\"in_chans\": {given[1]}}}'."
        if layer in classifier and given[0] != expected[0]:
            return f"{', '.join(parts)}. It has {given[0]} classes: give --model-kwargs '{{\"num_classes\": {given[0]}}}'."
    if len(missing) + len(shapes) > len(model.state_dict()) / 10:
        parts[-1] += ". It was probably made for another architecture or other model kwargs"
    return f"{', '.join(parts)}."


def _some(items: Sequence[str], separator: str = ", ") -> str:
    return separator.join(items[:3]) + (f"{separator}..." if len(items) > 3 else "")


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _preprocessing(config: ModelConfig, model: nn.Module) -> Preprocessing:
    """timm's data config, overridden by the configuration; raises ModelError when no image gets through it."""
    try:
        channels, *size = get_model_input_config(model)["input_size"]
        if channels not in (1, 3):
            raise ModelError(f"Model {config.name} takes {channels} input channels; only images with 1 or 3 can be read from files.")
        source = dict(model.pretrained_cfg)
        for key in ("mean", "std"):
            if (given := getattr(config, key)) is not None and len(given) not in (1, channels):
                raise ModelError(f"Model {config.name} takes {channels} input channels, but --{key} has {len(given)} values.")
            if (own := source.get(key)) and len(own) != channels:
                source[key] = (sum(own) / len(own),) * channels
        given = {key: getattr(config, key) for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
        values = resolve_data_config(given | {"input_size": (channels, *(config.input_size or size))}, pretrained_cfg=source)
        preprocessing = Preprocessing(
            input_size=tuple(values["input_size"][1:]),
            in_chans=channels,
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            interpolation=values["interpolation"],
            crop_pct=float(values["crop_pct"]),
            crop_mode=values["crop_mode"],
        )
        preprocessing.transform()(_blank(preprocessing))
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise ModelError(f"Model {config.name}: its preprocessing settings cannot be used: {_brief(error)}.") from None
    return preprocessing


def _tried(model: nn.Module, preprocessing: Preprocessing, config: ModelConfig, device: torch.device) -> int:
    """The number of classes, once a blank image has gone through; raises ModelError when it does not."""
    image = preprocessing.transform()(_blank(preprocessing))[None].to(device)
    try:
        with torch.no_grad():
            logits = model(image)
    except Exception as error:  # a model may refuse a size at any depth
        if config.model_kwargs.get("global_pool") == "":  # then a linear classifier meets maps, and says so in numbers
            raise ModelError(f"{_described(config)} {_NO_ROW}.") from None
        size = " x ".join(map(str, preprocessing.input_size))
        raise ModelError(f"{_described(config)} does not accept an input of {size} pixels: {_brief(error)}.") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError(f"{_described(config)} {_NO_ROW}.")
    if not logits.isfinite().all():
        raise ModelError(f"Model {config.name} returns no finite numbers for a blank image; its weights are damaged.")
    return logits.shape[1]


def _blank(preprocessing: Preprocessing) -> Image.Image:
    return Image.new("L" if preprocessing.in_chans == 1 else "RGB", preprocessing.input_size[::-1])


def _class_names(config: ModelConfig, source: dict, n_classes: int, folders: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """One name per class from the best source that has as many, and what the source is called."""
    if config.class_map:
        return read_class_map(config.class_map, n_classes), f"class map {config.class_map.name}"
    labels = source.get("label_names") or ()
    if isinstance(labels, Mapping):
        labels = [labels[key] for key in sorted(labels, key=int)] if all(str(key).isdecimal() for key in labels) else []
    if len(labels) == n_classes:
        return tuple(map(str, labels)), "the model's own label names"
    table = imagenet_names(n_classes)
    if len(folders) == n_classes and not (table and len(match_folders(folders, table, IMAGENET)[0]) == n_classes):
        return tuple(sorted(folders)), FOLDERS
    if table:
        return table, IMAGENET
    return tuple(f"class {index}" for index in range(n_classes)), UNKNOWN


def _fingerprint(model: nn.Module, arguments: dict, preprocessing: Preprocessing) -> str:
    settings = {key: value for key, value in arguments.items() if key not in ("pretrained_cfg", "pretrained_model_args")}
    digest = hashlib.sha256(json.dumps([settings, asdict(preprocessing)], sort_keys=True, default=str).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(config: ModelConfig) -> str:
    return f"Model {config.name}" + (f" with model_kwargs {json.dumps(config.model_kwargs)}" if config.model_kwargs else "")


def _brief(error: Exception) -> str:
    """The first line of an error as the end of a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".")[:300] if lines else type(error).__name__
