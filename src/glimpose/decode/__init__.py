"""From maps to named quantities: votes to centres and keypoints with covariances."""
