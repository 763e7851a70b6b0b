"""Helpers that read what a daemon serves over HTTP."""

import urllib.error
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support import Daemon

HTTP = ["--http", "127.0.0.1:0"]


def address(running: Daemon) -> str:
    return f"http://{running.wait_for('serving_http')['address']}"


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scraped(url: str) -> dict[tuple[Any, ...], float]:
    status, text = get(f"{url}/metrics")
    assert status == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
