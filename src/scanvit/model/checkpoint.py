"""checkpoint.pth: the best weights of a run, with all that is needed to use them. Tensors and plain data only.

A checkpoint from elsewhere is hostile: it is read with ``weights_only=True``, its sizes are compared with what the file holds before any
memory is asked for, and every failure is a CheckpointError.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ..core.config import Experiment, ModelConfig
from ..core.contract import PixelContract
from ..core.errors import CheckpointError, ConfigError, RunMissingError
from ..core.loading import experiment_to_dict, inference_of
from ..storage.atomic import atomic_file
from .original import Network, from_original, is_original
from .registered import FILE_NAME, downloaded, is_address
from .safetensors_file import SUFFIX, read_safetensors
from .vit import VisionTransformer, at_shifts

FORMAT = 1

_FIELDS: dict[str, type] = {
    "state_dict": dict,
    "class_names": list,
    "contract": dict,
    "experiment": dict,
    "fingerprint": str,
    "audit": list,
    "metrics": dict,
}
_PLAIN = (str, int, float, bool, type(None))
_MODEL_CONFIG = TypeAdapter(ModelConfig)
_CONTRACT = TypeAdapter(PixelContract)
_NAMES = TypeAdapter(list[str])
_DOS_FOLDER = 0x10  # of a zip entry's external attributes
_FETCH_AGAIN = "The file is damaged or is no checkpoint; fetch it again, or train again."


class Classifier(nn.Module):
    """A trained network in eval mode, with what is known of it."""

    def __init__(self, network: VisionTransformer, *, class_names: Sequence[str], contract: PixelContract, record: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.class_names = list(class_names)
        """K names; a target is an index into them."""
        self.contract = contract
        self.experiment: dict[str, Any] = record["experiment"]
        self.inference = inference_of(record)
        self.fingerprint: str = record["fingerprint"]
        """Of the pack that it was trained on; empty where that is not known."""
        self.audit: list[dict[str, Any]] = record["audit"]
        """The gates of the pack's audit that did not pass."""
        self.metrics: dict[str, Any] = record["metrics"]
        """epoch, step, val_loss, val_accuracy of these weights."""
        self.calibration: dict[str, Any] = record.get("calibration", {})
        """What was fitted on val for the use of these weights (``evaluation.calibrate``); empty where nothing was."""
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W), float -> logits (B, K), of one pass."""
        return self.network(images)

    def record(self) -> dict[str, Any]:
        """All that is known of the network beside its weights: the fields of a checkpoint. Without the path of the pack, which is this machine's."""
        experiment = self.experiment | {"data": {key: value for key, value in self.experiment.get("data", {}).items() if key != "pack"}}
        known = {"format": FORMAT, "class_names": self.class_names, "contract": self.contract.to_dict(), "experiment": experiment}
        return known | {"fingerprint": self.fingerprint, "audit": self.audit, "metrics": self.metrics, "calibration": self.calibration}

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities."""
        return float(self.calibration.get("temperature", 1.0))

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, H, W), uint8 in 0..255 -> logits (B, K)."""
        return self.network.head(self.read(pixels)[0])

    def read(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W), uint8 in 0..255 -> what the head reads, (B, D), and the traits that tell outliers, (B, 2 S): the means over the shifts
        of ``inference``.

        The head is linear, so that this is the mean of the logits as well.
        """
        features, traits = self.network.features_and_traits(self._views(pixels))
        return self._mean(features), self._mean(traits)

    def traits(self, pixels: Tensor) -> Tensor:
        """Those of ``read`` alone."""
        return self._mean(self.network.traits(self._views(pixels)))

    def _views(self, pixels: Tensor) -> Tensor:
        images = self.contract.normalize(pixels)
        return at_shifts(images, self.inference.shift_px) if self.inference.shift_px else images

    def _mean(self, values: Tensor) -> Tensor:
        """Over the shifts."""
        return values.unflatten(0, (self.inference.passes, -1)).mean(dim=0) if self.inference.shift_px else values


def save_checkpoint(
    path: Path | str,
    *,
    state_dict: Mapping[str, Tensor],
    class_names: Sequence[str],
    contract: PixelContract,
    experiment: dict[str, Any],
    fingerprint: str,
    audit: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> None:
    """Write the weights of a VisionTransformer and its record, whole or not at all. The arguments are the fields of the file.

    Raises TypeError for data that is not plain: such a file could not be loaded with ``weights_only=True``.
    """
    record = {
        "format": FORMAT,
        "class_names": list(class_names),
        "contract": contract.to_dict(),
        "experiment": experiment,
        "fingerprint": fingerprint,
        "audit": audit,
        "metrics": metrics,
    }
    _check_plain(record, "checkpoint")
    # A clone, since a view would take the whole memory behind it into the file.
    record["state_dict"] = {key: tensor.detach().cpu().clone() for key, tensor in state_dict.items()}
    with atomic_file(path) as file:
        torch.save(record, file)


def set_calibration(path: Path, calibration: dict[str, Any]) -> None:
    """Put what ``evaluation.calibrate`` found into a checkpoint.pth, in place of what was there."""
    _check_plain(calibration, "calibration")
    content = _read(path) | {"calibration": calibration}
    with atomic_file(path) as file:
        torch.save(content, file)


def load_model(run_or_file: Path | str, *, class_names: Sequence[str] | None = None, contract: PixelContract | None = None) -> Classifier:
    """A Classifier in eval mode, on the CPU, from a run folder, a checkpoint.pth, an exported .safetensors, or weights of the original project.

    An address of MLflow works too: ``models:/NAME@ALIAS`` of a registered model, ``runs:/ID`` of a tracked run.

    The original's files know neither classes nor pixels: give ``class_names`` and ``contract``, else they are ``class-0``, ``class-1``, ...
    and the default contract at the network's size. A checkpoint.pth carries both, and refuses others.

    Raises RunMissingError for a folder without a checkpoint, CheckpointError for a file that cannot be used.
    """
    if is_address(str(run_or_file)):
        with downloaded(str(run_or_file)) as fetched:
            return load_model(fetched, class_names=class_names, contract=contract)
    path = _find(Path(run_or_file))
    content = read_safetensors(path) if path.suffix == SUFFIX else _read(path)
    try:
        if "format" in content:
            return _from_checkpoint(content, class_names=class_names, contract=contract)
        return _from_weights(content, class_names=class_names, contract=contract)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from None


def _find(path: Path) -> Path:
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise RunMissingError(
                f"{path} is no finished run: it holds no {FILE_NAME}.", hint="Give the folder that 'scanvit train' wrote, after its first epoch."
            )
        return path / FILE_NAME
    if not path.exists():
        if path.suffix in (".pth", ".pt", ".ckpt", SUFFIX):
            raise CheckpointError(f"There is no file {path}.", hint="Check the path.")
        raise RunMissingError(f"There is no run {path}.", hint="Give the folder of a run, or a checkpoint.pth.")
    return path


def _read(path: Path) -> dict[str, Any]:
    """The dict inside the file, with all its tensors backed by bytes of the file."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of other pickle protocols and then refuses or reads them
            size_bytes = file.seek(0, 2)
            _check_archive(file, path)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes fail anywhere in the reader, as nearly any type of error
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds more than tensors and plain data; it was not executed.",
                hint="Loading it would run code of its author. Export the weights alone: torch.save(model.state_dict(), ...).",
            ) from None
        reason = " ".join(str(error).split(". ")[0].split())[:120] if isinstance(error, OSError) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason}).", hint=_FETCH_AGAIN) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint.", hint=_FETCH_AGAIN)
    weights = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    if sum(value.numel() * value.element_size() for value in weights.values() if isinstance(value, Tensor)) > size_bytes:
        raise CheckpointError(f"{path} claims to hold more weights than its {size_bytes} bytes.", hint=_FETCH_AGAIN)
    return content


