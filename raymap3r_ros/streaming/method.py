"""The constants of the method. What a user may choose is in `stream_options`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Constants of RayMap3R (arXiv 2603.20588), of the newer update rules, and of this project ("ours").

    Change single ones with `dataclasses.replace(METHOD, ...)` and pass the result to `Stream`.
    """

    # Ray branch and staticness
    warmup_frames: int = 5  # frames of a stream before the ray branch runs
    gate_from_frame: int = 6  # index of the first frame whose token staticness gates the update
    min_ray_confidence: float = 0.1  # discrepancy counts as 0 where the ray branch is less confident
    pixel_sharpness: float = 2.5  # slope of pixel staticness, in interquartile ranges
    token_sharpness: float = 3.0  # slope of token staticness, in interquartile ranges
    uncertain_pixel_staticness: float = 0.5  # factor on the staticness of the least confident pixels
    pixel_window: int = 3  # edge of the window that pixel staticness is averaged over, pixels
    staticness_memory: float = 0.8  # share of the old value in the running token staticness

    # Focal length
    focal_iterations: int = 10  # Weiszfeld steps
    focal_votes: int = 256  # ours: pixels in the coarse median estimate; more do not change it
    # Ours: limits in long edges of the image, 168 and 3 degrees of view; a point map outside them shows no real view.
    focal_low: float = 0.05
    focal_high: float = 20.0

    # Update rules
    gate_strength: float = 0.9  # lambda in a static scene
    cover_damping: float = 0.5  # how much the dynamic share of tokens weakens lambda and eta
    gate_floor: float = 0.15
    eta_floor: float = 0.5
    first_change: float = 1.0  # change of a token's candidate at the first frame of a segment
    time_gate_change: float = 1.5  # TTSA3R: relative change at which its time gate is one half
    filter_start: float = 1.5  # FILT3R: initial variance of a state token
    filter_change_memory: float = 0.95  # FILT3R: share of the old value in the running mean change
    filter_change_floor: float = 0.01  # FILT3R: smallest running mean change
    filter_noise_low: float = 0.02  # FILT3R: process noise of a token that changes as usual ...
    filter_noise_high: float = 0.5  # ... and of one that jumps
    filter_jump: float = 3.0  # FILT3R: relative change halfway between the two
    filter_sharpness: float = 20.0  # FILT3R: slope between the two
    filter_gain_low: float = 0.01  # FILT3R: limits of the gain
    filter_gain_high: float = 0.99
    motion_variance: float = 30.0  # ours: variance of a token read from moving objects, in measurement variances

    # Router
    router_window: int = 16  # rotations that the median is taken over
    router_first_frame: int = 5  # published: rotations count from this frame ...
    router_last_frame: int = 20  # ... to this one, at which the router decides
    router_threshold: float = 2.0  # degrees per frame, median
    router_margin: float = 0.5  # ours: degrees of hysteresis around the threshold
    router_min_frames: int = 4  # ours: rotations needed before the adaptive router decides

    # Smoothing
    smoothing_strength: float = 2.0  # published: weight of acceleration times change of the state
    tracker_gains: tuple[float, ...] = (1.0, 0.85, 0.7, 0.5, 0.35, 0.2)  # ours: 1 = the prediction itself
    tracker_memory: float = 0.95  # ours: share of the old value in a tracker's mean squared innovation
    tracker_exponent: int = 8  # ours: weight of a tracker by its inverse mean squared innovation; high = best one only

    # Known poses (ours)
    known_scale_spread: float = 0.1  # standard deviation of the log scale before positions are given
    known_motion_share: float = 0.5  # least share of the predicted positions' variance that the given ones explain
    known_scale_limit: float = 20.0  # largest change of a segment's scale, as a factor, and its inverse
    known_pose_memory: float = 20.0  # frames over which the errors of predicted positions are correlated

    # Reset alignment
    alignment_points: int = 20_000  # most confident points in a published reset alignment

    # Dynamic mask (ours). Lengths are in units of 1/`mask_unit` of the image's long edge.
    mask_unit: int = 128
    mask_samples: int = 4096  # pixels that centre and noise unit are estimated from; more do not change them
    mask_share: float = 0.15  # share of the pixels in the densest interval
    mask_factor_spread: float = 0.4  # standard deviation of the log factor expected between the branches
    mask_nearer: float = 1.2  # a denser interval this much nearer is worth as much as one e times as wide
    mask_shifts: int = 2  # steps of the centre to the mean of the values within a standard deviation of it
    mask_quantiles: tuple[float, ...] = (0.683, 0.954)  # shares of a normal distribution within ...
    mask_deviations: tuple[float, ...] = (1.0, 2.0)  # ... these numbers of standard deviations
    mask_static: float = 0.5  # noise units within which a pixel counts as surely static
    mask_patch: int = 6  # window in which a surely dynamic region is found
    mask_step: int = 4  # window of one growth step
    mask_half: float = 0.5  # a region ends where its contrast falls below this share of its neighbour's ...
    mask_fade: float = 0.92  # ... which counts for less with each step
    published_mask_staticness: float = 0.5  # published mask: pixels below this staticness are dynamic

    # Keyframes (ours)
    keyframe_interval: int = 5  # frames between two that may become keyframes
    keyframe_overlap: float = 0.7  # a view with more overlap with a keyframe shows nothing new
    rehearsed_keyframes: int = 8  # that a new memory sees at a reset, ...
    rehearsed_nearest: int = 4  # ... among them the ones with the largest overlap with the current view
    alignment_rounds: int = 5  # of the robust mean over keyframes
    alignment_outlier: float = 1.5  # residual at which the weight of a keyframe is halved, in medians
    alignment_rotation_floor: float = 0.5  # degrees: smallest median of rotations
    alignment_distance_floor: float = 0.01  # the same of positions, as a share of the median distance of the points

    # Relocalisation (ours)
    past_worlds: int = 3  # whose keyframes are kept
    relocalised_keyframes: int = 4  # seen again in a search
    # What an accepted frame has in common with the keyframe that it agrees with best
    relocalised_likeness: float = 0.75  # cosine of the descriptors
    relocalised_visible: float = 0.3  # share of the frame's points that the keyframe sees ...
    relocalised_depth: float = 0.4  # ... and share of these with equal distance
    relocalised_tolerance: float = 0.15  # log ratio up to which two distances are equal
    relocalised_appearance: float = 0.5  # mean cosine of the tokens there, without their common part

    # Plausibility (ours)
    plausibility_samples: int = 256  # pixels of which percentiles are taken
    # Percentiles of confidence, ray confidence and disagreement, so that movers over half of the image change little
    plausibility_shares: tuple[float, ...] = (0.9, 0.5, 0.25)


METHOD = Method()
