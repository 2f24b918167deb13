"""Running cases: the runner of each, both float types, and what is said of it."""

import dataclasses
import importlib
import importlib.util
import os
import traceback
import types

import jax
import numpy as np

from reid_jax import models
from reid_jax.errors import ConfigError, DataError, ReidError
from reid_jax.parity import case as cases
from reid_jax.parity import compare

HEADER = f"{'case':28} {'worst array':34} {'float64':>8} {'float32':>8}  component (reference)"


def own_runners(path):
    """{function name: function} of a user's file of runners, {} without one."""
    if not path:
        return {}
    if not os.path.isfile(path):
        raise ConfigError(f"--runners={path} is no file")
    spec = importlib.util.spec_from_file_location("own_parity_runners", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ConfigError(f"--runners={path} cannot be imported: {e!r}") from e
    return {k: f for k, f in vars(module).items() if isinstance(f, types.FunctionType)}


def find_runner(name, runners):
    """The function that runs cases of this name, e.g. `reid_jax.parity.efl.club` for efl__club.

    own: a user's functions, by case name. A case net__ANYTHING runs as a whole net, see `net.py`.
    Raises DataError when there is none.
    """
    if name in runners:
        return runners[name]
    topic, _, component = name.partition("__")
    module_name = f"reid_jax.parity.{topic}"
    if topic.isidentifier() and component.isidentifier() and topic not in _NO_TOPICS:
        for module in models.modules(module_name) if importlib.util.find_spec(module_name) else ():
            runner = getattr(module, component if topic != "net" else "net", None)
            if getattr(runner, "__module__", None) == module.__name__ and not component.startswith("_"):
                return runner
    raise DataError(
        f"no runner for {name}: it is called TOPIC__COMPONENT as the file, and stands in "
        "reid_jax/parity/TOPIC.py, a module of reid_jax/parity/TOPIC or in a file named by --runners"
    )


_NO_TOPICS = {"case", "compare", "nets", "record", "run"}


def report(path, runners, float32=True):
    """What is to be said of one file, as JSON-like values; no error gets out."""
    name = os.path.splitext(os.path.basename(path))[0]
    result = {"case": name, "ok": False, "error": "", "arrays": {}, "float32": None}
    result |= {"component": "", "reference": "", "worst": "", "float64": None}
    try:
        case = cases.load(path)
        result["reference"] = str(case.meta.get("reference", "?"))
        runner = find_runner(name, runners)
        result["component"] = (runner.__doc__ or "").strip().split("\n")[0]
        compared = outcomes(runner, case, np.float64)
    except ReidError as e:
        return result | {"error": str(e)}
    except Exception as e:  # a runner met something it does not know: this case fails, the others go on
        where = traceback.extract_tb(e.__traceback__)[-1]
        return result | {
            "error": f"{type(e).__name__}: {e} ({os.path.basename(where.filename)}:{where.lineno})"
        }
    if not compared:
        return result | {"error": "the case records nothing to compare"}
    worst = max(compared, key=lambda o: o.error / o.tolerance)
    result |= {"worst": worst.name, "float64": worst.error, "ok": all(o.ok for o in compared)}
    result["arrays"] = {o.name: dataclasses.asdict(o) | {"ok": o.ok} for o in compared}
    if float32:
        result["float32"] = drift(runner, case)
    return result


def outcomes(runner, case, dtype):
    """Outcomes of a case in one float type."""
    with jax.enable_x64(dtype == np.float64):
        case = dataclasses.replace(case, dtype=dtype)
        return compare.outcomes(case, runner(case))


def drift(runner, case):
    """Worst error in float32, or None where it cannot run."""
    try:
        return max(o.error for o in outcomes(runner, case, np.float32))
    except Exception:
        return None


def line(result):
    """One row of the table."""
    figures = (number(result["float64"]), number(result["float32"]))
    mark = "" if result["ok"] else "  FAILED"
    about = f"{result['component']} ({result['reference']})" if result["component"] else ""
    text = f"{result['case']:28} {result['worst']:34} {figures[0]:>8} {figures[1]:>8}  {about}{mark}"
    return text.rstrip()


def details(result, everything=False):
    """Lines on what failed, or on every array."""
    if result["error"]:
        yield f"    {result['error']}"
    for name, o in result["arrays"].items():
        if everything or not o["ok"]:
            yield f"    {name}: {number(o['error'])} (limit {o['tolerance']:.0e}) {o['note']}".rstrip()


def number(error):
    return "-" if error is None else f"{error:.1e}"


def summary(reports):
    """The last line."""
    passed = sum(r["ok"] for r in reports)
    text = f"parity: {len(reports)} cases, {passed} passed, {len(reports) - passed} failed"
    known = [r for r in reports if r["float64"] is not None]
    if known:
        worst = max(known, key=lambda r: r["float64"])
        text += f", worst {number(worst['float64'])} ({worst['case']} {worst['worst']})"
    return text
