"""A study file: which panels, on which grids, run by which notebook; checked whole before anything starts, executed by papermill."""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selftrain import executed, memory, mps, paths, results
from selftrain.errors import InputError, run_command

KERNEL = "python3"


@dataclass(frozen=True)
class PanelSpec:
    """One notebook execution: the notebook's name and the grid it is given."""

    name: str
    notebook: str
    grid: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study file, read and checked for shape; `analysis` holds the notebooks that read its results, with parameters of their own."""

    name: str
    path: Path
    panels: list[PanelSpec]
    analysis: list[tuple[str, dict[str, Any]]]
    prune: str


def _null_key(value: Any) -> Any:
    """YAML reads an unquoted `null:` as the key None; the study means the config key."""
    if isinstance(value, dict):
        return {("null" if key is None else key): _null_key(item) for key, item in value.items()}
    return value


def _analysis(entries: list, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Entries of `analysis`, each a notebook's name or {name: {parameter: value}}."""
    out = []
    for entry in entries:
        if isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict):
            out += entry.items()
        elif isinstance(entry, str):
            out.append((entry, {}))
        else:
            raise InputError(f"{where}: analysis: {entry!r} is neither a notebook's name nor one name with its parameters")
    return out


def read(name_or_path: str) -> Study:
    """A study by name (notebooks/studies/<name>.yaml) or by path; InputError names the file and what to mend."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = paths.STUDIES / f"{name_or_path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in paths.STUDIES.glob("*.yaml")))
        raise InputError(f"{paths.shown(path)}: no such study; known studies: {known}")
    try:
        content = _null_key(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise InputError(f"{paths.shown(path)}:{line}: not YAML ({getattr(error, 'problem', error)})") from None
    known = {"study", "about", "defaults", "panels", "analysis", "prune"}
    unknown = sorted(set(content) - known) if isinstance(content, dict) else ["?"]
    if unknown:
        raise InputError(f"{paths.shown(path)}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    panels = []
    for name, grid in (content.get("panels") or {}).items():
        if not isinstance(grid, dict) or "notebook" not in grid:
            raise InputError(f"{paths.shown(path)}: panel {name} needs a 'notebook'")
        settings = {**(content.get("defaults") or {}), **{k: v for k, v in grid.items() if k != "notebook"}}
        panels.append(PanelSpec(name, grid["notebook"], {**settings, "study": content["study"], "panel": name}))
    if not panels:
        raise InputError(f"{paths.shown(path)}: no panels")
    return Study(
        content["study"], path, panels, _analysis(content.get("analysis") or [], paths.shown(path)), content.get("prune", "but-last")
    )


def notebook_path(name: str) -> Path:
    """Path of a notebook given by name."""
    path = paths.NOTEBOOKS / f"{name.removesuffix('.ipynb')}.ipynb"
    if not path.exists():
        raise InputError(f"{paths.shown(path)}: no such notebook")
    return path


def parameters_of(path: Path) -> dict[str, Any]:
    """Names and default literals of a notebook's parameters cell; InputError where it has none, or one that is not literals."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{paths.shown(path)}: needs exactly one code cell tagged 'parameters', has {len(cells)}")
    found = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        try:
            assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            found[node.targets[0].id] = ast.literal_eval(node.value)
        except (AssertionError, ValueError):
            raise InputError(f"{paths.shown(path)}: the parameters cell may hold only literals, found: {ast.unparse(node)}") from None
    return found


def bind(path: Path, grid: dict[str, Any]) -> dict[str, Any]:
    """A grid as a notebook's parameters: its own names directly, every other config key through `overrides`."""
    names = parameters_of(path)
    direct = {k: v for k, v in grid.items() if k in names}
    rest = {k: v for k, v in grid.items() if k not in names}
    if rest and "overrides" not in names:
        raise InputError(f"{paths.shown(path)}: has no parameter {sorted(rest)[0]!r}; its parameters are {', '.join(names)}")
    for key, value in direct.items():  # a list parameter given a single value is a grid of one
        if isinstance(names[key], list) and not isinstance(value, list):
            direct[key] = [value]
    return {**direct, "overrides": rest} if "overrides" in names else direct


def chains_of(study: Study, available: bool = True) -> dict[str, list]:
    """Every panel's configs, each checked against seeds/ as its chain would; InputError before any model is loaded.

    `available=False` leaves out whether seeds/ has rows enough.
    """
    from selftrain import regimes
    from selftrain.config import expand

    found = {}
    for panel in study.panels:
        bind(notebook_path(panel.notebook), panel.grid)
        grid = {key: value for key, value in panel.grid.items() if key != "leave_out"}
        configs = [
            c
            for c in expand(grid, where=f"{paths.shown(study.path)}: panel {panel.name}")
            if c.chain_id not in panel.grid.get("leave_out", ())
        ]
        for config in configs:
            try:
                regimes.plan(config) if available else regimes.check(config)
            except InputError as error:
                raise InputError(f"{paths.shown(study.path)}: panel {panel.name}: {error}") from None
        found[panel.name] = configs
    return found


