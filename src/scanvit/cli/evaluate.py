"""``scanvit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from . import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.estimates import Estimate
    from ..evaluation.external import ExternalData, Shared
    from ..evaluation.scores import Scores
    from ..evaluation.scoring import Detail
    from ..evaluation.subgroups import Axis

SPLITS = ("train", "val", "test", "final_eval")
_TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC", "log_loss": "log loss"}


_EPILOG = """\b
Examples:
  scanvit evaluate RUN                                    the test split of the run's own pack
  scanvit evaluate RUN --by sex --by age_band             with these subgroups
  scanvit evaluate RUN --prevalence lung-covid=0.02       predictive values where one in fifty has it
  scanvit evaluate RUN --pack OTHER --map PNEUMONIA=lung-opacity --map rare=
                                                          data from elsewhere; images of the class rare are left out
  scanvit evaluate --predictions TABLE.csv --pack PACK    any model's predictions

The table has a column image_id as in the pack's manifest, and a column with a probability for each class, named like the class or prob_0,
prob_1 and so on in the order of the pack's classes. It may have patient_id and target."""


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE, the last = parting them: a class may hold one."""
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, given = value.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is no CLASS=VALUE.", context, parameter)
        if name in pairs:
            raise click.BadParameter(f"{name!r} is given twice: {pairs[name]!r} and {given!r}.", context, parameter)
        pairs[name] = given
    return pairs


def _shares(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    shares = {}
    for name, given in _pairs(context, parameter, values).items():
        try:
            shares[name] = float(given)
        except ValueError:
            raise click.BadParameter(f"{given!r} of {name!r} is no number.", context, parameter) from None
    return shares


@click.command(epilog=_EPILOG)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), help="Which images to judge.  [default: test; of another pack than the run's, all]")
@click.option("--pack", type=click.Path(path_type=Path), help="Where the run's pack is now, if it was moved; or another pack to judge the run on.")
@click.option("--map", "mapping", multiple=True, metavar="THEIRS=OWN", callback=_pairs, help="Class of the other pack and of the run. THEIRS= leaves it out.")
@click.option("--own-pack", type=click.Path(path_type=Path), help="With another --pack: where the run's own is now, if it was moved.")
@click.option(
    "--shared",
    type=click.Choice(["drop", "refuse"]),
    default="drop",
    show_default=True,
    help="Images of another --pack that the run was trained on: leave them out, or stop.",
)
@click.option("--predictions", type=click.Path(path_type=Path), metavar="TABLE", help="Judge these predictions (.parquet, .csv) instead of a run.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="With --predictions: the folder to write.  [default: TABLE without its ending]")
@click.option("--by", multiple=True, metavar="COLUMN", help="Subgroups by a column of the pack: source, format, width, height, or one it was told to keep.")
@click.option("--prevalence", multiple=True, metavar="CLASS=SHARE", callback=_shares, help="PPV and NPV where this share has the class, e.g. 0.02.")
@click.option("--readings", type=click.Path(path_type=Path), help="First readings (.csv: image_id, reading), to judge it as their second reader.")
@click.option("--originals", type=click.Path(path_type=Path), help="Folder of the sources: the report shows its images at their own resolution.")
@click.option("--processes", type=click.IntRange(1), help="How many share the work.  [default: one for every GPU, else one]")
@click.option("--draws", type=click.IntRange(0), default=2000, show_default=True, help="Resamples of the patients for the intervals.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampling.")
def evaluate(
    run: Path | None,
    split: str | None,
    pack: Path | None,
    mapping: dict[str, str],
    own_pack: Path | None,
    shared: Shared,
    predictions: Path | None,
    out: Path | None,
    by: tuple[str, ...],
    prevalence: dict[str, float],
    readings: Path | None,
    originals: Path | None,
    processes: int | None,
    draws: int,
    seed: int,
) -> None:
    """Judge the best weights of a run, with intervals, and write the report.

    Writes predictions-SPLIT.parquet, scores-SPLIT.json and report.html (report-SPLIT.html for other splits than test) into RUN. Judged on
    another pack than its own, external-NAME stands for SPLIT, NAME being the pack's folder.
    """
    from ..evaluation.scoring import Detail

    detail = Detail(prevalence=prevalence, by=by or None, readings=readings)
    if predictions is not None:
        asked = click.get_current_context().get_parameter_source("shared") is not ParameterSource.DEFAULT
        if run is not None or mapping or own_pack or processes or readings or originals or asked:
            raise click.UsageError("--predictions judges a table: leave out RUN, --map, --own-pack, --shared, --readings, --originals and --processes.")
        _evaluate_table(predictions, pack, out, split=split or "test", detail=detail, draws=draws, seed=seed)
        return
    if run is None:
        raise click.UsageError("Name a run: scanvit evaluate RUN; or a table of predictions: scanvit evaluate --predictions TABLE --pack PACK")
    if out is not None:
        raise click.UsageError("--out belongs to --predictions: the scores of a run are written into it.")
    if pack is not None and _is_elsewhere(run, pack, mapping):
        from ..evaluation.external import ExternalData

        data = ExternalData(pack=pack, split=split, mapping=mapping, own_pack=own_pack, shared=shared)
        _evaluate_external(run, data, processes=processes, originals=originals, detail=detail, draws=draws, seed=seed)
        return
    if mapping or own_pack:
        raise click.UsageError("--map and --own-pack belong to another pack than the run's own: give it with --pack.")
    evaluate_and_show(run, split=split or "test", pack=pack, originals=originals, processes=processes, draws=draws, seed=seed, detail=detail)


def evaluate_and_show(
    run: Path,
    *,
    split: str = "test",
    pack: Path | None = None,
    originals: Path | None = None,
    processes: int | None = None,
    draws: int = 2000,
    seed: int = 0,
    detail: Detail | None = None,
) -> None:
    from ..evaluation.evaluate import evaluate as evaluate_run
    from .progress import stage_progress

    with stage_progress() as progress:
        scores = evaluate_run(run, split=split, pack=pack, originals=originals, processes=processes, draws=draws, seed=seed, detail=detail, progress=progress)
    _track(scores, run)
    _show(scores, run)


def _is_elsewhere(run: Path, pack: Path, mapping: dict[str, str]) -> bool:
    """Is it another pack than the run's own?"""
    from ..core.errors import RunMissingError
    from ..evaluation.external import is_own_pack

    if not run.is_dir():
        raise RunMissingError(f"There is no run folder {run}.", hint="Give the folder that `scanvit train` made.")
    return bool(mapping) or not is_own_pack(run, pack)


