"""Camera models, poses, similarity transforms and calibration."""
