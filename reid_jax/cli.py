"""What all commands share: parsing, messages, exit codes, the settings of JAX.

A command is a function main(argv) that returns its exit code (None: 0) and raises ReidError for what the user
can change. `run(main)` makes of it a program: such an error is one line, `error: ...`, and exit code 2.
"""

import argparse
import errno
import importlib.util
import logging
import os
import platform
import re
import signal
import sys
import sysconfig
import textwrap
import threading
import traceback
from importlib import metadata

from reid_jax import places
from reid_jax.errors import USER_ERROR, ConfigError, ProcessError, ReidError
from reid_jax.fields import whole
from reid_jax.tables import visible

log = logging.getLogger("reid_jax")
DISK_FULL = {
    errno.ENOSPC: "no space left on the device; free some",
    errno.EDQUOT: "no space left in the quota; free some",
    errno.EFBIG: "a file is as large as it may be; raise that limit, ulimit -f,",
}
LEFT_BEHIND = ("Event loop is closed", "handle is closed")  # by background threads, after a failure
PACKAGES = ("reid_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


# ---- parsing
class Parser(argparse.ArgumentParser):
    """argparse's parser whose errors are ConfigErrors."""

    def error(self, message):
        raise ConfigError(f"{message}; {self.prog} --help lists the arguments")


def parser(command, text):
    """A Parser for `python -m reid_jax COMMAND`; text: its help (the module's docstring).

    The examples in the text, lines that begin with `python -m reid_jax`, are shown at its end; without any
    the bare command is one.
    """
    prose, lines = split_examples(text)
    about = dict(description=prose, epilog=examples(lines or [f"python -m reid_jax {command}"]))
    return Parser(
        prog=f"python -m reid_jax {command}", formatter_class=argparse.RawDescriptionHelpFormatter, **about
    )


def action(actions, command, name, text, doc):
    """The Parser of an action of a command, as `data check`; text: its help; doc: has its examples."""
    own = f"python -m reid_jax {command} {name}"
    lines = [line for line in split_examples(doc)[1] if line.startswith(f"{own} ")]
    form = argparse.RawDescriptionHelpFormatter
    return actions.add_parser(
        name, help=text, description=text, formatter_class=form, epilog=examples(lines or [own])
    )


def split_examples(text):
    """(text without its examples, lines of these); a line that ends with a backslash goes on in the next."""
    pattern = r"(?m)^ *python -m reid_jax (?:.*\\\n)*.*\n?"
    commands = [textwrap.dedent(command).rstrip() for command in re.findall(pattern, text)]
    prose = re.sub(r"\n{3,}", "\n\n", re.sub(pattern, "", text)).strip()
    return prose, [line for command in commands for line in command.splitlines()]


def examples(lines):
    """The end of a help: lines of commands, one or more."""
    return "\n".join([f"example{'s' * (len(lines) > 1)}:", *(f"    {line}" for line in lines)])


def add_run_flags(parser, on_broken=("stop", "skip")):
    """Flags of the commands that apply a run; on_broken: what that flag may be."""
    parser.add_argument("--checkpoint", default="latest", help="best, latest or a step (default: latest)")
    parser.add_argument("--net", default="auto", help="auto or a network of the method (default: auto)")
    parser.add_argument("--batch", type=whole(0), default=0, help="images at a time (default: the run's)")
    parser.add_argument(
        "--on_broken",
        "--on-broken",
        choices=on_broken,
        default="stop",
        help="pictures that cannot be read: stop (default), skip them"
        + (", or make their rows nan" if "nan" in on_broken else ""),
    )


def add_dry_flag(parser):
    """The flag of the commands that can be tried without their data, see reid_jax.dry."""
    text = "tell what would run and what is missing, and stop (exit code 3 where something is)"
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help=text)


def add_process_flags(parser):
    """Flags of the commands that several processes can do together, as of training."""
    add = parser.add_argument
    add("--coordinator", metavar="HOST:PORT", help="of process 0, where no launcher tells the processes")
    add("--num_processes", type=whole(1), help="with --coordinator: how many there are")
    add("--process_id", type=whole(0), help="with --coordinator: which one this is, from 0")
    add("--nodistributed", action="store_true", help="alone, although srun or mpirun started several")


def config_path(path, name="a config"):
    """FILE.py[:VARIANT] as a path of this machine: a file that is not there may be one of the package's own.

    An installed wheel keeps the project's configs/ below share/reid_jax of the environment.
    """
    file, colon, variant = places.local(path, name).partition(":")
    shipped = os.path.join(sysconfig.get_path("data"), "share", "reid_jax", file)
    file = shipped if not os.path.exists(file) and os.path.exists(shipped) else file
    return file + colon + variant


