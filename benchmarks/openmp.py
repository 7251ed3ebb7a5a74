"""Sets how OpenMP's threads wait, as the command line and the node do. Imported before PyTorch."""

from raymap3r_ros.threads import wait_passively

wait_passively()
