"""A batch from its command line to its index: `make batch`, `python -m nulltext.batch` (docs/batch.md)."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from . import engines, index, memory, places, plan, progress, table
from .pictures import Pictures
from .store import Store
from .worker import Settings, Worker

#: of Ray: quiet, and nothing is told to anybody outside
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
RAY |= {"RAY_prestart_worker_first_driver": "0"}  # no process before there is work for it
RAY |= {"RAY_worker_niceness": "0"}  # at Ray's 15 a worker's server, which is the work, starves beside anything else
LOCAL_STORE = 128 * 2**20  # bytes of Ray's object store where this command starts Ray: rows are small
ROWS_FAILED = 3  # exit code: all rows have an end, some of them failed; 1: the command could not go on, 2: nor begin
BLOCKS = 20_000  # parts of the table that Ray hands out; a row each, unless the table is longer


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nulltext.batch", description="A table through a workflow, on Ray.")
    add = parser.add_argument
    add("--workflow", required=True, metavar="FILE", help="a workflow in API format")
    add("--table", required=True, help="CSV, JSON lines or Parquet; or a folder of pictures")
    add("--out", required=True, help="folder of the results, also s3://..., gs://...")
    add("--workers", type=int, help="servers at a time (on a GPU box: as many as its memory holds; else 1)")
    add("--servers", default="", help="addresses of servers that already run, with commas between")
    add("--engine", choices=("embedded", "checkout"), help="checkout: COMFYUI_PATH (the default where that is set)")
    add("--pictures", help="where the table's paths start (the table's own folder)")
    add("--prompt", help="the source prompt of every row")
    add("--edit", help="the edited prompt of every row")
    add("--set", action="append", default=[], metavar="TITLE.INPUT=VALUE", help="the same value in every row")
    add("--models", help="a folder laid out like ComfyUI's models/ (that of COMFYUI_PATH)")
    add("--cache", help="folder of the inversions made, shared by the servers of a machine (~/.cache/nulltext)")
    add("--timeout", type=float, default=3600.0, help="seconds that a row may take (3600)")
    add("--tries", type=int, default=4, help="how often a row is begun if its server or worker ends (4)")
    add("--strict", action="store_true", help="do nothing if a row of the table can't be run")
    add("--dashboard", action="store_true", help="Ray's dashboard, where this command starts Ray")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error("WORKERS must be at least 1")
    if options.tries < 1 or not options.timeout > 0:
        parser.error("--tries must be at least 1, --timeout positive")
    options.servers = [a.strip().rstrip("/") for a in options.servers.split(",") if a.strip()]
    for address in options.servers:
        if not address.startswith(("http://", "https://")):
            parser.error(f"{address} is no address: write http://host:8188")
    if options.servers and options.workers not in (None, len(options.servers)):
        parser.error("with SERVERS there is one worker for each address: leave WORKERS out")
    options.engine = options.engine or ("checkout" if os.environ.get("COMFYUI_PATH") else "embedded")
    return options


def planned(options: argparse.Namespace) -> plan.Plan:
    """The plan that the options ask for. PlanError, TableError."""
    flow = plan.load(options.workflow)
    constants = {}
    for name, which, text in (("PROMPT", "source", options.prompt), ("EDIT", "edited", options.edit)):
        if text is not None and not text.strip():
            raise plan.PlanError(f"{name} is empty: write the {which} prompt, or leave it out for the workflow's own.")
        constants |= {} if text is None else {plan.words_column(flow, which): text}
    for said in options.set:
        column, sign, value = said.partition("=")
        if not sign:
            raise plan.PlanError(f"--set {said}: write TITLE.INPUT=VALUE.")
        constants[column.strip()] = value
    import fsspec

    fs, path = fsspec.url_to_fs(options.table)
    where = options.pictures or fs.unstrip_protocol(path if fs.isdir(path) else path.rpartition("/")[0])
    folder = Path(options.workflow).resolve().parent
    own = [Pictures(where), *(Pictures(str(f)) for f in (folder, folder / "inputs", folder.parent / "inputs"))]
    lines = table.read(options.table, plan.picture_column(flow))
    return plan.make(flow, lines, Pictures(where), own, constants, own_needed=not options.servers)


def own_place(options: argparse.Namespace, files: list) -> Callable[[], places.Place]:
    """What makes a worker's own server."""
    cache = options.cache or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nulltext")
    folder = os.environ.get("COMFYUI_PATH")
    return functools.partial(places.OwnServer, options.engine, folder, options.models, cache, files)


def set_up_ray() -> None:
    """`RAY` for a Ray that this process starts; what is set already stays."""
    for name, value in RAY.items():
        os.environ.setdefault(name, value)