def load_config(path):
    """ConfigDict of a config file and its variant, configs/METHOD.py:VARIANT; ConfigError: no such file."""
    file, _, variant = config_path(path).partition(":")
    if not os.path.exists(file):
        raise ConfigError(f"config file {file} does not exist")
    spec = importlib.util.spec_from_file_location("config_of_a_run", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def parse_absl(argv, values):
    """What absl's FlagValues leave of a command line, with errors that name the flag or field."""
    from absl import flags

    config = "--config="
    argv = [config + config_path(a[len(config) :], "--config") if a.startswith(config) else a for a in argv]
    try:
        return values(argv)
    except ConfigError:
        raise
    except (AttributeError, KeyError) as e:
        raise ConfigError(f"no such config field: {e.args[0] if e.args else e}") from e
    except (flags.Error, TypeError, ValueError) as e:
        raise ConfigError(str(e)) from e
    except (OSError, ImportError, SyntaxError) as e:
        raise ConfigError(f"--config: {e}") from e


def config_of_flags(argv):
    """ConfigDict of --config=FILE.py:VARIANT and --config.FIELD=VALUE, as the training command reads them."""
    from absl import flags
    from ml_collections import config_flags

    values, argv = flags.FlagValues(), ["reid_jax", *argv]
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    before, sys.argv = sys.argv, argv  # where config_flags looks for the fields
    try:
        left = parse_absl(argv, values)
    finally:
        sys.argv = before
    if len(left) > 1:
        raise ConfigError(f"unexpected argument {left[1]!r}; fields are set as --config.data.height=256")
    if holder.value is None:
        raise ConfigError("--config=FILE.py:VARIANT is missing, as --config=configs/METHOD.py:market")
    return holder.value


# ---- running
def run(main, argv=None):
    """Runs a command with these arguments (None: the process's) and ends the process."""
    show_log()
    sys.exit(exit_code(main, argv))


def exit_code(main, argv=None):
    """The exit code of a command; what goes wrong is said on stderr."""
    try:
        return main(argv) or 0
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error)


def report_error(error):
    """Says on stderr what went wrong, in one line where the user can act on it; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    message = str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        place = error.filename or "in --workdir"
        message = f"{DISK_FULL[error.errno]} ({place}) and run the same command again"
    elif not isinstance(error, ReidError):
        message = no_platform(error)
        if not message:
            traceback.print_exception(error)
            return 1
    sys.stderr.write(f"error: {visible(message)}\n")
    return 1 if isinstance(error, ProcessError) else USER_ERROR


def no_platform(error):
    """Why JAX has nothing to run on, where that may be behind an error; "" where it has."""
    if "jax" not in sys.modules or not isinstance(error, RuntimeError | AssertionError):
        return ""
    from reid_jax import hardware

    return hardware.missing_platform()


class AboveBar(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record):
        from tqdm import tqdm

        tqdm.write(visible(self.format(record)), file=sys.stderr)


def show_log():
    """The library's log lines from INFO on go to stderr, as bare text; what cannot be printed is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if not log.handlers:
        log.addHandler(AboveBar())
    log.setLevel(logging.INFO)
    log.propagate = False


def silence_aftermath():
    """Leaves out what background threads and Orbax say of an error with which the command itself ends."""
    from absl import logging as absl_logging

    threading.excepthook = without_aftermath(threading.excepthook)
    sys.unraisablehook = without_aftermath(sys.unraisablehook)
    absl_logging.get_absl_handler().addFilter(is_no_error_of_orbax)


def without_aftermath(hook):
    """A hook for exceptions that nothing catches, silent where the run itself ends with the error.

    That is a disk without room, which background threads find full too, and what Orbax and tensorboardX leave
    behind when they could not read or write a file.
    """

    def handle(uncaught):
        error = uncaught.exc_value
        if getattr(error, "errno", None) not in DISK_FULL and str(error) not in LEFT_BEHIND:
            hook(uncaught)

    return handle


def is_no_error_of_orbax(record):
    """Filter of log lines: Orbax's errors are raised, and said once, by what saves; its warnings pass.

    What asyncio says are the same errors of Orbax's other tasks.
    """
    orbax = "orbax" in record.pathname or record.name == "asyncio"
    return not orbax or record.levelno < logging.ERROR


# ---- JAX and versions
def prepare_jax():
    """All programs are cached; no queued steps on several simulated CPU devices (they can deadlock)."""
    import jax

    from reid_jax.models import cpu

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "reid_jax", "xla"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        # A start compiles many small programs too.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    cpu.keep_heap()


def versions():
    """{package: version} of what a run depends on, and Python's."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
