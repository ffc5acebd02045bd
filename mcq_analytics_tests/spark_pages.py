"""All that Spark's own UI shows; as a program it computes a window and prints that.

The limit for small windows is lowered, so that Spark's tasks read the base tables.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.parse import urldefrag, urljoin, urlsplit

from pyspark.sql import SparkSession

from mcq_analytics.launching import in_process
from mcq_analytics.model.windows import Window, parse_hour
from mcq_analytics.settings import load_settings

APPLICATIONS = "api/v1/applications"
RECORDS = (
    *("environment", "allexecutors", "jobs", "stages?details=true", "storage/rdd"),
    "sql?details=true&length=1000",
)
NOT_READ = re.compile(r"/static/|kill|\.sort=|pageSize=")
"""Images and scripts, what ends a job, and the same pages in another order."""


def all_pages(root: str) -> Iterator[tuple[str, str]]:
    """Yield address and text of all pages that lead from one, and of its REST API if it has one.

    Raises:
        OSError: nothing answers.

    """
    found = [root, *_records(root)]
    for address in found:
        text = text_at(address)
        yield address, text
        for link in re.findall(r"""href=["']([^"']+)["']""", text):
            linked, _ = urldefrag(urljoin(address, html.unescape(link)))
            # Spark gives its own machine several names.
            near = urlsplit(linked)._replace(netloc=urlsplit(root).netloc).geturl()
            is_new = near not in found and not NOT_READ.search(near)
            if is_new and urlsplit(linked).port == urlsplit(root).port:
                found.append(near)


def text_at(address: str) -> str:
    """Return what a page says, be it an error."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310
            return str(answer.read().decode())
    except HTTPError as error:
        return error.read().decode()


def _records(root: str) -> Iterator[str]:
    text = text_at(f"{root}{APPLICATIONS}")
    if text.startswith("["):
        for application in json.loads(text):
            for record in RECORDS:
                yield f"{root}{APPLICATIONS}/{application['id']}/{record}"


def main(start: str, end: str) -> None:
    """Print the pages of the session's UI, and its REST API."""
    os.environ["MCQ_DRIVER_ROWS"] = "0"
    in_process.run_window(load_settings(), Window(parse_hour(start), parse_hour(end)))
    context = SparkSession.builder.getOrCreate().sparkContext
    for address, text in all_pages(f"{context.uiWebUrl}/"):
        print(address, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
