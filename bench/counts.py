"""Instructions of a few fixed kernel calls, counted by callgrind and compared with those in counts.json.

    python bench/counts.py [--build DIR]             a table; exits with 1 if a count is no longer the one in the file
    python bench/counts.py [--build DIR] --update    writes the file

Counts need no quiet machine, but they are a compiler's: they are compared only under the major version, and on the kind
of processor, that made the file. A count that fell by more than TOLERANCE fails as one that rose does: until the file
is updated, the gain could be lost again unseen. Instructions are not time: a change that trades them for fewer misses
of the cache is to be measured with `fastrnn bench`.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FILE = HERE / "counts.json"
TOLERANCE = 0.01
NEEDS = ("valgrind", "cmake", "ninja", "gcc")
OPTIONS = ("-DCMAKE_C_COMPILER=gcc", "-DCMAKE_C_FLAGS=", "-DCMAKE_BUILD_TYPE=Release")
CASES = (  # instruction set (valgrind 3.19 runs no AVX-512), cell, T x B x I x H
    *(f"avx2 {cell} {shape}" for cell in ("rnn_tanh", "lstm", "gru") for shape in ("20x16x64x64", "50x1x64x64")),
    "avx2 lstm 10x5x33x65",
    "avx2 cec_identity_identity 20x16x64x64",
    "generic lstm 10x16x64x64",
)
CALLS = {  # those of counts.c, in their order, and the function of each
    "pack forward": "frnn_pack",
    "pack backward": "frnn_pack",
    "forward": "frnn_forward",
    "forward, keeping": "frnn_forward",
    "backward": "frnn_backward",
}


def missing():
    """The programs that are needed and not there."""
    return [name for name in NEEDS if not shutil.which(name)]


def run(*command):
    """What the command prints; what it complains of, if it fails, is the error."""
    at_once = os.environ | {"LD_BIND_NOW": "1"}  # else a first call's count holds the dynamic linker's work
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=at_once)
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder):
    """The path of counts.c's program, built there with the project's own flags and no others."""
    run("cmake", "-S", HERE.parent, "-B", folder, "-G", "Ninja", *OPTIONS)
    run("cmake", "--build", folder, "--target", "counts")
    return Path(folder) / "counts"


def count(program, case):
    """The instructions of each of CALLS."""
    functions = sorted(set(CALLS.values()))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        # A dump after each call keeps them in order. In it stands "cfn=FUNCTION", "calls=1 ...", "LINE COUNT": all that
        # the call took. (--toggle-collect would be plainer; of two options about a function only the last is heeded.)
        options = [f"--dump-after={function}" for function in functions]
        options += ["--combine-dumps=yes", "--compress-strings=no", f"--callgrind-out-file={out}"]
        run("valgrind", "--tool=callgrind", *options, program, *case.split())
        found = re.findall(rf"^cfn=({'|'.join(functions)})\ncalls=1 .*\n\S+ (\d+)$", out.read_text(), re.MULTILINE)
    if [function for function, _ in found] != list(CALLS.values()):
        raise SystemExit(f"{case}: not the calls expected: {found}")
    return dict(zip(CALLS, (int(instructions) for _, instructions in found), strict=True))


def measured(program):
    counts = {f"{case}: {call}": n for case in CASES for call, n in count(program, case).items()}
    return {"compiler": run(program).strip(), "processor": platform.machine(), "counts": counts}


def incomparable(old, new):
    """Why the counts of the two are not to be compared, or None."""
    of = [f"{of['compiler'].split('.')[0]} on {of['processor']}" for of in (old, new)]
    return None if of[0] == of[1] else f"the counts in {FILE.name} are those of {of[0]}; this is {of[1]}"


def verdict(old, new):
    """None, if the count is as good as the same; else what to do about it."""
    if old is None or new is None:
        return "not in the file: update it" if old is None else "no longer counted: update the file"
    if abs(new - old) <= TOLERANCE * old:
        return None
    return "ROSE" if new > old else "fell: update the file"


def compare(old, new):
    """The lines of a table of the counts of the two, and of those lines the ones with a verdict."""
    lines, bad = [], []
    for name in old | new:
        was, now = old.get(name), new.get(name)
        change = f"{now / was - 1:+8.2%}" if was and now else " " * 8
        what = verdict(was, now)
        lines.append(f"{name:<46}{was or '-':>12}{now or '-':>12} {change}  {what or ''}".rstrip())
        bad += lines[-1:] if what else []
    return lines, bad


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", metavar="DIR", help="where to build the C library (default: a temporary folder)")
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name}")
    options = parser.parse_args(arguments)
    if missing():
        parser.error(f"not found: {', '.join(missing())}")
    with tempfile.TemporaryDirectory() as folder:
        new = measured(build(options.build or folder))
    old = json.loads(FILE.read_text())
    reason, bad = incomparable(old, new), []
    if reason:
        print(f"not compared: {reason}")
    else:
        lines, bad = compare(old["counts"], new["counts"])
        print(*lines, f"{len(bad)} of {len(lines)} are not within {TOLERANCE:.0%}", sep="\n")
    if options.update:
        FILE.write_text(json.dumps(new, indent=2) + "\n")
        return 0
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
