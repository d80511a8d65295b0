"""What the Python clients share: where to connect, and how a behaviour is reported."""

import os
import sys
import traceback


def targets():
    """(name, port) of every way to the database: directly, and through routers."""
    for target in os.environ["TARGETS"].split():
        name, port = target.split("=")
        yield name, int(port)


def conninfo(port):
    return (
        f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        f" password={os.environ['PGPASSWORD']} connect_timeout=20"
    )


class Report:
    """Prints `ok TARGET NAME` for each behaviour; the test counts them."""

    def __init__(self):
        self.failed = False

    def ok(self, target, name):
        print("ok", target, name, flush=True)

    def failure(self, target, name):
        self.failed = True
        print("FAILED", target, name, flush=True)
        traceback.print_exc(file=sys.stdout)

    def end(self):
        sys.exit(1 if self.failed else 0)


def run(behaviours):
    """Runs each behaviour, a function of a port, on each target."""
    report = Report()
    for target, port in targets():
        for behaviour in behaviours:
            try:
                behaviour(port)
                report.ok(target, behaviour.__name__)
            except BaseException:
                report.failure(target, behaviour.__name__)
    report.end()


async def run_async(behaviours):
    report = Report()
    for target, port in targets():
        for behaviour in behaviours:
            try:
                await behaviour(port)
                report.ok(target, behaviour.__name__)
            except BaseException:
                report.failure(target, behaviour.__name__)
    report.end()
