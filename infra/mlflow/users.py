"""Users of the tracking server that serve.sh starts.

    python infra/mlflow/users.py add alice                     may look at everything
    python infra/mlflow/users.py add cluster --writes vast     may also write into the experiment `vast`
    python infra/mlflow/users.py remove alice

MLFLOW_TRACKING_URI names the server, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD an administrator. The new
user's password is asked for, or taken from MLFLOW_NEW_PASSWORD: never from the command line, which others can see.
"""

import argparse
import getpass
import os
import sys

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

_NEEDED = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_SHORTEST = 12


def main() -> int:
    """Do what is asked; 0 done, 1 refused by the server, 2 a mistake."""
    parser = argparse.ArgumentParser(description="Users of the tracking server.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="make a user, or let one that there is write into more experiments")
    add.add_argument("name")
    add.add_argument("--writes", action="append", default=[], metavar="EXPERIMENT", help="made where there is none")
    remove = verbs.add_parser("remove", help="remove a user")
    remove.add_argument("name")
    args = parser.parse_args()
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        print(f"users.py: {', '.join(missing)} not set; they name the server and an administrator", file=sys.stderr)
        return 2
    uri = os.environ["MLFLOW_TRACKING_URI"]
    try:
        if args.verb == "remove":
            AuthServiceClient(uri).delete_user(args.name)
            print(f"{args.name} is removed")
            return 0
        return _add(uri, args.name, args.writes)
    except MlflowException as error:
        print(f"users.py: {uri} refused: {error}", file=sys.stderr)
        return 1


def _add(uri: str, name: str, experiments: list[str]) -> int:
    auth, client = AuthServiceClient(uri), MlflowClient(uri)
    try:
        auth.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        password = os.environ.get("MLFLOW_NEW_PASSWORD") or getpass.getpass(f"password of {name}: ")
        if len(password) < _SHORTEST:
            print(
                f"users.py: the password has {len(password)} characters; expected {_SHORTEST} or more", file=sys.stderr
            )
            return 2
        auth.create_user(name, password)
    for experiment in experiments:
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        auth.grant_user_permission(name, "experiment", experiment_id, "EDIT")
    print(f"{name} may look at everything" + (f" and write into {', '.join(experiments)}" if experiments else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
