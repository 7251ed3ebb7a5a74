"""The Python half of the overlay: the parts of tf2_ros, cv_bridge and sensor_msgs_py that raymap3r_ros uses."""

import os

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPathFile(build_py):
    """Installs the .pth file beside the modules; setuptools has no option for it."""

    def run(self):
        super().run()
        self.copy_file("raymap3r_pip_ros.pth", os.path.join(self.build_lib, "raymap3r_pip_ros.pth"))

    def get_outputs(self, *args, **kwargs):
        return [*super().get_outputs(*args, **kwargs), os.path.join(self.build_lib, "raymap3r_pip_ros.pth")]


setup(
    name="raymap3r-pip-ros",
    version="0.1.0",
    description="The parts of tf2_ros, cv_bridge and sensor_msgs_py that raymap3r_ros uses, for pip environments",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["tf2_ros", "cv_bridge", "sensor_msgs_py"],
    py_modules=["raymap3r_pip_ros"],
    # pip_ros/install.py installs rclpy and the message packages, or leaves them to the ROS distribution.
    install_requires=["numpy>=1.26", "opencv-python-headless>=4.7"],
    cmdclass={"build_py": BuildWithPathFile},
    zip_safe=False,
)
