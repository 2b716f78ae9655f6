"""From a run to its scores: the best checkpoint over a whole split, the figures with intervals, and the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..core.errors import RunMissingError
from ..core.events import metric_history, read_events
from ..storage.atomic import write_text
from .calibrate import Calibration, calibrate_checkpoint, is_current
from .energy import training_energy_wh
from .estimates import Estimator
from .inference import default_processes
from .masking import judge_masked
from .own_pack import open_own_pack
from .predictions import Predictions, predict_split
from .readings import read_readings
from .report import read_environment, render_report
from .report.gallery import MOST_PX
from .saliency import Case, explain_cases
from .scores import Scores
from .scoring import Detail, score_on_pack
from .trust import Trust, judge_calibration, judge_outliers, judge_points, judge_selective, judge_sets

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..model.checkpoint import Classifier


Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, of how many)."""


def evaluate(
    run_dir: Path | str,
    *,
    split: str = "test",
    pack: Path | str | None = None,
    originals: Path | None = None,
    processes: int | None = None,
    draws: int = 2000,
    seed: int = 0,
    detail: Detail | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score ``RUN/checkpoint.pth`` on every image of a split of the pack that the run was trained on.

    Writes predictions-SPLIT.parquet, scores-SPLIT.json, the report, model-card.md and data-card.md into the run. ``pack``: where the pack is now, if it moved.
    ``originals``: the folder of the sources that the pack was made from; the report then shows its single images at their own resolution.
    ``processes``: how many share the work; left out, one for every GPU, or one on a CPU. ``draws`` and ``seed`` are the bootstrap's.
    ``detail``: prevalences and subgroups.

    Raises RunMissingError, CheckpointError, PackMissingError, PackMismatchError, PackCorruptError, DataError, ProcessLostError.
    """
    from ..data.originals import find_originals
    from ..model.checkpoint import load_model
    from ..model.registered import FILE_NAME

    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RunMissingError(f"There is no run folder {run_dir}.", hint="Give the folder that `scanvit train` made.")
    model = load_model(run_dir)
    opened = open_own_pack(model, pack)
    opened.verify([split])
    told = progress or (lambda *_: None)
    if not is_current(model.calibration):
        calibrate_checkpoint(run_dir / FILE_NAME, opened, progress=partial(told, "Calibrating"))
        model = load_model(run_dir)
    predictions = predict_split(model, opened, split, processes=processes or default_processes(), progress=partial(told, "Judging"))
    about: dict[str, Any] = {"run": run_dir.resolve().name, "experiment": str(model.experiment.get("name", "")), "split": split}
    about |= {"audit": model.audit, "cost": training_cost(run_dir, model)}
    scores = score_on_pack(predictions, opened, about=about, detail=detail or Detail(), draws=draws, seed=seed)
    readings = detail.readings if detail else None
    trust, cases = judge_trust(model, opened.images(split), predictions, draws=draws, seed=seed, progress=told, readings=readings)
    scores = replace(scores, trust=trust)
    found = find_originals(opened, split, [case.row for case in cases], originals, most_px=MOST_PX) if originals else {}
    rendered = render_report(scores, predictions, pack=opened, run_dir=run_dir, experiment=model.experiment, cases=cases, originals=found)
    predictions.save(run_dir / f"predictions-{split}.parquet")
    scores.save(run_dir)
    write_text(report_path(run_dir, split), rendered.report)
    if split == "test":  # the cards are of the run, and the run is judged by its test split
        for name, text in rendered.cards.items():
            write_text(run_dir / name, text)
    return scores


COSTS = ("train_time_s", "images_per_s", "epochs", "parameters", "device", "energy_wh", "processes")


def judge_trust(
    model: Classifier,
    images: npt.NDArray[np.uint8],
    predictions: Predictions,
    *,
    draws: int,
    seed: int,
    progress: Progress,
    readings: Path | None = None,
) -> tuple[Trust, list[Case]]:
    """What the answers can be trusted with, and the images that the report shows, explained. ``images``: of the predictions, in their order.

    ``readings``: a file of first readings by people. Raises DataError where it cannot be used.
    """
    read = read_readings(readings, predictions) if readings else None
    calibration, estimator = Calibration.from_dict(model.calibration), Estimator(predictions.patient_ids, draws=draws, seed=seed)
    masking = judge_masked(model, images, predictions, draws=draws, seed=seed, progress=partial(progress, "Covering"))
    cases, saliency = explain_cases(model, images, predictions, progress=partial(progress, "Explaining"))
    trust = Trust(
        calibrated=judge_calibration(predictions, calibration, estimator),
        operating_points=judge_points(predictions, calibration, estimator),
        selective=judge_selective(predictions, calibration, estimator, read),
        sets=judge_sets(predictions, calibration, estimator),
        outliers=judge_outliers(predictions, estimator),
        masking=masking,
        saliency=saliency,
    )
    return trust, cases


def report_path(run_dir: Path | str, split: str = "test") -> Path:
    return Path(run_dir) / ("report.html" if split == "test" else f"report-{split}.html")


def training_cost(run_dir: Path, model: Classifier) -> dict[str, Any]:
    """What the training took, as far as the run tells; None where it does not."""
    history, environment = metric_history(run_dir), read_environment(run_dir)
    latest = {name: points[-1] for name, points in history.items()}
    gpus = environment.get("gpus") or []
    trainer = model.experiment.get("trainer", {})
    on_cpu = not gpus or trainer.get("accelerator") == "cpu"
    started: dict[str, Any] = next((event["values"] for event in read_events(run_dir) if event["kind"] == "start"), {})
    return {
        "train_time_s": latest["train_time_s"][2] if "train_time_s" in latest else None,
        "images_per_s": median(value for *_, value in history["images_per_s"]) if "images_per_s" in history else None,
        "epochs": latest["val_loss"][0] if "val_loss" in latest else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": environment.get("processor") if on_cpu else gpus[0],
        "energy_wh": training_energy_wh(run_dir),
        "processes": started.get("world_size"),
    }