def _evaluate_external(run: Path, data: ExternalData, *, processes: int | None, originals: Path | None, detail: Detail, draws: int, seed: int) -> None:
    from ..evaluation.external import evaluate_external
    from .progress import stage_progress

    with stage_progress() as progress:
        scores = evaluate_external(run, data, processes=processes, originals=originals, detail=detail, draws=draws, seed=seed, progress=progress)
    _track(scores, run)
    _show(scores, run)


def _evaluate_table(table: Path, pack: Path | None, out: Path | None, *, split: str, detail: Detail, draws: int, seed: int) -> None:
    from ..evaluation.foreign import evaluate_table

    if pack is None:
        raise click.UsageError("--predictions needs the pack whose images were judged: --pack PACK")
    out = table.with_suffix("") if out is None else out
    _show(evaluate_table(table, pack, out, split=split, detail=detail, draws=draws, seed=seed), out)


def _track(scores: Scores, run: Path) -> None:
    """Hand figures and files to the run's tracking; a server that is away gets them from ``scanvit track sync``."""
    from ..evaluation.evaluate import report_path
    from ..evaluation.report.cards import CARDS
    from ..training.run_folder import SETTINGS, load_tracking
    from ..training.shipping import ship_now
    from ..training.tracking import record_scores

    if not (run / SETTINGS).is_file():  # a checkpoint alone, from elsewhere
        return
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    values = {f"{scores.split}_{name}{end}": getattr(estimate, key) for name, estimate in scores.overall.items() for end, key in ends}
    for class_name, of_class in scores.per_class.items():
        values |= {f"{scores.split}_{metric}/{class_name}": estimate.value for metric, estimate in of_class.figures.items()}
    files = (f"predictions-{scores.split}.parquet", f"scores-{scores.split}.json", report_path(run, scores.split).name, *CARDS)
    record_scores(run, values, step=scores.checkpoint["step"], epoch=scores.checkpoint["epoch"], files=files)
    if not ship_now(run, load_tracking(run)):
        click.echo(f"The tracking server did not get the scores; send them later: scanvit track sync {run}", err=True)


