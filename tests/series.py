"""Our series as Prometheus would read them, on a node's metrics port."""

import re

import httpx

LINE = re.compile(r"ray_raydistill_(\w+)\{(.*)\} (\S+)")


def read_series(port):
    """Return (name, labels, value) of our series on a node's metrics port."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match:
            yield match[1], dict(re.findall(r'(\w+)="([^"]*)"', match[2])), float(match[3])