def _check_archive(file: BinaryIO, path: Path) -> None:
    """PyTorch reads its zip archives without their checksums, inflates what it never deflates itself, and gives unset memory for "folders"."""
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        return  # PyTorch before 1.6 wrote no archives
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path} is compressed, which no checkpoint is.", hint=_FETCH_AGAIN)
        if any(entry.external_attr & _DOS_FOLDER for entry in archive.infolist()):
            raise CheckpointError(f"{path} holds folders, which no checkpoint does.", hint=_FETCH_AGAIN)
        if damaged := archive.testzip():
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged!r} is wrong.", hint=_FETCH_AGAIN)


def _from_checkpoint(content: dict[str, Any], *, class_names: Sequence[str] | None, contract: PixelContract | None) -> Classifier:
    version = content["format"]
    if version != FORMAT:
        raise CheckpointError(
            f"The checkpoint has format {version!r:.40}; this version of scanvit reads {FORMAT}.", hint="Use the version of scanvit that wrote it."
        )
    for key, kind in _FIELDS.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"The checkpoint's {key!r} is missing or is no {kind.__name__}.", hint=_FETCH_AGAIN)
    try:
        own_names = _NAMES.validate_python(content["class_names"])
        own_contract = _CONTRACT.validate_python(vars(PixelContract.from_dict(content["contract"])))
        config = _MODEL_CONFIG.validate_python(content["experiment"].get("model", {}))
    except (TypeError, ValidationError):
        raise CheckpointError("The checkpoint's settings make no network.", hint=_FETCH_AGAIN) from None
    if class_names is not None and list(class_names) != own_names:
        raise ConfigError(f"The checkpoint's classes are {own_names}, not {list(class_names)}.", hint="Leave class_names out.")
    if contract is not None and contract != own_contract:
        raise ConfigError(f"The checkpoint's pixels are {own_contract}, not {contract}.", hint="Leave the contract out.")
    if not isinstance(content.get("calibration", {}), dict):
        raise CheckpointError("The checkpoint's 'calibration' is no dict.", hint=_FETCH_AGAIN)
    network = Network(content["state_dict"], config, len(own_names), own_contract.image_size_px, own_contract.channels)
    return Classifier(_build(network), class_names=own_names, contract=own_contract, record=content)


