"""What local.sh asks of the student: whether its models are there, and why Serve has given it up.

python cluster/student.py check CONFIG.yaml
python cluster/student.py fault DASHBOARD TOKEN_FILE
"""

import json
import sys
import urllib.request
from pathlib import Path

import yaml

from raydistill.core.errors import RaydistillError
from raydistill.core.models import fetch_model_config
from raydistill.core.uris import is_remote

GIVEN_UP = ("DEPLOY_FAILED", "UNHEALTHY")
LAST_LINES = 5  # of a reason: above them is the stack


def check(config: str) -> None:
    """Refuse a Serve config file that names a model which is not there; one in the S3 server cannot be there yet."""
    for application in yaml.safe_load(Path(config).read_text())["applications"]:
        model = (application.get("args") or {}).get("model")
        if model and not is_remote(model):
            try:
                fetch_model_config(model)
            except RaydistillError as error:
                sys.exit(f"error: {config}: {error}")


def fault(dashboard: str, token_file: str) -> None:
    """Write why Serve has given an application up; nothing where it may still come."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"}
        request = urllib.request.Request(f"{dashboard}/api/serve/applications/", headers=headers)
        applications = json.load(opener.open(request, timeout=10))["applications"]
    except OSError:
        return  # no dashboard yet, or none any more
    for name, found in applications.items():
        if found["status"] in GIVEN_UP:
            told = [found["message"], *(deployment["message"] for deployment in found["deployments"].values())]
            lines = [line for text in told for line in text.strip().splitlines()[-LAST_LINES:]]
            sys.stdout.write("\n".join([f"{name} is {found['status']}:", *lines, ""]))


if __name__ == "__main__":
    {"check": check, "fault": fault}[sys.argv[1]](*sys.argv[2:])
