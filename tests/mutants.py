"""`make mutants`: would the tests notice? Small faults are put, one at a time, into the code that must not fail.

    python tests/mutants.py TEST_FILE...

The modules are those of [tool.coverage.run] in pyproject.toml. mutmut works in .mutants/, on a copy; its own words are
in .mutants/log, and ``mutmut show NAME`` in there shows a fault. Exits with 1 below 90 % of all, or 85 % of a module.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutants"
COPIED = ("llmbatch", "tests", "samples", "README.md", "pyproject.toml")
# What mutmut writes down of a fault: pytest's exit code, or the signal that ended a test without end.
NOTICED = {1: "killed", 3: "killed", -24: "endless", 24: "endless", 36: "endless", 152: "endless", 255: "endless"}
ENOUGH_OF_ALL = 0.90
ENOUGH_OF_EACH = 0.85


def main(tests: list[str]) -> int:
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["run"]["include"]
    prepare(modules, tests)
    with (WORK / "log").open("wb") as log:
        subprocess.run([sys.executable, "-m", "mutmut", "run"], cwd=WORK, stdout=log, stderr=log)
    found = {module: results(module) for module in modules}
    for module, counts in found.items():
        print(told(module, counts))
    everything = sum(found.values(), Counter())
    print(told("all", everything))
    weak = [module for module, counts in found.items() if share(counts) < ENOUGH_OF_EACH]
    return 1 if weak or share(everything) < ENOUGH_OF_ALL else 0


def prepare(modules: list[str], tests: list[str]) -> None:
    """A fresh copy of what is tested, with mutmut's settings."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, WORK / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, WORK / name)
    settings = {
        "source_paths": ["llmbatch"],
        "only_mutate": modules,
        "also_copy": ["README.md", "samples"],
        "pytest_add_cli_args": ["-x", "-p", "no:cacheprovider", "--timeout=10"],
        "pytest_add_cli_args_test_selection": tests,
        "timeout_multiplier": 4.0,
        "timeout_constant": 3.0,
    }
    with (WORK / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\n")
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


def results(module: str) -> Counter[str]:
    """How many faults of a module were noticed, and how; what no test runs is as bad as what none notices."""
    meta = WORK / "mutants" / f"{module}.meta"
    if not meta.exists():
        sys.exit(f"nothing was tried in {module}; see {WORK / 'log'}")
    codes = json.loads(meta.read_text())["exit_code_by_key"].values()
    if None in codes:
        sys.exit(f"not all of {module} was tried; see {WORK / 'log'}")
    return Counter(NOTICED.get(code, "survived") for code in codes)


def share(counts: Counter[str]) -> float:
    return 1 - counts["survived"] / counts.total()


def told(name: str, counts: Counter[str]) -> str:
    killed, endless, total = counts["killed"], counts["endless"], counts.total()
    return f"{name:40} {killed:5} killed {endless:4} endless of {total:5}  {share(counts):6.1%}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