def start_ray(workers: int, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, else start Ray on this machine."""
    set_up_ray()
    import ray.data

    if not ray.is_initialized():
        more = {}
        if not os.environ.get("RAY_ADDRESS"):
            more = {
                "address": "local",  # a Ray that somebody started here by hand takes no settings of ours
                "num_cpus": max(workers + 1, os.cpu_count() or 1),
                "object_store_memory": LOCAL_STORE,
                "include_dashboard": dashboard,
            }
        ray.init(log_to_driver=False, logging_level="ERROR", **more)
    # the room's code goes with the work: a worker needs the pack's files for its server only
    ray.cloudpickle.register_pickle_by_value(sys.modules[__package__])
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its own loggers come with it
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    engines.end_like_ctrl_c()  # Ray has put its own answers to signals there


def stream(
    rows: list[str], settings: Settings, workers: int, servers: list[str], gpus: float = 0.0, threads: int = 1
) -> Iterator[dict]:
    """The records of these rows, as they end: Ray Data hands the rows to a pool of workers, and gives a row that was
    lost with its worker or its machine to another one. `threads`: rows at a time in one worker."""
    import ray.data

    more = {"num_cpus": 1, "num_gpus": gpus} if gpus else {"num_cpus": 1}
    if servers:
        turns = ray.remote(num_cpus=0)(places.Turns).remote(servers)
        more, settings.place = {"num_cpus": 0}, functools.partial(places.told, turns)
    # a second row waits at its worker where there are many: no worker waits for the next, and the end stays even
    ahead = 2 if len(rows) > 10 * workers else 1
    pool = ray.data.ActorPoolStrategy(
        size=workers,
        max_tasks_in_flight_per_actor=ahead * threads,
        max_concurrent_calls_per_actor=threads,
        enable_true_multi_threading=threads > 1,
    )
    # a machine where no server starts: its workers are placed anew, and end the command if nothing else comes up
    ray.data.DataContext.get_current().max_consecutive_actor_init_deaths = 3 * (workers - 1)
    data = ray.data.from_items([{"row": row} for row in rows], override_num_blocks=min(len(rows), BLOCKS))
    done = data.map(Worker, fn_constructor_args=(settings,), compute=pool, **more)
    for item in done.iter_rows():
        yield json.loads(item["record"])


def run(made: plan.Plan, store: Store, settings: Settings, workers: int | None, options: argparse.Namespace) -> bool:
    """Do what is missing, whatever is there already; False if it was stopped by hand."""
    done, _ = index.finished(store)
    todo = [row for row in made.rows if json.loads(row)["id"] not in done]
    if not todo:
        return True
    servers = places.answering(options.servers)
    start_ray(workers or len(servers) or 1, options.dashboard)
    gpus = 0.0
    if servers:
        workers = len(servers)
    else:
        workers, gpus = memory.share(workers, todo[0], settings)
    workers = min(workers, len(todo)) if not servers else workers
    said = ", ".join(servers) or f"{workers} {options.engine} server{'s' if workers > 1 else ''}"
    print(f"{len(todo)} of {len(made.rows)} rows to do, on {said}", file=sys.stderr, flush=True)
    bar = progress.Bar(len(todo))
    bar.draw()
    try:
        for record in stream(todo, settings, workers, servers, gpus):
            bar.add(bool(record["error"]))
    except KeyboardInterrupt:
        return False
    finally:
        bar.draw(end=True)
    return True


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        made = planned(options)
    except (plan.PlanError, table.TableError) as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, ValueError, ImportError) as error:  # of an address that fsspec can't reach
        print(f"The table {options.table} can't be read: {error}", file=sys.stderr)
        return 2
    for problem in made.problems:
        print(f"row {problem.row}{f' ({problem.key})' if problem.key else ''}: {problem.error}", file=sys.stderr)
    if made.problems and options.strict:
        return 2
    try:
        store = Store(options.out)
    except (OSError, ValueError, ImportError) as error:
        print(f"The folder {options.out} can't be made: {error}", file=sys.stderr)
        return 2
    store.sweep()
    place = own_place(options, made.files)
    settings = Settings(
        options.out if store.local is None else str(store.local.resolve()),
        made.workflow, place, made.files, options.timeout, options.tries, uuid.uuid4().hex,
    )  # fmt: skip
    whole, reason = False, ""
    try:
        whole = run(made, store, settings, options.workers, options)
        reason = "" if whole else "Stopped."
    except KeyboardInterrupt:
        reason = "Stopped."
    except Exception as error:  # Ray tells of a worker that could not start in its own kinds of errors
        reason = _sentence(error)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is done is written down before anything else
    lines, failed = index.write(store, made)
    _stop_ray()
    left = len(made.rows) + len(made.problems) - lines
    print(f"{lines - failed} rows done, {failed} failed, {left} left: {store.url}/{index.PARQUET}, {index.CSV}")
    if failed:
        print(f"What failed, and why: {store.url}/{index.ERRORS}", file=sys.stderr)
    if reason:
        print(f"{reason} The same command goes on from here.", file=sys.stderr)
        return 130 if reason == "Stopped." else 1
    return ROWS_FAILED if failed else 0


def _sentence(error: Exception) -> str:
    """What a worker that could not start said, with the end of its server's log; else the error's first line."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    found = [i for i, line in enumerate(lines) if "EngineError: " in line]
    if found:
        return "\n".join([lines[found[-1]].rpartition("EngineError: ")[2], *lines[found[-1] + 1 :][:30]])
    return f"{type(error).__name__}: {(lines or ['no more is known'])[0][:500]}"


def _stop_ray() -> None:
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
            places.sweep()