def execute(notebook: str, parameters: dict[str, Any], output: Path) -> float:
    """Execute a notebook by papermill with guarded parameters; seconds it took. The executed copy is kept also where it failed."""
    import papermill

    path = notebook_path(notebook)
    unknown = sorted(set(parameters) - set(papermill.inspect_notebook(str(path))))
    if unknown:
        raise InputError(f"{paths.shown(path)}: has no parameter {unknown[0]!r}")
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    os.environ.setdefault("SELFTRAIN_BATCH", "1")
    temporary = output.with_name(f".{output.name}")
    try:
        papermill.execute_notebook(
            str(path), str(temporary), parameters=parameters, kernel_name=KERNEL, cwd=str(paths.ROOT), log_output=True, progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        raise InputError(
            f"{paths.shown(path)}: {error.ename}: {str(error.evalue).strip().splitlines()[0] if str(error.evalue).strip() else ''}; "
            f"see {paths.shown(output)}"
        ) from None
    finally:
        if temporary.exists():
            os.replace(temporary, output)
    return time.monotonic() - started


def _known(study: Study, only: Sequence[str] | None) -> None:
    unknown = sorted(set(only or ()) - {panel.name for panel in study.panels})
    if unknown:
        raise InputError(f"{paths.shown(study.path)}: no panel {unknown[0]!r}; panels: {', '.join(panel.name for panel in study.panels)}")


def missing(study: Study) -> Study:
    """The study without the chains that its committed tables hold to the last cycle asked for, and without the panels that they hold whole."""
    folder = paths.study_folder(study.name)
    held = {manifest["chain"]: manifest["config"].get("last_cycle", 0) for manifest in results.committed_manifests(folder)}
    panels, chains = [], chains_of(study)
    for spec in study.panels:
        done = [c.chain_id for c in chains[spec.name] if held.get(c.chain_id, -1) >= c.last_cycle]
        if len(done) < len(chains[spec.name]):
            panels.append(replace(spec, grid={**spec.grid, "leave_out": done}) if done else spec)
    return replace(study, panels=panels)


def run(study: Study, only: list[str] | None = None) -> None:
    """Run or resume the panels (all, or those named), then the analysis notebooks; prints the time of each."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("papermill.translators", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    counts = {name: len(configs) for name, configs in chains_of(study).items()}
    _known(study, only)
    folder, times = paths.study_folder(study.name) / "executed", []
    for panel in study.panels:
        if not only or panel.name in only:
            print(f"== panel {panel.name}: {counts[panel.name]} chains", flush=True)
            parameters = bind(notebook_path(panel.notebook), panel.grid)
            times.append((panel.name, execute(panel.notebook, parameters, folder / f"{panel.notebook}--{panel.name}.ipynb")))
    if not only:
        times += draw(study)
    for name, seconds in [*times, ("total", sum(s for _, s in times))]:
        print(f"{name:32} {seconds / 60:6.1f} min")


def run_packed(
    study: Study, jobs: int, only: list[str] | None = None, share: float | None = None, service: bool = True, extra: Sequence[str] = ()
) -> None:
    """Run panels in several processes at once on one device, a process a notebook, each capped to its share of the device's memory.

    `service` lets their kernels run at the same time where NVIDIA's service is installed (mps.py); `extra` are further arguments of each
    process. InputError names the panels that failed; the others are kept.
    """
    names = [panel.name for panel in study.panels if not only or panel.name in only]
    _known(study, only)
    chains_of(study)
    with mps.shared_device(service) as clients:
        _pack(study, names, jobs, {**os.environ, **memory.environment_for(jobs, share), **clients}, extra)


def _pack(study: Study, names: list[str], jobs: int, env: dict[str, str], extra: Sequence[str]) -> None:
    logs = paths.study_folder(study.name) / "executed"
    logs.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> tuple[str, int, float]:
        started = time.monotonic()
        with open(logs / f"{name}.log", "w") as log:
            done = subprocess.run(
                [sys.executable, "-m", "selftrain.study", "run", str(study.path), "--panel", name, *extra],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
            )
        seconds = time.monotonic() - started
        print(
            f"{name:32} {seconds / 60:6.1f} min{'' if done.returncode == 0 else f'  FAILED, see {paths.shown(logs / name)}.log'}",
            flush=True,
        )
        return name, done.returncode, seconds

    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(one, names))
    failed = [name for name, code, _ in done if code]
    if failed:
        raise InputError(f"{paths.shown(study.path)}: {len(failed)} of {len(names)} panels failed: {', '.join(failed)}")


def publish(notebook: str, parameters: dict[str, Any], name: str) -> float:
    """Execute a notebook and keep its outputs under notebooks/executed/<name>/, free of times and of this machine's paths, to be read
    without tools; seconds it took. A notebook that fails leaves the copy there as it was, and its own in results/<name>/executed/."""
    output = paths.study_folder(name) / "executed" / f"{notebook}.ipynb"
    seconds = execute(notebook, parameters, output)
    executed.keep(output, paths.EXECUTED / name / output.name)
    return seconds


def draw(study: Study) -> list[tuple[str, float]]:
    """Execute and publish the analysis notebooks on what results/ holds, run here or committed; (name, seconds) each.

    The study's figures that none of them has drawn are removed: more traits or arms than before are drawn under other names.
    """
    times, started = [], time.time()
    for notebook, parameters in study.analysis:
        print(f"== {notebook}", flush=True)
        times.append((notebook, publish(notebook, {"study": study.name, **parameters}, study.name)))
    for path in figures_of(study.name):
        if path.stat().st_mtime < started:
            print(f"{paths.shown(path)}: no longer drawn, removed", flush=True)
            path.unlink()
    return times


def figures_of(name: str) -> list[Path]:
    """The files in figures/ that a study's notebooks drew: those called after it, and after no study with a longer name."""
    names = sorted((path.stem for path in paths.STUDIES.glob("*.yaml")), key=len)
    return [path for path in sorted(paths.FIGURES.glob(f"{name}_*")) if [n for n in names if path.name.startswith(f"{n}_")][-1:] == [name]]


def with_results() -> list[Study]:
    """Every study file that names analysis notebooks and has a complete chain here, run or committed."""
    found = [read(path.stem) for path in sorted(paths.STUDIES.glob("*.yaml"))]
    return [
        s
        for s in found
        if s.analysis and paths.study_folder(s.name).is_dir() and any(m["status"] == "complete" for m in results.manifests(s.name))
    ]


def check(study: Study) -> None:
    """Print every chain of a study file, checked, without running anything."""
    for name, configs in chains_of(study).items():
        print(f"{name}: {len(configs)} chains")
        for config in configs:
            print(f"  {config.chain_id}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m selftrain.study", description="Run a study file through papermill.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="run or resume a study")
    verb.add_argument("study", nargs="?", default="laptop")
    verb.add_argument("--panel", action="append", help="only this panel (repeatable); skips the analysis notebooks")
    verb.add_argument("--jobs", type=int, default=1, help="panels run at once, each in a process of its own (one GPU holds several)")
    verb.add_argument("--memory-share", type=float, help="share of the device's memory that each process may take (default 0.95 / jobs)")
    verb.add_argument("--missing", action="store_true", help="leave out the chains that the committed tables hold")
    verb.add_argument(
        "--no-mps",
        action="store_true",
        help="with --jobs: let processes take turns on the GPU instead of sharing it through NVIDIA's service",
    )
    verb = verbs.add_parser("figures", help="execute the analysis notebooks alone")
    verb.add_argument("study", nargs="*", help="default: every study whose results are here")
    for name, does in (
        ("check", "check a study file and list its chains"),
        ("plan", "what a study will take: prompts, GPU time, judge calls and cost; needs no GPU, key or weights"),
    ):
        verbs.add_parser(name, help=does).add_argument("study")
    args = parser.parse_args()
    studies = [read(name) for name in ([args.study] if isinstance(args.study, str) else args.study)]
    if args.verb == "figures":
        for name, seconds in [t for one in studies or with_results() for t in draw(one)]:
            print(f"{name:32} {seconds:6.1f} s")
        return
    (study,) = studies
    if args.verb == "run" and args.missing and not set(args.panel or ()) - {panel.name for panel in study.panels}:
        study = missing(study)
        unknown = sorted(set(args.panel or ()) - {panel.name for panel in study.panels})
        if unknown or not study.panels:
            raise InputError(
                f"{paths.shown(study.path)}: {f'panel {unknown[0]}' if unknown else 'the study'} has no chain that the committed tables lack"
            )
    if args.verb == "run" and args.jobs != 1:
        run_packed(study, args.jobs, args.panel, args.memory_share, not args.no_mps, ["--missing"] if args.missing else [])
    elif args.verb == "run":
        os.environ |= memory.environment_for(1, args.memory_share)
        run(study, args.panel)
    elif args.verb == "plan":
        from selftrain import plan

        plan.show(study)
    else:
        check(study)


if __name__ == "__main__":
    run_command(main)
