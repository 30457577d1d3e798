"""What runs an experiment: the check, notebooks as stages, profiles, publishing, prediction."""
