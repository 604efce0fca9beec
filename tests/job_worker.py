"""A small command for the tests of jobs: real stages, real signals, real exit codes, none of the engine's weight.

Takes a behaviour and a number of steps, what is to be printed in the end, and the flags that every job adds.
"""

import argparse
import json
import os
import signal
import sys
import time

from neurflow_engine.progress import Cancelled, Events


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour", choices=["count", "fail", "deaf", "children"])
    parser.add_argument("steps", type=int)
    parser.add_argument("--result", type=json.loads)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events")
    given = parser.parse_args()
    progress = Events(given.events)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if given.behaviour == "deaf" else lambda *_: progress.stop())
    if given.behaviour == "children" and os.fork() == 0:
        time.sleep(60)  # goes on sleeping after SIGTERM, because the handler only sets a flag
        return 0
    try:
        with progress.stage("patches", total=1) as tick:
            tick.advance()
        with progress.stage("activations", total=given.steps) as tick:
            for step in range(given.steps):
                time.sleep(0.05)
                if given.behaviour == "fail" and step == 3:
                    raise OSError("no space left")
                tick.advance()
    except Cancelled:
        progress.finish("cancelled")
        return 130
    except OSError as error:
        print(error, file=sys.stderr)
        progress.finish("failed", "The disk is full.")
        return 1
    progress.finish("done")
    time.sleep(0.2)  # a result that comes late is still part of the job
    print(json.dumps(given.result or {"counted": given.steps, "folder": os.getcwd()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
