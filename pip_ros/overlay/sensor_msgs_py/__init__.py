"""The part of sensor_msgs_py that raymap3r_ros uses, for an environment in which no ROS distribution supplies it."""
