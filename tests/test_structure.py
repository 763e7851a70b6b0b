"""What holds the house together: imports run one way, and foreign packages are noticed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["worker", "projections", "migrations"])
def test_a_foreign_package_of_one_of_our_names_is_noticed(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('the foreign one was run')")

    done = subprocess.run(
        [Path(sys.executable).parent / "projector", "--version"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 4
    assert f"`{package}` is {tmp_path / package}, which is not projector's own" in done.stderr


def test_the_wheel_holds_the_packages_the_sql_and_the_types(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in ("worker", "projections", "migrations")} <= names
    assert {f"migrations/{entry.name}" for entry in ROOT.glob("migrations/*.sql")} <= names
    assert "session_projector.py" in names
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)
