"""Three models learn to read handwritten digits: run it twice, and the second time everything is there already.

    python docs/examples/digits.py           trains, then asks again
    python docs/examples/digits.py --kill    trains, is killed in the middle, and goes on where it was
    python docs/examples/digits.py --runtime process      trains in other processes; models and cache are the same
    python docs/examples/digits.py --runtime dask         the same on a dask cluster, which it starts for that
    TREADLE_CONTAINER_IMAGE=python:3.13-slim python docs/examples/digits.py --runtime container

The data are the 1,797 images that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from treadle import Engine, RunResult, pipeline, step, unmapped

Images = dict[str, NDArray[Any]]

MODELS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=1000),
    "random forest": lambda: RandomForestClassifier(n_estimators=200, random_state=0),
    "support vectors": lambda: SVC(C=10, gamma=0.25),
}


# -- the pipeline -------------------------------------------------------------------------


@step
def load() -> Images:
    pixels, labels = load_digits(return_X_y=True)
    return {"pixels": pixels / 16, "labels": labels}


@step(outputs=("training", "testing"))
def split(digits: Images) -> tuple[Images, Images]:
    parts = train_test_split(digits["pixels"], digits["labels"], test_size=0.25, random_state=0)
    return {"pixels": parts[0], "labels": parts[2]}, {"pixels": parts[1], "labels": parts[3]}


@step
def train(kind: str, digits: Images) -> Any:
    return MODELS[kind]().fit(digits["pixels"], digits["labels"])


@step
def evaluate(model: Any, digits: Images) -> float:
    return float(np.mean(model.predict(digits["pixels"]) == digits["labels"]))


@step(outputs=("best_model",))
def choose(models: list[Any], accuracies: list[float]) -> Any:
    return models[int(np.argmax(accuracies))]


@pipeline
async def digits(kinds: list[str], runtime: str = "inline") -> dict[str, float]:
    parts = split.with_options(runtime=runtime).submit(load.with_options(runtime=runtime).submit())
    trained, tested = train.with_options(runtime=runtime), evaluate.with_options(runtime=runtime)
    models = trained.map(kinds, unmapped(parts.output("training")))  # three threads (or processes), at once
    accuracies = tested.map(models, unmapped(parts.output("testing")))  # each as soon as its model is there
    report = dict(zip(kinds, await accuracies, strict=True))  # waits only here
    await choose.with_options(runtime=runtime).submit(models, accuracies)
    return report


# -- twice --------------------------------------------------------------------------------


@contextmanager
def options_for(runtime: str) -> Iterator[dict[str, Any]]:
    """What an engine has to be told for steps to run there."""
    if runtime == "container":
        from treadle_adapters.container import ContainerExecutor

        # What is installed here is shown to the containers. Their models are pickles, which only trust lets in.
        yield {"executors": {"container": ContainerExecutor(site=True)}, "trust_workers": True}
        return
    if runtime != "dask":
        yield {}
        return
    from distributed import LocalCluster

    from treadle_adapters.dask import DaskExecutor

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        # Models of scikit-learn are stored as pickles, and those of a cluster are loaded only if it is trusted.
        yield {"executors": {"dask": DaskExecutor(cluster)}, "trust_workers": True}


async def twice(home: Path, runtime: str, options: dict[str, Any]) -> None:
    """Run the pipeline two times and compare."""
    async with Engine(home, **options) as engine:
        print("The first time, everything is computed:\n")
        first = await engine.run(digits, list(MODELS), runtime)
        print(first, end="\n\n")
        print("The second time, nothing is:\n")
        second = await engine.run(digits, list(MODELS), runtime)
        print(second, end="\n\n")
        print("What came from what (+ computed, = from the cache):\n")
        print(second.to_text(), end="\n\n")
        print(f"Time saved by the cache: {second.time_saved_seconds:.2f} s\n")
        await show_best(engine, first, second)


async def show_best(engine: Engine, first: RunResult[dict[str, float]], second: RunResult[dict[str, float]]) -> None:
    """The accuracies, and whether the model from the cache is the model that was trained."""
    best = max(second.value, key=lambda kind: second.value[kind])
    for kind, accuracy in second.value.items():
        bar = "#" * round((accuracy - 0.9) * 400)
        print(f"  {kind:20} {accuracy:7.2%}  {bar}{'   <- best' if kind == best else ''}")
    artifact = await engine.artifact("best_model")
    pixels = load.fn()["pixels"]  # outside a run a step is its plain function
    was, now = first.outputs["choose"].predict(pixels), (await artifact.load()).predict(pixels)
    verdict = "the same" if np.array_equal(was, now) else "NOT THE SAME"
    print(f"\nThe best model is kept as {artifact.name}, version {artifact.version}, {artifact.size / 1e3:.0f} kB.")
    print(f"What was trained and what came from the cache read all {len(pixels):,} images {verdict}.")


# -- killed and resumed -------------------------------------------------------------------


async def train_until_killed(home: Path) -> None:
    """What the child does: it says how far it is, and then somebody kills it."""
    async with Engine(home) as engine:
        handle = await engine.start(digits, list(MODELS))
        async for event in handle.events():
            if type(event).__name__ == "CallCompleted":
                print(event.call, flush=True)
        await handle


def kill_in_the_middle(home: Path) -> None:
    """Start this program once more, and kill it when its first model is trained: no warning, no clean-up."""
    command = [sys.executable, __file__, "--child", "--home", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            print(f"  process {child.pid}: {line.strip()} is done")
            if line.startswith("train"):
                child.send_signal(signal.SIGKILL)
                break
    print(f"  process {child.pid}: killed, exit code {child.returncode}\n")


async def resume(home: Path) -> None:
    """Open the home that the dead process left, and bring its run to the end."""
    async with Engine(home) as engine:
        for run in await engine.runs(status="interrupted"):
            print(f"Its run {run.run_id} is {run.status}. Taking it up:\n")
        for result in await engine.recover():
            print(result, end="\n\n")
            print(f"{result.reused} outcomes were in its log and are reused, {result.performed} calls were made.\n")
            await show_best(engine, result, result)


def killed(home: Path) -> None:
    """Kill, then resume."""
    print("The same pipeline in another process, which does not live long:\n")
    kill_in_the_middle(home)
    asyncio.run(resume(home))


def main() -> None:
    """Parse the command line; the home is emptied first, so that the demo begins at the beginning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(__file__).parents[2] / ".treadle" / "demo")
    parser.add_argument("--kill", action="store_true", help="kill it in the middle and resume it")
    parser.add_argument("--runtime", default="inline", help="where steps run: inline, process, dask, ...")
    parser.add_argument("--keep", action="store_true", help="do not empty the home first")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        asyncio.run(train_until_killed(asked.home))
        return
    if not asked.keep:
        shutil.rmtree(asked.home, ignore_errors=True)
    if asked.kill:
        killed(asked.home)
    else:
        with options_for(asked.runtime) as options:
            asyncio.run(twice(asked.home, asked.runtime, options))


if __name__ == "__main__":
    main()
