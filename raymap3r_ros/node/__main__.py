"""The executable `stream`; also `python -m raymap3r_ros.node`."""

import os
import signal
import sys


def main() -> int:
    """Run the node."""
    # Imports take seconds. Until the node can end in order, a signal just ends the process, without a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    from raymap3r_ros.node.dds_profile import rmw_problem
    from raymap3r_ros.text import printable
    from raymap3r_ros.threads import wait_passively
    from raymap3r_ros.working_directory import working_directory_problem

    if problem := working_directory_problem() or rmw_problem(os.environ):
        print(f"stream: error: {printable(problem)}", file=sys.stderr)
        return 2
    wait_passively()
    from raymap3r_ros.node.executable import main as run_node

    return run_node()


if __name__ == "__main__":
    sys.exit(main())