def _show(scores: Scores, run: Path) -> None:
    from rich.console import Console

    from ..evaluation.evaluate import report_path
    from ..evaluation.subgroups import gap_sentences
    from ..pages.page import count

    console = Console()
    console.print(f"\n{count(scores.images, 'image')} of {count(scores.patients, 'patient')}, {_what(scores)}", highlight=False)
    console.print(_overall(scores))
    console.print(_per_class(scores))
    if any(of_class.prevalence is not None for of_class in scores.per_class.values()):
        console.print(_at_prevalence(scores))
    for axis in scores.subgroups:
        console.print(_subgroups(axis))
        for sentence in gap_sentences(axis):
            console.print(printable(sentence), markup=False, highlight=False)
    for sentence in scores.shift.sentences if scores.shift else ():
        console.print(printable(sentence), markup=False, highlight=False)
    for note in scores.notes:
        console.print(f"note: {printable(note)}", markup=False, highlight=False)
    if scores.audit:
        titles = printable(", ".join(str(gate.get("title") or gate.get("gate")) for gate in scores.audit))
        console.print(f"The audit of the data has open findings: {titles}.", style="yellow", markup=False, highlight=False)
    console.print(f"report  {report_path(run, scores.split)}", markup=False, highlight=False, soft_wrap=True)
    split = "" if scores.split == "test" else f" --split {scores.split}"
    # A table of predictions has no network to ask.
    ask = f", or scanvit predict {run} IMAGE" if (run / "checkpoint.pth").is_file() else ""
    console.print(f"next    scanvit compare {run} OTHER_RUN{split}{ask}", markup=False, highlight=False, soft_wrap=True)


def _what(scores: Scores) -> str:
    return f"{scores.split} split" if scores.split in SPLITS else printable(scores.split.replace("-", " data: ", 1))


def _overall(scores: Scores) -> Table:
    from rich.table import Table

    from ..evaluation.page import figure, interval

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column(f"{scores.interval['level']:.0%} interval", justify="right")
    for name, title in _TITLES.items():
        table.add_row(title, figure(scores.overall[name], name), interval(scores.overall[name], name))
    return table


def _per_class(scores: Scores) -> Table:
    """Fits 80 columns; the report has every figure with its decimals."""
    from rich.table import Table
    from rich.text import Text

    shown = {"recall": "sensitivity %", "specificity": "specificity %", "auroc": "AUROC"}
    table = Table(box=None, pad_edge=False, title=f"\nby class, with {scores.interval['level']:.0%} intervals", title_justify="left", title_style="")
    table.add_column("class", overflow="fold")
    for title in ("images", *shown.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for name, of_class in scores.per_class.items():
        cells = (_compact(of_class.figures[metric], in_percent=metric != "auroc") for metric in shown)
        table.add_row(Text(printable(name)), f"{of_class.images:,}", *cells)
    return table


def _at_prevalence(scores: Scores) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title="\npredictive values at the prevalence given", title_justify="left", title_style="")
    table.add_column("class", overflow="fold")
    for title in ("prevalence %", "PPV %", "NPV %"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, of_class in scores.per_class.items():
        if of_class.prevalence is not None:
            figures = [of_class.figures[figure] for figure in ("precision_at_prevalence", "npv_at_prevalence")]
            table.add_row(Text(printable(name)), f"{100 * of_class.prevalence:g}", *(_compact(figure, in_percent=True) for figure in figures))
    return table


def _subgroups(axis: Axis) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=f"\nby {printable(axis.title)}", title_justify="left", title_style="")
    table.add_column("group", overflow="fold")
    for title in ("images", "patients", "accuracy %", "AUROC"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for group in axis.groups:
        cells = (_compact(group.figures["accuracy"], in_percent=True), _compact(group.figures["macro_auroc"], in_percent=False))
        few = "few" if group.is_small else ""
        table.add_row(Text(printable(group.name)), f"{group.images:,}", f"{group.patients:,}", *cells, few)
    return table


def _compact(estimate: Estimate, *, in_percent: bool) -> str:
    """ "72 (36-100)" or "0.97 (0.92-1.00)"; a figure without an interval stands alone, an undefined one is a dash."""
    if estimate.value is None:
        return "-"
    show = (lambda value: f"{100 * value:.0f}") if in_percent else (lambda value: f"{value:.2f}")
    return show(estimate.value) if estimate.low is None or estimate.high is None else f"{show(estimate.value)} ({show(estimate.low)}-{show(estimate.high)})"