def _from_weights(content: dict[str, Any], *, class_names: Sequence[str] | None, contract: PixelContract | None) -> Classifier:
    """From a state dict of the original, bare or inside a Lightning checkpoint."""
    weights = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    _check_tensors(weights)
    if not is_original(weights):
        raise CheckpointError("The file holds no network that scanvit knows.", hint=f"Give a run's {FILE_NAME}, or a state dict of the original network.")
    network = from_original(weights)
    names = list(class_names) if class_names is not None else [f"class-{index}" for index in range(network.num_classes)]
    if len(names) != network.num_classes:
        raise ConfigError(
            f"The network has {network.num_classes} classes, but {len(names)} names are given.", hint="Give one name for each class, in the order of training."
        )
    contract = contract or PixelContract(image_size_px=network.image_size_px, channels=network.channels)  # type: ignore[arg-type]
    if contract.shape != (network.channels, network.image_size_px, network.image_size_px):
        raise ConfigError(
            f"The contract's images are {contract.shape}, the network's {network.channels, network.image_size_px, network.image_size_px}.",
            hint="Mend the contract.",
        )
    experiment = experiment_to_dict(Experiment(name="original", model=network.config))
    record = {"experiment": experiment, "fingerprint": "", "audit": [], "metrics": {}}
    return Classifier(_build(network), class_names=names, contract=contract, record=record)


def _build(network: Network) -> VisionTransformer:
    """The network around the given weights. It is laid out without memory first, so that absurd sizes cost nothing."""
    weights = network.state_dict
    _check_tensors(weights)
    depth, stem = _distinct(weights, "blocks."), _distinct(weights, "stem.")
    if (depth, stem) != (network.config.depth, len(network.config.stem_widths)):
        raise CheckpointError(
            f"The weights are of {depth} blocks and {stem} stem blocks, the settings of {network.config.depth} and {len(network.config.stem_widths)}.",
            hint=_FETCH_AGAIN,
        )
    try:
        with torch.device("meta"):
            model = VisionTransformer(network.config, num_classes=network.num_classes, image_size_px=network.image_size_px, channels=network.channels)
    except (RuntimeError, TypeError, OverflowError):  # more than 2**63 of anything
        raise CheckpointError("The checkpoint's settings make no network.", hint=_FETCH_AGAIN) from None
    expected = model.state_dict()
    for problem, keys in (("no", expected.keys() - weights.keys()), ("an unknown", weights.keys() - expected.keys())):
        if keys:
            raise CheckpointError(f"The checkpoint holds {problem} weight {min(keys)!r}{_more(len(keys))}.", hint=_FETCH_AGAIN)
    typed = {key: weights[key].to(place.dtype) for key, place in expected.items()}
    for key, place in expected.items():
        if weights[key].shape != place.shape:
            raise CheckpointError(f"The weight {key!r} has the shape {tuple(weights[key].shape)}, not {tuple(place.shape)}.", hint=_FETCH_AGAIN)
        if not torch.isfinite(typed[key]).all():
            raise CheckpointError(f"The weight {key!r} holds values that are no finite numbers.", hint="The training diverged; use an earlier checkpoint.")
    model.load_state_dict(typed, assign=True)
    return model


def _check_tensors(weights: Mapping[Any, Any]) -> None:
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise CheckpointError(f"The checkpoint's {key!r:.80} is no weight.", hint=_FETCH_AGAIN)


def _distinct(weights: Mapping[str, Tensor], start: str) -> int:
    return len({key.split(".", 2)[1] for key in weights if key.startswith(start)})


def _more(count: int) -> str:
    return f" (and {count - 1} more of the kind)" if count > 1 else ""


def _check_plain(value: Any, where: str) -> None:
    # The exact type: a NumPy float is a float to isinstance, but not to weights_only.
    if type(value) is dict:
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN:
        raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__name__}, which is no plain data.")
