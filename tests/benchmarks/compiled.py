"""Training of the crystal tower compiled and in bfloat16, beside the same tower as it is: speed, loss and error.

    make bench PROFILE=laptop ONLY=compiled

Both get the same batches, seeds and learning rates: steps a second, on one thread, as fits run side by side in the
pipeline, and on all; error on validation after equally many steps, which should be one; error on test after equal wall
time. The tower that the trials of `energy` chose then trains for 15 minutes, compiled. Compiling is done before, in the
first comparison; `compile_s` says how long it took. Some half an hour on two idle cores.
"""

import time
from functools import partial

import torch
from benchmarks import energy, towers
from benchmarks.comparison import Settings, alternate, compare, rates
from tqdm import tqdm

OURS, PEER = "compiled, bfloat16", "float32"
STEPS = (300, 1000)  # of each point of the curves: a training of its own, one cycle long
CHOSEN = {"width": 128}  # by the trials of `energy`


def model(task: towers.Task, *, compiled: bool):
    """The tower of a task, with a head."""
    made = task.models()[towers.OURS[0]]()
    made.tower.compiled = compiled
    return made


def measure(settings: Settings) -> dict:
    """Speed, curves, error at equal time, and the long training."""
    task = towers.Task(settings.profile)
    makes = {name: partial(model, task, compiled=name == OURS) for name in (OURS, PEER)}
    sides = {name: partial(towers.steps, task, *task.start(make, 0)) for name, make in makes.items()}
    start = time.perf_counter()
    sides[OURS]()
    compile_s = time.perf_counter() - start
    comparisons = []
    for threads in (1, settings.threads):
        torch.set_num_threads(threads)
        seconds = alternate(sides, repeats=towers.REPEATS, desc="compiled, steps")
        what, work = f"training, batch {task.fit.batch_size}, threads: {threads}", towers.STEPS * task.fit.batch_size
        comparisons += rates(what, "structures/s", work, seconds, OURS)

    def curve(name: str, steps: int, seed: int) -> float:
        how = {"length": steps, "at": lambda step: step, "rate": task.fit.learning_rate, "seed": seed}
        return float(task.errors(task.cycle(makes[name], **how)[0], "val").mean())

    def timed(name: str, seed: int) -> float:
        how = {"seconds": settings.seconds, "rate": task.fit.learning_rate, "part": "test"}
        return task.train(makes[name], seed=seed, **how)["error"]

    runs = [(f"validation error of E_f after {n} steps", curve, (n,)) for n in STEPS]
    runs.append((f"test error of E_f after {settings.seconds:g} s of training", timed, ()))
    for what, run, given in tqdm(runs, desc="compiled, trainings"):
        errors: dict[str, list[float]] = {OURS: [], PEER: []}
        for seed in range(settings.seeds):
            for name, values in errors.items():
                values.append(run(name, *given, seed))
        sides = {"ours": (OURS, errors[OURS]), "peer": (PEER, errors[PEER])}
        comparisons.append(compare(what, "eV/atom", better="less", **sides))
    long = towers.Task(settings.profile, **energy.START | CHOSEN)
    final = energy.final(long, partial(model, long, compiled=True))
    return {"compile_s": compile_s, "chosen": CHOSEN, "final": final, "comparisons": comparisons}
